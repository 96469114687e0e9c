//! Runs a node: listeners first, then the cluster, then until a signal says stop.
//!
//! ```text
//!   listen (MS-1101 at once) -> serve probes -> launch -> attach -> join -> take calls
//!   -> banner -> signal -> [drain] -> no new connections -> requests under way end -> shutdown -> exit 0
//! ```
//!
//! A signal is heeded in every part of this, and always ends in the shutdown. A second one ends
//! the process at once.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::backend::{Backend, Launch, LaunchError, MemberChange};
use crate::banner::Banner;
use crate::http::{self, Api, CallLimits, server};
use crate::settings::{Loaded, Origin, Settings};
use crate::telemetry;

/// How often histograms are folded, so that they stay small between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);
/// How long the admin listener may take to end, when all else has ended.
const ADMIN_STOP: Duration = Duration::from_secs(1);
/// How often a drain is looked at.
const DRAIN_LOOK: Duration = Duration::from_millis(100);
/// Worker threads for connections. Entities run elsewhere.
pub const INGRESS_THREADS: usize = 2;

/// Runs a node until it is told to stop.
///
/// # Errors
/// [`LaunchError`] when it does not start, or cannot go on. It was shut down in order then.
pub async fn run(
    mut loaded: Loaded,
    launch: Box<dyn Launch>,
    metrics: Option<PrometheusHandle>,
    mut signals: Signals,
) -> Result<(), LaunchError> {
    let listeners = Listeners::bind(&mut loaded).await?;
    let (api_addr, admin_addr) = listeners.addresses();
    tell_config(&loaded, api_addr, admin_addr);
    let settings = loaded.settings.clone();
    let mut runtime = settings.runtime.clone();
    runtime.peers.http_advertise = http_advertise(&settings, api_addr);

    let (stop_api, api_stopping) = watch::channel(false);
    let (stop_admin, admin_stopping) = watch::channel(false);
    let api = Api::new(CallLimits::of(&settings), metrics.clone(), api_stopping.clone());
    let admin = spawn(
        listeners.admin,
        http::admin_router(api.clone()),
        limits(&settings, settings.admin.connections),
        admin_stopping,
    );
    let served = spawn(
        listeners.api,
        http::api_router(api.clone()),
        limits(&settings, settings.http.connections),
        api_stopping,
    );
    let upkeep = metrics.map(|handle| tokio::spawn(keep_up(handle)));

    let mut launching = launch.launch(runtime);
    let backend = tokio::select! {
        launched = &mut launching => launched?,
        name = signals.next() => {
            tracing::info!(signal = name, "stopping once the data is recovered");
            signals.end_at_next();
            launching.await?.shutdown().await;
            return Ok(());
        }
    };
    api.attach(Arc::clone(&backend));
    let announce = || announce(&loaded, backend.as_ref(), api_addr, admin_addr);
    let (ended, told) = tokio::select! {
        ended = live(&api, &backend, announce) => (ended, false),
        name = signals.next() => {
            tracing::info!(signal = name, "stopping; a second signal ends at once");
            (Ok(()), true)
        }
    };
    signals.end_at_next();
    if told && settings.stop.drain && api.is_open() {
        drain(backend.as_ref(), settings.stop.timeout).await;
    }
    stop(stop_api, served, settings.stop.timeout).await;
    backend.shutdown().await;
    stop(stop_admin, admin, ADMIN_STOP).await;
    if let Some(upkeep) = upkeep {
        upkeep.abort();
    }
    tracing::info!("stopped");
    ended
}

/// Joins, then serves; comes back when the node ends by itself.
async fn live(
    api: &Api,
    backend: &Arc<dyn Backend>,
    announce: impl FnOnce(),
) -> Result<(), LaunchError> {
    backend.ready().await?;
    api.open();
    announce();
    let ended = backend.ended().await;
    match &ended {
        Ok(()) => tracing::info!(
            "the node left its cluster and ends; start it again and it joins with what it then holds"
        ),
        Err(error) => {
            tracing::error!(code = error.code, %error, "the node cannot go on and ends");
        }
    }
    ended
}

/// What can tell a node to stop.
#[derive(Debug)]
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Takes SIGTERM and SIGINT over. Must run on a tokio runtime.
    ///
    /// # Errors
    /// When the operating system refuses.
    pub fn take() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }

    /// The next one ends the process at once.
    fn end_at_next(mut self) {
        tokio::spawn(async move {
            let name = self.next().await;
            tracing::warn!(signal = name, "ending at once");
            std::process::exit(130);
        });
    }
}

struct Listeners {
    api: TcpListener,
    admin: TcpListener,
}

impl Listeners {
    /// Listens before anything else happens, so that a port in use changes nothing. In dev mode a
    /// default port that is taken is replaced by a free one.
    async fn bind(loaded: &mut Loaded) -> Result<Self, LaunchError> {
        let free = |loaded: &Loaded, path| loaded.dev && *loaded.origin(path) == Origin::Default;
        let api = listen(&loaded.settings.http.listen, "--http", free(loaded, "http.listen"));
        let admin = listen(&loaded.settings.admin.listen, "--admin", free(loaded, "admin.listen"));
        let (api, admin) = (api.await?, admin.await?);
        let peers = &loaded.settings.runtime.peers.listen;
        if free(loaded, "peers.listen") {
            // the cluster listens by itself; a default port in use is found out before
            let port = listen(peers, "--listen", true).await?;
            let address = address_of(&port);
            drop(port);
            loaded.settings.runtime.peers.listen = address.to_string();
        }
        Ok(Self { api, admin })
    }

