//! Disks that forget what nobody synced, and disks that stand still.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::{Question, eventually};
use serde_json::json;

use super::load::{Load, WRITERS, copied};
use super::{Running, SOON, start};

/// How long a disk stands still: ten times as long as a write waits for a member.
const STALL: Duration = Duration::from_secs(3);

impl Running {
    /// Lists, one for each writer, whose primary is so.
    async fn lists(&self, wanted: impl Fn(usize) -> bool) -> Vec<String> {
        let mut lists = Vec::new();
        for number in 0.. {
            let list = format!("list-{number}");
            if lists.len() as u64 == WRITERS {
                break;
            }
            if wanted(self.primary_of(&list).await) {
                lists.push(list);
            }
        }
        lists
    }

    async fn primary_of(&self, list: &str) -> usize {
        let items = Question::new("list", list, "items", json!({}));
        let served_by = self.served_by(0, &items).await;
        self.nodes.iter().position(|node| node.name() == served_by).unwrap()
    }

    async fn shards_of(&self, lists: &[String]) -> BTreeSet<u64> {
        let mut shards = BTreeSet::new();
        for list in lists {
            let seen = self.admin_json(0, &format!("/admin/v1/entities/list/{list}")).await;
            shards.insert(seen.unwrap()["shard"].as_u64().unwrap());
        }
        shards
    }

    /// How many of these shards have this node in their in-sync set.
    async fn members_of(&self, shards: &BTreeSet<u64>, node: usize) -> usize {
        let name = self.nodes[node].name();
        let rows = self.cluster.shards(0).await.unwrap();
        let of_them = rows.iter().filter(|row| shards.contains(&u64::from(row.shard)));
        of_them.filter(|row| row.in_sync.iter().any(|member| member.as_str() == name)).count()
    }
}

#[tokio::test]
async fn a_power_cut_of_all_nodes_loses_nothing_acknowledged() {
    let mut cluster = start(&copied().on_drives(11)).await;
    cluster.all_in_sync(0, 3).await;
    for round in 0..2 {
        let lists = (0..WRITERS).map(|writer| format!("list-{round}-{writer}")).collect();
        let load = Load::on(&cluster, lists);
        load.goes_on(10, SOON).await;
        cluster.kill_at_once(&[0, 1, 2]).unwrap();
        let told = load.end().await;
        cluster.start_all().await.unwrap();
        cluster.audit(&told).await;
    }
}

#[tokio::test]
async fn what_only_the_primary_has_on_disk_is_not_acknowledged() {
    let mut cluster = start(&copied().on_drives(13)).await;
    cluster.all_in_sync(0, 3).await;
    let load = Load::on(&cluster, cluster.lists(|primary| primary == 0).await);
    load.goes_on(5, SOON).await;
    for standby in [1, 2] {
        cluster.nodes[standby].stall_disk().unwrap();
    }
    tokio::time::sleep(STALL / 6).await;
    let before = load.acknowledged();
    tokio::time::sleep(STALL / 3).await;
    let after = load.acknowledged();
    // power is cut everywhere, and the one disk that had more is lost
    cluster.kill_at_once(&[0, 1, 2]).unwrap();
    let told = load.end().await;
    std::fs::remove_dir_all(cluster.folder().join(cluster.nodes[0].name())).unwrap();
    for standby in [1, 2] {
        cluster.nodes[standby].resume_disk().unwrap();
    }
    cluster.start_all().await.unwrap();
    cluster.audit(&told).await;
    assert_eq!(before, after, "acknowledged while one disk alone went on");
}

#[tokio::test]
async fn a_standby_whose_disk_stands_still_holds_no_write_up_and_counts_again_later() {
    let mut cluster = start(&copied().on_drives(12)).await;
    cluster.all_in_sync(0, 3).await;
    let slow = if cluster.leader().await == 2 { 1 } else { 2 };
    let lists = cluster.lists(|primary| primary != slow).await;
    let load = Load::on(&cluster, lists.clone());
    load.goes_on(5, SOON).await;
    let shards = cluster.shards_of(&lists).await;
    assert_eq!(cluster.members_of(&shards, slow).await, shards.len());

    cluster.nodes[slow].stall_disk().unwrap();
    let stalled_at = Instant::now();
    let without = async || cluster.members_of(&shards, slow).await == 0;
    eventually("every set goes on without it", STALL / 2, without).await.unwrap();
    load.goes_on(5, STALL / 2).await;
    tokio::time::sleep(STALL.saturating_sub(stalled_at.elapsed())).await;
    assert_eq!(cluster.members_of(&shards, slow).await, 0, "it counts, though nothing is on disk");
    load.goes_on(5, STALL / 2).await;

    cluster.nodes[slow].resume_disk().unwrap();
    cluster.all_in_sync(0, 3).await;
    load.goes_on(5, SOON).await;
    // what it was given since must be enough beside one other
    cluster.nodes[0].kill();
    load.goes_on(5, SOON).await;
    let told = load.end().await;
    cluster.audit(&told).await;
}
