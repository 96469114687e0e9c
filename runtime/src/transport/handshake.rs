//! The first frame each way: who calls whom, in which cluster and version, and what for.
//!
//! The accepter checks in this order: protocol, version, cluster, node, purpose. What it refuses is
//! said in a [`Reject`]; nothing was executed. The caller checks the welcome in turn: an address
//! may have come to belong to another node.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use mainstay_protocol::id::{BootId, ClusterId, DiskId, NodeId, check_name};
use mainstay_protocol::message::{
    Caller, Hello, MAGIC, Purpose, Reject, Tag, WIRE_VERSION, Welcome,
};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use super::Config;
use super::frame::{self, FrameError, HANDSHAKE_BYTES_MAX, ReadError};
use super::meters;

/// The oldest wire version that this build understands.
pub const WIRE_VERSION_MIN: u16 = if WIRE_VERSION > 1 { WIRE_VERSION - 1 } else { WIRE_VERSION };
/// Bytes of a client's name.
const CLIENT_NAME_BYTES_MAX: usize = 128;

/// What a process says about itself in handshakes. One per process, shared by all connections.
#[derive(Debug)]
pub struct Identity {
    caller: Caller,
    cluster: Mutex<Option<ClusterId>>,
    map_version: AtomicU64,
}

impl Identity {
    /// A node; it learns its cluster later when it has not joined one.
    pub fn node(node: NodeId, disk: DiskId, boot: BootId, cluster: Option<ClusterId>) -> Self {
        Self::new(Caller::Node { node, disk, boot }, cluster)
    }

    /// A client program. `name` should tell processes apart: what an earlier connection of the
    /// same name left in queues counts against the next one's window.
    pub fn client(name: String) -> Self {
        Self::new(Caller::Client { name }, None)
    }

    fn new(caller: Caller, cluster: Option<ClusterId>) -> Self {
        Self { caller, cluster: Mutex::new(cluster), map_version: AtomicU64::new(0) }
    }

    /// Who this process is.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The cluster, once known.
    pub fn cluster(&self) -> Option<ClusterId> {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of the cluster that this process joined. Connections opened before stay.
    pub fn set_cluster(&self, cluster: ClusterId) {
        *self.cluster.lock().unwrap_or_else(PoisonError::into_inner) = Some(cluster);
    }

    /// Takes note of the version of the map held here, told in welcomes.
    pub fn set_map_version(&self, version: u64) {
        self.map_version.store(version, Ordering::Relaxed);
    }

    /// The version of the map held here.
    pub fn map_version(&self) -> u64 {
        self.map_version.load(Ordering::Relaxed)
    }

    pub(super) fn hello(&self, to: Option<NodeId>, purpose: Purpose) -> Hello {
        Hello {
            magic: MAGIC,
            wire_min: WIRE_VERSION_MIN,
            wire_max: WIRE_VERSION,
            cluster: self.cluster(),
            caller: self.caller.clone(),
            to,
            purpose,
        }
    }
}

/// Why there is no connection. Nothing was sent on it, so nothing was executed.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody answers there. Try again, or elsewhere.
    #[error("cannot connect to {addr}")]
    Connect {
        /// The address.
        addr: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The handshake did not end in time. Try again, or elsewhere.
    #[error("no handshake with {addr} in time")]
    Timeout {
        /// The address.
        addr: String,
    },
    /// The peer refused; the reason says whether another try can help.
    #[error("{addr} refused the connection: {reject}")]
    Rejected {
        /// The address.
        addr: String,
        /// Its reason.
        reject: Reject,
    },
    /// The connection failed during the handshake. Try again.
    #[error("the handshake with {addr} failed")]
    Failed {
        /// The address.
        addr: String,
        /// How.
        source: ReadError,
    },
    /// What answers there does not follow the protocol.
    #[error("{addr} answered against the protocol: {reason}")]
    Protocol {
        /// The address.
        addr: String,
        /// What it did.
        reason: String,
    },
}

impl DialError {
    /// A word from a closed set, for metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "connect",
            Self::Timeout { .. } => "timeout",
            Self::Rejected { reject, .. } => reject_word(reject),
            Self::Failed { .. } => "closed",
            Self::Protocol { .. } => "protocol",
        }
    }
}

