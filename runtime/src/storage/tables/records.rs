//! The journal's records and promises as bytes.
//!
//! ```text
//! record 2   u32 segments | u32 promises | segments x header | promises x promise | bytes of each
//! header     u32 shard | u64 epoch | u64 under | u64 first | u64 last | u32 bytes
//! promise    u32 shard | u64 epoch
//! record 1   u32 segments | segments x (header without under) | bytes of each
//! kept       key u32 shard;  body = u64 epoch
//! ```
//! Records of format 1 are of nodes that knew no standbys: each segment was written by its own
//! primary, under its own epoch.

use bytes::Bytes;
use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{CommitNo, Epoch, Seq, ShardId};

use super::{ENVELOPE_BYTES, Fields, JOURNAL_FILE, seal, unseal};
use crate::storage::error::StorageError;

/// The layout of records that this build writes; it reads all up to this one.
pub(super) const RECORD_FORMAT: u8 = 2;
/// The layout of kept promises.
const KEPT_FORMAT: u8 = 1;
/// Bytes of one segment's header in a record.
const HEADER_BYTES: usize = 4 + 8 + 8 + 8 + 8 + 4;
/// Bytes of one promise in a record.
const PROMISE_BYTES: usize = 4 + 8;

/// A segment, and the epoch under which it was written: the primary's that sent it. It is greater
/// than the segment's own when that primary sent what an earlier one had written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::storage) struct Written {
    pub(in crate::storage) under: Epoch,
    pub(in crate::storage) segment: Segment,
}

/// What one commit adds to the journal.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(in crate::storage) struct Record {
    pub(in crate::storage) segments: Vec<Written>,
    pub(in crate::storage) promises: Vec<(ShardId, Epoch)>,
}

impl Record {
    /// Bytes of its value.
    pub(in crate::storage) fn len(&self) -> usize {
        let bytes: usize = self.segments.iter().map(|part| part.segment.bytes.len()).sum();
        record_len(self.segments.len(), self.promises.len(), bytes)
    }

    /// Writes it into a place of [`Self::len`] bytes.
    pub(in crate::storage) fn write(&self, commit: CommitNo, place: &mut [u8]) {
        let mut at = ENVELOPE_BYTES;
        let mut put = |bytes: &[u8]| {
            place[at..at + bytes.len()].copy_from_slice(bytes);
            at += bytes.len();
        };
        put(&u32_len(self.segments.len()).to_le_bytes());
        put(&u32_len(self.promises.len()).to_le_bytes());
        for Written { under, segment } in &self.segments {
            put(&segment.shard.0.to_le_bytes());
            put(&segment.epoch.0.to_le_bytes());
            put(&under.0.to_le_bytes());
            put(&segment.first.0.to_le_bytes());
            put(&segment.last.0.to_le_bytes());
            put(&u32_len(segment.bytes.len()).to_le_bytes());
        }
        for (shard, epoch) in &self.promises {
            put(&shard.0.to_le_bytes());
            put(&epoch.0.to_le_bytes());
        }
        for Written { segment, .. } in &self.segments {
            put(&segment.bytes);
        }
        assert!(at == place.len(), "a record fills its place");
        seal(RECORD_FORMAT, &commit.0.to_be_bytes(), place);
    }
}

/// Bytes of the value of a record.
pub(in crate::storage) const fn record_len(
    segments: usize,
    promises: usize,
    bytes: usize,
) -> usize {
    ENVELOPE_BYTES + 4 + 4 + segments * HEADER_BYTES + promises * PROMISE_BYTES + bytes
}

fn u32_len(len: usize) -> u32 {
    u32::try_from(len).expect("records are bounded far below 4 GiB")
}

/// A segment as it lies in a record.
#[derive(Debug, Clone, Copy)]
pub(in crate::storage) struct Stored<'v> {
    pub(in crate::storage) shard: ShardId,
    pub(in crate::storage) epoch: Epoch,
    pub(in crate::storage) under: Epoch,
    pub(in crate::storage) first: Seq,
    pub(in crate::storage) last: Seq,
    pub(in crate::storage) bytes: &'v [u8],
}

impl Stored<'_> {
    pub(in crate::storage) fn segment(&self) -> Segment {
        let Self { shard, epoch, first, last, bytes, .. } = *self;
        Segment { shard, epoch, first, last, bytes: Bytes::copy_from_slice(bytes) }
    }
}

/// A record that is read.
#[derive(Debug, Default)]
pub(in crate::storage) struct StoredRecord<'v> {
    pub(in crate::storage) segments: Vec<Stored<'v>>,
    pub(in crate::storage) promises: Vec<(ShardId, Epoch)>,
}

/// Reads a record, of this format or an older one.
pub(in crate::storage) fn read_record(
    commit: CommitNo,
    value: &[u8],
) -> Result<StoredRecord<'_>, StorageError> {
    let key = commit.0.to_be_bytes();
    let (format, mut body) = unseal(JOURNAL_FILE, RECORD_FORMAT, &key, value)?;
    let old = format == 1;
    let segments = body.u32_le()? as usize;
    let promises = if old { 0 } else { body.u32_le()? as usize };
    let header_bytes = if old { HEADER_BYTES - 8 } else { HEADER_BYTES };
    let mut headers = body.fields(segments.saturating_mul(header_bytes))?;
    let mut pairs = body.fields(promises.saturating_mul(PROMISE_BYTES))?;
    let mut record = StoredRecord::default();
    for _ in 0..segments {
        let shard = ShardId(headers.u32_le()?);
        let epoch = Epoch(headers.u64_le()?);
        let under = if old { epoch } else { Epoch(headers.u64_le()?) };
        let (first, last) = (Seq(headers.u64_le()?), Seq(headers.u64_le()?));
        let bytes = body.take(headers.u32_le()? as usize)?;
        record.segments.push(Stored { shard, epoch, under, first, last, bytes });
    }
    for _ in 0..promises {
        record.promises.push((ShardId(pairs.u32_le()?), Epoch(pairs.u64_le()?)));
    }
    body.finish()?;
    Ok(record)
}

