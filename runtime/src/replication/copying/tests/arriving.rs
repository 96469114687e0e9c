//! Messages of copies, one by one, as a sender that fails or is late would send them.

use super::*;

/// One attempt to send a copy.
#[derive(Clone, Copy)]
struct Try {
    copy: u64,
    epoch: u64,
    shard: ShardId,
}

const BASE: u64 = 40;

fn attempt(epoch: u64, copy: u64) -> Try {
    Try { copy, epoch, shard: SHARD }
}

impl Try {
    async fn send(self, copies: &Copies, body: Body) -> Result<(), String> {
        let reason = Reason::Standby { base: base(BASE) };
        let Self { copy, epoch, shard } = self;
        let head = Head { shard, copy, epoch: Epoch(epoch), reason };
        copies.take(node("n2"), Message { head, body }).await.map(drop)
    }

    async fn begin(self, copies: &Copies) -> Result<(), String> {
        self.send(copies, Body::Begin).await
    }

    async fn row(self, copies: &Copies, key: &str) -> Result<(), String> {
        let (entity, bytes) = (entity(key), Bytes::from(format!("of copy {}", self.copy)));
        self.send(copies, Body::Rows(vec![Row { entity, seq: Seq(1), bytes }])).await
    }

    async fn finish(self, copies: &Copies, rows: u64) -> Result<(), String> {
        let finish = Body::Finish { last: base(BASE), log_time: LogTime(BASE), rows, dedup: 0 };
        self.send(copies, finish).await
    }
}

fn not_under_way() -> Result<(), String> {
    Err(ReceiveError::NotUnderWay.to_string())
}

fn rig() -> (Rig, Arc<Room>, Copies) {
    rig_of(Room::default())
}

fn rig_of(room: Room) -> (Rig, Arc<Room>, Copies) {
    let (rig, room) = (Rig::new(), Arc::new(room));
    let copies = CopyIn::new(rig.state(), Arc::clone(&room));
    (rig, room, copies)
}

#[tokio::test]
async fn a_copy_that_breaks_off_leaves_nothing_live() {
    let mut rig = Rig::new();
    let room = Arc::new(Room::default());
    let idle_max = Duration::from_millis(50);
    let copies = CopyIn::with_idle_max(rig.state(), Arc::clone(&room), idle_max);
    save(&rig.state(), vec![row("old", 5, "of an earlier stay")], &[], 5).await;
    let copy = attempt(3, 1);
    copy.begin(&copies).await.unwrap();
    copy.row(&copies, "a").await.unwrap();
    let records = Body::Dedup(vec![remembered("k", 1)]);
    copy.send(&copies, records).await.unwrap();
    assert_eq!(load(&rig.state(), "a").await, None);

    until(|| room.broken() == [3]).await;

    assert_eq!(copy.row(&copies, "b").await, not_under_way());
    assert_eq!(copy.finish(&copies, 1).await, not_under_way());
    drop(copies);
    assert_eq!(rig.stored_after_restart(), []);
    assert_eq!(load(&rig.state(), "a").await, None);
    assert_eq!(load(&rig.state(), "old").await, None);
}

#[tokio::test]
async fn a_copy_that_goes_on_is_not_taken_for_silent() {
    let rig = Rig::new();
    let room = Arc::new(Room::default());
    let idle_max = Duration::from_millis(400);
    let copies = CopyIn::with_idle_max(rig.state(), Arc::clone(&room), idle_max);
    assert!(idle_max < COPY_IDLE_MAX && pages::MESSAGE_TIMEOUT < COPY_IDLE_MAX);
    let copy = attempt(3, 1);
    copy.begin(&copies).await.unwrap();
    for n in 0..12 {
        tokio::time::sleep(idle_max / 6).await;
        copy.row(&copies, &format!("k{n}")).await.unwrap();
    }
    copy.finish(&copies, 12).await.unwrap();
    tokio::time::sleep(idle_max + idle_max / 2).await;
    assert_eq!((room.arrived().len(), room.broken().len()), (1, 0));
}

#[tokio::test]
async fn an_older_attempt_is_replaced_and_what_it_still_says_is_refused() {
    let (rig, room, copies) = rig();
    let (old, new) = (attempt(3, 1), attempt(3, 2));
    old.begin(&copies).await.unwrap();
    old.row(&copies, "a").await.unwrap();
    new.begin(&copies).await.unwrap();
    assert_eq!(room.broken(), [3]);

    assert_eq!(old.row(&copies, "b").await, not_under_way());
    assert_eq!(old.finish(&copies, 1).await, not_under_way());
    assert_eq!(old.begin(&copies).await, not_under_way());
    assert_eq!(attempt(2, 9).begin(&copies).await, not_under_way(), "its epoch is over");
    assert_eq!(room.offers(), 2, "nobody asks a standby about those");

    new.row(&copies, "b").await.unwrap();
    new.finish(&copies, 1).await.unwrap();
    assert_eq!(load(&rig.state(), "a").await, None);
    assert_eq!(load(&rig.state(), "b").await.unwrap().bytes, "of copy 2");
    assert_eq!((room.arrived().len(), room.broken().len()), (1, 1));
}

