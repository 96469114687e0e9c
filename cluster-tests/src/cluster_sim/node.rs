//! One simulated node: a process over a disk, a standby or the primary of the one shard.
//!
//! It does what the scenes of a node do, and decides nothing: it carries out effects, hands news
//! in, and follows the map.

pub mod leading;
pub mod wire;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{Claim, ClusterState, MemberState};
use mainstay_protocol::id::{BootId, Epoch, NodeId, Seq};
use mainstay_protocol::mutants::Mutant;
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::replication::standby::{self, Kept, NotPromoted, Standby, Succession};
use mainstay_protocol::replication::{Answer, Append, Position, Told};
use mainstay_protocol::time::{Instant, Moment};

use super::disk::{Disk, Ticket, Write};
use crate::sim::clients::Call;
use crate::sim::cluster::{SHARD, Stored};
use leading::Leading;
use wire::{Reply, Settings, To, Wire};

/// What a process is of the shard.
#[derive(Debug)]
pub enum Role {
    /// Not a member yet.
    None,
    /// A standby, or nothing more than what is on disk.
    Standby(Box<Standby>),
    /// The primary.
    Primary(Box<Leading>),
}

/// A process.
#[derive(Debug)]
pub struct Process {
    /// Its start.
    pub boot: BootId,
    /// Its part.
    pub role: Role,
    /// The map that it has.
    pub map: Option<Arc<ClusterState>>,
    outbox: VecDeque<(To, Wire)>,
    last_beat: Instant,
    /// Standbys so far.
    lives: u64,
}

/// A node.
#[derive(Debug)]
pub struct Node {
    /// Its name.
    pub name: NodeId,
    /// Its number.
    pub at: usize,
    /// Its data directory.
    pub disk: Disk,
    /// Its process, while it runs.
    pub process: Option<Process>,
    /// What its clock is behind or ahead, in thousandths of the time passed.
    pub skew: i64,
    /// Starts so far.
    pub boots: u64,
    settings: Settings,
}

/// The name of a node.
///
/// # Panics
/// Never: simulated names are short.
pub fn name(at: usize) -> NodeId {
    NodeId::new(&format!("n{at}")).expect("it is short")
}

fn number(node: &NodeId) -> usize {
    node.as_str()[1..].parse().expect("simulated nodes are an n and a number")
}

impl Node {
    /// A node that does not run.
    pub fn new(at: usize, disk: Disk, skew: i64, settings: Settings) -> Self {
        Self { name: name(at), at, disk, process: None, skew, boots: 0, settings }
    }

    /// What its clock shows.
    pub const fn clock(&self, now: Instant) -> Instant {
        let nanos = now.as_nanos();
        let skewed = nanos.wrapping_add_signed((nanos / 1000).cast_signed() * self.skew);
        Instant::from_nanos(skewed)
    }

    /// Starts its process.
    pub fn start(&mut self) {
        self.boots += 1;
        self.process = Some(Process {
            boot: BootId(self.boots),
            role: Role::None,
            map: None,
            outbox: VecDeque::new(),
            last_beat: Instant::ZERO,
            lives: 0,
        });
    }

    /// Kills its process: the callers inside hear nothing.
    pub fn kill(&mut self) {
        self.process = None;
    }

    /// What it wants sent.
    pub fn take_outbox(&mut self) -> VecDeque<(To, Wire)> {
        self.process.as_mut().map(|process| std::mem::take(&mut process.outbox)).unwrap_or_default()
    }

    /// Its primary, while it is one.
    pub fn leading(&self) -> Option<&Leading> {
        match self.process.as_ref().map(|process| &process.role) {
            Some(Role::Primary(leading)) => Some(leading),
            _ => None,
        }
    }

    /// What its standby knows to be committed, while it is one.
    pub fn standby(&self) -> Option<&Standby> {
        match self.process.as_ref().map(|process| &process.role) {
            Some(Role::Standby(standby)) => Some(standby),
            _ => None,
        }
    }

    /// What it is, for a reader.
    pub fn describe(&self) -> String {
        match self.process.as_ref().map(|process| &process.role) {
            None => format!("{} does not run", self.name),
            Some(Role::None) => format!("{} is no member", self.name),
            Some(Role::Standby(standby)) => format!("{}: {standby:?}", self.name),
            Some(Role::Primary(leading)) => {
                let Leading { primary, feed, copying, .. } = &**leading;
                let in_sync = primary.in_sync();
                format!("{}: {primary:?} {in_sync:?} {feed:?} copying {copying:?}", self.name)
            }
        }
    }

