//! The simulated world: one queue of things to come, in the order of their times.

mod messages;
mod troubles;

use std::cmp::Reverse;
use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, BinaryHeap, VecDeque};
use std::hash::Hasher as _;
use std::time::Duration;

use fastrand::Rng;
use mainstay_protocol::id::DiskId;
use mainstay_protocol::replication::{Timing, feed};
use mainstay_protocol::shard;
use mainstay_protocol::time::{Instant, LogTime, Moment};

use super::clients::Clients;
use super::disk::Disk;
use super::faults::{self, Fault};
use super::invariants::{Broken, Invariants, View};
use super::node::Node;
use super::node::wire::{Settings, To, Wire};
use super::plane::Plane;
use super::{Counts, Planted};
use crate::sim::clients::{Habits, pick};
use crate::sim::cluster::Stored;

/// The time with faults, and after them the time to heal.
const FAULTY: Duration = Duration::from_millis(1_500);
const HEALING: Duration = Duration::from_millis(2_500);
/// Clients begin nothing in the last part of it, so that copies can be compared.
const QUIET: Duration = Duration::from_millis(500);
/// Every node looks at its timers this often.
const TICK: Duration = Duration::from_millis(5);

/// What is told to a reader: lines, and characters of one.
const TOLD_LINES: usize = 400;
const TOLD_LINE: usize = 260;

/// What is to come.
#[derive(Debug, Clone)]
enum Coming {
    Message(To, Option<usize>, Wire),
    Tick(usize),
    /// A sync ends, of the disk that the node had.
    Synced(usize, DiskId, u64),
    Client(u64),
    GivesUp(u64, u64),
    Plane,
    Start(usize),
    Resume(usize),
    Fault(Fault),
    Story(usize),
}

/// The world of one seed.
pub(super) struct World {
    rng: Rng,
    now: Instant,
    coming: BinaryHeap<Reverse<(Instant, u64)>>,
    events: BTreeMap<u64, Coming>,
    numbers: u64,
    settings: Settings,
    nodes: Vec<Node>,
    plane: Plane,
    clients: Clients,
    habits: faults::Habits,
    story: Option<&'static [faults::Scene]>,
    first: usize,
    /// From, to, until when nothing passes.
    cuts: BTreeMap<(usize, usize), Instant>,
    plane_cuts: BTreeMap<usize, Instant>,
    plane_away: Instant,
    paused: BTreeMap<usize, Vec<Coming>>,
    slow: BTreeMap<usize, Instant>,
    walls: Vec<u64>,
    generations: u8,
    lossy: u8,
    compacts: bool,
    sees_sockets: bool,
    committed: Vec<Stored>,
    invariants: Invariants,
    digest: DefaultHasher,
    /// The last things that happened, when somebody wants to read them.
    told: Option<VecDeque<String>>,
    pub(super) counts: Counts,
    pub(super) steps: u32,
}

fn draw_settings(rng: &mut Rng, planted: Option<Planted>) -> Settings {
    let promise = Duration::from_millis(pick(rng, [40, 100, 250]));
    let timing = Timing {
        promise,
        lease: promise * 4 / 5,
        patience: Duration::from_millis(pick(rng, [40, 120, 300])),
        propose_again: Duration::from_millis(pick(rng, [20, 100])),
    };
    let (window_bytes, append_bytes) = (pick(rng, [200, 4 << 20]), pick(rng, [60, 1 << 20]));
    let retain_bytes = pick(rng, [100, 600, 1 << 20]);
    let feed = feed::Config {
        window_bytes,
        append_bytes,
        retain_bytes,
        recent_bytes: retain_bytes / 2,
        copying_bytes: retain_bytes * 2,
        catch_up: promise * 20,
        ask_again: Duration::from_millis(pick(rng, [15, 60])),
        heartbeat: promise / 4,
    };
    let mut shard = shard::Config { hash_seed: rng.u64(..), ..shard::Config::default() };
    shard.uncommitted_entries_max = pick(rng, [4, 64]);
    let mut habits = Habits::draw(rng);
    (habits.mailbox, habits.share) = (8, 8);
    let mutant = planted.and_then(|planted| match planted {
        Planted::Rule(mutant) => Some(mutant),
        _ => None,
    });
    Settings {
        timing,
        feed,
        shard,
        habits,
        tail: pick(rng, [0, 5, 1000]),
        segment: pick(rng, [1, 3, 100]),
        min_insync: 2,
        mutant,
        same_epoch_after_restart: planted == Some(Planted::SameEpochAfterRestart),
    }
}

