//! The router with lanes that are closures, and over real sockets.

mod copies;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;
use mainstay_protocol::control::{Claim, ClusterState, Member, MemberState, ShardConfig};
use mainstay_protocol::id::{
    BootId, DiskId, EntityId, Epoch, IdempotencyKey, Key, KindId, MethodId,
};
use mainstay_protocol::limits;

use super::*;
use crate::transport::loopback::{
    CLUSTER, Node, Plan, echo, identity, node, small, success, until,
};

const DISK: DiskId = DiskId::from_bytes([1; 16]);
const SHARDS: usize = 16;

/// A cluster of these members (name, address), all shards held by `primary`.
pub(crate) fn state(
    version: u64,
    members: &[(&str, String)],
    primary: Option<&str>,
) -> ClusterState {
    let member = |addr: &String| Member {
        disk: DISK,
        boot: BootId(1),
        peer_addr: addr.clone(),
        http_addr: String::new(),
        zone: String::new(),
        weight: 1,
        lanes: 1,
        state: MemberState::Up,
        wire_max: 1,
    };
    let claim = |name: &str| Claim { node: node(name), disk: DISK, boot: BootId(1) };
    let shard = ShardConfig {
        epoch: Epoch(version),
        version,
        primary: primary.map(claim),
        in_sync: BTreeMap::new(),
        targets: Vec::new(),
        handoff: None,
    };
    ClusterState {
        cluster: Some(CLUSTER),
        version,
        placement_version: version,
        standbys: 0,
        min_insync: 1,
        grouping: BTreeMap::new(),
        members: members.iter().map(|(name, addr)| (node(name), member(addr))).collect(),
        draining: std::collections::BTreeSet::new(),
        shards: vec![shard; SHARDS],
    }
}

fn map(version: u64, members: &[(&str, String)], primary: Option<&str>) -> Arc<ShardMap> {
    Arc::new(ShardMap::new(&state(version, members, primary)))
}

pub(crate) fn kinds() -> KindTable {
    KindTable::default()
        .with("account", Box::new(|key| key.prefix('/')))
        .with("order", Box::new(|key| key.as_str()))
}

pub(crate) fn call(key: &str) -> Call {
    Call {
        kind: KindId::of("account"),
        key: Key::new(key).unwrap(),
        method: MethodId(1),
        mode: Mode::Command,
        freshness: None,
        payload: Bytes::from_static(b"12345"),
        idempotency: None,
        if_version: None,
        deadline: Duration::from_secs(5),
        pressure: Pressure::Wait,
        retry: Retry::StaleMap,
        trace: None,
        id: None,
        chain: Vec::new(),
        from_kind: None,
    }
}

pub(crate) fn safe(key: &str) -> Call {
    Call { retry: Retry::Safe, ..call(key) }
}

struct Fixture {
    router: Router,
    maps: watch::Sender<Arc<ShardMap>>,
    refreshes: Arc<AtomicU32>,
    intake: Intake,
}

/// The router of node `n0`, whose lane is this closure.
fn router(first: Arc<ShardMap>, lane: impl Fn(u16, Envelope) + Send + Sync + 'static) -> Fixture {
    let (maps, map) = watch::channel(first);
    let refreshes = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&refreshes);
    let intake = Intake::new(100, 1 << 20);
    let runtime = tokio::runtime::Handle::current();
    let router = Router::start(Parts {
        kinds: kinds(),
        map,
        refresh: Arc::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        }),
        local: Some(Local { node: node("n0"), count: 1, lanes: Arc::new(lane) }),
        links: Links::new(identity("n0"), small(64), runtime.clone()),
        intake: intake.clone(),
        limits: Limits { deadline_max: Duration::from_secs(10), requests: 100 },
        retry: retry_budget::Config::default(),
        runtime,
    });
    Fixture { router, maps, refreshes, intake }
}

fn here(version: u64) -> Arc<ShardMap> {
    map(version, &[("n0", String::new())], Some("n0"))
}

fn answer(envelope: Envelope) {
    envelope.reply.send(Ok(success(envelope.request.payload)));
}

fn not_primary(map_version: u64) -> Failure {
    Failure::NotPrimary { map_version, primary: None }
}

fn lost(outcome: Outcome) -> Failure {
    Failure::Unavailable { outcome, reason: "down".to_owned() }
}

