//! With standbys: a node dies, another goes on, and nothing that was acknowledged is missing.

use std::collections::BTreeSet;
use std::time::Duration;

use super::load::{Load, WRITERS, copied};
use super::start;

#[tokio::test]
async fn a_killed_node_is_replaced_and_nothing_acknowledged_is_lost() {
    let mut cluster = start(&copied()).await;
    cluster.all_in_sync(0, 3).await;
    let load = Load::start(&cluster);
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.nodes[2].kill();
    tokio::time::sleep(Duration::from_secs(4)).await;
    let told = load.end().await;
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
    cluster.all_in_sync(0, 3).await;
    let load = Load::start(&cluster);
    for victim in [0, 1, 2] {
        tokio::time::sleep(Duration::from_millis(700)).await;
        cluster.nodes[victim].kill();
        tokio::time::sleep(Duration::from_millis(1_500)).await;
        cluster.restart(victim).await.unwrap();
        cluster.all_in_sync((victim + 1) % 3, 3).await;
    }
    let told = load.end().await;
    cluster.audit(&told).await;
}

#[tokio::test]
async fn all_copies_killed_at_once_lose_nothing_acknowledged() {
    let mut cluster = start(&copied()).await;
    cluster.all_in_sync(0, 3).await;
    let load = Load::start(&cluster);
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let told = load.end().await;
    cluster.start_all().await.unwrap();
    cluster.audit(&told).await;
}

#[tokio::test]
async fn a_wiped_node_gets_its_copies_from_the_others() {
    let mut cluster = start(&copied()).await;
    cluster.all_in_sync(0, 3).await;
    let load = Load::start(&cluster);
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.nodes[1].kill();
    let data = cluster.folder().join(cluster.nodes[1].name());
    std::fs::remove_dir_all(data).unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.restart(1).await.unwrap();
    cluster.all_in_sync(0, 3).await;
    // a wiped disk is another voter: two of the three that vote are needed
    cluster.votes(1).await;
    // what it holds now must be enough beside one other
    cluster.nodes[0].kill();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let told = load.end().await;
    cluster.audit(&told).await;
}
