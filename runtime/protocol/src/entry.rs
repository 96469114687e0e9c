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

/// The format of entries that this build writes. It reads all formats up to this one.
pub const FORMAT: u8 = 1;

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
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::{Key, KindId};

    fn entity() -> EntityId {
        EntityId { kind: KindId(7), key: Key::new("acme/42").unwrap() }
    }

    fn turn(seq: u64, change: Change, dedup: Option<DedupRecord>) -> Entry {
        Entry {
            seq: Seq(seq),
            log_time: LogTime(9),
            op: Op::Turn { entity: entity(), change, dedup },
        }
    }

    fn segment(entries: &[Entry]) -> Segment {
        let mut writer = SegmentWriter::new(ShardId(3), Epoch(2), Seq(entries[0].seq.0 - 1));
        for entry in entries {
            writer.push(entry);
        }
        let segment = writer.take().unwrap();
        assert_eq!(writer.take(), None);
        assert_eq!(writer.taken(), entries.last().unwrap().seq);
        segment
    }

    fn record(reply: StoredReply) -> DedupRecord {
        let key = IdempotencyKey::new("pay-1").unwrap();
        DedupRecord { key, method: MethodId(5), payload_hash: 77, reply }
    }

    #[test]
    fn the_encoding_is_pinned() {
        let entries = [
            Entry { seq: Seq(1), log_time: LogTime(9), op: Op::Noop },
            turn(2, Change::Put(Bytes::from_static(b"s")), Some(record(StoredReply::Quarantined))),
        ];
        let bytes = segment(&entries).bytes;
        let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex.concat(), GOLDEN);
    }

    const GOLDEN: &str = "01930109a44e6f6f7093020981a45475726e939207a761636d652f343281a3507574\
        c4017394a57061792d31054dab51756172616e74696e6564";

    #[test]
    fn trailing_bytes_are_refused() {
        let mut segment = segment(&[turn(4, Change::None, None)]);
        segment.bytes = [&segment.bytes[..], &[0xc0]].concat().into();
        assert!(matches!(segment.entries(), Err(SegmentError::Trailing { bytes: 1 })));
    }

    #[test]
    fn a_newer_format_is_named() {
        let mut segment = segment(&[turn(4, Change::None, None)]);
        segment.bytes = [&[FORMAT + 1], &segment.bytes[1..]].concat().into();
        assert!(matches!(segment.entries(), Err(SegmentError::Newer { found: 2 })));
    }

    #[test]
    fn a_segment_that_lies_about_its_places_is_refused() {
        let good = segment(&[turn(4, Change::None, None), turn(5, Change::None, None)]);
        let shifted = Segment { first: Seq(3), last: Seq(4), ..good.clone() };
        assert!(matches!(shifted.entries(), Err(SegmentError::Order { .. })));
        let longer = Segment { last: Seq(u64::MAX), ..good.clone() };
        assert!(matches!(longer.entries(), Err(SegmentError::Malformed { seq: Seq(6), .. })));
        let shorter = Segment { last: Seq(4), ..good };
        assert!(matches!(shorter.entries(), Err(SegmentError::Trailing { .. })));
    }

    #[test]
    fn depth_and_length_bombs_end_in_errors() {
        let bomb = |bytes: Vec<u8>| Segment {
            shard: ShardId(0),
            epoch: Epoch(1),
            first: Seq(1),
            last: Seq(1),
            bytes: bytes.into(),
        };
        let mut deep = vec![FORMAT];
        deep.resize(1 << 20, 0x91);
        assert!(matches!(bomb(deep).entries(), Err(SegmentError::Malformed { .. })));
        let long = vec![FORMAT, 0x93, 1, 1, 0xc6, 0xff, 0xff, 0xff, 0xff];
        assert!(matches!(bomb(long).entries(), Err(SegmentError::Malformed { .. })));
        let huge = vec![FORMAT; limits::SEGMENT_BYTES_MAX + 1];
        assert!(matches!(bomb(huge).entries(), Err(SegmentError::Size { .. })));
    }

    #[test]
    fn a_key_that_could_not_be_made_is_not_read() {
        let long = "x".repeat(300);
        let bytes = rmp_serde::to_vec(&long).unwrap();
        assert!(rmp_serde::from_slice::<IdempotencyKey>(&bytes).is_err());
        assert!(rmp_serde::from_slice::<Key>(&[0xa0]).is_err());
    }

    #[test]
    fn a_full_writer_says_so() {
        let mut writer = SegmentWriter::new(ShardId(0), Epoch(1), Seq(0));
        let state = Bytes::from(vec![7; limits::SEGMENT_BYTES_TARGET]);
        assert!(!writer.is_full());
        let bytes = writer.push(&turn(1, Change::Put(state), None));
        assert!(writer.is_full() && bytes > limits::SEGMENT_BYTES_TARGET);
    }

    fn changes() -> impl Strategy<Value = Change> {
        let bytes = || prop::collection::vec(any::<u8>(), 0..300).prop_map(Bytes::from);
        prop_oneof![
            Just(Change::None),
            bytes().prop_map(Change::Put),
            (any::<u64>(), any::<u64>(), bytes()).prop_map(|(base_hash, next_hash, patch)| {
                Change::Delta { base_hash, next_hash, patch }
            }),
        ]
    }

    proptest! {
        #[test]
        fn entries_read_back(
            first in 1..u64::MAX / 2,
            changes in prop::collection::vec((changes(), any::<Option<bool>>()), 1..20),
        ) {
            let entries: Vec<Entry> = (first..).zip(changes).map(|(seq, (change, dedup))| {
                let reply = |value| {
                    let bytes = Bytes::from_static(b"r");
                    if value { StoredReply::Value(bytes) } else { StoredReply::App(bytes) }
                };
                turn(seq, change, dedup.map(|value| record(reply(value))))
            }).collect();
            let whole = segment(&entries);
            prop_assert_eq!(&whole.entries().unwrap(), &entries);
            for cut in first.saturating_sub(1)..=whole.last.0 + 1 {
                let part = whole.from(Seq(cut)).unwrap();
                let rest: Vec<_> =
                    entries.iter().filter(|entry| entry.seq.0 >= cut).cloned().collect();
                let read = part.map(|part| part.entries().unwrap()).unwrap_or_default();
                prop_assert_eq!(read, rest);
                let part = whole.until(Seq(cut)).unwrap();
                let begin: Vec<_> =
                    entries.iter().filter(|entry| entry.seq.0 <= cut).cloned().collect();
                let read = part.map(|part| part.entries().unwrap()).unwrap_or_default();
                prop_assert_eq!(read, begin);
            }
        }

        #[test]
        fn any_bytes_decode_or_are_refused(mut bytes: Vec<u8>, last in 1..4_u64) {
            bytes.insert(0, FORMAT);
            let segment = Segment {
                shard: ShardId(0), epoch: Epoch(1), first: Seq(1), last: Seq(last), bytes: bytes.into(),
            };
            if let Ok(entries) = segment.entries() {
                prop_assert_eq!(entries.len() as u64, last);
            }
        }
    }
}
