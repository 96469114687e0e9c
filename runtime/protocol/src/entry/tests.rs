//! Bytes of entries: pinned, read back, and refused.

use proptest::prelude::*;

use super::*;
use crate::id::{Key, KindId};

fn entity() -> EntityId {
    EntityId { kind: KindId(7), key: Key::new("acme/42").unwrap() }
}

fn turn(seq: u64, change: Change, dedup: Option<DedupRecord>) -> Entry {
    Entry { seq: Seq(seq), log_time: LogTime(9), op: Op::Turn { entity: entity(), change, dedup } }
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
    DedupRecord { key, method: MethodId(5), payload_hash: 77, reply, version: Seq(2) }
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

const GOLDEN: &str = "02930109a44e6f6f7093020981a45475726e939207a761636d652f343281a3507574\
    c4017395a57061792d31054dab51756172616e74696e656402";

#[test]
fn entries_of_format_1_are_read_and_say_nothing_of_versions() {
    let bytes = (0..GOLDEN_1.len() / 2)
        .map(|at| u8::from_str_radix(&GOLDEN_1[2 * at..2 * at + 2], 16).unwrap());
    let segment = Segment {
        shard: ShardId(3),
        epoch: Epoch(2),
        first: Seq(1),
        last: Seq(2),
        bytes: bytes.collect(),
    };
    let old = DedupRecord { version: Seq(0), ..record(StoredReply::Quarantined) };
    let put = turn(2, Change::Put(Bytes::from_static(b"s")), Some(old));
    assert_eq!(segment.entries().unwrap()[1], put);
}

const GOLDEN_1: &str = "01930109a44e6f6f7093020981a45475726e939207a761636d652f343281a3507574\
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
    assert!(matches!(segment.entries(), Err(SegmentError::Newer { found: 3 })));
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
