//! Appends and answers as bytes: the bodies of the two frames between a feed and standbys.
//!
//! ```text
//!   appends   format u8 | append, append, ..
//!   append    shard u32 | epoch u64 | version u64 | sent at u64 | lease u8 | prev (epoch u64, seq u64)
//!             | committed u64 | how many segments u32 | segment, segment, ..
//!   segment   epoch u64 | last seq u64 | length u32 | bytes
//!   answers   format u8 | heard u64 | nothing, or: disk 16 bytes | answer, answer, ..
//!   answer    shard u32 | epoch u64 | kind u8 | what is told
//! ```
//! Numbers are little endian. What follows from the rest is not sent: a segment is of its append's
//! shard, and begins after the one before it. All answers of a frame are of one disk. `heard` is
//! the number of frames of appends that came in, so that the sender knows whether one is owed.
//!
//! Segments travel as they are. They are decoded here, once, and the entries go along: a segment
//! that lies about its places reaches no standby.

use bytes::Bytes;

use super::{Answer, Append, Position, Told};
use crate::entry::{Entry, Segment, SegmentError};
use crate::id::{DiskId, Epoch, Seq, ShardId};
use crate::limits;

/// The format of both bodies that this build writes and reads.
pub const FORMAT: u8 = 2;
/// Bytes of an append without its segments.
const APPEND_HEAD_BYTES: usize = 4 + 8 + 8 + 8 + 1 + 16 + 8 + 4;
/// Bytes of a segment without its own.
const SEGMENT_HEAD_BYTES: usize = 8 + 8 + 4;
/// Bytes of one append: it fits a frame, beside the frame's tag and the format.
pub const APPEND_BYTES_MAX: usize = limits::FRAME_BYTES_MAX - 2;
/// Bytes that an answer has at most.
pub const ANSWER_BYTES_MAX: usize = 4 + 8 + 1 + 24;

/// Why an append cannot be sent. The feed that made it is broken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// Its segments are not of its shard, or do not follow each other.
    #[error("an append that does not fit together: {reason}")]
    Shape {
        /// What is wrong.
        reason: &'static str,
    },
    /// It, or one of its segments, is larger than a frame or a segment may be.
    #[error("an append of {bytes} bytes, the limit is {bytes_max}")]
    Size {
        /// What it has.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
}

/// Why a body does not decode. Nothing of it may be used; drop the connection.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// A newer build wrote it. Upgrade this node.
    #[error("a body of format {found}, this build reads {FORMAT}")]
    Newer {
        /// The format found.
        found: u8,
    },
    /// It ends too early.
    #[error("a body that is cut short")]
    Cut,
    /// A value that is none.
    #[error("a body with a wrong value: {reason}")]
    Value {
        /// What is wrong.
        reason: &'static str,
    },
    /// A segment is no segment, or not what its append says.
    #[error("a body whose segment does not decode")]
    Segment(#[from] SegmentError),
}

/// An append that came in, and what its segments hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// The append.
    pub append: Append,
    /// The entries of all its segments, in order.
    pub entries: Vec<Entry>,
}

/// Answers that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answers {
    /// So many frames of appends came in at the other end of the connection.
    pub heard: u64,
    /// The answers, in order.
    pub answers: Vec<Answer>,
}

/// The bytes of an append in a body.
///
/// # Errors
/// [`EncodeError`] when it may not be sent.
pub fn check(append: &Append) -> Result<usize, EncodeError> {
    let shape = |reason| Err(EncodeError::Shape { reason });
    let mut last = append.prev.seq;
    let mut bytes = APPEND_HEAD_BYTES;
    for segment in &append.segments {
        if segment.shard != append.shard {
            return shape("a segment of another shard");
        }
        if last.0.checked_add(1) != Some(segment.first.0) || segment.last < segment.first {
            return shape("its segments do not follow each other");
        }
        last = segment.last;
        check_size(segment.bytes.len(), limits::SEGMENT_BYTES_MAX)?;
        bytes += SEGMENT_HEAD_BYTES + segment.bytes.len();
    }
    check_size(bytes, APPEND_BYTES_MAX)?;
    Ok(bytes)
}

const fn check_size(bytes: usize, bytes_max: usize) -> Result<(), EncodeError> {
    if bytes > bytes_max { Err(EncodeError::Size { bytes, bytes_max }) } else { Ok(()) }
}

/// Adds a body of appends that passed [`check`].
///
/// # Panics
/// When one did not.
pub fn encode_appends<'a>(appends: impl IntoIterator<Item = &'a Append>, out: &mut Vec<u8>) {
    out.push(FORMAT);
    for append in appends {
        out.extend_from_slice(&append.shard.0.to_le_bytes());
        put_u64s(out, &[append.epoch.0, append.version, append.sent_at]);
        out.push(u8::from(append.lease));
        put_u64s(out, &[append.prev.epoch.0, append.prev.seq.0, append.committed.0]);
        put_length(out, append.segments.len());
        for segment in &append.segments {
            put_u64s(out, &[segment.epoch.0, segment.last.0]);
            put_length(out, segment.bytes.len());
            out.extend_from_slice(&segment.bytes);
        }
    }
}

