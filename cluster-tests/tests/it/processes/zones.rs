//! Nodes in failure zones: copies and votes are spread over them, so that one may go.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use mainstay_cluster_tests::processes::{Plan, eventually};

use super::load::Load;
use super::{Running, SOON, plan, start};

/// Nodes in these zones, neighbours by name in the same one: members vote by name, unless their
/// zones say otherwise.
fn zoned(zones: &[&'static str], standbys: usize) -> Plan {
    let mut plan = plan(zones.len()).set("cluster.standbys", standbys);
    plan.zones = zones.to_vec();
    plan.shards = 16;
    plan
}

impl Running {
    /// The zone of each member, by its name, as a node knows them.
    async fn zones(&self, through: usize) -> BTreeMap<String, String> {
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        let members = self.members(through).await;
        members.iter().map(|member| (text(&member["name"]), text(&member["zone"]))).collect()
    }

    /// Checks that the copies of every shard are in so many zones, on the way to and in sync.
    async fn copies_are_in_zones(&self, count: usize) {
        let zones = self.zones(0).await;
        for shard in self.cluster.shards(0).await.unwrap() {
            for copies in [&shard.in_sync, &shard.targets] {
                let of: BTreeSet<_> = copies.iter().map(|node| &zones[node.as_str()]).collect();
                assert_eq!(of.len(), count, "shard {}: {copies:?} in {of:?}", shard.shard);
            }
        }
    }

    /// Waits until three nodes vote, so many of them at most in one of these zones.
    async fn votes_are_spread(&self, zones: &[&str], most: usize) {
        let spread = async || {
            let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
            for (node, zone) in zones.iter().enumerate() {
                *votes.entry(zone).or_default() += usize::from(self.has_vote(node).await);
            }
            votes.values().sum::<usize>() == 3 && votes.values().all(|votes| *votes <= most)
        };
        eventually("votes are spread over the zones", SOON, spread).await.unwrap();
    }

    /// The power of a zone is cut; who is left.
    fn lose_zone(&mut self, zones: &[&str], lost: &str) -> Vec<usize> {
        let (lost, left): (Vec<_>, Vec<_>) = (0..zones.len()).partition(|at| zones[*at] == lost);
        self.kill_at_once(&lost).unwrap();
        left
    }
}

#[tokio::test]
async fn a_lost_zone_of_three_stops_nothing_and_takes_nothing_acknowledged_along() {
    let zones = ["a", "a", "b", "b", "c", "c"];
    let mut cluster = start(&zoned(&zones, 2)).await;
    cluster.all_in_sync(0, 3).await;
    cluster.copies_are_in_zones(3).await;
    cluster.votes_are_spread(&zones, 1).await;
    let load = Load::start(&cluster);
    load.goes_on(5, SOON).await;
    for _ in 0..2 {
        // the zone without which the others must elect, too
        let lost = zones[cluster.leader().await];
        let left = cluster.lose_zone(&zones, lost);
        load.goes_on(5, Duration::from_secs(6)).await;
        // two zones hold the third copy between them, and the third vote
        cluster.in_sync(&left, 3, SOON).await.unwrap();
        load.goes_on(5, SOON).await;
        for (node, _) in zones.iter().enumerate().filter(|(_, zone)| **zone == lost) {
            cluster.restart(node).await.unwrap();
        }
        cluster.votes_are_spread(&zones, 1).await;
        cluster.all_in_sync(left[0], 3).await;
    }
    let told = load.end().await;
    cluster.audit(&told).await;
}

#[tokio::test]
async fn a_lost_zone_of_two_that_has_fewer_votes_takes_nothing_acknowledged_along() {
    let zones = ["a", "a", "b", "b"];
    let mut cluster = start(&zoned(&zones, 1)).await;
    cluster.all_in_sync(0, 2).await;
    cluster.copies_are_in_zones(2).await;
    cluster.votes_are_spread(&zones, 2).await;
    let load = Load::start(&cluster);
    load.goes_on(5, SOON).await;
    let fewer = if cluster.has_vote(0).await && cluster.has_vote(1).await { "b" } else { "a" };
    let left = cluster.lose_zone(&zones, fewer);
    // every shard has one copy left, and takes writes when the other node of its zone has one too
    cluster.in_sync(&left, 2, SOON).await.unwrap();
    load.goes_on(5, SOON).await;
    let told = load.end().await;
    cluster.audit(&told).await;
}
