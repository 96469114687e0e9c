//! The transport over real sockets: a listener with a lane on a thread of its own, and links,
//! channels or raw sockets that call it.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{
    BootId, ClusterId, DiskId, Epoch, Key, KindId, MethodId, NodeId, RequestId, Seq, ShardId, Token,
};
use mainstay_protocol::message::{
    Cancel, ControlAnswer, ControlBody, ControlRequest, Failure, Hello, MAGIC, Mode, Outcome,
    Pressure, Purpose, Reject, Request, Success, Tag, Welcome, Window,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::LocalSet;

use super::Config;
use super::control::{self, AskError, ControlChannel, ControlHandler};
use super::frame;
use super::handshake::{DialError, Identity, dial};
use super::intake::Intake;
use super::links::Links;
use super::listener::{House, Listener, Recipients};
use super::replication as feeds;
use super::reply::{Envelope, ReplyHandle};
use super::requests::{self, Accepted, Closed, Inbound};
use super::snapshots::{self, SendError, SnapshotHandler, SnapshotLink};
use crate::clock;

mod failures;
mod questions;
mod replication;
mod windows;
mod strangers;

pub(crate) const CLUSTER: ClusterId = ClusterId::from_bytes([7; 16]);

pub(crate) fn node(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

pub(crate) fn identity(name: &str) -> Arc<Identity> {
    let disk = DiskId::from_bytes([1; 16]);
    Arc::new(Identity::node(node(name), disk, BootId(1), Some(CLUSTER)))
}

pub(crate) fn small(messages: u32) -> Config {
    Config {
        window: Window { messages, bytes: 1 << 20 },
        handshake_timeout: Duration::from_millis(500),
        backoff_base: Duration::from_millis(5),
        backoff_max: Duration::from_millis(20),
        ..Config::default()
    }
}

/// A node with one lane on its own thread.
pub(crate) struct Node {
    pub(crate) addr: SocketAddr,
    closed: mpsc::Receiver<Closed>,
    accepting: tokio::task::JoinHandle<()>,
    lane: mpsc::Sender<LaneMessage>,
}

/// What a node is made of.
pub(crate) struct Plan {
    pub(crate) name: &'static str,
    pub(crate) addr: String,
    pub(crate) config: Config,
    pub(crate) intake: Intake,
    pub(crate) control: ControlHandler,
    pub(crate) snapshots: SnapshotHandler,
    pub(crate) appended: mpsc::Sender<feeds::Appended>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            name: "n1",
            addr: "127.0.0.1:0".to_owned(),
            config: Config::default(),
            intake: Intake::new(10_000, 1 << 30),
            control: Arc::new(|caller, body| Box::pin(answer_control(caller, body))),
            snapshots: Arc::new(|_, message| {
                Box::pin(std::future::ready(answer_snapshot(&message)))
            }),
            appended: mpsc::channel(1).0,
        }
    }
}

enum LaneMessage {
    Serve(Accepted),
    CutAll,
}

impl Node {
    async fn start(config: Config, handler: impl FnMut(Inbound) + Send + 'static) -> Self {
        Self::of(Plan { config, ..Plan::default() }, handler).await
    }

    pub(crate) async fn of(plan: Plan, handler: impl FnMut(Inbound) + Send + 'static) -> Self {
        let listener = Listener::bind(&plan.addr).await.unwrap();
        let addr = listener.addr();
        let (lane, accepted) = mpsc::channel(1_000);
        let (closed_sender, closed) = mpsc::channel(1_000);
        std::thread::spawn(move || run_lane(accepted, &closed_sender, handler));
        let (to_lane, to_lane_too, dies) = (lane.clone(), lane.clone(), lane.clone());
        let recipients = Recipients {
            requests: Arc::new(move |accepted| {
                to_lane.try_send(LaneMessage::Serve(accepted)).expect("a lane that takes");
            }),
            control: Arc::new(move |accepted| {
                let dies = to_lane_too.clone();
                let serving = control::serve(accepted, Arc::clone(&plan.control));
                // control connections die with the node as well
                tokio::spawn(async move {
                    tokio::select! {
                        () = serving => {}
                        () = dies.closed() => {}
                    }
                });
            }),
            snapshots: Arc::new(move |accepted| {
                tokio::spawn(snapshots::serve(accepted, Arc::clone(&plan.snapshots)));
            }),
            replication: Arc::new(move |accepted| {
                let (dies, inbox) = (dies.clone(), plan.appended.clone());
                tokio::spawn(async move {
                    tokio::select! {
                        _ = feeds::serve(accepted, inbox) => {}
                        () = dies.closed() => {}
                    }
                });
            }),
        };
        let (config, intake) = (plan.config, plan.intake);
        let house = House { identity: identity(plan.name), config, lanes: 1, intake, recipients };
        let accepting = tokio::spawn(listener.run(house));
        Self { addr, closed, accepting, lane }
    }

