//! A shard with other copies, at its lane: what its callers wait for, and what is given back.

use mainstay_protocol::message::Outcome;
use mainstay_protocol::time::Instant;

use super::*;
use crate::shard::Records;
use crate::shard::copies::{Goes, Heard, Promoted, Word};

impl Rig {
    /// `n1` is promoted in epoch 2, with `n2` in sync; two copies must have a write.
    async fn promoted() -> Self {
        let mut map = ClusterState { standbys: 1, min_insync: 2, ..first_map() };
        let config = &mut map.shards[0];
        config.epoch = Epoch(2);
        config.in_sync = ["n1", "n2"].map(|name| (node(name), disk(name))).into();
        config.targets = ["n1", "n2"].map(node).into();
        let mut rig = Self::of(map).await;
        rig.promote(2).await;
        rig
    }

    /// `n1` is promoted in epoch 2, and answers from then on; `n2` lives and `n3` died.
    async fn successor(serve_from: Instant) -> Self {
        let mut map = ClusterState { standbys: 2, min_insync: 2, ..first_map() };
        let config = &mut map.shards[0];
        config.epoch = Epoch(2);
        config.in_sync = ["n1", "n2", "n3"].map(|name| (node(name), disk(name))).into();
        config.targets = ["n1", "n2", "n3"].map(node).into();
        map.members.get_mut(&node("n3")).unwrap().state = MemberState::Down;
        let mut rig = Self::of(map).await;
        rig.promote_from(2, serve_from).await;
        assert!(rig.take_proposed().is_empty(), "nobody else has acknowledged the epoch");
        rig
    }

    async fn promote(&mut self, epoch: u64) {
        self.promote_from(epoch, Instant::ZERO).await;
    }

    async fn promote_from(&mut self, epoch: u64, serve_from: Instant) {
        let (shard, epoch) = (SHARD, Epoch(epoch));
        let (records, map) = (Records::default(), Arc::new(self.map.clone()));
        let promoted = Promoted { shard, epoch, serve_from, records, map, ascent: None };
        self.core.handle(Input::Promoted(Box::new(promoted)));
        self.settle().await;
    }

    /// The sets that were proposed since the last look.
    fn take_proposed(&self) -> Vec<Vec<NodeId>> {
        let proposed = std::mem::take(&mut *self.proposed.lock().unwrap());
        let set = |command| match command {
            Command::ProposeInSync { in_sync, .. } => in_sync.into_keys().collect(),
            other => panic!("a lane proposes sets only: {other:?}"),
        };
        proposed.into_iter().map(set).collect()
    }

    /// `n2` says something.
    async fn hear(&mut self, what: Word) {
        self.core.handle(Input::Heard(vec![Heard { shard: SHARD, epoch: Epoch(2), what }]));
        self.settle().await;
    }

    async fn holds(&mut self, upto: u64) {
        let version = self.map.shards[0].version;
        self.hear(Word::Holds(node("n2"), disk("n2"), (version, Seq(upto)))).await;
    }

    /// What was told since the last look: how the shard went on, and what was left of it.
    fn told(&self) -> (Vec<Goes>, Vec<Records>) {
        let (mut goes, mut left) = (Vec::new(), Vec::new());
        for told in std::mem::take(&mut *self.told.lock().unwrap()) {
            match told {
                Told::Goes(it) => goes.push(it),
                Told::Left { records, .. } => left.push(*records),
                Told::Saved { .. } => {}
            }
        }
        (goes, left)
    }
}

fn waits(call: LocalCall) -> Option<LocalCall> {
    let mut call = call;
    (&mut call).now_or_never().is_none().then_some(call)
}

#[actix::test]
async fn a_write_is_acknowledged_when_every_copy_in_sync_holds_it() {
    let mut rig = Rig::promoted().await;
    let call = rig.ask("write", &json!({ "line": 1 }));
    rig.settle().await;
    let (goes, _) = rig.told();
    let last = goes.iter().flat_map(|goes| &goes.segments).map(|segment| segment.last).max();
    assert_eq!(last, Some(Seq(2)), "the noop and the line are for the other copies too");
    rig.holds(1).await;
    let call = waits(call).expect("one copy lacks it");
    rig.holds(2).await;
    answer(call).unwrap();
    assert_eq!(rig.told().0.last().unwrap().committed, Seq(2));
}

