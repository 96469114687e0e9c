//! The one task of this room: takes what comes in, has each shard's rules decide, carries it out.
//! What concerns shards that are led is in `leading.rs`, what concerns others in `following.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use mainstay_protocol::control::{Claim, ClusterState, ShardConfig};
use mainstay_protocol::dedup;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::replication::Timing;
use mainstay_protocol::time::Instant;
use metrics::{Gauge, gauge};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use super::arriving::Arriving;
use super::ascents::Ascents;
use super::copying::{CopyIn, CopyParts};
use super::lags::Lags;
use super::looking::Looks;
use super::part::{Found, Next, Part};
use super::writes::Writes;
use super::{Input, ReplicationInbox, Setup};
use crate::clock;
use crate::lane::{Input as LaneInput, LaneInbox, lane_of};
use crate::shard::copies::{Heard, Word};
use crate::storage::{Journal, State};
use crate::transport::replication::{Appended, Event, Replicator};

/// How often the room looks after what is not brought about by news.
const TICK: Duration = Duration::from_millis(100);
/// What is taken of each source before the others have their turn.
const TAKEN_MAX: usize = 64;
/// Entries that are committed and wait for reads, at most: beyond it nothing more is taken.
const DUE_MAX: usize = 65_536;

/// What all shards of this room share.
pub(super) struct Env {
    pub(super) me: Claim,
    pub(super) lanes: Vec<LaneInbox>,
    pub(super) journal: Journal,
    pub(super) state: State,
    pub(super) inbox: ReplicationInbox,
    pub(super) replicator: Replicator,
    pub(super) runtime: tokio::runtime::Handle,
    pub(super) writes: Writes,
    pub(super) map: Arc<ClusterState>,
    pub(super) timing: Timing,
    /// What lanes are told at the end of this pass.
    heard: BTreeMap<u16, Vec<Heard>>,
    pub(super) copies: Arc<CopyParts>,
    /// Copies that arrive.
    pub(super) arriving: CopyIn<Arriving>,
    pub(super) dedup: dedup::Config,
    pub(super) fatal: Arc<dyn Fn(String) + Send + Sync>,
    pub(super) lost: Arc<dyn Fn(&NodeId) + Send + Sync>,
}

/// When the feeds of shards that are led want to be looked at.
#[derive(Debug, Default)]
pub(super) struct Timers {
    of: BTreeMap<ShardId, Instant>,
    due: BTreeSet<(Instant, ShardId)>,
}

/// The room.
pub(super) struct Keeper {
    pub(super) env: Env,
    pub(super) parts: BTreeMap<ShardId, Part>,
    pub(super) timers: Timers,
    pub(super) looks: Looks,
    pub(super) found: BTreeMap<ShardId, Found>,
    pub(super) lives: u64,
    pub(super) save_every: Duration,
    pub(super) saved_at: Instant,
    pub(super) saving: bool,
    /// The last shard that was saved; the next save begins behind it.
    pub(super) last_saved: ShardId,
    pub(super) dirty_bytes: u64,
    /// Applied states that no snapshot holds, as of the last tick.
    pub(super) dirty_now: u64,
    pub(super) due_now: usize,
    pub(super) followed_gauge: Gauge,
    pub(super) ascents: Ascents,
    pub(super) lags: Lags,
    /// The last tick found no shard here.
    pub(super) told_empty: bool,
    stopped: bool,
}

