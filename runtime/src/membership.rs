//! Who is a member, and who is alive.
//!
//! ```text
//!   start --> join (membership/join.rs): come back, join, or form the first of a cluster
//!   then  --> MembershipActor: a heartbeat to every member, a verdict about every member
//! ```
//!
//! The verdicts are one node's opinion. Only the control leader acts on them, and what it does is
//! a proposal; epochs fence whoever was judged wrongly. The actor lives on the control thread,
//! where no user code runs, and never waits: questions run beside it, one per peer at a time.

mod agreement;
mod caller;
mod join;
mod join_error;
mod leave;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use actix::{Actor, ActorContext, Addr, AsyncContext, Context, Handler, Message};
use mainstay_protocol::control::ClusterState;
use mainstay_protocol::failure_detector::{Config, Detector, Verdict};
use mainstay_protocol::id::{BootId, ClusterId, DiskId, NodeId};
use mainstay_protocol::membership::{Candidate, Heartbeat};
use mainstay_protocol::message::{ControlAnswer, ControlBody};
use mainstay_protocol::time::Instant;
use tokio::sync::watch;

pub use self::agreement::{Agreement, AgreementFuture};
pub use self::caller::{AskFailure, AskFuture, PeerCaller};
pub use self::join::{Joiner, Patience};
pub use self::join_error::JoinError;
pub use self::leave::{LeaveError, leave, undrain};
pub(crate) use self::leave::{UNSEATED, departed};
use crate::clock;
use crate::config::Detection;

/// Messages that wait for the actor. A lost one is a lost heartbeat.
const MAILBOX: usize = 1024;
/// Fresh nodes that are remembered, and for how long after they were last heard.
const CANDIDATES_MAX: usize = 256;
const CANDIDATE_LIFE: Duration = Duration::from_secs(10);

/// How fresh this node's threads are; goes out with every heartbeat.
#[derive(Debug, Clone, Copy, Default)]
pub struct Progress {
    /// Milliseconds since the slowest lane last took its queue.
    pub lane_age_ms: u32,
    /// Milliseconds that the journal's commit under way has taken.
    pub storage_age_ms: u32,
    /// The disk is short of space.
    pub disk_full: bool,
    /// Bytes of state in memory.
    pub state_bytes: u64,
}

/// Tells how fresh this node's threads are.
pub type ReadProgress = Arc<dyn Fn() -> Progress + Send + Sync>;

/// What one node thinks of each other member: the start that is judged, and the verdict.
pub type LiveView = BTreeMap<NodeId, (BootId, Verdict)>;

/// What the membership is made of.
pub struct Parts {
    /// This node, as others hear of it. Its cluster is `None` until it has one.
    pub me: Candidate,
    /// The agreed members.
    pub state: watch::Receiver<Arc<ClusterState>>,
    /// The way to them.
    pub caller: Arc<dyn PeerCaller>,
    /// When silence means what.
    pub detection: Detection,
    /// How fresh this node's threads are.
    pub progress: ReadProgress,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").field("me", &self.me).finish_non_exhaustive()
    }
}

/// The membership room. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MembershipHandle {
    actor: Addr<MembershipActor>,
    known: Arc<Known>,
    live: watch::Receiver<Arc<LiveView>>,
}

impl MembershipHandle {
    /// Answers who this node is, and remembers who asked, if it is known who did.
    pub fn handle_discover(&self, asker: Option<Candidate>) -> Candidate {
        if let Some(asker) = asker {
            self.known.hear(asker);
        }
        self.known.me()
    }

    /// Answers a heartbeat, and takes it as a proof of life.
    pub fn handle_heartbeat(&self, heartbeat: &Heartbeat, map_version: u64) -> ControlAnswer {
        note_progress(heartbeat);
        let Heartbeat { node, boot, disk_full, .. } = heartbeat;
        self.tell(Heard { node: node.clone(), boot: *boot, disk_full: *disk_full });
        ControlAnswer::Alive { boot: self.known.me().boot, map_version }
    }

    /// A connection to this node closed: it is asked at once whether it lives.
    pub fn handle_lost(&self, node: &NodeId) {
        self.tell(Lost { node: node.clone() });
    }

