//! The simulated world: draws the next step from the seed, and tells the invariants.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use mainstay_protocol::id::Seq;
use mainstay_protocol::mailbox::Ticket;
use mainstay_protocol::message::Failure;
use mainstay_protocol::replication::in_sync::AckError;
use mainstay_protocol::shard::primary::Primary;
use mainstay_protocol::shard::{Admitted, Config, Done, Refused, SteppedDown, Turn};
use mainstay_protocol::time::{Instant, LogTime, Moment};

use super::clients::{Call, Clients, Habits, pick};
use super::cluster::Cluster;
use super::invariants::{Broken, Invariants, View};
use super::model::States;
use super::scene::{Caller, Scene};
use super::steps::{self, Step, Weights};
use super::trace::{Event, Trace};
use super::{Outcome, Planted};

/// Steps with clients and faults.
const STEPS: u32 = 500;
/// Steps within which everything must drain afterwards.
const DRAIN_STEPS: u32 = 400;

pub(super) struct World {
    rng: Rng,
    weights: Weights,
    config: Config,
    now: Instant,
    wall: LogTime,
    cluster: Cluster,
    primary: Option<Primary<Caller>>,
    scene: Scene,
    clients: Clients,
    tickets: Vec<Ticket>,
    /// Calls in the machine or the scene, for a crash.
    inside: BTreeMap<u64, Call>,
    handing_over: bool,
    durable: States,
    held: Option<States>,
    watermark: Seq,
    invariants: Invariants,
    trace: Trace,
    planted: Option<Planted>,
    step: u32,
}

impl World {
    pub(super) fn new(seed: u64, planted: Option<Planted>) -> Self {
        let mut rng = Rng::with_seed(seed);
        let mut config = Config { hash_seed: rng.u64(..), ..Config::default() };
        config.uncommitted_entries_max = pick(&mut rng, [4, 32, 4096]);
        config.uncommitted_bytes_max = pick(&mut rng, [200, 1 << 20]);
        config.requests_max = pick(&mut rng, [6, 10_000]);
        config.dedup.bytes_max = pick(&mut rng, [1_500, 1 << 20]);
        let copies = rng.usize(1..4);
        Self {
            weights: steps::draw(&mut rng),
            config,
            now: Instant::from_millis(1),
            wall: LogTime(1_000_000),
            cluster: Cluster::new(copies),
            primary: None,
            scene: Scene::new(States::default(), planted),
            clients: Clients::new(Habits::draw(&mut rng)),
            tickets: Vec::new(),
            inside: BTreeMap::new(),
            handing_over: false,
            durable: States::default(),
            held: None,
            watermark: Seq(0),
            invariants: Invariants::default(),
            trace: Trace::default(),
            planted,
            step: 0,
            rng,
        }
    }

    pub(super) const fn step(&self) -> u32 {
        self.step
    }

    pub(super) fn outcome(&self) -> Outcome {
        Outcome { trace: self.trace.digest(), counts: self.trace.counts }
    }

    /// Steps with faults, then without, and then everything has drained.
    pub(super) fn run(&mut self) -> Result<(), Broken> {
        self.promote()?;
        let total: u32 = self.weights.iter().map(|(_, weight)| weight).sum();
        while self.step < STEPS {
            let step = steps::choose(&self.weights, self.rng.u32(0..total));
            self.take(step)?;
            self.end_step()?;
        }
        self.drain()
    }

    fn drain(&mut self) -> Result<(), Broken> {
        self.handing_over = false;
        if let Some(primary) = &mut self.primary {
            primary.resume_admission();
        }
        while self.step < STEPS + DRAIN_STEPS {
            for step in steps::HEALING {
                self.take(step)?;
            }
            self.end_step()?;
            let drained = self.primary.as_ref().is_some_and(Primary::is_drained);
            if drained && self.scene.running.is_empty() {
                return self.end();
            }
        }
        let detail = format!("after {DRAIN_STEPS} calm steps: {:?}", self.primary);
        Err(Broken { invariant: "drain", detail })
    }

    fn end(&mut self) -> Result<(), Broken> {
        self.replay()?;
        let view = view(
            self.primary.as_ref(),
            &self.cluster,
            &self.durable,
            self.held.as_ref(),
            &self.clients,
        );
        self.invariants.at_end(&view)
    }

