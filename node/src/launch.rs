//! The cluster as the HTTP layer's backend: a program's entities, started as a node.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use mainstay::call::{Call, CallFuture};
use mainstay::cluster::{self, Cluster, StartError};
use mainstay::config::Config;
use mainstay::entity::Registry;
use mainstay::entity::host::KindHost;
use mainstay::ingress;
use mainstay::protocol::control::{ClusterState, MemberState, ProposeRefused};
use mainstay::protocol::id::{EntityId, KindId};

use crate::backend::{
    AdminError, Backend, BoxFuture, Check, EntityRow, EventFeed, Inspection, Launch, LaunchError,
    LocalityRow, MemberChange, NodeView, Permit, Phase, Probe, Scan,
};

/// How often a node looks at itself, for its probes and status pages.
const LOOK: Duration = Duration::from_millis(500);
/// Pairs of kinds that `locality` lists.
const LOCALITY_ROWS: usize = 10;

impl Launch for Registry {
    fn kinds(&self) -> Vec<&'static str> {
        Self::kinds(self).iter().map(|kind| kind.info().name).collect()
    }

    fn launch(self: Box<Self>, config: Config) -> BoxFuture<Result<Arc<dyn Backend>, LaunchError>> {
        Box::pin(async move {
            let told = Told {
                data_dir: config.data_dir.display().to_string(),
                join: config.cluster.join.join(", "),
            };
            let started = tokio::task::spawn_blocking(move || Cluster::start(config, *self)).await;
            let cluster = match started {
                Ok(Ok(cluster)) => cluster,
                Ok(Err(error)) => return Err(told.explain(&error)),
                Err(panic) => return Err(told.explain(&thread(&panic))),
            };
            let view = Arc::new(Mutex::new(view(&cluster, &told).await));
            tokio::spawn(look(cluster.clone(), Arc::clone(&view), told.clone()));
            Ok(Arc::new(Node { cluster, view, told }) as Arc<dyn Backend>)
        })
    }
}

fn thread(error: &tokio::task::JoinError) -> StartError {
    StartError::Thread(error.to_string())
}

/// What the node was told that belongs beside an error of it.
#[derive(Debug, Clone)]
struct Told {
    data_dir: String,
    join: String,
}

impl Told {
    /// An error with what an operator has to know beside it.
    fn explain(&self, error: &StartError) -> LaunchError {
        let mut text = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            let cause_text = cause.to_string();
            if !text.contains(&cause_text) {
                text = format!("{text}: {cause_text}");
            }
            source = cause.source();
        }
        let mut facts = vec![("data dir", self.data_dir.clone())];
        if !self.join.is_empty() {
            facts.push(("joining", self.join.clone()));
        }
        let code = error.code();
        LaunchError { code, text, facts, help: Vec::new() }
    }
}

/// A running node.
struct Node {
    cluster: Cluster,
    view: Arc<Mutex<NodeView>>,
    told: Told,
}

/// Keeps the view fresh until the node stops.
async fn look(cluster: Cluster, shared: Arc<Mutex<NodeView>>, told: Told) {
    loop {
        tokio::time::sleep(LOOK).await;
        let fresh = view(&cluster, &told).await;
        let stopping = fresh.phase == Phase::Stopping;
        put(&shared, fresh);
        if stopping {
            return;
        }
    }
}

fn put(shared: &Mutex<NodeView>, fresh: NodeView) {
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = fresh;
}

async fn view(cluster: &Cluster, told: &Told) -> NodeView {
    let seen = cluster.view().await;
    let map = cluster.map();
    let draining =
        map.members.get(&seen.name).is_some_and(|member| member.state == MemberState::Draining);
    let phase = match &seen.phase {
        cluster::Phase::Joining => Phase::Joining,
        cluster::Phase::Member if draining => Phase::Draining,
        cluster::Phase::Member => Phase::Ready,
        cluster::Phase::Left | cluster::Phase::Stopping | cluster::Phase::Failed(_) => {
            Phase::Stopping
        }
    };
    let membership = match phase {
        Phase::Joining if told.join.is_empty() => "joining: waits for its cluster".to_owned(),
        Phase::Joining => format!("joining: looks for its cluster at {}", told.join),
        phase => phase.to_string(),
    };
    let check = |name, probe, ok, text| Check { name, probe, ok, text };
    let answering = format!("{} of {} lanes answer", seen.lanes_answering, seen.lanes);
    let alive = seen.lanes_answering == seen.lanes;
    let serving = format!("{} shards served, {} taking over", seen.serving, seen.starting);
    let writable = if seen.writable {
        "the journal takes writes".to_owned()
    } else {
        "the journal stopped, or the disk is below its reserve".to_owned()
    };
    let checks = vec![
        check("lanes", Probe::Live, alive, answering),
        check("recovery", Probe::Started, true, "done".to_owned()),
        check("member", Probe::Ready, phase == Phase::Ready, membership),
        check("shards", Probe::Ready, seen.starting == 0, serving),
        check("journal", Probe::Ready, seen.writable, writable),
    ];
    NodeView {
        name: seen.name,
        boot: seen.boot,
        zone: seen.zone,
        phase,
        uptime: seen.uptime,
        lanes: seen.lanes,
        leader: seen.leader,
        peers_addr: cluster.peer_addr().to_owned(),
        entities: seen.entities,
        state_bytes: seen.state_bytes,
        requests: seen.requests,
        checks,
    }
}