/// A word from a closed set, for metrics.
pub(super) fn reject_word(reject: &Reject) -> &'static str {
    match reject {
        Reject::Version { .. } => "version",
        Reject::Cluster { .. } => "cluster_id",
        Reject::Node { .. } => "node",
        Reject::Lane { .. } => "lane",
        Reject::Busy { .. } => "busy",
        Reject::Malformed { .. } => "malformed",
    }
}

/// Opens a connection and shakes hands.
///
/// # Errors
/// [`DialError`].
pub async fn dial(
    identity: &Identity,
    config: &Config,
    addr: &str,
    to: Option<NodeId>,
    purpose: Purpose,
) -> Result<(TcpStream, Welcome), DialError> {
    let hands = shake(identity, addr, to, purpose);
    let dialed = match tokio::time::timeout(config.handshake_timeout, hands).await {
        Ok(dialed) => dialed,
        Err(_) => Err(DialError::Timeout { addr: addr.to_owned() }),
    };
    if let Err(error) = &dialed {
        meters::handshake_failed(error.word());
    }
    dialed
}

async fn shake(
    identity: &Identity,
    addr: &str,
    to: Option<NodeId>,
    purpose: Purpose,
) -> Result<(TcpStream, Welcome), DialError> {
    let addr_owned = || addr.to_owned();
    let connect = |source| DialError::Connect { addr: addr_owned(), source };
    let failed = |source| DialError::Failed { addr: addr_owned(), source };
    let mut stream = TcpStream::connect(addr).await.map_err(connect)?;
    stream.set_nodelay(true).map_err(connect)?;
    let mut out = Vec::with_capacity(256);
    frame::encode(Tag::Hello, &identity.hello(to.clone(), purpose), &mut out)
        .map_err(|error| failed(error.into()))?;
    stream.write_all(&out).await.map_err(|error| failed(error.into()))?;
    let (tag, body) = frame::read_frame(&mut stream, HANDSHAKE_BYTES_MAX).await.map_err(failed)?;
    let protocol = |reason: String| DialError::Protocol { addr: addr_owned(), reason };
    let malformed = |error: FrameError| protocol(error.to_string());
    match tag {
        Tag::Welcome => {
            let welcome: Welcome = frame::decode(&body).map_err(malformed)?;
            check_welcome(identity, to, &welcome).map_err(protocol)?;
            Ok((stream, welcome))
        }
        Tag::Reject => {
            let reject = frame::decode(&body).map_err(malformed)?;
            Err(DialError::Rejected { addr: addr_owned(), reject })
        }
        other => Err(protocol(format!("a {other:?} instead of a welcome"))),
    }
}

fn check_welcome(identity: &Identity, to: Option<NodeId>, welcome: &Welcome) -> Result<(), String> {
    if !(WIRE_VERSION_MIN..=WIRE_VERSION).contains(&welcome.wire) {
        return Err(format!("a wire version that was not offered: {}", welcome.wire));
    }
    if to.is_some_and(|to| to != welcome.node) {
        return Err(format!("another node than meant: {}", welcome.node));
    }
    match (identity.cluster(), welcome.cluster) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(format!("another cluster: {theirs}")),
        _ => Ok(()),
    }
}

/// What the accepter checks a [`Hello`] against.
#[derive(Debug, Clone)]
pub(super) struct Accepter {
    pub(super) node: NodeId,
    pub(super) cluster: Option<ClusterId>,
    pub(super) lanes: u16,
    pub(super) wire: (u16, u16),
}

impl Accepter {
    /// The wire version of the connection.
    pub(super) fn check(&self, hello: &Hello) -> Result<u16, Reject> {
        let malformed = |reason: &str| Reject::Malformed { reason: reason.to_owned() };
        if hello.magic != MAGIC {
            return Err(malformed("wrong magic bytes"));
        }
        let (min, max) = self.wire;
        let wire = hello.wire_max.min(max);
        if wire < hello.wire_min.max(min) {
            return Err(Reject::Version { min, max });
        }
        match (self.cluster, hello.cluster) {
            (Some(accepter), Some(caller)) if accepter != caller => {
                return Err(Reject::Cluster { accepter, caller });
            }
            _ => {}
        }
        if let Some(meant) = hello.to.clone().filter(|to| *to != self.node) {
            return Err(Reject::Node { is: self.node.clone(), meant });
        }
        let client = match &hello.caller {
            Caller::Node { node, .. } => {
                check_name("node name", node.as_str()).map_err(|e| malformed(&e.to_string()))?;
                false
            }
            Caller::Client { name } if name.len() > CLIENT_NAME_BYTES_MAX => {
                return Err(malformed("the client's name is too long"));
            }
            Caller::Client { .. } => true,
        };
        self.check_purpose(hello, client)?;
        Ok(wire)
    }

