//! Commands that take effect once: stored replies by idempotency key, and keys in flight.
//!
//! ```text
//!   log time  -- oldest [ record | record | record | record ] newest -->
//!                ^ leaves when older than `retention`         ^ enters with its log entry
//! ```
//! A record is in a log entry and is kept for `retention` of *log* time, so that every copy of the
//! shard forgets it at the same entry. Records are never evicted: when their bytes reach the
//! budget, new keyed calls are refused until old ones expire. A key belongs to one entity; with
//! another method or payload it is a conflict.
//!
//! The budget is checked when a call is admitted, and its reply is not known yet: it can be passed
//! by the replies of the calls in flight, not by more.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::entry::DedupRecord;
use crate::id::{EntityId, IdempotencyKey, MethodId, Seq};
use crate::index::{self, Index};
use crate::list::{List, Pool};
use crate::time::LogTime;

/// The limits of a table.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// How long a record is kept, in log time. Shorter than a caller's last retry, and that retry
    /// runs again.
    pub retention: Duration,
    /// Bytes of records; when they are used up, new keyed calls are refused.
    pub bytes_max: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { retention: Duration::from_secs(24 * 60 * 60), bytes_max: 16 << 20 }
    }
}

/// Bytes that a record costs beside its key and its reply: itself, its place in the index, and the
/// headers of what it points to.
const RECORD_OVERHEAD: u64 = (size_of::<Kept>() + 48) as u64;

/// A record of one entity, and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The entity.
    pub entity: EntityId,
    /// The log time of its entry.
    pub log_time: LogTime,
    /// The record.
    pub record: DedupRecord,
}

impl Kept {
    fn bytes(&self) -> u64 {
        RECORD_OVERHEAD + self.record.bytes() as u64
    }

    fn into_name(self) -> Expired {
        (self.entity, self.record.key)
    }
}

/// What a command is known by.
#[derive(Debug, Clone, Copy)]
pub struct Keyed<'a> {
    /// The caller's key.
    pub key: &'a IdempotencyKey,
    /// The method.
    pub method: MethodId,
    /// `xxh3_64` of the payload.
    pub payload_hash: u64,
    /// The version at which alone it may run. Not a part of what a record stands for: whoever is
    /// refused for its version may look again and repeat its key with another one. Only while a
    /// call is under way it names that call.
    pub if_version: Option<Seq>,
}

impl Keyed<'_> {
    const fn call(&self) -> (MethodId, u64, Option<Seq>) {
        (self.method, self.payload_hash, self.if_version)
    }
}

/// What the table says of a keyed command.
#[derive(Debug, PartialEq, Eq)]
pub enum Found<'a> {
    /// Never heard of: run it.
    Absent,
    /// It ran: its reply is here.
    Same(&'a DedupRecord),
    /// The key was used with another method or payload.
    Conflict,
}

/// The records of one shard, in the order of their log entries.
#[derive(Debug)]
pub struct Table {
    config: Config,
    records: VecDeque<Kept>,
    /// The number of the first record; numbers wrap, and fewer than 2^32 are kept.
    first: u32,
    index: Index,
    seed: u64,
    bytes: u64,
    /// What left for its age, until the host takes it to remove it from disk.
    expired: Vec<Expired>,
}

/// A record that is older than the retention: its entity and its key.
pub type Expired = (EntityId, IdempotencyKey);

impl Table {
    /// The table of these records, in any order and some of them perhaps twice, at this log time.
    /// `seed` spreads hashes and decides nothing.
    pub fn new(config: Config, seed: u64, mut records: Vec<Kept>, log_time: LogTime) -> Self {
        let old = |kept: &mut Kept| log_time.saturating_since(kept.log_time) > config.retention;
        let expired = records.extract_if(.., old).map(Kept::into_name).collect();
        records.sort_by_key(|kept| kept.log_time);
        let mut this = Self {
            config,
            records: VecDeque::with_capacity(records.len()),
            first: 0,
            index: Index::default(),
            seed,
            bytes: 0,
            expired,
        };
        for kept in records {
            if this.position(&kept.entity, &kept.record.key).is_none() {
                this.insert(kept);
            }
        }
        this
    }

