//! `make demo`: three real nodes under load, one killed, one drained, and every write accounted
//! for.
//!
//! ```text
//!   demo --+-- node n1   (this program again, as `demo run ...`, with the demo's entities)
//!          +-- node n2
//!          +-- node n3
//!          +-- clients over HTTP and Rust --> ledger of what they were told
//!          +-- story: kill -9, restart, drain
//!          +-- audit: what the entities hold == what the ledger says
//! ```
//!
//! Nodes end when this process ends, however it ends; data and logs are in one temporary folder
//! that goes with it, unless the audit fails or `--keep` was given.

pub mod audit;
pub mod copies;
pub mod door;
pub mod ledger;
pub mod load;
pub mod meter;
pub mod nodes;
pub mod options;
pub mod output;
pub mod story;

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Parser;
use mainstay::prelude::*;
use mainstay_cluster_tests::processes::{Cluster, Node, Plan, end_with_stdin};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::bank::{Account, Transfer};
use crate::devices::Telemetry;
use audit::{Findings, Inspector, audit};
use copies::Copies;
use door::Door;
use ledger::Book;
use load::Load;
use meter::Meter;
use nodes::{Series, Watch};
use options::Options;
use output::{Output, grouped};
use story::{Story, table};

/// Nodes of the demo.
const NODES: usize = 3;
/// Shards of the demo.
const SHARDS: u32 = 64;
/// Copies of each beside the primary: every node has every shard.
const STANDBYS: usize = NODES - 1;
/// How long calls under way may take to reach a definite outcome after the load.
const SETTLE_WITHIN: Duration = Duration::from_secs(60);
/// The exit code of a program that Ctrl-C ended.
const INTERRUPTED: u8 = 130;

/// The demo, or one of its nodes: `demo run ...` is the node program with the demo's entities.
pub fn main() -> ExitCode {
    let node_verb = std::env::args().nth(1).is_some_and(|verb| !verb.starts_with('-'));
    if node_verb {
        end_with_stdin();
        return mainstay_node::main(registry());
    }
    let options = Options::parse();
    let output = Output::new(options.json);
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let ran = runtime
        .context("no runtime")
        .and_then(|runtime| runtime.block_on(Demo { options, output: &output }.run()));
    ran.unwrap_or_else(|error| {
        output.fact(
            "error",
            "error",
            &format!("{error:#}"),
            json!({ "error": format!("{error:#}") }),
        );
        ExitCode::FAILURE
    })
}

/// The entities of the demo's nodes.
pub fn registry() -> Registry {
    Registry::new().entity::<Account>().entity::<Transfer>().entity::<Telemetry>()
}

struct Demo<'o> {
    options: Options,
    output: &'o Output,
}

