//! How long a shard is without a primary: from a fault to the first acknowledged write.
//!
//! ```text
//!   fault ........ detected ........ promoted ........ written
//!   of a node      its member_down   the shard's       a probe's append is acknowledged
//!                  in an event       shard_promoted    through a survivor's door
//! ```
//! Before each fault all copies are in sync. A probe is a client with one list whose primary is on
//! the victim; it repeats one append under its key until that is acknowledged. Its tries have a
//! deadline, so it sees the end of an outage late by a pause, or by a try that hangs at a dead node.
//!
//! Events have whole milliseconds of a node's own wall clock, which is this machine's.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use mainstay_node::http::overview::Status;
use mainstay_node::http::views::{Entity, EventRow, Events};
use serde::Serialize;
use serde_json::json;
use tokio::task::JoinSet;

use crate::processes::{Cluster, Plan, Question, ask, eventually};

mod report;

pub use report::{plot, table};

const NODES: usize = 3;
/// Lists to choose probes from.
const LISTS: usize = 96;
/// Probes of one fault, at most.
const PROBES_MAX: usize = 8;
/// Between two tries of a probe.
const AGAIN_AFTER: Duration = Duration::from_millis(3);
const DEADLINE: Duration = Duration::from_millis(200);
/// How long a probe tries, and how long a cluster may take to be whole again.
const WITHIN: Duration = Duration::from_secs(60);

/// What is done to the victim.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// `kill -9`.
    Kill,
    /// SIGSTOP, until all probes are through.
    Freeze,
}

/// One probe of one fault. Times are microseconds since the fault.
#[derive(Debug, Clone, Serialize)]
pub struct Sample {
    /// The fault's number.
    pub fault: usize,
    /// What was done.
    pub kind: Kind,
    /// To whom.
    pub victim: String,
    /// That node led the control plane.
    pub leader: bool,
    /// The probe's shard.
    pub shard: u32,
    /// A survivor was told that the victim is down.
    pub detected: Option<u64>,
    /// A survivor was told of the shard's new primary.
    pub promoted: Option<u64>,
    /// The first write was acknowledged.
    pub written: u64,
    /// Tries that took.
    pub tries: u32,
}

/// A list and the shard that it is in.
#[derive(Debug, Clone)]
struct Probe {
    list: String,
    shard: u32,
}

/// Strikes the nodes in turn, each by both kinds; a sample for each probe.
///
/// # Errors
/// When the cluster does not become whole again, or a probe never gets through.
pub async fn run(program: PathBuf, faults: usize, say: fn(&str)) -> Result<Vec<Sample>> {
    let mut plan = Plan::new(program, NODES).set("cluster.standbys", NODES - 1);
    plan.folder = "mainstay-failover-";
    let mut cluster = Cluster::start(&plan).await?;
    let measured = measure(&mut cluster, faults, say).await;
    measured.map_err(|error| {
        let kept = cluster.keep().display().to_string();
        error.context(format!("all is kept in {kept}"))
    })
}

async fn measure(cluster: &mut Cluster, faults: usize, say: fn(&str)) -> Result<Vec<Sample>> {
    let lists = lists(cluster).await?;
    let mut samples = Vec::new();
    for fault in 0..faults {
        let kind = if fault.is_multiple_of(2) { Kind::Kill } else { Kind::Freeze };
        // Both kinds come to each node, the leader's among them.
        let victim = fault % NODES;
        let of_fault = strike(cluster, &lists, fault, kind, victim).await?;
        let longest = of_fault.iter().map(|sample| sample.written).max();
        let longest = Duration::from_micros(longest.unwrap_or_default());
        let leader = of_fault.iter().any(|sample| sample.leader);
        say(&format!(
            "{:>4} of {faults}  {kind:?} n{}{}: {} probes, the last after {} ms",
            fault + 1,
            victim + 1,
            if leader { ", the leader" } else { "" },
            of_fault.len(),
            longest.as_millis(),
        ));
        samples.extend(of_fault);
    }
    Ok(samples)
}

/// Writes every list once; which shard each is in.
async fn lists(cluster: &Cluster) -> Result<Vec<Probe>> {
    let mut lists = Vec::new();
    for number in 0..LISTS {
        let list = format!("probe-{number}");
        let append = Question::new("list", &list, "append", json!({ "item": 0 })).key("first");
        cluster.settle(0, &append, WITHIN).await?;
        let seen = cluster.admin_json(0, &format!("/admin/v1/entities/list/{list}")).await?;
        let shard = serde_json::from_value::<Entity>(seen)?.shard;
        lists.push(Probe { list, shard });
    }
    Ok(lists)
}