    /// What is known of a command.
    pub fn find(&self, entity: &EntityId, keyed: Keyed<'_>) -> Found<'_> {
        let Some(at) = self.position(entity, keyed.key) else {
            return Found::Absent;
        };
        let record = &self.records[at].record;
        if record.method == keyed.method && record.payload_hash == keyed.payload_hash {
            Found::Same(record)
        } else {
            Found::Conflict
        }
    }

    /// Adds the record of the entry that is being appended.
    ///
    /// # Panics
    /// When its key is in the table already, or it is older than the last one: each key has one
    /// record, and log time does not run backwards.
    pub fn insert(&mut self, kept: Kept) {
        assert!(self.position(&kept.entity, &kept.record.key).is_none(), "a key takes effect once");
        let last = self.records.back().map_or(LogTime(0), |last| last.log_time);
        assert!(last <= kept.log_time, "log time does not run backwards");
        self.push(kept);
    }

    fn push(&mut self, kept: Kept) {
        let count = u32::try_from(self.records.len()).expect("fewer than 2^32 records are kept");
        let number = self.first.wrapping_add(count);
        self.index.insert(self.hash(&kept.entity, &kept.record.key), number);
        self.bytes += kept.bytes();
        self.records.push_back(kept);
    }

    /// Adds a record that another copy wrote; `false` when its key is here already, since a copy of
    /// the states brought it along. Such a copy may have brought newer ones too, so that log time
    /// may run backwards here; then a record stays as long as the newest before it.
    pub fn restore(&mut self, kept: Kept) -> bool {
        let new = self.position(&kept.entity, &kept.record.key).is_none();
        if new {
            self.push(kept);
        }
        new
    }

    /// Forgets what is older than the retention at this log time.
    pub fn expire(&mut self, log_time: LogTime) {
        while let Some(kept) = self.records.front() {
            if log_time.saturating_since(kept.log_time) <= self.config.retention {
                return;
            }
            let expired = self.forget_oldest().map(Kept::into_name);
            self.expired.extend(expired);
        }
    }

    /// Forgets the oldest record, whatever its age.
    pub(crate) fn forget_oldest(&mut self) -> Option<Kept> {
        let kept = self.records.pop_front()?;
        self.index.remove(self.hash(&kept.entity, &kept.record.key), self.first);
        self.bytes -= kept.bytes();
        self.first = self.first.wrapping_add(1);
        Some(kept)
    }

    /// What expired since the last call, to be removed from disk; not a key that is in use again,
    /// whose new record takes the old one's place.
    pub fn take_expired(&mut self) -> Vec<Expired> {
        let mut expired = std::mem::take(&mut self.expired);
        expired.retain(|(entity, key)| self.position(entity, key).is_none());
        expired
    }

    /// Their removal failed: the next call of [`take_expired`](Self::take_expired) has them again.
    pub fn put_back_expired(&mut self, expired: Vec<Expired>) {
        self.expired.extend(expired);
    }

    /// Whether the budget has room for one more keyed call beside `in_flight` others.
    pub const fn has_room(&self, in_flight: u32) -> bool {
        self.bytes + in_flight as u64 * RECORD_OVERHEAD < self.config.bytes_max
    }

    /// Changes the budget: nodes share theirs out between shards.
    pub const fn set_bytes_max(&mut self, bytes_max: u64) {
        self.config.bytes_max = bytes_max;
    }

    /// Bytes in use.
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Records in the table.
    pub fn len(&self) -> usize {
        self.records.len()
    }

    /// No records.
    pub fn is_empty(&self) -> bool {
        self.records.is_empty()
    }

    /// The record of the last keyed entry.
    pub fn newest(&self) -> Option<&Kept> {
        self.records.back()
    }

    /// The records, in the order of their entries.
    pub fn iter(&self) -> impl Iterator<Item = &Kept> {
        self.records.iter()
    }

    fn position(&self, entity: &EntityId, key: &IdempotencyKey) -> Option<usize> {
        let at = |number: u32| number.wrapping_sub(self.first) as usize;
        let same = |number| {
            let kept = &self.records[at(number)];
            kept.record.key == *key && kept.entity == *entity
        };
        self.index.find(self.hash(entity, key), same).map(at)
    }

    fn hash(&self, entity: &EntityId, key: &IdempotencyKey) -> u64 {
        let entity = index::hash(self.seed, entity.kind.0, entity.key.as_str());
        index::hash(entity, 0, key.as_str())
    }
}

/// Whether a key is in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flying {
    /// It is not.
    Absent,
    /// It is, with this method, payload and condition: join it.
    Same,
    /// It is, with another one.
    Conflict,
}