impl Demo<'_> {
    async fn run(self) -> Result<ExitCode> {
        let seed = self.options.seed.unwrap_or_else(|| fastrand::u64(..1_000_000));
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let interrupted = async {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
        };
        tokio::pin!(interrupted);

        let mut cluster = tokio::select! {
            started = self.start(seed) => started?,
            () = &mut interrupted => return Ok(ExitCode::from(INTERRUPTED)),
        };
        if self.options.keep {
            cluster.keep();
        }
        if self.options.hold {
            self.output.more("the nodes run until Ctrl-C");
            interrupted.await;
            return Ok(ExitCode::SUCCESS);
        }
        let addresses = cluster.nodes.iter().map(Node::addresses);
        let inspector = Inspector {
            client: cluster.client().clone(),
            nodes: addresses.map(|addresses| addresses.http).collect(),
        };
        let load = tokio::select! {
            load = self.load(&cluster, &inspector, seed) => load?,
            () = &mut interrupted => return Ok(ExitCode::from(INTERRUPTED)),
        };
        let mut left = Vec::new();
        let told = tokio::select! {
            told = self.story(&mut cluster, &load, seed, &mut left) => Some(told),
            () = &mut interrupted => None,
        };
        let findings = tokio::select! {
            findings = self.audit(&mut cluster, load, &inspector, left) => findings?,
            () = ended_again(told.is_none(), &mut interrupted) => {
                return Ok(ExitCode::from(INTERRUPTED));
            }
        };
        Ok(self.verdict(&mut cluster, seed, told.as_ref(), &findings))
    }

    async fn start(&self, seed: u64) -> Result<Cluster> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let mut plan = Plan::new(program, NODES);
        plan.shards = SHARDS;
        plan.folder = "mainstay-demo-";
        let plan = plan.set("cluster.standbys", STANDBYS);
        let cluster = Cluster::start(&plan).await?;
        let fate = if self.options.keep { "kept" } else { "deleted on exit; keep with --keep" };
        let folder = cluster.folder().display().to_string();
        let text = format!("{folder} ({fate})");
        self.output.fact("data", "data", &text, json!({ "folder": folder, "seed": seed }));
        let names: Vec<&str> = cluster.nodes.iter().map(Node::name).collect();
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let text = format!(
            "{} ready; {SHARDS} shards, {NODES} copies each; {cores} cores for all; seed {seed}",
            names.join(", ")
        );
        let data = json!({ "nodes": names, "shards": SHARDS, "cores": cores });
        self.output.fact("nodes", "nodes", &text, data);
        for node in &cluster.nodes {
            let at = node.addresses();
            self.output.more(&format!(
                "{}  api http://{}/v1  metrics http://{}/metrics  peers {}",
                node.name(),
                at.http,
                at.admin,
                at.peer
            ));
        }
        Ok(cluster)
    }

    async fn load(&self, cluster: &Cluster, inspector: &Inspector, seed: u64) -> Result<Load> {
        let http = Door::Http { client: inspector.client.clone(), nodes: inspector.nodes.clone() };
        let peers: Vec<String> =
            cluster.nodes.iter().map(|node| node.addresses().peer.to_string()).collect();
        let rust = Door::rust(&peers, &*registry().build()?).await?;
        Load::open_accounts(&http).await?;
        let text = format!(
            "bank: {} accounts in {} branches; {} devices; 32 clients, half HTTP, half Rust",
            ledger::ACCOUNTS,
            ledger::BRANCHES,
            ledger::DEVICES
        );
        let data = json!({ "accounts": ledger::ACCOUNTS, "devices": ledger::DEVICES });
        self.output.fact("load", "load", &text, data);
        Ok(Load::start(&http, &rust, seed, &Arc::new(Meter::default())))
    }

    /// What happens under load. What a node had counted that left is in `left` then.
    async fn story(
        &self,
        cluster: &mut Cluster,
        load: &Load,
        seed: u64,
        left: &mut Vec<Series>,
    ) -> Result<()> {
        let names: Vec<String> = cluster.nodes.iter().map(|node| node.name().to_owned()).collect();
        self.output.head(&names);
        let victim = usize::try_from(seed % NODES as u64).unwrap_or_default();
        let leaver = (victim + 1 + usize::try_from(seed / 3 % 2).unwrap_or_default()) % NODES;
        let (watch, began) = (Watch::new(cluster), Instant::now());
        let (options, output) = (&self.options, self.output);
        let mut story = Story { options, cluster, output, victim, leaver, began, left: Vec::new() };
        let told = tokio::select! {
            told = story.tell() => told,
            () = table(output, load.meter(), watch, began, options.line_every()) => Ok(()),
        };
        left.append(&mut story.left);
        told
    }

    /// Brings nodes that are down back, except one that left, lets calls settle, and compares.
    async fn audit(
        &self,
        cluster: &mut Cluster,
        load: Load,
        inspector: &Inspector,
        left: Vec<Series>,
    ) -> Result<Findings> {
        load.stop();
        for node in 0..NODES {
            if !cluster.nodes[node].runs() && !cluster.nodes[node].left() {
                cluster.restart(node).await?;
            }
        }
        let (calls, longest) = (load.meter().total(), load.meter().longest());
        let book: Book = load.finish(SETTLE_WITHIN).await;
        let longest = longest.as_secs_f64();
        let text = format!("{} calls settled; the longest took {longest:.1} s", grouped(calls));
        self.output.fact(
            "settled",
            "settled",
            &text,
            json!({ "calls": calls, "longest": longest }),
        );
        self.tell_copies(cluster, left).await;
        audit(inspector, &book).await
    }

    /// What the copies cost, and the failover, by what the nodes counted.
    async fn tell_copies(&self, cluster: &Cluster, left: Vec<Series>) {
        let mut pages = left;
        for node in &cluster.nodes {
            pages.extend(nodes::page(cluster.client(), node.addresses().admin).await);
        }
        let Some(copies) = Copies::of(&pages, STANDBYS) else { return };
        self.output.fact("copies", "copies", &copies.bytes_line(), copies.json());
        if let Some(failover) = copies.failover_line() {
            self.output.more(&failover);
        }
    }

    fn verdict(
        &self,
        cluster: &mut Cluster,
        seed: u64,
        told: Option<&Result<()>>,
        findings: &Findings,
    ) -> ExitCode {
        self.print(findings);
        let story_failed = matches!(told, Some(Err(_)));
        if let Some(Err(error)) = told {
            let error = format!("{error:#}");
            self.output.fact("error", "error", &error, json!({ "error": error }));
        }
        if findings.clean() && !story_failed {
            let what = if told.is_some() { "passed" } else { "interrupted" };
            let text = format!("{what}: nothing lost, nothing applied twice");
            self.output.fact("result", "result", &text, json!({ "result": what }));
            let code = if told.is_some() { 0 } else { INTERRUPTED };
            return ExitCode::from(code);
        }
        let folder = cluster.keep().display().to_string();
        let text = format!("FAILED; data and logs are in {folder}");
        self.output.fact("result", "result", &text, json!({ "result": "failed", "seed": seed }));
        let fast = if self.options.fast { " --fast" } else { "" };
        self.output.more(&format!("repeat: make demo DEMO_ARGS=\"--seed {seed}{fast}\""));
        ExitCode::FAILURE
    }

    fn print(&self, findings: &Findings) {
        let mark = |good: bool| if good { "ok" } else { "FAILED" };
        let Findings { acknowledged, present, duplicates, cents, cents_expected, .. } = findings;
        let rows = [
            (
                "every acknowledged write is present",
                format!("{} / {}", grouped(*present), grouped(*acknowledged)),
                present == acknowledged,
            ),
            (
                "sum of balances, in cents",
                format!("{} = {}", grouped(*cents), grouped(*cents_expected)),
                cents == cents_expected,
            ),
            ("changes applied twice", grouped(*duplicates), *duplicates == 0),
            (
                "calls without a definite outcome",
                grouped(findings.unsettled.len() as u64),
                findings.unsettled.is_empty(),
            ),
        ];
        let data = json!({
            "acknowledged": acknowledged,
            "present": present,
            "duplicates": duplicates,
            "cents": cents,
            "cents_expected": cents_expected,
            "unsettled": findings.unsettled,
            "differences": findings.differences,
        });
        let mut rows = rows
            .into_iter()
            .map(|(what, figures, good)| format!("{what:<36} {figures:>27}  {}", mark(good)));
        self.output.fact("audit", "audit", &rows.next().unwrap_or_default(), data);
        for row in rows {
            self.output.more(&row);
        }
        for difference in findings.differences.iter().chain(&findings.unsettled).take(20) {
            self.output.more(difference);
        }
    }
}

/// The second Ctrl-C, when there was a first; never otherwise.
async fn ended_again(once: bool, interrupted: impl Future<Output = ()>) {
    if once {
        tokio::signal::ctrl_c().await.ok();
    } else {
        interrupted.await;
    }
}
