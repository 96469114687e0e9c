//! Real nodes with standbys, clients that write down what they see, and faults in between.
//!
//! ```text
//!   round    fresh entities; clients call, faults strike; then all nodes are up and in sync,
//!            every entity is read through every door, the round's history is checked, and all
//!            copies are compared
//!   run      rounds of five faults each, so that histories, and memory, stay small
//! ```
//! The seed fixes which faults come, when, and what clients do; not what the machine makes of it.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::processes::{Cluster, Plan, eventually};

mod clients;
mod faults;
mod record;
mod summary;

pub use faults::Kind;
pub use summary::Summary;

use clients::Stage;
use faults::Faults;
use record::Record;

/// Nodes of the cluster.
const NODES: usize = 3;
/// Clients; the first of them never leaves its door.
const CLIENTS: u32 = 8;
const FAULTS_PER_ROUND: usize = 5;
/// How long a round without faults takes.
const QUIET_ROUND: Duration = Duration::from_secs(10);
/// The last comparison of a shard is so long ago at most when it counts: periods are a second.
const COMPARED_WITHIN: Duration = Duration::from_secs(3);
/// How long a cluster whose nodes all run may take until all copies are in sync, and a call until
/// it has an answer.
const RECOVERS_WITHIN: Duration = Duration::from_secs(60);

/// What to run.
#[derive(Debug)]
pub struct Settings {
    /// The node.
    pub program: PathBuf,
    /// Of everything that chance decides.
    pub seed: u64,
    /// The faults, in order.
    pub faults: Vec<Kind>,
    /// Nodes have a network whose cables can be cut, which takes root.
    pub network: bool,
    /// Leave data and logs though all went well.
    pub keep: bool,
    /// Where the lines go: one for each fault and each round.
    pub say: fn(&str),
}

/// Runs the faults and checks what clients saw.
///
/// # Errors
/// Whatever went wrong: a history that no order explains, a write that is gone, a node that ended
/// by itself, a cluster that did not recover. The text names the folder that was kept.
pub async fn run(settings: &Settings) -> Result<Summary> {
    let mut plan = Plan::new(&settings.program, NODES)
        .set("cluster.standbys", NODES - 1)
        .set("storage.audit_every", "1s");
    plan.folder = "mainstay-chaos-";
    plan.network = settings.network;
    let mut cluster = Cluster::start(&plan).await?;
    let mut summary = Summary::default();
    let ran = rounds(settings, &mut cluster, &mut summary).await;
    if settings.keep {
        (settings.say)(&format!("all is kept in {}", cluster.keep().display()));
    }
    ran.map(|()| summary).map_err(|error| {
        let kept = cluster.keep().display().to_string();
        error.context(format!("seed {}, all is kept in {kept}", settings.seed))
    })
}

async fn rounds(settings: &Settings, cluster: &mut Cluster, summary: &mut Summary) -> Result<()> {
    let mut rng = fastrand::Rng::with_seed(settings.seed);
    cluster.in_sync(&[0, 1, 2], NODES, RECOVERS_WITHIN).await?;
    let mut faults = Faults::new(rng.fork(), settings.say);
    let rounds: Vec<&[Kind]> = match settings.faults.as_slice() {
        [] => vec![&[]],
        some => some.chunks(FAULTS_PER_ROUND).collect(),
    };
    for (number, kinds) in rounds.iter().enumerate() {
        let record = Arc::new(Record::default());
        let doors = cluster.nodes.iter().map(|node| node.addresses().http).collect();
        let stage = Stage::new(cluster.client().clone(), doors, number, Arc::clone(&record));
        let clients = stage.start(CLIENTS, rng.fork());
        let struck = strike(&mut faults, cluster, &record, kinds).await;
        stage.stop();
        let ended = clients.join_all().await;
        let checked = match struck.and(ended.into_iter().collect::<Result<()>>()) {
            Ok(()) => match finish(&stage, summary, kinds).await {
                Ok(()) => compared(cluster).await,
                Err(error) => Err(error),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = checked {
            let file = BufWriter::new(File::create(cluster.folder().join("history.jsonl"))?);
            let registers = BufWriter::new(File::create(cluster.folder().join("registers.json"))?);
            record.write(file, registers).context("the history cannot be kept")?;
            keep_events(cluster).await?;
            return Err(error.context(format!("round {}", number + 1)));
        }
        (settings.say)(&format!("round {} of {}: {summary}", number + 1, rounds.len()));
    }
    Ok(())
}

/// Waits until every shard was compared with its copies after all faults, and looks whether one ever
/// differed: no fault of a round changes what a disk has.
async fn compared(cluster: &Cluster) -> Result<()> {
    // What is younger than this then was compared since, and not only seen for the first time.
    tokio::time::sleep(COMPARED_WITHIN).await;
    for (number, node) in cluster.nodes.iter().enumerate() {
        let what = format!("the shards of {} are compared with their copies", node.name());
        eventually(&what, RECOVERS_WITHIN, || async {
            let page = cluster.admin(number, "/metrics").await;
            let age = page.ok().and_then(|(_, page)| {
                let name = "mainstay_drift_oldest_check_age_seconds ";
                page.lines().find_map(|line| line.strip_prefix(name)?.parse::<f64>().ok())
            });
            age.is_some_and(|age| age < COMPARED_WITHIN.as_secs_f64())
        })
        .await?;
    }
    for node in &cluster.nodes {
        if node.log().contains("a copy differs") {
            bail!("{} found a copy that differs from its own", node.name());
        }
    }
    Ok(())
}

/// Keeps what the nodes tell of promotions and sets: logs have only the rest.
async fn keep_events(cluster: &Cluster) -> Result<()> {
    for (number, node) in cluster.nodes.iter().enumerate() {
        for what in ["events", "shards"] {
            // A node that is gone tells nothing.
            if let Ok((_, told)) = cluster.admin(number, &format!("/admin/v1/{what}")).await {
                fs::write(cluster.folder().join(format!("{}-{what}.json", node.name())), told)?;
            }
        }
    }
    Ok(())
}

/// Carries the faults of a round out, and waits until nothing is left of them.
async fn strike(
    faults: &mut Faults,
    cluster: &mut Cluster,
    record: &Record,
    kinds: &[Kind],
) -> Result<()> {
    if kinds.is_empty() {
        tokio::time::sleep(QUIET_ROUND).await;
    }
    for kind in kinds {
        faults.strike(cluster, record, *kind).await?;
    }
    faults::recovered(cluster).await
}

/// Reads every entity through every door, and checks what everybody saw.
async fn finish(stage: &Stage, summary: &mut Summary, kinds: &[Kind]) -> Result<()> {
    let lists = stage.read_all().await?;
    let checked = stage.record().check(&lists)?;
    summary.add(kinds, &checked);
    if !checked.odd.is_empty() {
        bail!("answers that no fault explains:\n{}", checked.odd.join("\n"));
    }
    Ok(())
}