    /// Asks one invariant alone.
    pub(super) fn ask_only(&mut self, invariant: &str) {
        self.invariants.keep(invariant);
    }

    fn end_step(&mut self) -> Result<(), Broken> {
        self.step += 1;
        if let Some(primary) = &self.primary {
            primary.audit();
        }
        let view = view(self.primary.as_ref(), &self.cluster, &self.durable, None, &self.clients);
        self.invariants.after_step(&view)
    }

    #[expect(clippy::needless_pass_by_value, reason = "an event is made where it is told")]
    fn tell(&mut self, event: Event) -> Result<(), Broken> {
        self.trace.push(&event);
        let ended = match &event {
            Event::Refused(call, _)
            | Event::Replied(call, _)
            | Event::NotExecuted(call)
            | Event::Unknown(call) => Some(call.id),
            _ => None,
        };
        if let Some(id) = ended {
            self.inside.remove(&id);
        }
        if let Event::Replied(call, result) = &event {
            self.clients.handle_reply(call, result);
        }
        let view = view(
            self.primary.as_ref(),
            &self.cluster,
            &self.durable,
            self.held.as_ref(),
            &self.clients,
        );
        self.invariants.observe(&event, &view)
    }

    fn at(&self) -> Moment {
        Moment { now: self.now, wall: self.wall }
    }

    fn machine(&mut self) -> &mut Primary<Caller> {
        self.primary.as_mut().expect("a primary is replaced in the step in which it is lost")
    }

    fn take(&mut self, step: Step) -> Result<(), Broken> {
        match step {
            Step::Call => self.call(),
            Step::Cancel => self.cancel(),
            Step::Turn => self.turn(),
            Step::FinishTurn => self.finish_turn(),
            Step::Flush => self.flush(),
            Step::Deliver => {
                let at = self.rng.usize(0..self.cluster.members.len());
                self.cluster.deliver(at);
                Ok(())
            }
            Step::Sync => {
                let at = self.rng.usize(0..self.cluster.members.len());
                self.cluster.sync(at);
                self.note_durable()
            }
            Step::Ack => self.ack(),
            Step::Release => self.release(),
            Step::Time => {
                self.now = self.now + Duration::from_micros(self.rng.u64(1..3_000));
                self.wall.0 += self.rng.u64(0..3);
                Ok(())
            }
            Step::Timer => {
                let now = self.now;
                self.machine().handle_timeout(now);
                Ok(())
            }
            Step::WallJump => {
                self.wall.0 = (self.wall.0 + self.rng.u64(0..20_000)).saturating_sub(10_000);
                self.tell(Event::Fault("the wall clock jumps"))
            }
            Step::Passivate => {
                self.passivate();
                Ok(())
            }
            Step::StandbyCrash => {
                let at = self.rng.usize(0..self.cluster.members.len());
                if at == self.cluster.primary {
                    return Ok(());
                }
                self.cluster.crash(at);
                self.cluster.resend(at);
                self.tell(Event::Fault("a standby restarts"))
            }
            Step::Crash | Step::PowerLoss => self.crash(step == Step::PowerLoss),
            Step::Resign => self.step_down(),
            Step::Handoff => {
                self.handing_over = true;
                let failure = Failure::NotPrimary { map_version: 1, primary: None };
                self.machine().stop_admission(failure);
                self.tell(Event::Fault("a handoff begins"))
            }
            Step::HandoffGivenUp => {
                self.handing_over = false;
                self.machine().resume_admission();
                Ok(())
            }
        }
    }

    fn call(&mut self) -> Result<(), Broken> {
        let call = self.clients.next(&mut self.rng, self.now);
        self.inside.insert(call.id, call.clone());
        self.tell(Event::Invoked(call.clone()))?;
        let ask = call.ask(&self.clients.habits);
        let now = self.now;
        match self.machine().handle_request(ask, call.clone(), now) {
            Ok(admitted) => {
                if let Admitted::Queued(ticket) | Admitted::Waiting(ticket) = admitted {
                    self.tickets.push(ticket);
                }
                self.tell(Event::Admitted(call, admitted))
            }
            Err(Refused { failure, item }) => self.tell(Event::Refused(item, failure)),
        }
    }

