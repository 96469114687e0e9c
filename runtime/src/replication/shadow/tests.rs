//! A standby's states: what is applied when, from what, and what its successor gets.

use mainstay_protocol::entry::{SegmentWriter, StoredReply};
use mainstay_protocol::id::{IdempotencyKey, Key, KindId, MethodId};

use super::*;

const SHARD: ShardId = ShardId(3);

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId(1), key: Key::new(key).unwrap() }
}

/// A state that is long enough to be patched.
fn state(text: &str) -> Bytes {
    Bytes::from(format!("{}{text}", "a long beginning that stays as it is ".repeat(4)))
}

fn entry(seq: u64, key: &str, change: Change) -> Entry {
    let op = Op::Turn { entity: entity(key), change, dedup: None };
    Entry { seq: Seq(seq), log_time: LogTime(seq), op }
}

fn put(seq: u64, key: &str, text: &str) -> Entry {
    entry(seq, key, Change::Put(state(text)))
}

fn patch(seq: u64, key: &str, from: &str, to: &str) -> Entry {
    let change = delta::change(Some(&state(from)), &state(to));
    assert!(matches!(change, Change::Delta { .. }));
    entry(seq, key, change)
}

fn keyed(mut entry: Entry, name: &str) -> Entry {
    let version = entry.seq;
    let Op::Turn { dedup, .. } = &mut entry.op else { panic!("a turn") };
    let (method, payload_hash) = (MethodId(1), 7);
    let reply = StoredReply::Value(Bytes::new());
    let key = IdempotencyKey::new(name).unwrap();
    *dedup = Some(DedupRecord { key, method, payload_hash, reply, version });
    entry
}

fn hold(shadow: &mut Shadow, epoch: u64, entries: Vec<Entry>) {
    let before = Seq(entries[0].seq.0 - 1);
    let mut writer = SegmentWriter::new(SHARD, Epoch(epoch), before);
    for entry in &entries {
        writer.push(entry);
    }
    shadow.hold(vec![writer.take().unwrap()], entries).unwrap();
}

fn shadow() -> Shadow {
    Shadow::new(SHARD, dedup::Config::default(), Start::default())
}

fn at(epoch: u64, seq: u64) -> Position {
    Position { epoch: Epoch(epoch), seq: Seq(seq) }
}

fn bytes(shadow: &Shadow, key: &str) -> Option<Bytes> {
    shadow.dirty.get(&entity(key)).map(|row| row.bytes.clone())
}

fn stored(text: &str, seq: u64) -> StoredState {
    StoredState { bytes: state(text), seq: Seq(seq) }
}

#[test]
fn what_is_not_committed_is_not_applied() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "one"), patch(2, "a", "one", "two")]);
    shadow.commit(Seq(1)).unwrap();
    assert_eq!(bytes(&shadow, "a"), Some(state("one")));
    let save = shadow.begin_save(Epoch(1)).unwrap();
    assert_eq!(save.mark.applied, at(1, 1));
    shadow.handle_saved(&save, true);
    shadow.commit(Seq(2)).unwrap();
    assert_eq!(shadow.poll_wanted(), Some((entity("a"), 1)), "the save took the base away");
    shadow.handle_read((entity("a"), 1), Some(stored("one", 1))).unwrap();
    assert_eq!(bytes(&shadow, "a"), Some(state("two")));
}

