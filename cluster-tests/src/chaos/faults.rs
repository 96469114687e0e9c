//! What is done to the nodes, one fault at a time.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::record::Record;
use super::{NODES, RECOVERS_WITHIN};
use crate::processes::{Cluster, Node};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A node is killed and started again.
    Kill,
    /// A second one dies while the first is away, or has just come back.
    Two,
    /// All die at once.
    All,
    /// A node stands still for a while.
    Freeze,
    /// A node loses its data directory while the others have all of it.
    Wipe,
    /// Nodes do not reach each other, or not in one direction; clients reach them all.
    Cut,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Kill, Self::Two, Self::All, Self::Freeze, Self::Wipe, Self::Cut];

    /// Kinds as a seed draws them: kills and freezes often, the rest now and then, and cuts if the
    /// nodes have a network for that.
    pub fn draw(seed: u64, count: usize, network: bool) -> Vec<Self> {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut draw = || match rng.u8(..if network { 28 } else { 20 }) {
            0..8 => Self::Kill,
            8..11 => Self::Two,
            11..13 => Self::All,
            13..18 => Self::Freeze,
            18..20 => Self::Wipe,
            _ => Self::Cut,
        };
        (0..count).map(|_| draw()).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Kill => "kill",
            Self::Two => "two",
            Self::All => "all",
            Self::Freeze => "freeze",
            Self::Wipe => "wipe",
            Self::Cut => "cut",
        })
    }
}

/// Strikes, with times and victims of one seed.
#[derive(Debug)]
pub(super) struct Faults {
    rng: fastrand::Rng,
    began: Instant,
    count: u32,
    say: fn(&str),
}

impl Faults {
    pub(super) fn new(rng: fastrand::Rng, say: fn(&str)) -> Self {
        Self { rng, began: Instant::now(), count: 0, say }
    }

    /// Carries one fault out, and waits for copies in sync, or not.
    pub(super) async fn strike(
        &mut self,
        cluster: &mut Cluster,
        record: &Record,
        kind: Kind,
    ) -> Result<()> {
        tokio::time::sleep(self.millis(0, 800)).await;
        self.count += 1;
        let victim = self.rng.usize(..NODES);
        match kind {
            Kind::Kill => self.kill(cluster, record, victim).await?,
            Kind::Two => self.two(cluster, record, victim).await?,
            Kind::All => self.all(cluster, record).await?,
            Kind::Freeze => self.freeze(cluster, record, victim).await?,
            Kind::Wipe => self.wipe(cluster, record, victim).await?,
            Kind::Cut => self.cut(cluster, record, victim).await?,
        }
        if self.rng.bool() { recovered(cluster).await } else { alive(cluster) }
    }

    async fn kill(&mut self, cluster: &mut Cluster, record: &Record, victim: usize) -> Result<()> {
        let down = self.millis(0, 4_000);
        self.tell(record, Kind::Kill, &format!("n{} for {down:?}", victim + 1));
        cluster.nodes[victim].kill();
        tokio::time::sleep(down).await;
        cluster.nodes[victim].start()
    }

    async fn two(&mut self, cluster: &mut Cluster, record: &Record, first: usize) -> Result<()> {
        let second = (first + self.rng.usize(1..NODES)) % NODES;
        let (between, down) = (self.millis(0, 2_500), self.millis(0, 1_500));
        let back = self.rng.bool();
        let how = if back { "back" } else { "away" };
        let (one, other) = (first + 1, second + 1);
        let text = format!("n{one}; n{other} after {between:?} for {down:?}, n{one} is {how}");
        self.tell(record, Kind::Two, &text);
        cluster.nodes[first].kill();
        tokio::time::sleep(between).await;
        if back {
            cluster.nodes[first].start()?;
        }
        cluster.nodes[second].kill();
        tokio::time::sleep(down).await;
        cluster.nodes[second].start()?;
        if back { Ok(()) } else { cluster.nodes[first].start() }
    }