    fn send(&mut self, to: To, wire: Wire) {
        if let Some(process) = &mut self.process {
            process.outbox.push_back((to, wire));
        }
    }

    /// A message arrived.
    ///
    /// # Errors
    /// What a standby says that must stop the node.
    pub fn receive(&mut self, from: Option<usize>, wire: Wire, at: Moment) -> Result<(), String> {
        let now = at.now;
        match (wire, from) {
            (Wire::Append(append), Some(from)) => self.append(from, &append, now)?,
            (Wire::Answer(answer), Some(from)) => {
                if let Some(leading) = self.leading_mut() {
                    leading.feed.handle_answer(&name(from), &answer, now);
                }
            }
            (Wire::Copy(epoch, base, log), Some(from)) => self.copy(from, epoch, base, log),
            (Wire::Copied(epoch, arrived), Some(from)) => {
                if let Some(leading) = self.leading_mut()
                    && leading.primary.epoch() == epoch
                {
                    leading.copying.remove(&name(from));
                    leading.feed.handle_copied(&name(from), arrived, now);
                }
            }
            (Wire::Request(call, left), _) => self.request(call, left, now),
            (Wire::Map(map), _) => self.follow(&map, at)?,
            _ => {}
        }
        Ok(())
    }

    fn leading_mut(&mut self) -> Option<&mut Leading> {
        match self.process.as_mut().map(|process| &mut process.role) {
            Some(Role::Primary(leading)) => Some(leading),
            _ => None,
        }
    }

    fn standby_mut(&mut self) -> Option<&mut Standby> {
        match self.process.as_mut().map(|process| &mut process.role) {
            Some(Role::Standby(standby)) => Some(standby),
            _ => None,
        }
    }

    fn append(&mut self, from: usize, append: &Append, now: Instant) -> Result<(), String> {
        let epoch = self.leading().map(|leading| leading.primary.epoch());
        if epoch.is_some_and(|mine| append.epoch > mine) {
            self.step_down(now);
        } else if let Some(mine) = epoch {
            let what = Told::Fenced { promised: mine };
            let (shard, epoch, disk) = (SHARD, append.epoch, self.disk.id);
            self.send(To::Node(from), Wire::Answer(Answer { shard, epoch, disk, what }));
            return Ok(());
        }
        let Some(standby) = self.standby_mut() else { return Ok(()) };
        standby.handle_append(append, now).map_err(|error| error.to_string())?;
        self.carry_out(Some(from));
        Ok(())
    }

    fn copy(&mut self, from: usize, epoch: Epoch, base: Position, log: Vec<Stored>) {
        let standby = self.standby_mut();
        if let Some(copy) = standby.and_then(|standby| standby.handle_copy_begins(epoch, base)) {
            self.disk.write(Ticket::None, Write::CopyBegins { promised: epoch });
            self.disk.write(Ticket::Copied(epoch, copy), Write::Copied { log });
        } else {
            self.send(To::Node(from), Wire::Copied(epoch, false));
        }
    }

    /// What a standby wants done. Answers go to the primary that is answered, or, when the disk
    /// brought them about, to the one of the map.
    fn carry_out(&mut self, to: Option<usize>) {
        while let Some(effect) = self.standby_mut().and_then(Standby::poll_effect) {
            match effect {
                standby::Effect::Persist { ticket, promised, segments } => {
                    let write = Write::Append { promised, segments };
                    self.disk.write(Ticket::Standby(ticket), write);
                }
                standby::Effect::Answer(answer) => {
                    if let Some(to) = to.or_else(|| self.primary_of_map()) {
                        self.send(To::Node(to), Wire::Answer(answer));
                    }
                }
                standby::Effect::Commit(_) => {}
                standby::Effect::Discard => self.disk.write(Ticket::None, Write::Discard),
            }
        }
    }

    fn primary_of_map(&self) -> Option<usize> {
        let map = self.process.as_ref()?.map.as_ref()?;
        Some(number(&map.shard(SHARD)?.primary.as_ref()?.node))
    }

    fn request(&mut self, call: Call, left: Duration, now: Instant) {
        let habits = self.settings.habits;
        let client = call.source;
        let id = call.id;
        let reply = match self.leading_mut() {
            None => Some(Reply::NotExecuted),
            Some(leading) => {
                leading.feed.ask_leases(now + Duration::from_millis(200));
                let mut ask = call.ask(&habits);
                ask.deadline = now + left;
                let refused = leading.primary.handle_request(ask, call, now).err();
                refused.map(|refused| Reply::Result(Err(refused.failure)))
            }
        };
        if let Some(reply) = reply {
            self.send(To::Client(client), Wire::Reply(id, reply));
        }
    }

