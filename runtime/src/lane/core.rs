//! What a lane does with what arrives: one pass of handle, run and flush at a time.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use mainstay_protocol::control::ClusterState;
use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::shard::handoff;
use mainstay_protocol::time::Instant;
use metrics::gauge;
use tokio::sync::oneshot;

use super::drops::Drops;
use super::env::Env;
use super::saves::Saves;
use super::{Arriving, Input};
use crate::clock;
use crate::metrics::SharedGauge;
use crate::shard::commit::Part;
use crate::shard::copies::Told;
use crate::shard::looks::Seen;
use crate::shard::{self, Opened, ShardHost, admission};
use crate::storage::{Batch, JournalNews, Writer};
use crate::transport::reply::Envelope;

/// Turns of one shard before the next shard gets its turn.
const TURNS_PER_SHARD: u32 = 16;
/// Time after which a pass ends all the same: other tasks of the thread, new messages and the
/// journal wait for it.
const PASS: std::time::Duration = std::time::Duration::from_millis(2);

/// A lane's shards, and what they share.
#[derive(Debug)]
pub struct Core {
    pub(super) env: Env,
    lanes: u16,
    turns_per_pass: u32,
    pub(super) shards: BTreeMap<ShardId, ShardHost>,
    /// Shards with turns to run, each once.
    ready: VecDeque<ShardId>,
    /// What standbys show to queries, which are to be run.
    pub(super) seen: VecDeque<Seen>,
    /// Shards with entries to send or replies to release.
    pub(super) touched: Vec<ShardId>,
    /// What those who feed other copies are told at the end of this pass.
    pub(super) told: Vec<Told>,
    pub(super) map: Arc<ClusterState>,
    /// Batches that the journal has not answered, by ticket, in order.
    tickets: BTreeMap<u64, Vec<Part>>,
    next_ticket: u64,
    pub(super) saves: Saves,
    pub(super) drops: Drops,
    /// Something that the map wants could not be done: at the next tick again.
    pub(super) look_again: bool,
    /// Whether there was room on the disk at the last tick.
    pub(super) was_writable: bool,
    /// No queued request's deadline is earlier.
    next_deadline: Option<Instant>,
    /// When every shard with other copies was looked at, due or not.
    pub(super) all_looked_at: Instant,
    pub(super) stopping: Option<oneshot::Sender<()>>,
    pub(super) shards_gauge: SharedGauge,
    pub(super) bytes_gauge: SharedGauge,
}

/// What a lane is made of, beside what its shards share.
#[derive(Debug)]
pub struct Make {
    /// How many lanes the node has.
    pub lanes: u16,
    /// Turns that one pass runs.
    pub turns_per_pass: u32,
    /// How often committed states go into snapshots.
    pub save_every: std::time::Duration,
    /// The shards that recovery found.
    pub recovered: Vec<ShardHost>,
    /// The map at the start.
    pub map: Arc<ClusterState>,
}

impl Core {
    /// A lane.
    pub fn new(env: Env, make: Make) -> Self {
        let Make { lanes, turns_per_pass, save_every, mut recovered, map } = make;
        for host in &mut recovered {
            env.dirty_changed(0, host.dirty().map_or(0, |dirty| dirty.bytes()));
        }
        Self {
            env,
            lanes,
            turns_per_pass,
            shards: recovered.into_iter().map(|host| (host.shard, host)).collect(),
            ready: VecDeque::new(),
            seen: VecDeque::new(),
            touched: Vec::new(),
            told: Vec::new(),
            map,
            tickets: BTreeMap::new(),
            next_ticket: 1,
            saves: Saves::new(save_every),
            drops: Drops::default(),
            look_again: false,
            was_writable: true,
            next_deadline: None,
            all_looked_at: Instant::ZERO,
            stopping: None,
            shards_gauge: SharedGauge::new(gauge!("mainstay_shards", "role" => "primary")),
            bytes_gauge: SharedGauge::new(gauge!(
                "mainstay_entity_state_bytes", "role" => "primary"
            )),
        }
    }

