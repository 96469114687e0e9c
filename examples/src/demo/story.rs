//! What happens to the nodes while the clients work: a kill, a restart, a drain.
//!
//! ```text
//!   0 %          20 %             36 %                   60 %                  100 %
//!   load begins  kill -9 a node   it starts again        another is drained    load ends
//!                others take over and catches up         and leaves in order
//! ```
//!
//! Each shard has a copy on every node, and a write is acknowledged once two have it on disk. When a
//! node dies, a copy that has everything takes each of its shards over; nothing that was acknowledged
//! may be missing afterwards.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mainstay_cluster_tests::processes::Cluster;
use serde_json::json;

use super::meter::Meter;
use super::nodes::{Series, Watch, page, shards, unavailable};
use super::options::Options;
use super::output::{Mood, Output, Row};

/// How long a drain may take.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

/// How long the others may take to take a killed node's shards over, before the demo goes on.
const FAILOVER_WITHIN: Duration = Duration::from_secs(5);

/// Tells the story; every part of it takes what it needs.
#[derive(Debug)]
pub struct Story<'s> {
    /// What the demo was told.
    pub options: &'s Options,
    /// The nodes.
    pub cluster: &'s mut Cluster,
    /// Where it is printed.
    pub output: &'s Output,
    /// The node that is killed.
    pub victim: usize,
    /// The node that is drained.
    pub leaver: usize,
    /// When the load began.
    pub began: Instant,
    /// What the node that is drained had counted before.
    pub left: Vec<Series>,
}

impl Story<'_> {
    /// Runs it from the beginning of the load to its end.
    ///
    /// # Errors
    /// When a node does not do what it is told.
    pub async fn tell(&mut self) -> Result<()> {
        self.until(self.options.at(0.2)).await;
        self.kill().await;
        self.until(self.options.at(0.36)).await;
        self.restart().await?;
        self.until(self.options.at(0.6)).await;
        self.drain().await?;
        self.until(self.options.load()).await;
        Ok(())
    }

    async fn until(&self, moment: Duration) {
        tokio::time::sleep_until((self.began + moment).into()).await;
    }

    async fn kill(&mut self) {
        let client = self.cluster.client().clone();
        let node = &mut self.cluster.nodes[self.victim];
        let admin = node.addresses().admin;
        let (name, pid) = (node.name().to_owned(), node.pid().unwrap_or_default());
        let held = shards(&client, admin).await.unwrap_or_default();
        node.kill();
        let killed = Instant::now();
        self.incident(
            "kill",
            Mood::Bad,
            &format!("x kill -9 {name} (pid {pid}), primary of {held} shards"),
            json!({ "node": name, "pid": pid, "shards": held }),
        );
        let survivor = self.cluster.nodes[(self.victim + 1) % self.cluster.nodes.len()].addresses();
        let Some(noticed) = unserved(&client, survivor.admin, true, killed).await else { return };
        let Some(taken) = unserved(&client, survivor.admin, false, killed).await else { return };
        self.incident(
            "failover",
            Mood::Good,
            &format!(
                "+ {name} found dead after {} ms; after {} ms copies have taken all its shards over",
                noticed.as_millis(),
                taken.as_millis()
            ),
            json!({ "noticed_ms": noticed.as_millis(), "taken_over_ms": taken.as_millis() }),
        );
    }

    async fn restart(&mut self) -> Result<()> {
        let took = self.cluster.restart(self.victim).await?;
        let name = self.cluster.nodes[self.victim].name().to_owned();
        self.incident(
            "restart",
            Mood::Good,
            &format!("+ {name} started again with its data, ready after {} ms", took.as_millis()),
            json!({ "node": name, "ready_ms": took.as_millis() }),
        );
        Ok(())
    }

    async fn drain(&mut self) -> Result<()> {
        let began = Instant::now();
        let node = &self.cluster.nodes[self.leaver];
        let (name, admin) = (node.name().to_owned(), node.addresses().admin);
        let client = self.cluster.client().clone();
        let held = shards(&client, admin).await.unwrap_or_default();
        self.incident(
            "drain",
            Mood::Plain,
            &format!("> drain {name}: {held} shards move to the others, then it leaves"),
            json!({ "node": name, "shards": held }),
        );
        self.left.extend(page(&client, admin).await);
        let path = format!("http://{admin}/admin/v1/nodes/{name}/drain");
        let answer = client.post(path).send().await?;
        if !answer.status().is_success() {
            bail!("drain of {name}: {} {}", answer.status(), answer.text().await?);
        }
        // it ends by itself when it has left
        let node = &mut self.cluster.nodes[self.leaver];
        let status = node.exit(DRAIN_WITHIN).await?;
        let moved = began.elapsed();
        if !status.success() {
            bail!("{name} ended with {status}\n{}", node.log_tail(20));
        }
        self.incident(
            "drained",
            Mood::Good,
            &format!("+ {name} handed {held} shards over in {} ms and left", moved.as_millis()),
            json!({ "node": name, "shards": held, "took_ms": moved.as_millis() }),
        );
        Ok(())
    }

    fn incident(&self, event: &str, mood: Mood, text: &str, data: serde_json::Value) {
        let seconds = self.began.elapsed().as_secs_f64();
        self.output.incident(event, mood, &format!("{seconds:>6.1} s  {text}"), data);
    }
}

/// How long after `since` a node says that shards have no live primary, or none that has not; `None`
/// when it does not say so in time.
async fn unserved(
    client: &reqwest::Client,
    admin: SocketAddr,
    some: bool,
    since: Instant,
) -> Option<Duration> {
    while since.elapsed() < FAILOVER_WITHIN {
        if unavailable(client, admin).await.is_some_and(|count| (count > 0) == some) {
            return Some(since.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    None
}

/// Prints the table until it is dropped: a line that stays every `line_every`, and on a terminal
/// one that is overwritten every second.
pub async fn table(
    output: &Output,
    meter: &Meter,
    mut watch: Watch,
    began: Instant,
    line_every: Duration,
) {
    let tick = if output.is_terminal() { Duration::from_secs(1) } else { line_every };
    let mut line_began = began;
    let mut at = began;
    loop {
        at += tick;
        tokio::time::sleep_until(at.into()).await;
        let look = watch.look().await;
        let stays = at - line_began >= line_every;
        let reading = if stays { meter.take() } else { meter.read() };
        let row = Row {
            seconds: began.elapsed().as_secs_f64(),
            rate: f64::from(u32::try_from(reading.settled).unwrap_or(u32::MAX))
                / line_began.elapsed().as_secs_f64(),
            p50_ms: reading.p50_ms,
            p99_ms: reading.p99_ms,
            local: look.local,
            shards: look.shards,
            repeated: reading.repeated,
            waiting: reading.waiting,
        };
        if stays {
            line_began = Instant::now();
            output.row(&row);
        } else {
            output.live(&row);
        }
    }
}
