//! Adapters between rooms that must not know each other: control and transport, router and lanes.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mainstay_protocol::control::{ClusterState, MemberState};
use mainstay_protocol::id::{DiskId, NodeId};
use mainstay_protocol::message::ControlBody;
use mainstay_protocol::retry_budget;
use mainstay_protocol::shard_map::ShardMap;
use mainstay_protocol::time::Instant;
use metrics::{Gauge, gauge};
use tokio::sync::{oneshot, watch};

use super::start::LANE_PATIENCE;
use crate::clock;
use crate::config::Limits;
use crate::control::ControlHandle;
use crate::entity::Registry;
use crate::lane::inspect::{Inspect, LaneView};
use crate::lane::{self, Input, LaneInbox};
use crate::membership::{self, AskFailure, AskFuture, PeerCaller};
use crate::metrics::float;
use crate::router::kinds::KindTable;
use crate::router::{self, Local, Router};
use crate::storage::Journal;
use crate::transport::control::{AskError, ControlChannel};
use crate::transport::handshake::Identity;
use crate::transport::intake::Intake;
use crate::transport::links::Links;
use crate::transport::reply::Envelope;

/// The control room's way to peers, over the transport's control connections.
pub(super) struct Caller(pub(super) ControlChannel);

impl PeerCaller for Caller {
    fn ask(
        &self,
        addr: &str,
        to: Option<NodeId>,
        body: ControlBody,
        timeout: Duration,
    ) -> AskFuture {
        let (channel, addr) = (self.0.clone(), addr.to_owned());
        Box::pin(
            async move { channel.ask(&addr, to.as_ref(), body, timeout).await.map_err(failure_of) },
        )
    }
}

fn failure_of(error: AskError) -> AskFailure {
    match error {
        AskError::Unreachable { reject: Some(reject), .. } => AskFailure::Rejected(reject),
        AskError::Refused { reason, .. } => AskFailure::Refused { reason },
        other if other.not_sent() => AskFailure::NotSent { reason: other.to_string() },
        other => AskFailure::NoAnswer { reason: other.to_string() },
    }
}

/// What the node's router is made of.
pub(super) struct RouterParts {
    pub(super) registry: Arc<Registry>,
    pub(super) identity: Arc<Identity>,
    pub(super) config: crate::transport::Config,
    pub(super) limits: Limits,
    pub(super) me: NodeId,
    pub(super) intake: Intake,
    pub(super) control: ControlHandle,
    pub(super) lanes: Vec<LaneInbox>,
    pub(super) runtime: tokio::runtime::Handle,
}

/// A router that delivers to this node's own lanes and follows this node's map.
pub(super) fn router(parts: RouterParts) -> Router {
    let lanes = parts.lanes;
    let count = u16::try_from(lanes.len()).expect("lanes are counted in 16 bits");
    let deliver = move |lane: u16, envelope: Envelope| {
        if let Some(inbox) = lanes.get(usize::from(lane)) {
            lane::deliver(inbox, envelope);
        }
    };
    Router::start(router::Parts {
        kinds: KindTable::of(parts.registry.kinds()),
        map: shard_maps(&parts.control, &parts.runtime),
        // The map reaches every member through consensus; there is nothing to ask for.
        refresh: Arc::new(|_| {}),
        local: Some(Local { node: parts.me, count, lanes: Arc::new(deliver) }),
        links: Links::new(parts.identity, parts.config, parts.runtime.clone()),
        intake: parts.intake,
        limits: router::Limits {
            deadline_max: parts.limits.deadline_max,
            requests: parts.limits.requests,
        },
        retry: retry_budget::Config::default(),
        runtime: parts.runtime,
    })
}

/// The router's view of every version of the map.
fn shard_maps(
    control: &ControlHandle,
    runtime: &tokio::runtime::Handle,
) -> watch::Receiver<Arc<ShardMap>> {
    let mut state = control.state();
    let (tell, maps) = watch::channel(Arc::new(ShardMap::new(&state.borrow_and_update())));
    drop(runtime.spawn(async move {
        while state.changed().await.is_ok() {
            let map = Arc::new(ShardMap::new(&state.borrow_and_update()));
            tell.send_replace(map);
        }
    }));
    maps
}

/// The lanes are asked this often how they are. Each question wakes a thread that may idle.
const LANES_ASKED_EVERY: Duration = Duration::from_millis(500);