#[tokio::test]
async fn an_attempt_that_the_standby_refuses_leaves_the_older_one_under_way() {
    let (rig, room, copies) = rig();
    attempt(3, 1).begin(&copies).await.unwrap();
    attempt(3, 1).row(&copies, "a").await.unwrap();
    room.answers.lock().unwrap().push(false);

    let refused = attempt(4, 2).begin(&copies).await;

    assert_eq!(refused, Err(ReceiveError::Refused.to_string()));
    attempt(3, 1).finish(&copies, 1).await.unwrap();
    assert!(load(&rig.state(), "a").await.is_some());
}

/// Two begin at once, and the standby answers the older one last.
#[tokio::test]
async fn an_older_attempt_that_is_let_in_late_does_not_replace_a_newer_one() {
    let (rig, room, copies) = rig_of(Room::closed());
    let late = async { attempt(3, 1).begin(&copies).await };
    let newer = async {
        until(|| room.offers() == 1).await;
        let begun = attempt(4, 2).begin(&copies);
        let lets = async {
            until(|| room.offers() == 2).await;
            room.gate.add_permits(2);
        };
        tokio::join!(begun, lets).0
    };
    let (late, newer) = tokio::join!(late, newer);
    assert_eq!(late, not_under_way());
    newer.unwrap();
    assert_eq!(room.broken(), [3]);
    attempt(4, 2).row(&copies, "a").await.unwrap();
    attempt(4, 2).finish(&copies, 1).await.unwrap();
    assert!(load(&rig.state(), "a").await.is_some());
}

#[tokio::test]
async fn a_copy_that_lacks_a_page_is_refused_at_its_end() {
    let (mut rig, room, copies) = rig();
    let copy = attempt(3, 1);
    copy.begin(&copies).await.unwrap();
    copy.row(&copies, "a").await.unwrap();

    let ended = copy.finish(&copies, 2).await.unwrap_err();

    assert!(ended.contains("was not stored"), "{ended}");
    assert!(room.arrived().is_empty());
    assert_eq!(room.broken(), [3]);
    assert_eq!(copy.finish(&copies, 1).await, not_under_way(), "it is over");
    drop(copies);
    assert_eq!(rig.stored_after_restart(), []);
}

#[tokio::test]
async fn a_copy_that_ends_elsewhere_than_it_said_is_refused() {
    let (rig, room, copies) = rig();
    let copy = attempt(3, 1);
    copy.begin(&copies).await.unwrap();
    let finish = Body::Finish { last: base(41), log_time: LogTime(41), rows: 0, dedup: 0 };

    let ended = copy.send(&copies, finish).await.unwrap_err();

    assert!(ended.contains("was to end at"), "{ended}");
    assert_eq!(room.broken(), [3]);
    let opened = answered(|done| rig.state().open_shard(SHARD, done)).await.unwrap();
    assert_eq!(opened.epoch, Epoch(0), "nothing is live");
}

/// A standby that takes entries of a newer primary must not lose them to a copy of an older one.
#[tokio::test]
async fn nothing_of_a_copy_is_written_once_its_shard_was_discarded() {
    let (rig, room, copies) = rig_of(Room::closed());
    let begins = async { attempt(3, 1).begin(&copies).await };
    let discards = async {
        until(|| room.offers() == 1).await;
        answered(|done| copies.discard(SHARD, done)).await.unwrap();
        save(&rig.state(), vec![row("a", 2, "of the newer primary")], &[], 2).await;
        room.gate.add_permits(1);
    };
    let (begun, ()) = tokio::join!(begins, discards);
    assert_eq!(begun, not_under_way());
    assert_eq!(room.broken(), [3]);
    assert!(load(&rig.state(), "a").await.is_some(), "what came after was not dropped");

    room.gate.add_permits(1);
    attempt(4, 2).begin(&copies).await.unwrap();
    attempt(4, 2).row(&copies, "b").await.unwrap();
    answered(|done| copies.discard(SHARD, done)).await.unwrap();
    assert_eq!(attempt(4, 2).finish(&copies, 1).await, not_under_way());
    assert_eq!(room.broken(), [3, 4]);
    assert_eq!(load(&rig.state(), "b").await, None);
}

