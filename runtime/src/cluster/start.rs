//! How a node starts: storage first, then the threads, then the doors, then the cluster.

use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::Claim;
use mainstay_protocol::control::{Member, MemberState};
use mainstay_protocol::dedup;
use mainstay_protocol::message::WIRE_VERSION;
use tokio::sync::{Semaphore, watch};

use super::doors::Doors;
use super::peers::{self, Progress};
use super::phase::{enter, fail};
use super::proposals::Proposals;
use super::threads::{LaneMaker, SystemThread};
use super::{Cluster, Ending, Ingress, Inner, Lane, Phase, port_of};
use crate::clock;
use crate::config::Config;
use crate::control::consensus::Timing;
use crate::control::plane::{ControlPlane, Setup, StartError as ControlStartError};
use crate::entity::{Registry, RegistryError};
use crate::events::EventLog;
use crate::handoff::{self, Lanes, Mover};
use crate::ingress::Door;
use crate::lane::{Input, LaneInbox, NewestMap};
use crate::membership::{JoinError, Patience, PeerCaller, UNSEATED, departed};
use crate::replication::copying::CopyIn;
use crate::replication::{self, Arriving, Found, Replication, ReplicationInbox};
use crate::router::Router;
use crate::storage::{self, News, OpenError, Opened, Recovered, Storage, StorageError, Writer};
use crate::transport;
use crate::transport::control::ControlChannel;
use crate::transport::handshake::Identity;
use crate::transport::intake::Intake;
use crate::transport::listener::{BindError, Listener};

/// Why a node did not start, or cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program's kinds are wrong.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The data directory cannot be used.
    #[error(transparent)]
    Storage(#[from] OpenError),
    /// The node cannot listen.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The control plane did not start.
    #[error(transparent)]
    Control(#[from] ControlStartError),
    /// The node is not let into a cluster, or finds none.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The journal or the state takes nothing more. What was acknowledged is in the journal.
    /// Restart the node when its disk is well.
    #[error("a file of the data directory stopped: {0}")]
    File(StorageError),
    /// Consensus cannot go on. Restart the node.
    #[error("consensus stopped: {0}")]
    Consensus(String),
    /// A copy of a shard differs from the others. Keep the data directory, for it tells why; start
    /// the node again with an empty one.
    #[error("a copy cannot be kept: {0}")]
    Copies(String),
    /// A thread could not be started.
    #[error("a thread cannot be started: {0}")]
    Thread(String),
    /// The node was told to end.
    #[error("the node is stopping")]
    Stopped,
}

impl StartError {
    /// The number under which it is explained.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Registry(_) => "MS-1003",
            Self::Storage(error) => error.code(),
            Self::Bind(error) => error.code(),
            Self::Control(error) => error.code(),
            Self::Join(error) => error.code(),
            Self::File(_) => "MS-1110",
            Self::Consensus(_) => "MS-1107",
            Self::Thread(_) => "MS-1108",
            Self::Copies(_) => "MS-1111",
            Self::Stopped => "MS-2105",
        }
    }
}

impl PartialEq for StartError {
    fn eq(&self, other: &Self) -> bool {
        self.to_string() == other.to_string()
    }
}

impl Eq for StartError {}

/// Refuses what cannot end well, before anything is made.
fn check(config: &Config) -> Result<(), StartError> {
    let told = &config.cluster;
    let to_join_or_form = told.form_alone || told.expect > 0 || !told.join.is_empty();
    if !to_join_or_form && storage::is_fresh(&config.data_dir) {
        return Err(JoinError::NoCluster.into());
    }
    Ok(())
}

