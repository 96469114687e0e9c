//! Named MessagePack, bounded: what states, arguments and replies are encoded in.
//!
//! Structs are maps, so that fields can be added, removed and reordered. What encodes here decodes
//! here: size and nesting are checked on the way out as on the way in, and bytes behind the value
//! are refused.

use std::cell::Cell;
use std::io;

use bytes::Bytes;
use mainstay_protocol::limits::{DECODE_DEPTH_MAX, PAYLOAD_BYTES_MAX};
use serde::de::DeserializeOwned;
use serde::{Deserialize as _, Serialize};

/// Why a value has no encoding. Nothing was appended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It takes more bytes than allowed. Keep less in it, or split it.
    #[error("it takes more than {bytes_max} bytes")]
    TooLarge {
        /// The limit.
        bytes_max: usize,
    },
    /// It nests deeper than the decoder reads.
    #[error("it nests deeper than {} levels", DECODE_DEPTH_MAX - 1)]
    TooDeep,
    /// Its own `Serialize` refused.
    #[error("{reason}")]
    Refused {
        /// What it said.
        reason: String,
    },
}

/// Why bytes are not the expected value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// There are more bytes than allowed.
    #[error("{bytes} bytes, the limit is {bytes_max}")]
    TooLarge {
        /// How many there are.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Bytes are left behind the value.
    #[error("bytes are left behind the value")]
    Trailing,
    /// They are malformed, or of another type.
    #[error("{reason}")]
    Invalid {
        /// What was wrong.
        reason: String,
    },
}

/// Appends the encoding of a value to `out`.
///
/// # Errors
/// [`EncodeError`], and `out` is as before.
pub fn encode<T: Serialize + ?Sized>(
    value: &T,
    bytes_max: usize,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let start = out.len();
    let mut writer = Bounded { out, end: start.saturating_add(bytes_max), full: false };
    let mut serializer = rmp_serde::Serializer::new(&mut writer).with_struct_map();
    let result = value.serialize(&mut serializer);
    let full = writer.full;
    let error = match result {
        Ok(()) if !nests_too_deep(&out[start..]) => return Ok(()),
        Ok(()) => EncodeError::TooDeep,
        Err(_) if full => EncodeError::TooLarge { bytes_max },
        Err(error) => EncodeError::Refused { reason: error.to_string() },
    };
    out.truncate(start);
    Err(error)
}

/// The encoding of arguments or of a reply, at most [`PAYLOAD_BYTES_MAX`] bytes, in one allocation.
///
/// # Errors
/// [`EncodeError`].
pub fn to_bytes<T: Serialize + ?Sized>(value: &T) -> Result<Bytes, EncodeError> {
    let mut scratch = SCRATCH.take();
    scratch.clear();
    let bytes =
        encode(value, PAYLOAD_BYTES_MAX, &mut scratch).map(|()| Bytes::copy_from_slice(&scratch));
    if scratch.capacity() <= SCRATCH_BYTES_KEPT {
        SCRATCH.set(scratch);
    }
    bytes
}

thread_local! {
    /// Taken, used, put back: an encoder that encodes something else meanwhile finds a new one.
    static SCRATCH: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

/// A larger scratch buffer is not kept, so that one large reply does not pin memory on a thread.
const SCRATCH_BYTES_KEPT: usize = 64 << 10;

/// The value of these bytes, of which there are at most `bytes_max`.
///
/// # Errors
/// [`DecodeError`] when they are too many, malformed, of another type, nested too deep, or more
/// than one value.
pub fn decode<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), bytes_max });
    }
    let mut deserializer = rmp_serde::Deserializer::from_read_ref(&bytes);
    deserializer.set_max_depth(DECODE_DEPTH_MAX);
    let value = T::deserialize(&mut deserializer)
        .map_err(|error| DecodeError::Invalid { reason: error.to_string() })?;
    // the decoder does not tell what it left, but at the end there is no next marker to read
    match u8::deserialize(&mut deserializer) {
        Err(rmp_serde::decode::Error::InvalidMarkerRead(_)) => Ok(value),
        _ => Err(DecodeError::Trailing),
    }
}

/// The value of arguments or of a reply.
///
/// # Errors
/// [`DecodeError`].
pub fn from_bytes<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    decode(bytes, PAYLOAD_BYTES_MAX)
}

/// A vector that refuses to grow beyond `end`.
struct Bounded<'o> {
    out: &'o mut Vec<u8>,
    end: usize,
    full: bool,
}

