//! Shards that cannot go, and what stays behind of those that went.

use mainstay_protocol::message::Outcome;
use mainstay_protocol::time::LogTime;

use super::*;
use crate::storage::{CheckpointBatch, ShardMark, StateRow};

impl Rig {
    /// Gives the move up that the map plans.
    async fn give_up(&mut self) {
        self.publish(|config| config.handoff = None).await;
    }

    async fn is_stored(&self, key: &str) -> bool {
        let (tell, told) = oneshot::channel();
        let done = move |result| drop(tell.send(result));
        self.storage.state().load(SHARD, entity(key), Box::new(done));
        told.await.unwrap().unwrap().is_some()
    }

    /// Puts a row of the shard into the tables.
    async fn store(&self, key: &str) {
        let (tell, told) = oneshot::channel();
        let row = StateRow { shard: SHARD, entity: entity(key), seq: Seq(1), bytes: Bytes::new() };
        let mark = ShardMark {
            shard: SHARD,
            applied: Position { epoch: Epoch(1), seq: Seq(9) },
            log_time: LogTime(1),
            epoch: Epoch(1),
        };
        let batch =
            CheckpointBatch { rows: vec![row], shards: vec![mark], ..CheckpointBatch::default() };
        let done = move |result| drop(tell.send(result));
        self.storage.state().checkpoint(batch, Box::new(done));
        told.await.unwrap().unwrap();
    }
}

/// A shard whose copy could not arrive stood still for as long as the director wanted it moved.
#[actix::test]
async fn a_shard_that_no_copy_of_arrives_is_served_on_while_the_same_move_is_planned_again() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.plan_move("n2").await;
    let departure = rig.departed().pop().unwrap();
    (departure.failed)();
    // The mover ended, and the lane has not seen why.
    (departure.gave_up)();
    rig.publish(|_| {}).await;
    let call = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    let refused = matches!(answer(call), Err(Failure::NotPrimary { .. }));
    assert!(refused, "it stands still while a copy may count");
    assert_eq!(rig.departed().len(), 1, "with another mover of the same plan");

    rig.give_up().await;
    rig.write(2).await;
    rig.plan_move("n2").await;
    assert!(rig.departed().is_empty());
    rig.write(3).await;
    rig.give_up().await;
    rig.plan_move("n3").await;
    assert_eq!(rig.departed().pop().expect("another target may do").to.to, node("n3"));
}

/// Its caller was told that nothing was executed, and what the turn had asked of others was.
#[actix::test]
async fn a_turn_that_is_called_back_after_it_asked_others_has_an_unknown_outcome() {
    for (key, certain) in [(None, false), (Some("k"), true)] {
        let mut rig = Rig::new().await;
        let call = rig.ask_keyed("consult", &json!({}), key);
        rig.settle().await;
        assert_eq!(rig.asked.0.lock().unwrap().len(), 1);
        rig.plan_move("n2").await;
        let failure = answer(call).unwrap_err();
        let unknown = matches!(failure, Failure::Unavailable { outcome: Outcome::Unknown, .. });
        let again = matches!(failure, Failure::NotPrimary { .. });
        assert_eq!((unknown, again), (!certain, certain), "{failure:?}");
    }
}

/// The rows of a shard that moved away stayed until the next start when they could not be removed
/// at once; and a removal that comes late must not take what is wanted again.
#[actix::test]
async fn what_is_left_of_a_moved_shard_is_removed_until_it_is_gone() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.publish(|config| {
        config.epoch = Epoch(2);
        config.primary = Some(claim("n2"));
        config.in_sync = BTreeMap::from([(node("n2"), disk("n2"))]);
    })
    .await;
    assert!(!rig.is_stored("mine").await);
    rig.store("left").await;
    rig.core.handle(Input::DropFailed(SHARD, Epoch(1)));
    let patience = clock::now() + Duration::from_secs(10);
    while rig.is_stored("left").await {
        assert!(clock::now() < patience, "it was tried once");
        rig.settle().await;
    }

    rig.plan_move("n1").await;
    rig.store("arriving").await;
    rig.core.handle(Input::DropFailed(SHARD, Epoch(1)));
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    rig.settle().await;
    assert!(rig.is_stored("arriving").await, "a copy is on its way");
}