/// Reads a body of appends, and the entries in it.
///
/// # Errors
/// [`DecodeError`]. What is made is never more than what the bytes hold.
pub fn decode_appends(body: &[u8]) -> Result<Vec<Arrived>, DecodeError> {
    let mut reader = Reader::new(body)?;
    let mut appends = Vec::new();
    while !reader.rest.is_empty() {
        appends.push(decode_append(&mut reader)?);
    }
    Ok(appends)
}

fn decode_append(reader: &mut Reader<'_>) -> Result<Arrived, DecodeError> {
    let shard = ShardId(reader.u32()?);
    let (epoch, version) = (Epoch(reader.u64()?), reader.u64()?);
    let (sent_at, lease) = (reader.u64()?, reader.flag()?);
    let (prev, committed) = (reader.position()?, Seq(reader.u64()?));
    let count = reader.length()?;
    if count > reader.rest.len() / SEGMENT_HEAD_BYTES {
        return Err(DecodeError::Cut);
    }
    let mut segments = Vec::with_capacity(count);
    let mut entries = Vec::new();
    let mut before = prev.seq;
    for _ in 0..count {
        let (epoch, last) = (Epoch(reader.u64()?), Seq(reader.u64()?));
        if last <= before || last.0 == u64::MAX {
            return Err(DecodeError::Value { reason: "a segment without a place" });
        }
        let bytes = reader.length()?;
        if bytes > limits::SEGMENT_BYTES_MAX {
            return Err(SegmentError::Size { bytes }.into());
        }
        // Copied, so that a small segment that is kept does not keep its whole frame.
        let bytes = Bytes::copy_from_slice(reader.take(bytes)?);
        let segment = Segment { shard, epoch, first: before.next(), last, bytes };
        entries.append(&mut segment.entries()?);
        segments.push(segment);
        before = last;
    }
    let append = Append { shard, epoch, version, sent_at, lease, prev, segments, committed };
    Ok(Arrived { append, entries })
}

/// Adds a body of answers that are all of one disk.
///
/// # Panics
/// When they are not.
pub fn encode_answers(heard: u64, answers: &[Answer], out: &mut Vec<u8>) {
    out.push(FORMAT);
    put_u64s(out, &[heard]);
    let Some(Answer { disk, .. }) = answers.first() else { return };
    out.extend_from_slice(disk.as_bytes());
    for answer in answers {
        assert!(answer.disk == *disk, "all answers of a frame are of one disk");
        out.extend_from_slice(&answer.shard.0.to_le_bytes());
        put_u64s(out, &[answer.epoch.0]);
        match answer.what {
            Told::Heard { sent_at, promised } => {
                out.push(if promised { 2 } else { 1 });
                put_u64s(out, &[sent_at]);
            }
            Told::Holds { upto, version } => {
                out.push(3);
                put_u64s(out, &[upto.0, version]);
            }
            Told::Gap { sent_at, last } => {
                out.push(4);
                put_u64s(out, &[sent_at, last.epoch.0, last.seq.0]);
            }
            Told::Fenced { promised } => {
                out.push(5);
                put_u64s(out, &[promised.0]);
            }
        }
    }
}

/// Reads a body of answers.
///
/// # Errors
/// [`DecodeError`].
pub fn decode_answers(body: &[u8]) -> Result<Answers, DecodeError> {
    let mut reader = Reader::new(body)?;
    let heard = reader.u64()?;
    let mut answers = Vec::new();
    if reader.rest.is_empty() {
        return Ok(Answers { heard, answers });
    }
    let disk = DiskId::from_bytes(reader.array()?);
    loop {
        let (shard, epoch) = (ShardId(reader.u32()?), Epoch(reader.u64()?));
        let what = match reader.u8()? {
            kind @ (1 | 2) => Told::Heard { sent_at: reader.u64()?, promised: kind == 2 },
            3 => Told::Holds { upto: Seq(reader.u64()?), version: reader.u64()? },
            4 => Told::Gap { sent_at: reader.u64()?, last: reader.position()? },
            5 => Told::Fenced { promised: Epoch(reader.u64()?) },
            _ => return Err(DecodeError::Value { reason: "no kind of answer" }),
        };
        answers.push(Answer { shard, epoch, disk, what });
        if reader.rest.is_empty() {
            return Ok(Answers { heard, answers });
        }
    }
}

fn put_u64s(out: &mut Vec<u8>, values: &[u64]) {
    for value in values {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

fn put_length(out: &mut Vec<u8>, length: usize) {
    let length = u32::try_from(length).expect("what was checked fits a frame");
    out.extend_from_slice(&length.to_le_bytes());
}

/// What is left of a body.
struct Reader<'b> {
    rest: &'b [u8],
}

impl<'b> Reader<'b> {
    fn new(body: &'b [u8]) -> Result<Self, DecodeError> {
        let mut reader = Self { rest: body };
        match reader.u8()? {
            FORMAT => Ok(reader),
            found => Err(DecodeError::Newer { found }),
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'b [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(bytes).ok_or(DecodeError::Cut)?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Cut)?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(u8::from_le_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_le_bytes)
    }

    fn length(&mut self) -> Result<usize, DecodeError> {
        self.u32().map(|length| usize::try_from(length).unwrap_or(usize::MAX))
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Value { reason: "neither yes nor no" }),
        }
    }

    fn position(&mut self) -> Result<Position, DecodeError> {
        Ok(Position { epoch: Epoch(self.u64()?), seq: Seq(self.u64()?) })
    }
}

#[cfg(test)]
mod tests;
