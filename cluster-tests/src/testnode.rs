//! The entities of the test node: each does one thing that a test wants to see done.

use std::time::Duration;

use mainstay::prelude::*;
use mainstay::storage::fault::drive;

/// Names the variable of the environment that puts the node's databases on a drive that forgets
/// and stalls; its value is the drive's seed.
pub const DRIVE: &str = "TESTNODE_DRIVE";

/// Items that a list keeps, so that a long test stays within the bounds of a state.
pub const LIST_ITEMS_MAX: usize = 50_000;

/// Numbers on each half of a page: with their heads, 64 KiB and a little more for both.
const PAGE_HALF: usize = 3_641;

/// Puts the databases of this process on a drive of tests, if the environment says so.
///
/// # Panics
/// When the seed is no number.
pub fn take_drive() {
    if let Ok(seed) = std::env::var(DRIVE) {
        drive::install(seed.parse().expect("the harness writes a number"));
    }
}

/// All entities of the test node.
pub fn registry() -> Registry {
    Registry::new()
        .entity::<Register>()
        .entity::<List>()
        .entity::<Sleeper>()
        .entity::<Blocker>()
        .entity::<Bomb>()
        .entity::<Relay>()
        .entity::<Page>()
}

/// One value.
#[state(version = 1)]
pub struct Register {
    value: i64,
    writes: u64,
}

#[entity(name = "register")]
impl Register {
    /// Overwrites the value; returns the one before.
    #[command]
    fn set(&mut self, value: i64) -> i64 {
        self.writes += 1;
        std::mem::replace(&mut self.value, value)
    }

    /// The value.
    #[query]
    fn get(&self) -> i64 {
        self.value
    }

    /// How often it was written.
    #[query]
    fn writes(&self) -> u64 {
        self.writes
    }
}

/// Numbers, in the order in which they came.
#[state(version = 1)]
pub struct List {
    items: Vec<u64>,
}

#[entity(name = "list")]
impl List {
    /// Appends an item; returns how many there are. A full list stays as it is.
    #[command]
    fn append(&mut self, item: u64) -> u64 {
        if self.items.len() < LIST_ITEMS_MAX {
            self.items.push(item);
        }
        self.items.len() as u64
    }

    /// All items.
    #[query]
    fn items(&self) -> Vec<u64> {
        self.items.clone()
    }
}

/// Waits, without holding the lane up.
#[state(version = 1)]
pub struct Sleeper {
    naps: u64,
}

#[entity(name = "sleeper")]
impl Sleeper {
    /// Waits this long in its turn.
    #[command]
    async fn sleep(&mut self, millis: u64) -> u64 {
        tokio::time::sleep(Duration::from_millis(millis)).await;
        self.naps += 1;
        self.naps
    }

    /// Does nothing, after what came before it.
    #[command]
    fn touch(&mut self) -> u64 {
        self.naps
    }
}

/// Blocks a thread of the pool.
#[state(version = 1)]
pub struct Blocker {
    blocks: u64,
}

#[entity(name = "blocker")]
impl Blocker {
    /// Blocks its thread this long.
    #[command(blocking)]
    fn block(&mut self, millis: u64) -> u64 {
        std::thread::sleep(Duration::from_millis(millis));
        self.blocks += 1;
        self.blocks
    }
}

/// Panics when told to.
#[state(version = 1)]
pub struct Bomb {
    ticks: u64,
}

#[entity(name = "bomb")]
impl Bomb {
    /// Counts, then panics if `fatal`.
    #[command]
    fn tick(&mut self, fatal: bool) -> u64 {
        self.ticks += 1;
        assert!(!fatal, "told to panic after {} ticks", self.ticks);
        self.ticks
    }
}

/// Calls others in its turn.
#[state(version = 1)]
pub struct Relay {
    relayed: u64,
}

#[entity(name = "relay")]
impl Relay {
    /// Appends to a list, and counts.
    #[command]
    async fn append(&mut self, cx: &mut Cx<'_>, list: String, item: u64) -> Result<u64, String> {
        let call = cx.get::<List>(&list).append(item).await;
        let length = call.map_err(|error| error.to_string())?.value;
        self.relayed += 1;
        Ok(length)
    }

    /// Calls another relay, which calls this one: a cycle, if the other is told this one's key.
    #[command]
    async fn circle(&mut self, cx: &mut Cx<'_>, via: String, depth: u32) -> Result<bool, String> {
        if depth == 0 {
            return Ok(false);
        }
        let me = cx.key().as_str().to_owned();
        match cx.get::<Self>(&via).circle(me, depth - 1).await {
            Ok(done) => Ok(done.value),
            Err(CallError::Reentrant) => Ok(true),
            Err(other) => Err(other.to_string()),
        }
    }
}

/// A state of 64 KiB, of which a command changes one field.
#[state(version = 1)]
pub struct Page {
    above: Vec<u64>,
    mark: u64,
    below: Vec<u64>,
}

#[entity(name = "page")]
impl Page {
    /// Fills it with numbers that do not repeat.
    #[command]
    fn fill(&mut self) -> u64 {
        let mut number = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = || {
            number ^= number << 13;
            number ^= number >> 7;
            number ^= number << 17;
            number | 1 << 63
        };
        self.above = (0..PAGE_HALF).map(|_| next()).collect();
        self.below = (0..PAGE_HALF).map(|_| next()).collect();
        self.above.len() as u64 + self.below.len() as u64
    }

    /// Changes the one field between them.
    #[command]
    fn mark(&mut self, mark: u64) -> u64 {
        std::mem::replace(&mut self.mark, mark)
    }

    /// The field.
    #[query]
    fn marked(&self) -> u64 {
        self.mark
    }
}
