//! Accepts connections, shakes hands, and passes each on to the room that it is for.
//!
//! It runs on the ingress runtime; the rooms poll what they get on their own threads. There are at
//! most so many connections, unfinished handshakes included; a few more are told that the node is
//! busy, the rest are closed unheard.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use mainstay_protocol::credits::window_beside;
use mainstay_protocol::id::BootId;
use mainstay_protocol::message::{
    Caller, Hello, Purpose, Reject, Tag, WIRE_VERSION, Welcome, Window,
};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::Config;
use super::control::AcceptedControl;
use super::frame::{self, HANDSHAKE_BYTES_MAX};
use super::handshake::{Accepter, Identity, WIRE_VERSION_MIN, reject_word};
use super::intake::Intake;
use super::meters;
use super::replication::{AcceptedReplication, Feeder};
use super::reply::Outbox;
use super::requests::Accepted;
use super::snapshots::AcceptedSnapshots;

/// Connections that are told "busy" at one time, beyond the limit.
const REFUSALS: usize = 64;

/// Who gets accepted connections. Called on the ingress runtime; must not block.
#[derive(Clone)]
pub struct Recipients {
    /// Request connections, for [`super::requests::serve`] on the thread of their lane.
    pub requests: Arc<dyn Fn(Accepted) + Send + Sync>,
    /// Control connections, for [`super::control::serve`].
    pub control: Arc<dyn Fn(AcceptedControl) + Send + Sync>,
    /// Snapshot connections, for [`super::snapshots::serve`].
    pub snapshots: Arc<dyn Fn(AcceptedSnapshots) + Send + Sync>,
    /// Replication connections, for [`super::replication::serve`].
    pub replication: Arc<dyn Fn(AcceptedReplication) + Send + Sync>,
}

impl fmt::Debug for Recipients {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Recipients").finish_non_exhaustive()
    }
}

/// The node that a listener stands for.
#[derive(Debug)]
pub struct House {
    /// What it says about itself.
    pub identity: Arc<Identity>,
    /// The settings of its connections.
    pub config: Config,
    /// How many lanes it has.
    pub lanes: u16,
    /// The bound on the requests of all connections together.
    pub intake: Intake,
    /// Who gets accepted connections.
    pub recipients: Recipients,
}

/// Why the node cannot listen. Nothing was opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {addr}")]
pub struct BindError {
    /// The address.
    pub addr: String,
    /// What the system says; `AddrInUse` when another process listens there.
    pub source: std::io::Error,
}

impl BindError {
    /// The error's code.
    pub fn code(&self) -> &'static str {
        match self.source.kind() {
            std::io::ErrorKind::AddrInUse => "MS-1101",
            _ => "MS-1001",
        }
    }
}

/// A bound socket that accepts nothing yet: the address is known before the node is complete.
#[derive(Debug)]
pub struct Listener {
    socket: TcpListener,
    addr: SocketAddr,
}

/// A place among the connections that a node takes.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
}

impl Listener {
    /// Binds `host:port`; port 0 takes a free one.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn bind(addr: &str) -> Result<Self, BindError> {
        let error = |source| BindError { addr: addr.to_owned(), source };
        let socket = TcpListener::bind(addr).await.map_err(error)?;
        let addr = socket.local_addr().map_err(error)?;
        Ok(Self { socket, addr })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Accepts until the future is dropped; connections that were passed on stay.
    ///
    /// # Panics
    /// When the identity is a client's: clients do not listen.
    pub async fn run(self, house: House) {
        let reception = Arc::new(Reception {
            places: Arc::new(Semaphore::new(house.config.connections as usize)),
            refusals: Arc::new(Semaphore::new(REFUSALS)),
            sources: AtomicU64::new(1),
            debts: Mutex::default(),
            identity: house.identity,
            config: Arc::new(house.config),
            lanes: house.lanes,
            intake: house.intake,
            recipients: house.recipients,
        });
        // dropped with this future: no handshake outlives the listener
        let mut handshakes = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                Some(_ended) = handshakes.join_next() => {}
                accepted = self.socket.accept() => match accepted {
                    Ok((stream, _)) => reception.receive(stream, &mut handshakes),
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        }
    }
}

/// The connections of each caller to each lane, as long as something of them is queued.
type Debts = BTreeMap<(String, u16), Vec<Weak<Outbox>>>;

struct Reception {
    places: Arc<Semaphore>,
    refusals: Arc<Semaphore>,
    sources: AtomicU64,
    debts: Mutex<Debts>,
    identity: Arc<Identity>,
    config: Arc<Config>,
    lanes: u16,
    intake: Intake,
    recipients: Recipients,
}

impl Reception {
    fn receive(self: &Arc<Self>, stream: TcpStream, handshakes: &mut JoinSet<()>) {
        let place = Arc::clone(&self.places).try_acquire_owned();
        let refusal = Arc::clone(&self.refusals);
        let this = Arc::clone(self);
        let busy = match place {
            Ok(permit) => {
                handshakes.spawn(async move {
                    this.shake(stream, Some(Place { _permit: permit })).await;
                });
                return;
            }
            Err(_) => refusal.try_acquire_owned(),
        };
        if let Ok(permit) = busy {
            handshakes.spawn(async move {
                this.shake(stream, None).await;
                drop(permit);
            });
        } else {
            meters::handshake_failed("busy");
        }
    }