/// A lane that a handler held up collected every map of that time.
#[test]
fn of_the_maps_that_a_lane_misses_the_newest_waits() {
    let (inbox, newest) = (LaneInbox::default(), NewestMap::default());
    let map = |version| Arc::new(ClusterState { version, ..first_map() });
    for version in 1..=100 {
        newest.bring(&inbox, map(version));
    }
    let mut batch = Vec::new();
    inbox.take(&mut batch, &Context::from_waker(Waker::noop()));
    assert_eq!(batch.len(), 1);
    let Some(Input::Map(waits)) = batch.pop() else { panic!() };
    assert_eq!(waits.take().unwrap().version, 100);
    newest.bring(&inbox, map(101));
    inbox.take(&mut batch, &Context::from_waker(Waker::noop()));
    assert_eq!(batch.len(), 1, "the lane is woken for the next one");
}

/// A handoff took an entity out of memory whose last turn was on its way to the journal; the next
/// turn then began from the state before, and an acknowledged line was gone.
#[actix::test]
async fn a_handoff_keeps_what_the_journal_has_not_answered() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.held = Some(Vec::new());
    let second = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    let pondered = rig.ask("ponder", &json!({ "line": 3 }));
    rig.settle().await;
    let fourth = rig.ask("write", &json!({ "line": 4 }));
    rig.settle().await;
    rig.plan_move("n2").await;
    for held in rig.held.take().unwrap() {
        rig.core.handle(held);
    }
    rig.settle().await;
    answer(second).unwrap();
    answer(fourth).unwrap();
    assert!(matches!(answer(pondered), Err(Failure::NotPrimary { .. })), "it runs at the target");
    let departures = rig.departed();
    assert_eq!(departures.len(), 1);
    assert_eq!(rig.stored().await, json!([1, 2, 4]));
    assert_eq!(departures[0].last, Position { epoch: Epoch(1), seq: Seq(4) });
    assert_eq!(rig.marked().await, departures[0].last, "the tables say the same");
}

/// A drain under load stood still when a plan was given up and made again for another target
/// between two looks at the map; and each mover must speak for its own plan only.
#[actix::test]
async fn a_shard_departs_once_for_every_plan_and_again_when_its_mover_gave_up() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.plan_move("n2").await;
    let first = rig.departed().pop().unwrap();
    rig.plan_move("n3").await;
    let second = rig.departed().pop().expect("a plan for another target starts over");
    assert_eq!(second.to.to, node("n3"));

    (first.gave_up)();
    rig.settle().await;
    assert!(rig.departed().is_empty(), "the mover of the second plan is under way");
    (second.gave_up)();
    rig.settle().await;
    let third = rig.departed().pop().expect("its mover gave up and the plan stands");
    assert_eq!(third.to, second.to);

    rig.publish(|config| config.handoff = None).await;
    rig.write(2).await;
    rig.plan_move("n3").await;
    let last = rig.departed().pop().expect("the same move, planned again, is another one");
    assert!(last.to.plan > third.to.plan && last.last > third.last);
    (third.gave_up)();
    rig.settle().await;
    assert!(rig.departed().is_empty());
}

/// A shard left and is on its way back: what the lane still holds of it must neither be served nor
/// written nor dropped once the copy arrives, in whatever order lane and mover see the maps.
#[actix::test]
async fn a_lane_lets_go_of_a_shard_before_its_copy_arrives() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    let behind = Arc::new(rig.map.clone());
    rig.plan(|config| {
        config.epoch = Epoch(2);
        config.primary = Some(claim("n2"));
        config.in_sync = BTreeMap::from([(node("n2"), disk("n2"))]);
        config.handoff = None;
    });
    let elsewhere = Arc::new(rig.map.clone());
    rig.plan(|config| {
        let plan = config.version;
        config.handoff = Some(Handoff { to: node("n1"), disk: disk("n1"), plan });
    });
    let mut let_go = false;
    for _ in 0..10 {
        let (tell, told) = oneshot::channel();
        let map = Arc::new(rig.map.clone());
        let arriving = Arriving { shard: SHARD, map, let_go: tell };
        drop(rig.inbox.push(Input::Arriving(Box::new(arriving))));
        rig.settle().await;
        let_go |= told.await.unwrap();
    }
    assert!(let_go, "a lane that has nothing under way lets go");
    assert!(rig.core.shards.is_empty());
    for late in [behind, elsewhere] {
        NewestMap::default().bring(&rig.inbox, late);
        rig.settle().await;
        assert!(rig.core.shards.is_empty(), "a map from before the copy changes nothing");
    }
    let call = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    assert!(matches!(answer(call), Err(Failure::NotPrimary { .. })));
}