    fn check_purpose(&self, hello: &Hello, client: bool) -> Result<(), Reject> {
        match hello.purpose {
            Purpose::Control => return Ok(()),
            Purpose::Snapshots if client => {
                let reason = "clients move no shards".to_owned();
                return Err(Reject::Malformed { reason });
            }
            Purpose::Replication if client => {
                let reason = "clients feed no shards".to_owned();
                return Err(Reject::Malformed { reason });
            }
            Purpose::Requests { lane } if lane >= self.lanes => {
                return Err(Reject::Lane { lane, lanes: self.lanes });
            }
            Purpose::Snapshots | Purpose::Replication | Purpose::Requests { .. } => {}
        }
        if !client && hello.cluster.is_none() {
            let reason = "a node of no cluster may only use control".to_owned();
            return Err(Reject::Malformed { reason });
        }
        if self.cluster.is_none() {
            return Err(Reject::Busy { reason: "this node has not joined a cluster".to_owned() });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId::new(name).unwrap()
    }

    fn cluster(byte: u8) -> ClusterId {
        ClusterId::from_bytes([byte; 16])
    }

    fn accepter() -> Accepter {
        Accepter { node: node("n1"), cluster: Some(cluster(1)), lanes: 2, wire: (1, 1) }
    }

    fn hello() -> Hello {
        let disk = DiskId::from_bytes([2; 16]);
        let identity = Identity::node(node("n2"), disk, BootId(1), Some(cluster(1)));
        identity.hello(Some(node("n1")), Purpose::Requests { lane: 1 })
    }

    #[test]
    fn a_proper_hello_is_welcome() {
        assert_eq!(accepter().check(&hello()), Ok(1));
    }

    #[test]
    fn the_newest_common_version_is_taken_and_none_is_refused() {
        let accepter = Accepter { wire: (2, 4), ..accepter() };
        let wire = |min, max| accepter.check(&Hello { wire_min: min, wire_max: max, ..hello() });
        assert_eq!(wire(1, 3), Ok(3));
        assert_eq!(wire(3, 9), Ok(4));
        assert_eq!(wire(1, 1), Err(Reject::Version { min: 2, max: 4 }));
        assert_eq!(wire(5, 6), Err(Reject::Version { min: 2, max: 4 }));
        assert_eq!(wire(4, 3), Err(Reject::Version { min: 2, max: 4 }));
    }

    #[test]
    fn strangers_are_told_what_is_wrong() {
        let check = |hello: Hello| accepter().check(&hello).unwrap_err();
        assert!(matches!(check(Hello { magic: *b"HTTP", ..hello() }), Reject::Malformed { .. }));
        assert!(matches!(
            check(Hello { cluster: Some(cluster(9)), ..hello() }),
            Reject::Cluster { .. }
        ));
        assert!(matches!(check(Hello { to: Some(node("n3")), ..hello() }), Reject::Node { .. }));
        let lane = Purpose::Requests { lane: 2 };
        assert_eq!(check(Hello { purpose: lane, ..hello() }), Reject::Lane { lane: 2, lanes: 2 });
    }

    #[test]
    fn a_node_of_no_cluster_may_only_use_control() {
        let fresh = Hello { cluster: None, ..hello() };
        assert!(accepter().check(&fresh).is_err());
        assert!(accepter().check(&Hello { purpose: Purpose::Control, ..fresh }).is_ok());
    }

    #[test]
    fn clients_call_and_ask_but_move_no_shards() {
        let identity = Identity::client("shop".to_owned());
        let check = |purpose| accepter().check(&identity.hello(None, purpose));
        assert!(check(Purpose::Requests { lane: 0 }).is_ok());
        assert!(check(Purpose::Control).is_ok());
        assert!(check(Purpose::Snapshots).is_err());
        assert!(check(Purpose::Replication).is_err());
    }

    #[test]
    fn a_node_without_a_cluster_takes_no_requests() {
        let fresh = Accepter { cluster: None, ..accepter() };
        assert!(matches!(fresh.check(&hello()), Err(Reject::Busy { .. })));
        assert!(fresh.check(&Hello { purpose: Purpose::Control, ..hello() }).is_ok());
    }
}
