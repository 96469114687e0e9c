//! One entry of a shard's log, and a run of them as bytes: what is journalled and replicated.
//!
//! A segment is `u8 format | entries in compact MessagePack, one after the other`. Its checksum
//! travels beside it in the journal record (see `docs/storage.md`).
//!
//! Writing goes through a [`SegmentWriter`], which encodes each entry once, as it happens, and
//! closes a segment when it is large enough. Reading goes through [`Segment::entries`], which
//! believes nothing: format, order, sizes, depth and the last byte are checked.

use std::io::Cursor;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::id::{EntityId, Epoch, IdempotencyKey, MethodId, Seq, ShardId};
use crate::limits;
use crate::time::LogTime;

/// The format of entries that this build writes. It reads all formats up to this one: the first
/// one's dedup records lack `version`.
pub const FORMAT: u8 = 2;

/// One entry. `(shard, epoch, seq)` names it for ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its place in the shard.
    pub seq: Seq,
    /// When, in the shard's log time.
    pub log_time: LogTime,
    /// What happened.
    pub op: Op,
}

/// What an entry records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Op {
    /// A new primary took over; fences the epoch before.
    Noop,
    /// One turn of one entity.
    Turn {
        /// The entity.
        entity: EntityId,
        /// What became of its state.
        change: Change,
        /// The record that makes the command take effect once, if it carried a key.
        dedup: Option<DedupRecord>,
    },
}

/// What a turn did to the encoded state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// Nothing: an `Err`, or a command that left the state as it was.
    None,
    /// The whole new state.
    Put(Bytes),
    /// A patch against the bytes that this entity had before; see `replication::delta`.
    Delta {
        /// `xxh3_64` of the bytes that the patch is made for.
        base_hash: u64,
        /// `xxh3_64` of the bytes that it gives.
        next_hash: u64,
        /// The patch.
        patch: Bytes,
    },
}

/// What is kept of a command that carried an idempotency key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DedupRecord {
    /// The caller's key.
    pub key: IdempotencyKey,
    /// The method; the same key with another one is a conflict.
    pub method: MethodId,
    /// `xxh3_64` of the payload; the same key with another one is a conflict.
    pub payload_hash: u64,
    /// The first reply: the value, or the entity's own refusal.
    pub reply: StoredReply,
    /// The entity's version in that reply; 0 in records of builds that did not keep it.
    #[serde(default)]
    pub version: Seq,
}

impl DedupRecord {
    /// Bytes of its key and its reply.
    pub fn bytes(&self) -> usize {
        let reply = match &self.reply {
            StoredReply::Value(bytes) | StoredReply::App(bytes) => bytes.len(),
            StoredReply::Quarantined => 0,
        };
        self.key.as_str().len() + reply
    }
}

/// A reply as it is kept for repetition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum StoredReply {
    /// The method's value.
    Value(Bytes),
    /// The entity's own error.
    App(Bytes),
    /// The handler panicked on this input three times; it is not tried again.
    Quarantined,
}

/// A run of entries of one shard and epoch, as bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that wrote them.
    pub epoch: Epoch,
    /// The place of the first entry.
    pub first: Seq,
    /// The place of the last entry.
    pub last: Seq,
    /// `format | entries`.
    pub bytes: Bytes,
}

/// Why bytes are no segment. Nothing of it may be used.
#[derive(Debug, thiserror::Error)]
pub enum SegmentError {
    /// It was written by a newer build. Upgrade this node.
    #[error("entries of format {found}, this build reads up to {FORMAT}")]
    Newer {
        /// The format found.
        found: u8,
    },
    /// It is empty, or longer than a segment may be.
    #[error("a segment of {bytes} bytes, 1 to {} are possible", limits::SEGMENT_BYTES_MAX)]
    Size {
        /// Its length.
        bytes: usize,
    },
    /// An entry does not decode.
    #[error("entry {seq:?} does not decode")]
    Malformed {
        /// Where the entry should be.
        seq: Seq,
        /// What the decoder says.
        source: rmp_serde::decode::Error,
    },
    /// An entry has another place than the segment says.
    #[error("entry {found:?} where {expected:?} should be")]
    Order {
        /// Its place.
        found: Seq,
        /// The place that it should have.
        expected: Seq,
    },
    /// An entry holds more than it may.
    #[error("the {what} of entry {seq:?} has {bytes} bytes")]
    TooLong {
        /// The entry.
        seq: Seq,
        /// Which part.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// Bytes follow the last entry.
    #[error("{bytes} bytes follow the last entry")]
    Trailing {
        /// How many.
        bytes: usize,
    },
}

impl Segment {
    /// Decodes the entries.
    ///
    /// # Errors
    /// [`SegmentError`], by what is wrong.
    pub fn entries(&self) -> Result<Vec<Entry>, SegmentError> {
        let Some((&format, body)) = self.bytes.split_first() else {
            return Err(SegmentError::Size { bytes: 0 });
        };
        if format == 0 || format > FORMAT {
            return Err(SegmentError::Newer { found: format });
        }
        if self.bytes.len() > limits::SEGMENT_BYTES_MAX {
            return Err(SegmentError::Size { bytes: self.bytes.len() });
        }
        let mut decoder = rmp_serde::Deserializer::new(Cursor::new(body));
        decoder.set_max_depth(limits::DECODE_DEPTH_MAX);
        let mut entries = Vec::new();
        let mut expected = self.first;
        while expected <= self.last {
            let entry = Entry::deserialize(&mut decoder)
                .map_err(|source| SegmentError::Malformed { seq: expected, source })?;
            if entry.seq != expected {
                return Err(SegmentError::Order { found: entry.seq, expected });
            }
            entry.check_sizes()?;
            entries.push(entry);
            expected = expected.next();
        }
        let read = usize::try_from(decoder.position()).unwrap_or(usize::MAX);
        match body.len().saturating_sub(read) {
            0 => Ok(entries),
            bytes => Err(SegmentError::Trailing { bytes }),
        }
    }
}

impl Segment {
    /// The part that begins at `seq`; `None` when it ends before.
    ///
    /// # Errors
    /// [`SegmentError`] when it has to be cut and does not decode.
    pub fn from(&self, seq: Seq) -> Result<Option<Self>, SegmentError> {
        if seq <= self.first {
            return Ok(Some(self.clone()));
        }
        if seq > self.last {
            return Ok(None);
        }
        let mut writer = SegmentWriter::new(self.shard, self.epoch, Seq(seq.0 - 1));
        for entry in self.entries()?.iter().filter(|entry| entry.seq >= seq) {
            writer.push(entry);
        }
        Ok(writer.take())
    }