#[tokio::test]
async fn a_call_of_an_own_shard_reaches_its_lane_and_comes_back() {
    let seen: Arc<Mutex<Vec<Request>>> = Arc::default();
    let note = Arc::clone(&seen);
    let fixture = router(here(3), move |lane, envelope| {
        assert_eq!((lane, envelope.source, envelope.source_share), (0, 0, 12));
        note.lock().unwrap().push(envelope.request.clone());
        answer(envelope);
    });
    for key in ["acme/1", "acme/2"] {
        let done = fixture.router.call(call(key)).await.unwrap();
        assert_eq!((done.success.value, done.served_by), ("12345".into(), None));
    }
    let seen = seen.lock().unwrap();
    assert_eq!(seen[0].shard, mainstay_protocol::id::ShardId::of("acme", 16));
    assert_eq!(seen[0].shard, seen[1].shard, "one affinity, one shard");
    assert_eq!(seen[0].epoch, Epoch(3));
    assert_ne!(seen[0].id, seen[1].id, "each call has an id of its own");
    assert!(seen[0].remaining_us > 4_000_000 && seen[0].remaining_us <= 5_000_000);
    assert_eq!(fixture.intake.held(), (0, 0));
}

#[tokio::test]
async fn a_remote_call_goes_to_the_primary_and_is_accounted() {
    let peer = Node::of(Plan::default(), echo).await;
    let members = [("n0", String::new()), ("n1", peer.addr.to_string())];
    let fixture = router(map(1, &members, Some("n1")), |_, _| panic!("not ours"));
    let from_order = Call { from_kind: Some(KindId::of("order")), ..call("a") };
    for _ in 0..3 {
        let done = fixture.router.call(from_order.clone()).await.unwrap();
        assert_eq!(done.served_by, Some(node("n1")));
    }
    let top = fixture.router.locality_top(10);
    assert_eq!(top.len(), 1);
    assert_eq!((top[0].from, top[0].to), (Some("order"), "account"));
    assert_eq!((top[0].remote_calls, top[0].remote_bytes, top[0].local_calls), (3, 30, 0));
}

#[tokio::test]
async fn a_stale_map_is_refreshed_and_the_call_follows_the_shard() {
    let peer = Node::of(Plan::default(), echo).await;
    let members = [("n0", String::new()), ("n1", peer.addr.to_string())];
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let fixture = router(map(1, &members, Some("n0")), move |_, envelope| {
        count.fetch_add(1, Ordering::Relaxed);
        envelope.reply.send(Err(not_primary(2)));
    });
    let calling = tokio::spawn(fixture.router.call(call("a")));
    until(|| fixture.refreshes.load(Ordering::Relaxed) > 0).await;
    fixture.maps.send_replace(map(2, &members, Some("n1")));
    assert_eq!(calling.await.unwrap().unwrap().served_by, Some(node("n1")));
    assert_eq!(asked.load(Ordering::Relaxed), 1, "it waited for the newer map");
}

#[tokio::test]
async fn a_primary_that_is_not_ready_yet_is_asked_again_with_growing_pauses() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let fixture = router(here(1), move |_, envelope| {
        if count.fetch_add(1, Ordering::Relaxed) < 5 {
            envelope.reply.send(Err(not_primary(1)));
        } else {
            answer(envelope);
        }
    });
    assert!(fixture.router.call(call("a")).await.is_ok());
    assert_eq!(asked.load(Ordering::Relaxed), 6);
}

#[tokio::test]
async fn without_a_primary_the_deadline_ends_the_search_and_nothing_ran() {
    let asked = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&asked);
    let fixture = router(here(1), move |_, envelope| {
        count.fetch_add(1, Ordering::Relaxed);
        envelope.reply.send(Err(not_primary(1)));
    });
    let short = Call { deadline: Duration::from_millis(300), ..call("a") };
    let failed = fixture.router.call(short).await.unwrap_err();
    assert!(matches!(failed, Failure::Unavailable { outcome: Outcome::NotExecuted, .. }));
    assert!(asked.load(Ordering::Relaxed) <= u32::from(ATTEMPTS_MAX) + 1);
}

#[tokio::test]
async fn a_shard_without_a_primary_is_waited_for_a_moment() {
    let members = [("n0", String::new())];
    let fixture = router(map(1, &members, None), |_, envelope| answer(envelope));
    let calling = tokio::spawn(fixture.router.call(call("a")));
    until(|| fixture.refreshes.load(Ordering::Relaxed) > 0).await;
    fixture.maps.send_replace(here(2));
    assert!(calling.await.unwrap().is_ok());
    fixture.maps.send_replace(map(3, &members, None));
    until(|| fixture.router.map_version() == 3).await;
    let failed = fixture.router.call(call("a")).await.unwrap_err();
    assert!(matches!(failed, Failure::Unavailable { outcome: Outcome::NotExecuted, .. }));
}

