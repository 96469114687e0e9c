//! Several control planes in one process, over a network that is a map.

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
}

impl PeerCaller for Wire {
    fn ask(&self, addr: &str, to: Option<NodeId>, body: ControlBody, limit: Duration) -> AskFuture {
        let cut = self.net.is_cut(addr) || self.net.is_cut(&self.addr);
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
}

impl<'a> Start<'a> {
    fn new(net: &'a Arc<Net>, node: &'a str, disk: &'a Disk, options: ClusterOptions) -> Self {
        let grouping = Grouping::from([("account".to_owned(), GroupingDigest(7))]);
        let patience = Patience { reach: Duration::from_secs(1), name: Duration::from_secs(8) };
        Self { net, node, addr: node, disk, options, grouping, patience }
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
            timing: Timing::default(),
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
    let all = ["n1", "n2", "n3"];
    let mut nodes = Vec::new();
    for (node, disk) in all.iter().zip(disks) {
        nodes.push(Start::new(net, node, disk, options(&all, 3)).start().await);
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

#[test]
fn three_fresh_nodes_form_exactly_one_cluster() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;

        let clusters: BTreeSet<_> =
            nodes.iter().map(|node| node.control().current().cluster.unwrap()).collect();
        assert_eq!(clusters.len(), 1);
        assert_eq!(*disks[2].cluster.lock().unwrap(), clusters.first().copied());
        let created = nodes.iter().flat_map(|node| node.events.lock().unwrap().clone());
        let created = created.filter(|event| matches!(event, Event::ClusterCreated { .. }));
        let ids: BTreeSet<String> = created
            .map(|event| match event {
                Event::ClusterCreated { cluster, .. } => cluster,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids.len(), 1);
        for node in &nodes {
            eventually("every shard has a primary", || {
                node.control().current().shards.iter().all(|shard| shard.primary.is_some())
            })
            .await;
        }
    });
}

/// A caller that gave up left its proposal in the gauge for ever.
#[test]
fn a_proposal_that_is_dropped_is_pending_no_more() {
    let recorder = Pending::default();
    let pending = Arc::clone(&recorder.0);
    metrics::with_local_recorder(&recorder, || {
        run(async {
            let (net, disk) = (Arc::default(), Disk::new());
            let node = Start::new(&net, "n1", &disk, options(&["n9"], 3)).start().await;
            let control = node.control();
            let drain = Command::Drain { node: name("n1") };
            let mut proposing = Box::pin(control.propose(drain));

            let answer = timeout(Duration::from_millis(50), &mut proposing).await;

            assert!(answer.is_err(), "no leader is there to answer");
            assert_eq!(pending.load(Ordering::SeqCst), 1.0_f64.to_bits());
            drop(proposing);
            assert_eq!(pending.load(Ordering::SeqCst), 0.0_f64.to_bits());
        });
    });
}

/// Records the gauge of pending proposals.
#[derive(Default)]
struct Pending(Arc<AtomicU64>);

impl metrics::Recorder for Pending {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        match key.name() {
            "mainstay_raft_proposals_pending" => Gauge::from_arc(Arc::clone(&self.0)),
            _ => Gauge::noop(),
        }
    }
    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn a_settled_cluster_proposes_nothing() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let logged = || nodes.iter().filter_map(|node| node.control().consensus().last_log()).max();
        eventually("placed", || {
            nodes[0].control().current().shards.iter().all(|shard| shard.primary.is_some())
        })
        .await;
        sleep(Duration::from_secs(1)).await;

        let before = logged();
        sleep(Duration::from_secs(2)).await;

        assert_eq!(logged(), before);
    });
}

#[test]
fn a_fourth_node_joins_and_follows_without_a_vote() {
    run(async {
        let (net, disks, disk) = (Arc::default(), disks(), Disk::new());
        let nodes = three(&net, &disks).await;

        let fourth = Start::new(&net, "n4", &disk, options(&["n2"], 0)).join().await.unwrap();

        let state = fourth.control().current();
        assert_eq!(state.cluster, nodes[0].control().current().cluster);
        assert_eq!(state.members.len(), 4);
        let view = fourth.control().view();
        eventually("a learner", || view.borrow().learners.contains(&disk.id.consensus_id())).await;
        assert_eq!(view.borrow().voters.len(), 3);
    });
}

