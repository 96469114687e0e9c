//! A lane without its thread: the test says when the journal's answers and the maps arrive.

mod fed;
mod fenced;
mod looks;
mod moves;
mod undone;
mod versions;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use mainstay_protocol::control::{
    Claim, ClusterState, Command, Handoff, Member, MemberState, ShardConfig,
};
use mainstay_protocol::id::{
    BootId, ClusterId, DiskId, EntityId, Epoch, IdempotencyKey, Key, KindId, NodeId, RequestId,
    Seq, ShardId,
};
use mainstay_protocol::message::{Failure, Pressure, Request};
use mainstay_protocol::passivation::Passivation;
use mainstay_protocol::replication::Position;
use mainstay_protocol::replication::freshness::Freshness;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, oneshot};

use super::core::{Core, Make};
use super::env::{Env, NoPort};
use super::kinds::Kinds;
use super::{Arriving, Input, LaneInbox, NewestMap};
use crate::call::{Call, CallFuture, CallPort};
use crate::clock;
use crate::config::Config;
use crate::entity::host::KindHost;
use crate::prelude::*;
use crate::shard::copies::Told;
use crate::shard::handoff::Departure;
use crate::shard::looks::Look;
use crate::storage::{self, Storage, Writer};
use crate::transport::reply::Envelope;
use crate::transport::{LocalCall, LocalCalls};

#[state(version = 1)]
struct Diary {
    lines: Vec<u64>,
}

#[entity(name = "diary")]
impl Diary {
    #[command]
    fn write(&mut self, line: u64) -> usize {
        self.lines.push(line);
        self.lines.len()
    }

    /// Takes for ever.
    #[command]
    async fn ponder(&mut self, _cx: &mut Cx<'_>, line: u64) -> usize {
        self.lines.push(line);
        std::future::pending::<()>().await;
        self.lines.len()
    }

    /// Has another diary written, and panics then if asked to.
    #[command]
    async fn dictate(&mut self, cx: &mut Cx<'_>, fail: bool) -> bool {
        let told = cx.get::<Self>("other").write(1).await;
        assert!(!fail, "as asked");
        told.is_ok()
    }

    /// Has another diary written, and takes for ever then.
    #[command]
    async fn consult(&mut self, cx: &mut Cx<'_>) -> bool {
        let told = cx.get::<Self>("other").write(1).await;
        std::future::pending::<()>().await;
        told.is_ok()
    }

    #[query]
    fn read(&self) -> Vec<u64> {
        self.lines.clone()
    }
}

/// Its own code fails outside every handler.
#[state(version = 1, default = "manual")]
struct Cursed {}

impl Default for Cursed {
    fn default() -> Self {
        panic!("no one may begin like this")
    }
}

#[entity(name = "cursed")]
impl Cursed {
    #[query]
    fn read(&self) {}
}

const SHARD: ShardId = ShardId(0);

fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn disk(name: &str) -> DiskId {
    DiskId::from_bytes([name.as_bytes()[1]; 16])
}

fn claim(name: &str) -> Claim {
    Claim { node: node(name), disk: disk(name), boot: BootId(1) }
}

fn entity(key: &str) -> EntityId {
    EntityId { kind: KindId::of("diary"), key: Key::new(key).unwrap() }
}

/// Notes what turns ask of others.
#[derive(Default)]
struct Recorder(Mutex<Vec<Call>>);

impl CallPort for Recorder {
    fn call(&self, call: Call) -> CallFuture {
        self.0.lock().unwrap().push(call);
        std::future::ready(Err(Failure::KeyConflict)).boxed()
    }
}

fn note<T>(noted: &Mutex<Vec<T>>, new: impl IntoIterator<Item = T>) {
    noted.lock().unwrap().extend(new);
}

/// Notes looks, and takes them all.
fn looker(
    looked: &Arc<Mutex<Vec<Look>>>,
) -> Arc<dyn Fn(Look) -> Result<(), Box<Look>> + Send + Sync> {
    let looked = Arc::clone(looked);
    Arc::new(move |look| {
        note(&looked, [look]);
        Ok(())
    })
}

/// The lane of node `n1`, with one shard.
struct Rig {
    core: Core,
    inbox: LaneInbox,
    calls: LocalCalls,
    registry: Arc<Registry>,
    departures: Arc<Mutex<Vec<Departure>>>,
    /// What those who feed other copies were told.
    told: Arc<Mutex<Vec<Told>>>,
    /// What was proposed to the control plane.
    proposed: Arc<Mutex<Vec<Command>>>,
    /// What standbys were asked to show.
    looked: Arc<Mutex<Vec<Look>>>,
    /// What queries say from here on.
    freshness: Option<Freshness>,
    map: ClusterState,
    /// The journal's answers, while they are held back.
    held: Option<Vec<Input>>,
    storage: Storage,
    asked: Arc<Recorder>,
    _dir: tempfile::TempDir,
}