    /// The disk has what these wait for.
    pub fn synced(&mut self, tickets: Vec<Ticket>) {
        for ticket in tickets {
            match ticket {
                Ticket::Standby(number) => {
                    if let Some(standby) = self.standby_mut() {
                        standby.handle_durable(number);
                        self.carry_out(None);
                    }
                }
                Ticket::Primary(epoch, upto) => {
                    if let Some(leading) = self.leading_mut()
                        && leading.primary.epoch() == epoch
                    {
                        leading.primary.handle_durable(upto);
                    }
                }
                Ticket::Copied(epoch, copy) => {
                    let ends = self.standby_mut().is_some_and(|it| it.handle_copy_ends(copy));
                    self.carry_out(None);
                    if let Some(to) = self.primary_of_map() {
                        self.send(To::Node(to), Wire::Copied(epoch, ends));
                    }
                }
                Ticket::None => {}
            }
        }
    }

    /// Time passed.
    pub fn tick(&mut self, at: Moment, wants_compaction: bool) {
        let now = at.now;
        let (disk, name) = (self.disk.id, self.name.clone());
        let Some(process) = &mut self.process else { return };
        if now >= process.last_beat + Duration::from_millis(25) {
            process.last_beat = now;
            let version = process.map.as_ref().map_or(0, |map| map.version);
            let member = process.map.as_ref().and_then(|map| map.members.get(&name));
            let registered = member.is_some_and(|it| {
                it.disk == disk && it.boot == process.boot && it.state != MemberState::Down
            });
            let boot = process.boot;
            if !registered {
                process.outbox.push_back((To::Plane, Wire::Register(disk, boot)));
            }
            process.outbox.push_back((To::Plane, Wire::Beat(boot, version)));
        }
        match &mut process.role {
            Role::Primary(leading) => leading.tick(now),
            Role::Standby(standby) if wants_compaction => standby.forget_below(standby.committed()),
            _ => {}
        }
    }

    // -- roles --

    /// A newer map.
    fn follow(&mut self, map: &Arc<ClusterState>, at: Moment) -> Result<(), String> {
        let disk = self.disk.id;
        let name = self.name.clone();
        let Some(process) = &mut self.process else { return Ok(()) };
        if process.map.as_ref().is_some_and(|known| known.version >= map.version) {
            return Ok(());
        }
        process.map = Some(Arc::clone(map));
        let boot = process.boot;
        let member = map.members.get(&name);
        if member.is_none_or(|member| member.disk != disk || member.boot < boot) {
            return Ok(());
        }
        if matches!(process.role, Role::None) {
            process.lives += 1;
            let standby = self.settings.standby((&self.disk, process.lives), Seq(0), at.now);
            process.role = Role::Standby(Box::new(standby));
        }
        let Some(config) = map.shard(SHARD) else { return Ok(()) };
        let mine = self.leading().map(|leading| leading.primary.epoch());
        let copies = Copies::of(map, config);
        if mine.is_some_and(|mine| mine < config.epoch || !copies.in_sync.contains_key(&name)) {
            self.step_down(at.now);
        }
        let claim = Claim { node: name.clone(), disk, boot };
        if let Some(leading) = self.leading_mut()
            && mine == Some(config.epoch)
        {
            leading.primary.handle_copies(copies.clone(), at.now);
            leading.feed.handle_copies(&name, &copies, at.now);
            leading.hand_over(config.handoff.as_ref().map(|handoff| handoff.to.clone()));
        } else if config.primary.as_ref() == Some(&claim) || self.resumes(map) {
            return self.take_over(config.epoch, &copies, claim, at);
        } else if let Some(standby) = self.standby_mut() {
            standby.handle_epoch(config.epoch);
            if map.is_surplus(config, &name) && standby.may_leave(config.version) {
                self.drop_copy(at.now);
            }
        }
        Ok(())
    }

    /// It is wanted here no more: what is here goes, but for promises.
    fn drop_copy(&mut self, now: Instant) {
        self.disk.write(Ticket::None, Write::Discard);
        let Some(process) = &mut self.process else { return };
        process.lives += 1;
        let standby = self.settings.standby((&self.disk, process.lives), Seq(0), now);
        process.role = Role::Standby(Box::new(standby));
    }

