//! Frames: `u32 length (little endian, of what follows) | u8 tag | body`, which is compact
//! MessagePack or has an encoding of its own.
//!
//! Everything that arrives is hostile until decoded: a frame has a size limit by its tag, a body a
//! nesting limit, and nothing may follow a body. Memory grows with the bytes that arrived, never
//! with the length that a header claims.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll};

use bytes::{BufMut, Bytes};
use mainstay_protocol::id::{
    Epoch, IdempotencyKey, Key, KindId, MethodId, NameError, RequestId, Seq, ShardId,
};
use mainstay_protocol::limits;
use mainstay_protocol::message::{Mode, Pressure, Request, Tag, TraceContext};
use mainstay_protocol::replication::freshness::Freshness;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Bytes of a frame's header: length and tag.
pub const HEADER_BYTES: usize = 5;
/// Bytes of a handshake frame. A stranger may make this much of us wait, no more.
pub const HANDSHAKE_BYTES_MAX: usize = 4 << 10;
/// Bytes of a request or reply frame beside its payload: ids, key, chain.
const ENVELOPE_BYTES_MAX: usize = 16 << 10;
/// Bytes that one read asks the socket for.
const READ_BYTES: usize = 64 << 10;

/// Why bytes are no frame of ours. The connection is closed; nothing was executed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The frame is longer than frames of its tag may be, or shorter than a tag.
    #[error("a frame of {bytes} bytes, the limit is {bytes_max}")]
    Size {
        /// What its header says.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// No frame has this tag, or none may come here.
    #[error("unexpected frame tag {tag}")]
    Tag {
        /// The tag.
        tag: u8,
    },
    /// The body does not decode.
    #[error("a frame body does not decode: {reason}")]
    Body {
        /// What is wrong with it.
        reason: String,
    },
    /// Bytes follow the body inside its frame.
    #[error("bytes follow a frame's body")]
    Trailing,
}

/// The most bytes that may follow the length of a frame with this tag.
pub const fn bytes_max(tag: Tag) -> usize {
    match tag {
        Tag::Hello | Tag::Welcome | Tag::Reject => HANDSHAKE_BYTES_MAX,
        Tag::Request | Tag::Reply => limits::PAYLOAD_BYTES_MAX + ENVELOPE_BYTES_MAX,
        Tag::Cancel => 64,
        Tag::ControlRequest
        | Tag::ControlReply
        | Tag::Snapshot
        | Tag::SnapshotReply
        | Tag::Appends
        | Tag::Answers => limits::FRAME_BYTES_MAX,
    }
}

/// Appends one frame to `out`, or nothing.
///
/// # Errors
/// [`FrameError::Size`] when the body is too large, [`FrameError::Body`] when it does not encode.
pub fn encode<T: Serialize>(tag: Tag, body: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    if let Err(error) = rmp_serde::encode::write(out, body) {
        out.truncate(start);
        return Err(FrameError::Body { reason: error.to_string() });
    }
    close(tag, start, out)
}

/// Appends one frame with a body of another encoding, which `put` writes; or nothing.
///
/// # Errors
/// [`FrameError::Size`] when the body is too large.
pub fn encode_with(
    tag: Tag,
    out: &mut Vec<u8>,
    put: impl FnOnce(&mut Vec<u8>),
) -> Result<(), FrameError> {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    put(out);
    close(tag, start, out)
}

/// Writes the header of the frame that began at `start`, or takes the frame away.
fn close(tag: Tag, start: usize, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let bytes = out.len() - start - 4;
    let length = u32::try_from(bytes).ok().filter(|_| bytes <= bytes_max(tag));
    let Some(length) = length else {
        out.truncate(start);
        return Err(FrameError::Size { bytes, bytes_max: bytes_max(tag) });
    };
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
    out[start + 4] = tag as u8;
    Ok(())
}

/// Decodes a frame's body: all of it, and nested no deeper than the limit.
///
/// # Errors
/// [`FrameError::Body`] or [`FrameError::Trailing`].
pub fn decode<'de, T: Deserialize<'de>>(body: &'de [u8]) -> Result<T, FrameError> {
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(body);
    deserializer.set_max_depth(limits::DECODE_DEPTH_MAX);
    let value = T::deserialize(&mut deserializer)
        .map_err(|error| FrameError::Body { reason: error.to_string() })?;
    // the library tells no position; only a missing marker means that no byte is left
    match u8::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(FrameError::Trailing),
    }
}

