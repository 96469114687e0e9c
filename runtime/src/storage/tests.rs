//! Journal, state and recovery together, on a disk that misbehaves on demand.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::entry::{
    Change, DedupRecord, Entry, FORMAT, Op, Segment, SegmentWriter, StoredReply,
};
use mainstay_protocol::id::{
    CommitNo, EntityId, Epoch, IdempotencyKey, Key, KindId, MethodId, Seq, ShardId,
};
use mainstay_protocol::replication::delta;
use mainstay_protocol::time::LogTime;
use tempfile::TempDir;

use super::fault::{FaultDisk, Faults};
use super::tables::{ABOUT, ABOUT_FORMAT, ENTITIES};
use super::*;

mod crash;

/// A disk, the directory of its identity, and what comes with opening it.
struct Rig {
    disk: FaultDisk,
    dir: TempDir,
}

struct Running {
    storage: Storage,
    recovered: Recovered,
    news: Receiver<JournalNews>,
}

impl Rig {
    fn new() -> Self {
        Self { disk: FaultDisk::new(), dir: tempfile::tempdir().unwrap() }
    }

    fn try_open(&self) -> Result<Opened, OpenError> {
        let config = config::Storage { reserve_bytes: 0, ..config::Config::default().storage };
        open_on(&self.disk, &config, self.dir.path(), None)
    }

    fn open(&self) -> Running {
        start(self.try_open().unwrap())
    }

    /// Opens and recovers only.
    fn recover(&self) -> Result<Recovered, OpenError> {
        self.try_open().map(|opened| opened.recovery.recovered)
    }
}

fn start(opened: Opened) -> Running {
    let (send, news) = sync_channel(4096);
    // a test that has seen enough hangs up
    let notify = Arc::new(move |told| drop(send.send(told)));
    let (storage, recovered) = opened.start(notify).unwrap();
    Running { storage, recovered, news }
}

impl Running {
    fn append(&self, ticket: u64, segments: Vec<Segment>) {
        self.storage.journal().append(Batch { lane: 0, ticket, segments });
    }

    fn next_news(&self) -> JournalNews {
        self.news.recv_timeout(Duration::from_secs(20)).expect("news of every batch")
    }

    /// Appends, and waits until it is durable.
    fn commit(&self, ticket: u64, segments: Vec<Segment>) -> CommitNo {
        self.append(ticket, segments);
        match self.next_news() {
            JournalNews::Committed { ticket: told, commit, .. } if told == ticket => commit,
            other => panic!("{other:?}"),
        }
    }

    fn checkpoint(&self, rows: Vec<StateRow>, marks: &[(u32, u64)]) -> Result<(), StorageError> {
        let shards = marks.iter().map(|&(shard, applied)| mark(shard, applied)).collect();
        let batch = CheckpointBatch { rows, shards, ..CheckpointBatch::default() };
        wait(|done| self.storage.state().checkpoint(batch, done))
    }

    fn load(&self, shard: u32, key: &str) -> Result<Option<StoredState>, StorageError> {
        wait(|done| self.storage.state().load(ShardId(shard), entity(key), done))
    }
}

fn wait<T: Send + 'static>(ask: impl FnOnce(Done<T>)) -> Result<T, StorageError> {
    let (send, answer) = sync_channel(1);
    ask(Box::new(move |result| drop(send.send(result))));
    answer.recv_timeout(Duration::from_secs(20)).expect("an answer to every call")
}

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(7), key: Key::new(key).unwrap() }
}

fn mark(shard: u32, applied: u64) -> ShardMark {
    let (shard, applied) = (ShardId(shard), Seq(applied));
    ShardMark { shard, applied, log_time: LogTime(applied.0), epoch: Epoch(1) }
}

fn row(shard: u32, key: &str, seq: u64, bytes: &str) -> StateRow {
    let bytes = Bytes::copy_from_slice(bytes.as_bytes());
    StateRow { shard: ShardId(shard), entity: entity(key), seq: Seq(seq), bytes }
}

fn put(seq: u64, key: &str, bytes: &str) -> Entry {
    let change = Change::Put(Bytes::copy_from_slice(bytes.as_bytes()));
    let op = Op::Turn { entity: entity(key), change, dedup: None };
    Entry { seq: Seq(seq), log_time: LogTime(seq), op }
}

fn keyed(seq: u64, key: &str, idempotency: &str) -> Entry {
    let record = DedupRecord {
        key: IdempotencyKey::new(idempotency).unwrap(),
        method: MethodId(1),
        payload_hash: seq,
        reply: StoredReply::Value(Bytes::from_static(b"ok")),
    };
    let op = Op::Turn { entity: entity(key), change: Change::None, dedup: Some(record) };
    Entry { seq: Seq(seq), log_time: LogTime(seq), op }
}

