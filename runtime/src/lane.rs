//! A lane: one thread, the shards it owns, and the users' entities in them.
//!
//! ```text
//!   router, connections, storage --push--> inbox --drain--> shards --turn--> entities
//!                                                              |
//!                            journal <--one batch per drain----+----> replies, once committed
//! ```
//!
//! One actix arbiter per core runs one [`LaneActor`]. The actor carries life cycle and control:
//! it spawns the drain, serves the request connections of this lane on the lane's own thread, and
//! ticks. Data never goes through its address. A drain works off what arrived, runs turns within a
//! budget, hands the new entries of all shards to the journal as one batch, and lets others in.

pub mod core;
mod drops;
pub mod env;
mod fed;
pub mod inbox;
pub mod inspect;
pub mod kinds;
mod looks;
mod saves;
mod upkeep;
#[cfg(test)]
mod tests;

use std::future::poll_fn;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use actix::prelude::*;
use futures_util::FutureExt;
use mainstay_protocol::control::{ClusterState, Handoff};
use mainstay_protocol::id::{Epoch, ShardId};
use mainstay_protocol::message::Failure;
use tokio::sync::oneshot;

use crate::clock;
use crate::shard::commit::Saved;
use crate::shard::copies::{Heard, Promoted};
use crate::shard::looks::Seen;
use crate::shard::turn::Loaded;
use crate::shard::turn::away::TurnBack;
use crate::storage::JournalNews;
use crate::transport::reply::Envelope;
use crate::transport::requests::{self, Accepted, Inbound};
use core::Core;
use inbox::Inbox;
use inspect::Inspect;

/// How often a lane looks at idle entities, saves and gauges. Deadlines have a timer of their own.
const TICK: Duration = Duration::from_millis(100);

/// What reaches a lane.
#[derive(Debug)]
pub enum Input {
    /// A request, from this process or a connection.
    Request(Envelope),
    /// The journal answers a batch.
    Journal(JournalNews),
    /// A state was read from disk.
    Loaded(Loaded),
    /// An async or blocking turn is over.
    TurnBack(TurnBack),
    /// A save of a shard is over.
    Saved(Saved),
    /// A shard's records were read, after it moved here.
    Opened(Box<crate::shard::Opened>),
    /// What is stored of a shard that lives elsewhere, from this epoch, could not be removed.
    DropFailed(ShardId, Epoch),
    /// The mover of this plan can bring no copy to its target, and proposes to give the move up.
    CopyFailed(ShardId, Handoff),
    /// The mover of this plan ended without having moved the shard.
    MoverGaveUp(ShardId, Handoff),
    /// A copy of a shard arrives, as this map plans it: let go of what is here of it.
    Arriving(Box<Arriving>),
    /// A standby was promoted: the lane serves its shard.
    Promoted(Box<Promoted>),
    /// Other copies of this lane's shards said something.
    Heard(Vec<Heard>),
    /// What a standby shows to a query.
    Seen(Box<Seen>),
    /// The map changed.
    Map(NewestMap),
    /// The journal has room again: the push has woken the lane, and it runs what is ready.
    Room,
    /// Somebody asks how things are.
    Inspect(Inspect),
    /// Time passed.
    Tick,
    /// End: answer everything, then say so.
    Stop(oneshot::Sender<()>),
}

/// A copy of a shard arrives.
#[derive(Debug)]
pub struct Arriving {
    /// The shard.
    pub shard: ShardId,
    /// The map that plans it; the lane may not have seen it yet.
    pub map: Arc<ClusterState>,
    /// Whether the lane let go: what it wrote of the shard is in the queues of storage then, and
    /// nothing will follow before the map makes this node the primary.
    pub let_go: oneshot::Sender<bool>,
}

/// The newest map that a lane has not seen. One waits at most, whatever number of them a lane
/// misses that a handler holds up.
#[derive(Debug, Clone, Default)]
pub struct NewestMap(Arc<Mutex<Option<Arc<ClusterState>>>>);

impl NewestMap {
    /// Puts a map in the place of the one before, and wakes the lane unless that one still waits.
    pub fn bring(&self, inbox: &LaneInbox, map: Arc<ClusterState>) {
        let waits = self.0.lock().unwrap_or_else(PoisonError::into_inner).replace(map).is_some();
        if !waits {
            drop(inbox.push(Input::Map(self.clone())));
        }
    }

