//! What is sent comes in as it was, and nothing else comes in.

use proptest::prelude::*;

use super::*;
use crate::entry::{Op, SegmentWriter};
use crate::time::LogTime;

const DISK: DiskId = DiskId::from_bytes([7; 16]);

/// An append of so many entries in each segment, each with an epoch.
fn append(shard: u32, before: u64, runs: &[(u64, u64)]) -> Append {
    let shard = ShardId(shard);
    let mut last = Seq(before);
    let mut segments = Vec::new();
    for &(epoch, entries) in runs {
        let mut writer = SegmentWriter::new(shard, Epoch(epoch), last);
        for _ in 0..entries {
            last = last.next();
            writer.push(&Entry { seq: last, log_time: LogTime(9), op: Op::Noop });
        }
        segments.extend(writer.take());
    }
    Append {
        shard,
        epoch: Epoch(9),
        version: 3,
        sent_at: 77,
        lease: true,
        prev: Position { epoch: Epoch(1), seq: Seq(before) },
        segments,
        committed: Seq(before),
    }
}

fn encoded(appends: &[Append]) -> Vec<u8> {
    let mut out = Vec::new();
    encode_appends(appends, &mut out);
    let bytes: usize = appends.iter().map(|append| check(append).unwrap()).sum();
    assert_eq!(out.len(), 1 + bytes, "the bytes are what was said");
    out
}

fn hex(bytes: &[u8]) -> String {
    let bytes: Vec<_> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    bytes.concat()
}

#[test]
fn the_encoding_is_pinned() {
    let golden = concat!(
        "02",                               // format
        "030000000900000000000000",         // shard, epoch
        "03000000000000004d00000000000000", // version, sent at
        "01",                               // lease
        "01000000000000000400000000000000", // prev
        "0400000000000000",                 // committed
        "01000000",                         // segments
        "02000000000000000500000000000000", // epoch, last
        "09000000",                         // length
        "02930509a44e6f6f70",               // the segment's own bytes
    );
    assert_eq!(hex(&encoded(&[append(3, 4, &[(2, 1)])])), golden);
    let answer = |what| Answer { shard: ShardId(3), epoch: Epoch(2), disk: DISK, what };
    let mut out = Vec::new();
    let gap = Told::Gap { sent_at: 6, last: Position { epoch: Epoch(1), seq: Seq(8) } };
    encode_answers(5, &[answer(Told::Holds { upto: Seq(4), version: 6 }), answer(gap)], &mut out);
    let golden = concat!(
        "020500000000000000",                 // format, heard
        "07070707070707070707070707070707",   // disk
        "030000000200000000000000",           // shard, epoch
        "0304000000000000000600000000000000", // holds, of which record
        "030000000200000000000000",           // shard, epoch
        "040600000000000000",                 // gap
        "01000000000000000800000000000000",   // where they may agree
    );
    assert_eq!(hex(&out), golden);
}

#[test]
fn what_may_not_be_sent_is_named() {
    let good = append(3, 4, &[(2, 1), (3, 2)]);
    assert!(check(&good).is_ok());
    let mut foreign = good.clone();
    foreign.segments[1].shard = ShardId(4);
    assert!(matches!(check(&foreign), Err(EncodeError::Shape { .. })));
    let mut hole = good.clone();
    hole.segments.remove(0);
    assert!(matches!(check(&hole), Err(EncodeError::Shape { .. })));
    let mut large = good.clone();
    large.segments[0].bytes = vec![1; limits::SEGMENT_BYTES_MAX + 1].into();
    let bytes_max = limits::SEGMENT_BYTES_MAX;
    assert_eq!(check(&large), Err(EncodeError::Size { bytes: bytes_max + 1, bytes_max }));
    let mut large = good;
    for segment in &mut large.segments {
        segment.bytes = vec![1; 9 << 20].into();
    }
    let bytes_max = APPEND_BYTES_MAX;
    assert!(
        matches!(check(&large), Err(EncodeError::Size { bytes_max: max, .. }) if max == bytes_max)
    );
}

#[test]
fn lies_about_places_are_refused() {
    let mut lie = append(3, 4, &[(2, 2)]);
    lie.segments[0].last = Seq(7);
    let decoded = decode_appends(&encoded(&[lie.clone()]));
    assert!(matches!(decoded, Err(DecodeError::Segment(SegmentError::Malformed { .. }))));
    lie.segments[0].last = Seq(5);
    let decoded = decode_appends(&encoded(&[lie.clone()]));
    assert!(matches!(decoded, Err(DecodeError::Segment(SegmentError::Trailing { .. }))));
    // Moved as a whole.
    lie.prev.seq = Seq(8);
    (lie.segments[0].first, lie.segments[0].last) = (Seq(9), Seq(10));
    let decoded = decode_appends(&encoded(&[lie]));
    assert!(matches!(decoded, Err(DecodeError::Segment(SegmentError::Order { .. }))));
    // At the end of all places.
    let mut end = append(3, u64::MAX - 1, &[]);
    end.segments.push(Segment {
        shard: ShardId(3),
        epoch: Epoch(2),
        first: Seq(u64::MAX),
        last: Seq(u64::MAX),
        bytes: Bytes::from_static(&[1]),
    });
    assert!(matches!(decode_appends(&encoded(&[end])), Err(DecodeError::Value { .. })));
}