fn segment(shard: u32, epoch: u64, entries: &[Entry]) -> Segment {
    let before = Seq(entries[0].seq.0 - 1);
    let mut writer = SegmentWriter::new(ShardId(shard), Epoch(epoch), before);
    for entry in entries {
        writer.push(entry);
    }
    writer.take().unwrap()
}

fn one(shard: u32, seq: u64, key: &str, bytes: &str) -> Vec<Segment> {
    vec![segment(shard, 1, &[put(seq, key, bytes)])]
}

fn eventually(what: &str, fact: impl Fn() -> bool) {
    for _ in 0..500 {
        if fact() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not in five seconds: {what}");
}

// -- the directory --

#[test]
fn a_directory_keeps_its_identity_and_every_start_is_later() {
    let dir = tempfile::tempdir().unwrap();
    let config = config::Config::default().storage;
    let name = NodeId::new("n1").unwrap();
    let cluster = ClusterId::from_bytes([4; 16]);
    let first = start(open(&config, dir.path(), Some(&name)).unwrap());
    let before = first.storage.identity();
    first.storage.set_cluster(cluster).unwrap();
    let other = first.storage.set_cluster(ClusterId::from_bytes([5; 16])).unwrap_err();
    assert_eq!(other.code(), "MS-1203");
    assert_eq!(open(&config, dir.path(), None).unwrap_err().code(), "MS-1102");
    first.storage.close();

    let again = open(&config, dir.path(), None).unwrap().identity;
    assert_eq!((again.node, again.disk, again.cluster), (name, before.disk, Some(cluster)));
    assert!(again.boot > before.boot);
    let other = NodeId::new("n2").unwrap();
    assert_eq!(open(&config, dir.path(), Some(&other)).unwrap_err().code(), "MS-1103");
}

#[test]
fn a_missing_file_is_noticed_and_not_made_anew() {
    for file in [JOURNAL_FILE, STATE_FILE] {
        let rig = Rig::new();
        rig.open().commit(1, one(0, 1, "a", "1"));
        rig.disk.remove(file);
        for _ in 0..2 {
            assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
        }
    }
    let rig = Rig::new();
    rig.open().commit(1, one(0, 1, "a", "1"));
    std::fs::remove_file(rig.dir.path().join("identity")).unwrap();
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
}

#[test]
fn a_file_of_a_newer_build_is_refused() {
    let rig = Rig::new();
    drop(rig.open());
    let database = rig.disk.open(STATE_FILE, 1 << 20).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(ABOUT).unwrap().insert(ABOUT_FORMAT, tables::FORMAT + 1).unwrap();
    txn.commit().unwrap();
    drop(database);
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1106");
}

// -- the journal --

#[test]
fn what_was_told_durable_is_there_after_a_restart() {
    let rig = Rig::new();
    let running = rig.open();
    assert_eq!(running.commit(1, one(3, 1, "a", "first")), CommitNo(1));
    let both = vec![segment(3, 1, &[put(2, "a", "second"), keyed(3, "a", "pay-1")])];
    assert_eq!(running.commit(2, both), CommitNo(2));
    running.storage.close();

    let recovered = rig.recover().unwrap();
    assert_eq!((recovered.next_commit, recovered.replayed_records), (CommitNo(3), 2));
    let shard = &recovered.shards[&ShardId(3)];
    assert_eq!((shard.last, shard.applied, shard.log_time), (Seq(3), Seq(0), LogTime(3)));
    let bytes = Bytes::from_static(b"second");
    let dirty = DirtyRow { entity: entity("a"), bytes, seq: Seq(2), commit: CommitNo(1) };
    assert_eq!(shard.dirty, [dirty]);
    assert_eq!(shard.dedup.len(), 1);
    assert_eq!(shard.dedup[0].2.key.as_str(), "pay-1");
}

#[test]
fn what_queues_during_a_commit_shares_the_next() {
    let rig = Rig::new();
    let running = rig.open();
    rig.disk.set_faults(Faults { sync_takes: Duration::from_millis(50), ..Faults::default() });
    for ticket in 1..=20 {
        running.append(ticket, one(0, ticket, "a", "x"));
    }
    let mut commits = Vec::new();
    for expected in 1..=20 {
        let JournalNews::Committed { ticket, commit, .. } = running.next_news() else { panic!() };
        assert_eq!(ticket, expected, "news come in the order of the appends");
        commits.push(commit);
    }
    commits.dedup();
    assert!(commits.len() <= 3, "{commits:?}");
}

#[test]
fn a_failed_commit_stops_the_journal_for_good() {
    let rig = Rig::new();
    let running = rig.open();
    running.commit(1, one(0, 1, "a", "kept"));
    rig.disk.set_faults(Faults { syncs_left: Some(0), ..Faults::default() });
    running.append(2, one(0, 2, "a", "unknown"));
    assert!(matches!(running.next_news(), JournalNews::Failed { ticket: 2, .. }));
    rig.disk.set_faults(Faults::default());
    running.append(3, one(0, 3, "a", "never"));
    let JournalNews::Failed { ticket: 3, error, .. } = running.next_news() else { panic!() };
    assert_eq!(error.code(), "MS-1103");
    assert!(!running.storage.journal().writable());
    drop(running);
    let last = rig.recover().unwrap().shards[&ShardId(0)].last;
    assert!(last == Seq(1) || last == Seq(2), "what failed is unknown, what came later is not");
}

#[test]
fn closing_waits_for_what_was_queued() {
    let rig = Rig::new();
    let running = rig.open();
    rig.disk.set_faults(Faults { sync_takes: Duration::from_millis(20), ..Faults::default() });
    for ticket in 1..=50 {
        running.append(ticket, one(0, ticket, "a", "x"));
    }
    let journal = running.storage.journal().clone();
    running.storage.close();
    let told: Vec<_> = running.news.try_iter().collect();
    assert_eq!(told.len(), 50);
    assert!(told.iter().all(|news| matches!(news, JournalNews::Committed { .. })));
    journal.append(Batch { lane: 0, ticket: 51, segments: Vec::new() });
    let late = running.news.try_recv().unwrap();
    assert!(matches!(late, JournalNews::Failed { error: StorageError::Closed, .. }));
    assert_eq!(rig.recover().unwrap().shards[&ShardId(0)].last, Seq(50));
}

#[test]
fn the_journal_is_cut_behind_the_marks_only() {
    let rig = Rig::new();
    let running = rig.open();
    let journal = running.storage.journal().clone();
    running.commit(1, one(1, 1, "a", "a1"));
    running.commit(2, one(2, 1, "b", "b1"));
    for seq in 2..=100 {
        running.commit(seq + 1, one(1, seq, "a", &format!("a{seq}")));
    }
    let full = journal.journal_bytes();
    running.checkpoint(vec![row(1, "a", 100, "a100")], &[(1, 100)]).unwrap();
    eventually("all before shard 2 is cut", || journal.journal_bytes() < full);
    assert_eq!(journal.pins(), [ShardId(2)]);
    running.commit(102, one(1, 101, "a", "a101"));
    drop(running);

    let running = rig.open();
    let found = &running.recovered;
    assert_eq!(
        (found.shards[&ShardId(1)].last, found.shards[&ShardId(2)].last),
        (Seq(101), Seq(1))
    );
    assert_eq!(found.replayed_records, 101, "record 1 alone was before shard 2's");
    running.checkpoint(vec![row(2, "b", 1, "b1")], &[(1, 100), (2, 1)]).unwrap();
    let journal = running.storage.journal();
    eventually("one record is left", || journal.journal_bytes() < full / 50);
    assert_eq!(journal.pins(), [ShardId(1)]);
    let next = journal.next_commit();
    drop(running);
    assert_eq!(rig.recover().unwrap().next_commit, next);
}

#[test]
fn a_mark_that_is_not_durable_yet_lets_nothing_go() {
    let rig = Rig::new();
    let mut opened = rig.try_open().unwrap();
    opened.steps.cut_least = 1;
    let running = start(opened);
    running.commit(1, one(1, 1, "a", "1"));
    let slow = Duration::from_secs(1);
    rig.disk.set_faults(Faults { sync_takes: slow, slow_file: STATE_FILE, ..Faults::default() });
    let (rows, shards) = (vec![row(1, "a", 1, "1")], vec![mark(1, 1)]);
    let batch = CheckpointBatch { rows, shards, ..CheckpointBatch::default() };
    let (send, done) = sync_channel(1);
    running.storage.state().checkpoint(batch, Box::new(move |result| drop(send.send(result))));
    std::thread::sleep(Duration::from_millis(200));
    running.commit(2, one(2, 1, "b", "1"));
    running.commit(3, one(2, 2, "b", "2"));
    assert!(done.try_recv().is_err(), "the checkpoint is still being synced");
    assert_eq!(running.storage.journal().pins(), [ShardId(1)]);
    done.recv().unwrap().unwrap();
    rig.disk.set_faults(Faults::default());
    eventually("record 1 is done with", || running.storage.journal().pins() == [ShardId(2)]);
}

#[test]
fn a_commit_that_hangs_shows_as_age() {
    let rig = Rig::new();
    let running = rig.open();
    let journal = running.storage.journal();
    running.commit(1, one(1, 1, "a", "1"));
    assert_eq!(journal.stalled_for(clock::now()), Duration::ZERO);
    let slow = Duration::from_secs(1);
    rig.disk.set_faults(Faults { sync_takes: slow, slow_file: JOURNAL_FILE, ..Faults::default() });
    running.append(2, one(1, 2, "a", "2"));
    eventually("it shows", || journal.stalled_for(clock::now()) > Duration::from_millis(200));
    running.next_news();
    eventually("it is over", || journal.stalled_for(clock::now()) == Duration::ZERO);
}

#[test]
fn a_journal_that_is_too_long_names_who_pins_it() {
    let rig = Rig::new();
    let mut opened = rig.try_open().unwrap();
    opened.journal_bytes = 2_000;
    let running = start(opened);
    let journal = running.storage.journal();
    running.commit(1, one(2, 1, "b", "1"));
    running.commit(2, one(1, 1, "a", "1"));
    assert_eq!(journal.overdue(), [], "it is short");
    running.commit(3, one(1, 2, "a", &"x".repeat(2_000)));
    assert_eq!(journal.overdue(), [ShardId(2)], "its record is the oldest");
    running.checkpoint(vec![row(2, "b", 1, "1")], &[(2, 1)]).unwrap();
    assert_eq!(journal.overdue(), [ShardId(1)], "then the next one's, cut or not");
    running.checkpoint(vec![row(1, "a", 2, "2")], &[(1, 2)]).unwrap();
    assert_eq!(journal.overdue(), []);
}

#[test]
fn below_the_reserve_commits_wait_and_then_go_on() {
    let rig = Rig::new();
    let free = Arc::new(AtomicU64::new(1 << 30));
    let seen = Arc::clone(&free);
    let mut opened = rig.try_open().unwrap();
    opened.reserve = Reserve::new(Box::new(move || Ok(seen.load(Ordering::Relaxed))), 100 << 20);
    let running = start(opened);
    let journal = running.storage.journal();
    running.commit(1, one(0, 1, "a", "1"));
    free.store(50 << 20, Ordering::Relaxed);
    running.append(2, one(0, 2, "a", "2"));
    eventually("the door closes", || !journal.writable());
    let refused = running.checkpoint(vec![row(0, "a", 1, "1")], &[(0, 1)]).unwrap_err();
    assert_eq!(refused.code(), "MS-1104");
    assert!(running.news.recv_timeout(Duration::from_millis(500)).is_err(), "it waits");
    free.store(1 << 30, Ordering::Relaxed);
    assert!(matches!(running.next_news(), JournalNews::Committed { ticket: 2, .. }));
    assert!(journal.writable());
    running.checkpoint(vec![row(0, "a", 2, "2")], &[(0, 2)]).unwrap();
}

#[test]
fn a_batch_that_waits_for_space_is_failed_when_the_journal_closes() {
    let rig = Rig::new();
    let mut opened = rig.try_open().unwrap();
    opened.reserve = Reserve::new(Box::new(|| Ok(0)), 1);
    let running = start(opened);
    running.append(1, one(0, 1, "a", "1"));
    running.storage.close();
    let JournalNews::Failed { ticket: 1, error, .. } = running.news.try_recv().unwrap() else {
        panic!()
    };
    assert_eq!(error.code(), "MS-1104");
    assert!(rig.recover().unwrap().shards.is_empty());
}

#[test]
fn a_full_disk_stops_the_journal_and_loses_nothing() {
    let rig = Rig::new();
    let running = rig.open();
    running.commit(1, one(0, 1, "a", "1"));
    rig.disk.set_faults(Faults { writes_left: Some(1), ..Faults::default() });
    running.append(2, one(0, 2, "a", &"2".repeat(100_000)));
    assert!(matches!(running.next_news(), JournalNews::Failed { ticket: 2, .. }));
    drop(running);
    rig.disk.set_faults(Faults::default());
    assert_eq!(rig.recover().unwrap().shards[&ShardId(0)].last, Seq(1));
}

// -- the state --

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
    assert_eq!((opened.applied, opened.log_time, opened.epoch), (Seq(50), LogTime(50), Epoch(1)));
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
    assert!(running.recovered.shards.is_empty(), "the journal's old segments are not replayed");
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

// -- damage --

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
        let running = rig.open();
        for (segments, ticket) in segments.into_iter().zip(1..) {
            running.commit(ticket, segments);
        }
        drop(running);
        assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
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
