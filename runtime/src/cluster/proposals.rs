//! What this node's lanes propose of their shards' copies, on its way to the control plane.
//!
//! A lane proposes again until the map answers, and every proposal is an entry of the control log:
//! so each shard has one under way, and the newest waits behind it for its turn.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_protocol::control::Command;
use mainstay_protocol::id::ShardId;

use crate::control::ControlHandle;

/// Proposals under way at once: the control log takes those that wait in one write.
const UNDER_WAY_MAX: usize = 16;

/// The proposals of a node. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Proposals {
    control: ControlHandle,
    runtime: tokio::runtime::Handle,
    queue: Arc<Mutex<Queue>>,
}

#[derive(Debug, Default)]
struct Queue {
    /// The newest of each shard that has none under way: one per shard.
    waiting: BTreeMap<ShardId, Command>,
    under_way: BTreeSet<ShardId>,
}

impl Proposals {
    pub(super) fn new(control: ControlHandle, runtime: tokio::runtime::Handle) -> Self {
        Self { control, runtime, queue: Arc::default() }
    }

    /// Proposes this for a shard, unless one of it is under way: then its lane asks again. Whether
    /// it came about is in the map.
    pub(super) fn propose(&self, shard: ShardId, command: Command) {
        self.lock().offer(shard, command);
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
                if let Err(error) = this.control.propose(command).await {
                    tracing::debug!(%shard, %error, "a set of copies was not agreed");
                }
                this.lock().under_way.remove(&shard);
                this.go_on();
            }));
        }
    }
}

impl Queue {
    fn offer(&mut self, shard: ShardId, command: Command) {
        if !self.under_way.contains(&shard) {
            self.waiting.insert(shard, command);
        }
    }

    fn take(&mut self) -> Option<(ShardId, Command)> {
        if self.under_way.len() >= UNDER_WAY_MAX {
            return None;
        }
        let (shard, command) = self.waiting.pop_first()?;
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
        queue.offer(ShardId(1), command("a"));
        queue.offer(ShardId(1), command("b"));
        assert_eq!(queue.take(), Some((ShardId(1), command("b"))), "the newest");
        queue.offer(ShardId(1), command("c"));
        assert_eq!(queue.take(), None, "it is asked for again by who wants it");
        for shard in 2..100 {
            queue.offer(ShardId(shard), command("d"));
        }
        let more = std::iter::from_fn(|| queue.take()).count();
        assert_eq!(more, UNDER_WAY_MAX - 1);
        queue.under_way.remove(&ShardId(1));
        assert!(queue.take().is_some() && queue.take().is_none());
    }
}
