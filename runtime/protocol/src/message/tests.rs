//! What is on the wire of a request, and what is not.

use super::*;

fn request(if_version: Option<Seq>) -> Request {
    Request {
        correlation: 1,
        id: RequestId { caller: 2, number: 3 },
        shard: ShardId(4),
        epoch: Epoch(5),
        kind: KindId(6),
        key: Key::new("k").unwrap(),
        method: MethodId(7),
        mode: Mode::Command,
        pressure: Pressure::Wait,
        remaining_us: 8,
        idempotency: None,
        chain: vec![9],
        attempt: 0,
        trace: None,
        from_kind: None,
        payload: Bytes::from_static(b"p"),
        if_version,
    }
}

/// Builds that know no conditions read all other requests, and none with a condition.
#[test]
fn a_condition_is_one_field_more_and_absent_when_there_is_none() {
    let (plain, named) = (request(None), request(Some(Seq(42))));
    let bytes = rmp_serde::to_vec(&plain).unwrap();
    let more = rmp_serde::to_vec(&named).unwrap();
    let (fields, body) = bytes.split_at(3);
    assert_eq!(fields, [0xdc, 0, 16], "an array of so many");
    assert_eq!(more, [&[0xdc, 0, 17], body, &[42]].concat());
    assert_eq!(rmp_serde::from_slice::<Request>(&bytes).unwrap(), plain);
    assert_eq!(rmp_serde::from_slice::<Request>(&more).unwrap(), named);
}
