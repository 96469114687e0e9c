//! Several control planes in one process, over a network that is a map.

mod failures;
mod forming;
mod leaving;
mod refusals;
mod succession;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_protocol::control::{
    Command, Event, Grouping, GroupingDigest, Member, MemberState, ProposeRefused,
};
use mainstay_protocol::id::{BootId, ClusterId, DiskId, NodeId};
use mainstay_protocol::membership::Candidate;
use mainstay_protocol::message::{Caller, ControlAnswer, ControlBody, Reject};
use metrics::{Counter, Gauge, Histogram, KeyName, Metadata, SharedString, Unit};
use tokio::time::{sleep, timeout};

use super::ControlHandle;
use super::consensus::Timing;
use super::plane::{ControlPlane, ControlService, Setup};
use crate::clock;
use crate::config::{ClusterOptions, Config};
use crate::membership::{
    AskFailure, AskFuture, JoinError, LeaveError, Patience, PeerCaller, Progress,
};

/// Longer than anything takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

// -- a network: addresses, and who answers there --

#[derive(Default)]
struct Net {
    hosts: Mutex<BTreeMap<String, Host>>,
    cut: Mutex<BTreeSet<String>>,
    /// Two addresses that do not reach each other.
    apart: Mutex<Option<[String; 2]>>,
}

#[derive(Clone)]
struct Host {
    service: ControlService,
    control: ControlHandle,
    node: NodeId,
}

/// The network as one node sees it.
struct Wire {
    net: Arc<Net>,
    addr: String,
    caller: Caller,
    own: Mutex<Option<ControlHandle>>,
}

impl Net {
    fn is_cut(&self, addr: &str) -> bool {
        self.cut.lock().unwrap().contains(addr)
    }

    fn are_apart(&self, from: &str, to: &str) -> bool {
        let apart = self.apart.lock().unwrap();
        apart.as_ref().is_some_and(|pair| pair.iter().all(|addr| addr == from || addr == to))
    }
}

impl PeerCaller for Wire {
    fn ask(&self, addr: &str, to: Option<NodeId>, body: ControlBody, limit: Duration) -> AskFuture {
        let cut = self.net.is_cut(addr)
            || self.net.is_cut(&self.addr)
            || self.net.are_apart(&self.addr, addr);
        let host = self.net.hosts.lock().unwrap().get(addr).cloned();
        let own = self.own.lock().unwrap().as_ref().and_then(|own| own.current().cluster);
        let caller = self.caller.clone();
        Box::pin(async move {
            tokio::task::yield_now().await;
            let Some(host) = host.filter(|_| !cut) else {
                return Err(AskFailure::NotSent { reason: "connection refused".to_owned() });
            };
            if let Some(meant) = to.filter(|to| *to != host.node) {
                return Err(AskFailure::Rejected(Reject::Node { is: host.node, meant }));
            }
            if let (Some(caller), Some(accepter)) = (own, host.control.current().cluster)
                && caller != accepter
            {
                return Err(AskFailure::Rejected(Reject::Cluster { accepter, caller }));
            }
            // through bytes, as the frames of the transport carry them
            let body = rmp_serde::from_slice(&rmp_serde::to_vec(&body).unwrap()).unwrap();
            let answer = timeout(limit, host.service.handle(body, &caller)).await;
            match answer {
                Ok(Ok(answer)) => {
                    let bytes = rmp_serde::to_vec(&answer).unwrap();
                    Ok(rmp_serde::from_slice(&bytes).unwrap())
                }
                Ok(Err(reason)) => Err(AskFailure::Refused { reason }),
                Err(_) => Err(AskFailure::NoAnswer { reason: "timeout".to_owned() }),
            }
        })
    }
}

// -- a node: what stays on its disk, and one start of it --

static STARTS: AtomicU64 = AtomicU64::new(1);

struct Disk {
    dir: tempfile::TempDir,
    id: DiskId,
    cluster: Arc<Mutex<Option<ClusterId>>>,
}

impl Disk {
    fn new() -> Self {
        let mut id = [0; 16];
        getrandom::fill(&mut id).unwrap();
        let dir = tempfile::tempdir().unwrap();
        Self { dir, id: DiskId::from_bytes(id), cluster: Arc::default() }
    }
}

struct Node {
    name: NodeId,
    addr: String,
    net: Arc<Net>,
    plane: ControlPlane,
    events: Arc<Mutex<Vec<Event>>>,
}

fn name(name: &str) -> NodeId {
    NodeId::new(name).unwrap()
}

fn options(join: &[&str], expect: u32) -> ClusterOptions {
    let join = join.iter().map(|&addr| addr.to_owned()).collect();
    ClusterOptions { join, expect, shards: 8, ..Config::default().cluster }
}

struct Start<'a> {
    net: &'a Arc<Net>,
    node: &'a str,
    addr: &'a str,
    disk: &'a Disk,
    options: ClusterOptions,
    grouping: Grouping,
    patience: Patience,
    timing: Timing,
}

