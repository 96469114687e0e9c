//! The tables: checkpoints, imports, drops, pages.

use mainstay_protocol::replication::audit::Slice;

use super::*;

#[test]
fn a_checkpointed_entity_is_loaded_and_no_other() {
    let rig = Rig::new();
    let running = rig.open();
    running.checkpoint(vec![row(1, "b", 2, "two"), row(1, "a", 1, "one")], &[(1, 2)]).unwrap();
    let expected = StoredState { bytes: Bytes::from_static(b"two"), seq: Seq(2) };
    assert_eq!(running.load(1, "b").unwrap(), Some(expected));
    assert_eq!(running.load(1, "c").unwrap(), None);
    assert_eq!(running.load(2, "b").unwrap(), None);
    drop(running);
    let running = rig.open();
    assert_eq!(running.load(1, "a").unwrap().unwrap().seq, Seq(1));
    let shard = &running.recovered.shards[&ShardId(1)];
    assert_eq!((shard.applied, shard.last, shard.dirty.len()), (Seq(2), Seq(2), 0));
}

#[test]
fn a_checkpoint_of_many_transactions_is_whole() {
    let rig = Rig::new();
    let running = rig.open();
    let big = "x".repeat(20_000);
    let rows = (0..500).map(|n| row(1, &format!("k{n:03}"), n + 1, &big)).collect();
    let syncs = rig.disk.counts().syncs;
    running.checkpoint(rows, &[(1, 500)]).unwrap();
    assert!(rig.disk.counts().syncs >= syncs + 3, "10 MB are more than two transactions");
    for n in [0, 250, 499] {
        assert!(running.load(1, &format!("k{n:03}")).unwrap().is_some());
    }
}

#[test]
fn rows_may_run_ahead_of_their_mark() {
    let rig = Rig::new();
    let running = rig.open();
    let entries = [put(1, "a", "a1"), put(2, "b", "b2"), put(3, "a", "a3")];
    running.commit(1, vec![segment(1, 1, &entries)]);
    running.commit(2, vec![segment(1, 1, &[put(4, "a", "a4")])]);
    running.checkpoint(vec![row(1, "a", 3, "a3")], &[(1, 1)]).unwrap();
    drop(running);
    let shard = rig.recover().unwrap().shards.remove(&ShardId(1)).unwrap();
    let dirty: Vec<_> =
        shard.dirty.iter().map(|row| (row.entity.key.as_str(), row.seq.0, row.commit.0)).collect();
    assert_eq!(dirty, [("a", 4, 2), ("b", 2, 1)], "the row holds entry 3 already");
    assert_eq!((shard.applied, shard.last), (Seq(1), Seq(4)));
}

#[test]
fn dedup_records_are_kept_until_they_are_forgotten() {
    let rig = Rig::new();
    let running = rig.open();
    running.commit(1, vec![segment(1, 1, &[keyed(1, "a", "k1"), keyed(2, "a", "k2")])]);
    let found = dedup_rows(&["k1", "k2"]);
    let batch = CheckpointBatch { dedup: found, shards: vec![mark(1, 2)], ..Default::default() };
    wait(|done| running.storage.state().checkpoint(batch, done)).unwrap();
    let forget = vec![(ShardId(1), entity("a"), IdempotencyKey::new("k1").unwrap())];
    let batch = CheckpointBatch { forget, ..Default::default() };
    wait(|done| running.storage.state().checkpoint(batch, done)).unwrap();
    drop(running);
    let shard = rig.recover().unwrap().shards.remove(&ShardId(1)).unwrap();
    let keys: Vec<_> = shard.dedup.iter().map(|(_, _, record)| record.key.as_str()).collect();
    assert_eq!(keys, ["k2"]);
}

