//! Turns: one entity's handler on one request, and what becomes of its state.
//!
//! ```text
//!   next_turn --> in memory? --no--> dirty map, else disk --> Loaded --+
//!                     | yes                                            |
//!                     v                                                v
//!     inline, query: run here      async: state lent to a local task     blocking: to the pool
//!                     |                        \______ TurnBack ______/
//!                     v
//!   Value: keep the state, diff it | Refused, panic, timeout: take it back | --> handle_turn_done
//! ```
//! A turn is atomic: whatever ends it without a value leaves the state of the last good turn.

pub mod away;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures_util::future::AbortHandle;
use mainstay_protocol::entry::Change;
use mainstay_protocol::id::{Epoch, NodeId, RequestId, Seq, ShardId};
use mainstay_protocol::message::{Failure, Mode, Outcome};
use mainstay_protocol::shard::{Ask, Committing, Done, Slot, Turn, TurnId};
use mainstay_protocol::time::{Instant, LogTime};

use super::activation::Activation;
use super::caller::Caller;
use super::dirty::Row;
use super::{Resident, Serving};
use crate::clock;
use crate::entity::host::{BoxState, KindHost, StateError, Style, TurnContext, TurnResult};
use crate::journey::Verb;
use crate::lane::Input;
use crate::lane::env::Env;
use crate::lane::kinds::TurnOutcome;
use crate::storage::{StorageError, StoredState};

/// A state that was read from disk for a turn.
#[derive(Debug)]
pub struct Loaded {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it was asked for.
    pub epoch: Epoch,
    /// The entity's row.
    pub slot: Slot,
    /// The turn that waits for it.
    pub turn: TurnId,
    /// The state, or why there is none.
    pub result: Result<Option<StoredState>, StorageError>,
}

/// A turn that is not over: its state is being read, or is away.
#[derive(Debug)]
pub struct Running {
    turn: TurnId,
    ask: Ask,
    caller: Caller,
    log_time: LogTime,
    began: Instant,
    abort: Option<AbortHandle>,
    /// Whether it sent others a command, when it can.
    asked: Option<Arc<AtomicBool>>,
}

impl Serving {
    /// Runs the next turn of this shard; `false` when none is ready.
    pub(crate) fn run_one(&mut self, env: &mut Env) -> bool {
        let at = clock::moment();
        let now = at.now;
        let Some(turn) = self.primary.next_turn(at) else { return false };
        let Turn { id, slot, fresh, log_time, ask, mut item } = turn;
        drop(item.waiting.take());
        item.leave_queue(&mut env.kinds);
        env.kinds.at(item.kind).wait.record(now.saturating_since(item.arrived));
        let running =
            Running { turn: id, ask, caller: item, log_time, began: now, abort: None, asked: None };
        if running.caller.reply.is_gone() && running.ask.idempotency.is_none() {
            let failure = Failure::Deadline { outcome: Outcome::NotExecuted };
            if fresh {
                self.end_turn(env, slot, running, Done::NotActivated { failure });
            } else {
                self.end_turn(env, slot, running, Done::Failed { failure });
            }
        } else if fresh {
            self.activate(env, slot, running);
        } else {
            self.begin(env, slot, running);
        }
        true
    }

    fn activate(&mut self, env: &mut Env, slot: Slot, running: Running) {
        if !self.primary.is_written(slot) {
            // Whoever stayed here has left the row since, and may have been another entity.
            self.take_resident(env, slot);
        }
        if self.is_resident(slot) {
            // It stayed for what is uncommitted of it, and its state is to be made again.
            match self.undo(env, slot, &running) {
                None => self.begin(env, slot, running),
                Some(failed) => self.end_turn(env, slot, running, failed),
            }
            return;
        }
        let kind = env.kinds.at(running.caller.kind);
        if let Some(row) = self.dirty.newest(&running.ask.entity) {
            kind.activated_journal.add(1);
            let stored = StoredState { seq: row.seq, bytes: row.bytes.clone() };
            self.activated(env, slot, running, Some(stored));
            return;
        }
        let (shard, epoch, inbox) = (self.shard, self.epoch, env.inbox.clone());
        let (entity, turn) = (running.ask.entity.clone(), running.turn);
        self.running.insert(slot, running);
        env.state.load(
            shard,
            entity,
            Box::new(move |result| {
                drop(inbox.push(Input::Loaded(Loaded { shard, epoch, slot, turn, result })));
            }),
        );
    }