#[test]
fn entries_wait_in_order_for_the_base_of_the_first() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![patch(1, "a", "0", "1"), put(2, "b", "x"), patch(3, "c", "0", "1")]);
    shadow.commit(Seq(3)).unwrap();
    assert_eq!(shadow.due(), 3);
    let mut wanted: Vec<_> = std::iter::from_fn(|| shadow.poll_wanted()).collect();
    wanted.sort();
    assert_eq!(wanted, [(entity("a"), 1), (entity("c"), 2)], "reads are asked for together");
    shadow.handle_read(wanted[1].clone(), Some(stored("0", 0))).unwrap();
    assert_eq!((shadow.due(), bytes(&shadow, "c")), (3, None));
    shadow.handle_read((entity("a"), 9), Some(stored("other", 0))).unwrap();
    assert_eq!(shadow.due(), 3, "an answer to another question");
    shadow.handle_read(wanted[0].clone(), Some(stored("0", 0))).unwrap();
    assert_eq!((shadow.due(), shadow.applied()), (0, at(1, 3)));
    assert_eq!(bytes(&shadow, "c"), Some(state("1")));
}

#[test]
fn a_read_that_failed_is_asked_for_again() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![patch(1, "a", "0", "1")]);
    shadow.commit(Seq(1)).unwrap();
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read_failed(&wanted);
    shadow.commit(Seq(1)).unwrap();
    let again = shadow.poll_wanted().unwrap();
    assert_ne!(again, wanted);
    shadow.handle_read(again, Some(stored("0", 0))).unwrap();
    assert_eq!(shadow.applied(), at(1, 1));
}

#[test]
fn a_newer_primary_replaces_the_end_of_the_log() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "one"), put(2, "a", "lost"), put(3, "a", "lost too")]);
    shadow.commit(Seq(1)).unwrap();
    hold(&mut shadow, 2, vec![put(2, "a", "two")]);
    shadow.commit(Seq(9)).unwrap();
    assert_eq!((bytes(&shadow, "a"), shadow.applied()), (Some(state("two")), at(2, 2)));
    let heritage = shadow.poll_heritage(at(2, 2)).unwrap().unwrap();
    let places: Vec<_> =
        heritage.tail.iter().map(|it| (it.epoch.0, it.first.0, it.last.0)).collect();
    assert_eq!(places, [(1, 1, 1), (2, 2, 2)], "nothing of it is left in what others are fed with");
}

/// A copy of the states is read while its source goes on: a row may be ahead of its place.
#[test]
fn what_a_copy_holds_already_is_not_applied_again() {
    let start = Start { applied: at(1, 4), ..Start::default() };
    let mut shadow = Shadow::new(SHARD, dedup::Config::default(), start);
    let entries = vec![patch(5, "a", "4", "5"), patch(6, "a", "5", "6"), patch(7, "a", "6", "7")];
    hold(&mut shadow, 1, entries);
    shadow.commit(Seq(7)).unwrap();
    for _ in 0..3 {
        if let Some(wanted) = shadow.poll_wanted() {
            shadow.handle_read(wanted, Some(stored("6", 6))).unwrap();
        }
    }
    assert_eq!((bytes(&shadow, "a"), shadow.applied()), (Some(state("7")), at(1, 7)));
}

#[test]
fn a_patch_of_other_bytes_is_found() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "one"), patch(2, "a", "other", "two")]);
    let differs = shadow.commit(Seq(2)).unwrap_err();
    assert!(matches!(differs, Differs::State { seq: Seq(2), .. }), "{differs}");
    assert_eq!(shadow.applied(), at(1, 1), "it stays where it was right");
}

#[test]
fn a_hole_in_the_log_is_found() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(2, "a", "two")]);
    let differs = shadow.commit(Seq(2)).unwrap_err();
    assert!(matches!(differs, Differs::Hole { seq: Seq(2), applied: Seq(0) }), "{differs}");
}