#[test]
fn when_the_leader_dies_another_leads_and_proposals_go_on() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let mut nodes = Vec::from(three(&net, &disks).await);
        let dead = nodes.remove(leader(&nodes).unwrap());
        let dead_name = dead.name.clone();
        let killed = clock::now();
        dead.kill().await;

        eventually("another leader", || leader(&nodes).is_some()).await;
        println!("another leader after {:?}", clock::now().saturating_since(killed));

        for node in &nodes {
            let started = clock::now();
            while let Err(refused) = probe(&node.control()).await {
                assert!(clock::now().saturating_since(started) < PATIENCE, "{refused}");
            }
        }
        eventually("the dead one is down", || {
            nodes[0].member(dead_name.as_str()).unwrap().state == MemberState::Down
        })
        .await;
        println!("taken for dead after {:?}", clock::now().saturating_since(killed));
        assert_eq!(nodes[0].heard(&Event::MemberDown { node: dead_name }), 1);
    });
}

#[test]
fn a_restarted_node_comes_back_at_another_address() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let [n1, n2, n3] = three(&net, &disks).await;
        let before = n1.member("n3").unwrap();
        n3.kill().await;

        let mut start = Start::new(&net, "n3", &disks[2], options(&["n1"], 3));
        start.addr = "elsewhere";
        let n3 = start.join().await.unwrap();

        let after = n3.member("n3").unwrap();
        assert!(after.boot > before.boot);
        assert_eq!((after.disk, after.peer_addr.as_str()), (before.disk, "elsewhere"));
        let event = Event::MemberRestarted { node: name("n3") };
        eventually("told to the others", || n1.heard(&event) == 1 && n2.heard(&event) == 1).await;
        let live = n1.plane.membership().live();
        eventually("heard again", || {
            live.borrow().get(&name("n3")).is_some_and(|(boot, _)| *boot == after.boot)
        })
        .await;
    });
}

#[test]
fn a_whole_cluster_restarts_as_the_same_cluster() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let before = nodes[0].control().current();
        for node in nodes {
            node.kill().await;
        }

        let again = three(&net, &disks).await;

        let after = again[0].control().current();
        assert_eq!(after.cluster, before.cluster);
        assert!(after.version > before.version);
        assert_eq!(after.members.len(), 3);
    });
}

#[test]
fn a_wiped_node_joins_as_another_voter() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let [n1, _n2, n3] = three(&net, &disks).await;
        let (old, wiped) = (disks[2].id.consensus_id(), Disk::new());
        n3.kill().await;

        let n3 = Start::new(&net, "n3", &wiped, options(&["n1"], 3)).join().await.unwrap();

        assert_eq!(n3.member("n3").unwrap().disk, wiped.id);
        let view = n1.control().view();
        eventually("the new disk votes, the old one is gone", || {
            let view = view.borrow();
            view.voters.contains(&wiped.id.consensus_id())
                && !view.voters.contains(&old)
                && !view.learners.contains(&old)
        })
        .await;
    });
}

#[test]
fn data_of_another_cluster_is_refused() {
    run(async {
        let (net, disk, other) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let _n1 = Start::new(&net, "n1", &disk, alone.clone()).join().await.unwrap();
        let n2 = Start::new(&net, "n2", &other, alone).join().await.unwrap();
        let own = n2.control().current().cluster;
        n2.kill().await;

        // its own log is enough to lead alone, so only the question at the start can tell
        let refused = Start::new(&net, "n2", &other, options(&["n1"], 0)).join().await;

        let error = refused.err().unwrap();
        assert_eq!(error.code(), "MS-1203");
        assert!(matches!(error, JoinError::OtherCluster { own: o, .. } if Some(o) == own));
    });
}

#[test]
fn a_name_that_is_in_use_is_refused() {
    run(async {
        let (net, disks, stranger) = (Arc::default(), disks(), Disk::new());
        let [n1, _n2, _n3] = three(&net, &disks).await;
        let mut start = Start::new(&net, "n2", &stranger, options(&["n1"], 0));
        start.addr = "elsewhere";
        start.patience.name = Duration::from_secs(4);

        let error = start.join().await.err().unwrap();

        assert_eq!(error, JoinError::NameInUse { node: name("n2") });
        assert_eq!(error.code(), "MS-1202");
        assert_eq!(n1.member("n2").unwrap().disk, disks[1].id);
        assert_eq!(*stranger.cluster.lock().unwrap(), None);
    });
}