    fn addresses(&self) -> (SocketAddr, SocketAddr) {
        (address_of(&self.api), address_of(&self.admin))
    }
}

/// What the cluster is told of the API's address. Listening everywhere, it is reached where peers
/// reach the node.
fn http_advertise(settings: &Settings, api: SocketAddr) -> String {
    if let Some(told) = &settings.http.advertise {
        return told.clone();
    }
    let peers = &settings.runtime.peers;
    let peer = peers.advertise.as_ref().unwrap_or(&peers.listen);
    match peer.rsplit_once(':') {
        Some((host, _)) if api.ip().is_unspecified() => format!("{host}:{}", api.port()),
        _ => api.to_string(),
    }
}

fn address_of(listener: &TcpListener) -> SocketAddr {
    listener.local_addr().expect("a listener has an address")
}

async fn listen(
    address: &str,
    flag: &'static str,
    may_move: bool,
) -> Result<TcpListener, LaunchError> {
    let error = match TcpListener::bind(address).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let in_use = error.kind() == io::ErrorKind::AddrInUse;
    if in_use && may_move {
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        if let Ok(listener) = TcpListener::bind(format!("{host}:0")).await {
            return Ok(listener);
        }
    }
    let text = if in_use {
        format!("{address} is in use by another process")
    } else {
        format!("cannot listen on {address}: {error}")
    };
    let help = vec![
        format!("choose another address:    {flag} 127.0.0.1:0   (0 takes a free port)"),
        "see who holds the port:    ss -ltnp".to_owned(),
    ];
    Err(LaunchError { code: "MS-1101", text, facts: vec![("address", address.to_owned())], help })
}

fn limits(settings: &Settings, connections: u32) -> server::Limits {
    server::Limits {
        connections,
        header_timeout: settings.http.header_timeout,
        stall_timeout: settings.http.stall_timeout,
    }
}

fn spawn(
    listener: TcpListener,
    app: Router,
    limits: server::Limits,
    stopping: watch::Receiver<bool>,
) -> JoinHandle<()> {
    tokio::spawn(server::serve(listener, app, limits, stopping))
}

async fn keep_up(handle: PrometheusHandle) {
    let mut ticks = tokio::time::interval(UPKEEP);
    loop {
        ticks.tick().await;
        handle.run_upkeep();
    }
}

fn tell_config(loaded: &Loaded, api: SocketAddr, admin: SocketAddr) {
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    if !api.ip().is_loopback() {
        tracing::warn!(
            address = %api,
            "callers are not authenticated: whoever reaches this address can call every entity"
        );
    }
    if !admin.ip().is_loopback() {
        tracing::warn!(
            address = %admin,
            "operators are not authenticated: whoever reaches this address can drain and remove \
             members, read every entity and call it"
        );
    }
}

fn announce(loaded: &Loaded, backend: &dyn Backend, api: SocketAddr, admin: SocketAddr) {
    let node = backend.node();
    let state = backend.state();
    metrics::gauge!("mainstay_build_info", "version" => env!("CARGO_PKG_VERSION")).set(1.0);
    metrics::gauge!("mainstay_node_info", "node" => node.name.to_string(),
        "zone" => node.zone.clone())
    .set(1.0);
    let banner = Banner {
        loaded,
        node: &node,
        cluster: state.cluster.map(|id| id.to_string()),
        members: state.members.len(),
        kinds: backend.kinds().iter().map(|host| host.info().name).collect(),
        api,
        admin,
    };
    banner.tell(telemetry::resolve(loaded.settings.log.format));
}

/// Hands the shards over, for as long as it may take.
async fn drain(backend: &dyn Backend, timeout: Duration) {
    let me = backend.node().name;
    if let Err(error) = backend.change_member(MemberChange::Drain(me.clone())).await {
        tracing::warn!(%error, "the node could not be drained; it stops as it is");
        return;
    }
    let gone = async {
        loop {
            let state = backend.state();
            let mine = |claim: &mainstay::protocol::control::Claim| claim.node == me;
            if !state.shards.iter().any(|shard| shard.primary.as_ref().is_some_and(mine)) {
                return;
            }
            tokio::time::sleep(DRAIN_LOOK).await;
        }
    };
    if tokio::time::timeout(timeout, gone).await.is_ok() {
        tracing::info!("all shards are handed over");
    } else {
        tracing::warn!(?timeout, "some shards are not handed over; stopping anyway");
    }
}

/// Ends a listener: in order, or when `timeout` has passed at once.
async fn stop(stop: watch::Sender<bool>, mut served: JoinHandle<()>, timeout: Duration) {
    stop.send_replace(true);
    if tokio::time::timeout(timeout, &mut served).await.is_err() {
        tracing::warn!(?timeout, "requests under way are cut");
        served.abort();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_api_that_listens_everywhere_is_told_under_the_address_of_the_node() {
        let mut settings = Settings::default();
        let all = "0.0.0.0:8080".parse().unwrap();
        assert_eq!(http_advertise(&settings, all), "127.0.0.1:8080");
        settings.runtime.peers.advertise = Some("n1.example:7000".to_owned());
        assert_eq!(http_advertise(&settings, all), "n1.example:8080");
        assert_eq!(http_advertise(&settings, "10.0.0.1:80".parse().unwrap()), "10.0.0.1:80");
        settings.http.advertise = Some("api.example:80".to_owned());
        assert_eq!(http_advertise(&settings, all), "api.example:80");
    }
}
