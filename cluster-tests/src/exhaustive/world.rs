//! One state of the search, and every step that may come next.
//!
//! Messages are never taken out of the network: a step delivers one, and may deliver it again at
//! any time, or never. So nothing is lost by not counting losses, copies and orders. Of appends
//! there is no list: whatever the primary of an epoch had in its log may be on its way for ever.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use mainstay_protocol::control::{Claim, ClusterState};
use mainstay_protocol::id::{DiskId, Epoch, NodeId, Seq};
use mainstay_protocol::mutants::Mutant;
use mainstay_protocol::replication::in_sync::{Copies, InSync};
use mainstay_protocol::replication::{Answer, Append, Told};
use mainstay_protocol::time::Instant;

use super::node::{self, Leading, Node, Role, SHARD, TIMING, Waits, place};
use super::plane::{self, Plane, Proposal};
use super::{Broken, Limits, Planted};

/// What the primary of an epoch may have sent.
#[derive(Debug, Clone)]
pub(super) struct Sent {
    pub(super) claim: Claim,
    pub(super) log: Vec<Epoch>,
    pub(super) committed: usize,
}

/// An acknowledgement: of which epoch, by whom, of which disk, up to where.
pub(super) type Ack = (Epoch, usize, DiskId, Seq);
/// Copies are not dropped here: what one acknowledged stays true whatever the record says.
const OF_ANY_RECORD: u64 = u64::MAX;

/// The rule of a machine that is broken on purpose.
const fn rule(planted: Option<Planted>) -> Option<Mutant> {
    match planted {
        Some(Planted::Rule(mutant)) => Some(mutant),
        _ => None,
    }
}

/// A step. Nodes are numbers, counted from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The primary appends an entry.
    Write(usize),
    /// An append of the primary of this epoch arrives: entries after a place up to another.
    Append(Epoch, usize, usize, usize),
    /// An acknowledgement arrives at the primary of its epoch.
    Ack(Epoch, usize, DiskId, Seq),
    /// The oldest write of a disk is synced, and its process hears of it.
    Sync(usize),
    /// A process dies, and so many writes that were not synced are there all the same.
    Crash(usize, usize),
    /// A dead node gets an empty disk.
    Replace(usize),
    /// A dead node starts and registers.
    Start(usize),
    /// The control plane makes a node primary.
    Promote(usize),
    /// The map of this version arrives.
    Map(usize, u64),
    /// The primary proposes a set: one without those that are behind, or with them.
    Propose(usize, bool),
    /// A proposal arrives at the control plane.
    Decide(Epoch, u64, BTreeMap<NodeId, DiskId>),
}

/// A state.
#[derive(Debug, Clone)]
pub(super) struct World {
    pub(super) plane: Plane,
    pub(super) nodes: Vec<Arc<Node>>,
    /// By epoch.
    pub(super) sent: BTreeMap<Epoch, Arc<Sent>>,
    acks: BTreeSet<Ack>,
    /// What was counted as committed.
    pub(super) committed: Vec<Epoch>,
    pub(super) left: Limits,
    min_insync: u8,
    planted: Option<Planted>,
}

impl Hash for World {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        for (epoch, sent) in &self.sent {
            (epoch, &sent.claim.node, sent.claim.disk, &sent.log, sent.committed).hash(hasher);
        }
        (&self.plane, &self.nodes, &self.acks, &self.committed, self.left).hash(hasher);
    }
}

impl World {
    /// A cluster whose shard has just got its first primary, the first node.
    pub(super) fn new(nodes: usize, left: Limits, planted: Option<Planted>) -> Self {
        let min_insync = 2;
        let name = |at: usize| NodeId::new(&format!("n{at}")).expect("it is short");
        let mut nodes: Vec<_> = (0..nodes).map(|at| Node::new(at, name(at))).collect();
        for node in &mut nodes {
            node.stand_by((Epoch(0), Seq(0)), rule(planted));
        }
        let claims: Vec<_> = nodes.iter().map(Node::claim).collect();
        let nodes = nodes.into_iter().map(Arc::new).collect();
        let plane = Plane::new(&claims, min_insync);
        let (sent, acks, committed) = (BTreeMap::new(), BTreeSet::new(), Vec::new());
        let mut this = Self { plane, nodes, sent, acks, committed, left, min_insync, planted };
        this.plane.promote(&name(0));
        this.follow(0, &Arc::clone(&this.plane.state));
        this.tidy_up();
        this
    }