#[test]
fn a_kind_that_groups_differently_is_refused() {
    run(async {
        let (net, disk, other) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let _n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let mut start = Start::new(&net, "n2", &other, options(&["n1"], 0));
        start.grouping.insert("account".to_owned(), GroupingDigest(8));

        let error = start.join().await.err().unwrap();

        assert_eq!(error.code(), "MS-1204");
    });
}

#[test]
fn nobody_to_join_and_none_to_form_end_the_start() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());

        let nothing = Start::new(&net, "n1", &disk, options(&[], 0)).join().await;
        assert_eq!(nothing.err().unwrap().code(), "MS-1206");

        let nobody = Start::new(&net, "n1", &disk, options(&["n9"], 0)).join().await;
        assert_eq!(nobody.err().unwrap().code(), "MS-1201");
    });
}

#[test]
fn a_node_that_was_cut_off_is_registered_again() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let nodes = three(&net, &disks).await;
        let far = nodes.iter().position(|node| !node.control().is_leader()).unwrap();
        let near = &nodes[(far + 1) % 3];
        let far = &nodes[far];
        net.cut.lock().unwrap().insert(far.addr.clone());
        let state = || near.member(far.name.as_str()).unwrap().state;
        eventually("it is down", || state() == MemberState::Down).await;

        net.cut.lock().unwrap().clear();

        eventually("it is up again", || state() == MemberState::Up).await;
    });
}

#[test]
fn a_leader_without_a_quorum_agrees_on_nothing() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let nodes = three(&net, &disks).await;
        let at = leader(&nodes).unwrap();
        let version = nodes[at].control().current().version;
        net.cut.lock().unwrap().insert(nodes[at].addr.clone());

        let refused = probe(&nodes[at].control()).await;

        assert!(matches!(refused, Err(ProposeRefused::NoLeader { .. })), "{refused:?}");
        assert_eq!(nodes[at].control().current().version, version);
        let others: Vec<_> = (0..3).filter(|other| *other != at).collect();
        eventually("the others lead themselves", || {
            others.iter().any(|other| nodes[*other].control().is_leader())
        })
        .await;
    });
}

#[test]
fn a_start_that_was_interrupted_while_forming_finishes() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let cluster = ClusterId::from_bytes([9; 16]);
        let n1 = Start::new(&net, "n1", &disk, alone.clone()).start().await;
        n1.plane.found_for_test(cluster).await;
        n1.kill().await;

        let n1 = Start::new(&net, "n1", &disk, options(&[], 0)).join().await.unwrap();

        assert_eq!(n1.control().current().cluster, Some(cluster));
        assert_eq!(*disk.cluster.lock().unwrap(), Some(cluster));
    });
}

#[test]
fn a_leader_that_leaves_hands_everything_over_and_is_gone() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let mut nodes = Vec::from(three(&net, &disks).await);
        let held = || nodes[0].control().current().shards.iter().all(|s| s.primary.is_some());
        eventually("every shard has a primary", held).await;
        let lanes = nodes.iter().map(|n| complete_handoffs(n.control(), n.name.clone()));
        let lanes: Vec<_> = lanes.map(tokio::spawn).collect();
        let leaver = nodes.remove(leader(&nodes).unwrap());
        let gone = leaver.name.clone();

        let started = clock::now();
        leaver.plane.leave(&gone, PATIENCE).await.unwrap();

        let took = clock::now().saturating_since(started);
        assert!(took < PATIENCE / 2, "it did not notice that it was gone: {took:?}");
        let left = nodes[0].control();
        eventually("it is no member", || !left.current().members.contains_key(&gone)).await;
        let serves =
            left.current().shards.iter().filter_map(|s| s.primary.clone()).collect::<Vec<_>>();
        assert_eq!(serves.iter().filter(|claim| claim.node == gone).count(), 0);
        let view = left.view();
        eventually("one voter of two", || view.borrow().voters.len() == 1).await;
        eventually("somebody leads", || leader(&nodes).is_some()).await;
        let event = Event::MemberLeft { node: gone };
        eventually("both are told", || nodes.iter().all(|n| n.heard(&event) == 1)).await;
        lanes.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

