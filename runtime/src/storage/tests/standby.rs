//! What a standby writes: promises, fencing, entries that replace others, reading back.

use mainstay_protocol::replication::history::History;
use redb::ReadableDatabase;

use super::tables::records::tests::old_record;
use super::*;

/// Entries `first..=last` of shard 1, that `epoch` wrote: each says so.
fn entries(epoch: u64, first: u64, last: u64) -> Segment {
    let entry = |seq: u64| put(seq, &format!("k{}", seq % 3), &format!("{epoch}:{seq}"));
    segment(1, epoch, &(first..=last).map(entry).collect::<Vec<_>>())
}

fn recovered(rig: &Rig) -> RecoveredShard {
    rig.recover().unwrap().shards.remove(&ShardId(1)).unwrap()
}

/// The epochs of entries that are read back, from `from` on.
fn read_epochs(journal: &Journal, from: u64, bytes_max: usize) -> Vec<(u64, u64)> {
    let segments = journal.read(ShardId(1), Seq(from), bytes_max).unwrap();
    let mut read = Vec::new();
    for segment in segments {
        for entry in segment.entries().unwrap() {
            let Op::Turn { change: Change::Put(state), .. } = entry.op else { panic!() };
            assert_eq!(state, format!("{}:{}", segment.epoch.0, entry.seq.0));
            read.push((entry.seq.0, segment.epoch.0));
        }
    }
    read
}

#[test]
fn a_promise_survives_power_loss() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (1, 5), vec![entries(4, 1, 2)]);
    running.persisted(2, (1, 6), vec![]);
    running.persisted(3, (2, 9), vec![]);
    rig.disk.crash(1);
    drop(running);
    let found = rig.recover().unwrap();
    assert_eq!(found.shards[&ShardId(1)].promised, Epoch(6));
    let promise = &found.shards[&ShardId(2)];
    assert_eq!((promise.promised, promise.is_stored()), (Epoch(9), false));
    assert_eq!(promise.history, History::default());
    let history = &found.shards[&ShardId(1)].history;
    assert_eq!((history.epoch_at(Seq(2)), history.last().seq), (Some(Epoch(4)), Seq(2)));
}

#[test]
fn a_fenced_part_writes_nothing_and_the_others_are_written() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (1, 5), vec![entries(4, 1, 2)]);
    running.append(2, vec![entries(4, 3, 3), segment(2, 1, &[put(1, "b", "1")])]);
    let fenced = running.next_news();
    assert_eq!(fenced.writer(), Writer::Lane(3));
    let (shard, promised) = (ShardId(1), Epoch(5));
    assert!(
        matches!(fenced, JournalNews::Fenced { ticket: 2, shard: s, promised: p, .. }
            if (s, p) == (shard, promised)),
        "{fenced:?}"
    );
    assert!(matches!(running.next_news(), JournalNews::Committed { ticket: 2, .. }));
    let next = running.storage.journal().next_commit();
    running.persist(3, (1, 4), vec![entries(4, 3, 3)]);
    let fenced = running.next_news();
    assert!(matches!(fenced, JournalNews::Fenced { ticket: 3, writer: Writer::Standbys, .. }));
    running.persist(4, (1, 3), vec![]);
    assert!(matches!(running.next_news(), JournalNews::Fenced { ticket: 4, .. }));
    assert_eq!(running.storage.journal().next_commit(), next, "nothing was left to write");
    running.persisted(5, (1, 5), vec![entries(5, 3, 3)]);
    drop(running);
    let found = rig.recover().unwrap();
    assert_eq!(found.shards[&ShardId(1)].history.epoch_at(Seq(3)), Some(Epoch(5)));
    assert_eq!((found.shards[&ShardId(1)].last, found.shards[&ShardId(2)].last), (Seq(3), Seq(1)));
    assert_eq!(found.shards[&ShardId(1)].promised, Epoch(5));
}

#[test]
fn batches_of_one_commit_are_fenced_in_their_order() {
    let rig = Rig::new();
    let running = rig.open();
    let slow = Duration::from_millis(200);
    rig.disk.set_faults(Faults { sync_takes: slow, file: JOURNAL_FILE, ..Faults::default() });
    running.append(1, one(9, 1, "a", "keeps the committer busy"));
    let journal = running.storage.journal();
    eventually("it is", || journal.stalled_for(clock::now()) > Duration::ZERO);
    running.append(2, vec![entries(4, 1, 2)]);
    running.persist(3, (1, 6), vec![entries(6, 2, 2)]);
    running.append(4, vec![entries(4, 3, 3)]);
    running.persist(5, (1, 6), vec![entries(6, 3, 3)]);
    let told: Vec<_> = (0..5).map(|_| running.next_news()).collect();
    let fenced = |news: &JournalNews| matches!(news, JournalNews::Fenced { .. });
    assert_eq!(told.iter().position(fenced), Some(3), "{told:?}");
    assert_eq!(told.iter().filter(|news| fenced(news)).count(), 1);
    assert_eq!(read_epochs(journal, 1, 1 << 20), [(1, 4), (2, 6), (3, 6)]);
    assert_eq!(journal.next_commit(), CommitNo(3), "they shared a commit");
    drop(running);
    assert_eq!(recovered(&rig).last, Seq(3));
}