    /// A state that a turn waits for was read.
    pub(crate) fn handle_loaded(&mut self, env: &mut Env, loaded: Loaded) {
        let slot = loaded.slot;
        if self.running.get(&slot).is_none_or(|running| running.turn != loaded.turn) {
            return; // given up
        }
        let running = self.running.remove(&slot).expect("it was just seen");
        let kind = env.kinds.at(running.caller.kind);
        match loaded.result {
            Ok(found) => {
                let source = match found {
                    Some(_) => &mut kind.activated_store,
                    None => &mut kind.activated_new,
                };
                source.add(1);
                kind.activation.record(clock::now().saturating_since(running.began));
                self.activated(env, slot, running, found);
            }
            Err(error) => {
                let reason = format!("the entity's state cannot be read: {error}");
                let failure = Failure::Unavailable { outcome: Outcome::NotExecuted, reason };
                self.end_turn(env, slot, running, Done::NotActivated { failure });
            }
        }
    }

    fn activated(
        &mut self,
        env: &mut Env,
        slot: Slot,
        running: Running,
        stored: Option<StoredState>,
    ) {
        let version = stored.as_ref().map_or(Seq(0), |stored| stored.seq);
        let base = stored.map(|stored| stored.bytes);
        let kind = env.kinds.at(running.caller.kind);
        match Activation::new(&*kind.host, &running.ask.entity.key, base) {
            Ok(activation) => {
                kind.entities += 1;
                let idle = kind.host.info().options.idle;
                let bytes = activation.bytes();
                let id = env.passivation.handle_activated((self.shard, slot), bytes, idle);
                let resident = Resident { activation, id, kind: running.caller.kind };
                self.put_resident(slot, resident);
                self.primary.handle_activated(slot, version);
                self.begin(env, slot, running);
            }
            Err(error) => {
                let failure = Failure::Version { reason: error.to_string() };
                self.end_turn(env, slot, running, Done::NotActivated { failure });
            }
        }
    }

    fn begin(&mut self, env: &mut Env, slot: Slot, mut running: Running) {
        running.began = clock::now();
        let kind = env.kinds.at(running.caller.kind);
        let host = Arc::clone(&kind.host);
        let style = kind.info(running.caller.method).style;
        let quick = running.ask.mode == Mode::Query || style == Style::Inline;
        // The state may have come from disk after the deadline.
        let failure = if running.ask.deadline <= running.began {
            Some(Failure::Deadline { outcome: Outcome::NotExecuted })
        } else if self.departs() && !quick {
            Some(env.not_primary(None::<NodeId>))
        } else {
            None
        };
        let ended = failure.map(|failure| Done::Failed { failure });
        let unmet = || (!self.primary.meets_condition(running.turn)).then_some(Done::Unmet);
        if let Some(ended) = ended.or_else(unmet) {
            self.end_turn(env, slot, running, ended);
            return;
        }
        let id = self.resident(slot).id;
        env.passivation.handle_busy(id);
        match (running.ask.mode, style) {
            (Mode::Command, Style::Async) => self.begin_async(env, slot, running, &host),
            (Mode::Command, Style::Blocking) => self.begin_blocking(env, slot, running, &host),
            (Mode::Command | Mode::Query, _) => self.run_here(env, slot, running, &*host),
        }
    }