    fn cancel(&mut self) -> Result<(), Broken> {
        if self.tickets.is_empty() {
            return Ok(());
        }
        let at = self.rng.usize(0..self.tickets.len());
        let ticket = self.tickets.swap_remove(at);
        match self.machine().handle_cancel(ticket) {
            Some(call) => self.tell(Event::NotExecuted(call)),
            None => Ok(()),
        }
    }

    fn turn(&mut self) -> Result<(), Broken> {
        for _ in 0..self.rng.u8(1..4) {
            let at = self.at();
            let Some(turn) = self.machine().next_turn(at) else {
                return Ok(());
            };
            self.tell(Event::TurnBegan(turn.item.clone(), turn.slot, self.now))?;
            if self.rng.u8(0..100) < 25 {
                self.scene.running.push(turn);
            } else {
                self.run_turn(turn)?;
            }
        }
        Ok(())
    }

    fn finish_turn(&mut self) -> Result<(), Broken> {
        if self.scene.running.is_empty() {
            return Ok(());
        }
        let at = self.rng.usize(0..self.scene.running.len());
        let turn = self.scene.running.swap_remove(at);
        self.run_turn(turn)
    }

    fn run_turn(&mut self, turn: Turn<Caller>) -> Result<(), Broken> {
        let Turn { id, slot, fresh, item, .. } = turn;
        let done = if fresh && self.rng.u8(0..100) < 10 {
            Scene::not_activated()
        } else {
            if fresh {
                let version = self.scene.activate(slot, item.entity);
                self.machine().handle_activated(slot, version);
            }
            match self.rng.u8(0..100) {
                0..5 => Scene::given_up(),
                _ if !self.machine().meets_condition(id) => Done::Unmet,
                _ => self.scene.run(slot, &item),
            }
        };
        if matches!(done, Done::Panicked) {
            self.tell(Event::Panicked(item.clone()))?;
        }
        self.tell(Event::TurnEnded(item.clone(), slot))?;
        let at = self.at();
        let ended = self.machine().handle_turn_done(id, done, item, at);
        ended.map(drop).map_err(|stale| Broken {
            invariant: "turns",
            detail: format!("the turn of {:?} had ended before", stale.item),
        })
    }

    fn flush(&mut self) -> Result<(), Broken> {
        while let Some(segment) = self.machine().take_segment() {
            let written = self.cluster.write(&segment);
            let entries = written.map_err(|detail| Broken { invariant: "segments", detail })?;
            for stored in entries {
                if self.planted == Some(Planted::EntryTwice) && stored.entry.seq.0 % 8 == 0 {
                    self.tell(Event::Appended(stored.clone()))?;
                }
                self.tell(Event::Appended(stored))?;
            }
        }
        Ok(())
    }

    fn ack(&mut self) -> Result<(), Broken> {
        let (nth, again) = (self.rng.usize(..), self.rng.u8(0..8) == 0);
        if let Some((at, upto)) = self.cluster.ack(nth, again) {
            let counted = self.count(at, upto);
            counted.map_err(|error| Broken { invariant: "acks", detail: error.to_string() })?;
        }
        self.note_watermark()
    }

    /// An acknowledgement arrives; a standby's is a promise too.
    fn count(&mut self, at: usize, upto: Seq) -> Result<(), AckError> {
        let (now, member) = (self.now, &self.cluster.members[at]);
        let (name, disk) = (member.name.clone(), member.disk);
        if at == self.cluster.primary {
            self.machine().handle_durable(upto);
            return Ok(());
        }
        self.machine().handle_heard(&name, disk, (now, true), now)?;
        let version = self.machine().in_sync().said().version;
        self.machine().handle_holds(&name, disk, (version, upto))
    }

    fn note_watermark(&mut self) -> Result<(), Broken> {
        let (epoch, watermark) = (self.machine().epoch(), self.machine().watermark());
        if watermark != self.watermark {
            self.watermark = watermark;
            self.tell(Event::Watermark(epoch, watermark))?;
        }
        let upto = usize::try_from(watermark.0).unwrap_or(usize::MAX);
        apply(&mut self.scene.stored, &self.cluster, upto)
    }

    fn note_durable(&mut self) -> Result<(), Broken> {
        apply(&mut self.durable, &self.cluster, self.cluster.durable())
    }

