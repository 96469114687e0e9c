//! The journal: what is durable, when it is cut, and how it stops.

use super::*;

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
    let (writer, segments, promises) = (Writer::Standbys, Vec::new(), BTreeMap::new());
    journal.append(Batch { writer, ticket: 51, segments, promises });
    let late = running.news.try_recv().unwrap();
    assert_eq!(late.writer(), Writer::Standbys);
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
    rig.disk.set_faults(Faults { sync_takes: slow, file: STATE_FILE, ..Faults::default() });
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
    rig.disk.set_faults(Faults { sync_takes: slow, file: JOURNAL_FILE, ..Faults::default() });
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

/// Only a batch that failed told the node: one without writes went on without a journal.
#[test]
fn a_journal_that_stops_while_it_idles_says_so() {
    let rig = Rig::new();
    let running = rig.open();
    for seq in 1..=3 {
        running.commit(seq, one(1, seq, "a", "x"));
    }
    rig.disk.set_faults(Faults { syncs_left: Some(0), file: JOURNAL_FILE, ..Faults::default() });
    running.checkpoint(vec![row(1, "a", 3, "x")], &[(1, 3)]).unwrap();
    let StorageError::Io { file, .. } = running.stopped() else { panic!() };
    assert_eq!(file, JOURNAL_FILE);
    assert!(!running.storage.journal().writable());
    assert!(running.news.try_recv().is_err(), "no batch was under way");
}

/// A lane with turns to run has nothing in the journal that wakes it when others filled the queue.
#[test]
fn that_there_is_room_again_is_told() {
    let rig = Rig::new();
    let mut opened = rig.try_open().unwrap();
    opened.steps.room_bytes = 10_000;
    let running = start(opened);
    let journal = running.storage.journal();
    let slow = Duration::from_millis(200);
    rig.disk.set_faults(Faults { sync_takes: slow, file: JOURNAL_FILE, ..Faults::default() });
    running.append(1, one(1, 1, "a", "small"));
    eventually("the first commit is under way", || {
        journal.stalled_for(clock::now()) > Duration::ZERO
    });
    running.append(2, one(1, 2, "a", &"x".repeat(20_000)));
    assert!(!journal.has_room());
    let told = running.other.recv_timeout(Duration::from_secs(20));
    assert!(matches!(told, Ok(News::Room)), "{told:?}");
    assert!(journal.has_room());
}