impl World {
    pub(super) fn new(seed: u64, planted: Option<Planted>, story: Option<usize>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut settings = draw_settings(&mut rng, planted);
        let nodes = if story.is_some() { 3 } else { pick(&mut rng, [2, 3, 3, 3, 4]) };
        if nodes == 2 && rng.bool() {
            settings.min_insync = 1;
        }
        let silence = Duration::from_millis(pick(&mut rng, [60, 120, 300]));
        let standbys = u8::try_from(nodes.min(3) - 1).unwrap_or(2);
        let disk = |at: usize| DiskId::from_bytes([u8::try_from(at + 1).unwrap_or(1); 16]);
        let make = |at: usize, rng: &mut Rng| {
            Node::new(at, Disk::new(disk(at)), rng.i64(-40..=40), settings)
        };
        let nodes: Vec<Node> = (0..nodes).map(|at| make(at, &mut rng)).collect();
        let mut this = Self {
            now: Instant::from_millis(1),
            coming: BinaryHeap::new(),
            events: BTreeMap::new(),
            numbers: 0,
            settings,
            plane: Plane::new(standbys, settings.min_insync, silence, planted),
            clients: Clients::new(&mut rng, nodes.len()),
            habits: faults::Habits::draw(&mut rng),
            story: story.map(|at| faults::STORIES[at].1),
            first: 0,
            cuts: BTreeMap::new(),
            plane_cuts: BTreeMap::new(),
            plane_away: Instant::ZERO,
            paused: BTreeMap::new(),
            slow: BTreeMap::new(),
            walls: vec![1_000_000; nodes.len()],
            generations: 100,
            lossy: pick(&mut rng, [0, 2, 10]),
            compacts: rng.bool(),
            sees_sockets: rng.bool(),
            committed: Vec::new(),
            invariants: Invariants::default(),
            digest: DefaultHasher::new(),
            told: None,
            counts: Counts::default(),
            steps: 0,
            nodes,
            rng,
        };
        this.begin();
        this
    }

    /// Asks one invariant alone.
    pub(super) fn ask_only(&mut self, invariant: &str) {
        self.invariants.keep(invariant);
    }

    /// Keeps the last things that happen, for a reader.
    pub(super) fn tell_all(&mut self) {
        self.told = Some(VecDeque::new());
    }

    /// The last things that happened, and what all nodes are.
    pub(super) fn describe(&self) -> String {
        let told = self.told.iter().flatten().cloned();
        let nodes = self.nodes.iter().map(Node::describe);
        told.chain(nodes)
            .chain([format!("{:?}", self.plane.shard())])
            .collect::<Vec<_>>()
            .join("\n")
    }

    pub(super) fn digest(&self) -> u64 {
        self.digest.finish()
    }

    fn begin(&mut self) {
        for at in 0..self.nodes.len() {
            self.nodes[at].start();
            let span = Duration::from_micros(self.rng.u64(1..5_000));
            self.after(span, Coming::Tick(at));
        }
        for at in 0..self.clients.all.len() as u64 {
            self.after(Duration::from_millis(100), Coming::Client(at));
        }
        self.after(TICK, Coming::Plane);
        match self.story {
            Some(scenes) => {
                for (at, scene) in scenes.iter().enumerate() {
                    self.after(Duration::from_millis(scene.at), Coming::Story(at));
                }
            }
            None => self.draw_fault(),
        }
    }

    fn draw_fault(&mut self) {
        let (nodes, now) = (self.nodes.len(), self.now);
        if let Some((at, fault)) = self.habits.next(&mut self.rng, nodes, now) {
            self.push(at.max(Instant::from_millis(120)), Coming::Fault(fault));
        }
    }

    fn after(&mut self, span: Duration, coming: Coming) {
        self.push(self.now + span, coming);
    }

    fn push(&mut self, at: Instant, coming: Coming) {
        self.numbers += 1;
        self.coming.push(Reverse((at, self.numbers)));
        self.events.insert(self.numbers, coming);
    }

    fn faulty(&self) -> bool {
        self.now < Instant::ZERO + FAULTY
    }

    /// Faults, healing, and the end.
    pub(super) fn run(&mut self) -> Result<(), Broken> {
        let end = Instant::ZERO + FAULTY + HEALING;
        let mut healed = false;
        while let Some(Reverse((at, number))) = self.coming.pop()
            && at < end
        {
            self.now = at;
            if !healed && !self.faulty() {
                healed = true;
                self.heal()?;
            }
            if let Some(coming) = self.events.remove(&number) {
                self.take(coming)?;
            }
            self.steps += 1;
        }
        let (nodes, plane, committed, now) = (&self.nodes, &self.plane, &self.committed, self.now);
        let min_insync = usize::from(self.settings.min_insync);
        let view = View { nodes, plane, committed, now, min_insync };
        self.counts.promotions += plane.promotions;
        self.counts.committed += committed.len() as u64;
        self.invariants.ask(|invariant| invariant.at_end(&view))
    }

    /// All faults end.
    fn heal(&mut self) -> Result<(), Broken> {
        self.cuts.clear();
        self.plane_cuts.clear();
        self.plane_away = Instant::ZERO;
        self.slow.clear();
        self.lossy = 0;
        let paused: Vec<usize> = self.paused.keys().copied().collect();
        for at in paused {
            self.resume(at)?;
        }
        for at in 0..self.nodes.len() {
            if self.nodes[at].process.is_none() {
                self.start(at);
            }
        }
        Ok(())
    }

