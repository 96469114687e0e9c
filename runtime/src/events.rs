//! The event log of a node: every join, move, promotion and drain, typed, in order, bounded.
//!
//! Control events are applied from the consensus log, so every member lists the same ones under
//! the same versions. The ring keeps the newest [`KEPT`]; a reader that falls further behind is
//! told so by a gap in the ids.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use mainstay_protocol::control::Event;
use mainstay_protocol::id::{BootId, NodeId};
use mainstay_protocol::time::LogTime;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast;

use crate::clock;

/// Events that a node keeps in memory.
pub const KEPT: usize = 4096;

/// One event, as this node saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventRecord {
    /// Counts on this node, without gaps from its start to its end; a later start begins higher.
    pub id: u64,
    /// When this node applied it: milliseconds since the Unix epoch.
    pub at_ms: LogTime,
    /// The node that tells it.
    pub node: NodeId,
    /// The version of the map that it made.
    pub map_version: u64,
    /// What happened.
    pub event: Event,
}

/// The log. Cheap to clone.
#[derive(Debug, Clone)]
pub struct EventLog {
    node: NodeId,
    ring: Arc<Mutex<Ring>>,
    live: broadcast::Sender<EventRecord>,
}

#[derive(Debug, Default)]
struct Ring {
    last_id: u64,
    records: VecDeque<EventRecord>,
}

impl EventLog {
    /// An empty log of this node, whose ids count from 1.
    pub fn new(node: NodeId) -> Self {
        let (live, _) = broadcast::channel(KEPT);
        Self { node, ring: Arc::default(), live }
    }

    /// The log of one start of a node. Its ids begin above those of the start before, which was at
    /// most as many events as milliseconds ago: who resumes by an id of that one misses nothing.
    pub fn of_start(node: NodeId, boot: BootId) -> Self {
        let ring = Ring { last_id: boot.0, ..Ring::default() };
        Self { ring: Arc::new(Mutex::new(ring)), ..Self::new(node) }
    }

    /// Appends what a change of the map brought, and tells live readers.
    pub fn record(&self, map_version: u64, events: impl IntoIterator<Item = Event>) {
        let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events {
            ring.last_id += 1;
            let record = EventRecord {
                id: ring.last_id,
                at_ms: clock::wall(),
                node: self.node.clone(),
                map_version,
                event,
            };
            match &record.event {
                Event::ShardPromoted { .. }
                | Event::HandoffBegan { .. }
                | Event::ShardMoved { .. }
                | Event::InSyncChanged { .. } => {
                    tracing::debug!(event = ?record.event, map_version, "cluster event");
                }
                Event::ClusterCreated { .. }
                | Event::MemberJoined { .. }
                | Event::MemberRestarted { .. }
                | Event::MemberDown { .. }
                | Event::MemberDraining { .. }
                | Event::MemberUndrained { .. }
                | Event::MemberLeft { .. }
                | Event::TargetsChanged { .. }
                | Event::CopyDiffered { .. }
                | Event::HandoffAborted { .. } => {
                    tracing::info!(event = ?record.event, map_version, "cluster event");
                }
            }
            if ring.records.len() == KEPT {
                ring.records.pop_front();
            }
            ring.records.push_back(record.clone());
            // No live reader is not an error: the ring keeps the record.
            drop(self.live.send(record));
        }
    }

    /// The kept records with an id greater than `after`, oldest first, and a feed of what follows
    /// them without gap or overlap. An id that was never given here is of another log, of which a
    /// reader has seen nothing that is in this one.
    pub fn since(&self, after: u64) -> (Vec<EventRecord>, broadcast::Receiver<EventRecord>) {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        let after = if after > ring.last_id { 0 } else { after };
        let kept = ring.records.iter().filter(|record| record.id > after).cloned().collect();
        (kept, self.live.subscribe())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(node: &str) -> Event {
        Event::MemberJoined { node: NodeId::new(node).unwrap() }
    }

    #[test]
    fn a_reader_gets_the_kept_and_then_the_live_without_overlap() {
        let log = EventLog::new(NodeId::new("n1").unwrap());
        log.record(1, [event("a"), event("b")]);
        let (kept, mut live) = log.since(1);
        log.record(2, [event("c")]);
        assert_eq!(kept.iter().map(|r| r.id).collect::<Vec<_>>(), [2]);
        assert_eq!(live.try_recv().unwrap().id, 3);
        assert!(live.try_recv().is_err());
    }

    /// A reader resumed with the id of an event of the start before, and missed all that followed.
    #[test]
    fn a_reader_that_resumes_after_a_restart_misses_nothing() {
        let node = NodeId::new("n1").unwrap();
        let before = EventLog::of_start(node.clone(), BootId(1_000));
        before.record(1, [event("a"), event("b")]);
        let seen = before.since(0).0.last().unwrap().id;
        for boot in [BootId(2_000), BootId(500)] {
            let log = EventLog::of_start(node.clone(), boot);
            log.record(2, [event("c"), event("d"), event("e")]);
            assert_eq!(log.since(seen).0.len(), 3, "a clock that went back does no harm");
            let last = log.since(seen).0.last().unwrap().id;
            assert_eq!(log.since(last - 1).0.len(), 1);
        }
    }

    #[test]
    fn the_ring_is_bounded() {
        let log = EventLog::new(NodeId::new("n1").unwrap());
        for version in 0..5_000 {
            log.record(version, [event("a")]);
        }
        let (kept, _) = log.since(0);
        assert_eq!(kept.len(), KEPT);
        assert_eq!(kept.last().unwrap().id, 5_000);
    }
}
