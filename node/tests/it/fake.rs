//! A node of one kind, one shard and one thread: enough to see what the HTTP layer makes of it.

use std::collections::{BTreeMap, VecDeque};
use std::future::ready;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay::call::{Answer, Call, CallFuture};
use mainstay::config::Config;
use mainstay::entity::host::KindHost;
use mainstay::events::EventLog;
use mainstay::protocol::control::{Claim, ClusterState, Event, Member, MemberState, ShardConfig};
use mainstay::protocol::id::{
    BootId, ClusterId, DiskId, EntityId, Epoch, KindId, NodeId, Seq, ShardId, Token,
};
use mainstay::protocol::message::{Failure, Outcome, Pressure, Success};
use mainstay_node::backend::{
    AdminError, Backend, BoxFuture, Check, EntityRow, EventFeed, Inspection, Launch, LaunchError,
    LocalityRow, MemberChange, NodeView, Permit, Phase, Probe, Scan,
};
use mainstay_node::http::{Api, CallLimits, admin_router, api_router, server};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};

use crate::kind::{Counter, counter_info};

/// Bytes of requests that the fake takes at one time.
pub(crate) const ROOM: u32 = 4 << 20;

pub(crate) fn limits() -> CallLimits {
    CallLimits {
        body_bytes: 1 << 20,
        body_timeout: Duration::from_millis(400),
        answer_bytes: 2 << 20,
        deadline_max: Duration::from_secs(60),
    }
}

/// A fake node that listens.
pub(crate) struct Served {
    pub(crate) node: Arc<Fake>,
    pub(crate) api: SocketAddr,
    pub(crate) admin: SocketAddr,
    _stop: watch::Sender<bool>,
}

impl Served {
    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.api)
    }

    pub(crate) fn admin_url(&self, path: &str) -> String {
        format!("http://{}{path}", self.admin)
    }
}

/// A fake node behind both listeners, on free ports.
pub(crate) async fn serve() -> Served {
    serve_patiently(Duration::from_millis(400)).await
}

/// The same, waiting this long for a reader that takes nothing.
pub(crate) async fn serve_patiently(stall_timeout: Duration) -> Served {
    let node = Arc::new(Fake::new());
    let (stop, stopping) = watch::channel(false);
    let api = Api::new(limits(), None, stopping.clone());
    api.attach(Arc::clone(&node) as Arc<dyn Backend>);
    api.open();
    let mut addresses = Vec::new();
    for router in [api_router(api.clone()), admin_router(api)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(listener.local_addr().unwrap());
        let limits = server::Limits {
            connections: 8,
            header_timeout: Duration::from_millis(400),
            stall_timeout,
        };
        tokio::spawn(server::serve(listener, router, limits, stopping.clone()));
    }
    Served { node, api: addresses[0], admin: addresses[1], _stop: stop }
}

/// Starts fakes, as a program's registry starts clusters.
pub(crate) struct Launcher {
    /// What to refuse to start with.
    pub(crate) refusal: Option<LaunchError>,
    /// How the node ends by itself, once it is up.
    pub(crate) ends: Option<Result<(), LaunchError>>,
}

impl Launch for Launcher {
    fn kinds(&self) -> Vec<&'static str> {
        vec!["account"]
    }

    fn launch(self: Box<Self>, _: Config) -> BoxFuture<Result<Arc<dyn Backend>, LaunchError>> {
        Box::pin(ready(match self.refusal {
            Some(refusal) => Err(refusal),
            None => Ok(Arc::new(Fake { ends: self.ends, ..Fake::new() }) as Arc<dyn Backend>),
        }))
    }
}

/// The node.
pub(crate) struct Fake {
    kind: Arc<dyn KindHost>,
    room: Arc<Semaphore>,
    entities: Arc<Mutex<BTreeMap<String, i64>>>,
    seen: Mutex<BTreeMap<String, (Bytes, Success)>>,
    pub(crate) calls: Mutex<VecDeque<Call>>,
    pub(crate) state: Mutex<ClusterState>,
    pub(crate) events: EventLog,
    pub(crate) checks: Mutex<Vec<Check>>,
    /// A member that is drained has left at once.
    pub(crate) leaves: AtomicBool,
    ends: Option<Result<(), LaunchError>>,
}

