//! A client program: calls the entities of a cluster from outside, without being a member.
//!
//! It holds the map, so every call goes straight to the lane that owns its entity; whatever node
//! answers keeps the map fresh. It survives the death of any node, also of those it was started
//! with: every member that it has seen in a map is asked as well.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{ControlAnswer, ControlBody};
use mainstay_protocol::retry_budget;
use mainstay_protocol::shard_map::ShardMap;
use tokio::sync::{Notify, watch};

use crate::call::{Call, CallFuture, CallPort};
use crate::entity::Entity;
use crate::entity::reference::Ref;
use crate::router::kinds::KindTable;
use crate::router::{Limits, Parts, Router};
use crate::transport::control::ControlChannel;
use crate::transport::handshake::Identity;
use crate::transport::intake::Intake;
use crate::transport::links::Links;

/// The settings of a client.
#[derive(Debug, Clone)]
pub struct Config {
    /// What it calls itself in logs; a random part is added.
    pub name: String,
    /// How long to look for a cluster that is ready.
    pub connect_timeout: Duration,
    /// How often it asks for a newer map when nothing points to one.
    pub map_every: Duration,
    /// How long one node may take to answer for the map.
    pub map_timeout: Duration,
    /// Calls under way at one time.
    pub requests: u32,
    /// Bytes of calls under way at one time.
    pub request_bytes: u64,
    /// The longest deadline that a call may ask for.
    pub deadline_max: Duration,
    /// What calls may repeat.
    pub retry: retry_budget::Config,
    /// Its connections.
    pub transport: crate::transport::Config,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: "client".to_owned(),
            connect_timeout: Duration::from_secs(10),
            map_every: Duration::from_secs(1),
            map_timeout: Duration::from_secs(1),
            requests: 8192,
            request_bytes: 64 << 20,
            deadline_max: Duration::from_secs(300),
            retry: retry_budget::Config::default(),
            transport: crate::transport::Config::default(),
        }
    }
}

/// Why there is no client. Nothing was called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// No address was given.
    #[error("no address of a cluster member was given")]
    NoAddress,
    /// No node answered with a map in time. Look at the addresses, then try again.
    #[error("no member of a ready cluster answered in {timeout:?}; the last word: {last}")]
    Unreachable {
        /// How long was tried.
        timeout: Duration,
        /// What came of the last try.
        last: String,
    },
}

/// A client of one cluster. Clones share everything; its work ends with the last clone and the
/// last reference made from it.
#[derive(Debug, Clone)]
pub struct Client {
    router: Router,
}

/// How long a node that does not know a newer map is left alone, at least.
const REFRESH_PAUSE: Duration = Duration::from_millis(10);
/// The pause before a cluster that is not ready is asked again.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);

impl Client {
    /// Connects through any of these `host:port` addresses of members, with the kinds of a
    /// registry ([`KindTable::of`]). Runs on the current tokio runtime.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect(
        addrs: &[impl AsRef<str>],
        kinds: KindTable,
    ) -> Result<Self, ConnectError> {
        Self::connect_with(addrs, kinds, Config::default()).await
    }

    /// A reference to an entity: no I/O, no create step.
    pub fn get<E: Entity>(&self, key: &str) -> E::Ref {
        Ref::<E>::new(self.port(), key).into()
    }

    /// As [`Self::connect`], with settings.
    ///
    /// # Errors
    /// [`ConnectError`].
    pub async fn connect_with(
        addrs: &[impl AsRef<str>],
        kinds: KindTable,
        config: Config,
    ) -> Result<Self, ConnectError> {
        let runtime = tokio::runtime::Handle::current();
        let name = format!("{}-{:016x}", config.name, fastrand::u64(..));
        let identity = Arc::new(Identity::client(name));
        let transport = config.transport.clone();
        let channel =
            ControlChannel::new(Arc::clone(&identity), transport.clone(), runtime.clone());
        let seeds = addrs.iter().map(|addr| addr.as_ref().to_owned()).collect();
        let mut cartographer =
            Cartographer { channel, seeds, next: 0, timeout: config.map_timeout };
        let first = cartographer.first_map(config.connect_timeout).await?;
        if let Some(cluster) = first.cluster() {
            identity.set_cluster(cluster);
        }
        let (maps, map) = watch::channel(Arc::new(first));
        let nudge = Arc::new(Notify::new());
        runtime.spawn(cartographer.keep(maps, Arc::clone(&nudge), config.map_every));
        let router = Router::start(Parts {
            kinds,
            map,
            refresh: Arc::new(move |_| nudge.notify_one()),
            local: None,
            links: Links::new(identity, transport, runtime.clone()),
            intake: Intake::new(config.requests, config.request_bytes),
            limits: Limits { deadline_max: config.deadline_max, requests: config.requests },
            retry: config.retry,
            runtime,
        });
        Ok(Self { router })
    }

    /// What carries the calls of this client: references are made from it.
    pub fn port(&self) -> Arc<dyn CallPort> {
        Arc::new(self.router.clone())
    }

    /// The version of the map that calls go by, now.
    pub fn map_version(&self) -> u64 {
        self.router.map_version()
    }
}