    fn run_here(&mut self, env: &mut Env, slot: Slot, mut running: Running, kind: &dyn KindHost) {
        let span = running.caller.span(Verb::Handle).entered();
        let payload = std::mem::take(&mut running.caller.payload);
        let context = context(&running, Arc::clone(&env.no_port));
        let method = running.caller.method;
        let activation = &mut self.resident(slot).activation;
        let mode = running.ask.mode;
        let result = catch_unwind(AssertUnwindSafe(|| match mode {
            Mode::Query => kind.run_query(method, activation.state(), &context, &payload),
            Mode::Command => kind.run_inline(method, activation.state_mut(), &context, &payload),
        }));
        drop(span);
        let ended = match result {
            Ok(result) => self.settle(env, slot, &running, (None, result)),
            Err(_) => self.panicked(env, slot, &running),
        };
        self.end_turn(env, slot, running, ended);
    }

    /// A handler came to its end: keep what it did, or take it back.
    fn settle(
        &mut self,
        env: &mut Env,
        slot: Slot,
        running: &Running,
        (state, result): (Option<BoxState>, TurnResult),
    ) -> Done {
        match result {
            TurnResult::Value(value) if running.ask.mode == Mode::Query => {
                Self::count(env, running, TurnOutcome::Ok);
                Done::Query { value }
            }
            TurnResult::Value(value) => {
                let host = Arc::clone(&env.kinds.at(running.caller.kind).host);
                let activation = &mut self.resident(slot).activation;
                match activation.keep(&*host, state, &mut env.scratch) {
                    Ok(change) => {
                        let bytes = activation.base().map_or(0, bytes::Bytes::len);
                        env.kinds.at(running.caller.kind).changed(&change, bytes);
                        Self::count(env, running, TurnOutcome::Ok);
                        Done::Command { change, value }
                    }
                    Err(error) => self.unencodable(env, slot, running, &error),
                }
            }
            TurnResult::Refused(error) => {
                Self::count(env, running, TurnOutcome::AppError);
                self.undo(env, slot, running).unwrap_or(Done::Refused { error })
            }
            TurnResult::Malformed(reason) => {
                Self::count(env, running, TurnOutcome::Cancelled);
                let failed = Done::Failed { failure: Failure::Malformed { reason } };
                self.undo(env, slot, running).unwrap_or(failed)
            }
        }
    }

    fn unencodable(
        &mut self,
        env: &mut Env,
        slot: Slot,
        running: &Running,
        error: &StateError,
    ) -> Done {
        Self::count(env, running, TurnOutcome::Cancelled);
        let reason = format!("the turn was taken back: {error}");
        let failure = Failure::Unavailable { outcome: Outcome::NotExecuted, reason };
        self.undo(env, slot, running).unwrap_or(Done::Failed { failure })
    }

    fn panicked(&mut self, env: &mut Env, slot: Slot, running: &Running) -> Done {
        let kind = env.kinds.at(running.caller.kind);
        kind.panics.add(1);
        let (kind, method) = (kind.host.info().name, kind.info(running.caller.method).name);
        tracing::error!(kind, method, "a handler panicked; its entity is as before the turn");
        Self::count(env, running, TurnOutcome::Panic);
        self.undo(env, slot, running).unwrap_or(Done::Panicked)
    }

    /// Takes the state back; `Some` when that fails and no turn can run on it.
    pub(crate) fn undo(&mut self, env: &mut Env, slot: Slot, running: &Running) -> Option<Done> {
        let host = Arc::clone(&env.kinds.at(running.caller.kind).host);
        if running.ask.mode == Mode::Query && self.resident(slot).activation.is_whole() {
            return None; // a query cannot change its entity
        }
        let undone = self.resident(slot).activation.undo(&*host, &running.ask.entity.key);
        let error = undone.err()?;
        let reason = format!("the entity's own state does not decode any more: {error}");
        Some(Done::NotActivated { failure: Failure::Version { reason } })
    }

    fn count(env: &mut Env, running: &Running, outcome: TurnOutcome) {
        let took = clock::now().saturating_since(running.began);
        let slow = took > env.slow_turn;
        let kind = env.kinds.at(running.caller.kind);
        kind.primary_queries.add(u64::from(running.ask.mode == Mode::Query));
        kind.turn_ended(running.caller.method, outcome, took);
        if slow {
            kind.slow.add(1);
        }
    }