#[tokio::test]
async fn a_call_that_may_be_repeated_waits_for_another_owner_when_the_budget_is_spent() {
    let peer = Node::of(Plan::default(), echo).await;
    let members = [("n0", String::new()), ("n1", peer.addr.to_string())];
    let fixture = router(map(1, &members, Some("n0")), |_, envelope| {
        envelope.reply.send(Err(lost(Outcome::NotExecuted)));
    });
    let calls: Vec<_> =
        (0..50).map(|n| tokio::spawn(fixture.router.call(safe(&format!("k{n}"))))).collect();
    tokio::time::sleep(Duration::from_millis(200)).await;
    fixture.maps.send_replace(map(2, &members, Some("n1")));
    for call in calls {
        assert_eq!(call.await.unwrap().unwrap().served_by, Some(node("n1")));
    }
}

#[tokio::test]
async fn a_pause_before_the_next_attempt_ends_when_there_is_another_owner() {
    let peer = Node::of(Plan::default(), echo).await;
    let members = [("n0", String::new()), ("n1", peer.addr.to_string())];
    let pause = Duration::from_secs(5);
    let fixture = router(map(1, &members, Some("n0")), move |_, envelope| {
        let retry_after_ms = u64::try_from(pause.as_millis()).unwrap();
        envelope.reply.send(Err(Failure::Overloaded { retry_after_ms, bound: "mailbox".into() }));
    });
    let began = clock::now();
    let patient = Call { deadline: 2 * pause, ..safe("a") };
    let calling = tokio::spawn(fixture.router.call(patient));
    until(|| fixture.refreshes.load(Ordering::Relaxed) > 0).await;
    fixture.maps.send_replace(map(2, &members, Some("n1")));
    assert_eq!(calling.await.unwrap().unwrap().served_by, Some(node("n1")));
    assert!(clock::now() < began + pause, "it waited for the owner before");
}

#[tokio::test]
async fn a_target_that_is_down_sees_at_most_a_tenth_more_attempts_than_calls() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let fixture = router(here(1), move |_, envelope| {
        count.fetch_add(1, Ordering::Relaxed);
        envelope.reply.send(Err(lost(Outcome::NotExecuted)));
    });
    let calls = 1_000;
    let brief = |key: &str| Call { deadline: Duration::from_millis(600), ..safe(key) };
    let callers: tokio::task::JoinSet<_> =
        (0..calls).map(|n| fixture.router.call(brief(&format!("k{n}")))).collect();
    let results = callers.join_all().await;
    assert!(results.iter().all(Result::is_err));
    let attempts = attempts.load(Ordering::Relaxed);
    let reserve = retry_budget::Config::default().reserve;
    assert!(attempts > calls, "some are repeated: {attempts}");
    assert!(attempts <= calls + calls / 10 + reserve, "{attempts} attempts for {calls} calls");
}

#[tokio::test]
async fn without_leave_to_repeat_a_failure_is_passed_on_at_once() {
    for failure in [
        lost(Outcome::NotExecuted),
        lost(Outcome::Unknown),
        Failure::Overloaded { retry_after_ms: 1, bound: "mailbox".to_owned() },
        Failure::Panicked { quarantined: false },
    ] {
        let attempts = Arc::new(AtomicU32::new(0));
        let (count, with) = (Arc::clone(&attempts), failure.clone());
        let fixture = router(here(1), move |_, envelope| {
            count.fetch_add(1, Ordering::Relaxed);
            envelope.reply.send(Err(with.clone()));
        });
        assert_eq!(fixture.router.call(call("a")).await.unwrap_err(), failure);
        assert_eq!(attempts.load(Ordering::Relaxed), 1);
    }
}

#[tokio::test]
async fn a_keyed_command_is_repeated_after_an_unknown_outcome_an_unkeyed_one_is_not() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let fixture = router(here(1), move |_, envelope| {
        if count.fetch_add(1, Ordering::Relaxed) == 0 {
            envelope.reply.send(Err(lost(Outcome::Unknown)));
        } else {
            answer(envelope);
        }
    });
    let keyed = Call { idempotency: Some(IdempotencyKey::new("p-1").unwrap()), ..safe("a") };
    assert!(fixture.router.call(keyed).await.is_ok());
    assert_eq!(attempts.swap(0, Ordering::Relaxed), 2);
    assert_eq!(fixture.router.call(safe("a")).await.unwrap_err(), lost(Outcome::Unknown));
    assert_eq!(attempts.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn an_unknown_attempt_is_not_made_certain_by_a_later_refusal() {
    let attempts = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&attempts);
    let fixture = router(here(1), move |_, envelope| {
        let failure = match count.fetch_add(1, Ordering::Relaxed) {
            0 => lost(Outcome::Unknown),
            _ => Failure::Overloaded { retry_after_ms: 1, bound: "mailbox".to_owned() },
        };
        envelope.reply.send(Err(failure));
    });
    let keyed = Call { idempotency: Some(IdempotencyKey::new("p-1").unwrap()), ..safe("a") };
    let failed = fixture.router.call(keyed).await.unwrap_err();
    assert!(matches!(failed, Failure::Unavailable { outcome: Outcome::Unknown, .. }));
    assert!(attempts.load(Ordering::Relaxed) > 1);
}