fn dedup_rows(keys: &[&str]) -> Vec<DedupRow> {
    let rows = keys.iter().zip(1..).map(|(key, seq)| {
        let Op::Turn { entity, dedup: Some(record), .. } = keyed(seq, "a", key).op else {
            panic!()
        };
        DedupRow { shard: ShardId(1), entity, log_time: LogTime(seq), record }
    });
    rows.collect()
}

#[test]
fn an_import_is_seen_as_a_whole_or_not_at_all() {
    let rig = Rig::new();
    let running = rig.open();
    let state = running.storage.state();
    running.commit(1, one(1, 1, "old", "1"));
    running.checkpoint(vec![row(1, "old", 1, "1")], &[(1, 1)]).unwrap();
    running.commit(2, one(1, 2, "old", "2"));

    let import = |begin, key: &str| ImportBatch {
        shard: ShardId(1),
        generation: Generation(5),
        begin,
        rows: vec![row(1, key, 40, "new")],
        dedup: dedup_rows(&["k1"]),
    };
    wait(|done| state.import(import(true, "stale"), done)).unwrap();
    wait(|done| state.import(import(true, "x"), done)).unwrap();
    wait(|done| state.import(import(false, "y"), done)).unwrap();
    assert!(running.load(1, "x").unwrap().is_none(), "it is not live yet");
    assert!(running.load(1, "old").unwrap().is_some());
    let activate = mark(1, 50);
    let rows = CopyRows { states: 2, dedup: 2 };
    wait(|done| state.activate_generation(activate, Generation(5), rows, done)).unwrap();
    assert_eq!(running.load(1, "y").unwrap().unwrap().seq, Seq(40));
    let opened = wait(|done| state.open_shard(ShardId(1), done)).unwrap();
    assert_eq!(
        (opened.applied.seq, opened.log_time, opened.epoch),
        (Seq(50), LogTime(50), Epoch(1))
    );
    let keys: Vec<_> = opened.dedup.iter().map(|(_, _, record)| record.key.as_str()).collect();
    assert_eq!(keys, ["k1"]);
    for gone in ["old", "stale"] {
        assert!(running.load(1, gone).unwrap().is_none());
    }
    let live = wait(|done| state.import(import(true, "z"), done)).unwrap_err();
    assert!(matches!(live, StorageError::GenerationLive { .. }));
    running.commit(3, one(1, 51, "x", "newer"));
    drop(running);

    let shard = rig.recover().unwrap().shards.remove(&ShardId(1)).unwrap();
    assert_eq!((shard.applied, shard.last), (Seq(50), Seq(51)));
    assert_eq!(shard.dirty.len(), 1, "what the journal holds of the earlier stay is not replayed");
}

/// A shard that was dropped while a copy of it arrived took the copy's first rows with it, and the
/// rest of the copy became the live one.
#[test]
fn a_copy_that_lost_rows_is_never_activated() {
    let rig = Rig::new();
    let running = rig.open();
    let state = running.storage.state();
    running.checkpoint(vec![row(1, "old", 1, "1")], &[(1, 1)]).unwrap();
    let import = |begin, key: &str| {
        let (shard, generation) = (ShardId(1), Generation(5));
        let rows = vec![row(1, key, 40, "new")];
        let batch = ImportBatch { shard, generation, begin, rows, dedup: vec![] };
        wait(|done| state.import(batch, done))
    };
    let activate = |states| {
        let rows = CopyRows { states, dedup: 0 };
        wait(|done| state.activate_generation(mark(1, 50), Generation(5), rows, done))
    };
    let lost = |result| assert!(matches!(result, Err(StorageError::CopyIncomplete { .. })));

    lost(import(false, "no beginning"));
    import(true, "x").unwrap();
    wait(|done| state.drop_shard(ShardId(1), done)).unwrap();
    lost(import(false, "y"));
    lost(activate(1));
    assert_eq!(running.load(1, "x").unwrap(), None);

    import(true, "x").unwrap();
    import(false, "y").unwrap();
    lost(activate(3));
    activate(2).unwrap();
    assert!(running.load(1, "x").unwrap().is_some() && running.load(1, "y").unwrap().is_some());
}