#[test]
fn what_was_replaced_leaves_no_trace() {
    let rig = Rig::new();
    let running = rig.open();
    let mut once = keyed(3, "k0", "replaced");
    once.log_time = LogTime(99);
    running.persisted(1, (1, 4), vec![entries(4, 1, 2), segment(1, 4, &[once])]);
    running.persisted(2, (1, 4), vec![entries(4, 4, 9)]);
    running.persisted(3, (1, 7), vec![entries(5, 3, 3), entries(7, 4, 5)]);
    assert_eq!(
        read_epochs(running.storage.journal(), 1, 1 << 20),
        [(1, 4), (2, 4), (3, 5), (4, 7), (5, 7)]
    );
    drop(running);
    let found = recovered(&rig);
    assert_eq!((found.last, found.log_time, found.dedup.len()), (Seq(5), LogTime(5), 0));
    let states: Vec<_> = found.dirty.iter().map(|row| row.bytes.clone()).collect();
    assert_eq!(states, ["5:3", "7:4", "7:5"]);
    let last = found.history.last();
    assert_eq!((found.epoch, last.epoch, last.seq), (Epoch(7), Epoch(7), Seq(5)));
}

#[test]
fn a_mark_on_what_was_replaced_is_damage() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (1, 4), vec![entries(4, 1, 5)]);
    running.save(vec![row(1, "k0", 3, "4:3")], vec![mark_at(1, (4, 3))]).unwrap();
    running.persist(2, (1, 5), vec![entries(5, 3, 3)]);
    assert!(matches!(running.next_news(), JournalNews::Failed { ticket: 2, .. }));
    assert_eq!(running.stopped().code(), "MS-1105");
    drop(running);
    assert_eq!(recovered(&rig).history.base().epoch, Epoch(4), "the mark says who wrote it");

    let record = tables::records::Record {
        segments: vec![tables::records::Written { under: Epoch(5), segment: entries(5, 3, 9) }],
        promises: vec![],
    };
    let mut value = vec![0; record.len()];
    record.write(CommitNo(2), &mut value);
    rig.put_record(2, &value);
    assert_eq!(rig.recover().unwrap_err().code(), "MS-1105");
}

#[test]
fn a_mark_after_a_replacement_is_fine() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (1, 4), vec![entries(4, 1, 9)]);
    running.persisted(2, (1, 6), vec![entries(6, 3, 5)]);
    running.persisted(3, (1, 6), vec![entries(6, 6, 6)]);
    running.save(vec![row(1, "k0", 3, "6:3")], vec![mark_at(1, (6, 4))]).unwrap();
    drop(running);
    let found = recovered(&rig);
    assert_eq!((found.applied, found.last), (Seq(4), Seq(6)));
    let base = found.history.base();
    assert_eq!((base.epoch, base.seq), (Epoch(6), Seq(4)));
}

#[test]
fn ranges_are_read_back_in_parts() {
    let rig = Rig::new();
    let running = rig.open();
    for n in 0..10 {
        running.commit(n + 1, vec![entries(1, n * 5 + 1, n * 5 + 5)]);
    }
    let journal = running.storage.journal().clone();
    let all: Vec<_> = (1..=50).map(|seq| (seq, 1)).collect();
    assert_eq!(read_epochs(&journal, 1, usize::MAX), all);
    assert_eq!(read_epochs(&journal, 8, usize::MAX), all[7..]);
    assert_eq!(read_epochs(&journal, 8, 1), all[7..10], "one segment at least");
    let mut read = Vec::new();
    while let Some(more) = Some(read_epochs(&journal, read.len() as u64 + 1, 300)) {
        if more.is_empty() {
            break;
        }
        assert!(more.len() < 30);
        read.extend(more);
    }
    assert_eq!(read, all);
    assert_eq!(read_epochs(&journal, 51, 1 << 20), []);
    assert_eq!(journal.read(ShardId(7), Seq(1), 1 << 20).unwrap(), []);

    running.checkpoint(vec![row(1, "k0", 48, "1:48")], &[(1, 22)]).unwrap();
    eventually("four records are cut", || read_epochs(&journal, 20, 1 << 20).is_empty());
    assert_eq!(read_epochs(&journal, 21, 1 << 20), all[20..]);
    drop(running);
    let closed = journal.read(ShardId(1), Seq(21), 1);
    assert!(matches!(closed, Err(StorageError::Closed)), "{closed:?}");
    let running = rig.open();
    assert_eq!(read_epochs(running.storage.journal(), 23, 1 << 20), all[22..]);
    wait(|done| running.storage.state().drop_shard(ShardId(1), done)).unwrap();
    let earlier = running.storage.journal().read(ShardId(1), Seq(23), 1 << 20).unwrap();
    assert_eq!(earlier, [], "an earlier stay's");
}