pub(crate) fn name(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

impl Fake {
    fn new() -> Self {
        let events = EventLog::new(name("n1"));
        events.record(1, [Event::MemberJoined { node: name("n1") }]);
        Self {
            kind: Arc::new(Counter { info: counter_info() }),
            room: Arc::new(Semaphore::new(ROOM as usize)),
            entities: Arc::default(),
            seen: Mutex::default(),
            calls: Mutex::default(),
            state: Mutex::new(two_nodes()),
            events,
            checks: Mutex::new(vec![Check {
                name: "member",
                probe: Probe::Ready,
                ok: true,
                text: "of a cluster of 2".to_owned(),
            }]),
            leaves: AtomicBool::new(false),
            ends: None,
        }
    }

    fn token(&self) -> Token {
        let seq = Seq(self.calls.lock().unwrap().len() as u64);
        Token { shard: ShardId(0), epoch: Epoch(3), seq }
    }

    fn success(&self, value: &Value) -> Success {
        let value = Bytes::from(serde_json::to_vec(value).unwrap());
        Success { value, token: self.token(), replayed: false, place: None }
    }

    fn run(&self, call: &Call) -> Result<Success, Failure> {
        if let Some(key) = call.idempotency.as_ref().map(|key| key.as_str().to_owned()) {
            let mut seen = self.seen.lock().unwrap();
            if let Some((payload, success)) = seen.get(&key) {
                let same = *payload == call.payload;
                let replay = Success { replayed: true, ..success.clone() };
                return if same { Ok(replay) } else { Err(Failure::KeyConflict) };
            }
            let success = self.turn(call)?;
            seen.insert(key, (call.payload.clone(), success.clone()));
            return Ok(success);
        }
        self.turn(call)
    }

    fn turn(&self, call: &Call) -> Result<Success, Failure> {
        let arguments: Value = serde_json::from_slice(&call.payload).unwrap();
        let method = counter_info().methods.into_iter().find(|info| info.id == call.method);
        let mut entities = self.entities.lock().unwrap();
        let value = entities.entry(call.key.as_str().to_owned()).or_default();
        // The fake's version of everything is the number of calls before.
        if call.if_version.is_some_and(|version| version != self.token().seq) {
            return Err(Failure::VersionMismatch { token: self.token() });
        }
        match method.unwrap().name {
            "add" => {
                *value += arguments["by"].as_i64().unwrap();
                let value = *value;
                drop(entities);
                Ok(self.success(&json!(value)))
            }
            "big" => Ok(self.success(&json!("x".repeat(900_000)))),
            "get" => Ok(self.success(&json!(*value))),
            _ => Err(self.failure(arguments["how"].as_str().unwrap())),
        }
    }

    pub(crate) fn failure(&self, how: &str) -> Failure {
        let unavailable = |outcome| Failure::Unavailable { outcome, reason: "gone".to_owned() };
        match how {
            "app" => {
                let error = Bytes::from_static(b"{\"Poor\":5}");
                Failure::App { error, token: self.token(), replayed: true }
            }
            "app-unreadable" => {
                let error = Bytes::from_static(b"{");
                Failure::App { error, token: self.token(), replayed: false }
            }
            "overloaded" => {
                Failure::Overloaded { retry_after_ms: 1500, bound: "mailbox".to_owned() }
            }
            "late" => Failure::Deadline { outcome: Outcome::NotExecuted },
            "late-unknown" => Failure::Deadline { outcome: Outcome::Unknown },
            "not-primary" => Failure::NotPrimary { map_version: 1, primary: None },
            "unavailable" => unavailable(Outcome::NotExecuted),
            "unavailable-unknown" => unavailable(Outcome::Unknown),
            "malformed" => Failure::Malformed { reason: "`by` is missing".to_owned() },
            "reentrant" => Failure::Reentrant,
            "mismatch" => Failure::VersionMismatch { token: self.token() },
            "panicked" => Failure::Panicked { quarantined: false },
            "quarantined" => Failure::Panicked { quarantined: true },
            "stale" => Failure::Stale { reason: "the standby is at 0.3.1".to_owned() },
            "version" => Failure::Version { reason: "state of version 9".to_owned() },
            "unknown-kind" => Failure::Unknown { what: "kind".to_owned() },
            other => panic!("no failure {other}"),
        }
    }
}

impl Backend for Fake {
    fn ready(&self) -> BoxFuture<Result<(), LaunchError>> {
        Box::pin(ready(Ok(())))
    }

    fn ended(&self) -> BoxFuture<Result<(), LaunchError>> {
        match &self.ends {
            Some(end) => Box::pin(ready(end.clone())),
            None => Box::pin(std::future::pending()),
        }
    }

    fn kinds(&self) -> Vec<Arc<dyn KindHost>> {
        vec![Arc::clone(&self.kind)]
    }

    fn kind(&self, name: &str) -> Option<Arc<dyn KindHost>> {
        (name == "counter").then(|| Arc::clone(&self.kind))
    }

    fn call(&self, call: Call) -> CallFuture {
        if String::from_utf8_lossy(&call.payload).contains("never") {
            return Box::pin(std::future::pending());
        }
        let answer = self.run(&call).map(|success| Answer { success, served_by: None });
        self.calls.lock().unwrap().push_back(call);
        Box::pin(ready(answer))
    }

    fn reserve(&self, bytes: u64) -> BoxFuture<Box<dyn Permit>> {
        let room = Arc::clone(&self.room);
        Box::pin(async move {
            let permit = room.acquire_many_owned(u32::try_from(bytes).unwrap()).await.unwrap();
            Box::new(Room(permit)) as Box<dyn Permit>
        })
    }

    fn try_reserve(&self, bytes: u64) -> Option<Box<dyn Permit>> {
        let permit = Arc::clone(&self.room).try_acquire_many_owned(u32::try_from(bytes).unwrap());
        permit.ok().map(|permit| Box::new(Room(permit)) as Box<dyn Permit>)
    }

    fn state(&self) -> Arc<ClusterState> {
        Arc::new(self.state.lock().unwrap().clone())
    }

    fn node(&self) -> NodeView {
        NodeView {
            name: name("n1"),
            boot: BootId(1),
            zone: String::new(),
            phase: Phase::Ready,
            uptime: Duration::from_secs(61),
            lanes: 2,
            leader: Some(name("n1")),
            peers_addr: "127.0.0.1:7000".to_owned(),
            entities: 1,
            state_bytes: 2048,
            requests: 0,
            checks: self.checks.lock().unwrap().clone(),
        }
    }

    fn events(&self, after: u64) -> EventFeed {
        let (kept, live) = self.events.since(after);
        EventFeed { kept, live }
    }

    fn scan(&self, scan: Scan) -> BoxFuture<Result<Vec<EntityRow>, AdminError>> {
        let entities = self.entities.lock().unwrap();
        let after = |key: &String| scan.after.as_ref().is_none_or(|after| key > after);
        let rows = entities
            .iter()
            .filter(|(key, _)| key.starts_with(&scan.prefix) && after(key))
            .take(scan.limit as usize)
            .map(|(key, _)| EntityRow {
                key: key.clone(),
                shard: ShardId(0),
                seq: Seq(1),
                state_bytes: 8,
                active: true,
            })
            .collect();
        Box::pin(ready(Ok(rows)))
    }

    fn inspect(&self, entity: EntityId) -> BoxFuture<Result<Inspection, AdminError>> {
        let value = self.entities.lock().unwrap().get(entity.key.as_str()).copied();
        let primary = match entity.key.as_str() {
            "elsewhere" => Some(name("n2")),
            "nowhere" => None,
            _ => Some(name("n1")),
        };
        Box::pin(ready(Ok(Inspection {
            shard: ShardId(0),
            primary,
            seq: Seq(u64::from(value.is_some())),
            state: value.map(|value| Bytes::from(value.to_string())),
            active: value.is_some(),
        })))
    }

    fn change_member(&self, change: MemberChange) -> BoxFuture<Result<(), AdminError>> {
        let mut state = self.state.lock().unwrap();
        let node = change.node().clone();
        let Some(member) = state.members.get_mut(&node) else {
            return Box::pin(ready(Err(AdminError::NoMember { node })));
        };
        let changed = match change {
            MemberChange::Drain(_) => {
                member.state = MemberState::Draining;
                state.shards.iter_mut().for_each(|shard| shard.primary = None);
                if self.leaves.load(Ordering::SeqCst) {
                    state.members.remove(&node);
                }
                Ok(())
            }
            MemberChange::Undrain(_) => {
                member.state = MemberState::Up;
                Ok(())
            }
            MemberChange::Remove(_) => {
                Err(AdminError::Conflict { reason: format!("member {node} still holds 2 shards") })
            }
        };
        Box::pin(ready(changed))
    }

    fn locality(&self) -> Vec<LocalityRow> {
        let row = |from, [local, local_bytes, remote, remote_bytes]: [u64; 4]| LocalityRow {
            from,
            to: KindId::of("counter"),
            local,
            local_bytes,
            remote,
            remote_bytes,
        };
        let dear = row(None, [3, 30, 1, 5 << 20]);
        vec![dear, row(Some(KindId::of("counter")), [90, 900, 10, 100])]
    }

    fn shutdown(&self) -> BoxFuture<()> {
        Box::pin(ready(()))
    }
}

struct Room(tokio::sync::OwnedSemaphorePermit);

impl Permit for Room {
    fn shrink_to(&mut self, bytes: u64) {
        let more = self.0.num_permits().saturating_sub(usize::try_from(bytes).unwrap());
        drop(self.0.split(more));
    }
}

fn two_nodes() -> ClusterState {
    let member = |at: u8| Member {
        disk: DiskId::from_bytes([at; 16]),
        boot: BootId(1),
        peer_addr: format!("127.0.0.1:700{at}"),
        http_addr: format!("127.0.0.1:808{at}"),
        zone: String::new(),
        weight: 1,
        lanes: 2,
        state: MemberState::Up,
        wire_max: 1,
    };
    let shard = |at: u8| ShardConfig {
        epoch: Epoch(1),
        version: 1,
        primary: Some(Claim {
            node: name(&format!("n{at}")),
            disk: DiskId::from_bytes([at; 16]),
            boot: BootId(1),
        }),
        in_sync: [(name(&format!("n{at}")), DiskId::from_bytes([at; 16]))].into(),
        targets: vec![name(&format!("n{at}"))],
        handoff: None,
    };
    ClusterState {
        cluster: Some(ClusterId::from_bytes([7; 16])),
        version: 5,
        standbys: 0,
        min_insync: 1,
        grouping: BTreeMap::new(),
        members: [(name("n1"), member(1)), (name("n2"), member(2))].into(),
        shards: vec![shard(1), shard(2), shard(1)],
        ..ClusterState::default()
    }
}

/// Whether a call would have waited for room.
pub(crate) fn waited(call: &Call) -> bool {
    call.pressure == Pressure::Wait
}