/// Starts a node. Blocks; must run outside any runtime.
pub(super) fn start(config: Config, registry: Registry) -> Result<Cluster, StartError> {
    check(&config)?;
    let registry = registry.build()?;
    let ingress = Ingress(Some(ingress_runtime()?));
    let listener = ingress.runtime().block_on(Listener::bind(&config.peers.listen))?;
    let opened = storage::open(&config.storage, &config.data_dir, config.node.as_ref())?;
    let node = Node::new(config, registry, &opened, listener.addr().to_string());
    let lanes = node.lane_inboxes();
    let (phase, _) = watch::channel(Phase::Joining);
    let standbys = ReplicationInbox::default();
    let notify = notify(lanes.clone(), standbys.clone(), phase.clone());
    let (storage, mut recovered) = opened.start(notify)?;
    let storage = Arc::new(storage);
    let system = SystemThread::start()?;
    let control = node.start_control(&system, &storage)?;
    let moving = node.mover(&storage, &control, ingress.runtime(), &lanes);
    let router = node.router(&control, &lanes, ingress.runtime());
    let replication =
        node.replication((standbys, &lanes), (&storage, &recovered), (&control, &ingress), &phase)?;
    say(&recovered);
    let make = LaneMaker {
        node: &node,
        storage: &storage,
        router: &router,
        moving: &moving,
        replication: &replication,
        proposals: Proposals::new(control.handle.clone(), system.handle.clone()),
        system: &system,
        map: control.handle.current(),
        blocking: node.blocking_room(),
    };
    let running = make.start_all(&lanes, std::mem::take(&mut recovered.shards))?;
    node.lanes_started(&running, &storage);
    let doors = Doors {
        ingress: ingress.runtime(),
        system: &system,
        lanes: &running,
        control: &control,
        moving: &moving,
        replication: &replication,
    };
    doors.open(&node, listener);
    node.watch_map(&system, &control, &running);
    node.join(&system, &control, &phase);
    let door = Door::new(&node.config.limits);
    Ok(Cluster(Arc::new(Inner {
        me: node.me.clone(),
        zone: node.config.zone.clone(),
        peer_addr: node.addr.clone(),
        started_at: clock::now(),
        registry: Arc::clone(&node.registry),
        port: port_of(&door, &router),
        router,
        door,
        control: control.handle,
        plane: control.plane,
        events: node.events.clone(),
        lanes: running,
        journal: storage.journal().clone(),
        state: storage.state().clone(),
        phase,
        ending: std::sync::Mutex::new(Some(Ending {
            storage,
            replication,
            ingress,
            control: system.handle,
            system: system.system,
            system_thread: system.thread,
        })),
    })))
}

fn say(recovered: &Recovered) {
    tracing::info!(
        took_ms = u64::try_from(recovered.took.as_millis()).unwrap_or(u64::MAX),
        records = recovered.replayed_records,
        "recovered"
    );
}

/// What is known of the node before anything of it runs.
pub(super) struct Node {
    pub(super) config: Config,
    pub(super) registry: Arc<Registry>,
    pub(super) me: Claim,
    pub(super) lanes: u16,
    /// Where it listens, and what it tells others.
    addr: String,
    advertised: String,
    pub(super) identity: Arc<Identity>,
    pub(super) transport: transport::Config,
    pub(super) intake: Intake,
    events: EventLog,
    progress: Arc<Progress>,
    cluster: Option<mainstay_protocol::id::ClusterId>,
}

pub(super) struct Control {
    pub(super) plane: Arc<ControlPlane>,
    caller: Arc<dyn PeerCaller>,
    pub(super) handle: crate::control::ControlHandle,
}

impl Node {
    fn new(config: Config, registry: Arc<Registry>, opened: &Opened, addr: String) -> Self {
        let found = &opened.identity;
        let me = Claim { node: found.node.clone(), disk: found.disk, boot: found.boot };
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let lanes = match config.lanes.count {
            0 => u16::try_from(cores).unwrap_or(u16::MAX),
            count => count,
        };
        let (node, cluster) = (me.node.clone(), found.cluster);
        let limits = &config.limits;
        Self {
            identity: Arc::new(Identity::node(node.clone(), me.disk, me.boot, cluster)),
            transport: transport::Config::of(limits),
            intake: Intake::new(limits.requests, limits.request_bytes),
            events: EventLog::of_start(node, me.boot),
            progress: Arc::default(),
            advertised: config.peers.advertise.clone().unwrap_or_else(|| addr.clone()),
            config,
            registry,
            me,
            lanes,
            addr,
            cluster,
        }
    }

    /// Room for blocking turns.
    fn blocking_room(&self) -> Arc<Semaphore> {
        Arc::new(Semaphore::new(usize::from(self.config.lanes.blocking_threads.max(1))))
    }

    fn lane_inboxes(&self) -> Vec<LaneInbox> {
        (0..self.lanes).map(|_| LaneInbox::default()).collect()
    }