#[test]
fn a_cut_keeps_promises() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (2, 9), vec![]);
    running.persisted(2, (1, 5), vec![entries(4, 1, 2)]);
    running.persisted(3, (1, 6), vec![]);
    let rows = vec![row(1, "k1", 1, "4:1"), row(1, "k2", 2, "4:2")];
    running.save(rows, vec![mark_at(1, (4, 2))]).unwrap();
    let journal = running.storage.journal().clone();
    eventually("all records are cut", || journal.journal_bytes() == 0);
    rig.disk.crash(3);
    drop(running);
    let running = rig.open();
    assert_eq!(running.recovered.replayed_records, 0);
    assert_eq!(running.recovered.shards[&ShardId(1)].promised, Epoch(6));
    assert_eq!(running.recovered.shards[&ShardId(2)].promised, Epoch(9));
    running.append(1, vec![entries(5, 3, 3)]);
    assert!(matches!(running.next_news(), JournalNews::Fenced { ticket: 1, .. }));
    running.persist(2, (2, 8), vec![]);
    assert!(matches!(running.next_news(), JournalNews::Fenced { ticket: 2, .. }));
    let syncs = rig.disk.counts().syncs;
    std::thread::sleep(Duration::from_millis(2_500));
    assert_eq!(rig.disk.counts().syncs, syncs, "an idle journal writes nothing");
}

/// A segment that was replaced by a shorter one pinned the journal until its shard had grown again.
#[test]
fn what_was_replaced_pins_nothing() {
    let rig = Rig::new();
    let running = rig.open();
    running.persisted(1, (1, 4), vec![entries(4, 1, 9)]);
    running.persisted(2, (1, 6), vec![entries(6, 3, 3)]);
    running.save(vec![], vec![mark_at(1, (6, 3))]).unwrap();
    let journal = running.storage.journal();
    eventually("both records are cut", || journal.journal_bytes() == 0);
    assert_eq!(journal.pins(), []);
}

#[test]
fn a_journal_of_an_older_build_is_read_and_goes_on() {
    let rig = Rig::new();
    drop(rig.open());
    let database = rig.disk.open(JOURNAL_FILE, 1 << 20).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(ABOUT).unwrap().insert(ABOUT_FORMAT, 1).unwrap();
    txn.delete_table(tables::PROMISES).unwrap();
    txn.commit().unwrap();
    drop(database);
    rig.put_record(1, &old_record(CommitNo(1), &[entries(3, 1, 4)]));
    let running = rig.open();
    let found = &running.recovered.shards[&ShardId(1)];
    assert_eq!((found.last, found.promised, found.dirty.len()), (Seq(4), Epoch(3), 3));
    running.persisted(1, (1, 4), vec![entries(4, 3, 3)]);
    assert_eq!(read_epochs(running.storage.journal(), 1, 1 << 20), [(1, 3), (2, 3), (3, 4)]);
    drop(running);
    assert_eq!(recovered(&rig).last, Seq(3));
    let database = rig.disk.open(JOURNAL_FILE, 1 << 20).unwrap();
    let about = database.begin_read().unwrap().open_table(ABOUT).unwrap();
    assert_eq!(about.get(ABOUT_FORMAT).unwrap().unwrap().value(), 2);
}

/// The row of a shard did not say who wrote the entry that its mark stands at.
#[test]
fn a_mark_of_an_older_build_takes_its_epoch_from_the_journal_or_from_its_shard() {
    let cases = [
        (entries(3, 1, 4), Epoch(3), "the journal holds the entry"),
        (entries(5, 4, 4), Epoch(5), "what follows is of the epoch before the shard's"),
        (entries(9, 4, 4), Epoch(7), "nobody wrote after the shard's epoch"),
    ];
    for (written, epoch, why) in cases {
        let rig = Rig::new();
        drop(rig.open());
        let database = rig.disk.open(STATE_FILE, 1 << 20).unwrap();
        let txn = database.begin_write().unwrap();
        let value = tables::tests::old_shard(ShardId(1), [0, 3, 3, 7, 0]);
        txn.open_table(tables::SHARDS).unwrap().insert(1, value.as_slice()).unwrap();
        txn.commit().unwrap();
        drop(database);
        rig.put_record(1, &old_record(CommitNo(1), &[written]));
        let running = rig.open();
        let stands = Position { epoch, seq: Seq(3) };
        assert_eq!(running.recovered.shards[&ShardId(1)].history.base(), stands, "{why}");
        let again = ShardMark { applied: stands, epoch: Epoch(9), ..mark(1, 3) };
        running.save(vec![], vec![again]).unwrap();
        let opened = wait(|done| running.storage.state().open_shard(ShardId(1), done)).unwrap();
        assert_eq!(opened.applied, stands, "the row says it from now on");
    }
}