    /// Every step that may change something.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        for (at, node) in self.nodes.iter().enumerate() {
            self.steps_of(at, node, &mut steps);
        }
        for (epoch, sent) in &self.sent {
            for (to, node) in self.nodes.iter().enumerate() {
                if node.name == sent.claim.node || !self.would_hear(node, *epoch) {
                    continue;
                }
                for prev in 0..=sent.log.len() {
                    let most = sent.log.len().min(prev + self.left.entries);
                    steps.extend((prev..=most).map(|upto| Step::Append(*epoch, to, prev, upto)));
                }
            }
        }
        let news = self.acks.iter().filter(|ack| self.would_count(ack));
        steps.extend(news.map(|&(epoch, by, disk, upto)| Step::Ack(epoch, by, disk, upto)));
        let decisions = self.plane.proposals.iter().filter(|_| self.left.sets > 0);
        steps.extend(
            decisions.cloned().map(|(epoch, version, set)| Step::Decide(epoch, version, set)),
        );
        steps
    }

    fn steps_of(&self, at: usize, node: &Node, steps: &mut Vec<Step>) {
        let left = &self.left;
        if left.epochs > 0 {
            steps.push(Step::Promote(at));
        }
        if !node.pending.is_empty() {
            steps.push(Step::Sync(at));
        }
        if matches!(node.role, Role::Down) {
            steps.push(Step::Start(at));
            if left.disks > 0 {
                steps.push(Step::Replace(at));
            }
            return;
        }
        if left.crashes > 0 {
            steps.extend((0..=node.pending.len()).map(|landed| Step::Crash(at, landed)));
        }
        let maps = self.plane.maps.iter().chain([&self.plane.state]);
        let news = maps.filter(|map| would_follow(node, map));
        steps.extend(news.map(|map| Step::Map(at, map.version)));
        if matches!(node.role, Role::Primary(_)) {
            if left.writes > 0 {
                steps.push(Step::Write(at));
            }
            if left.sets > 0 && self.plane.proposals.len() < left.proposals {
                steps.extend([Step::Propose(at, false), Step::Propose(at, true)]);
            }
        }
    }

    /// Takes a step; `false` when nothing happened.
    ///
    /// # Errors
    /// What must never happen.
    pub(super) fn take(&mut self, step: &Step) -> Result<bool, Broken> {
        let happened = match step {
            Step::Write(at) => self.write(*at),
            Step::Append(epoch, to, prev, upto) => self.append(*epoch, *to, (*prev, *upto))?,
            Step::Ack(epoch, by, disk, upto) => self.ack(&(*epoch, *by, *disk, *upto))?,
            Step::Sync(at) => self.sync(*at)?,
            Step::Crash(at, landed) => {
                self.left.crashes -= 1;
                Arc::make_mut(&mut self.nodes[*at]).crash(*landed);
                true
            }
            Step::Replace(at) => {
                self.left.disks -= 1;
                Arc::make_mut(&mut self.nodes[*at]).replace_disk();
                true
            }
            Step::Start(at) => self.start(*at),
            Step::Promote(at) => {
                self.left.epochs -= 1;
                self.plane.promote(&self.nodes[*at].name)
            }
            Step::Map(at, version) => {
                let map = self.plane.map(*version).map(Arc::clone);
                map.is_some_and(|map| self.follow(*at, &map))
            }
            Step::Propose(at, impatient) => self.propose(*at, *impatient),
            Step::Decide(epoch, version, set) => {
                self.left.sets -= 1;
                self.decide(&(*epoch, *version, set.clone()))
            }
        };
        if !happened {
            return Ok(false);
        }
        for at in 0..self.nodes.len() {
            self.count(at)?;
        }
        if !self.tidy_up() {
            return Err(Broken::new("agreed_once", "a proposal for an older record is accepted"));
        }
        self.check()?;
        Ok(true)
    }

    /// Whether a node would do more with an append of this epoch than refuse it.
    fn would_hear(&self, node: &Node, epoch: Epoch) -> bool {
        match &node.role {
            Role::Down => false,
            Role::Primary(leading) => leading.epoch < epoch,
            Role::Standby(standby) => {
                standby.promised() <= epoch || rule(self.planted) == Some(Mutant::NoFencing)
            }
        }
    }

    /// Whether an acknowledgement would tell its primary anything.
    fn would_count(&self, &(epoch, by, disk, upto): &Ack) -> bool {
        let Some(at) = self.primary_of(epoch) else { return false };
        let counted = |it: &Leading| it.in_sync.durable(&self.nodes[by].name, disk);
        let before = self.nodes[at].leading().and_then(counted).unwrap_or_default();
        upto == Seq(0) || before < upto
    }

    fn write(&mut self, at: usize) -> bool {
        let node = Arc::make_mut(&mut self.nodes[at]);
        let Role::Primary(leading) = &node.role else { return false };
        let epoch = leading.epoch;
        self.left.writes -= 1;
        node.append_own(epoch);
        if let Some(sent) = self.sent.get_mut(&epoch).map(Arc::make_mut) {
            sent.log.clone_from(&node.seen.log);
        }
        true
    }

    fn append(&mut self, epoch: Epoch, to: usize, part: (usize, usize)) -> Result<bool, Broken> {
        let (prev, upto) = part;
        let mine = self.nodes[to].leading().map(|leading| leading.epoch);
        if mine.is_some_and(|mine| mine >= epoch) {
            return Ok(false);
        }
        if mine.is_some() {
            self.step_down(to);
        }
        let sent = &self.sent[&epoch];
        let append = Append {
            shard: SHARD,
            epoch,
            version: 0,
            sent_at: 0,
            lease: false,
            prev: node::position(&sent.log, prev),
            segments: node::segments(&sent.log, prev, upto),
            committed: Seq(sent.committed as u64),
        };
        let node = Arc::make_mut(&mut self.nodes[to]);
        let Role::Standby(standby) = &mut node.role else { return Ok(false) };
        let taken = standby.handle_append(&append, Instant::ZERO);
        taken.map_err(|error| Broken::new("must_stop", error.to_string()))?;
        let answers = node.carry_out();
        self.send(to, answers);
        Ok(true)
    }

    /// Acknowledgements that somebody may count yet are on their way.
    fn send(&mut self, from: usize, answers: Vec<Answer>) {
        for answer in answers {
            if let Told::Holds { upto, .. } = answer.what {
                self.acks.insert((answer.epoch, from, answer.disk, upto));
            }
        }
    }

    /// What a feed hands on: of its epoch, and of entries that there are.
    fn ack(&mut self, &(epoch, by, disk, upto): &Ack) -> Result<bool, Broken> {
        let from = self.nodes[by].name.clone();
        let Some(at) = self.primary_of(epoch) else { return Ok(false) };
        let last = self.nodes[at].seen.log.len();
        let Role::Primary(leading) = &mut Arc::make_mut(&mut self.nodes[at]).role else {
            return Ok(false);
        };
        if place(upto) > last {
            let told = format!("{from} acknowledges {upto:?} of {last} in {epoch:?}");
            return Err(Broken::new("held_beyond_the_log", told));
        }
        Ok(leading.in_sync.handle_holds(&from, disk, (OF_ANY_RECORD, upto)).is_ok())
    }

    fn sync(&mut self, at: usize) -> Result<bool, Broken> {
        let node = Arc::make_mut(&mut self.nodes[at]);
        match (node.sync(), &mut node.role) {
            (Some(Waits::Standby(_, ticket)), Role::Standby(standby)) => {
                standby.handle_durable(ticket);
                let answers = node.carry_out();
                self.send(at, answers);
            }
            (Some(Waits::Primary(epoch, upto)), Role::Primary(it)) if it.epoch == epoch => {
                let disk = it.in_sync.said().in_sync[&node.name];
                let counted = it.in_sync.handle_holds(&node.name, disk, (OF_ANY_RECORD, upto));
                counted.map_err(|error| Broken::new("own_counts", error.to_string()))?;
            }
            _ => {}
        }
        Ok(true)
    }

    fn start(&mut self, at: usize) -> bool {
        let node = Arc::make_mut(&mut self.nodes[at]);
        node.boot.0 += 1;
        self.plane.register(&node.claim());
        // It may have sent as the primary of an epoch that its disk does not know. The map under
        // which it starts does.
        let forgets = self.planted == Some(Planted::StartsWithoutMap);
        let least = if forgets { Epoch(0) } else { self.plane.expect().epoch };
        node.stand_by((least, Seq(0)), rule(self.planted));
        true
    }

    fn propose(&mut self, at: usize, impatient: bool) -> bool {
        let last = Seq(self.nodes[at].seen.log.len() as u64);
        let Role::Primary(leading) = &mut Arc::make_mut(&mut self.nodes[at]).role else {
            return false;
        };
        let in_sync = &mut leading.in_sync;
        // Nobody is behind an empty log: that ends the patience that was lost.
        in_sync.handle_timeout(if impatient { last } else { Seq(0) }, Instant::ZERO);
        let set = in_sync.poll_proposal(Instant::ZERO);
        in_sync.handle_timeout(Seq(0), Instant::ZERO);
        let Some(set) = set else { return false };
        self.plane.proposals.insert((leading.epoch, in_sync.said().version, set));
        true
    }

    fn decide(&mut self, proposal: &Proposal) -> bool {
        let from = self.sent[&proposal.0].claim.clone();
        self.plane.decide(proposal, from)
    }

    // -- roles --

    fn follow(&mut self, at: usize, map: &ClusterState) -> bool {
        if !would_follow(&self.nodes[at], map) {
            return false;
        }
        let config = &map.shards[0];
        let copies = Copies::of(map, config);
        let mine = self.nodes[at].leading().map(|leading| leading.epoch);
        let in_set = copies.in_sync.contains_key(&self.nodes[at].name);
        if mine.is_some_and(|mine| mine < config.epoch || !in_set) {
            self.step_down(at);
        }
        if let Role::Primary(leading) = &mut Arc::make_mut(&mut self.nodes[at]).role {
            if leading.epoch == config.epoch {
                leading.in_sync.handle_copies(copies);
            }
            leading.known = map.version;
        } else if would_follow(&self.nodes[at], map) {
            self.take_over(at, config.epoch, (copies, map.version));
        }
        true
    }

    fn take_over(&mut self, at: usize, epoch: Epoch, (copies, known): (Copies, u64)) {
        let node = Arc::make_mut(&mut self.nodes[at]);
        let Role::Standby(standby) = &node.role else { return };
        let Ok(succession) = standby.promote(epoch) else { return };
        let noop = succession.history.last().seq.next();
        let mut in_sync = InSync::new(node.name.clone(), copies, self.min_insync, noop, TIMING);
        if let Some(mutant) = rule(self.planted) {
            in_sync.plant(mutant);
        }
        node.role = Role::Primary(Box::new(Leading { epoch, in_sync, known }));
        node.append_own(epoch);
        let (claim, log) = (node.claim(), node.seen.log.clone());
        let committed = place(succession.committed);
        self.sent.insert(epoch, Arc::new(Sent { claim, log, committed }));
    }

    fn step_down(&mut self, at: usize) {
        let node = Arc::make_mut(&mut self.nodes[at]);
        let Role::Primary(leading) = &node.role else { return };
        let committed = leading.in_sync.watermark();
        node.stand_by((Epoch(0), committed), rule(self.planted));
    }

    pub(super) fn primary_of(&self, epoch: Epoch) -> Option<usize> {
        let leads = |node: &Arc<Node>| node.leading().is_some_and(|leading| leading.epoch == epoch);
        self.nodes.iter().position(leads)
    }

    /// Forgets what nobody can act on any more; `false` when somebody could have.
    fn tidy_up(&mut self) -> bool {
        let claims = |epoch: Epoch| self.sent.get(&epoch).map(|sent| sent.claim.clone());
        let none_lost = self.plane.drop_stale(claims);
        let mut maps = std::mem::take(&mut self.plane.maps);
        maps.retain(|map| self.nodes.iter().any(|node| would_follow(node, map)));
        self.plane.maps = maps;
        let mut acks = std::mem::take(&mut self.acks);
        acks.retain(|ack| self.primary_of(ack.0).is_some());
        self.acks = acks;
        none_lost
    }
}

/// Whether a node would do anything with this map.
fn would_follow(node: &Node, map: &ClusterState) -> bool {
    let claim = node.claim();
    let config = &map.shards[0];
    match &node.role {
        Role::Down => false,
        Role::Primary(leading) => map.version > leading.known && plane::knows(map, &claim),
        Role::Standby(standby) => {
            config.primary.as_ref() == Some(&claim)
                && config.is_in_sync(&node.name, node.disk)
                && plane::knows(map, &claim)
                && standby.promised() < config.epoch
        }
    }
}

impl Node {
    pub(super) fn leading(&self) -> Option<&Leading> {
        match &self.role {
            Role::Primary(leading) => Some(leading),
            _ => None,
        }
    }
}