#[test]
fn who_becomes_primary_goes_on_from_what_may_yet_be_committed() {
    let mut shadow = shadow();
    let entries = vec![
        keyed(put(1, "a", "one"), "k1"),
        keyed(patch(2, "a", "one", "two"), "k2"),
        patch(3, "b", "0", "1"),
    ];
    hold(&mut shadow, 1, entries);
    shadow.commit(Seq(1)).unwrap();
    assert!(shadow.poll_heritage(at(1, 3)).unwrap().is_none(), "a base is missing");
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read(wanted, Some(stored("0", 0))).unwrap();
    let heritage = shadow.poll_heritage(at(1, 3)).unwrap().unwrap();
    let Records { log_time, dedup, mut dirty, .. } = heritage.records;
    assert_eq!((dirty.last(), log_time), (at(1, 3), LogTime(3)));
    assert_eq!(dedup.len(), 2, "a repetition of either is answered from memory");
    let bytes = |dirty: &Dirty, key: &str| dirty.newest(&entity(key)).unwrap().bytes.clone();
    assert_eq!((bytes(&dirty, "a"), bytes(&dirty, "b")), (state("two"), state("1")));
    assert_eq!(dirty.settled(), at(1, 1));
    let save = dirty.begin_save().unwrap();
    assert_eq!(save.rows.len(), 1, "what may be taken back goes into no snapshot");
    assert_eq!(save.rows[0].1.bytes, state("one"));
    dirty.saved(&save);
    dirty.settle(Seq(3));
    assert_eq!((bytes(&dirty, "a"), dirty.settled()), (state("two"), at(1, 3)));
    assert_eq!(heritage.tail.len(), 1);
}

/// The lane that leads it is deposed before anything was committed: its end goes.
#[test]
fn what_was_inherited_and_not_committed_goes_when_it_is_given_back() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "one"), put(2, "a", "two")]);
    shadow.commit(Seq(1)).unwrap();
    let mut dirty = shadow.poll_heritage(at(1, 2)).unwrap().unwrap().records.dirty;
    dirty.forget_unsettled();
    assert_eq!(dirty.newest(&entity("a")).unwrap().bytes, state("one"));
    assert_eq!(dirty.last(), at(1, 1));
}

#[test]
fn a_key_that_a_copy_brought_along_is_kept_once() {
    let Op::Turn { dedup: Some(record), .. } = keyed(put(5, "a", "five"), "k").op else {
        panic!("keyed")
    };
    let dedup = vec![(entity("a"), LogTime(5), record)];
    let start = Start { applied: at(1, 4), dedup, ..Start::default() };
    let mut shadow = Shadow::new(SHARD, dedup::Config::default(), start);
    hold(&mut shadow, 1, vec![keyed(put(5, "a", "five"), "k")]);
    shadow.commit(Seq(5)).unwrap();
    let heritage = shadow.poll_heritage(at(1, 5)).unwrap().unwrap();
    assert_eq!(heritage.records.dedup.len(), 1);
}

/// A shadow whose tables have everything up to entry 2: `a` by 1, `b` by 2.
fn saved() -> Shadow {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "one"), put(2, "b", "two")]);
    shadow.commit(Seq(2)).unwrap();
    let save = shadow.begin_save(Epoch(1)).unwrap();
    shadow.handle_saved(&save, true);
    shadow
}

fn good(seq: u64) -> Row {
    Row { seq: Seq(seq), bytes: state("good") }
}

#[test]
fn a_wrong_row_is_replaced_once_it_is_known_what_the_tables_have() {
    let mut shadow = saved();
    assert!(shadow.replace(entity("a"), good(1)));
    assert_eq!(bytes(&shadow, "a"), None);
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read(wanted, Some(stored("rotten", 1))).unwrap();
    assert_eq!(bytes(&shadow, "a"), Some(state("good")));
    let save = shadow.begin_save(Epoch(1)).unwrap();
    assert_eq!(save.save.rows, [(entity("a"), good(1))], "the next snapshot has it");
    shadow.handle_saved(&save, true);
    assert!(shadow.begin_save(Epoch(1)).is_none());
}