impl io::Write for Bounded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() > self.end.saturating_sub(self.out.len()) {
            self.full = true;
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.out.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whether encoded bytes nest arrays and maps deeper than the decoder reads. The encoder itself
/// does not count, and a state that could be written but not read would be lost.
fn nests_too_deep(bytes: &[u8]) -> bool {
    // a level takes a byte at least
    if bytes.len() < DECODE_DEPTH_MAX {
        return false;
    }
    let mut items_left = [0_usize; DECODE_DEPTH_MAX];
    let mut depth = 0;
    let mut at = 0;
    while let Some(head) = Head::read(bytes, at) {
        at += head.bytes;
        if head.container && depth + 1 == DECODE_DEPTH_MAX {
            return true;
        }
        if head.items > 0 {
            depth += 1;
            items_left[depth] = head.items;
            continue;
        }
        while depth > 0 {
            items_left[depth] -= 1;
            if items_left[depth] > 0 {
                break;
            }
            depth -= 1;
        }
    }
    false
}

/// One MessagePack marker with what belongs to it, up to the items of an array or map.
struct Head {
    bytes: usize,
    container: bool,
    items: usize,
}

impl Head {
    fn read(input: &[u8], at: usize) -> Option<Self> {
        let marker = *input.get(at)?;
        let number = |bytes: usize| -> Option<usize> {
            let digits = input.get(at + 1..at + 1 + bytes)?;
            Some(digits.iter().fold(0, |sum, digit| (sum << 8) | usize::from(*digit)))
        };
        let low = |mask: u8| usize::from(marker & mask);
        let plain = |bytes| Self { bytes, container: false, items: 0 };
        let container = |bytes, items| Self { bytes, container: true, items };
        Some(match marker {
            0x80..=0x8f => container(1, 2 * low(0x0f)),
            0x90..=0x9f => container(1, low(0x0f)),
            0xa0..=0xbf => plain(1 + low(0x1f)),
            0xc4 | 0xd9 => plain(2 + number(1)?),
            0xc5 | 0xda => plain(3 + number(2)?),
            0xc6 | 0xdb => plain(5 + number(4)?),
            0xc7 => plain(3 + number(1)?),
            0xc8 => plain(4 + number(2)?),
            0xc9 => plain(6 + number(4)?),
            0xcc | 0xd0 => plain(2),
            0xcd | 0xd1 => plain(3),
            0xca | 0xce | 0xd2 => plain(5),
            0xcb | 0xcf | 0xd3 => plain(9),
            0xd4..=0xd8 => plain(2 + (1 << (marker - 0xd4))),
            0xdc => container(3, number(2)?),
            0xdd => container(5, number(4)?),
            0xde => container(3, 2 * number(2)?),
            0xdf => container(5, 2 * number(4)?),
            0x00..=0x7f | 0xc0..=0xc3 | 0xe0..=0xff => plain(1),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Nested(Vec<Self>);

    fn nested(levels: usize) -> Nested {
        (1..levels).fold(Nested(Vec::new()), |inner, _| Nested(vec![inner]))
    }

    #[test]
    fn what_nests_too_deep_to_be_read_is_not_written() {
        let written = (1..200)
            .take_while(|levels| to_bytes(&nested(*levels)).is_ok())
            .inspect(|levels| {
                let bytes = to_bytes(&nested(*levels)).unwrap();
                assert_eq!(from_bytes::<Nested>(&bytes).unwrap(), nested(*levels));
            })
            .count();
        assert_eq!(written, DECODE_DEPTH_MAX - 1);
        assert_eq!(to_bytes(&nested(64)).unwrap_err(), EncodeError::TooDeep);
    }

    #[test]
    fn a_depth_bomb_is_an_error() {
        let bomb = vec![0x91; 100_000];
        assert!(from_bytes::<Nested>(&bomb).is_err());
    }

    #[test]
    fn trailing_bytes_are_refused() {
        for rest in [&[2_u8][..], &[0xc1], &[0xcc], &[0x91], &[0xa5], &[0xc0, 0xc0]] {
            let bytes = [&[1], rest].concat();
            assert_eq!(from_bytes::<u8>(&bytes).unwrap_err(), DecodeError::Trailing, "{rest:?}");
        }
    }

    #[test]
    fn a_value_over_the_limit_leaves_the_buffer_as_it_was() {
        let mut out = vec![7];
        let error = encode("twelve bytes", 5, &mut out).unwrap_err();
        assert_eq!(error, EncodeError::TooLarge { bytes_max: 5 });
        assert_eq!(out, [7]);
        encode("four", 5, &mut out).unwrap();
        assert_eq!(out.len(), 6);
    }

    #[test]
    fn bytes_over_the_limit_are_refused_unread() {
        let error = decode::<Vec<u8>>(&[0xff; 9], 8).unwrap_err();
        assert_eq!(error, DecodeError::TooLarge { bytes: 9, bytes_max: 8 });
    }

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            map in prop::collection::btree_map(".{0,40}", prop::collection::vec(any::<i64>(), 0..40), 0..40),
            float: f64,
            text in ".{0,300}",
        ) {
            let value: (BTreeMap<String, Vec<i64>>, f64, Option<String>) = (map, float, Some(text));
            let bytes = to_bytes(&value).unwrap();
            let back: (BTreeMap<String, Vec<i64>>, f64, Option<String>) =
                from_bytes(&bytes).unwrap();
            prop_assert_eq!(back, value);
        }

        #[test]
        fn hostile_bytes_are_an_error_or_a_value_but_no_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            drop(from_bytes::<(BTreeMap<String, Vec<i64>>, f64)>(&bytes));
            nests_too_deep(&bytes);
        }
    }
}