    /// Ends a turn with the rules, and keeps what it left for the next commit.
    pub(crate) fn end_turn(&mut self, env: &mut Env, slot: Slot, running: Running, done: Done) {
        let last = self.primary.gate_of(slot);
        if matches!(done, Done::NotActivated { .. }) && last <= self.primary.watermark() {
            // Otherwise the bytes of its last good turn are nowhere else to be found yet.
            self.take_resident(env, slot);
        }
        let (keyed, entity) = (running.ask.idempotency.is_some(), running.ask.entity.clone());
        let changed = matches!(&done, Done::Command { change, .. } if *change != Change::None);
        let append = running.caller.span(Verb::Append);
        let at = clock::moment();
        let ended = self.primary.handle_turn_done(running.turn, done, running.caller, at);
        if let Ok(Committing { entry: Some(seq), .. }) = ended {
            let row = changed.then(|| self.row_of(slot, seq)).flatten();
            let newest = keyed.then(|| self.primary.dedup().newest()).flatten();
            let dedup = newest.map(|kept| (entity.clone(), kept.log_time, kept.record.clone()));
            self.unsent.note(seq, row.map(|row| (entity, row)), dedup, append);
        }
        self.touched = true;
        self.idle_if_done(env, slot, at.now);
    }

    fn row_of(&mut self, slot: Slot, seq: Seq) -> Option<Row> {
        let bytes = self.resident(slot).activation.base()?.clone();
        Some(Row { seq, bytes })
    }

    /// Gives up every turn that waits or is away: the primary steps down, or hands over.
    /// Blocking turns cannot be called back: they end by themselves, unheard.
    pub(crate) fn give_up_turns(&mut self) -> Vec<(Slot, Running)> {
        let running = std::mem::take(&mut self.running);
        for turn in running.values() {
            if let Some(abort) = &turn.abort {
                abort.abort();
            }
        }
        running.into_iter().collect()
    }

    /// Answers requests whose deadline passed in a queue, and notes which copies are late; `false`
    /// when nothing was due.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> bool {
        let due = self.primary.poll_timeout().is_some_and(|at| at <= now);
        if due {
            self.primary.handle_timeout(now);
            self.touched = true;
        }
        due
    }

    /// Notes the entities that keep others waiting.
    pub(crate) fn note_waiting(&self, env: &mut Env, now: Instant) {
        for (slot, running) in &self.running {
            let waiting = self.primary.row(*slot).is_some_and(|(_, queued, _)| queued > 0);
            if waiting {
                let kind = env.kinds.at(running.caller.kind);
                kind.oldest = kind.oldest.max(now.saturating_since(running.began));
            }
        }
    }
}

impl Running {
    /// The id under which the turn acts: of a keyed command the same whenever it is repeated, so
    /// that what it asks of others takes effect once, whatever became of the first try.
    fn request(&self) -> RequestId {
        let key = self.ask.idempotency.as_ref();
        key.map_or(self.caller.id, |key| RequestId::of_key(&self.ask.entity, key))
    }

    /// The caller, when the turn is given up for good.
    pub(crate) fn into_caller(self) -> Caller {
        self.caller
    }

    /// Whether nothing of the turn remains when it is called back, or what remains is not done
    /// twice when its caller repeats it.
    pub(crate) fn leaves_no_trace(&self) -> bool {
        let asked = self.asked.as_ref().is_some_and(|asked| asked.load(Ordering::Relaxed));
        !asked || self.ask.idempotency.is_some()
    }

    /// Whether the turn can be called back: its state is away in a task, or being read.
    pub(crate) fn revocable(&self, env: &mut Env) -> bool {
        let kind = env.kinds.at(self.caller.kind);
        self.abort.is_some() || kind.info(self.caller.method).style != Style::Blocking
    }
}

fn context(running: &Running, port: Arc<dyn crate::call::CallPort>) -> TurnContext {
    TurnContext {
        entity: running.ask.entity.clone(),
        request: running.request(),
        now: running.log_time,
        remaining: running.ask.deadline.saturating_since(running.began),
        trace: running.caller.trace,
        port,
    }
}
