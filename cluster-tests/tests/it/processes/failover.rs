//! With standbys: a node dies, another goes on, and nothing that was acknowledged is missing.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::{Definite, Plan, ask, eventually};
use tokio::task::JoinSet;

use super::{Running, SOON, append, plan, start};

/// Clients that append to a list each, until told to stop.
const WRITERS: u64 = 12;

/// Three nodes that hold every shard, two of which must have a write.
fn copied() -> Plan {
    plan(3).set("cluster.standbys", 2)
}

/// What one writer was told.
#[derive(Debug, Default)]
struct Told {
    list: String,
    /// Items from 0 on that were acknowledged; the one after them may be there too.
    acknowledged: u64,
    /// The longest time without an acknowledgement.
    gap: Duration,
}

/// Appends 0, 1, 2, ... through one node after the other, each until it is acknowledged.
fn write(cluster: &Running, stop: &Arc<AtomicBool>) -> JoinSet<Told> {
    let mut writers = JoinSet::new();
    let doors: Vec<_> = cluster.nodes.iter().map(|node| node.addresses().http).collect();
    for writer in 0..WRITERS {
        let (client, doors, stop) = (cluster.client().clone(), doors.clone(), Arc::clone(stop));
        let mut door = usize::try_from(writer).unwrap();
        writers.spawn(async move {
            let mut told = Told { list: format!("list-{writer}"), ..Told::default() };
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
    writers
}

impl Running {
    /// Checks that every list holds what its writer was told, once, and at most one item more.
    async fn audit(&self, told: &[Told]) {
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
    async fn in_sync(&self, through: usize, copies: usize) {
        self.cluster.in_sync(&[through], copies, SOON).await.unwrap();
    }

    /// Until a node has a vote in the control plane.
    async fn votes(&self, node: usize) {
        let votes = async || {
            let page = self.admin(node, "/metrics").await;
            page.is_ok_and(|(_, page)| page.lines().any(|line| line == "mainstay_raft_is_voter 1"))
        };
        eventually("the node votes", SOON, votes).await.unwrap();
    }
}

#[tokio::test]
async fn a_killed_node_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = start(&copied()).await;
    cluster.in_sync(0, 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&cluster, &stop);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.nodes[2].kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    stop.store(true, Ordering::Relaxed);
    let told = writers.join_all().await;
    let gap = told.iter().map(|told| told.gap).max().unwrap();
    assert!(gap < Duration::from_secs(4), "writes stood still for {gap:?}");
    let all: BTreeSet<_> = told
        .iter()
        .filter(|told| told.acknowledged > 20)
        .collect::<Vec<_>>()
        .iter()
        .map(|told| told.list.clone())
        .collect();
    assert_eq!(all.len() as u64, WRITERS, "every writer went on: {told:?}");
    cluster.audit(&told).await;
}

#[tokio::test]
async fn nodes_that_die_one_after_the_other_come_back_in_sync() {
    let mut cluster = start(&copied()).await;
    cluster.in_sync(0, 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&cluster, &stop);
    for victim in [0, 1, 2] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.nodes[victim].kill();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        cluster.restart(victim).await.unwrap();
        cluster.in_sync((victim + 1) % 3, 3).await;
    }
    stop.store(true, Ordering::Relaxed);
    let told = writers.join_all().await;
    cluster.audit(&told).await;
}

#[tokio::test]
async fn all_copies_killed_at_once_lose_nothing_acknowledged() {
    let mut cluster = start(&copied()).await;
    cluster.in_sync(0, 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&cluster, &stop);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    stop.store(true, Ordering::Relaxed);
    let told = writers.join_all().await;
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.ready().await.unwrap();
    cluster.audit(&told).await;
}

#[tokio::test]
async fn a_wiped_node_gets_its_copies_from_the_others() {
    let mut cluster = start(&copied()).await;
    cluster.in_sync(0, 3).await;
    let stop = Arc::new(AtomicBool::new(false));
    let writers = write(&cluster, &stop);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.nodes[1].kill();
    let data = cluster.folder().join(cluster.nodes[1].name());
    std::fs::remove_dir_all(data).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.restart(1).await.unwrap();
    cluster.in_sync(0, 3).await;
    // a wiped disk is another voter: two of the three that vote are needed
    cluster.votes(1).await;
    // what it holds now must be enough beside one other
    cluster.nodes[0].kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    stop.store(true, Ordering::Relaxed);
    let told = writers.join_all().await;
    cluster.audit(&told).await;
}