impl<'a> Start<'a> {
    fn new(net: &'a Arc<Net>, node: &'a str, disk: &'a Disk, options: ClusterOptions) -> Self {
        let grouping = Grouping::from([("account".to_owned(), GroupingDigest(7))]);
        let patience = Patience { reach: Duration::from_secs(1), name: Duration::from_secs(8) };
        let timing = Timing::default();
        Self { net, node, addr: node, disk, options, grouping, patience, timing }
    }

    /// Starts it: it answers, and has not joined.
    async fn start(self) -> Node {
        let boot = BootId(STARTS.fetch_add(1, Ordering::SeqCst));
        let node = name(self.node);
        let caller = Caller::Node { node: node.clone(), disk: self.disk.id, boot };
        let (net, addr) = (Arc::clone(self.net), self.addr.to_owned());
        let wire = Arc::new(Wire { net, addr: addr.clone(), caller, own: Mutex::default() });
        let events = Arc::new(Mutex::new(Vec::new()));
        let (heard, cluster) = (Arc::clone(&events), Arc::clone(&self.disk.cluster));
        let belongs = *cluster.lock().unwrap();
        let plane = ControlPlane::start(Setup {
            node: node.clone(),
            member: Member {
                disk: self.disk.id,
                boot,
                peer_addr: addr.clone(),
                http_addr: String::new(),
                zone: String::new(),
                weight: 1,
                lanes: 1,
                state: MemberState::Up,
                wire_max: 1,
            },
            cluster: belongs,
            grouping: self.grouping,
            data_dir: self.disk.dir.path().to_owned(),
            options: self.options,
            detection: Config::default().detection,
            timing: self.timing,
            patience: self.patience,
            caller: Arc::clone(&wire) as Arc<dyn PeerCaller>,
            keep: Arc::new(move |id| {
                *cluster.lock().unwrap() = Some(id);
                Ok(())
            }),
            progress: Arc::new(Progress::default),
            on_events: Arc::new(move |_, events| heard.lock().unwrap().extend_from_slice(events)),
        })
        .await
        .unwrap();
        *wire.own.lock().unwrap() = Some(plane.control());
        let host = Host { service: plane.service(), control: plane.control(), node: node.clone() };
        self.net.hosts.lock().unwrap().insert(addr.clone(), host);
        let net = Arc::clone(self.net);
        Node { name: node, addr, net, plane, events }
    }

    /// Starts it, and waits until it is a member.
    async fn join(self) -> Result<Node, JoinError> {
        let node = self.start().await;
        match timeout(PATIENCE, node.plane.join()).await.expect("joins in time") {
            Ok(_) => Ok(node),
            Err(error) => {
                node.kill().await;
                Err(error)
            }
        }
    }
}

impl Node {
    fn control(&self) -> ControlHandle {
        self.plane.control()
    }

    fn member(&self, node: &str) -> Option<Member> {
        self.control().current().members.get(&name(node)).cloned()
    }

    async fn kill(self) {
        self.net.hosts.lock().unwrap().remove(&self.addr);
        self.plane.shutdown().await;
    }

    fn heard(&self, event: &Event) -> usize {
        self.events.lock().unwrap().iter().filter(|heard| *heard == event).count()
    }
}

async fn eventually(what: &str, mut is: impl FnMut() -> bool) {
    let started = clock::now();
    while !is() {
        assert!(clock::now().saturating_since(started) < PATIENCE, "not in time: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

fn run(test: impl Future<Output = ()>) {
    actix::System::new().block_on(test);
}

/// Three nodes that form a cluster, with three voters.
async fn three(net: &Arc<Net>, disks: &[Disk; 3]) -> [Node; 3] {
    three_with(net, disks, Timing::default()).await
}

async fn three_with(net: &Arc<Net>, disks: &[Disk; 3], timing: Timing) -> [Node; 3] {
    let all = ["n1", "n2", "n3"];
    let mut nodes = Vec::new();
    for (node, disk) in all.iter().zip(disks) {
        let start = Start { timing, ..Start::new(net, node, disk, options(&all, 3)) };
        nodes.push(start.start().await);
    }
    for joined in join_all(nodes.iter().map(|node| node.plane.join())).await {
        joined.unwrap();
    }
    let nodes: [Node; 3] = nodes.try_into().ok().unwrap();
    for node in &nodes {
        let view = node.control().view();
        let settled = || view.borrow().voters.len() == 3 && !view.borrow().changing;
        eventually("three voters", settled).await;
    }
    nodes
}

fn disks() -> [Disk; 3] {
    [Disk::new(), Disk::new(), Disk::new()]
}

fn leader(nodes: &[Node]) -> Option<usize> {
    nodes.iter().position(|node| node.control().is_leader())
}

/// A command that changes nothing and needs a leader.
async fn probe(control: &ControlHandle) -> Result<(), ProposeRefused> {
    let node = control.current().members.keys().next().cloned().unwrap();
    control.propose(Command::Undrain { node }).await.map(drop)
}