#[test]
fn a_row_that_was_changed_since_the_audit_looked_stays() {
    let mut shadow = saved();
    assert!(!shadow.replace(entity("a"), good(3)), "its entry is not applied here");
    assert!(shadow.replace(entity("a"), good(1)));
    let wanted = shadow.poll_wanted().unwrap();
    hold(&mut shadow, 1, vec![put(3, "a", "newer")]);
    shadow.commit(Seq(3)).unwrap();
    shadow.handle_read(wanted, Some(stored("rotten", 1))).unwrap();
    assert_eq!(bytes(&shadow, "a"), Some(state("newer")));
    assert!(!shadow.replace(entity("a"), good(1)));
    let save = shadow.begin_save(Epoch(1)).unwrap();
    assert!(!shadow.replace(entity("a"), good(3)), "a save knows rows by their entries");
    shadow.handle_saved(&save, true);
    assert!(shadow.replace(entity("a"), good(1)));
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read(wanted, Some(stored("newer", 3))).unwrap();
    assert_eq!(bytes(&shadow, "a"), None, "the tables have a newer one");
}

#[test]
fn a_patch_that_waits_for_a_wrong_base_gets_the_one_that_takes_its_place() {
    let mut shadow = saved();
    hold(&mut shadow, 1, vec![patch(3, "a", "good", "better")]);
    shadow.commit(Seq(3)).unwrap();
    assert!(shadow.replace(entity("a"), good(1)));
    let wanted = shadow.poll_wanted().unwrap();
    assert_eq!(shadow.poll_wanted(), None, "one read does for both");
    shadow.handle_read(wanted, Some(stored("rotten", 1))).unwrap();
    assert_eq!((bytes(&shadow, "a"), shadow.applied().seq), (Some(state("better")), Seq(3)));
}

#[test]
fn a_row_in_memory_is_replaced_at_once() {
    let mut shadow = shadow();
    hold(&mut shadow, 1, vec![put(1, "a", "flipped")]);
    shadow.commit(Seq(1)).unwrap();
    assert!(shadow.replace(entity("a"), good(1)));
    assert_eq!(bytes(&shadow, "a"), Some(state("good")));
    assert_eq!(shadow.poll_wanted(), None);
}

/// It was told as replaced, and was not: a save began before the tables were read.
#[test]
fn a_row_that_is_to_be_replaced_waits_for_the_save_that_is_under_way() {
    let mut shadow = saved();
    hold(&mut shadow, 1, vec![put(3, "b", "three"), patch(4, "a", "good", "better")]);
    shadow.commit(Seq(3)).unwrap();
    let save = shadow.begin_save(Epoch(1)).unwrap();
    assert!(shadow.replace(entity("a"), good(1)));
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read(wanted, Some(stored("rotten", 1))).unwrap();
    shadow.commit(Seq(4)).unwrap();
    assert_eq!((bytes(&shadow, "a"), shadow.due()), (None, 1), "the patch waits for its base");
    shadow.handle_saved(&save, true);
    assert_eq!(bytes(&shadow, "a"), Some(state("good")));
    shadow.commit(Seq(4)).unwrap();
    assert_eq!((bytes(&shadow, "a"), shadow.due()), (Some(state("better")), 0));
}

#[test]
fn a_patch_whose_base_is_not_replaced_after_all_asks_for_it_again() {
    let mut shadow = saved();
    hold(&mut shadow, 1, vec![put(3, "b", "three"), patch(4, "a", "good", "better")]);
    shadow.commit(Seq(3)).unwrap();
    assert!(shadow.replace(entity("a"), good(1)));
    shadow.commit(Seq(4)).unwrap();
    let wanted = shadow.poll_wanted().unwrap();
    shadow.handle_read(wanted.clone(), Some(stored("good", 2))).unwrap();
    assert_eq!((bytes(&shadow, "a"), shadow.due()), (None, 1), "the tables have a newer one");
    let again = shadow.poll_wanted().unwrap();
    assert_ne!(again, wanted);
    shadow.handle_read(again, Some(stored("good", 2))).unwrap();
    assert_eq!(bytes(&shadow, "a"), Some(state("better")));
}