#[test]
fn an_unfinished_import_is_swept_by_the_next_start() {
    let rig = Rig::new();
    let running = rig.open();
    let batch = ImportBatch {
        shard: ShardId(9),
        generation: Generation(3),
        begin: true,
        rows: vec![row(9, "half", 1, "half")],
        dedup: dedup_rows(&["k1"])
            .into_iter()
            .map(|row| DedupRow { shard: ShardId(9), ..row })
            .collect(),
    };
    wait(|done| running.storage.state().import(batch, done)).unwrap();
    drop(running);
    let running = rig.open();
    assert!(running.recovered.shards.is_empty());
    drop(running);
    assert_eq!(rows_of(&rig), 0);
}

fn rows_of(rig: &Rig) -> u64 {
    use redb::{ReadableDatabase, ReadableTableMetadata};
    let database = rig.disk.open(STATE_FILE, 1 << 20).unwrap();
    let txn = database.begin_read().unwrap();
    txn.open_table(ENTITIES).unwrap().len().unwrap()
        + txn.open_table(tables::DEDUP).unwrap().len().unwrap()
}

#[test]
fn a_dropped_shard_is_gone_and_may_begin_anew() {
    let rig = Rig::new();
    let running = rig.open();
    running.commit(1, one(1, 1, "a", "1"));
    running.checkpoint(vec![row(1, "a", 1, "1")], &[(1, 1)]).unwrap();
    running.commit(2, one(1, 2, "a", "2"));
    wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap();
    assert_eq!(running.load(1, "a").unwrap(), None);
    drop(running);
    assert_eq!(rows_of(&rig), 0);
    let running = rig.open();
    let found = &running.recovered.shards[&ShardId(1)];
    assert!(!found.is_stored(), "the journal's old segments are not replayed");
    running.commit(3, one(1, 1, "b", "new"));
    running.checkpoint(vec![row(1, "b", 1, "new")], &[]).unwrap();
    assert!(running.load(1, "b").unwrap().is_some());
    drop(running);
    let running = rig.open();
    assert_eq!(running.recovered.shards[&ShardId(1)].last, Seq(1));
    assert!(running.load(1, "b").unwrap().is_some());
}

/// A crash between a drop and the removal of its rows left them for the next start, which took them
/// for newer than what the shard wrote when it came back: an acknowledged write was lost.
#[test]
fn a_shard_that_comes_back_never_sees_rows_of_its_earlier_stay() {
    let rig = Rig::new();
    let running = rig.open();
    running.checkpoint(vec![row(1, "a", 9, "old")], &[(1, 9)]).unwrap();
    wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap();
    running.commit(1, one(1, 1, "a", "new"));
    drop(running);
    let key = tables::entity_key(ShardId(1), Generation::default(), &entity("a"));
    let mut value = Vec::new();
    tables::write_entity(&key, Seq(9), b"old", &mut value);
    let database = rig.disk.open(STATE_FILE, 1 << 20).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(ENTITIES).unwrap().insert(key.as_slice(), value.as_slice()).unwrap();
    txn.commit().unwrap();
    drop(database);

    let shard = rig.recover().unwrap().shards.remove(&ShardId(1)).unwrap();

    assert_eq!(shard.dirty.len(), 1);
    assert_eq!(shard.dirty[0].bytes, "new");
}

