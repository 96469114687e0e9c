//! W3C trace context: continues the caller's trace or begins one.

use axum::http::{HeaderMap, HeaderValue};
use mainstay::protocol::message::TraceContext;

/// The trace of a request: the caller's with this request's own span, or a new one. A header that
/// is not valid begins a new trace, as the standard wants it.
pub(super) fn of_request(headers: &HeaderMap) -> TraceContext {
    let parent = headers.get("traceparent").and_then(|value| parse(value.to_str().ok()?));
    TraceContext {
        trace: parent.map_or_else(|| fastrand::u128(1..), |parent| parent.trace),
        span: fastrand::u64(1..),
        sampled: parent.is_some_and(|parent| parent.sampled),
    }
}

/// The header that tells the caller which trace and span this request was.
pub(super) fn header(trace: TraceContext) -> HeaderValue {
    let flags = u8::from(trace.sampled);
    let text = format!("00-{:032x}-{:016x}-{flags:02x}", trace.trace, trace.span);
    HeaderValue::try_from(text).expect("hexadecimal digits and dashes")
}

/// The trace id as it is printed.
pub(super) fn id(trace: TraceContext) -> String {
    format!("{:032x}", trace.trace)
}

fn parse(text: &str) -> Option<TraceContext> {
    let mut parts = text.trim().split('-');
    let version = digits(parts.next()?, 2)?;
    let trace = digits(parts.next()?, 32)?;
    let span = u64::try_from(digits(parts.next()?, 16)?).ok()?;
    let flags = digits(parts.next()?, 2)?;
    let ended = version > 0 || parts.next().is_none();
    let valid = version != 0xff && trace != 0 && span != 0 && ended;
    valid.then_some(TraceContext { trace, span, sampled: flags & 1 == 1 })
}

fn digits(text: &str, count: usize) -> Option<u128> {
    let lower_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let valid = text.len() == count && text.bytes().all(lower_hex);
    valid.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn continued(text: &'static str) -> TraceContext {
        let mut headers = HeaderMap::new();
        headers.insert("traceparent", HeaderValue::from_static(text));
        of_request(&headers)
    }

    #[test]
    fn a_valid_trace_is_continued_under_a_new_span() {
        let trace = continued("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01");
        assert_eq!(id(trace), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert!(trace.sampled);
        assert_ne!(trace.span, 0x00f0_67aa_0ba9_02b7);
        let header = header(trace);
        let back = parse(header.to_str().unwrap()).unwrap();
        assert_eq!(back, trace);
    }

    #[test]
    fn an_invalid_one_begins_a_new_trace() {
        for text in [
            "",
            "garbage",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            let trace = continued(text);
            assert_ne!(id(trace), "4bf92f3577b34da6a3ce929d0e0e4736", "{text}");
            assert!(!trace.sampled && trace.trace != 0);
        }
        let next = continued("01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more");
        assert_eq!(id(next), "4bf92f3577b34da6a3ce929d0e0e4736");
    }
}
