//! Turns that take the state with them: async ones to a task of the lane's thread, blocking ones to
//! a pool thread. Their entity's mailbox waits until they are back.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use futures_util::FutureExt;
use futures_util::future::{AbortHandle, Abortable};
use mainstay_protocol::id::{Epoch, ShardId};
use mainstay_protocol::message::{Failure, Outcome};
use mainstay_protocol::shard::{Done, Slot, TurnId};

use super::{Running, context};
use crate::clock;
use crate::entity::host::{BoxState, KindHost, TurnResult};
use crate::journey::Verb;
use crate::lane::Input;
use crate::lane::env::Env;
use crate::lane::kinds::TurnOutcome;
use crate::shard::Serving;
use crate::shard::port::{self, Behalf, TurnPort};

/// How a turn that took the state with it came to its end.
pub enum Ended {
    /// It finished.
    Finished(BoxState, TurnResult),
    /// It panicked; the state is gone.
    Panicked,
    /// It took longer than its kind allows; the state is gone.
    TimedOut,
    /// Its deadline passed before there was a thread for it; the state is gone.
    NotBegun,
}

impl std::fmt::Debug for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Finished(..) => "Finished",
            Self::Panicked => "Panicked",
            Self::TimedOut => "TimedOut",
            Self::NotBegun => "NotBegun",
        })
    }
}

/// An async or blocking turn is over.
#[derive(Debug)]
pub struct TurnBack {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which it began.
    pub epoch: Epoch,
    /// The entity's row.
    pub slot: Slot,
    /// The turn.
    pub turn: TurnId,
    /// How it ended.
    pub ended: Ended,
}

impl Serving {
    pub(super) fn begin_async(
        &mut self,
        env: &mut Env,
        slot: Slot,
        mut running: Running,
        kind: &Arc<dyn KindHost>,
    ) {
        let gate = self.primary.gate_of(slot);
        let gate = (gate > self.primary.watermark()).then(|| {
            let (opener, closed) = port::gate();
            self.gates.hold(gate, opener);
            closed
        });
        let behalf = Behalf {
            entity: running.ask.entity.clone(),
            request: running.request(),
            chain: running.caller.chain.clone(),
            trace: running.caller.trace,
        };
        let port = TurnPort::new(Arc::clone(&env.port), behalf, gate);
        running.asked = Some(port.asked());
        let payload = std::mem::take(&mut running.caller.payload);
        let context = context(&running, Arc::new(port));
        let state = self.resident(slot).activation.lend();
        let limit = kind.info().options.turn;
        let (shard, epoch, turn) = (self.shard, self.epoch, running.turn);
        let (inbox, method) = (env.inbox.clone(), running.caller.method);
        let kind = Arc::clone(kind);
        let span = running.caller.span(Verb::Handle);
        let (abort, registration) = AbortHandle::new_pair();
        running.abort = Some(abort);
        self.running.insert(slot, running);
        let task = async move {
            let started =
                catch_unwind(AssertUnwindSafe(|| kind.run_async(method, state, context, payload)));
            let ended = match started {
                Err(_) => Ended::Panicked,
                Ok(turn) => {
                    let turn = AssertUnwindSafe(tracing::Instrument::instrument(turn, span));
                    match tokio::time::timeout(limit, turn.catch_unwind()).await {
                        Ok(Ok((state, result))) => Ended::Finished(state, result),
                        Ok(Err(_)) => Ended::Panicked,
                        Err(_) => Ended::TimedOut,
                    }
                }
            };
            drop(inbox.push(Input::TurnBack(TurnBack { shard, epoch, slot, turn, ended })));
        };
        actix_rt::spawn(Abortable::new(task, registration).map(drop));
    }

    pub(super) fn begin_blocking(
        &mut self,
        env: &mut Env,
        slot: Slot,
        mut running: Running,
        kind: &Arc<dyn KindHost>,
    ) {
        let payload = std::mem::take(&mut running.caller.payload);
        let context = context(&running, Arc::clone(&env.no_port));
        let state = self.resident(slot).activation.lend();
        let (shard, epoch, turn) = (self.shard, self.epoch, running.turn);
        let (inbox, method) = (env.inbox.clone(), running.caller.method);
        let (kind, room) = (Arc::clone(kind), Arc::clone(&env.blocking));
        let span = running.caller.span(Verb::Handle);
        let limit = kind.info().options.turn;
        let deadline = clock::to_tokio(running.ask.deadline);
        self.running.insert(slot, running);
        actix_rt::spawn(async move {
            let permit = tokio::time::timeout_at(deadline, room.acquire_owned()).await;
            let ended = match permit {
                Err(_) => Ended::NotBegun,
                Ok(permit) => {
                    let permit = permit.expect("the room is never closed");
                    let ran = tokio::task::spawn_blocking(move || {
                        // Held by the thread: one that overruns its limit keeps its place.
                        let _permit = permit;
                        let _span = span.entered();
                        catch_unwind(AssertUnwindSafe(|| {
                            kind.run_blocking(method, state, context, payload)
                        }))
                    });
                    match tokio::time::timeout(limit, ran).await {
                        Ok(Ok(Ok((state, result)))) => Ended::Finished(state, result),
                        Ok(Ok(Err(_)) | Err(_)) => Ended::Panicked,
                        Err(_) => Ended::TimedOut,
                    }
                }
            };
            drop(inbox.push(Input::TurnBack(TurnBack { shard, epoch, slot, turn, ended })));
        });
    }

    /// An async or blocking turn is over.
    pub(crate) fn handle_turn_back(&mut self, env: &mut Env, back: TurnBack) {
        let slot = back.slot;
        if self.running.get(&slot).is_none_or(|running| running.turn != back.turn) {
            return; // given up: its state was taken back when that was decided
        }
        let running = self.running.remove(&slot).expect("it was just seen");
        let ended = match back.ended {
            Ended::Finished(state, result) => {
                self.settle(env, slot, &running, (Some(state), result))
            }
            Ended::Panicked => self.panicked(env, slot, &running),
            Ended::TimedOut => {
                let failed =
                    Done::Failed { failure: Failure::Deadline { outcome: Outcome::Unknown } };
                Self::count(env, &running, TurnOutcome::Timeout);
                self.undo(env, slot, &running).unwrap_or(failed)
            }
            Ended::NotBegun => {
                let failure = Failure::Deadline { outcome: Outcome::NotExecuted };
                Self::count(env, &running, TurnOutcome::Cancelled);
                self.undo(env, slot, &running).unwrap_or(Done::Failed { failure })
            }
        };
        self.end_turn(env, slot, running, ended);
    }
}