    /// Something happened.
    pub fn handle(&mut self, input: Input) {
        match input {
            Input::Request(envelope) => self.handle_request(envelope),
            Input::Journal(news) => self.handle_journal(news),
            Input::Loaded(loaded) => {
                let (shard, epoch) = (loaded.shard, loaded.epoch);
                self.with_serving(shard, |serving, env| {
                    if serving.epoch == epoch {
                        serving.handle_loaded(env, loaded);
                    }
                });
            }
            Input::TurnBack(back) => {
                let (shard, epoch) = (back.shard, back.epoch);
                self.with_serving(shard, |serving, env| {
                    if serving.epoch == epoch {
                        serving.handle_turn_back(env, back);
                    }
                });
            }
            Input::Saved(saved) => self.handle_saved(saved),
            Input::Opened(opened) => self.handle_opened(*opened),
            Input::DropFailed(shard, stored) => self.handle_drop_failed(shard, stored),
            Input::CopyFailed(shard, plan) => {
                self.with_serving(shard, |serving, _| serving.handle_copy_failed(&plan));
            }
            Input::MoverGaveUp(shard, plan) => {
                self.with_serving(shard, |serving, _| serving.handle_mover_gave_up(&plan));
            }
            Input::Arriving(arriving) => self.handle_arriving(*arriving),
            Input::Promoted(promoted) => self.handle_promoted(*promoted),
            Input::Heard(heard) => self.handle_heard(heard),
            Input::Seen(seen) => self.seen.push_back(*seen),
            Input::Map(newest) => {
                if let Some(map) = newest.take() {
                    self.handle_map(map);
                }
            }
            Input::Room => {}
            Input::Inspect(question) => self.answer(question),
            Input::Tick => self.handle_tick(),
            Input::Stop(stopped) => self.handle_stop(stopped),
        }
    }