/// A request as it lies in a frame: what `Request` serializes to, without copies of its texts.
#[derive(Deserialize)]
struct WireRequest<'a> {
    correlation: u64,
    id: RequestId,
    shard: ShardId,
    epoch: Epoch,
    kind: KindId,
    key: &'a str,
    method: MethodId,
    mode: Mode,
    pressure: Pressure,
    remaining_us: u64,
    #[serde(borrow)]
    idempotency: Option<&'a str>,
    chain: Vec<u64>,
    attempt: u16,
    trace: Option<TraceContext>,
    from_kind: Option<KindId>,
    payload: &'a [u8],
    #[serde(default)]
    if_version: Option<Seq>,
    #[serde(default)]
    freshness: Option<Box<Freshness>>,
}

/// Decodes a request and checks the limits of what is inside it.
///
/// # Errors
/// [`FrameError`], as [`decode`]; also when a name, the chain or the payload is over its limit.
pub fn decode_request(body: &[u8]) -> Result<Request, FrameError> {
    let wire: WireRequest<'_> = decode(body)?;
    let name = |error: NameError| FrameError::Body { reason: error.to_string() };
    if wire.payload.len() > limits::PAYLOAD_BYTES_MAX {
        let (bytes, bytes_max) = (wire.payload.len(), limits::PAYLOAD_BYTES_MAX);
        return Err(FrameError::Size { bytes, bytes_max });
    }
    if wire.chain.len() > limits::CALL_CHAIN_MAX {
        let reason = format!("a call chain of {} entities", wire.chain.len());
        return Err(FrameError::Body { reason });
    }
    Ok(Request {
        correlation: wire.correlation,
        id: wire.id,
        shard: wire.shard,
        epoch: wire.epoch,
        kind: wire.kind,
        key: Key::new(wire.key).map_err(name)?,
        method: wire.method,
        mode: wire.mode,
        pressure: wire.pressure,
        remaining_us: wire.remaining_us,
        idempotency: wire.idempotency.map(IdempotencyKey::new).transpose().map_err(name)?,
        chain: wire.chain,
        attempt: wire.attempt,
        trace: wire.trace,
        from_kind: wire.from_kind,
        payload: Bytes::copy_from_slice(wire.payload),
        if_version: wire.if_version,
        freshness: wire.freshness,
    })
}

/// What a request counts for in a window of bytes: both sides compute it from the same fields, the
/// caller before it encodes.
pub fn cost(request: &Request) -> u32 {
    let key = request.idempotency.as_ref().map_or(0, |key| key.as_str().len());
    let bytes = 128 + request.payload.len() + request.key.as_str().len() + key;
    u32::try_from(bytes + 8 * request.chain.len()).unwrap_or(u32::MAX)
}

/// Cuts a stream of bytes into frames.
#[derive(Debug, Default)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
}

impl FrameBuffer {
    /// Reads once from `stream`, at most 64 KiB. `Ready(0)` is the end of the stream.
    pub fn poll_fill<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        self.make_room();
        self.bytes.reserve(READ_BYTES);
        let mut space = (&mut self.bytes).limit(READ_BYTES);
        pin!(stream.read_buf(&mut space)).poll(cx)
    }

    fn make_room(&mut self) {
        if self.start == self.bytes.len() {
            self.bytes.clear();
            self.start = 0;
            // one large frame must not hold its memory for the life of the connection
            if self.bytes.capacity() > 4 * READ_BYTES {
                self.bytes = Vec::new();
            }
        } else if self.start >= READ_BYTES {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
    }

    /// Takes what was read elsewhere.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.make_room();
        self.bytes.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// [`FrameError::Size`] or [`FrameError::Tag`]; the stream cannot be read on.
    pub fn next_frame(&mut self) -> Result<Option<(Tag, &[u8])>, FrameError> {
        let waiting = &self.bytes[self.start..];
        let Some((length, rest)) = waiting.split_first_chunk::<4>() else { return Ok(None) };
        let bytes = u32::from_le_bytes(*length) as usize;
        let Some(tag) = rest.first() else {
            return check_size(bytes, limits::FRAME_BYTES_MAX).map(|()| None);
        };
        let tag = Tag::from_byte(*tag).ok_or(FrameError::Tag { tag: *tag })?;
        check_size(bytes, bytes_max(tag))?;
        if rest.len() < bytes {
            return Ok(None);
        }
        let body = self.start + HEADER_BYTES;
        self.start += 4 + bytes;
        Ok(Some((tag, &self.bytes[body..self.start])))
    }

    /// Whether part of a frame has arrived and its end has not.
    pub fn partial(&self) -> bool {
        self.start < self.bytes.len()
    }
}

