//! Real node processes: started, questioned, stopped, killed, and gone when their owner is.
//!
//! ```text
//!   Cluster  n nodes of one program on free ports, data and logs below one temporary folder
//!     Node   one of them: its addresses, its data directory, its process when it has one
//! ```
//!
//! A child gets a pipe as its standard input and ends when that closes, so that no child outlives
//! the process that started it, however that ends. Children are in process groups of their own:
//! a Ctrl-C in the terminal reaches the owner only, which then ends them in its own order.
//!
//! Ports are taken below the range that the system gives to outgoing connections; when one is lost
//! between choosing and listening, the cluster starts anew on others.

mod http;
mod network;
mod node;

pub use http::{Answer, Definite, Question, ask};
pub use network::Network;
pub use node::{Addresses, Node, Spec, end_with_stdin};

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use mainstay_node::http::overview::{ShardRow, Shards};
use tempfile::TempDir;

use crate::testnode;

/// How long a node may take to become ready on a busy machine.
pub const READY_WITHIN: Duration = Duration::from_secs(30);
/// Starts of a cluster, for the case that somebody else takes a free port before a node listens.
const STARTS: usize = 3;

/// What a cluster is made of.
#[derive(Debug, Clone)]
pub struct Plan {
    /// The program that every node runs.
    pub program: PathBuf,
    /// How many nodes; they are named `n1`, `n2`, ...
    pub nodes: usize,
    /// Shards of the cluster.
    pub shards: u32,
    /// Arguments that every node gets beside those of the harness.
    pub arguments: Vec<String>,
    /// Environment that every node gets.
    pub environment: Vec<(String, String)>,
    /// The failure zones of the nodes, in their order; who is beyond has none.
    pub zones: Vec<&'static str>,
    /// How the folder of the data is called, before its random ending.
    pub folder: &'static str,
    /// Give the nodes a network whose cables can be cut.
    pub network: bool,
}

impl Plan {
    /// `nodes` nodes of this program with 32 shards.
    pub fn new(program: impl Into<PathBuf>, nodes: usize) -> Self {
        Self {
            program: program.into(),
            nodes,
            shards: 32,
            arguments: Vec::new(),
            environment: Vec::new(),
            zones: Vec::new(),
            folder: "mainstay-test-",
            network: false,
        }
    }

    /// One more setting, by its path in the configuration file: `limits.requests`.
    #[must_use]
    pub fn set(mut self, path: &str, value: impl Display) -> Self {
        let name = format!("MAINSTAY_{}", path.to_uppercase().replace('.', "__"));
        self.environment.push((name, value.to_string()));
        self
    }

    /// The same on disks that forget what was not synced when their node is killed, and that
    /// [`Node::stall_disk`] stops; of the test node only. The seed is the disks'.
    #[must_use]
    pub fn on_drives(mut self, seed: u64) -> Self {
        self.environment.push((testnode::DRIVE.to_owned(), seed.to_string()));
        self
    }
}

/// Node processes that form one cluster, and the folder that holds all they write.
#[derive(Debug)]
pub struct Cluster {
    /// The nodes, in the order of their names.
    pub nodes: Vec<Node>,
    client: reqwest::Client,
    folder: Option<TempDir>,
    kept: PathBuf,
    network: Option<Network>,
}

impl Cluster {
    /// Starts the nodes and waits until each is ready. Begins anew, elsewhere, when somebody else
    /// takes one of its ports meanwhile.
    ///
    /// # Errors
    /// When one does not start or does not become ready; the text holds the end of its log.
    pub async fn start(plan: &Plan) -> Result<Self> {
        for _ in 1..STARTS {
            match Self::start_once(plan).await {
                Err(error) if format!("{error:#}").contains("MS-1101") => {}
                started => return started,
            }
        }
        Self::start_once(plan).await
    }