    fn release(&mut self) -> Result<(), Broken> {
        while let Some(release) = self.machine().poll_release() {
            match self.planted {
                Some(Planted::ReleaseLost) if release.item.id % 8 == 0 => continue,
                Some(Planted::ReleaseTwice) if release.item.id % 8 == 0 => {
                    let again = (release.item.clone(), release.result.clone());
                    self.tell(Event::Replied(again.0, again.1))?;
                }
                _ => {}
            }
            self.tell(Event::Replied(release.item, release.result))?;
        }
        let drained = self.handing_over && self.machine().is_drained();
        if drained && self.scene.running.is_empty() { self.hand_over() } else { Ok(()) }
    }

    fn passivate(&mut self) {
        for slot in self.scene.slots() {
            if self.rng.bool() && self.machine().remove_row(slot) {
                self.scene.passivate(slot);
            }
        }
    }

    fn crash(&mut self, everyone: bool) -> Result<(), Broken> {
        self.tell(Event::Fault(if everyone { "power is lost" } else { "the primary crashes" }))?;
        self.primary = None;
        for at in 0..self.cluster.members.len() {
            if everyone || at == self.cluster.primary {
                self.cluster.crash(at);
            }
        }
        for call in std::mem::take(&mut self.inside).into_values() {
            self.tell(Event::Unknown(call))?;
        }
        self.promote()
    }

    fn step_down(&mut self) -> Result<(), Broken> {
        self.tell(Event::Fault("the primary steps down"))?;
        let primary = self.primary.take().expect("there is a primary between steps");
        let SteppedDown { released, not_executed, unknown } = primary.step_down();
        for release in released {
            self.tell(Event::Replied(release.item, release.result))?;
        }
        for call in not_executed {
            self.tell(Event::NotExecuted(call))?;
        }
        let running = std::mem::take(&mut self.scene.running);
        for call in unknown.into_iter().chain(running.into_iter().map(|turn| turn.item)) {
            self.tell(Event::Unknown(call))?;
        }
        self.promote()
    }

    fn hand_over(&mut self) -> Result<(), Broken> {
        let primary = self.primary.take().expect("there is a primary between steps");
        let SteppedDown { released, not_executed, unknown } = primary.step_down();
        let left = [released.len(), not_executed.len(), unknown.len()];
        if left != [0; 3] {
            let detail = format!("{left:?} callers were left in a drained machine");
            return Err(Broken { invariant: "handoff", detail });
        }
        self.promote()
    }

    /// Any member becomes the primary of the next epoch.
    fn promote(&mut self) -> Result<(), Broken> {
        let at = self.rng.usize(0..self.cluster.members.len());
        let (post, recovered) = self.cluster.promote(at);
        self.tickets.clear();
        self.handing_over = false;
        self.watermark = Seq(0);
        self.note_durable()?;
        self.replay()?;
        let stored = self.held.clone().unwrap_or_default();
        self.scene = Scene::new(stored, self.planted);
        let mut primary = Primary::new(self.config, post, recovered, self.wall);
        if let Some(Planted::Rule(mutant)) = self.planted {
            primary.plant(mutant);
        }
        self.primary = Some(primary);
        self.tell(Event::Promoted(self.cluster.epoch))?;
        self.held = None;
        self.note_watermark()
    }

    /// Applies the primary's whole journal from its beginning, as a recovery does.
    fn replay(&mut self) -> Result<(), Broken> {
        let mut held = States::default();
        apply(&mut held, &self.cluster, usize::MAX)?;
        self.held = Some(held);
        Ok(())
    }
}

fn apply(states: &mut States, cluster: &Cluster, upto: usize) -> Result<(), Broken> {
    let log = cluster.log();
    let applied = states.apply(log, upto.min(log.len()));
    applied.map_err(|detail| Broken { invariant: "apply", detail })
}

fn view<'w>(
    primary: Option<&'w Primary<Caller>>,
    cluster: &'w Cluster,
    durable: &'w States,
    held: Option<&'w States>,
    clients: &'w Clients,
) -> View<'w> {
    View { primary, cluster, durable, held, clients }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_world_begins_with_a_primary_and_no_entity() {
        let mut world = World::new(1, None);
        world.promote().unwrap();
        assert_eq!(world.machine().entities(), 0);
        assert_eq!(world.machine().last(), Seq(1), "the noop");
    }
}
