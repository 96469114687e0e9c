//! What this node's lanes propose of their shards' copies, on its way to the control plane.
//!
//! A lane proposes again until the map answers, and every proposal is an entry of the control log:
//! so each shard has one under way, and the newest waits behind it for its turn. Which of them came
//! about is in the map, so none is waited for longer than its leader leads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_protocol::control::Command;
use mainstay_protocol::id::ShardId;

use crate::control::ControlHandle;

/// Proposals under way at once: the control log takes those that wait in one write. A node that
/// died is proposed out of every set that it was in.
const UNDER_WAY_MAX: usize = 256;
/// How long one keeps its place. A leader that stands still answers nothing, and nobody may wait for
/// it: what it takes all the same is stale by then, or as good as new.
const KEPT_FOR: Duration = Duration::from_millis(300);

/// The proposals of a node. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Proposals {
    control: ControlHandle,
    runtime: tokio::runtime::Handle,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The newest of each shard.
    waiting: BTreeMap<ShardId, Command>,
    under_way: BTreeSet<ShardId>,
}

impl Proposals {
    pub(super) fn new(control: ControlHandle, runtime: tokio::runtime::Handle) -> Self {
        Self { control, runtime, queue: Arc::default() }
    }

    /// Proposes this for a shard, after the one of it that is under way.
    pub(super) fn propose(&self, shard: ShardId, command: Command) {
        self.lock().waiting.insert(shard, command);
        self.go_on();
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self) {
        loop {
            let next = self.lock().take();
            let Some((shard, command)) = next else { return };
            let this = self.clone();
            drop(self.runtime.spawn(async move {
                this.carry_out(shard, command).await;
                this.lock().under_way.remove(&shard);
                this.go_on();
            }));
        }
    }

    /// Until it is answered, somebody else leads, or it has kept its place for long enough.
    async fn carry_out(&self, shard: ShardId, command: Command) {
        let mut view = self.control.view();
        let leader = view.borrow_and_update().leader;
        tokio::select! {
            proposed = self.control.propose(command) => if let Err(error) = proposed {
                tracing::debug!(%shard, %error, "a set of copies was not agreed");
            },
            _ = view.wait_for(|now| now.leader != leader) => {}
            () = tokio::time::sleep(KEPT_FOR) => {}
        }
    }
}

impl Queue {
    fn take(&mut self) -> Option<(ShardId, Command)> {
        if self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let free = |shard: &&ShardId| !self.under_way.contains(shard);
        let shard = *self.waiting.keys().find(free)?;
        let command = self.waiting.remove(&shard)?;
        self.under_way.insert(shard);
        Some((shard, command))
    }
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::id::NodeId;

    use super::*;

    fn command(name: &str) -> Command {
        Command::Drain { node: NodeId::new(name).unwrap() }
    }

    #[test]
    fn a_shard_has_one_under_way_and_only_so_many_have() {
        let mut queue = Queue::default();
        queue.waiting.insert(ShardId(1), command("a"));
        queue.waiting.insert(ShardId(1), command("b"));
        assert_eq!(queue.take(), Some((ShardId(1), command("b"))), "the newest");
        queue.waiting.insert(ShardId(1), command("c"));
        assert_eq!(queue.take(), None, "it waits for the one before");
        queue.under_way.remove(&ShardId(1));
        assert_eq!(queue.take(), Some((ShardId(1), command("c"))), "and is not lost");
        for shard in 2..1_000 {
            queue.waiting.insert(ShardId(shard), command("d"));
        }
        let more = std::iter::from_fn(|| queue.take()).count();
        assert_eq!(more, UNDER_WAY_MAX - 1);
        queue.under_way.remove(&ShardId(1));
        assert!(queue.take().is_some() && queue.take().is_none());
    }
}