    fn take(&mut self, coming: Coming) -> Result<(), Broken> {
        if let Some(told) = &mut self.told
            && !matches!(coming, Coming::Tick(_) | Coming::Plane)
        {
            let line = format!("{:>9} us {coming:?}", self.now.as_nanos() / 1000);
            told.push_back(line.chars().take(TOLD_LINE).collect());
            if told.len() > TOLD_LINES {
                told.pop_front();
            }
        }
        let paused = match &coming {
            Coming::Message(To::Node(at), ..) | Coming::Tick(at) | Coming::Synced(at, ..) => {
                self.paused.get_mut(at)
            }
            _ => None,
        };
        if let Some(later) = paused {
            later.push(coming);
            return Ok(());
        }
        match coming {
            Coming::Message(to, from, wire) => self.receive(to, from, wire),
            Coming::Tick(at) => self.tick(at),
            Coming::Synced(at, disk, boot) => self.synced(at, disk, boot),
            Coming::Client(id) => {
                self.client_begins(id);
                Ok(())
            }
            Coming::GivesUp(client, call) => self.client_hears(client, call, None),
            Coming::Plane => {
                self.after(TICK, Coming::Plane);
                if self.now >= self.plane_away && self.plane.plan(self.now) {
                    self.publish();
                }
                self.check()
            }
            Coming::Start(at) => {
                if self.nodes[at].process.is_none() {
                    self.start(at);
                }
                Ok(())
            }
            Coming::Resume(at) => self.resume(at),
            Coming::Fault(fault) => {
                if self.faulty() {
                    self.fault(fault)?;
                    self.draw_fault();
                }
                Ok(())
            }
            Coming::Story(at) => self.tell(at),
        }
    }

    fn moment(&self, at: usize) -> Moment {
        let wall = LogTime(self.walls[at] + self.now.as_nanos() / 1_000_000);
        Moment { now: self.nodes[at].clock(self.now), wall }
    }

    // -- nodes --

    fn receive(&mut self, to: To, from: Option<usize>, wire: Wire) -> Result<(), Broken> {
        match to {
            To::Node(at) => {
                let moment = self.moment(at);
                let received = self.nodes[at].receive(from, wire, moment);
                received.map_err(|detail| Broken { invariant: "standby", detail })?;
                self.work(at)
            }
            To::Plane => {
                if let Some(from) = from {
                    self.plane_hears(from, wire);
                }
                self.check()
            }
            To::Client(id) => match wire {
                Wire::Reply(call, reply) => self.client_hears(id, call, Some(reply)),
                _ => Ok(()),
            },
        }
    }

    fn tick(&mut self, at: usize) -> Result<(), Broken> {
        let jitter = Duration::from_micros(self.rng.u64(0..500));
        self.after(TICK + jitter, Coming::Tick(at));
        let moment = self.moment(at);
        let compacts = self.compacts && self.rng.u8(0..40) == 0;
        self.nodes[at].tick(moment, compacts);
        self.work(at)
    }

    fn synced(&mut self, at: usize, disk: DiskId, boot: u64) -> Result<(), Broken> {
        let node = &mut self.nodes[at];
        if node.disk.id != disk || node.boots != boot || node.process.is_none() {
            return Ok(());
        }
        let tickets = node.disk.end_sync();
        node.synced(tickets);
        self.work(at)
    }

    /// Lets a node do what is to be done, and takes out what it wants sent and synced.
    fn work(&mut self, at: usize) -> Result<(), Broken> {
        let moment = self.moment(at);
        let worked = self.nodes[at].work(moment);
        worked.map_err(|detail| Broken { invariant: "primary", detail })?;
        self.note_committed(at);
        for (to, wire) in self.nodes[at].take_outbox() {
            self.send(at, to, &wire);
        }
        if self.nodes[at].disk.begin_sync() {
            let slow = self.slow.get(&at).is_some_and(|until| self.now < *until);
            let micros = if slow { 30_000..200_000 } else { 300..3_000 };
            let span = Duration::from_micros(self.rng.u64(micros));
            let (disk, boot) = (self.nodes[at].disk.id, self.nodes[at].boots);
            self.after(span, Coming::Synced(at, disk, boot));
        }
        self.check()
    }

    fn note_committed(&mut self, at: usize) {
        let Some(leading) = self.nodes[at].leading() else { return };
        let upto = usize::try_from(leading.primary.watermark().0).unwrap_or(usize::MAX);
        let log = &self.nodes[at].disk.seen.log;
        if let Some(new) = log.get(self.committed.len()..upto) {
            self.committed.extend(new.iter().cloned());
        }
    }

    fn check(&mut self) -> Result<(), Broken> {
        let (nodes, plane, committed, now) = (&self.nodes, &self.plane, &self.committed, self.now);
        let min_insync = usize::from(self.settings.min_insync);
        let view = View { nodes, plane, committed, now, min_insync };
        self.invariants.ask(|invariant| invariant.after_step(&view))
    }
}
