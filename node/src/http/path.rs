//! Percent-encoding of path segments, strict: what does not decode to UTF-8 is refused.

/// Why a segment does not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A `%` without two hexadecimal digits after it.
    #[error("a % is not followed by two hexadecimal digits")]
    Escape,
    /// The bytes are not UTF-8.
    #[error("its bytes are not UTF-8")]
    Utf8,
}

/// The text of one segment.
///
/// # Errors
/// [`DecodeError`], by what is wrong.
pub fn decode(segment: &str) -> Result<String, DecodeError> {
    let mut bytes = Vec::with_capacity(segment.len());
    let mut rest = segment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let high = rest.next().and_then(hex).ok_or(DecodeError::Escape)?;
            let low = rest.next().and_then(hex).ok_or(DecodeError::Escape)?;
            bytes.push(high << 4 | low);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| DecodeError::Utf8)
}

fn hex(byte: u8) -> Option<u8> {
    let digit = char::from(byte).to_digit(16)?;
    u8::try_from(digit).ok()
}

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// One segment that stands for `text`: all but unreserved characters encoded.
pub fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_~".contains(&byte) || (byte == b'.' && !dots(text)) {
            out.push(char::from(byte));
        } else {
            out.push('%');
            out.push(char::from(HEX[usize::from(byte >> 4)]));
            out.push(char::from(HEX[usize::from(byte & 15)]));
        }
    }
    out
}

/// `.` and `..` mean something else in a path.
fn dots(text: &str) -> bool {
    text == "." || text == ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_to_itself() {
        for text in ["alice", "a/b c", "\u{e4}\u{1f600}", "%41", "..", "a.b", "\0\n", "?#&=+"] {
            assert_eq!(decode(&encode(text)).as_deref(), Ok(text));
            assert!(
                encode(text).bytes().all(|b| b.is_ascii_alphanumeric() || b"-_~.%".contains(&b))
            );
        }
    }

    #[test]
    fn broken_segments_are_told_apart() {
        assert_eq!(decode("%FF"), Err(DecodeError::Utf8));
        for segment in ["%", "%4", "%4g", "a%zz", "%+1"] {
            assert_eq!(decode(segment), Err(DecodeError::Escape), "{segment}");
        }
        assert_eq!(decode("a+b").as_deref(), Ok("a+b"));
    }
}
