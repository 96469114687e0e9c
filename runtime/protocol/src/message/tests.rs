//! What is on the wire of a request, and what is not: pinned, for other builds read it.

use std::time::Duration;

use super::*;

/// A request as builds write it that know of neither conditions nor freshness.
const BEFORE: &str = "dc001001920203040506a16b07a55175657279a45761697408c09000c0c0c40109";

fn request(if_version: Option<Seq>, freshness: Option<Freshness>) -> Request {
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
        if_version,
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
fn a_request_that_says_neither_is_as_it_was_before() {
    let request = request(None, None);
    assert_eq!(hex(&rmp_serde::to_vec(&request).unwrap()), BEFORE);
    let read: Request = rmp_serde::from_slice(&bytes(BEFORE)).unwrap();
    assert_eq!(read, request);
}

/// Builds that know no conditions read all other requests, and none with a condition.
#[test]
fn a_condition_is_one_field_more_and_absent_when_there_is_none() {
    let request = Request { mode: Mode::Command, ..request(Some(Seq(42)), None) };
    let before = BEFORE.replace("a55175657279", "a7436f6d6d616e64");
    let expected = format!("dc0011{}2a", &before[6..]);
    assert_eq!(hex(&rmp_serde::to_vec(&request).unwrap()), expected);
    let read: Request = rmp_serde::from_slice(&bytes(&expected)).unwrap();
    assert_eq!(read, request);
}

/// A condition's place is kept free before it, so that neither is read as the other.
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
        let request = request(None, Some(freshness));
        let expected = format!("dc0012{}c0{end}", &BEFORE[6..]);
        assert_eq!(hex(&rmp_serde::to_vec(&request).unwrap()), expected, "{freshness:?}");
        let read: Request = rmp_serde::from_slice(&bytes(&expected)).unwrap();
        assert_eq!(read, request);
    }
}

#[test]
fn who_says_both_is_read_so() {
    let request = request(Some(Seq(42)), Some(Freshness::Strict));
    let bytes = rmp_serde::to_vec(&request).unwrap();
    assert_eq!(rmp_serde::from_slice::<Request>(&bytes).unwrap(), request);
}

#[test]
fn the_place_of_a_shard_is_one_field_more_and_absent_when_there_is_none() {
    let token = Token { shard: ShardId(4), epoch: Epoch(5), seq: Seq(6) };
    let value = Bytes::from_static(&[9]);
    for (place, expected) in [(None, "93c4010993040506c2"), (Some(Seq(7)), "94c4010993040506c207")]
    {
        let success = Success { value: value.clone(), token, replayed: false, place };
        assert_eq!(hex(&rmp_serde::to_vec(&success).unwrap()), expected);
        assert_eq!(rmp_serde::from_slice::<Success>(&bytes(expected)).unwrap(), success);
    }
}

#[test]
fn a_refusal_for_want_of_freshness_is_pinned() {
    let refused = Failure::Stale { reason: "x".to_owned() };
    let expected = "81a55374616c6591a178";
    assert_eq!(hex(&rmp_serde::to_vec(&refused).unwrap()), expected);
    assert_eq!(rmp_serde::from_slice::<Failure>(&bytes(expected)).unwrap(), refused);
}