    fn member(&self) -> Member {
        Member {
            disk: self.me.disk,
            boot: self.me.boot,
            peer_addr: self.advertised.clone(),
            http_addr: self.config.peers.http_advertise.clone(),
            zone: self.config.zone.clone(),
            weight: self.config.weight,
            lanes: self.lanes,
            state: MemberState::Up,
            wire_max: WIRE_VERSION,
        }
    }

    fn start_control(
        &self,
        system: &SystemThread,
        storage: &Arc<Storage>,
    ) -> Result<Control, StartError> {
        let channel = ControlChannel::new(
            Arc::clone(&self.identity),
            self.transport.clone(),
            system.handle.clone(),
        );
        // Weak, so that ending the node closes its storage while handles of it are still about.
        let (keeper, identity) = (Arc::downgrade(storage), Arc::clone(&self.identity));
        let (events, progress) = (self.events.clone(), Arc::clone(&self.progress));
        let caller: Arc<dyn PeerCaller> = Arc::new(peers::Caller(channel));
        let setup = Setup {
            node: self.me.node.clone(),
            member: self.member(),
            cluster: self.cluster,
            grouping: self.registry.grouping(),
            data_dir: self.config.data_dir.clone(),
            options: self.config.cluster.clone(),
            detection: self.config.detection.clone(),
            timing: Timing::default(),
            patience: Patience::default(),
            caller: Arc::clone(&caller),
            keep: Arc::new(move |cluster| {
                let keeper = keeper.upgrade().ok_or(std::io::ErrorKind::BrokenPipe)?;
                keeper.set_cluster(cluster).map_err(std::io::Error::other)?;
                identity.set_cluster(cluster);
                Ok(())
            }),
            progress: Arc::new(move || progress.read()),
            on_events: Arc::new(move |version, happened| {
                events.record(version, happened.iter().cloned());
            }),
        };
        let plane = system.run(move || async { ControlPlane::start(setup).await })??;
        let plane = Arc::new(plane);
        Ok(Control { handle: plane.control(), plane, caller })
    }

    fn mover(
        &self,
        storage: &Arc<Storage>,
        control: &Control,
        ingress: &tokio::runtime::Runtime,
        lanes: &[LaneInbox],
    ) -> Mover {
        Mover::new(handoff::Parts {
            state: storage.state().clone(),
            identity: Arc::clone(&self.identity),
            config: self.transport.clone(),
            control: control.handle.clone(),
            runtime: ingress.handle().clone(),
            lanes: Lanes(lanes.into()),
        })
    }

    /// The room of the other copies. It has nothing to do in a cluster without.
    fn replication(
        &self,
        (inbox, lanes): (ReplicationInbox, &[LaneInbox]),
        (storage, recovered): (&Arc<Storage>, &Recovered),
        (control, ingress): (&Control, &Ingress),
        phase: &watch::Sender<Phase>,
    ) -> Result<Replication, StartError> {
        let limits = &self.config.limits;
        let (phase, membership) = (phase.clone(), control.plane.membership());
        let arriving = CopyIn::new(storage.state().clone(), Arriving(inbox.clone()));
        let setup = replication::Setup {
            me: self.me.clone(),
            inbox,
            arriving,
            lanes: lanes.to_vec(),
            journal: storage.journal().clone(),
            state: storage.state().clone(),
            map: control.handle.state(),
            identity: Arc::clone(&self.identity),
            transport: self.transport.clone(),
            found: Found::of(recovered),
            dedup: dedup::Config { bytes_max: u64::MAX, retention: limits.dedup_retention },
            dirty_bytes: limits.dirty_bytes,
            save_every: self.config.storage.checkpoint_every,
            audit_every: self.config.storage.audit_every,
            events: self.events.clone(),
            background: ingress.runtime().handle().clone(),
            lost: Arc::new(move |node| membership.handle_lost(node)),
            fatal: Arc::new(move |reason| fail(&phase, StartError::Copies(reason))),
        };
        Replication::start(setup).map_err(|error| StartError::Thread(error.to_string()))
    }

    fn lanes_started(&self, lanes: &[Lane], storage: &Storage) {
        let inboxes = lanes.iter().map(|lane| lane.inbox.clone()).collect();
        self.progress.watch(inboxes, storage.journal().clone());
    }