/// One fault, from a whole cluster to a whole cluster.
async fn strike(
    cluster: &mut Cluster,
    lists: &[Probe],
    fault: usize,
    kind: Kind,
    victim: usize,
) -> Result<Vec<Sample>> {
    let survivors = [(victim + 1) % NODES, (victim + 2) % NODES];
    let probes = whole(cluster, lists, victim).await?;
    let name = cluster.nodes[victim].name().to_owned();
    let status: Status =
        serde_json::from_value(cluster.admin_json(survivors[0], "/admin/v1/status").await?)?;
    let leader = status.cluster.leader.is_some_and(|leader| leader.as_str() == name);
    let doors = survivors.map(|node| cluster.nodes[node].addresses().http);

    let began = (Instant::now(), wall_micros()?);
    match kind {
        Kind::Kill => cluster.nodes[victim].kill(),
        Kind::Freeze => cluster.nodes[victim].signal("STOP")?,
    }
    let mut set = JoinSet::new();
    for probe in &probes {
        let question = Question::new("list", &probe.list, "append", json!({ "item": fault + 1 }))
            .key(format!("fault-{fault}"))
            .deadline(DEADLINE);
        let shard = probe.shard;
        let client = cluster.client().clone();
        set.spawn(async move { Ok((shard, write(&client, doors, &question, began.0).await?)) });
    }
    let written = set.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
    match kind {
        Kind::Kill => cluster.nodes[victim].start()?,
        Kind::Freeze => cluster.nodes[victim].signal("CONT")?,
    }
    let told = Told::of(cluster, &survivors, &name, began.1).await?;
    Ok(written
        .into_iter()
        .map(|(shard, (written, tries))| Sample {
            fault,
            kind,
            victim: name.clone(),
            leader,
            shard,
            detected: told.detected,
            promoted: told.promoted.get(&shard).copied(),
            written,
            tries,
        })
        .collect())
}

/// Waits until all copies are in sync and the victim serves some of the lists: these.
async fn whole(cluster: &Cluster, lists: &[Probe], victim: usize) -> Result<Vec<Probe>> {
    let mut probes = Vec::new();
    let ready = async |node| matches!(cluster.admin(node, "/readyz").await, Ok((200, _)));
    for node in 0..NODES {
        eventually("all nodes are ready", WITHIN, || ready(node)).await?;
    }
    let began = Instant::now();
    while probes.is_empty() {
        cluster.in_sync(&[0, 1, 2], NODES, WITHIN).await?;
        let name = cluster.nodes[victim].name();
        let shards = cluster.shards(victim).await?;
        let serves = |probe: &&Probe| {
            shards.iter().any(|shard| {
                shard.shard == probe.shard
                    && shard.available
                    && shard.moving_to.is_none()
                    && shard.primary.as_ref().is_some_and(|primary| primary.as_str() == name)
            })
        };
        // One list of a shard says all about the shard.
        let mut seen = Vec::new();
        for probe in lists.iter().filter(serves) {
            if seen.len() < PROBES_MAX && !seen.contains(&probe.shard) {
                seen.push(probe.shard);
                probes.push(probe.clone());
            }
        }
        if began.elapsed() > WITHIN {
            bail!("{name} serves nothing, though all are in sync");
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(probes)
}

/// Repeats a command through the survivors' doors; when it was acknowledged, and the tries.
async fn write(
    client: &reqwest::Client,
    doors: [SocketAddr; 2],
    question: &Question,
    began: Instant,
) -> Result<(u64, u32)> {
    for tries in 1_u32.. {
        let door = doors[usize::try_from(tries)? % doors.len()];
        if ask(client, door, question).await.is_ok_and(|answer| answer.status == 200) {
            return Ok((u64::try_from(began.elapsed().as_micros())?, tries));
        }
        if began.elapsed() > WITHIN {
            break;
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
    bail!("{question} is not acknowledged {WITHIN:?} after the fault")
}

/// What the survivors' events tell of a fault.
#[derive(Debug, Default)]
struct Told {
    detected: Option<u64>,
    promoted: HashMap<u32, u64>,
}

impl Told {
    async fn of(cluster: &Cluster, survivors: &[usize], victim: &str, began: u64) -> Result<Self> {
        let mut told = Self::default();
        for node in survivors {
            let events = cluster.admin_json(*node, "/admin/v1/events").await?;
            let events: Events = serde_json::from_value(events)?;
            for row in &events.events {
                told.take(row, victim, began);
            }
        }
        Ok(told)
    }

    /// The earliest of each kind of event since the fault counts.
    fn take(&mut self, row: &EventRow, victim: &str, began: u64) {
        // The end of the event's millisecond.
        let Some(after) = ((row.at_ms + 1) * 1_000).checked_sub(began) else { return };
        let event = &row.event;
        if event["type"] == "member_down" && event["node"] == victim {
            self.detected = Some(self.detected.map_or(after, |known| known.min(after)));
        }
        if event["type"] == "shard_promoted"
            && event["node"] != victim
            && let Some(shard) = event["shard"].as_u64().and_then(|shard| shard.try_into().ok())
        {
            let known = self.promoted.entry(shard).or_insert(after);
            *known = after.min(*known);
        }
    }
}

fn wall_micros() -> Result<u64> {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(u64::try_from(wall.as_micros())?)
}
