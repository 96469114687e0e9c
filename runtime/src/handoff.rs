//! Moves shards: copies one that stands still to its target, and has the map say so.
//!
//! ```text
//!   lane: Departure --> copy, page by page --> CompleteHandoff --> the map names the target
//!                           | fails: again, while the map plans this very move
//!                           +- for too long: AbortHandoff --> the lane serves on, and pauses
//! ```
//! The copy is read from the snapshot tables, into which the lane has saved everything. Until the
//! map names the target the source keeps its own copy and can serve again; afterwards its epoch is
//! over. Nothing here decides where a shard goes: the director did.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::control::{Claim, ClusterState, Command, Expect, ProposeRefused};
use mainstay_protocol::id::{NodeId, ShardId};
use mainstay_protocol::message::Caller;
use mainstay_protocol::shard::handoff;
use mainstay_protocol::snapshot::{Body, Head, Message, Reason};
use mainstay_protocol::time::Instant;
use metrics::{counter, histogram};
use tokio::sync::oneshot;

use crate::chain::chain;
use crate::clock;
use crate::control::ControlHandle;
use crate::lane::{Arriving, Input, LaneInbox, lane_of};
use crate::replication::copying::pages::{self, Outgoing, Way};
use crate::shard::handoff::Departure;
use crate::storage::{Generation, State};
use crate::transport;
use crate::transport::handshake::Identity;

/// How long to wait before a copy that failed is tried again.
const TRY_AGAIN: Duration = Duration::from_millis(200);
/// How long copies may fail before an operator is told, and before the move is given up.
const FAILING_TOLD: Duration = Duration::from_secs(1);
const FAILING_MAX: Duration = Duration::from_secs(10);

/// Why a copy did not arrive. The source serves on when the move is given up.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The target is not in the map, or has another disk.
    #[error("the target is no member with that disk any more")]
    NoTarget,
    /// It broke off.
    #[error("the copy broke off")]
    Copy(#[from] pages::CopyError),
}

impl CopyError {
    /// Whether every other try will end like this one: what fails is here, not on the way.
    const fn is_hopeless(&self) -> bool {
        match self {
            Self::NoTarget => false,
            Self::Copy(error) => error.is_hopeless(),
        }
    }
}

/// The failures in a row of the copies of one plan.
#[derive(Debug, Default)]
struct Failing {
    since: Option<Instant>,
    told: bool,
    /// The move is to be given up, so that the shard is served again.
    hopeless: bool,
}

impl Failing {
    /// A copy failed. A first failure is nothing to tell of: the target may have seen the plan a
    /// moment later than this node.
    fn note(&mut self, departure: &Departure, error: &CopyError) {
        let now = clock::now();
        let lasts = now.saturating_since(*self.since.get_or_insert(now));
        self.hopeless = lasts >= FAILING_MAX || error.is_hopeless();
        let (shard, to, error) = (departure.shard, &departure.to.to, chain(error));
        if self.hopeless {
            tracing::warn!(%shard, %to, error, "no copy of a shard arrives: its move is given up");
            (departure.failed)();
        } else if lasts >= FAILING_TOLD && !self.told {
            self.told = true;
            tracing::warn!(%shard, %to, error, "no copy of a shard arrives, and nobody serves it");
        } else {
            tracing::debug!(%shard, %to, error, "a copy failed");
        }
    }
}

/// Copies shards out, and takes copies in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Mover(Arc<Parts>);

/// What a mover needs of its node.
#[derive(Debug)]
pub struct Parts {
    /// The tables.
    pub state: State,
    /// Who this node is.
    pub identity: Arc<Identity>,
    /// How it connects.
    pub config: transport::Config,
    /// The map, and the way to change it.
    pub control: ControlHandle,
    /// Where copies run.
    pub runtime: tokio::runtime::Handle,
    /// The lanes, which let go of a shard before its copy arrives.
    pub lanes: Lanes,
}

/// The lanes, by shard.
#[derive(Debug, Clone)]
pub struct Lanes(pub Arc<[LaneInbox]>);

impl Lanes {
    /// Has the lane of a shard let go of what it holds of it.
    async fn let_go(&self, shard: ShardId, map: Arc<ClusterState>) -> bool {
        let lanes = u16::try_from(self.0.len()).expect("lanes are numbered in 16 bits");
        let lane = usize::from(lane_of(shard, lanes));
        let (let_go, answer) = oneshot::channel();
        let arriving = Arriving { shard, map, let_go };
        // A lane that has ended drops the question, which is an answer.
        drop(self.0[lane].push(Input::Arriving(Box::new(arriving))));
        answer.await.unwrap_or(false)
    }
}

impl Mover {
    /// The mover of a node.
    pub fn new(parts: Parts) -> Self {
        Self(Arc::new(parts))
    }

    /// A shard is ready to go: the copy begins. The director bounds how many are under way.
    pub fn depart(&self, departure: Departure) {
        let this = self.clone();
        self.0.runtime.spawn(async move {
            if !this.carry(&departure).await {
                // The lane learns of the map a moment later than this place.
                tokio::time::sleep(TRY_AGAIN).await;
                (departure.gave_up)();
            }
        });
    }