    /// Becomes a member, and watches over being one.
    fn join(&self, system: &SystemThread, control: &Control, phase: &watch::Sender<Phase>) {
        let (plane, caller) = (Arc::clone(&control.plane), Arc::clone(&control.caller));
        let (phase, node, disk) = (phase.clone(), self.me.node.clone(), self.me.disk);
        drop(system.handle.spawn(async move {
            let control = plane.control();
            tokio::select! {
                joined = plane.join() => match joined {
                    Ok(cluster) => tracing::info!(%cluster, "joined"),
                    Err(error) => return fail(&phase, error),
                },
                fatal = control.stopped() => {
                    return fail(&phase, StartError::Consensus(fatal.reason));
                }
            }
            enter(&phase, Phase::Member);
            tokio::select! {
                fatal = control.stopped() => fail(&phase, StartError::Consensus(fatal.reason)),
                () = departed(control.state(), &*caller, &node, disk) => {
                    control.consensus().await_unseated(disk, UNSEATED).await;
                    enter(&phase, Phase::Left);
                }
            }
        }));
    }

    /// Passes every change of the map on to those who act on it.
    fn watch_map(&self, system: &SystemThread, control: &Control, lanes: &[Lane]) {
        let mut state = control.handle.state();
        let identity = Arc::clone(&self.identity);
        let lanes: Vec<_> =
            lanes.iter().map(|lane| (lane.inbox.clone(), NewestMap::default())).collect();
        let gauges = peers::MapGauges::new();
        drop(system.handle.spawn(async move {
            loop {
                let map = Arc::clone(&state.borrow_and_update());
                identity.set_map_version(map.version);
                gauges.tell(&map);
                for (inbox, newest) in &lanes {
                    newest.bring(inbox, Arc::clone(&map));
                }
                if state.changed().await.is_err() {
                    break;
                }
            }
        }));
    }

    fn router(
        &self,
        control: &Control,
        lanes: &[LaneInbox],
        ingress: &tokio::runtime::Runtime,
    ) -> Router {
        peers::router(peers::RouterParts {
            registry: Arc::clone(&self.registry),
            identity: Arc::clone(&self.identity),
            config: self.transport.clone(),
            limits: self.config.limits.clone(),
            me: self.me.node.clone(),
            intake: self.intake.clone(),
            control: control.handle.clone(),
            lanes: lanes.to_vec(),
            runtime: ingress.handle().clone(),
        })
    }
}

/// Brings the journal's answers to the lanes. A file that stopped ends the node: it could serve
/// or keep nothing any more, and its shards would wait for ever.
fn notify(
    lanes: Vec<LaneInbox>,
    standbys: ReplicationInbox,
    phase: watch::Sender<Phase>,
) -> storage::Notify {
    Arc::new(move |news| match news {
        News::Journal(news) => match news.writer() {
            Writer::Lane(lane) => {
                if let Some(inbox) = lanes.get(usize::from(lane)) {
                    drop(inbox.push(Input::Journal(news)));
                }
            }
            Writer::Standbys => drop(standbys.push(replication::Input::Journal(news))),
        },
        News::Room => lanes.iter().for_each(|inbox| drop(inbox.push(Input::Room))),
        News::Stopped(error) => fail(&phase, StartError::File(error)),
    })
}

fn ingress_runtime() -> Result<tokio::runtime::Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("mainstay-ingress")
        .enable_all()
        .build()
        .map_err(|error| StartError::Thread(error.to_string()))
}

/// How long a node waits for its own lanes when it looks at itself.
pub(super) const LANE_PATIENCE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::consensus::Fatal;

    #[test]
    fn a_start_error_is_filed_under_its_own_cause() {
        let reason = "the disk is gone".to_owned();
        for (error, code) in [
            (StartError::Consensus(reason.clone()), "MS-1107"),
            (ControlStartError::from(Fatal { reason: reason.clone() }).into(), "MS-1107"),
            (StartError::Thread(reason.clone()), "MS-1108"),
            (StartError::File(StorageError::Closed), "MS-1110"),
            (JoinError::Disk { reason }.into(), "MS-1109"),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }
}