    async fn shake(&self, mut stream: TcpStream, place: Option<Place>) {
        let hands = self.hands(&mut stream, place.is_some());
        let welcome = match tokio::time::timeout(self.config.handshake_timeout, hands).await {
            Ok(Some(welcome)) => welcome,
            Ok(None) => return,
            Err(_) => return meters::handshake_failed("timeout"),
        };
        let (Some(place), Ok(socket)) = (place, stream.into_std()) else { return };
        self.pass_on(welcome, socket, place);
    }

    /// Both first frames; `None` when the connection is not to be kept.
    async fn hands(&self, stream: &mut TcpStream, room: bool) -> Option<Welcomed> {
        stream.set_nodelay(true).ok()?;
        let result = match frame::read_frame(stream, HANDSHAKE_BYTES_MAX).await {
            Ok((Tag::Hello, body)) => match frame::decode::<Hello>(&body) {
                Ok(hello) => self.consider(hello, room),
                Err(error) => Err(Reject::Malformed { reason: error.to_string() }),
            },
            Ok((tag, _)) => Err(Reject::Malformed { reason: format!("a {tag:?} came first") }),
            Err(frame::ReadError::Frame(error)) => {
                Err(Reject::Malformed { reason: error.to_string() })
            }
            Err(frame::ReadError::Closed | frame::ReadError::Io(_)) => {
                meters::handshake_failed("closed");
                return None;
            }
        };
        let mut out = Vec::with_capacity(256);
        match &result {
            Ok(welcomed) => frame::encode(Tag::Welcome, &welcomed.welcome, &mut out),
            Err(reject) => {
                meters::handshake_failed(reject_word(reject));
                tracing::debug!(%reject, "refused a connection");
                frame::encode(Tag::Reject, reject, &mut out)
            }
        }
        .expect("our own first frames fit");
        stream.write_all(&out).await.ok()?;
        if result.is_err() {
            stream.shutdown().await.ok()?;
        }
        result.ok()
    }

    fn consider(&self, hello: Hello, room: bool) -> Result<Welcomed, Reject> {
        let Caller::Node { node, boot, .. } = self.identity.caller() else {
            unreachable!("clients do not listen");
        };
        let cluster = self.identity.cluster();
        let wire = (WIRE_VERSION_MIN, WIRE_VERSION);
        let accepter = Accepter { node: node.clone(), cluster, lanes: self.lanes, wire };
        let wire = accepter.check(&hello)?;
        if !room {
            let reason = format!("{} connections are open", self.config.connections);
            return Err(Reject::Busy { reason });
        }
        let (outbox, window) = match hello.purpose {
            Purpose::Requests { lane } => {
                let (outbox, window) = self.open_window(&hello.caller, lane);
                (Some(outbox), window)
            }
            Purpose::Control | Purpose::Snapshots | Purpose::Replication => {
                (None, self.config.window)
            }
        };
        let welcome = self.welcome(wire, *boot, window, &accepter);
        Ok(Welcomed { hello, welcome, outbox })
    }

    fn welcome(&self, wire: u16, boot: BootId, window: Window, accepter: &Accepter) -> Welcome {
        Welcome {
            wire,
            cluster: accepter.cluster,
            node: accepter.node.clone(),
            boot,
            lanes: self.lanes,
            window,
            map_version: self.identity.map_version(),
        }
    }

    /// The window of a new connection: without what earlier ones of this caller left queued.
    fn open_window(&self, caller: &Caller, lane: u16) -> (Arc<Outbox>, Window) {
        let name = match caller {
            Caller::Node { node, .. } => format!("node {node}"),
            Caller::Client { name } => format!("client {name}"),
        };
        let mut debts = self.debts.lock().unwrap_or_else(PoisonError::into_inner);
        if debts.len() > 2 * self.config.connections as usize {
            debts.retain(|_, outboxes| outboxes.iter().any(|outbox| outbox.strong_count() > 0));
        }
        let outboxes = debts.entry((name, lane)).or_default();
        outboxes.retain(|outbox| outbox.strong_count() > 0);
        let nothing = Window { messages: 0, bytes: 0 };
        let queued = outboxes.iter().filter_map(Weak::upgrade).fold(nothing, |sum, outbox| {
            let more = outbox.outstanding();
            Window { messages: sum.messages + more.messages, bytes: sum.bytes + more.bytes }
        });
        let window = window_beside(self.config.window, queued);
        let outbox = Outbox::new(caller.clone(), lane, window, self.config.unread_bytes_max);
        outboxes.push(Arc::downgrade(&outbox));
        (outbox, window)
    }

    fn pass_on(&self, welcomed: Welcomed, socket: std::net::TcpStream, place: Place) {
        let Welcomed { hello, outbox, .. } = welcomed;
        let config = Arc::clone(&self.config);
        match hello.purpose {
            Purpose::Requests { .. } => (self.recipients.requests)(Accepted {
                socket,
                outbox: outbox.expect("made with the welcome of every request connection"),
                source: self.sources.fetch_add(1, Ordering::Relaxed),
                intake: self.intake.clone(),
                config,
                place,
            }),
            Purpose::Control => (self.recipients.control)(AcceptedControl {
                socket,
                caller: hello.caller,
                config,
                place,
            }),
            Purpose::Snapshots => (self.recipients.snapshots)(AcceptedSnapshots {
                socket,
                caller: hello.caller,
                config,
                place,
            }),
            Purpose::Replication => {
                let from = Feeder::of(hello.caller).expect("clients were refused");
                (self.recipients.replication)(AcceptedReplication { socket, from, config, place });
            }
        }
    }
}

struct Welcomed {
    hello: Hello,
    welcome: Welcome,
    outbox: Option<Arc<Outbox>>,
}