    /// What this node thinks of the others.
    pub fn live(&self) -> watch::Receiver<Arc<LiveView>> {
        self.live.clone()
    }

    /// Ends the actor: no more heartbeats.
    pub fn stop(&self) {
        self.tell(Stop);
    }

    pub(crate) fn known(&self) -> &Arc<Known> {
        &self.known
    }

    fn tell<M>(&self, message: M)
    where
        M: Message<Result = ()> + Send + 'static,
        MembershipActor: Handler<M>,
    {
        if self.actor.try_send(message).is_err() {
            tracing::debug!("the membership room is full or gone");
        }
    }
}

/// Shows how fresh the threads behind a heartbeat are. No verdict is made of it: a node whose disk
/// stalls is alive.
fn note_progress(heartbeat: &Heartbeat) {
    let age = |part: &'static str, millis: u32| {
        let peer = heartbeat.node.as_str().to_owned();
        metrics::gauge!("mainstay_peer_progress_age_seconds", "peer" => peer, "part" => part)
            .set(f64::from(millis) / 1_000.0);
    };
    age("lane", heartbeat.lane_age_ms);
    age("storage", heartbeat.storage_age_ms);
}

/// Who this node is, and which nodes without a cluster it heard of.
#[derive(Debug)]
pub(crate) struct Known {
    me: Mutex<Candidate>,
    heard: Mutex<BTreeMap<DiskId, (Candidate, Instant)>>,
}

impl Known {
    fn new(me: Candidate) -> Self {
        Self { me: Mutex::new(me), heard: Mutex::default() }
    }

    /// This node, with whom it has heard of.
    pub(crate) fn me(&self) -> Candidate {
        let mut me = self.me.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let fresh = self.heard().into_iter().filter(|them| them.cluster.is_none());
        me.known = fresh.map(|them| them.node).collect();
        me.known.push(me.node.clone());
        me.known.sort();
        me.known.dedup();
        me
    }

    /// Remembers a node that spoke, for a while.
    pub(crate) fn hear(&self, candidate: Candidate) {
        let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let now = clock::now();
        heard.retain(|_, (_, at)| now.saturating_since(*at) < CANDIDATE_LIFE);
        if heard.len() < CANDIDATES_MAX || heard.contains_key(&candidate.disk) {
            heard.insert(candidate.disk, (candidate, now));
        }
    }

    /// The other nodes that were heard of lately. One that belongs to no cluster and never forms
    /// one has no say in who does: it waits, like a client.
    pub(crate) fn heard(&self) -> Vec<Candidate> {
        let now = clock::now();
        let heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
        let lately = heard.values().filter(|(them, at)| {
            let counts = them.cluster.is_some() || them.expect > 0;
            counts && now.saturating_since(*at) < CANDIDATE_LIFE
        });
        lately.map(|(candidate, _)| candidate.clone()).collect()
    }

    /// From here on this node says that it belongs to `cluster`.
    pub(crate) fn set_cluster(&self, cluster: ClusterId) {
        self.me.lock().unwrap_or_else(PoisonError::into_inner).cluster = Some(cluster);
    }
}

/// Sends heartbeats, and judges the members by theirs.
pub struct MembershipActor {
    known: Arc<Known>,
    state: watch::Receiver<Arc<ClusterState>>,
    caller: Arc<dyn PeerCaller>,
    progress: ReadProgress,
    heartbeat: Duration,
    detector: Detector,
    live: watch::Sender<Arc<LiveView>>,
    /// Who said in its last heartbeat that its disk is full; and this node itself.
    full: BTreeSet<NodeId>,
    disk_full: bool,
    /// The last heartbeat, and when it went out.
    said: Option<Heartbeat>,
    sent_at: Instant,
    /// Who has not answered its last heartbeat yet, and since when.
    asked: BTreeMap<NodeId, Instant>,
}

impl std::fmt::Debug for MembershipActor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MembershipActor").field("known", &self.known).finish_non_exhaustive()
    }
}