#[test]
fn lengths_are_not_believed() {
    let good = encoded(&[append(3, 4, &[(2, 1)])]);
    let count_at = 1 + APPEND_HEAD_BYTES - 4;
    let mut many = good.clone();
    many[count_at..count_at + 4].fill(0xff);
    assert!(matches!(decode_appends(&many), Err(DecodeError::Cut)));
    let length_at = count_at + 4 + SEGMENT_HEAD_BYTES - 4;
    let mut long = good.clone();
    long[length_at..length_at + 4].fill(0xff);
    let decoded = decode_appends(&long);
    assert!(matches!(decoded, Err(DecodeError::Segment(SegmentError::Size { .. }))));
    let mut newer = good;
    newer[0] = FORMAT + 1;
    assert!(matches!(decode_appends(&newer), Err(DecodeError::Newer { found: 3 })));
    assert!(matches!(decode_answers(&newer), Err(DecodeError::Newer { found: 3 })));
}

fn appends() -> impl Strategy<Value = Vec<Append>> {
    let runs = prop::collection::vec((any::<u64>(), 1..6_u64), 0..4);
    let numbers = (any::<u32>(), any::<[u64; 5]>(), 0..u64::MAX / 2, any::<bool>());
    let one = (numbers, runs).prop_map(
        |((shard, [epoch, version, sent_at, wrote, committed], before, lease), runs)| {
            let append = append(shard, before, &runs);
            let prev = Position { epoch: Epoch(wrote), seq: Seq(before) };
            Append {
                epoch: Epoch(epoch),
                version,
                sent_at,
                lease,
                prev,
                committed: Seq(committed),
                ..append
            }
        },
    );
    prop::collection::vec(one, 0..6)
}

fn answers() -> impl Strategy<Value = Vec<Answer>> {
    let position =
        any::<[u64; 2]>().prop_map(|[epoch, seq]| Position { epoch: Epoch(epoch), seq: Seq(seq) });
    let told = prop_oneof![
        (any::<u64>(), any::<bool>())
            .prop_map(|(sent_at, promised)| Told::Heard { sent_at, promised }),
        any::<(u64, u64)>().prop_map(|(upto, version)| Told::Holds { upto: Seq(upto), version }),
        (any::<u64>(), position).prop_map(|(sent_at, last)| Told::Gap { sent_at, last }),
        any::<u64>().prop_map(|promised| Told::Fenced { promised: Epoch(promised) }),
    ];
    let one = (any::<u32>(), any::<u64>(), told).prop_map(|(shard, epoch, what)| Answer {
        shard: ShardId(shard),
        epoch: Epoch(epoch),
        disk: DISK,
        what,
    });
    prop::collection::vec(one, 0..20)
}

proptest! {
    #[test]
    fn appends_come_in_as_they_were(sent in appends()) {
        let arrived = decode_appends(&encoded(&sent)).unwrap();
        for one in &arrived {
            let segments = one.append.segments.iter();
            let entries: Vec<_> = segments.flat_map(|segment| segment.entries().unwrap()).collect();
            prop_assert_eq!(&one.entries, &entries);
        }
        let arrived: Vec<_> = arrived.into_iter().map(|one| one.append).collect();
        prop_assert_eq!(arrived, sent);
    }

    #[test]
    fn answers_come_in_as_they_were(heard: u64, sent in answers()) {
        let mut out = Vec::new();
        encode_answers(heard, &sent, &mut out);
        prop_assert!(out.len() <= 25 + sent.len() * ANSWER_BYTES_MAX);
        let arrived = decode_answers(&out).unwrap();
        prop_assert_eq!(arrived, Answers { heard, answers: sent });
    }

    #[test]
    fn any_bytes_decode_or_are_refused(mut bytes: Vec<u8>) {
        bytes.insert(0, FORMAT);
        if let Ok(arrived) = decode_appends(&bytes) {
            let appends: Vec<_> = arrived.into_iter().map(|one| one.append).collect();
            prop_assert_eq!(encoded(&appends), &bytes[..]);
        }
        if let Ok(Answers { heard, answers }) = decode_answers(&bytes) {
            let mut out = Vec::new();
            encode_answers(heard, &answers, &mut out);
            prop_assert_eq!(out, bytes);
        }
    }

    #[test]
    fn damaged_bytes_decode_or_are_refused(
        sent in appends(),
        at in any::<prop::sample::Index>(),
        byte: u8,
    ) {
        let mut bytes = encoded(&sent);
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(arrived) = decode_appends(&bytes) {
            for one in arrived {
                prop_assert!(check(&one.append).is_ok());
            }
        }
        bytes.truncate(at);
        if let Ok(arrived) = decode_appends(&bytes) {
            prop_assert!(arrived.len() <= sent.len());
        }
    }
}