    async fn all(&mut self, cluster: &mut Cluster, record: &Record) -> Result<()> {
        let down = self.millis(0, 500);
        self.tell(record, Kind::All, &format!("for {down:?}"));
        cluster.nodes.iter_mut().for_each(Node::kill);
        tokio::time::sleep(down).await;
        cluster.nodes.iter_mut().try_for_each(Node::start)
    }

    async fn freeze(&mut self, cluster: &Cluster, record: &Record, victim: usize) -> Result<()> {
        let frozen = self.millis(100, 3_000);
        self.tell(record, Kind::Freeze, &format!("n{} for {frozen:?}", victim + 1));
        cluster.nodes[victim].signal("STOP")?;
        tokio::time::sleep(frozen).await;
        cluster.nodes[victim].signal("CONT")
    }

    async fn wipe(&mut self, cluster: &mut Cluster, record: &Record, victim: usize) -> Result<()> {
        recovered(cluster).await?;
        let down = self.millis(0, 1_500);
        self.tell(record, Kind::Wipe, &format!("n{} for {down:?}", victim + 1));
        cluster.nodes[victim].kill();
        fs::remove_dir_all(cluster.folder().join(cluster.nodes[victim].name()))?;
        tokio::time::sleep(down).await;
        cluster.nodes[victim].start()?;
        recovered(cluster).await
    }

    async fn cut(&mut self, cluster: &Cluster, record: &Record, victim: usize) -> Result<()> {
        let network = cluster.network().context("the nodes have no network of their own")?;
        let long = self.millis(300, 4_000);
        let (next, last) = ((victim + 1) % NODES, (victim + 2) % NODES);
        let (how, cuts) = match self.rng.u8(..4) {
            0 => ("hears nobody", vec![(next, victim), (last, victim)]),
            1 => ("reaches nobody", vec![(victim, next), (victim, last)]),
            2 => ("and the next", vec![(victim, next), (next, victim)]),
            _ => {
                let both = [next, last].into_iter();
                ("and all", both.flat_map(|node| [(victim, node), (node, victim)]).collect())
            }
        };
        self.tell(record, Kind::Cut, &format!("n{} {how} for {long:?}", victim + 1));
        for (from, to) in cuts {
            network.cut(from, to)?;
        }
        tokio::time::sleep(long).await;
        network.heal()
    }

    /// Says what happens now, to people and to the record.
    fn tell(&self, record: &Record, kind: Kind, what: &str) {
        let at = self.began.elapsed().as_secs_f64();
        (self.say)(&format!("{at:>7.1} s  #{:<4} {kind:<7} {what}", self.count));
        record.fault(kind, self.count);
    }

    fn millis(&mut self, least: u64, most: u64) -> Duration {
        Duration::from_millis(self.rng.u64(least..=most))
    }
}

/// Waits until all nodes are ready and every shard has all its copies in sync.
pub(super) async fn recovered(cluster: &mut Cluster) -> Result<()> {
    let began = Instant::now();
    let mut node = 0;
    while node < NODES {
        alive(cluster)?;
        let told = cluster.admin(node, "/readyz").await;
        if matches!(told, Ok((200, _))) {
            node += 1;
            continue;
        }
        let name = cluster.nodes[node].name();
        if began.elapsed() > RECOVERS_WITHIN {
            bail!("all nodes run again, and {name} is not ready: {told:?}");
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let synced = cluster.in_sync(&[0, 1, 2], NODES, RECOVERS_WITHIN).await;
    alive(cluster)?;
    synced.context("all nodes run again, and copies are missing")
}

/// Checks that no node has ended by itself.
fn alive(cluster: &mut Cluster) -> Result<()> {
    for node in &mut cluster.nodes {
        if let Some(status) = node.try_exit()? {
            bail!("{} ended by itself: {status}\n{}", node.name(), node.log_tail(20));
        }
    }
    Ok(())
}