impl Keeper {
    pub(super) fn new(
        setup: Setup,
        replicator: Replicator,
        runtime: tokio::runtime::Handle,
    ) -> Self {
        let map = Arc::clone(&setup.map.borrow());
        let identity = Arc::clone(&setup.identity);
        let copies = CopyParts::new(setup.state.clone(), identity, setup.transport.clone());
        Self {
            env: Env {
                me: setup.me,
                lanes: setup.lanes,
                writes: Writes::new(setup.journal.clone()),
                journal: setup.journal,
                state: setup.state,
                inbox: setup.inbox,
                replicator,
                runtime,
                map,
                timing: Timing::default(),
                heard: BTreeMap::new(),
                copies: Arc::new(copies),
                arriving: setup.arriving,
                dedup: setup.dedup,
                fatal: setup.fatal,
                lost: setup.lost,
            },
            parts: BTreeMap::new(),
            timers: Timers::default(),
            looks: Looks::default(),
            found: setup.found,
            lives: 0,
            save_every: setup.save_every,
            saved_at: clock::now(),
            saving: false,
            last_saved: ShardId(0),
            dirty_bytes: setup.dirty_bytes,
            dirty_now: 0,
            due_now: 0,
            followed_gauge: gauge!("mainstay_shards", "role" => "standby"),
            ascents: Ascents::default(),
            lags: Lags::default(),
            told_empty: false,
            stopped: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut appends: mpsc::Receiver<Appended>,
        mut events: mpsc::Receiver<Event>,
        mut maps: watch::Receiver<Arc<ClusterState>>,
    ) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let inbox = self.env.inbox.clone();
        let mut batch = Vec::new();
        self.handle_map(Arc::clone(&maps.borrow_and_update()));
        while !self.stopped {
            let timer = self.next_timer().map(clock::to_tokio);
            let has_room = self.has_room();
            let arrived = poll_fn(|context| {
                inbox.take(&mut batch, context);
                if batch.is_empty() { Poll::Pending } else { Poll::Ready(()) }
            });
            tokio::select! {
                () = arrived => {}
                Some(appended) = appends.recv(), if has_room => self.handle_appended(appended),
                Some(event) = events.recv() => self.handle_event(event),
                Ok(()) = maps.changed() => self.handle_map(Arc::clone(&maps.borrow_and_update())),
                () = until(timer) => {}
                _ = tick.tick(), if !self.rests() => self.handle_tick(),
            }
            batch.drain(..).for_each(|input| self.handle(input));
            for _ in 0..TAKEN_MAX {
                let Ok(event) = events.try_recv() else { break };
                self.handle_event(event);
            }
            for _ in 0..TAKEN_MAX {
                let Some(appended) = appends.try_recv().ok().filter(|_| has_room) else { break };
                self.handle_appended(appended);
            }
            self.handle_timers();
            self.give_up_waiting(clock::now());
            self.flush();
        }
        self.env.replicator.close();
        drop(inbox.close());
    }

    /// Nothing is led or followed here, and the last tick said so.
    fn rests(&self) -> bool {
        self.told_empty && self.parts.is_empty()
    }

    fn next_timer(&self) -> Option<Instant> {
        self.timers.next().into_iter().chain(self.looks.next()).min()
    }

    /// Hands over what this pass brought.
    fn flush(&mut self) {
        self.env.writes.flush();
        for (lane, heard) in std::mem::take(&mut self.env.heard) {
            drop(self.env.lanes[usize::from(lane)].push(LaneInput::Heard(heard)));
        }
    }

    /// Whether what came in is applied and saved fast enough to take more.
    const fn has_room(&self) -> bool {
        self.dirty_now < self.dirty_bytes && self.due_now < DUE_MAX
    }

    fn handle(&mut self, input: Input) {
        match input {
            Input::Told(told) => told.into_iter().for_each(|told| self.handle_told(told)),
            Input::Journal(news) => self.handle_journal(&news),
            Input::Opened(shard, life, opened) => self.handle_opened(shard, life, opened),
            Input::Read(shard, life, wanted, read) => {
                let read = read.inspect_err(|error| {
                    tracing::warn!(%shard, %error, "a state cannot be read; tried again");
                });
                self.with_following(shard, |following, _| {
                    if following.life != life {
                        return Ok(());
                    }
                    following.handle_read(wanted, read)
                });
            }
            Input::Saved(saved, result) => self.handle_saved(saved, result.as_ref().err()),
            Input::Removed(shard, result) => self.handle_removed(shard, result),
            Input::CopyTurn(led, to, turn) => self.handle_copy_turn(led, to, turn),
            Input::Copied(shard, epoch, to, arrived) => {
                self.handle_copied(shard, epoch, &to, arrived);
            }
            Input::CopyBegins(offer, answer) => self.handle_copy_begins(&offer, answer),
            Input::CopyEnds(shard, ticket, start, answer) => {
                answer.send(self.handle_copy_ends(shard, ticket, *start)).unwrap_or_default();
            }
            Input::CopyBroke(shard, ticket) => self.with_following(shard, |following, env| {
                following.standby.handle_copy_broke(ticket);
                following.carry_out(&mut env.writes, Vec::new())
            }),
            Input::Replace(replacing, answer) => {
                answer.send(self.handle_replacing(replacing)).unwrap_or_default();
            }
            Input::Look(look, room) => self.handle_look(*look, room),
            Input::Looked(reading, read) => self.handle_looked(*reading, read),
            Input::NoRoom(look) => self.handle_no_room(*look),
            Input::Stop(stopped) => {
                self.stopped = true;
                stopped.send(()).unwrap_or_default();
            }
        }
    }