    fn take(&self) -> Option<Arc<ClusterState>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The way into a lane, for every other room. Cheap to clone.
pub type LaneInbox = Inbox<Input>;

/// The actor of a lane: life cycle and control.
#[derive(Debug)]
pub struct LaneActor {
    inbox: LaneInbox,
    core: Option<Core>,
    connections: usize,
}

/// Serve this connection on the lane's thread.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct Adopt(pub Accepted);

/// Ends the lane: nothing more is run, and everything that waits is answered.
#[derive(Debug, Message)]
#[rtype(result = "()")]
pub struct StopLane;

impl LaneActor {
    /// An actor that drives this core and serves so many connections at most.
    pub const fn new(inbox: LaneInbox, core: Core, connections: usize) -> Self {
        Self { inbox, core: Some(core), connections }
    }
}

impl Actor for LaneActor {
    type Context = Context<Self>;

    fn started(&mut self, context: &mut Self::Context) {
        // One message per connection of this lane, and the node bounds those.
        context.set_mailbox_capacity(self.connections);
        let core = self.core.take().expect("an actor starts once");
        actix_rt::spawn(drain(self.inbox.clone(), core));
        context.run_interval(TICK, |lane, _| drop(lane.inbox.push(Input::Tick)));
    }
}

impl Handler<Adopt> for LaneActor {
    type Result = ();

    fn handle(&mut self, Adopt(accepted): Adopt, _: &mut Self::Context) {
        let inbox = self.inbox.clone();
        actix_rt::spawn(async move {
            let closed = requests::serve(accepted, move |batch| {
                for inbound in batch.drain(..) {
                    // A cancelled request is seen by its reply handle when its turn comes.
                    if let Inbound::Request(envelope) = inbound {
                        deliver(&inbox, envelope);
                    }
                }
            })
            .await;
            tracing::debug!(%closed, "request connection ended");
        });
    }
}

impl Handler<StopLane> for LaneActor {
    type Result = ResponseFuture<()>;

    fn handle(&mut self, StopLane: StopLane, _: &mut Self::Context) -> Self::Result {
        let (stopped, wait) = oneshot::channel();
        drop(self.inbox.push(Input::Stop(stopped)));
        Box::pin(async move { drop(wait.await) })
    }
}

/// The lane that owns a shard, of so many.
///
/// # Panics
/// Never: a remainder below a 16-bit number is one.
pub fn lane_of(shard: ShardId, lanes: u16) -> u16 {
    u16::try_from(shard.0 % u32::from(lanes.max(1))).expect("a remainder below a u16")
}

/// Passes a request on to a lane; a lane that has ended is not its shard's primary any more.
pub fn deliver(inbox: &LaneInbox, envelope: Envelope) {
    if let Err(Input::Request(envelope)) = inbox.push(Input::Request(envelope)) {
        envelope.reply.send(Err(Failure::NotPrimary { map_version: 0, primary: None }));
    }
}

/// Works off what arrives until the lane is stopped.
///
/// User code is caught where it runs. A panic that reaches this place is a broken invariant of the
/// lane itself: the process ends, since a node that went on could acknowledge what it does not
/// hold. What was acknowledged is in the journal.
async fn drain(inbox: LaneInbox, core: Core) {
    let drained = AssertUnwindSafe(drain_until_stopped(inbox, core)).catch_unwind().await;
    if drained.is_err() {
        tracing::error!("a lane broke an invariant; the process ends");
        std::process::abort();
    }
}

async fn drain_until_stopped(inbox: LaneInbox, mut core: Core) {
    let mut batch = Vec::new();
    let mut timer = pin!(tokio::time::sleep(Duration::ZERO));
    let stopped = poll_fn(|context| {
        inbox.take(&mut batch, context);
        let arrived = !batch.is_empty();
        for input in batch.drain(..) {
            core.handle(input);
        }
        let more = core.run();
        core.flush();
        if let Some(stopped) = core.stopped() {
            return Poll::Ready(stopped);
        }
        if arrived || more {
            context.waker().wake_by_ref();
        } else if let Some(at) = core.poll_timeout() {
            let at = clock::to_tokio(at);
            if timer.deadline() != at {
                timer.as_mut().reset(at);
            }
            if timer.as_mut().poll(context).is_ready() {
                core.handle_timeout();
                context.waker().wake_by_ref();
            }
        }
        Poll::Pending
    })
    .await;
    // What came too late is answered by being dropped: the outcome is unknown to its caller.
    drop(inbox.close());
    stopped.send(()).unwrap_or_default();
}
