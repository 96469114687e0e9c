//! Damage: told, never served.

use super::tables::records::{Record, Written};
use super::*;

#[test]
fn a_rotten_row_is_a_typed_error_and_its_neighbours_are_served() {
    let rig = Rig::new();
    let running = rig.open();
    let rows = vec![row(1, "a", 1, "needle-in-the-hay"), row(1, "b", 2, "intact")];
    running.checkpoint(rows, &[(1, 2)]).unwrap();
    drop(running);
    let image = rig.disk.bytes_of(STATE_FILE);
    let needle = b"needle-in-the-hay";
    for at in (0..image.len() - needle.len()).filter(|&at| &image[at..at + needle.len()] == needle)
    {
        rig.disk.rot(STATE_FILE, at, 1);
    }
    let running = rig.open();
    assert_eq!(running.load(1, "a").unwrap_err().code(), "MS-1105");
    assert!(running.load(1, "b").unwrap().is_some());
    let range = (None, None);
    let slice = wait(|done| running.storage.state().digest(ShardId(1), range, 1 << 20, done));
    let seqs: Vec<_> = slice.unwrap().rows.iter().map(|row| row.seq).collect();
    assert_eq!(seqs, [Seq(0), Seq(2)], "a rotten row is one that no entry made");
}

#[test]
fn a_delta_for_other_bytes_ends_the_start() {
    for base in ["the state that is there", "another state than that"] {
        let rig = Rig::new();
        let running = rig.open();
        let there = format!("{} {}", "the state that is there", "x".repeat(200));
        let next = Bytes::from(format!("{there} and more"));
        let base = format!("{base} {}", "x".repeat(200));
        let fits = base == there;
        running.commit(1, one(1, 1, "a", &there));
        let mut entry = put(2, "a", "");
        let Op::Turn { change, .. } = &mut entry.op else { panic!() };
        *change = delta::change(Some(base.as_bytes()), &next);
        assert!(matches!(change, Change::Delta { .. }));
        running.commit(2, vec![segment(1, 1, &[entry])]);
        drop(running);
        match rig.recover() {
            Ok(found) => assert!(fits && found.shards[&ShardId(1)].dirty[0].bytes == next),
            Err(error) => assert!(!fits && error.code() == "MS-1105", "{error}"),
        }
    }
}

#[test]
fn holes_in_the_journal_end_the_start() {
    let hole = vec![one(1, 1, "a", "1"), one(1, 3, "a", "3")];
    let falling = vec![vec![segment(1, 2, &[put(1, "a", "1")])], one(1, 2, "a", "2")];
    let twice = vec![one(1, 1, "a", "1"), one(1, 1, "a", "1")];
    let mut garbled = one(1, 1, "a", "1");
    garbled[0].bytes = Bytes::from_static(&[FORMAT, 0xc1]);
    for segments in [hole, falling, twice, vec![garbled]] {
        let rig = Rig::new();
        drop(rig.open());
        for (segments, commit) in segments.into_iter().zip(1..) {
            let segments = segments.into_iter();
            let segments = segments.map(|segment| Written { under: segment.epoch, segment });
            let record = Record { segments: segments.collect(), ..Record::default() };
            let mut value = vec![0; record.len()];
            record.write(CommitNo(commit), &mut value);
            rig.put_record(commit, &value);
        }
        assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
    }
}

#[test]
fn what_the_next_start_would_refuse_is_not_written() {
    for wrong in [one(1, 3, "a", "3"), one(1, 1, "a", "1")] {
        let rig = Rig::new();
        let running = rig.open();
        running.commit(1, one(1, 1, "a", "1"));
        running.append(2, wrong);
        assert!(matches!(running.next_news(), JournalNews::Failed { ticket: 2, .. }));
        assert_eq!(running.stopped().code(), "MS-1105");
        drop(running);
        assert_eq!(rig.recover().unwrap().shards[&ShardId(1)].last, Seq(1));
    }
}

#[test]
fn a_missing_record_ends_the_start() {
    let rig = Rig::new();
    let running = rig.open();
    for n in 1..=3 {
        running.commit(n.into(), one(n, 1, "a", "1"));
    }
    drop(running);
    let database = rig.disk.open(JOURNAL_FILE, 1 << 20).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(tables::RECORDS).unwrap().remove(2).unwrap();
    txn.commit().unwrap();
    drop(database);
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
}

/// A row whose key rotted is under no name any more, and its entity was served as one that never
/// existed.
#[test]
fn a_rotten_key_is_no_entity_that_never_existed() {
    for (old, new) in [(b"k07", b"k99"), (b"k07", b"k00"), (b"k00", b"z00"), (b"k39", b"a39")] {
        let rig = Rig::new();
        let running = rig.open();
        let rows = (0..40).map(|n| row(1, &format!("k{n:02}"), n + 1, "state"));
        running.checkpoint(rows.collect(), &[(1, 40)]).unwrap();
        drop(running);
        let image = rig.disk.bytes_of(STATE_FILE);
        for at in (0..image.len() - 3).filter(|at| image[*at..*at + 3] == *old) {
            for (byte, (old, new)) in old.iter().zip(new).enumerate() {
                rig.disk.rot(STATE_FILE, at + byte, old ^ new);
            }
        }
        let running = rig.open();
        let name = std::str::from_utf8(old).unwrap();
        let refused = running.load(1, name);
        assert!(matches!(refused, Err(StorageError::Corrupt { .. })), "{name}: {refused:?}");
    }
}

/// Rot anywhere, in any page of both files: what is served is right, and what is not served is
/// refused with a type; nothing panics out of storage.
#[test]
fn rot_anywhere_is_never_served() {
    for seed in 0..60 {
        let rig = Rig::new();
        let running = rig.open();
        let rows = (0..40).map(|n| row(1, &format!("k{n:02}"), n + 1, &format!("state {n}")));
        running.checkpoint(rows.collect(), &[(1, 40)]).unwrap();
        running.commit(1, one(1, 41, "k00", "latest"));
        drop(running);
        let mut random = fastrand::Rng::with_seed(seed);
        let file = if seed % 3 == 0 { JOURNAL_FILE } else { STATE_FILE };
        let image = rig.disk.bytes_of(file);
        let used: Vec<_> = (0..image.len()).filter(|&at| image[at] != 0).collect();
        for _ in 0..random.usize(1..8) {
            rig.disk.rot(file, used[random.usize(0..used.len())], random.u8(1..));
        }
        let Ok(opened) = rig.try_open() else { continue };
        let running = start(opened);
        for n in 0..40 {
            if let Ok(found) = running.load(1, &format!("k{n:02}")) {
                let found = found.unwrap_or_else(|| panic!("seed {seed}: k{n:02} was stored"));
                assert_eq!(found.bytes, format!("state {n}").into_bytes(), "seed {seed}");
            }
        }
    }
}