/// Writes the promise that is kept of a shard whose records were cut into `value`.
pub(in crate::storage) fn write_kept(shard: ShardId, promised: Epoch, value: &mut Vec<u8>) {
    value.clear();
    value.resize(ENVELOPE_BYTES, 0);
    value.extend_from_slice(&promised.0.to_le_bytes());
    seal(KEPT_FORMAT, &shard.0.to_be_bytes(), value);
}

/// Reads the promise that is kept of a shard.
pub(in crate::storage) fn read_kept(shard: ShardId, value: &[u8]) -> Result<Epoch, StorageError> {
    let (_, mut body) = unseal(JOURNAL_FILE, KEPT_FORMAT, &shard.0.to_be_bytes(), value)?;
    let promised = Epoch(body.u64_le()?);
    body.finish()?;
    Ok(promised)
}

impl Fields<'_> {
    /// The next so many bytes, as fields of their own.
    fn fields(&mut self, bytes: usize) -> Result<Self, StorageError> {
        Ok(Fields { file: self.file, rest: self.take(bytes)? })
    }
}

#[cfg(test)]
pub(in crate::storage) mod tests {
    use proptest::prelude::*;

    use super::*;

    fn segment() -> Segment {
        let bytes = Bytes::from_static(&[1, 2]);
        Segment { shard: ShardId(5), epoch: Epoch(6), first: Seq(7), last: Seq(8), bytes }
    }

    fn written(record: &Record, commit: u64) -> Vec<u8> {
        let mut value = vec![0; record.len()];
        record.write(CommitNo(commit), &mut value);
        value
    }

    /// A record as nodes wrote it that knew no standbys.
    pub(in crate::storage) fn old_record(commit: CommitNo, segments: &[Segment]) -> Vec<u8> {
        let mut value = vec![0; ENVELOPE_BYTES];
        value.extend_from_slice(&u32_len(segments.len()).to_le_bytes());
        for segment in segments {
            value.extend_from_slice(&segment.shard.0.to_le_bytes());
            for number in [segment.epoch.0, segment.first.0, segment.last.0] {
                value.extend_from_slice(&number.to_le_bytes());
            }
            value.extend_from_slice(&u32_len(segment.bytes.len()).to_le_bytes());
        }
        for segment in segments {
            value.extend_from_slice(&segment.bytes);
        }
        seal(1, &commit.0.to_be_bytes(), &mut value);
        value
    }

    #[test]
    fn bytes_of_a_record_are_pinned() {
        let segments = vec![Written { under: Epoch(9), segment: segment() }];
        let record = Record { segments, promises: vec![(ShardId(3), Epoch(4))] };
        let value = written(&record, 4);
        assert_eq!(value[0], 2);
        let numbers = |numbers: &[u64]| -> Vec<u8> {
            numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
        };
        assert_eq!(value[9..21], [1, 0, 0, 0, 1, 0, 0, 0, 5, 0, 0, 0]);
        assert_eq!(value[21..53], numbers(&[6, 9, 7, 8]));
        assert_eq!(value[53..61], [2, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(value[61..], [4, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
    }

    #[test]
    fn a_record_of_format_1_is_read_and_its_bytes_are_pinned() {
        let value = old_record(CommitNo(4), &[segment()]);
        let body = [1, 0, 0, 0, 5, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!((value[0], &value[9..33]), (1, &body[..]));
        assert_eq!(value[33..], [8, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 2]);
        let record = read_record(CommitNo(4), &value).unwrap();
        assert_eq!((record.segments[0].under, record.promises.len()), (Epoch(6), 0));
        assert_eq!(record.segments[0].segment(), segment());
    }

    #[test]
    fn a_kept_promise_comes_back() {
        let mut value = Vec::new();
        write_kept(ShardId(1), Epoch(7), &mut value);
        assert_eq!(read_kept(ShardId(1), &value).unwrap(), Epoch(7));
        assert!(read_kept(ShardId(2), &value).is_err());
    }

    proptest! {
        #[test]
        fn a_flipped_bit_is_never_read(at in any::<prop::sample::Index>(), bit in 0..8_u8) {
            let segments = vec![Written { under: Epoch(7), segment: segment() }];
            let record = Record { segments, promises: vec![(ShardId(1), Epoch(2))] };
            let mut value = written(&record, 1);
            let read = read_record(CommitNo(1), &value).unwrap();
            prop_assert_eq!(read.segments[0].segment(), segment());
            prop_assert_eq!((read.segments[0].under, read.promises), (Epoch(7), record.promises));
            let at = at.index(value.len());
            value[at] ^= 1 << bit;
            prop_assert!(read_record(CommitNo(1), &value).is_err());
        }
    }
}