/// How fresh the lanes and the journal are, for heartbeats.
#[derive(Debug, Default)]
pub(super) struct Progress {
    lane_age_ms: AtomicU32,
    state_bytes: AtomicU64,
    lanes: Mutex<Vec<LaneInbox>>,
    journal: OnceLock<Journal>,
    asked: Mutex<Asked>,
}

/// What the lanes were asked last.
#[derive(Debug, Default)]
struct Asked {
    at: Instant,
    pending: Vec<oneshot::Receiver<LaneView>>,
    bytes: u64,
}

impl Progress {
    /// These are the lanes, and the journal that they append to.
    pub(super) fn watch(&self, lanes: Vec<LaneInbox>, journal: Journal) {
        self.journal.get_or_init(|| journal);
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = lanes;
    }

    /// The age of a question that a lane has not answered; asks again some time after all have.
    pub(super) fn read(&self) -> membership::Progress {
        let now = clock::now();
        let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        let Asked { at, pending, bytes } = &mut *asked;
        pending.retain_mut(|answer| match answer.try_recv() {
            Ok(view) => {
                *bytes += view.state_bytes;
                false
            }
            Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        if !pending.is_empty() {
            self.lane_age_ms.store(millis(now.saturating_since(*at)), Ordering::Relaxed);
        } else if now >= *at + LANES_ASKED_EVERY {
            self.state_bytes.store(std::mem::take(bytes), Ordering::Relaxed);
            self.lane_age_ms.store(0, Ordering::Relaxed);
            let lanes = self.lanes.lock().unwrap_or_else(PoisonError::into_inner);
            *pending = lanes.iter().map(ask).collect();
            *at = now;
        }
        drop(asked);
        let stalled = self.journal.get().map(|journal| journal.stalled_for(clock::now()));
        membership::Progress {
            lane_age_ms: self.lane_age_ms.load(Ordering::Relaxed),
            storage_age_ms: millis(stalled.unwrap_or_default()),
            disk_full: self.journal.get().is_some_and(|journal| !journal.writable()),
            state_bytes: self.state_bytes.load(Ordering::Relaxed),
        }
    }
}

/// Asks a lane how it is.
fn ask(lane: &LaneInbox) -> oneshot::Receiver<LaneView> {
    let (tell, told) = oneshot::channel();
    drop(lane.push(Input::Inspect(Inspect::Lane(tell))));
    told
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}

/// Asks every lane how it is; a lane that does not answer in time is left out.
pub(super) async fn lane_views<'l>(lanes: impl Iterator<Item = &'l LaneInbox>) -> Vec<LaneView> {
    let asked: Vec<_> = lanes.map(ask).collect();
    let mut views = Vec::new();
    for told in asked {
        if let Ok(Ok(view)) = tokio::time::timeout(LANE_PATIENCE, told).await {
            views.push(view);
        }
    }
    views
}

/// Groups of shards in metrics: shard id modulo this, whatever the number of shards.
const SHARD_GROUPS: usize = 32;

/// Copies of a shard that are told apart in metrics: as many as `cluster.standbys` allows, and the
/// primary.
const COPIES_MAX: usize = 5;

/// What the map says, as metrics.
pub(super) struct MapGauges {
    version: Gauge,
    unavailable: Gauge,
    under_replicated: Gauge,
    by_copies: Vec<Gauge>,
    members: [(MemberState, Gauge); 3],
    epochs: Vec<Gauge>,
}

impl MapGauges {
    pub(super) fn new() -> Self {
        let members = |state, word: &'static str| {
            (state, gauge!("mainstay_cluster_members", "state" => word))
        };
        Self {
            version: gauge!("mainstay_cluster_map_version"),
            unavailable: gauge!("mainstay_shards_unavailable"),
            under_replicated: gauge!("mainstay_shards_under_replicated"),
            by_copies: (0..=COPIES_MAX)
                .map(|copies| gauge!("mainstay_shards_by_copies", "copies" => copies.to_string()))
                .collect(),
            epochs: (0..SHARD_GROUPS)
                .map(|group| gauge!("mainstay_shard_epoch", "shard_group" => group.to_string()))
                .collect(),
            members: [
                members(MemberState::Up, "alive"),
                members(MemberState::Draining, "draining"),
                members(MemberState::Down, "down"),
            ],
        }
    }