impl Permit for ingress::Permit {
    fn shrink_to(&mut self, bytes: u64) {
        Self::shrink_to(self, bytes);
    }
}

impl Backend for Node {
    fn ready(&self) -> BoxFuture<Result<(), LaunchError>> {
        let (cluster, shared, told) =
            (self.cluster.clone(), Arc::clone(&self.view), self.told.clone());
        Box::pin(async move {
            cluster.ready().await.map_err(|error| told.explain(&error))?;
            put(&shared, view(&cluster, &told).await);
            Ok(())
        })
    }

    fn ended(&self) -> BoxFuture<Result<(), LaunchError>> {
        let (cluster, told) = (self.cluster.clone(), self.told.clone());
        Box::pin(async move { cluster.ended().await.map_err(|error| told.explain(&error)) })
    }

    fn kinds(&self) -> Vec<Arc<dyn KindHost>> {
        self.cluster.registry().kinds().into_iter().map(Arc::clone).collect()
    }

    fn kind(&self, name: &str) -> Option<Arc<dyn KindHost>> {
        self.cluster.registry().kind_by_name(name).map(Arc::clone)
    }

    fn call(&self, call: Call) -> CallFuture {
        self.cluster.route(call)
    }

    fn reserve(&self, bytes: u64) -> BoxFuture<Box<dyn Permit>> {
        let cluster = self.cluster.clone();
        Box::pin(async move { Box::new(cluster.reserve(bytes).await) as Box<dyn Permit> })
    }

    fn try_reserve(&self, bytes: u64) -> Option<Box<dyn Permit>> {
        Some(Box::new(self.cluster.door().try_reserve(bytes)?))
    }

    fn state(&self) -> Arc<ClusterState> {
        self.cluster.map()
    }

    fn node(&self) -> NodeView {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn events(&self, after: u64) -> EventFeed {
        let (kept, live) = self.cluster.events().since(after);
        EventFeed { kept, live }
    }

    fn scan(&self, scan: Scan) -> BoxFuture<Result<Vec<EntityRow>, AdminError>> {
        let cluster = self.cluster.clone();
        Box::pin(async move {
            let limit = usize::try_from(scan.limit).unwrap_or(usize::MAX);
            let after = scan.after.as_deref();
            let rows = cluster.entities(scan.kind, &scan.prefix, after, limit).await;
            rows.map_err(admin_error)
        })
    }

    fn inspect(&self, entity: EntityId) -> BoxFuture<Result<Inspection, AdminError>> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.inspect(entity).await.map_err(admin_error) })
    }

    fn change_member(&self, change: MemberChange) -> BoxFuture<Result<(), AdminError>> {
        let cluster = self.cluster.clone();
        Box::pin(async move {
            let changed = match change {
                MemberChange::Drain(node) => cluster.drain(node).await,
                MemberChange::Undrain(node) => cluster.undrain(node).await,
                MemberChange::Remove(node) => cluster.remove(node).await,
            };
            changed.map_err(admin_error)
        })
    }

    fn locality(&self) -> Vec<LocalityRow> {
        let row = |row: mainstay::router::locality::LocalityRow| LocalityRow {
            from: row.from.map(KindId::of),
            to: KindId::of(row.to),
            local: row.local_calls,
            local_bytes: row.local_bytes,
            remote: row.remote_calls,
            remote_bytes: row.remote_bytes,
        };
        self.cluster.locality(LOCALITY_ROWS).into_iter().map(row).collect()
    }

    fn shutdown(&self) -> BoxFuture<()> {
        let cluster = self.cluster.clone();
        Box::pin(async move { cluster.shutdown().await })
    }
}

fn admin_error(error: cluster::AdminError) -> AdminError {
    use cluster::AdminError as From;
    match error {
        From::NotFound { what } => AdminError::NotFound { what },
        From::Refused(ProposeRefused::NoMember { node }) => AdminError::NoMember { node },
        From::Refused(ProposeRefused::NoLeader { reason }) => AdminError::Unavailable { reason },
        From::Refused(refused) => AdminError::Conflict { reason: refused.to_string() },
        down @ From::Down { .. } => AdminError::Conflict { reason: down.to_string() },
        other @ (From::Storage(_) | From::Busy { .. }) => {
            AdminError::Unavailable { reason: other.to_string() }
        }
    }
}