#[test]
fn exports_and_scans_page_through_everything_once() {
    let rig = Rig::new();
    let running = rig.open();
    let state = running.storage.state();
    let mut rows = Vec::new();
    for n in 0..30 {
        rows.push(row(n % 3, &format!("user/{n:02}"), 1, "0123456789"));
        rows.push(row(n % 3, &format!("order/{n:02}"), 1, "x"));
    }
    running.checkpoint(rows.clone(), &[]).unwrap();

    let mut exported = Vec::new();
    loop {
        let after = exported.last().map(|row: &StateRow| row.entity.clone());
        let page = wait(|done| state.export(ShardId(1), after, 100, done)).unwrap();
        exported.extend(page.rows);
        if page.last {
            break;
        }
    }
    let mut expected: Vec<_> = rows.into_iter().filter(|row| row.shard == ShardId(1)).collect();
    expected.sort_by(|a, b| a.entity.cmp(&b.entity));
    assert_eq!(exported, expected);

    let (mut found, mut next) = (Vec::new(), None);
    loop {
        let prefix = "user/".to_owned();
        let scan = Scan { kind: KindId(7), prefix, after: next, limit: 4 };
        let page = wait(|done| state.scan(scan, done)).unwrap();
        found.extend(page.rows.into_iter().map(|row| row.key.as_str().to_owned()));
        next = page.next;
        if next.is_none() {
            break;
        }
    }
    found.sort();
    let all: Vec<_> = (0..30).map(|n| format!("user/{n:02}")).collect();
    assert_eq!(found, all);
    let scan = Scan { kind: KindId(8), prefix: String::new(), after: None, limit: 4 };
    let none = wait(|done| state.scan(scan, done)).unwrap();
    assert_eq!(none, ScanPage::default());
}

#[test]
fn dedup_records_are_exported_page_by_page_with_the_mark_of_that_moment() {
    let rig = Rig::new();
    let running = rig.open();
    let state = running.storage.state();
    let page = |after| wait(|done| state.export_dedup(ShardId(1), after, 1, done)).unwrap();
    let nothing = DedupPage { rows: Vec::new(), last: true, mark: None };
    assert_eq!(page(None), nothing);
    let names: Vec<_> = (0..20).map(|n| format!("k{n:02}")).collect();
    let names: Vec<_> = names.iter().map(String::as_str).collect();
    let batch = CheckpointBatch {
        dedup: dedup_rows(&names),
        shards: vec![mark(1, 20)],
        ..Default::default()
    };
    wait(|done| state.checkpoint(batch, done)).unwrap();

    let mut exported: Vec<DedupRow> = Vec::new();
    let whole = loop {
        let after = exported.last().map(|row| (row.entity.clone(), row.record.key.clone()));
        let page = page(after);
        exported.extend(page.rows);
        if page.last {
            break page.mark;
        }
    };
    assert_eq!(exported, dedup_rows(&names));
    assert_eq!(whole, Some(mark(1, 20)));

    wait(|done| state.drop_shard(ShardId(1), done)).unwrap();
    assert_eq!(page(None), nothing, "nothing is stored any more");
    let back = vec![row(1, "a", 1, "anew")];
    running.checkpoint(back, &[]).unwrap();
    assert_eq!(
        page(None).mark.map(|mark| mark.applied),
        Some(Position::default()),
        "it begins anew"
    );
}

/// After one failed operation the database refuses all others; the node went on for ever without.
#[test]
fn a_state_that_cannot_be_written_stops_the_node() {
    let rig = Rig::new();
    let running = rig.open();
    running.commit(1, one(1, 1, "a", "1"));
    rig.disk.set_faults(Faults { syncs_left: Some(0), file: STATE_FILE, ..Faults::default() });
    running.checkpoint(vec![row(1, "a", 1, "1")], &[(1, 1)]).unwrap_err();
    let StorageError::Io { file, .. } = running.stopped() else { panic!() };
    assert_eq!(file, STATE_FILE);
    assert!(!running.storage.journal().writable());
    rig.disk.set_faults(Faults::default());
    running.checkpoint(vec![row(1, "a", 1, "1")], &[(1, 1)]).unwrap_err();
    assert!(running.other.try_recv().is_err(), "it is told once");
    running.commit(2, one(1, 2, "a", "2"));
}

/// A disk whose files are read anew every time.
#[derive(Debug)]
struct Uncached(FaultDisk);

