//! The bytes of what queries say of freshness, pinned: other builds read them.

use std::time::Duration;

use super::*;
use crate::id::Seq;

/// A request as builds write it that know of no freshness.
const BEFORE: &str = "dc001001920203040506a16b07a55175657279a45761697408c09000c0c0c40109";

fn request(freshness: Option<Freshness>) -> Request {
    Request {
        correlation: 1,
        id: RequestId { caller: 2, number: 3 },
        shard: ShardId(4),
        epoch: Epoch(5),
        kind: KindId(6),
        key: Key::new("k").unwrap(),
        method: MethodId(7),
        mode: Mode::Query,
        pressure: Pressure::Wait,
        remaining_us: 8,
        idempotency: None,
        chain: Vec::new(),
        attempt: 0,
        trace: None,
        from_kind: None,
        payload: Bytes::from_static(&[9]),
        freshness: freshness.map(Box::new),
    }
}

fn hex(bytes: &[u8]) -> String {
    let pairs: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    pairs.concat()
}

fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.as_bytes().chunks(2);
    let text = pairs.map(|pair| std::str::from_utf8(pair).unwrap());
    text.map(|pair| u8::from_str_radix(pair, 16).unwrap()).collect()
}

#[test]
fn a_request_that_says_nothing_of_freshness_is_as_it_was_before() {
    let request = request(None);
    assert_eq!(hex(&rmp_serde::to_vec(&request).unwrap()), BEFORE);
    let read: Request = rmp_serde::from_slice(&bytes(BEFORE)).unwrap();
    assert_eq!(read, request);
}

#[test]
fn freshness_is_the_last_field_of_a_request() {
    let token = Token { shard: ShardId(4), epoch: Epoch(5), seq: Seq(6) };
    for (freshness, end) in [
        (Freshness::Strict, "a6537472696374"),
        (Freshness::AtLeast(token), "81a741744c6561737493040506"),
        (
            Freshness::MaxStaleness(Duration::from_millis(250)),
            "81ac4d61785374616c656e6573739200ce0ee6b280",
        ),
    ] {
        let request = request(Some(freshness));
        let expected = format!("dc0011{}{end}", &BEFORE[6..]);
        assert_eq!(hex(&rmp_serde::to_vec(&request).unwrap()), expected, "{freshness:?}");
        let read: Request = rmp_serde::from_slice(&bytes(&expected)).unwrap();
        assert_eq!(read, request);
    }
}

#[test]
fn a_refusal_for_want_of_freshness_is_pinned() {
    let refused = Failure::Stale { reason: "x".to_owned() };
    let expected = "81a55374616c6591a178";
    assert_eq!(hex(&rmp_serde::to_vec(&refused).unwrap()), expected);
    assert_eq!(rmp_serde::from_slice::<Failure>(&bytes(expected)).unwrap(), refused);
}