/// Starts the actor on the actix arbiter of the caller.
pub fn start(parts: Parts) -> MembershipHandle {
    let Parts { me, state, caller, detection, progress } = parts;
    let known = Arc::new(Known::new(me));
    let (sender, live) = watch::channel(Arc::default());
    let now = clock::now();
    let actor = MembershipActor {
        known: Arc::clone(&known),
        state,
        caller,
        progress,
        heartbeat: detection.heartbeat,
        detector: Detector::new(Config::new(detection.heartbeat, detection.suspect_after), now),
        live: sender,
        full: BTreeSet::new(),
        disk_full: false,
        said: None,
        sent_at: Instant::ZERO,
        asked: BTreeMap::new(),
    };
    MembershipHandle { actor: actor.start(), known, live }
}

impl Actor for MembershipActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.set_mailbox_capacity(MAILBOX);
        ctx.run_interval(self.detector.config().tick, Self::tick);
    }
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Heard {
    node: NodeId,
    boot: BootId,
    disk_full: bool,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Lost {
    node: NodeId,
}

#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Stop;

/// How the question "are you there?" ended.
#[derive(Debug, Message)]
#[rtype(result = "()")]
struct Asked {
    node: NodeId,
    /// The start that was asked.
    boot: BootId,
    result: Result<BootId, AskFailure>,
}

impl Handler<Heard> for MembershipActor {
    type Result = ();

    fn handle(&mut self, heard: Heard, _: &mut Context<Self>) {
        // another start than the registered one proves nothing about that one; it registers first
        if self.registered(&heard.node) == Some(heard.boot) {
            if heard.disk_full {
                self.full.insert(heard.node.clone());
            } else {
                self.full.remove(&heard.node);
            }
            self.note_heard(&heard.node, heard.boot, clock::now());
        }
    }
}

impl Handler<Lost> for MembershipActor {
    type Result = ();

    fn handle(&mut self, lost: Lost, ctx: &mut Context<Self>) {
        self.ask(&lost.node, &ctx.address(), clock::now());
    }
}

impl Handler<Stop> for MembershipActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

impl Handler<Asked> for MembershipActor {
    type Result = ();

    fn handle(&mut self, asked: Asked, ctx: &mut Context<Self>) {
        let now = clock::now();
        self.asked.remove(&asked.node);
        match asked.result {
            Ok(boot) if boot == asked.boot => self.note_heard(&asked.node, boot, now),
            // another process answers at its address: that start is over
            Ok(_) => self.handle_closed((&asked.node, asked.boot), ctx, now),
            Err(failure) => {
                let peer = asked.node.as_str().to_owned();
                metrics::counter!("mainstay_heartbeats_missed_total", "peer" => peer).increment(1);
                match failure {
                    AskFailure::NotSent { .. } => {
                        self.handle_closed((&asked.node, asked.boot), ctx, now);
                    }
                    // the connection ended, or the peer is slow: who refuses the next one is gone
                    AskFailure::NoAnswer { .. } => self.ask(&asked.node, &ctx.address(), now),
                    AskFailure::Rejected(_) | AskFailure::Refused { .. } => {}
                }
            }
        }
    }
}

impl MembershipActor {
    /// A member lives, which others are told at once if it was in doubt.
    fn note_heard(&mut self, node: &NodeId, boot: BootId, now: Instant) {
        let before = self.detector.verdict(node);
        self.detector.handle_heartbeat(node, boot, now);
        if self.detector.verdict(node) != before {
            self.publish();
        }
    }

    /// Nobody listens at a member's address: it is judged the moment that this has lasted.
    fn handle_closed(
        &mut self,
        (node, boot): (&NodeId, BootId),
        ctx: &mut Context<Self>,
        now: Instant,
    ) {
        self.detector.handle_closed(node, boot, now);
        if self.detector.verdict(node) != Some(Verdict::Dead) {
            ctx.run_later(self.detector.config().closed_after, Self::judge);
        }
    }

    /// Judges everybody; and again, before the next tick, when a suspect's time is up by then.
    fn judge(&mut self, ctx: &mut Context<Self>) {
        let now = clock::now();
        self.detector.handle_timeout(now);
        self.publish();
        let due = self.detector.poll_timeout();
        if due < self.detector.next_tick() {
            ctx.run_later(due.saturating_since(now), Self::judge);
        }
    }

    fn tick(&mut self, ctx: &mut Context<Self>) {
        let now = clock::now();
        let state = Arc::clone(&self.state.borrow_and_update());
        self.watch_members(&state, now);
        // judged before anything is sent: a process that slept forgives everybody first
        self.judge(ctx);
        if now.saturating_since(self.sent_at) >= self.heartbeat / 2 {
            self.sent_at = now;
            self.send_heartbeats(&state, &ctx.address(), now);
        }
    }

    /// The start of a member that the cluster knows.
    fn registered(&self, node: &NodeId) -> Option<BootId> {
        self.state.borrow().members.get(node).map(|member| member.boot)
    }

    fn watch_members(&mut self, state: &ClusterState, now: Instant) {
        let me = self.known.me().node;
        for (node, member) in state.members.iter().filter(|(node, _)| **node != me) {
            self.detector.watch(node, member.boot, now);
        }
        let watched: Vec<NodeId> =
            self.detector.verdicts().map(|(node, ..)| node.clone()).collect();
        for node in watched.iter().filter(|node| !state.members.contains_key(*node)) {
            self.detector.forget(node);
            self.full.remove(node);
            self.asked.remove(node);
        }
    }

    fn publish(&mut self) {
        while let Some(changed) = self.detector.poll_effect() {
            tracing::debug!(node = %changed.node, verdict = ?changed.verdict, "verdict changed");
        }
        let mut view: LiveView = self
            .detector
            .verdicts()
            .map(|(node, boot, verdict)| (node.clone(), (boot, self.trusted(node, verdict))))
            .collect();
        let me = self.known.me();
        if self.disk_full {
            view.insert(me.node, (me.boot, Verdict::Suspect));
        }
        self.live.send_if_modified(|live| {
            let changed = **live != view;
            if changed {
                *live = Arc::new(view);
            }
            changed
        });
    }

    /// A member whose disk is full is alive, and no shard may be moved to it or begun on it.
    fn trusted(&self, node: &NodeId, verdict: Verdict) -> Verdict {
        match verdict {
            Verdict::Alive if self.full.contains(node) => Verdict::Suspect,
            Verdict::Alive | Verdict::Suspect | Verdict::Dead => verdict,
        }
    }

    fn send_heartbeats(&mut self, state: &ClusterState, address: &Addr<Self>, now: Instant) {
        let me = self.known.me();
        let progress = (self.progress)();
        self.disk_full = progress.disk_full;
        self.said = Some(Heartbeat {
            node: me.node.clone(),
            boot: me.boot,
            map_version: state.version,
            lane_age_ms: progress.lane_age_ms,
            storage_age_ms: progress.storage_age_ms,
            disk_full: progress.disk_full,
            state_bytes: progress.state_bytes,
        });
        let patience = self.patience();
        self.asked.retain(|_, since| now.saturating_since(*since) < patience * 2);
        for node in state.members.keys().filter(|node| **node != me.node) {
            self.ask(node, address, now);
        }
    }

    /// How long an answer may take: silence of this long is one heartbeat missed, not the end of a
    /// peer.
    fn patience(&self) -> Duration {
        self.heartbeat * 4
    }

    /// Sends the newest heartbeat to a member, unless it still has to answer another one.
    fn ask(&mut self, node: &NodeId, address: &Addr<Self>, now: Instant) {
        let state = Arc::clone(&self.state.borrow());
        let (Some(member), Some(heartbeat)) = (state.members.get(node), &self.said) else { return };
        if self.asked.contains_key(node) {
            return;
        }
        self.asked.insert(node.clone(), now);
        let body = ControlBody::Heartbeat(heartbeat.clone());
        let (to, patience) = (Some(node.clone()), self.patience());
        let asking = self.caller.ask(&member.peer_addr, to, body, patience);
        let (node, boot, address) = (node.clone(), member.boot, address.clone());
        tokio::spawn(async move {
            let result = match asking.await {
                Ok(ControlAnswer::Alive { boot, .. }) => Ok(boot),
                Ok(_) => Err(AskFailure::Refused { reason: "another answer".to_owned() }),
                Err(failure) => Err(failure),
            };
            if address.try_send(Asked { node, boot, result }).is_err() {
                tracing::debug!("the membership room is full or gone");
            }
        });
    }
}
