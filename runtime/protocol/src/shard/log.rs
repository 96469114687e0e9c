//! The log of one epoch: the next seq, log time, segments, and what is not committed yet.

use std::collections::VecDeque;

use crate::entry::{Entry, Op, Segment, SegmentWriter};
use crate::id::{Epoch, Seq, ShardId};
use crate::time::LogTime;

#[derive(Debug)]
pub(super) struct Log {
    writer: SegmentWriter,
    /// Segments that were full before they were taken.
    full: VecDeque<Segment>,
    time: LogTime,
    committed: Seq,
    /// The size of each entry after `committed`.
    sizes: VecDeque<u64>,
    bytes: u64,
}

impl Log {
    pub(super) fn new(shard: ShardId, epoch: Epoch, last: Seq, log_time: LogTime) -> Self {
        Self {
            writer: SegmentWriter::new(shard, epoch, last),
            full: VecDeque::new(),
            time: log_time,
            committed: last,
            sizes: VecDeque::new(),
            bytes: 0,
        }
    }

    /// Moves log time on; it follows the wall clock forwards only.
    pub(super) fn pass(&mut self, wall: LogTime) -> LogTime {
        self.time = self.time.max(wall);
        self.time
    }

    /// Sets log time whatever it was: for a planted fault only.
    pub(super) const fn force_log_time(&mut self, wall: LogTime) {
        self.time = wall;
    }

    /// Appends an entry at the present log time, and gives the operation back for what is kept.
    pub(super) fn append(&mut self, op: Op) -> (Seq, Op) {
        let entry = Entry { seq: self.writer.last().next(), log_time: self.time, op };
        let bytes = self.writer.push(&entry) as u64;
        self.sizes.push_back(bytes);
        self.bytes += bytes;
        if self.writer.is_full() {
            self.full.extend(self.writer.take());
        }
        (entry.seq, entry.op)
    }

    pub(super) fn take_segment(&mut self) -> Option<Segment> {
        self.full.pop_front().or_else(|| self.writer.take())
    }

    pub(super) fn commit(&mut self, watermark: Seq) {
        while self.committed < watermark {
            let Some(bytes) = self.sizes.pop_front() else {
                return;
            };
            self.committed = self.committed.next();
            self.bytes -= bytes;
        }
    }

    pub(super) const fn last(&self) -> Seq {
        self.writer.last()
    }

    /// The last entry that was handed out in a segment.
    pub(super) fn taken(&self) -> Seq {
        self.full.front().map_or(self.writer.taken(), |full| Seq(full.first.0 - 1))
    }

    pub(super) const fn log_time(&self) -> LogTime {
        self.time
    }

    pub(super) fn uncommitted(&self) -> u32 {
        u32::try_from(self.sizes.len()).expect("what is uncommitted is bounded")
    }

    pub(super) const fn uncommitted_bytes(&self) -> u64 {
        self.bytes
    }
}
