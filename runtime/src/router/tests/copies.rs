//! Queries that other copies than the primary may answer: who is asked, in which order, and what is
//! learned from it.

use mainstay_protocol::id::{Seq, ShardId, Token};
use mainstay_protocol::replication::freshness::Freshness;

use super::*;
use crate::transport::requests::Inbound;

/// What is shown, and which requests were seen.
type Seen = Arc<Mutex<Vec<Option<Freshness>>>>;

/// `n0` is the router's node and a standby, `n1` the primary, and both have lanes.
struct Pair {
    fixture: Fixture,
    here: Seen,
    there: Seen,
    _peer: Node,
}

fn token(seq: u64) -> Token {
    let shards = u32::try_from(SHARDS).unwrap();
    Token { shard: ShardId::of("a", shards), epoch: Epoch(1), seq: Seq(seq) }
}

/// Shows this value of an entity that was written at 3, of a shard that stands at this place.
fn shown(value: &'static str, seq: u64) -> impl Fn() -> Result<Success, Failure> + Send + Sync {
    let (value, token, place) = (Bytes::from_static(value.as_bytes()), token(3), Some(Seq(seq)));
    move || Ok(Success { value: value.clone(), token, replayed: false, place })
}

fn stale() -> Result<Success, Failure> {
    Err(Failure::Stale { reason: "the standby is at 0.1.1".to_owned() })
}

impl Pair {
    async fn new(
        standby: impl Fn() -> Result<Success, Failure> + Send + Sync + 'static,
        primary: impl Fn() -> Result<Success, Failure> + Send + 'static,
    ) -> Self {
        let (here, there): (Seen, Seen) = Default::default();
        let note = Arc::clone(&there);
        let peer = Node::of(Plan::default(), move |inbound| {
            if let Inbound::Request(envelope) = inbound {
                note.lock().unwrap().push(envelope.request.freshness.as_deref().copied());
                envelope.reply.send(primary());
            }
        })
        .await;
        let members = [("n0", String::new()), ("n1", peer.addr.to_string())];
        let mut state = state(1, &members, Some("n1"));
        for shard in &mut state.shards {
            shard.in_sync = ["n0", "n1"].map(|name| (node(name), DISK)).into();
        }
        let note = Arc::clone(&here);
        let fixture = router(Arc::new(ShardMap::new(&state)), move |_, envelope| {
            note.lock().unwrap().push(envelope.request.freshness.as_deref().copied());
            envelope.reply.send(standby());
        });
        Self { fixture, here, there, _peer: peer }
    }

    async fn ask(&self, freshness: Option<Freshness>) -> Result<Bytes, Failure> {
        let (mode, deadline) = (Mode::Query, Duration::from_millis(400));
        let query = Call { mode, freshness, deadline, ..call("a") };
        self.fixture.router.call(query).await.map(|answer| answer.success.value)
    }

    /// What lanes here and there saw since the last look.
    fn seen(&self) -> (Vec<Option<Freshness>>, Vec<Option<Freshness>>) {
        let take = |seen: &Seen| std::mem::take(&mut *seen.lock().unwrap());
        (take(&self.here), take(&self.there))
    }
}

const AGE: Option<Freshness> = Some(Freshness::MaxStaleness(Duration::from_secs(3_600)));

#[tokio::test]
async fn the_newest_state_is_the_primarys_to_show() {
    let pair = Pair::new(shown("standby", 9), shown("primary", 9)).await;
    for freshness in [None, Some(Freshness::Strict)] {
        assert_eq!(pair.ask(freshness).await.unwrap(), "primary");
        assert_eq!(pair.seen(), (vec![], vec![freshness]));
    }
}

#[tokio::test]
async fn what_a_token_stands_for_is_shown_by_the_standby_here() {
    let pair = Pair::new(shown("standby", 9), shown("primary", 9)).await;
    let wanted = Some(Freshness::AtLeast(token(7)));
    assert_eq!(pair.ask(wanted).await.unwrap(), "standby");
    assert_eq!(pair.seen(), (vec![wanted], vec![]));
}

#[tokio::test]
async fn or_by_the_primary_when_the_standby_is_behind() {
    let pair = Pair::new(stale, shown("primary", 9)).await;
    let wanted = Some(Freshness::AtLeast(token(7)));
    assert_eq!(pair.ask(wanted).await.unwrap(), "primary");
    assert_eq!(pair.seen(), (vec![wanted], vec![wanted]));
}

/// A standby of another build, or one that shows as many states as it may, ended the query, though
/// the primary would have answered it.
#[tokio::test]
async fn or_by_the_primary_when_the_standby_cannot_show_it() {
    let full = Failure::Overloaded { retry_after_ms: 20, bound: "memory".to_owned() };
    let newer = Failure::Version { reason: "version 2, this build reads 1".to_owned() };
    let unknown = Failure::Unknown { what: "method".to_owned() };
    for failure in [full, newer, unknown, lost(Outcome::NotExecuted)] {
        let refused = failure.clone();
        let pair = Pair::new(move || Err(refused.clone()), shown("primary", 9)).await;
        let wanted = Some(Freshness::AtLeast(token(7)));
        assert_eq!(pair.ask(wanted).await.unwrap(), "primary", "{failure:?}");
    }
}

#[tokio::test]
async fn a_token_that_nobody_has_is_refused_at_the_deadline() {
    let pair = Pair::new(stale, stale).await;
    let failed = pair.ask(Some(Freshness::AtLeast(token(7)))).await.unwrap_err();
    assert!(matches!(failed, Failure::Stale { .. }), "{failed:?}");
    let (here, there) = pair.seen();
    assert!(here.len() > 1 && there.len() > 1, "both are asked again: {here:?} {there:?}");
}

#[tokio::test]
async fn one_question_to_the_primary_tells_how_old_a_standbys_state_is() {
    let pair = Pair::new(shown("standby", 9), shown("primary", 8)).await;
    assert_eq!(pair.ask(AGE).await.unwrap(), "primary");
    assert_eq!(pair.ask(AGE).await.unwrap(), "standby");
    assert_eq!(pair.seen(), (vec![Some(Freshness::AtLeast(token(8)))], vec![AGE]));
    let newest = Some(Freshness::MaxStaleness(Duration::ZERO));
    assert_eq!(pair.ask(newest).await.unwrap(), "primary", "nothing older will do");
}

/// A primary that cannot be asked says nothing of where its shard stands.
#[tokio::test]
async fn a_standby_without_news_of_the_primary_is_too_old() {
    let pair = Pair::new(shown("standby", 9), || Err(lost(Outcome::NotExecuted))).await;
    let failed = pair.ask(AGE).await.unwrap_err();
    assert!(matches!(failed, Failure::Stale { .. }), "{failed:?}");
    assert_eq!(pair.seen().0, [], "the standby is not asked");
}

/// What is learned of one shard by an answer that names another one is nothing.
#[tokio::test]
async fn an_answer_of_another_shard_teaches_nothing() {
    let other = Token { shard: ShardId(token(1).shard.0 ^ 1), ..token(8) };
    let success = move || {
        let value = Bytes::from_static(b"primary");
        Ok(Success { value, token: other, replayed: false, place: Some(Seq(8)) })
    };
    let pair = Pair::new(shown("standby", 9), success).await;
    for _ in 0..2 {
        assert_eq!(pair.ask(AGE).await.unwrap(), "primary");
    }
}