    /// Whether the shard was moved; otherwise the plan is gone.
    async fn carry(self, departure: &Departure) -> bool {
        let began = clock::now();
        let mut failing = Failing::default();
        let mut moved = false;
        while let Some(expect) = self.planned(departure) {
            if failing.hopeless {
                self.give_up(departure, expect).await;
            } else if self.attempt(departure, &mut failing).await {
                moved = true;
                break;
            }
            tokio::time::sleep(TRY_AGAIN).await;
        }
        let took = clock::now().saturating_since(began);
        let outcome = if moved { "ok" } else { "aborted" };
        counter!("mainstay_shard_moves_total", "cause" => "rebalance", "outcome" => outcome)
            .increment(1);
        histogram!("mainstay_shard_move_duration_seconds", "cause" => "rebalance").record(took);
        moved
    }

    /// One copy, and the map that names its target: whether both came about.
    async fn attempt(&self, departure: &Departure, failing: &mut Failing) -> bool {
        match self.copy(departure).await {
            Ok(to) => {
                *failing = Failing::default();
                tell(departure, &self.complete(departure, to).await)
            }
            Err(error) => {
                failing.note(departure, &error);
                false
            }
        }
    }

    /// Has the map give the move up. Before it does the shard stands still: only then can no copy
    /// of this plan count any more.
    async fn give_up(&self, departure: &Departure, expect: Expect) {
        let command = Command::AbortHandoff { shard: departure.shard, expect };
        tell(departure, &self.0.control.propose(command).await.map(drop));
    }

    /// What to expect of the shard's record, while the map still plans this very move. The shard
    /// stands still until the map changes its mind, so a copy stays good when the record changes
    /// otherwise.
    fn planned(&self, departure: &Departure) -> Option<Expect> {
        let map = self.0.control.current();
        let config = map.shards.get(departure.shard.0 as usize)?;
        let same =
            config.epoch == departure.epoch && config.handoff.as_ref() == Some(&departure.to);
        same.then(|| config.expect())
    }

    async fn copy(&self, departure: &Departure) -> Result<Claim, CopyError> {
        let map = self.0.control.current();
        let to = departure.to.to.clone();
        let target = map.members.get(&to).filter(|member| member.disk == departure.to.disk);
        let target = target.ok_or(CopyError::NoTarget)?;
        let claim = Claim { node: to.clone(), disk: target.disk, boot: target.boot };
        if map.standbys > 0 {
            return Ok(claim); // it holds all: it is in sync, and the source stands still
        }
        let (shard, epoch) = (departure.shard, departure.epoch);
        let reason = Reason::Move { plan: departure.to.plan };
        let head = Head { shard, copy: clock::wall().0, epoch, reason };
        let Parts { identity, config, state, .. } = &*self.0;
        let way = Way { identity, config, addr: &target.peer_addr, to: &to };
        let mut copy = Outgoing::begin(way, head).await?;
        copy.states(state).await?;
        for records in pages::pages(&departure.dedup) {
            copy.records(records.to_vec()).await?;
        }
        copy.finish(departure.last, departure.log_time).await?;
        Ok(claim)
    }

    async fn complete(&self, departure: &Departure, to: Claim) -> Result<(), ProposeRefused> {
        let shard = departure.shard;
        let Some(expect) = self.planned(departure) else { return Err(ProposeRefused::Stale) };
        self.0.control.propose(Command::CompleteHandoff { shard, expect, to }).await.map(drop)
    }

    /// A message of a copy that arrives here.
    ///
    /// # Errors
    /// Why it was not taken, for the source's eyes.
    pub async fn take(self, from: NodeId, message: Message) -> Result<Bytes, String> {
        let Message { head, body } = message;
        let map = self.0.control.current();
        if !self.expects(&map, &from, &head) {
            return Err("the map does not plan this move".to_owned());
        }
        if body == Body::Begin && !self.0.lanes.let_go(head.shard, map).await {
            return Err("what was here of the shard is not let go yet".to_owned());
        }
        let stored = pages::store(&self.0.state, &head, Generation(head.copy), body);
        stored.answer().await.map_err(|error| error.to_string())?;
        Ok(Bytes::new())
    }

    /// Whether this node's map has the very plan that the copy carries out.
    fn expects(&self, map: &ClusterState, from: &NodeId, copy: &Head) -> bool {
        let Some(config) = map.shards.get(copy.shard.0 as usize) else { return false };
        let Caller::Node { node: me, .. } = self.0.identity.caller() else { return false };
        handoff::is_expected(config, me, from, copy)
    }
}

/// Notes what became of a proposal: whether it is agreed.
fn tell(departure: &Departure, proposed: &Result<(), ProposeRefused>) -> bool {
    if let Err(error) = proposed {
        tracing::debug!(shard = %departure.shard, %error, "a move waits");
    }
    proposed.is_ok()
}