    /// A planted fault: a restarted primary takes its old claim for its own.
    fn resumes(&self, map: &ClusterState) -> bool {
        let primary = map.shard(SHARD).and_then(|config| config.primary.as_ref());
        self.settings.same_epoch_after_restart
            && primary.is_some_and(|claim| claim.node == self.name && claim.disk == self.disk.id)
    }

    fn take_over(
        &mut self,
        epoch: Epoch,
        copies: &Copies,
        claim: Claim,
        at: Moment,
    ) -> Result<(), String> {
        let settings = self.settings;
        if copies.in_sync.get(&self.name) != Some(&self.disk.id) {
            return Ok(());
        }
        let Some(standby) = self.standby_mut() else { return Ok(()) };
        let succession = match standby.promote(epoch) {
            Ok(succession) => succession,
            Err(_) if settings.same_epoch_after_restart => Succession {
                history: self.disk.seen.history(Seq(0)),
                committed: Seq(0),
                serve_from: Instant::ZERO,
            },
            Err(error @ NotPromoted::Incomplete) => return Err(error.to_string()),
            Err(NotPromoted::Promised { .. }) => return Ok(()),
        };
        let leading = settings.lead(&self.disk, (epoch, copies, claim), &succession, at);
        if let Some(process) = &mut self.process {
            process.role = Role::Primary(Box::new(leading));
        }
        Ok(())
    }

    /// Everyone inside is told what is known, and the log is a standby's again.
    fn step_down(&mut self, now: Instant) {
        let (settings, disk) = (self.settings, &self.disk);
        let Some(process) = &mut self.process else { return };
        let Role::Primary(leading) = std::mem::replace(&mut process.role, Role::None) else {
            return;
        };
        let committed = leading.primary.watermark();
        process.lives += 1;
        process.role =
            Role::Standby(Box::new(settings.standby((disk, process.lives), committed, now)));
        let everyone = leading.primary.step_down();
        let fails = settings.mutant == Some(Mutant::StepDownSwapped);
        for release in everyone.released {
            let reply = Wire::Reply(release.item.id, Reply::Result(release.result));
            process.outbox.push_back((To::Client(release.item.source), reply));
        }
        for call in everyone.not_executed {
            let reply = Wire::Reply(call.id, Reply::NotExecuted);
            process.outbox.push_back((To::Client(call.source), reply));
        }
        for call in everyone.unknown {
            let reply = if fails { Reply::NotExecuted } else { Reply::Unknown };
            process.outbox.push_back((To::Client(call.source), Wire::Reply(call.id, reply)));
        }
    }

    /// Runs what can run and sends what is to be sent, until nothing is left.
    ///
    /// # Errors
    /// What does not count though it should.
    pub fn work(&mut self, at: Moment) -> Result<(), String> {
        let deposed = match self.process.as_mut().map(|process| &mut process.role) {
            Some(Role::Primary(_)) => self.work_as_primary(at),
            _ => return Ok(()),
        };
        if deposed {
            self.step_down(at.now);
        }
        Ok(())
    }

    fn work_as_primary(&mut self, at: Moment) -> bool {
        let Some(process) = &mut self.process else { return false };
        let Role::Primary(leading) = &mut process.role else { return false };
        let disk = &mut self.disk;
        leading.run_turns(at);
        leading.write(disk, at.now);
        if leading.exchange(disk, &mut process.outbox, at.now) {
            return true;
        }
        leading.commit(disk, at.now);
        let map = process.map.as_ref();
        leading.propose(map.and_then(|map| map.shard(SHARD)), &mut process.outbox, at.now);
        leading.complete(map, &mut process.outbox, at.now);
        while let Some(release) = leading.primary.poll_release() {
            let reply = Wire::Reply(release.item.id, Reply::Result(release.result));
            process.outbox.push_back((To::Client(release.item.source), reply));
        }
        leading.exchange(disk, &mut process.outbox, at.now)
    }
}

impl Settings {
    fn standby(&self, (disk, life): (&Disk, u64), committed: Seq, now: Instant) -> Standby {
        let image = &disk.seen;
        let (history, whole) = (image.history(Seq(0)), !image.incomplete);
        let kept = Kept { promised: image.promised, history, committed, whole };
        let mut standby = Standby::new((SHARD, disk.id, life), kept, self.timing, now);
        if image.dropped {
            standby.note_dropped();
        }
        if let Some(mutant) = self.mutant {
            standby.plant(mutant);
        }
        standby
    }
}