#[tokio::test]
async fn what_no_lane_could_carry_is_refused_here() {
    let fixture = router(here(1), |_, _| panic!("refused before"));
    let refused = |call| fixture.router.call(call);
    let unknown = refused(Call { kind: KindId::of("nobody"), ..call("a") }).await;
    assert!(matches!(unknown, Err(Failure::Unknown { ref what }) if what == "kind"));
    let entity = EntityId { kind: KindId::of("account"), key: Key::new("a").unwrap() };
    let cycle = refused(Call { chain: vec![7, entity.hash64()], ..call("a") }).await;
    assert_eq!(cycle.unwrap_err(), Failure::Reentrant);
    let long = refused(Call { chain: vec![1; limits::CALL_CHAIN_MAX + 1], ..call("a") }).await;
    assert_eq!(long.unwrap_err(), Failure::Reentrant);
    let large = Bytes::from(vec![0; limits::PAYLOAD_BYTES_MAX + 1]);
    let large = refused(Call { payload: large, ..call("a") }).await;
    assert!(matches!(large, Err(Failure::Malformed { .. })));
}

#[tokio::test]
async fn a_deadline_is_clamped_to_the_longest_allowed() {
    let fixture = router(here(1), |_, envelope| {
        let left = envelope.deadline.saturating_since(clock::now());
        assert!(left <= Duration::from_secs(10) && left > Duration::from_secs(9));
        answer(envelope);
    });
    let long = Call { deadline: Duration::from_secs(3_600), ..call("a") };
    assert!(fixture.router.call(long).await.is_ok());
}

#[tokio::test]
async fn a_full_process_refuses_or_lets_wait_and_lets_turns_through() {
    let held: Arc<Mutex<Vec<Envelope>>> = Arc::default();
    let hold = Arc::clone(&held);
    let fixture = router(here(1), move |_, envelope| hold.lock().unwrap().push(envelope));
    let calls: Vec<_> =
        (0..100).map(|n| tokio::spawn(fixture.router.call(call(&format!("k{n}"))))).collect();
    until(|| held.lock().unwrap().len() == 100).await;
    let refuse = Call { pressure: Pressure::Refuse, ..call("x") };
    let refused = fixture.router.call(refuse.clone()).await.unwrap_err();
    assert!(matches!(refused, Failure::Overloaded { ref bound, .. } if bound == "memory"));
    let waits = tokio::spawn(fixture.router.call(call("y")));
    let nested = tokio::spawn(fixture.router.call(Call { chain: vec![1], ..refuse }));
    until(|| held.lock().unwrap().len() == 101).await;
    assert!(!waits.is_finished() && !nested.is_finished());
    while !waits.is_finished() || !calls.iter().all(tokio::task::JoinHandle::is_finished) {
        held.lock().unwrap().drain(..).for_each(answer);
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(waits.await.unwrap().is_ok() && nested.await.unwrap().is_ok());
    assert_eq!(fixture.intake.held(), (0, 0));
}

#[tokio::test]
async fn a_lane_that_does_not_answer_costs_the_deadline_and_the_outcome_is_unknown() {
    let held: Arc<Mutex<Vec<Envelope>>> = Arc::default();
    let hold = Arc::clone(&held);
    let fixture = router(here(1), move |_, envelope| hold.lock().unwrap().push(envelope));
    let short = Call { deadline: Duration::from_millis(100), ..call("a") };
    let failed = fixture.router.call(short).await.unwrap_err();
    assert_eq!(failed, Failure::Deadline { outcome: Outcome::Unknown });
    assert!(held.lock().unwrap()[0].reply.is_gone());
    assert_eq!(fixture.intake.held().0, 1, "the lane still has it");
    held.lock().unwrap().clear();
    assert_eq!(fixture.intake.held().0, 0);
}