    pub(super) fn tell(&self, map: &ClusterState) {
        self.version.set(small(usize::try_from(map.version).unwrap_or(usize::MAX)));
        self.unavailable.set(small(unavailable(map)));
        self.tell_copies(map);
        let mut epochs = [0; SHARD_GROUPS];
        for (shard, config) in map.shards.iter().enumerate() {
            let epoch = &mut epochs[shard % SHARD_GROUPS];
            *epoch = config.epoch.0.max(*epoch);
        }
        for (gauge, epoch) in self.epochs.iter().zip(epochs) {
            gauge.set(float(epoch));
        }
        for (state, gauge) in &self.members {
            gauge.set(small(map.members.values().filter(|member| member.state == *state).count()));
        }
    }

    fn tell_copies(&self, map: &ClusterState) {
        let sizes = InSyncSizes::of(map);
        self.under_replicated.set(small(sizes.under_replicated));
        for (gauge, shards) in self.by_copies.iter().zip(sizes.by_copies) {
            gauge.set(small(shards));
        }
    }
}

/// The copies in sync of each shard that are there, summed up: a set of two keeps its member that is
/// down, or has another disk, for want of a third.
#[derive(Debug, Default, PartialEq, Eq)]
struct InSyncSizes {
    by_copies: [usize; COPIES_MAX + 1],
    under_replicated: usize,
}

impl InSyncSizes {
    fn of(map: &ClusterState) -> Self {
        let wanted = usize::from(map.standbys) + 1;
        let mut sizes = Self::default();
        for shard in &map.shards {
            let is_there = |(node, disk): &(&NodeId, &DiskId)| {
                let member = map.members.get(*node);
                member.is_some_and(|it| it.state != MemberState::Down && it.disk == **disk)
            };
            let copies = shard.in_sync.iter().filter(is_there).count();
            sizes.by_copies[copies.min(COPIES_MAX)] += 1;
            sizes.under_replicated += usize::from(copies < wanted);
        }
        sizes
    }
}

/// Shards that no live member serves.
pub(super) fn unavailable(map: &ClusterState) -> usize {
    let served = |shard: &&mainstay_protocol::control::ShardConfig| {
        shard.primary.as_ref().is_some_and(|claim| {
            map.members.get(&claim.node).is_some_and(|member| {
                member.state != MemberState::Down
                    && member.disk == claim.disk
                    && member.boot == claim.boot
            })
        })
    };
    map.shards.len() - map.shards.iter().filter(served).count()
}

fn small(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::control::{Member, ShardConfig};
    use mainstay_protocol::id::BootId;

    use super::*;

    fn claim(at: u8) -> (NodeId, DiskId) {
        (NodeId::new(&format!("n{at}")).unwrap(), DiskId::from_bytes([at; 16]))
    }

    /// A map with shards of so many copies, the first ones of three members that are up.
    fn map(shards: &[u8]) -> ClusterState {
        let shard = |copies: &u8| ShardConfig {
            in_sync: (0..*copies).map(claim).collect(),
            ..ShardConfig::fresh()
        };
        let member = |at| {
            let (node, disk) = claim(at);
            let member = Member {
                disk,
                boot: BootId(1),
                peer_addr: String::new(),
                http_addr: String::new(),
                zone: String::new(),
                weight: 1,
                lanes: 1,
                state: MemberState::Up,
                wire_max: 1,
            };
            (node, member)
        };
        let (shards, members) = (shards.iter().map(shard).collect(), (0..3).map(member).collect());
        ClusterState { standbys: 2, shards, members, ..ClusterState::default() }
    }

    #[test]
    fn shards_are_counted_by_their_copies_in_sync() {
        let mut map = map(&[3, 3, 2, 0]);
        let expected = InSyncSizes { by_copies: [1, 0, 1, 2, 0, 0], under_replicated: 2 };
        assert_eq!(InSyncSizes::of(&map), expected);
        map.standbys = 1;
        assert_eq!(InSyncSizes::of(&map).under_replicated, 1, "more than wanted is no fault");
    }

    #[test]
    fn a_copy_that_is_down_or_whose_disk_was_lost_is_not_counted_though_the_set_names_it() {
        let mut map = map(&[2]);
        map.standbys = 1;
        assert_eq!(InSyncSizes::of(&map).under_replicated, 0);
        let mut lost = map.clone();
        lost.members.get_mut(&claim(1).0).unwrap().disk = DiskId::from_bytes([9; 16]);
        map.members.get_mut(&claim(1).0).unwrap().state = MemberState::Down;
        for map in [map, lost] {
            let expected = InSyncSizes { by_copies: [0, 1, 0, 0, 0, 0], under_replicated: 1 };
            assert_eq!(InSyncSizes::of(&map), expected);
        }
    }
}