    async fn start_once(plan: &Plan) -> Result<Self> {
        let mut cluster = Self::prepare(plan)?;
        cluster.start_all().await?;
        Ok(cluster)
    }

    /// Starts every node, none of which runs, and waits until each is ready.
    ///
    /// # Errors
    /// When one does not start or does not become ready; the text holds the end of its log.
    pub async fn start_all(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            node.start()?;
        }
        self.ready().await
    }

    /// Chooses names, ports and folders; starts nothing.
    ///
    /// # Errors
    /// When there is no free port, no network, or no place for a temporary folder.
    pub fn prepare(plan: &Plan) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix(plan.folder)
            .tempdir()
            .context("no temporary folder can be made")?;
        let kept = folder.path().to_owned();
        let network = plan.network.then(|| Network::new(plan.nodes)).transpose()?;
        let addresses = |node| {
            network
                .as_ref()
                .map_or_else(Addresses::free, |network| Ok(Addresses::within(network, node)))
        };
        let addresses: Vec<Addresses> = (0..plan.nodes).map(addresses).collect::<Result<_>>()?;
        let peers: Vec<String> = addresses.iter().map(|a| a.peer.to_string()).collect();
        let nodes = addresses.iter().enumerate().map(|(at, addresses)| {
            let name = format!("n{}", at + 1);
            let mut spec = Spec::new(&plan.program, &name, *addresses, &kept);
            spec.runner = network.as_ref().map_or_else(Vec::new, |network| network.runner(at));
            spec.expect = u32::try_from(plan.nodes).unwrap_or(u32::MAX);
            spec.join =
                peers.iter().enumerate().filter(|(i, _)| *i != at).map(|p| p.1.clone()).collect();
            spec.arguments.clone_from(&plan.arguments);
            spec.environment.clone_from(&plan.environment);
            spec.environment.push(("MAINSTAY_CLUSTER__SHARDS".to_owned(), plan.shards.to_string()));
            if let Some(zone) = plan.zones.get(at) {
                spec.environment.push(("MAINSTAY_ZONE".to_owned(), (*zone).to_owned()));
            }
            Node::new(spec)
        });
        let nodes = nodes.collect();
        Ok(Self { nodes, client: http::client()?, folder: Some(folder), kept, network })
    }

    /// Waits until every running node is ready.
    ///
    /// # Errors
    /// When one ends or stays unready for [`READY_WITHIN`].
    pub async fn ready(&mut self) -> Result<()> {
        let client = &self.client;
        let running = self.nodes.iter_mut().filter(|node| node.runs());
        // all at once: one that ends is why the others are not ready
        try_join_all(running.map(|node| node.ready(client, READY_WITHIN))).await.map(drop)
    }

    /// Starts a node again after it ended, with the same name, ports and data, and waits for it.
    ///
    /// # Errors
    /// When it does not become ready.
    pub async fn restart(&mut self, node: usize) -> Result<Duration> {
        self.nodes[node].start()?;
        self.nodes[node].ready(&self.client, READY_WITHIN).await
    }

    /// Kills these nodes before any of them is seen to end.
    ///
    /// # Errors
    /// When one does not run.
    pub fn kill_at_once(&mut self, nodes: &[usize]) -> Result<()> {
        for node in nodes {
            self.nodes[*node].signal("KILL")?;
        }
        for node in nodes {
            self.nodes[*node].kill();
        }
        Ok(())
    }

    /// A call through one node.
    ///
    /// # Errors
    /// When no HTTP answer came: refused, cut, or timed out.
    pub async fn ask(&self, node: usize, question: &Question) -> Result<Answer> {
        ask(&self.client, self.nodes[node].addresses().http, question).await
    }

    /// A command under its idempotency key, through one node after the other, until its outcome
    /// is definite.
    ///
    /// # Errors
    /// When it is not within `within`.
    pub async fn settle(
        &self,
        first: usize,
        question: &Question,
        within: Duration,
    ) -> Result<Definite> {
        let began = Instant::now();
        let mut node = first;
        loop {
            let at = self.nodes[node % self.nodes.len()].addresses().http;
            let last = match ask(&self.client, at, question).await {
                Ok(answer) => match answer.definite() {
                    Some(definite) => return Ok(definite),
                    None => answer.text(),
                },
                Err(error) => format!("{error:#}"),
            };
            if began.elapsed() > within {
                bail!("{question} has no definite outcome after {within:?}: {last}");
            }
            node += 1;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// A page of one node's admin port: its status and its text.
    ///
    /// # Errors
    /// When no HTTP answer came.
    pub async fn admin(&self, node: usize, path: &str) -> Result<(u16, String)> {
        http::get(&self.client, self.nodes[node].addresses().admin, path).await
    }

    /// The same, read as JSON.
    ///
    /// # Errors
    /// When there is no answer, or it is not JSON with status 200.
    pub async fn admin_json(&self, node: usize, path: &str) -> Result<serde_json::Value> {
        let (status, text) = self.admin(node, path).await?;
        if status != 200 {
            bail!("{path} of {}: {status} {text}", self.nodes[node].name());
        }
        serde_json::from_str(&text).with_context(|| format!("{path} is not JSON: {text}"))
    }

    /// Waits until each of these nodes says that every shard has `copies` copies in sync.
    ///
    /// # Errors
    /// When one does not within `within`; says how far it is.
    pub async fn in_sync(&self, through: &[usize], copies: usize, within: Duration) -> Result<()> {
        let began = Instant::now();
        for node in through {
            loop {
                let far = match self.shards(*node).await {
                    Ok(shards) => {
                        let enough = |shard: &&ShardRow| shard.in_sync.len() == copies;
                        let there = shards.iter().filter(enough).count();
                        if there == shards.len() {
                            break;
                        }
                        format!("{there} of {} shards have {copies} copies", shards.len())
                    }
                    Err(error) => format!("{error:#}"),
                };
                if began.elapsed() > within {
                    bail!("{}, after {within:?}: {far}", self.nodes[*node].name());
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
        Ok(())
    }

    /// The shards, as one node knows them.
    ///
    /// # Errors
    /// When it does not say.
    pub async fn shards(&self, through: usize) -> Result<Vec<ShardRow>> {
        let page = self.admin_json(through, "/admin/v1/shards?limit=10000").await?;
        Ok(serde_json::from_value::<Shards>(page)?.shards)
    }

    /// The folder that holds data and logs.
    pub fn folder(&self) -> &Path {
        &self.kept
    }

    /// Leaves the folder on disk when this goes.
    pub fn keep(&mut self) -> &Path {
        if let Some(folder) = self.folder.take() {
            self.kept = folder.keep();
        }
        &self.kept
    }

    /// The nodes' network, if they have one of their own.
    pub fn network(&self) -> Option<&Network> {
        self.network.as_ref()
    }

    /// The HTTP client that the harness uses: connections are kept.
    pub fn client(&self) -> &reqwest::Client {
        &self.client
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            node.kill();
        }
        if std::thread::panicking() {
            let kept = self.keep().display().to_string();
            for node in &self.nodes {
                report(&format!("-- {} (all in {kept})\n{}", node.name(), node.log_tail(40)));
            }
        }
    }
}

#[expect(clippy::print_stderr, reason = "the logs of a failed test belong beside its panic")]
fn report(text: &str) {
    eprintln!("{text}");
}

/// Waits until `holds` does, asking every 20 ms.
///
/// # Errors
/// When it does not within `within`; says `what`.
pub async fn eventually<F>(what: &str, within: Duration, mut holds: impl FnMut() -> F) -> Result<()>
where
    F: Future<Output = bool>,
{
    let began = Instant::now();
    while !holds().await {
        if began.elapsed() > within {
            bail!("not within {within:?}: {what}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