    // -- the map --

    fn handle_map(&mut self, map: Arc<ClusterState>) {
        let before = std::mem::replace(&mut self.env.map, map);
        let map = Arc::clone(&self.env.map);
        self.ascents.handle_map((&before, &map), &self.env.me, clock::now());
        let member = map.members.get(&self.env.me.node);
        // A map that does not know this start may be older than what is stored here.
        let registered = member.is_some_and(|member| {
            member.disk == self.env.me.disk && member.boot == self.env.me.boot
        });
        if map.standbys == 0 || !registered {
            return;
        }
        for (shard, config) in map.shards() {
            self.look_at(shard, config);
        }
        self.connect();
    }

    /// Acts on what the map says of a shard, where the shard's part lets it.
    pub(super) fn look_at(&mut self, shard: ShardId, config: &ShardConfig) {
        let me = &self.env.me;
        let claimed = config.primary.as_ref() == Some(me);
        let holds = config.is_in_sync(&me.node, me.disk) || config.targets.contains(&me.node);
        // What is here of others' shards is followed until it may go: it may be the last there is,
        // and the journal is not cut behind what nobody saves.
        let stored = || self.found.get(&shard).is_some_and(Found::is_stored);
        let may_go = self.env.map.is_surplus(config, &me.node);
        match self.parts.get_mut(&shard) {
            None if claimed || holds || stored() => {
                let found = self.found.remove(&shard).unwrap_or_default();
                self.open(shard, found, None);
            }
            Some(Part::Following(following)) if claimed => {
                if following.standby.promised() < config.epoch && following.next.is_none() {
                    following.promoting = Some(config.epoch);
                    self.promote(shard);
                }
            }
            Some(Part::Following(following)) if holds => {
                following.promoting = None;
                following.standby.handle_epoch(config.epoch);
            }
            Some(Part::Following(following))
                if !may_go || !following.standby.may_leave(config.version) =>
            {
                following.promoting = None;
            }
            Some(Part::Following(following)) => {
                following.promoting = None;
                following.next.get_or_insert(Next::Leave);
                self.go_on(shard);
            }
            // Its lane sees by itself when that is over, and says so.
            None | Some(Part::Opening(_) | Part::Leading(_) | Part::Dropping(_)) => {}
        }
    }

    pub(super) fn look_again(&mut self, shard: ShardId) {
        let map = Arc::clone(&self.env.map);
        if let Some(config) = map.shard(shard) {
            self.look_at(shard, config);
        }
    }
}

impl Env {
    /// Tells a shard's lane what another copy said.
    pub(super) fn hear(&mut self, shard: ShardId, epoch: Epoch, what: Word) {
        let lane = self.lane(shard);
        self.heard.entry(lane).or_default().push(Heard { shard, epoch, what });
    }

    /// The number of a shard's lane.
    pub(super) fn lane(&self, shard: ShardId) -> u16 {
        let lanes = u16::try_from(self.lanes.len()).expect("lanes are numbered in 16 bits");
        lane_of(shard, lanes)
    }
}

/// Until then; for ever when there is nothing to wait for.
async fn until(at: Option<tokio::time::Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

impl Timers {
    pub(super) fn set(&mut self, shard: ShardId, at: Option<Instant>) {
        let before = match at {
            Some(at) => self.of.insert(shard, at),
            None => self.of.remove(&shard),
        };
        if let Some(before) = before {
            self.due.remove(&(before, shard));
        }
        if let Some(at) = at {
            self.due.insert((at, shard));
        }
    }

    pub(super) fn next(&self) -> Option<Instant> {
        self.due.first().map(|(at, _)| *at)
    }

    pub(super) fn take_due(&mut self, now: Instant) -> Option<ShardId> {
        let (at, shard) = *self.due.first()?;
        if at > now {
            return None;
        }
        self.set(shard, None);
        Some(shard)
    }
}
