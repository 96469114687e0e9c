//! From entries to replies: what goes to the journal, what came back, what goes into snapshots.

use std::collections::BTreeMap;

use mainstay_protocol::dedup::Expired;
use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{EntityId, Epoch, Seq, ShardId};
use mainstay_protocol::replication::Position;
use tracing::Span;

use super::dirty::{Journaled, Remembered, Row, Save};
use super::{Serving, ShardHost};
use crate::journey::Verb;
use crate::lane::env::Env;
use crate::storage::{CheckpointBatch, DedupRow, ShardMark, StateRow, StorageError};

/// What was appended and did not go to the journal yet.
#[derive(Debug, Default)]
pub struct Unsent {
    last: Seq,
    rows: BTreeMap<EntityId, Row>,
    dedup: Vec<Remembered>,
    spans: Vec<Span>,
}

impl Unsent {
    /// The dedup records of entries that did not go to the journal.
    pub(crate) fn dedup(&self) -> &[Remembered] {
        &self.dedup
    }

    /// Notes what one entry left: the newest state per entity is enough.
    pub(crate) fn note(
        &mut self,
        seq: Seq,
        row: Option<(EntityId, Row)>,
        dedup: Option<Remembered>,
        span: Span,
    ) {
        self.last = seq;
        self.rows.extend(row);
        self.dedup.extend(dedup);
        if !span.is_disabled() {
            self.spans.push(span);
        }
    }
}

/// One shard's part of a journal batch.
#[derive(Debug)]
pub struct Part {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that appended it.
    pub epoch: Epoch,
    /// What it holds.
    pub journaled: Journaled,
    /// The append spans of recorded requests: closed when the batch is durable.
    pub spans: Vec<Span>,
}

/// One shard's part of a save.
#[derive(Debug)]
pub struct Saving {
    /// How far its snapshots are complete when the save is durable.
    pub mark: ShardMark,
    /// What goes into them.
    pub save: Save,
    /// Dedup records that expired: they leave the disk.
    pub forget: Vec<Expired>,
}

/// A save of some shards of a lane is over.
#[derive(Debug)]
pub struct Saved {
    /// What was saved.
    pub parts: Vec<Saving>,
    /// Whether it is durable.
    pub result: Result<(), StorageError>,
}

impl Serving {
    /// Hands over what was appended since the last call.
    pub(crate) fn take_part(&mut self, segments: &mut Vec<Segment>) -> Option<Part> {
        let mut last = None;
        while let Some(segment) = self.primary.take_segment() {
            last = Some(Position { epoch: segment.epoch, seq: segment.last });
            segments.push(segment);
        }
        let last = last?;
        let Unsent { rows, dedup, spans, .. } = std::mem::take(&mut self.unsent);
        self.in_flight += 1;
        let journaled = Journaled { last, rows: rows.into_iter().collect(), dedup };
        Some(Part { shard: self.shard, epoch: self.epoch, journaled, spans })
    }

    /// This node's journal holds a batch.
    pub(crate) fn handle_committed(&mut self, env: &Env, part: Part) {
        debug_assert_eq!(part.epoch, self.epoch, "a primary closes before the next one serves");
        self.in_flight -= 1;
        let last = part.journaled.last.seq;
        self.dirty.journaled(part.journaled);
        self.primary.handle_durable(last);
        self.settle_committed(env);
        self.touched = true;
    }

    /// The watermark may have moved: what it covers is committed.
    pub(crate) fn settle_committed(&mut self, env: &Env) {
        let before = self.dirty.bytes();
        self.dirty.settle(self.primary.watermark());
        env.dirty_changed(before, self.dirty.bytes());
    }

    /// Lets everything go that the watermark covers: replies, and calls that wait at gates.
    pub(crate) fn release(&mut self, env: &mut Env) {
        let watermark = self.primary.watermark();
        while let Some(opener) = self.gates.release(watermark) {
            // A turn that was given up waits at no gate any more.
            opener.send(()).unwrap_or_default();
        }
        while let Some(mut release) = self.primary.poll_release() {
            release.item.leave_queue(&mut env.kinds);
            let _span = release.item.span(Verb::Release).entered();
            release.item.reply.send(release.result);
        }
    }
}

impl ShardHost {
    /// Begins to move what is committed into the snapshots, if anything is: the mark to set, and
    /// what goes with it.
    pub fn begin_save(&mut self) -> Option<Saving> {
        let (log_time, epoch) = match self.is_serving() {
            Some(serving) => (serving.primary.log_time(), serving.epoch),
            None => self.stood()?,
        };
        let forget = self.serving().map(|serving| serving.primary.take_expired());
        let forget = forget.unwrap_or_default();
        let dirty = self.dirty()?;
        let save = if forget.is_empty() && !dirty.wants_save() { None } else { dirty.begin_save() };
        let Some(save) = save else {
            self.put_back(forget);
            return None;
        };
        let mark = ShardMark { shard: self.shard, applied: save.upto, log_time, epoch };
        Some(Saving { mark, save, forget })
    }

    fn put_back(&mut self, forget: Vec<Expired>) {
        if let Some(serving) = self.serving() {
            serving.primary.put_back_expired(forget);
        }
    }

    /// A save is over; the caller logs a failure.
    pub fn handle_saved(&mut self, env: &Env, saving: Saving, durable: bool) {
        if !durable {
            self.put_back(saving.forget);
        }
        let Some(dirty) = self.dirty() else { return };
        let before = dirty.bytes();
        if durable {
            dirty.saved(&saving.save);
        } else {
            dirty.save_failed(saving.save.dedup);
        }
        env.dirty_changed(before, dirty.bytes());
        self.close_if_answered(env);
    }
}

impl Saving {
    /// Adds this shard's part to a batch.
    pub fn add_to(&self, batch: &mut CheckpointBatch) {
        let shard = self.mark.shard;
        batch.rows.extend(self.save.rows.iter().map(|(entity, row)| StateRow {
            shard,
            entity: entity.clone(),
            seq: row.seq,
            bytes: row.bytes.clone(),
        }));
        batch.dedup.extend(self.save.dedup.iter().map(|(entity, log_time, record)| DedupRow {
            shard,
            entity: entity.clone(),
            log_time: *log_time,
            record: record.clone(),
        }));
        let forget = self.forget.iter();
        batch.forget.extend(forget.map(|(entity, key)| (shard, entity.clone(), key.clone())));
        batch.shards.push(self.mark);
    }

    /// Bytes of its states and of the keys that leave, about.
    pub fn bytes(&self) -> u64 {
        let rows: u64 = self.save.rows.iter().map(|(_, row)| row.bytes.len() as u64).sum();
        rows + self.forget.iter().map(|(_, key)| key.as_str().len() as u64 + 64).sum::<u64>()
    }
}