#[derive(Debug)]
struct Flight {
    call: (MethodId, u64, Option<Seq>),
    joined: List,
}

/// The keyed calls that are queued or run, and who joined them.
#[derive(Debug)]
pub struct Flights<W> {
    /// By the entity's row and the key.
    flights: BTreeMap<(u32, IdempotencyKey), Flight>,
    waiters: Pool<W>,
}

impl<W> Default for Flights<W> {
    fn default() -> Self {
        Self { flights: BTreeMap::new(), waiters: Pool::new() }
    }
}

impl<W> Flights<W> {
    /// A keyed call was admitted.
    ///
    /// # Panics
    /// When its key is in flight: it should have joined.
    pub fn begin(&mut self, owner: u32, keyed: Keyed<'_>) {
        let flight = Flight { call: keyed.call(), joined: List::new() };
        let before = self.flights.insert((owner, keyed.key.clone()), flight);
        assert!(before.is_none(), "one call per key is in flight");
    }

    /// Whether a call with this key is queued or runs.
    pub fn find(&self, owner: u32, keyed: Keyed<'_>) -> Flying {
        match self.flights.get(&(owner, keyed.key.clone())) {
            None => Flying::Absent,
            Some(flight) if flight.call == keyed.call() => Flying::Same,
            Some(_) => Flying::Conflict,
        }
    }

    /// A second call joins the first one with its key.
    ///
    /// # Panics
    /// When the key is not in flight.
    pub fn join(&mut self, owner: u32, key: &IdempotencyKey, waiter: W) {
        let flight = self.flights.get_mut(&(owner, key.clone())).expect("the key is in flight");
        self.waiters.append(&mut flight.joined, waiter);
    }

    /// The first one that joined, to take the place of a call that does not run.
    pub fn take_joined(&mut self, owner: u32, key: &IdempotencyKey) -> Option<W> {
        let flight = self.flights.get_mut(&(owner, key.clone()))?;
        self.waiters.take_front(&mut flight.joined)
    }

    /// The call has ended; these joined it, first to last.
    pub fn end(&mut self, owner: u32, key: &IdempotencyKey) -> Vec<W> {
        let Some(mut flight) = self.flights.remove(&(owner, key.clone())) else {
            return Vec::new();
        };
        std::iter::from_fn(|| self.waiters.take_front(&mut flight.joined)).collect()
    }

    /// Keys in flight.
    pub fn len(&self) -> u32 {
        u32::try_from(self.flights.len()).unwrap_or(u32::MAX)
    }

    /// No key is in flight.
    pub fn is_empty(&self) -> bool {
        self.flights.is_empty()
    }

    /// Callers that joined.
    pub fn joined(&self) -> u32 {
        self.waiters.len()
    }

    /// The first joined caller of the first key in flight, until there is none.
    pub fn take_any(&mut self) -> Option<((u32, IdempotencyKey), W)> {
        let (place, flight) =
            self.flights.iter_mut().find(|(_, flight)| !flight.joined.is_empty())?;
        let waiter = self.waiters.take_front(&mut flight.joined)?;
        Some((place.clone(), waiter))
    }
}

#[cfg(test)]
mod tests;