fn check_size(bytes: usize, bytes_max: usize) -> Result<(), FrameError> {
    if bytes == 0 || bytes > bytes_max {
        return Err(FrameError::Size { bytes, bytes_max });
    }
    Ok(())
}

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// The peer closed, between two frames.
    #[error("the connection was closed")]
    Closed,
    /// The socket failed, or closed inside a frame.
    #[error("the connection failed")]
    Io(#[from] io::Error),
    /// What arrived is no frame.
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Reads exactly one frame of at most `bytes_max` bytes, and nothing behind it.
///
/// # Errors
/// [`ReadError`].
pub async fn read_frame<S: AsyncRead + Unpin>(
    stream: &mut S,
    bytes_max: usize,
) -> Result<(Tag, Vec<u8>), ReadError> {
    let mut header = [0; 4];
    if stream.read(&mut header[..1]).await? == 0 {
        return Err(ReadError::Closed);
    }
    stream.read_exact(&mut header[1..]).await?;
    let bytes = u32::from_le_bytes(header) as usize;
    check_size(bytes, bytes_max)?;
    let byte = stream.read_u8().await?;
    let tag = Tag::from_byte(byte).ok_or(FrameError::Tag { tag: byte })?;
    check_size(bytes, self::bytes_max(tag))?;
    let mut body = Vec::with_capacity((bytes - 1).min(READ_BYTES));
    let read = stream.take(bytes as u64 - 1).read_to_end(&mut body).await?;
    if read < bytes - 1 {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok((tag, body))
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::message::{Cancel, Hello, Reply};
    use proptest::prelude::*;

    use super::*;

    fn framed(tag: Tag, body: &impl Serialize) -> Vec<u8> {
        let mut out = Vec::new();
        encode(tag, body, &mut out).unwrap();
        out
    }

    #[test]
    fn a_frame_is_found_wherever_the_stream_is_cut() {
        let mut stream = framed(Tag::Cancel, &Cancel { correlation: 1 });
        stream.extend(framed(Tag::Cancel, &Cancel { correlation: u64::MAX }));
        for cut in 0..=stream.len() {
            let mut buffer = FrameBuffer::default();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.extend(part);
                while let Some((tag, body)) = buffer.next_frame().unwrap() {
                    assert_eq!(tag, Tag::Cancel);
                    seen.push(decode::<Cancel>(body).unwrap().correlation);
                }
            }
            assert_eq!(seen, [1, u64::MAX]);
            assert!(!buffer.partial());
        }
    }

    #[test]
    fn a_header_that_claims_too_much_is_refused_before_its_body() {
        let mut buffer = FrameBuffer::default();
        buffer.extend(&u32::MAX.to_le_bytes());
        assert!(matches!(buffer.next_frame(), Err(FrameError::Size { .. })));
        let mut buffer = FrameBuffer::default();
        buffer.extend(&[0xff, 0xff, 0, 0, Tag::Hello as u8]);
        assert!(matches!(buffer.next_frame(), Err(FrameError::Size { bytes: 65535, .. })));
        let mut buffer = FrameBuffer::default();
        buffer.extend(&[0, 0, 0, 0, 0]);
        assert!(matches!(
            buffer.next_frame(),
            Err(FrameError::Size { bytes: 0, .. } | FrameError::Tag { tag: 0 })
        ));
    }

    #[test]
    fn trailing_bytes_are_refused() {
        for trailing in [&[0x91][..], &[0], &[0xc4], &[0xc1], &[0xdd, 0xff, 0xff, 0xff, 0xff]] {
            let mut body = rmp_serde::to_vec(&Cancel { correlation: 9 }).unwrap();
            assert!(decode::<Cancel>(&body).is_ok());
            body.extend_from_slice(trailing);
            assert_eq!(decode::<Cancel>(&body).unwrap_err(), FrameError::Trailing);
        }
    }

    #[test]
    fn a_depth_bomb_is_refused() {
        let bomb = vec![0x91; 1 << 20];
        let error = decode::<serde_json::Value>(&bomb).unwrap_err();
        assert!(error.to_string().contains("depth"), "{error}");
    }

    #[test]
    fn a_body_over_its_limit_leaves_the_buffer_as_it_was() {
        let mut out = vec![7];
        let large = Bytes::from(vec![0; limits::FRAME_BYTES_MAX]);
        assert!(matches!(encode(Tag::Snapshot, &large, &mut out), Err(FrameError::Size { .. })));
        assert_eq!(out, [7]);
    }

    fn key_text() -> impl Strategy<Value = String> {
        proptest::collection::vec(any::<char>(), 1..40).prop_map(|chars| chars.iter().collect())
    }

    fn request() -> impl Strategy<Value = Request> {
        let numbers = (any::<u64>(), any::<[u64; 2]>(), any::<[u32; 3]>(), any::<u16>());
        let texts = (key_text(), proptest::option::of(key_text()));
        let rest = (
            any::<[bool; 3]>(),
            proptest::collection::vec(any::<u64>(), 0..=limits::CALL_CHAIN_MAX),
            any::<u128>(),
            proptest::collection::vec(any::<u8>(), 0..300),
        );
        (numbers, texts, rest).prop_map(|(numbers, (key, idempotency), rest)| {
            let (correlation, [caller, number], [shard, kind, method], attempt) = numbers;
            let (flags, chain, trace, payload) = rest;
            Request {
                correlation,
                id: RequestId { caller, number },
                shard: ShardId(shard),
                epoch: Epoch(number),
                kind: KindId(kind),
                key: Key::new(&key).unwrap(),
                method: MethodId(method),
                mode: if flags[0] { Mode::Command } else { Mode::Query },
                pressure: if flags[1] { Pressure::Wait } else { Pressure::Refuse },
                remaining_us: caller,
                idempotency: idempotency.map(|text| IdempotencyKey::new(&text).unwrap()),
                chain,
                attempt,
                trace: flags[2].then_some(TraceContext { trace, span: number, sampled: flags[0] }),
                from_kind: flags[1].then_some(KindId(kind)),
                payload: payload.into(),
                if_version: flags[0].then_some(Seq(caller)),
                freshness: flags[2].then(|| Box::new(Freshness::Strict)),
            }
        })
    }

    proptest! {
        #[test]
        fn requests_read_back_as_they_were_written(request in request()) {
            let frame = framed(Tag::Request, &request);
            let borrowed = decode_request(&frame[HEADER_BYTES..]).unwrap();
            prop_assert_eq!(&borrowed, &request);
            let owned: Request = decode(&frame[HEADER_BYTES..]).unwrap();
            prop_assert_eq!(owned, request);
        }

        #[test]
        fn random_bytes_give_typed_errors_and_no_more_memory_than_bytes(
            chunks in proptest::collection::vec(
                proptest::collection::vec(any::<u8>(), 0..200), 0..20),
        ) {
            let total: usize = chunks.iter().map(Vec::len).sum();
            let mut buffer = FrameBuffer::default();
            'stream: for chunk in chunks {
                buffer.extend(&chunk);
                loop {
                    match buffer.next_frame() {
                        Ok(Some((_, body))) => {
                            prop_assert!(body.len() <= total);
                            drop(decode_request(body));
                        }
                        Ok(None) => break,
                        Err(_) => break 'stream,
                    }
                }
            }
            prop_assert!(buffer.bytes.capacity() <= 2 * total + 2 * READ_BYTES);
        }

        #[test]
        fn random_bodies_never_panic(
            tag in prop::sample::select(vec![1_u8, 2, 3, 10, 11, 12, 20, 21, 30]),
            body in proptest::collection::vec(any::<u8>(), 0..400),
        ) {
            let results = [
                decode_request(&body).is_ok(),
                decode::<Reply>(&body).is_ok(),
                decode::<Hello>(&body).is_ok(),
                decode::<mainstay_protocol::message::ControlRequest>(&body).is_ok(),
            ];
            let mut buffer = FrameBuffer::default();
            let length = u32::try_from(body.len() + 1).unwrap();
            buffer.extend(&length.to_le_bytes());
            buffer.extend(&[tag]);
            buffer.extend(&body);
            let whole = buffer.next_frame();
            prop_assert!(whole.is_ok() || tag == 12, "{results:?}");
        }

        #[test]
        fn a_damaged_request_is_refused_or_still_within_limits(
            request in request(),
            at in any::<prop::sample::Index>(),
            byte in any::<u8>(),
        ) {
            let mut body = framed(Tag::Request, &request).split_off(HEADER_BYTES);
            let at = at.index(body.len());
            body[at] = byte;
            if let Ok(read) = decode_request(&body) {
                prop_assert!(read.key.as_str().len() <= limits::KEY_BYTES_MAX);
                prop_assert!(read.chain.len() <= limits::CALL_CHAIN_MAX);
            }
            body.truncate(at);
            prop_assert!(decode_request(&body).is_err());
        }
    }
}