    /// The part that ends with `seq`; `None` when it begins after.
    ///
    /// # Errors
    /// [`SegmentError`] when it has to be cut and does not decode.
    pub fn until(&self, seq: Seq) -> Result<Option<Self>, SegmentError> {
        if seq >= self.last {
            return Ok(Some(self.clone()));
        }
        if seq < self.first {
            return Ok(None);
        }
        let mut writer = SegmentWriter::new(self.shard, self.epoch, Seq(self.first.0 - 1));
        for entry in self.entries()?.iter().filter(|entry| entry.seq <= seq) {
            writer.push(entry);
        }
        Ok(writer.take())
    }
}

impl Entry {
    fn check_sizes(&self) -> Result<(), SegmentError> {
        let Op::Turn { change, dedup, .. } = &self.op else {
            return Ok(());
        };
        let state = match change {
            Change::None => 0,
            Change::Put(bytes) | Change::Delta { patch: bytes, .. } => bytes.len(),
        };
        let reply = match dedup.as_ref().map(|record| &record.reply) {
            Some(StoredReply::Value(bytes) | StoredReply::App(bytes)) => bytes.len(),
            Some(StoredReply::Quarantined) | None => 0,
        };
        let too_long = |what, bytes| Err(SegmentError::TooLong { seq: self.seq, what, bytes });
        if state > limits::STATE_BYTES_MAX {
            return too_long("state", state);
        }
        if reply > limits::PAYLOAD_BYTES_MAX {
            return too_long("reply", reply);
        }
        Ok(())
    }
}

/// Collects the entries of one shard and epoch into segments.
#[derive(Debug)]
pub struct SegmentWriter {
    shard: ShardId,
    epoch: Epoch,
    first: Seq,
    last: Seq,
    bytes: Vec<u8>,
}

impl SegmentWriter {
    /// A writer of the entries after `last`.
    pub const fn new(shard: ShardId, epoch: Epoch, last: Seq) -> Self {
        Self { shard, epoch, first: last.next(), last, bytes: Vec::new() }
    }

    /// Appends an entry, and says how many bytes it takes.
    ///
    /// # Panics
    /// When it is not the next one, or holds more than the limits allow: whoever made it was to
    /// check that.
    pub fn push(&mut self, entry: &Entry) -> usize {
        assert!(entry.seq == self.last.next(), "entries follow each other");
        if let Err(error) = entry.check_sizes() {
            panic!("{error}, and was accepted");
        }
        if self.bytes.is_empty() {
            self.bytes.push(FORMAT);
        }
        let before = self.bytes.len();
        rmp_serde::encode::write(&mut self.bytes, entry)
            .expect("entries have only types that MessagePack knows, and a Vec takes any bytes");
        self.last = entry.seq;
        self.bytes.len() - before
    }

    /// Large enough: take the segment before the next entry.
    pub const fn is_full(&self) -> bool {
        self.bytes.len() >= limits::SEGMENT_BYTES_TARGET
    }

    /// What was appended since the last call.
    pub fn take(&mut self) -> Option<Segment> {
        if self.bytes.is_empty() {
            return None;
        }
        let (first, last) = (self.first, self.last);
        self.first = last.next();
        let bytes = std::mem::take(&mut self.bytes).into();
        Some(Segment { shard: self.shard, epoch: self.epoch, first, last, bytes })
    }

    /// The place of the last entry.
    pub const fn last(&self) -> Seq {
        self.last
    }

    /// The place of the last entry that was taken.
    pub const fn taken(&self) -> Seq {
        Seq(self.first.0 - 1)
    }
}

#[cfg(test)]
mod tests;
