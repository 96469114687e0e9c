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
