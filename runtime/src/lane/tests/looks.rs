//! Queries at a lane whose node has a standby of the shard.

use mainstay_protocol::id::Token;
use mainstay_protocol::message::Outcome;
use mainstay_protocol::replication::freshness::Freshness;
use mainstay_protocol::time::LogTime;

use super::*;
use crate::shard::looks::{Seen, Shown, ShownState};

fn token(seq: u64) -> Token {
    Token { shard: SHARD, epoch: Epoch(2), seq: Seq(seq) }
}

impl Rig {
    /// `n2` is the primary, `n1` a standby.
    async fn standby() -> Self {
        let mut map = ClusterState { standbys: 1, min_insync: 2, ..first_map() };
        let config = &mut map.shards[0];
        config.primary = Some(claim("n2"));
        config.in_sync = ["n1", "n2"].map(|name| (node(name), disk(name))).into();
        Self::of(map).await
    }

    async fn ask_at_least(&mut self, token: Token) -> LocalCall {
        self.freshness = Some(Freshness::AtLeast(token));
        let call = self.ask("read", &json!({}));
        self.settle().await;
        call
    }

    /// The only look since the last one.
    fn look(&self) -> Look {
        let mut looked = std::mem::take(&mut *self.looked.lock().unwrap());
        assert_eq!(looked.len(), 1, "{looked:?}");
        looked.remove(0)
    }

    async fn show(&mut self, look: Look, shown: Shown) {
        drop(self.inbox.push(Input::Seen(Box::new(Seen { look, shown }))));
        self.settle().await;
    }
}

/// A diary with these lines, written at 4, as the standby has it at 7.
fn state(rig: &Rig, lines: &[u64]) -> Shown {
    let kind = rig.kind("diary");
    let mut state = kind.fresh(&Key::new("mine").unwrap());
    *state.downcast_mut::<Diary>().unwrap() = Diary { lines: lines.to_vec() };
    let mut bytes = Vec::new();
    kind.encode(&state, &mut bytes).unwrap();
    let room = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
    let (bytes, log_time) = (Some(Bytes::from(bytes)), LogTime(0));
    let (version, place) = (Seq(4), token(7));
    Shown::State(ShownState { bytes, version, place, log_time, room })
}

#[actix::test]
async fn a_query_runs_on_what_the_standby_shows() {
    let mut rig = Rig::standby().await;
    let call = rig.ask_at_least(token(5)).await;
    let look = rig.look();
    assert_eq!((look.token, &look.entity), (token(5), &entity("mine")));
    let shown = state(&rig, &[3, 4]);
    rig.show(look, shown).await;
    let success = call.now_or_never().unwrap().unwrap();
    assert_eq!(success.token, token(4), "the version of what is shown, not where the shard is");
    assert_eq!(success.place, None, "only the primary knows of how long ago");
    let kind = rig.kind("diary");
    let read = kind.info().method_index_by_name("read").unwrap();
    assert_eq!(kind.value_to_json(read, &success.value).unwrap(), json!([3, 4]));
}

#[actix::test]
async fn only_queries_that_want_no_more_than_a_token_are_shown_a_standby() {
    let mut rig = Rig::standby().await;
    let staleness = Freshness::MaxStaleness(Duration::from_secs(1));
    for freshness in [None, Some(Freshness::Strict), Some(staleness)] {
        rig.freshness = freshness;
        let call = rig.ask("read", &json!({}));
        rig.settle().await;
        assert!(matches!(answer(call), Err(Failure::NotPrimary { .. })), "{freshness:?}");
    }
    rig.freshness = Some(Freshness::AtLeast(token(1)));
    let call = rig.ask("write", &json!({ "line": 1 }));
    rig.settle().await;
    assert!(matches!(answer(call), Err(Failure::Malformed { .. })), "a command");
    let other = Token { shard: ShardId(9), ..token(1) };
    let call = rig.ask_at_least(other).await;
    assert!(matches!(answer(call), Err(Failure::Malformed { .. })), "of another shard");
    assert!(rig.looked.lock().unwrap().is_empty());
}

#[actix::test]
async fn a_query_whose_deadline_passed_while_it_waited_never_runs() {
    let mut rig = Rig::standby().await;
    let call = rig.ask_at_least(token(5)).await;
    let mut look = rig.look();
    look.envelope.deadline = clock::now();
    let shown = state(&rig, &[3]);
    rig.show(look, shown).await;
    let late = Failure::Deadline { outcome: Outcome::NotExecuted };
    assert_eq!(answer(call), Err(late));
}

#[actix::test]
async fn who_is_shown_nothing_is_told_why() {
    let mut rig = Rig::standby().await;
    let have = Some(token(4));
    for (shown, stale) in [
        (Shown::Behind { have }, true),
        (Shown::Behind { have: None }, true),
        (Shown::Elsewhere, false),
    ] {
        let call = rig.ask_at_least(token(5)).await;
        let look = rig.look();
        rig.show(look, shown).await;
        let failed = answer(call).unwrap_err();
        assert_eq!(matches!(failed, Failure::Stale { .. }), stale, "{failed:?}");
        assert_eq!(matches!(failed, Failure::NotPrimary { .. }), !stale, "{failed:?}");
    }
    let call = rig.ask_at_least(token(5)).await;
    let look = rig.look();
    rig.show(look, Shown::Full).await;
    assert!(matches!(answer(call), Err(Failure::Overloaded { .. })));
    let call = rig.ask_at_least(token(5)).await;
    drop(rig.look());
    let lost = answer(call).unwrap_err();
    assert!(matches!(lost, Failure::Unavailable { .. }), "a look that is lost: {lost:?}");
}

/// The rules of a primary show it what it has: a token says no more than that.
#[actix::test]
async fn a_shard_that_is_served_here_is_shown_by_its_primary() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    let call = rig.ask_at_least(Token { epoch: Epoch(1), ..token(2) }).await;
    answer(call).unwrap();
    let call = rig.ask_at_least(Token { epoch: Epoch(1), ..token(3) }).await;
    assert!(matches!(answer(call), Err(Failure::Stale { .. })), "nobody wrote that");
    assert!(rig.looked.lock().unwrap().is_empty());
}