impl Disk for Uncached {
    fn exists(&self, file: &str) -> bool {
        self.0.exists(file)
    }

    fn open(&self, file: &str, _: usize) -> Result<Database, redb::DatabaseError> {
        self.0.open(file, 0)
    }
}

#[test]
fn a_state_that_cannot_be_read_stops_the_node() {
    let rig = Rig::new();
    let config = config::Storage { reserve_bytes: 0, ..config::Config::default().storage };
    let disk = Uncached(rig.disk.clone());
    let running = start(open_on(&disk, &config, rig.dir.path(), None).unwrap());
    running.checkpoint(vec![row(1, "a", 1, "1")], &[(1, 1)]).unwrap();
    assert!(running.load(1, "a").unwrap().is_some());
    rig.disk.set_faults(Faults { reads_left: Some(0), file: STATE_FILE, ..Faults::default() });
    let read = running.load(1, "a");
    assert!(matches!(read, Err(StorageError::Io { .. })), "{read:?}");
    running.stopped();
    assert!(!running.storage.journal().writable());
}

/// A drop was refused with the disk full of what it would have removed.
#[test]
fn a_shard_is_dropped_within_the_reserve() {
    let rig = Rig::new();
    let free = Arc::new(AtomicU64::new(1 << 30));
    let seen = Arc::clone(&free);
    let mut opened = rig.try_open().unwrap();
    opened.reserve = Reserve::new(Box::new(move || Ok(seen.load(Ordering::Relaxed))), 100 << 20);
    let running = start(opened);
    running.checkpoint(vec![row(1, "a", 1, "1")], &[(1, 1)]).unwrap();
    free.store(50 << 20, Ordering::Relaxed);
    running.checkpoint(vec![row(1, "a", 2, "2")], &[(1, 2)]).unwrap_err();
    wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap();
    assert_eq!(running.load(1, "a").unwrap(), None);
    free.store(0, Ordering::Relaxed);
    let refused = wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap_err();
    assert_eq!(refused.code(), "MS-1104", "but not without a single page");
}

#[test]
fn a_slice_says_which_entry_made_each_row_and_how_far_the_tables_are() {
    let rig = Rig::new();
    let running = rig.open();
    let digest = |after: Option<&str>, upto: Option<&str>, bytes| {
        let range = (after.map(entity), upto.map(entity));
        wait(|done| running.storage.state().digest(ShardId(1), range, bytes, done)).unwrap()
    };
    assert_eq!(digest(None, None, 1), Slice { upto: None, applied: Seq(0), rows: vec![] });
    let rows = ["a", "b", "c", "d"].into_iter().zip(1..);
    let rows = rows.map(|(key, seq)| row(1, key, seq, key)).collect();
    running.checkpoint(rows, &[(1, 3)]).unwrap();
    let all = digest(None, None, 1 << 20);
    let seqs: Vec<_> = all.rows.iter().map(|row| (row.entity.key.as_str(), row.seq.0)).collect();
    assert_eq!(seqs, [("a", 1), ("b", 2), ("c", 3), ("d", 4)], "rows may be ahead of the mark");
    assert_eq!((all.applied, &all.upto), (Seq(3), &None));
    assert_eq!(all.rows[1].hash, xxhash_rust::xxh3::xxh3_64(b"b"));
    let part = digest(Some("a"), Some("c"), 1 << 20);
    assert_eq!((&part.rows[..], part.upto), (&all.rows[1..3], Some(entity("c"))));
    let page = digest(Some("a"), Some("d"), 1);
    assert_eq!((&page.rows[..], page.upto), (&all.rows[1..2], Some(entity("b"))), "a page of it");
    assert_eq!(digest(Some("c"), Some("c"), 1).rows, []);
    wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap();
    assert_eq!(digest(None, None, 1), Slice { upto: None, applied: Seq(0), rows: vec![] });
}