impl CallPort for Client {
    fn call(&self, call: Call) -> CallFuture {
        self.router.call(call)
    }
}

/// Gets maps, from whichever node has one.
struct Cartographer {
    channel: ControlChannel,
    seeds: Vec<String>,
    // whom to ask next; a node that has nothing newer is not asked twice in a row
    next: usize,
    timeout: Duration,
}

impl fmt::Debug for Cartographer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cartographer").field("seeds", &self.seeds).finish_non_exhaustive()
    }
}

impl Cartographer {
    async fn first_map(&mut self, timeout: Duration) -> Result<ShardMap, ConnectError> {
        if self.seeds.is_empty() {
            return Err(ConnectError::NoAddress);
        }
        let mut last = "nobody was asked".to_owned();
        let found = async {
            loop {
                for seed in self.seeds.clone() {
                    match self.ask(&seed, None, 0).await {
                        Ok(Some(map)) if map.shards() > 0 => return map,
                        Ok(_) => last = format!("{seed} has not joined a cluster yet"),
                        Err(reason) => last = reason,
                    }
                }
                tokio::time::sleep(CONNECT_PAUSE).await;
            }
        };
        let found = tokio::time::timeout(timeout, found).await;
        found.map_err(|_| ConnectError::Unreachable { timeout, last })
    }

    /// Until nobody uses the map any more.
    async fn keep(
        mut self,
        maps: watch::Sender<Arc<ShardMap>>,
        nudge: Arc<Notify>,
        every: Duration,
    ) {
        loop {
            tokio::select! {
                biased;
                () = maps.closed() => return,
                () = nudge.notified() => {}
                () = tokio::time::sleep(every) => {}
            }
            let now = Arc::clone(&maps.borrow());
            let asked = self.newer(&now);
            let newer = tokio::select! {
                biased;
                () = maps.closed() => return,
                newer = asked => newer,
            };
            if let Some(newer) = newer.filter(|newer| newer.newer_than(&now)) {
                maps.send_replace(Arc::new(newer));
            }
            tokio::time::sleep(REFRESH_PAUSE).await;
        }
    }

    /// A map newer than this one, from the first node that answers.
    async fn newer(&mut self, now: &ShardMap) -> Option<ShardMap> {
        let members = now.nodes().iter().map(|node| (node.peer_addr.clone(), Some(&node.node)));
        let seeds = self.seeds.iter().map(|seed| (seed.clone(), None));
        let whom: Vec<(String, Option<&NodeId>)> = members.chain(seeds).collect();
        for _ in 0..whom.len() {
            let (addr, node) = &whom[self.next % whom.len()];
            self.next += 1;
            match self.ask(addr, *node, now.version()).await {
                Ok(newer) => return newer,
                Err(reason) => tracing::debug!(addr, reason, "no map"),
            }
        }
        None
    }

    async fn ask(
        &self,
        addr: &str,
        node: Option<&NodeId>,
        have: u64,
    ) -> Result<Option<ShardMap>, String> {
        let body = ControlBody::Map { have };
        match self.channel.ask(addr, node, body, self.timeout).await {
            Ok(ControlAnswer::Map(state)) => Ok(state.map(|state| ShardMap::new(&state))),
            Ok(_) => Err(format!("{addr} answered something else")),
            Err(error) => Err(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