#[tokio::test]
async fn a_copy_that_is_discarded_while_it_becomes_live_does_not_stay() {
    let (mut rig, room, copies) = rig();
    attempt(3, 1).begin(&copies).await.unwrap();
    attempt(3, 1).row(&copies, "a").await.unwrap();
    let sync_takes = Duration::from_millis(100);
    rig.disk.set_faults(Faults { sync_takes, file: STATE_FILE, ..Faults::default() });
    let discards = async {
        tokio::time::sleep(sync_takes / 4).await;
        answered(|done| copies.discard(SHARD, done)).await.unwrap();
    };

    let (ended, ()) = tokio::join!(attempt(3, 1).finish(&copies, 1), discards);

    assert_eq!(ended, not_under_way());
    assert_eq!((room.arrived().len(), room.broken()), (0, vec![3]));
    drop(copies);
    assert_eq!(rig.stored_after_restart(), []);
}

/// The standby would wait for a copy that nobody told the end of.
#[tokio::test]
async fn a_message_is_carried_out_though_its_connection_ends() {
    let (_rig, room, copies) = rig_of(Room::closed());
    let begins = attempt(3, 1).begin(&copies);
    let ended = tokio::time::timeout(Duration::from_millis(50), begins).await;
    assert!(ended.is_err() && room.offers() == 1);

    room.gate.add_permits(1);

    for _ in 0..400 {
        if attempt(3, 1).row(&copies, "a").await.is_ok() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the copy was not begun in two seconds");
}

#[tokio::test]
async fn a_copy_that_lost_its_rows_to_somebody_else_breaks_off() {
    let (rig, room, copies) = rig();
    let copy = attempt(3, 1);
    copy.begin(&copies).await.unwrap();
    copy.row(&copies, "a").await.unwrap();
    answered(|done| rig.state().drop_shard(SHARD, done)).await.unwrap();

    let refused = copy.row(&copies, "b").await.unwrap_err();

    assert!(refused.contains("was not stored"), "{refused}");
    assert_eq!(room.broken(), [3]);
    assert_eq!(copy.row(&copies, "b").await, not_under_way());
}

#[tokio::test]
async fn a_copy_that_the_standby_does_not_want_any_more_is_told_so() {
    let (_rig, room, copies) = rig_of(Room { wants_none_at_the_end: true, ..Room::default() });
    attempt(3, 1).begin(&copies).await.unwrap();
    let ended = attempt(3, 1).finish(&copies, 0).await;
    assert_eq!(ended, Err(ReceiveError::NotWanted.to_string()));
    assert_eq!((room.arrived().len(), room.broken().len()), (1, 0), "it comes back once");
}

#[tokio::test]
async fn so_many_copies_arrive_at_one_time_and_no_more() {
    let (_rig, room, copies) = rig_of(Room { answers: vec![false; 9].into(), ..Room::default() });
    let of = |n: usize| Try { shard: ShardId(u32::try_from(n).unwrap()), ..attempt(3, 1) };
    for n in 0..9 {
        of(10 + n).begin(&copies).await.unwrap_err();
    }
    assert_eq!(room.offers(), 9, "those that are refused take no place");
    for n in 0..COPIES_IN_MAX {
        of(n).begin(&copies).await.unwrap();
    }
    let busy = Err(ReceiveError::Busy { max: COPIES_IN_MAX }.to_string());
    assert_eq!(of(COPIES_IN_MAX).begin(&copies).await, busy);
    assert_eq!(room.offers(), 9 + COPIES_IN_MAX, "no standby is asked");
    let again = Try { copy: 2, ..of(0) };
    again.begin(&copies).await.expect("its shard has a place");
    again.finish(&copies, 0).await.unwrap();
    of(COPIES_IN_MAX).begin(&copies).await.expect("a place is free");
}

#[tokio::test]
async fn what_is_no_message_of_a_copy_changes_nothing() {
    let (_rig, room, copies) = rig();
    let reason = Reason::Move { plan: 1 };
    let head = Head { shard: SHARD, copy: 1, epoch: EPOCH, reason };
    let moves = Message { head, body: Body::Begin };
    let taken = copies.take(node("n2"), moves.clone()).await;
    assert_eq!(taken.unwrap_err(), ReceiveError::Move.to_string());
    assert_eq!(attempt(3, 1).row(&copies, "no beginning").await, not_under_way());
    assert_eq!(room.offers(), 0);

    let n2 = identity("n2").caller().clone();
    let bytes = rmp_serde::to_vec(&moves).unwrap();
    assert_eq!(pages::read(n2.clone(), &bytes).unwrap(), (node("n2"), moves.clone()));
    let client = Caller::Client { name: "c".to_owned() };
    assert!(matches!(pages::read(client, &bytes), Err(pages::ReadError::NoMember)));
    for end in 0..bytes.len() {
        let cut = pages::read(n2.clone(), &bytes[..end]);
        assert!(matches!(cut, Err(pages::ReadError::Malformed(_))));
    }
    let beyond = Head { shard: ShardId(u32::MAX), ..head };
    let bytes = rmp_serde::to_vec(&Message { head: beyond, ..moves }).unwrap();
    assert!(matches!(pages::read(n2, &bytes), Err(pages::ReadError::Shard { .. })));
}