    /// Runs turns, fairly over shards, within the budget of a pass; `true` when there are more.
    /// None while the journal is behind: its answers bring the lane here again.
    pub fn run(&mut self) -> bool {
        let more_seen = self.show_some();
        if self.ready.is_empty() || !self.env.journal.has_room() {
            return more_seen;
        }
        let mut budget = self.turns_per_pass;
        let end = clock::now() + PASS;
        while budget > 0
            && clock::now() < end
            && let Some(shard) = self.ready.pop_front()
        {
            let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
                continue;
            };
            serving.listed = false;
            let turns = TURNS_PER_SHARD.min(budget);
            let ran = (0..turns).take_while(|_| serving.run_one(&mut self.env)).count();
            budget -= u32::try_from(ran).unwrap_or(turns);
            if ran == turns as usize {
                serving.listed = true;
                self.ready.push_back(shard);
            }
            self.touched.push(shard);
        }
        more_seen || !self.ready.is_empty()
    }

    /// Hands new entries to the journal as one batch, and lets committed replies leave.
    pub fn flush(&mut self) {
        let mut segments = Vec::new();
        let (mut parts, mut newly) = (Vec::new(), Vec::new());
        for shard in std::mem::take(&mut self.touched) {
            let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
                continue;
            };
            let before = segments.len();
            parts.extend(serving.take_part(&mut segments));
            self.told.extend(serving.take_told(&segments[before..], clock::now()));
            self.told.extend(serving.take_saved());
            serving.release(&mut self.env);
            serving.touched = false;
            if serving.primary.in_sync().has_news() {
                newly.push(shard);
            }
            let may_run = serving.primary.ready() > 0 && !serving.listed;
            if may_run {
                serving.listed = true;
                self.ready.push_back(shard);
            }
            self.look_at_departure(shard);
        }
        self.append(segments, parts);
        for shard in newly {
            self.propose(shard, clock::now());
        }
        if !self.told.is_empty() {
            (self.env.told)(std::mem::take(&mut self.told));
        }
    }

    fn append(&mut self, segments: Vec<Segment>, parts: Vec<Part>) {
        if segments.is_empty() {
            return;
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.tickets.insert(ticket, parts);
        let (writer, promises) = (Writer::Lane(self.env.lane), BTreeMap::new());
        self.env.journal.append(Batch { writer, ticket, segments, promises });
    }

    /// The one to tell, when the lane has ended.
    pub fn stopped(&mut self) -> Option<oneshot::Sender<()>> {
        if self.stopping.is_some() && self.tickets.is_empty() {
            return self.stopping.take();
        }
        None
    }

    /// When to call [`Self::handle_timeout`].
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next_deadline
    }

    /// A deadline may have passed: requests that are still queued then are answered.
    pub fn handle_timeout(&mut self) {
        let now = clock::now();
        self.next_deadline = None;
        let mut due = Vec::new();
        for (shard, host) in &mut self.shards {
            let Some(serving) = host.serving() else { continue };
            if serving.handle_timeout(now) {
                due.push(*shard);
            }
            if serving.touched {
                self.touched.push(*shard);
            }
        }
        for shard in due {
            self.propose(shard, now);
        }
        let shards = self.shards.values().filter_map(ShardHost::is_serving);
        self.next_deadline = shards.filter_map(|serving| serving.primary.poll_timeout()).min();
    }

    /// Looks again at the latest then.
    pub(super) fn wake_at(&mut self, at: Instant) {
        self.next_deadline = Some(self.next_deadline.map_or(at, |before| before.min(at)));
    }

    pub(super) fn touch(&mut self, shard: ShardId) {
        self.touched.push(shard);
    }

    fn with_serving(&mut self, shard: ShardId, act: impl FnOnce(&mut shard::Serving, &mut Env)) {
        if let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) {
            act(serving, &mut self.env);
            self.touch(shard);
        }
    }

    fn handle_request(&mut self, envelope: Envelope) {
        let shard = envelope.request.shard;
        let Some(serving) = self.shards.get_mut(&shard).and_then(ShardHost::serving) else {
            self.handle_unserved(envelope);
            return;
        };
        match admission::check(&mut self.env, &envelope.request) {
            Ok(target) => {
                let (now, deadline) = (clock::now(), envelope.deadline);
                serving.admit(&mut self.env, target, envelope, now);
                if !serving.listed {
                    serving.listed = true;
                    self.ready.push_back(shard);
                }
                self.wake_at(deadline);
            }
            Err(failure) => envelope.reply.send(Err(failure)),
        }
    }

    pub(super) fn primary_of(&self, shard: ShardId) -> Option<NodeId> {
        let config = self.map.shards.get(shard.0 as usize)?;
        let primary = config.primary.as_ref().map(|claim| claim.node.clone())?;
        // Naming ourselves while we do not serve would send the caller round in a circle.
        (primary != self.env.me.node).then_some(primary)
    }

    fn handle_journal(&mut self, news: JournalNews) {
        match news {
            JournalNews::Committed { ticket, .. } => {
                let Some(parts) = self.tickets.remove(&ticket) else { return };
                for mut part in parts {
                    let shard = part.shard;
                    part.spans.clear(); // closes them
                    let Some(host) = self.shards.get_mut(&shard) else { continue };
                    host.handle_committed(&self.env, part);
                    let serves = host.is_serving().is_some();
                    self.touch(shard);
                    if !serves {
                        self.handle_config(shard); // it may be quiet now
                    }
                }
            }
            JournalNews::Fenced { ticket, shard, promised, .. } => {
                self.handle_fenced(ticket, (shard, promised));
            }
            JournalNews::Failed { ticket, error, .. } => {
                self.tickets.remove(&ticket);
                tracing::error!(%error, "the journal stopped: this node serves nothing any more");
                let failure = self.env.not_primary(None);
                for host in self.shards.values_mut() {
                    host.step_down(&mut self.env, &failure);
                }
            }
        }
    }

    /// This node has promised a newer primary that it writes nothing more in the epoch of this one.
    fn handle_fenced(&mut self, ticket: u64, (shard, promised): (ShardId, Epoch)) {
        let Some(parts) = self.tickets.get_mut(&ticket) else { return };
        let Some(at) = parts.iter().position(|part| part.shard == shard) else { return };
        let part = parts.swap_remove(at);
        if parts.is_empty() {
            self.tickets.remove(&ticket);
        }
        tracing::warn!(%shard, promised = promised.0, "a newer primary is known: nothing is written");
        let failure = self.env.not_primary(self.primary_of(shard));
        if let Some(host) = self.shards.get_mut(&shard) {
            host.handle_fenced(&mut self.env, &part, &failure);
        }
        self.handle_config(shard);
    }

    fn handle_opened(&mut self, opened: Opened) {
        let Opened { shard, epoch, result } = opened;
        let Some(host) = self.shards.get_mut(&shard).filter(|host| host.is_opening(epoch)) else {
            return; // the shard was let go meanwhile
        };
        match result {
            Ok(records) => {
                host.handle_opened(records);
                self.handle_config(shard);
            }
            Err(error) => {
                tracing::error!(%shard, %error, "a shard's records cannot be read; tried again");
                self.shards.remove(&shard);
                self.look_again = true;
            }
        }
    }

    pub(super) fn handle_map(&mut self, map: Arc<ClusterState>) {
        if map.version < self.map.version {
            return; // an arriving copy brought a newer one
        }
        self.env.map_version = map.version;
        self.env.shards_total = u32::try_from(map.shards.len()).unwrap_or(u32::MAX);
        self.map = map;
        self.look_at_map();
    }

    /// Acts on what the map says of every shard of this lane.
    pub(super) fn look_at_map(&mut self) {
        let mine = usize::from(self.env.lane);
        for shard in (mine..self.map.shards.len()).step_by(usize::from(self.lanes)) {
            self.handle_config(ShardId(u32::try_from(shard).expect("shards are below 2^32")));
        }
    }

    /// Acts on what the map says of a shard, where the shard's stage lets it.
    fn handle_config(&mut self, shard: ShardId) {
        let map = Arc::clone(&self.map);
        let Some(config) = map.shards.get(shard.0 as usize) else { return };
        if map.standbys > 0 {
            self.handle_fed(shard, (&map, config));
            return;
        }
        let claimed = handoff::is_claimed(config, &self.env.me) && self.stopping.is_none();
        let Some(host) = self.shards.get_mut(&shard) else {
            if claimed {
                self.open(shard, config.epoch);
            }
            return;
        };
        if let Some(serving) = host.serving() {
            if claimed && serving.epoch == config.epoch {
                self.look_again |= serving.handle_plan(&mut self.env, config);
                self.touch(shard);
                return;
            }
            self.close(shard);
        }
        let Some(host) = self.shards.get_mut(&shard) else { return };
        match host.waiting_epoch() {
            Some(stored) if claimed && config.epoch > stored => {
                host.serve(&self.env, config, map.min_insync);
                self.touch(shard);
            }
            Some(stored) if handoff::is_stranded(config, stored, &self.env.me) => {
                self.drop_shard(shard);
            }
            Some(_) | None => {}
        }
    }

    /// A copy is about to be stored: whatever is here of the shard is of an earlier epoch, which
    /// lives on elsewhere, and must neither be written any more nor be served again.
    fn handle_arriving(&mut self, arriving: Arriving) {
        let Arriving { shard, map, let_go } = arriving;
        self.handle_map(map);
        let config = self.map.shards.get(shard.0 as usize);
        let expected = config.is_some_and(|config| handoff::is_arriving(config, &self.env.me.node));
        let quiet = self.shards.get(&shard).is_none_or(ShardHost::is_quiet);
        if expected && quiet && self.shards.contains_key(&shard) {
            self.drop_shard(shard);
        }
        // Whoever asked may have gone.
        let_go.send(expected && quiet).unwrap_or_default();
    }

    /// Ends a primacy that the map took away: what was appended goes to the journal first.
    pub(super) fn close(&mut self, shard: ShardId) {
        let mut segments = Vec::new();
        let failure = self.env.not_primary(self.primary_of(shard));
        let Some(host) = self.shards.get_mut(&shard) else { return };
        let part = host.serving().and_then(|serving| {
            let part = serving.take_part(&mut segments);
            self.told.extend(serving.take_told(&segments, clock::now()));
            part
        });
        host.step_down(&mut self.env, &failure);
        self.append(segments, part.into_iter().collect());
    }

    /// Reads the records of a shard that is not in memory.
    fn open(&mut self, shard: ShardId, epoch: Epoch) {
        self.shards.insert(shard, ShardHost::opening(shard, epoch));
        let inbox = self.env.inbox.clone();
        let done = move |result: Result<crate::storage::OpenedShard, _>| {
            let result = result.map(shard::Records::from);
            drop(inbox.push(Input::Opened(Box::new(Opened { shard, epoch, result }))));
        };
        self.env.state.open_shard(shard, Box::new(done));
    }

    pub(super) fn look_at_departure(&mut self, shard: ShardId) {
        let Some(host) = self.shards.get_mut(&shard) else { return };
        let Some(serving) = host.serving() else { return };
        if !serving.wants_save() {
            return;
        }
        match serving.poll_departure(&self.env) {
            Some(departure) => (self.env.departures)(departure),
            None => self.saves.wanted = true,
        }
    }

    fn handle_stop(&mut self, stopped: oneshot::Sender<()>) {
        let failure = self.env.not_primary(None);
        let shards: Vec<_> = self.shards.keys().copied().collect();
        let (mut segments, mut parts) = (Vec::new(), Vec::new());
        for shard in shards {
            let Some(host) = self.shards.get_mut(&shard) else { continue };
            parts.extend(host.serving().and_then(|serving| serving.take_part(&mut segments)));
            host.step_down(&mut self.env, &failure);
        }
        self.append(segments, parts);
        self.stopping = Some(stopped);
    }
}
