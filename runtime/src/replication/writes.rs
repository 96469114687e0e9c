//! What standbys write to the journal: one batch for all of them, as often as this room's thread
//! comes round.

use std::collections::BTreeMap;

use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{Epoch, ShardId};
use mainstay_protocol::replication::standby;

use crate::storage::{Batch, Journal, Writer};
use crate::transport::replication::Room;

/// The number of a batch. Batches are durable in the order of their numbers.
pub(super) type BatchNo = u64;

/// The batch that is built, and those that are not durable.
#[derive(Debug)]
pub(super) struct Writes {
    journal: Journal,
    number: BatchNo,
    segments: Vec<Segment>,
    promises: BTreeMap<ShardId, Epoch>,
    waiting: Waiting,
    under_way: BTreeMap<BatchNo, Waiting>,
}

/// Who waits for a batch.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    /// The writes in it.
    pub(super) tickets: Vec<(ShardId, Option<standby::Ticket>)>,
    /// The frames that they came in: nothing more is read for them meanwhile.
    rooms: Vec<Room>,
}

impl Writes {
    pub(super) const fn new(journal: Journal) -> Self {
        Self {
            journal,
            number: 1,
            segments: Vec::new(),
            promises: BTreeMap::new(),
            waiting: Waiting { tickets: Vec::new(), rooms: Vec::new() },
            under_way: BTreeMap::new(),
        }
    }

    /// Adds a shard's promise and segments; says which batch they are in.
    pub(super) fn add(
        &mut self,
        shard: ShardId,
        (promised, segments): (Epoch, Vec<Segment>),
        ticket: Option<standby::Ticket>,
    ) -> BatchNo {
        // A batch has one promise of a shard: its segments are written under it.
        if self.promises.get(&shard).is_some_and(|before| *before != promised) {
            self.flush();
        }
        self.promises.insert(shard, promised);
        self.segments.extend(segments);
        self.waiting.tickets.push((shard, ticket));
        self.number
    }

    /// Keeps room taken until what is written next is durable.
    pub(super) fn keep(&mut self, room: Room) {
        self.waiting.rooms.push(room);
    }

    /// Hands over what was added.
    pub(super) fn flush(&mut self) {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.tickets.is_empty() {
            return; // frames without anything to write are done with
        }
        let ticket = self.number;
        self.number += 1;
        self.under_way.insert(ticket, waiting);
        self.journal.append(Batch {
            writer: Writer::Standbys,
            ticket,
            segments: std::mem::take(&mut self.segments),
            promises: std::mem::take(&mut self.promises),
        });
    }

    /// A batch is durable: who waited for it.
    pub(super) fn handle_durable(&mut self, batch: BatchNo) -> Waiting {
        self.under_way.remove(&batch).unwrap_or_default()
    }
}
