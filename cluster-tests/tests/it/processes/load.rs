//! Clients that append while nodes are struck, and what must be there afterwards.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::{Definite, Plan, ask, eventually};
use tokio::task::JoinSet;

use super::{Running, SOON, append, plan};

/// Three nodes that hold every shard, two of which must have a write.
pub(super) fn copied() -> Plan {
    plan(3).set("cluster.standbys", 2)
}

/// Clients that append to a list each, until told to stop.
pub(super) const WRITERS: u64 = 12;

/// What one writer was told.
#[derive(Debug, Default)]
pub(super) struct Told {
    pub(super) list: String,
    /// Items from 0 on that were acknowledged; the one after them may be there too.
    pub(super) acknowledged: u64,
    /// The longest time without an acknowledgement.
    pub(super) gap: Duration,
}

/// The writers at work.
pub(super) struct Load {
    writers: JoinSet<Told>,
    stop: Arc<AtomicBool>,
    acknowledged: Vec<Arc<AtomicU64>>,
}

impl Load {
    /// A list for each writer.
    pub(super) fn start(cluster: &Running) -> Self {
        Self::on(cluster, (0..WRITERS).map(|writer| format!("list-{writer}")).collect())
    }

    /// Appends 0, 1, 2, ... to each list through one node after the other, each item until it is
    /// acknowledged.
    pub(super) fn on(cluster: &Running, lists: Vec<String>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged: Vec<_> = lists.iter().map(|_| Arc::default()).collect();
        let doors: Vec<_> = cluster.nodes.iter().map(|node| node.addresses().http).collect();
        let mut writers = JoinSet::new();
        for (mut door, list) in lists.into_iter().enumerate() {
            let (client, doors, stop) =
                (cluster.client().clone(), doors.clone(), Arc::clone(&stop));
            let count: Arc<AtomicU64> = Arc::clone(&acknowledged[door]);
            writers.spawn(async move {
                let mut told = Told { list, ..Told::default() };
                let mut last = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let item = told.acknowledged;
                    let question = append(&told.list, item)
                        .key(format!("append-{item}"))
                        .deadline(Duration::from_secs(1));
                    let answer = ask(&client, doors[door % doors.len()], &question).await.ok();
                    match answer.and_then(|answer| answer.definite()) {
                        Some(Definite::Value(_)) => {
                            told.acknowledged += 1;
                            count.store(told.acknowledged, Ordering::Relaxed);
                            told.gap = told.gap.max(last.elapsed());
                            last = Instant::now();
                        }
                        Some(other) => panic!("an append was refused: {other:?}"),
                        None => {
                            door += 1;
                            tokio::time::sleep(Duration::from_millis(10)).await;
                        }
                    }
                }
                told
            });
        }
        Self { writers, stop, acknowledged }
    }

    /// Appends that were acknowledged so far, for each list.
    pub(super) fn acknowledged(&self) -> Vec<u64> {
        self.acknowledged.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// Waits until every list got this many more.
    pub(super) async fn goes_on(&self, more: u64, within: Duration) {
        let before = self.acknowledged();
        let grown = async || {
            self.acknowledged().iter().zip(&before).all(|(now, before)| *now >= before + more)
        };
        let ended = eventually("every writer goes on", within, grown).await;
        assert!(ended.is_ok(), "not within {within:?}: {before:?}, then {:?}", self.acknowledged());
    }

    /// Ends it; what the writers were told.
    pub(super) async fn end(self) -> Vec<Told> {
        self.stop.store(true, Ordering::Relaxed);
        self.writers.join_all().await
    }
}

impl Running {
    /// Checks that every list holds what its writer was told, once, and at most one item more.
    pub(super) async fn audit(&self, told: &[Told]) {
        for told in told {
            let found = self.items(&told.list).await;
            let expected: Vec<u64> = (0..found.len() as u64).collect();
            assert_eq!(found, expected, "{}: once each, in order", told.list);
            let more = found.len() as u64 - told.acknowledged.min(found.len() as u64);
            let missing = told.acknowledged.saturating_sub(found.len() as u64);
            assert_eq!(missing, 0, "{}: acknowledged and gone", told.list);
            assert!(more <= 1, "{}: {more} items that nobody was told of", told.list);
        }
    }

    /// Waits until every shard has this many copies in sync.
    pub(super) async fn all_in_sync(&self, through: usize, copies: usize) {
        self.cluster.in_sync(&[through], copies, SOON).await.unwrap();
    }

    /// Whether a node has a vote in the control plane.
    pub(super) async fn has_vote(&self, node: usize) -> bool {
        let page = self.admin(node, "/metrics").await;
        page.is_ok_and(|(_, page)| page.lines().any(|line| line == "mainstay_raft_is_voter 1"))
    }

    /// Until a node has a vote in the control plane.
    pub(super) async fn votes(&self, node: usize) {
        eventually("the node votes", SOON, || self.has_vote(node)).await.unwrap();
    }

    /// The node that leads the control plane.
    pub(super) async fn leader(&self) -> usize {
        let status = self.status(0).await;
        let leader = status["cluster"]["leader"].as_str();
        self.nodes.iter().position(|node| Some(node.name()) == leader).unwrap()
    }
}