    /// The process dies: no listener, no connections.
    pub(crate) async fn kill(self) {
        self.accepting.abort();
        drop(self.accepting.await);
        self.lane.send(LaneMessage::CutAll).await.expect("a lane that takes");
    }
}

fn links_with(config: Config) -> Links {
    Links::new(identity("n2"), config, tokio::runtime::Handle::current())
}

fn run_lane(
    mut messages: mpsc::Receiver<LaneMessage>,
    closed: &mpsc::Sender<Closed>,
    handler: impl FnMut(Inbound) + 'static,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handler = std::rc::Rc::new(std::cell::RefCell::new(handler));
    LocalSet::new().block_on(&runtime, async move {
        let mut serving: Vec<tokio::task::JoinHandle<()>> = Vec::new();
        while let Some(message) = messages.recv().await {
            match message {
                LaneMessage::Serve(accepted) => {
                    let (handler, closed) = (handler.clone(), closed.clone());
                    serving.push(tokio::task::spawn_local(async move {
                        let handle = |batch: &mut Vec<Inbound>| {
                            batch.drain(..).for_each(&mut *handler.borrow_mut());
                        };
                        drop(closed.send(requests::serve(accepted, handle).await).await);
                    }));
                }
                LaneMessage::CutAll => {
                    messages.close();
                    for task in serving.drain(..) {
                        task.abort();
                        drop(task.await);
                    }
                }
            }
        }
    });
}

async fn answer_control(
    _caller: mainstay_protocol::message::Caller,
    body: ControlBody,
) -> Result<ControlAnswer, String> {
    match body {
        ControlBody::Map { have: 0 } => Ok(ControlAnswer::Map(None)),
        ControlBody::Map { have } => {
            tokio::time::sleep(Duration::from_millis(have)).await;
            Ok(ControlAnswer::Consensus(Bytes::from(have.to_string())))
        }
        ControlBody::Consensus { body, .. } => Ok(ControlAnswer::Consensus(body)),
        _ => Err("no".to_owned()),
    }
}

fn answer_snapshot(message: &Bytes) -> Result<Bytes, String> {
    if message.is_empty() { Err("empty".to_owned()) } else { Ok(message.slice(..1)) }
}

pub(crate) fn request(payload: Bytes) -> Request {
    Request {
        correlation: 0,
        id: RequestId { caller: 1, number: 1 },
        shard: ShardId(0),
        epoch: Epoch(1),
        kind: KindId(1),
        key: Key::new("k").unwrap(),
        method: MethodId(1),
        mode: Mode::Command,
        pressure: Pressure::Wait,
        remaining_us: 1_000_000,
        idempotency: None,
        chain: Vec::new(),
        attempt: 0,
        trace: None,
        from_kind: None,
        freshness: None,
        payload,
        if_version: None,
    }
}

pub(crate) fn success(value: Bytes) -> Success {
    let token = Token { shard: ShardId(0), epoch: Epoch(1), seq: Seq(1) };
    Success { value, token, replayed: false, place: None }
}

pub(crate) fn echo(inbound: Inbound) {
    if let Inbound::Request(envelope) = inbound {
        envelope.reply.send(Ok(success(envelope.request.payload)));
    }
}

type Held = Arc<Mutex<Vec<Envelope>>>;

/// A handler that answers nothing, and what it holds.
fn hold() -> (Held, impl FnMut(Inbound) + Send + 'static) {
    let held = Held::default();
    let into = Arc::clone(&held);
    let handler = move |inbound| {
        if let Inbound::Request(envelope) = inbound {
            into.lock().unwrap().push(envelope);
        }
    };
    (held, handler)
}

fn soon() -> mainstay_protocol::time::Instant {
    clock::now() + Duration::from_secs(20)
}

pub(crate) async fn until(mut fact: impl FnMut() -> bool) {
    for _ in 0..2_000 {
        if fact() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the fact did not come true in ten seconds");
}

/// A caller that speaks the protocol but keeps no account.
async fn raw(addr: SocketAddr) -> (TcpStream, Welcome) {
    let purpose = Purpose::Requests { lane: 0 };
    let caller = Identity::client(format!("raw-{}", fastrand::u64(..)));
    dial(&caller, &Config::default(), &addr.to_string(), Some(node("n1")), purpose).await.unwrap()
}

fn frames(count: u64, payload: &Bytes) -> Vec<u8> {
    let mut out = Vec::new();
    for correlation in 0..count {
        let request = Request { correlation, ..request(payload.clone()) };
        frame::encode(Tag::Request, &request, &mut out).unwrap();
    }
    out
}
