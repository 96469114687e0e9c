//! The threads of a node that run actors: the control thread, and one arbiter per lane.

use std::collections::BTreeMap;
use std::sync::Arc;

use actix::{Actor, Addr, Arbiter};
use mainstay_protocol::control::ClusterState;
use mainstay_protocol::id::ShardId;
use mainstay_protocol::passivation::Passivation;
use tokio::sync::{Semaphore, oneshot};

use super::Lane;
use super::proposals::Proposals;
use super::start::{Node, StartError};
use crate::call::CallPort;
use crate::config::Limits;
use crate::handoff::Mover;
use crate::lane::core::{Core, Make};
use crate::lane::env::{Env, NoPort};
use crate::lane::kinds::Kinds;
use crate::lane::{LaneActor, LaneInbox, lane_of};
use crate::replication::Replication;
use crate::router::Router;
use crate::shard::handoff::Departure;
use crate::shard::{Records, ShardHost};
use crate::storage::{RecoveredShard, Storage};

/// The thread of the actix system: consensus, membership, the director.
pub(super) struct SystemThread {
    pub(super) handle: tokio::runtime::Handle,
    pub(super) system: actix::System,
    pub(super) thread: std::thread::JoinHandle<()>,
    arbiter: actix::ArbiterHandle,
}

impl SystemThread {
    pub(super) fn start() -> Result<Self, StartError> {
        let (tell, told) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("mainstay-control".to_owned())
            .spawn(move || {
                let runner = actix::System::new();
                runner.block_on(async {
                    let handle = tokio::runtime::Handle::current();
                    let parts = (handle, actix::System::current(), Arbiter::current());
                    drop(tell.send(parts));
                });
                if let Err(error) = runner.run() {
                    tracing::error!(%error, "the control thread ended badly");
                }
            })
            .map_err(|error| StartError::Thread(error.to_string()))?;
        let (handle, system, arbiter) =
            told.recv().map_err(|error| StartError::Thread(error.to_string()))?;
        Ok(Self { handle, system, thread, arbiter })
    }

    /// Runs something on the system's thread, inside its actix system, and waits for it.
    pub(super) fn run<T, F, M>(&self, make: M) -> Result<T, StartError>
    where
        M: FnOnce() -> F + Send + 'static,
        F: Future<Output = T> + 'static,
        T: Send + 'static,
    {
        let (tell, told) = oneshot::channel();
        self.arbiter.spawn_fn(move || {
            actix_rt::spawn(async move { drop(tell.send(make().await)) });
        });
        told.blocking_recv().map_err(|_| StartError::Thread("a start was lost".to_owned()))
    }
}

/// Makes lanes.
pub(super) struct LaneMaker<'a> {
    pub(super) node: &'a Node,
    pub(super) storage: &'a Arc<Storage>,
    pub(super) router: &'a Router,
    pub(super) moving: &'a Mover,
    pub(super) replication: &'a Replication,
    pub(super) proposals: Proposals,
    pub(super) system: &'a SystemThread,
    pub(super) map: Arc<ClusterState>,
    pub(super) blocking: Arc<Semaphore>,
}

impl LaneMaker<'_> {
    /// Starts every lane, with the shards that recovery found for it.
    pub(super) fn start_all(
        &self,
        inboxes: &[LaneInbox],
        recovered: BTreeMap<ShardId, RecoveredShard>,
    ) -> Result<Vec<Lane>, StartError> {
        let mut hosts = self.hosts_by_lane(recovered);
        let mut lanes = Vec::new();
        for (number, inbox) in (0..).zip(inboxes) {
            let recovered = hosts.remove(&number).unwrap_or_default();
            let addr = self.start(number, inbox, recovered)?;
            lanes.push(Lane { inbox: inbox.clone(), addr });
        }
        Ok(lanes)
    }

    /// What recovery found, by the lane that owns it. Where shards have other copies nothing is
    /// served, or saved, that the others may yet replace: their standbys read it again.
    fn hosts_by_lane(
        &self,
        recovered: BTreeMap<ShardId, RecoveredShard>,
    ) -> BTreeMap<u16, Vec<ShardHost>> {
        let mut hosts: BTreeMap<u16, Vec<ShardHost>> = BTreeMap::new();
        if self.map.standbys > 0 {
            return hosts;
        }
        for (shard, found) in recovered {
            let lane = lane_of(shard, self.node.lanes);
            hosts.entry(lane).or_default().push(ShardHost::recovered(shard, Records::from(found)));
        }
        hosts
    }

    fn start(
        &self,
        number: u16,
        inbox: &LaneInbox,
        recovered: Vec<ShardHost>,
    ) -> Result<Addr<LaneActor>, StartError> {
        let config = &self.node.config;
        let blocking = Arc::clone(&self.blocking);
        let limits = share(&config.limits, self.node.lanes);
        let connections = usize::try_from(limits.connections).unwrap_or(usize::MAX);
        let (journal, state) = (self.storage.journal().clone(), self.storage.state().clone());
        let port: Arc<dyn CallPort> = Arc::new(self.router.clone());
        let moving = self.moving.clone();
        let (told, look) = (self.replication.teller(), self.replication.looker());
        let proposals = self.proposals.clone();
        let (me, registry) = (self.node.me.clone(), Arc::clone(&self.node.registry));
        let (slow_turn, lanes) = (config.lanes.slow_turn, self.node.lanes);
        let (turns_per_pass, save_every) =
            (config.lanes.turns_per_poll, config.storage.checkpoint_every);
        let (inbox, map) = (inbox.clone(), Arc::clone(&self.map));
        let start = move || {
            let env = Env {
                lane: number,
                me,
                inbox: inbox.clone(),
                journal,
                state,
                kinds: Kinds::new(&registry),
                passivation: Passivation::new(limits.state_bytes),
                port,
                no_port: Arc::new(NoPort),
                blocking,
                scratch: Vec::new(),
                slow_turn,
                map_version: map.version,
                shards_total: u32::try_from(map.shards.len()).unwrap_or(u32::MAX),
                limits,
                told: Arc::new(told),
                look: Arc::new(look),
                propose: Arc::new(move |shard, command| proposals.propose(shard, command)),
                departures: Arc::new(move |departure: Departure| moving.depart(departure)),
                dirty_bytes: std::cell::Cell::new(0),
            };
            let make = Make { lanes, turns_per_pass, save_every, recovered, map };
            LaneActor::new(inbox, Core::new(env, make), connections).start()
        };
        self.system
            .run(move || async move {
                let arbiter = Arbiter::new();
                let (tell, told) = oneshot::channel();
                arbiter.spawn_fn(move || drop(tell.send(start())));
                told.await
            })?
            .map_err(|_| StartError::Thread("a lane did not start".to_owned()))
    }
}

/// One lane's share of the node's limits on memory.
fn share(limits: &Limits, lanes: u16) -> Limits {
    let lanes = u64::from(lanes.max(1));
    Limits {
        state_bytes: limits.state_bytes / lanes,
        dirty_bytes: limits.dirty_bytes / lanes,
        dedup_bytes: limits.dedup_bytes / lanes,
        ..limits.clone()
    }
}