/// What is no entry proves nothing: another node might have been promoted.
#[actix::test]
async fn a_query_waits_for_a_promise_or_a_round() {
    let mut rig = Rig::promoted().await;
    rig.holds(1).await;
    rig.told();
    let call = rig.ask("read", &json!({}));
    rig.settle().await;
    let (goes, _) = rig.told();
    assert!(goes.iter().any(|goes| goes.round), "{goes:?}");
    assert!(goes.iter().any(|goes| goes.leases.is_some()), "{goes:?}");
    let call = waits(call).expect("nobody has answered");
    let sent_at = clock::now();
    rig.hear(Word::Heard(node("n2"), disk("n2"), (sent_at, true))).await;
    answer(call).unwrap();
}

#[actix::test]
async fn who_is_deposed_gives_back_what_is_committed_and_knows_nothing_of_the_rest() {
    let mut rig = Rig::promoted().await;
    let first = rig.ask("write", &json!({ "line": 1 }));
    rig.settle().await;
    rig.holds(2).await;
    answer(first).unwrap();
    let second = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    rig.told();
    rig.hear(Word::Deposed(Epoch(3))).await;
    let failure = answer(second).unwrap_err();
    let unknown = matches!(failure, Failure::Unavailable { outcome: Outcome::Unknown, .. });
    assert!(unknown, "{failure:?}");
    let (_, left) = rig.told();
    let [records] = &left[..] else { panic!("given back once: {left:?}") };
    assert_eq!(records.dirty.settled(), Position { epoch: Epoch(2), seq: Seq(2) });
    let late = rig.ask("write", &json!({ "line": 3 }));
    rig.settle().await;
    assert!(matches!(answer(late), Err(Failure::NotPrimary { .. })));
}

#[actix::test]
async fn a_promotion_that_the_map_has_left_behind_is_given_back() {
    let mut rig = Rig::promoted().await;
    rig.publish(|config| {
        config.epoch = Epoch(3);
        config.primary = Some(claim("n2"));
    })
    .await;
    assert_eq!(rig.told().1.len(), 1, "the map took it away");
    rig.promote(2).await;
    assert_eq!(rig.told().1.len(), 1, "and nobody serves it here again");
    let call = rig.ask("read", &json!({}));
    rig.settle().await;
    assert!(matches!(answer(call), Err(Failure::NotPrimary { .. })));
}

/// Every write waits for who is dead until the set is smaller: a tick is a tenth of a second.
#[actix::test]
async fn a_successor_proposes_the_set_without_who_died_as_soon_as_enough_have_answered() {
    let mut rig = Rig::successor(Instant::ZERO).await;
    let what = Word::Holds(node("n2"), disk("n2"), (1, Seq(1)));
    rig.core.handle(Input::Heard(vec![Heard { shard: SHARD, epoch: Epoch(2), what }]));
    rig.core.flush();
    assert_eq!(rig.take_proposed(), [["n1", "n2"].map(node)], "no tick has come");
}

#[actix::test]
async fn a_successor_goes_on_the_moment_that_its_promise_ends() {
    let serve_from = clock::now() + Duration::from_secs(1);
    let mut rig = Rig::successor(serve_from).await;
    rig.holds(1).await;
    assert!(rig.take_proposed().is_empty(), "an earlier primary may have a lease");
    assert!(rig.core.poll_timeout().is_some_and(|at| at <= serve_from));
    tokio::time::sleep_until(clock::to_tokio(serve_from)).await;
    rig.core.handle_timeout();
    assert_eq!(rig.take_proposed(), [["n1", "n2"].map(node)], "no tick has come");
}

#[actix::test]
async fn a_copy_that_holds_writes_up_is_proposed_to_leave_and_never_below_two() {
    let mut rig = Rig::promoted().await;
    rig.holds(1).await;
    let call = rig.ask("write", &json!({ "line": 1 }));
    for _ in 0..10 {
        rig.settle().await;
    }
    waits(call).expect("it waits for two copies");
    let proposed = rig.take_proposed();
    assert!(proposed.iter().all(|set| set.len() == 2), "{proposed:?}");
}