/// Stands in for the lanes: every move of this node is done at once. An answer that was lost says
/// nothing about the command, so it looks again when nothing changed, as lanes do.
async fn complete_handoffs(control: ControlHandle, node: NodeId) {
    let mut states = control.state();
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        for (shard, config) in state.shards() {
            let mine = config.primary.as_ref().is_some_and(|claim| claim.node == node);
            let Some(handoff) = config.handoff.as_ref().filter(|_| mine) else { continue };
            let to = state.claim_of(&handoff.to).unwrap();
            let command = Command::CompleteHandoff { shard, expect: config.expect(), to };
            if let Err(refused) = control.propose(command).await {
                println!("{node} completes the move of shard {shard} later: {refused}");
            }
        }
        timeout(Duration::from_millis(200), states.changed()).await.ok();
    }
}

#[test]
fn the_last_member_cannot_leave() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();

        let left = n1.plane.leave(&name("n1"), PATIENCE).await;

        assert_eq!(left, Err(LeaveError::LastMember { node: name("n1") }));
    });
}

#[test]
fn the_log_stays_bounded_and_a_late_node_gets_a_snapshot() {
    run(async {
        let (net, disk, late) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let control = n1.control();
        for _ in 0..20 {
            let round = (0..120).map(|_| probe(&control));
            join_all(round).await.into_iter().for_each(|result| result.unwrap());
        }

        let n2 = Start::new(&net, "n2", &late, options(&["n1"], 0)).join().await.unwrap();

        let kept = control.consensus().log_len();
        assert!(kept < 1_700, "{kept} entries were kept");
        assert_eq!(n2.control().current().cluster, control.current().cluster);
    });
}

#[test]
fn clients_read_the_map_and_nothing_else() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let client = Caller::Client { name: "test".to_owned() };
        let service = n1.plane.service();

        let map = service.handle(ControlBody::Map { have: 0 }, &client).await;
        let version = n1.control().current().version;
        let newest = service.handle(ControlBody::Map { have: version }, &client).await;
        let drain = ControlBody::Propose(Command::Drain { node: name("n1") });
        let drained = service.handle(drain, &client).await;

        assert!(matches!(map, Ok(ControlAnswer::Map(Some(_)))));
        assert!(matches!(newest, Ok(ControlAnswer::Map(None))));
        assert!(drained.is_err());
    });
}

/// Whatever was said in a discovery went into the address book: a client that named a voter's disk
/// and the largest start had all consensus messages sent to an address of its choice.
#[test]
fn nobody_is_believed_about_another_node() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let n1 = &nodes[0];
        let service = n1.plane.service();
        let n2 = n1.member("n2").unwrap();
        let about_n2 = |boot| Candidate {
            node: name("n2"),
            disk: n2.disk,
            boot,
            cluster: n1.control().current().cluster,
            peer_addr: "trap".to_owned(),
            expect: 3,
            known: vec![],
            grouping: Grouping::new(),
        };
        let n2_as = |disk, boot| Caller::Node { node: name("n2"), disk, boot };
        let last = BootId(u64::MAX);
        let place = || n1.control().consensus().find(n2.disk.consensus_id()).unwrap().1;

        for liar in [
            Caller::Client { name: "test".to_owned() },
            Caller::Node { node: name("n3"), disk: n2.disk, boot: last },
            n2_as(disks[2].id, last),
            n2_as(n2.disk, n2.boot),
        ] {
            let told = service.handle(ControlBody::Discover(about_n2(last)), &liar).await;
            assert!(matches!(told, Ok(ControlAnswer::Candidate(_))), "anybody may ask");
            assert_eq!(place(), "n2", "told by {liar:?}");
        }
        let heard = n1.plane.membership().known().heard();
        assert!(heard.iter().all(|them| them.peer_addr != "trap"));

        let next = BootId(n2.boot.0 + 1);
        let itself = n2_as(n2.disk, next);
        service.handle(ControlBody::Discover(about_n2(next)), &itself).await.unwrap();
        assert_eq!(place(), "trap", "a node says where it is itself");

        let large = Candidate { peer_addr: "x".repeat(10_000), ..about_n2(next) };
        assert!(service.handle(ControlBody::Discover(large), &itself).await.is_err());
    });
}