impl Rig {
    /// `n1` serves the shard in epoch 1.
    async fn new() -> Self {
        Self::of(first_map()).await
    }

    /// A lane that sees this map.
    async fn of(map: ClusterState) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::default();
        let inbox = LaneInbox::default();
        let opened = storage::open(&config.storage, dir.path(), Some(&node("n1"))).unwrap();
        let news = inbox.clone();
        let notify: storage::Notify = Arc::new(move |it| {
            if let storage::News::Journal(it) = it
                && it.writer() == Writer::Lane(0)
            {
                drop(news.push(Input::Journal(it)));
            }
        });
        let (storage, _) = opened.start(notify).unwrap();
        let registry = Registry::new().entity::<Diary>().entity::<Cursed>();
        let registry =
            registry.entity::<versions::Brief>().entity::<undone::Frail>().build().unwrap();
        let departures: Arc<Mutex<Vec<Departure>>> = Arc::default();
        let departed = Arc::clone(&departures);
        let (told, proposed, looked) = (Arc::default(), Arc::default(), Arc::default());
        let (tells, proposes) = (Arc::clone(&told), Arc::clone(&proposed));
        let asked = Arc::new(Recorder::default());
        let env = Env {
            lane: 0,
            me: claim("n1"),
            inbox: inbox.clone(),
            journal: storage.journal().clone(),
            state: storage.state().clone(),
            kinds: Kinds::new(&registry),
            passivation: Passivation::new(1 << 20),
            port: Arc::clone(&asked) as Arc<dyn CallPort>,
            no_port: Arc::new(NoPort),
            blocking: Arc::new(Semaphore::new(1)),
            scratch: Vec::new(),
            slow_turn: Duration::from_secs(1),
            map_version: 0,
            shards_total: 1,
            limits: config.limits.clone(),
            told: Arc::new(move |told| note(&tells, told)),
            look: looker(&looked),
            propose: Arc::new(move |_, command| note(&proposes, [command])),
            departures: Arc::new(move |departure| departed.lock().unwrap().push(departure)),
            dirty_bytes: std::cell::Cell::new(0),
        };
        let make = Make {
            lanes: 1,
            turns_per_pass: 256,
            save_every: Duration::from_millis(1),
            recovered: Vec::new(),
            map: Arc::new(ClusterState { version: 0, ..map.clone() }),
        };
        let mut this = Self {
            core: Core::new(env, make),
            inbox,
            calls: LocalCalls::start(1, &tokio::runtime::Handle::current()),
            registry,
            departures,
            told,
            proposed,
            looked,
            freshness: None,
            map,
            held: None,
            storage,
            asked,
            _dir: dir,
        };
        this.publish(|_| {}).await;
        this
    }

    /// Lets the lane work until nothing has happened for a while.
    async fn settle(&mut self) {
        let mut quiet = 0;
        let mut batch = Vec::new();
        while quiet < 20 {
            self.inbox.take(&mut batch, &Context::from_waker(Waker::noop()));
            quiet = if batch.is_empty() { quiet + 1 } else { 0 };
            for input in batch.drain(..) {
                match (&mut self.held, input) {
                    (Some(held), input @ Input::Journal(_)) => held.push(input),
                    (_, input) => self.core.handle(input),
                }
            }
            while self.core.run() {}
            self.core.flush();
            self.core.handle(Input::Tick);
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Changes the shard's record in the map, and lets the lane see it.
    async fn publish(&mut self, change: impl FnOnce(&mut ShardConfig)) {
        self.plan(change);
        NewestMap::default().bring(&self.inbox, Arc::new(self.map.clone()));
        self.settle().await;
    }

    /// The same, unseen by the lane.
    fn plan(&mut self, change: impl FnOnce(&mut ShardConfig)) {
        self.map.version += 1;
        let config = &mut self.map.shards[0];
        config.version += 1;
        change(config);
    }

    /// Plans a move to this node.
    async fn plan_move(&mut self, to: &str) {
        let to = to.to_owned();
        self.publish(|config| {
            let plan = config.version;
            config.handoff = Some(Handoff { to: node(&to), disk: disk(&to), plan });
        })
        .await;
    }

    fn ask(&self, method: &str, arguments: &Value) -> LocalCall {
        self.ask_keyed(method, arguments, None)
    }

    fn ask_keyed(&self, method: &str, arguments: &Value, key: Option<&str>) -> LocalCall {
        self.ask_kind("diary", method, arguments, key)
    }

    fn kind(&self, name: &str) -> &dyn KindHost {
        &**self.registry.kind(KindId::of(name)).unwrap()
    }

    fn ask_kind(
        &self,
        kind: &str,
        method: &str,
        arguments: &Value,
        key: Option<&str>,
    ) -> LocalCall {
        let idempotency = key.map(|key| IdempotencyKey::new(key).unwrap());
        self.send(Request { idempotency, ..self.request(kind, method, arguments) })
    }

    fn request(&self, kind: &str, method: &str, arguments: &Value) -> Request {
        let host = self.kind(kind);
        let info = host.info();
        let at = info.methods.iter().position(|known| known.name == method).unwrap();
        let json = serde_json::to_vec(arguments).unwrap();
        let payload = host.arguments_from_json(at, &json).unwrap();
        Request {
            correlation: 0,
            id: RequestId { caller: 1, number: fastrand::u64(..) },
            shard: SHARD,
            epoch: Epoch(0),
            kind: info.id,
            key: Key::new("mine").unwrap(),
            method: info.methods[at].id,
            mode: info.methods[at].mode,
            pressure: Pressure::Wait,
            remaining_us: 10_000_000,
            idempotency: None,
            chain: Vec::new(),
            attempt: 0,
            trace: None,
            from_kind: None,
            freshness: self.freshness.map(Box::new),
            payload,
            if_version: None,
        }
    }

    fn send(&self, request: Request) -> LocalCall {
        let deadline = clock::now() + Duration::from_secs(10);
        let (reply, call) = self.calls.open(0, deadline, None);
        let envelope =
            Envelope { request, deadline, bytes: 100, source: 0, source_share: 64, reply };
        drop(self.inbox.push(Input::Request(envelope)));
        call
    }

    /// A line that must be acknowledged.
    async fn write(&mut self, line: u64) {
        let call = self.ask("write", &json!({ "line": line }));
        self.settle().await;
        assert!(answer(call).is_ok(), "line {line} is not acknowledged");
    }

    /// The lines that the tables hold.
    async fn stored(&self) -> Value {
        let (tell, told) = oneshot::channel();
        let done = move |result| drop(tell.send(result));
        self.storage.state().load(SHARD, entity("mine"), Box::new(done));
        let stored = told.await.unwrap().unwrap().unwrap();
        self.kind("diary").state_to_json(&stored.bytes).unwrap()["lines"].clone()
    }

    /// Where the tables say that the shard stands.
    async fn marked(&self) -> Position {
        let (tell, told) = oneshot::channel();
        let done = move |result| drop(tell.send(result));
        self.storage.state().open_shard(SHARD, Box::new(done));
        told.await.unwrap().unwrap().applied
    }

    /// Where the shard was ready to go, since the last look.
    fn departed(&self) -> Vec<Departure> {
        std::mem::take(&mut self.departures.lock().unwrap())
    }
}

/// What the call was answered; the lane has settled.
fn answer(call: LocalCall) -> Result<Bytes, Failure> {
    call.now_or_never().expect("the lane has settled").map(|success| success.value)
}

fn first_map() -> ClusterState {
    let member = |name: &str| Member {
        disk: disk(name),
        boot: BootId(1),
        peer_addr: String::new(),
        http_addr: String::new(),
        zone: String::new(),
        weight: 1,
        lanes: 1,
        state: MemberState::Up,
        wire_max: 1,
    };
    ClusterState {
        cluster: Some(ClusterId::from_bytes([9; 16])),
        version: 1,
        placement_version: 1,
        standbys: 0,
        min_insync: 1,
        grouping: BTreeMap::new(),
        members: ["n1", "n2", "n3"].map(|name| (node(name), member(name))).into(),
        draining: std::collections::BTreeSet::new(),
        shards: vec![ShardConfig {
            epoch: Epoch(1),
            version: 1,
            primary: Some(claim("n1")),
            in_sync: BTreeMap::from([(node("n1"), disk("n1"))]),
            targets: vec![node("n1")],
            handoff: None,
        }],
    }
}

/// A client repeats a keyed command whose first try panicked, or whose primary died, after it had
/// asked another entity: that must know the second request for the first one.
#[actix::test]
async fn what_a_keyed_command_asks_of_others_is_the_same_when_it_is_repeated() {
    let mut rig = Rig::new().await;
    for (fail, key) in [(true, Some("k")), (true, Some("k")), (false, None), (false, None)] {
        let call = rig.ask_keyed("dictate", &json!({ "fail": fail }), key);
        rig.settle().await;
        assert_eq!(matches!(answer(call), Err(Failure::Panicked { .. })), fail);
    }
    let asked = std::mem::take(&mut *rig.asked.0.lock().unwrap());
    let keys: Vec<_> = asked.into_iter().map(|call| call.idempotency.unwrap()).collect();
    assert_eq!(keys[0], keys[1]);
    assert_ne!(keys[2], keys[3], "without a key, two calls are two commands");
}

/// A `Default`, a `Migrate` or a decoder that panics is the trouble of its callers, not of the node.
#[actix::test]
async fn a_state_whose_own_code_panics_is_refused_and_the_lane_lives_on() {
    let mut rig = Rig::new().await;
    let call = rig.ask_kind("cursed", "read", &json!({}), None);
    rig.settle().await;
    assert!(matches!(answer(call), Err(Failure::Version { .. })));
    rig.write(1).await;
}
