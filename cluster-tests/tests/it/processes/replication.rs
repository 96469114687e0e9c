//! What replication costs on the wire, and what it tells about itself.

use std::time::Duration;

use mainstay_cluster_tests::processes::{Plan, Question, ask, eventually};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Running, SOON, plan, set, start};

/// Clients that change the page at one time.
const WRITERS: u64 = 4;
/// Changes that each makes.
const CHANGES: u64 = 50;
/// Bytes that a change may cost on the wire, for each standby.
const BYTES_MAX: f64 = 200.0;

/// Three nodes that hold every shard.
fn copied() -> Plan {
    plan(3).set("cluster.standbys", 2)
}

fn mark(value: u64) -> Question {
    Question::new("page", "p", "mark", json!({ "mark": value }))
}

/// The samples of a metric whose labels hold all of these texts, with their labels.
fn samples(page: &str, name: &str, labels: &[&str]) -> Vec<(String, f64)> {
    let lines = page.lines().filter_map(|line| line.rsplit_once(' '));
    let of_it = lines.filter(|(series, _)| {
        let rest = series.strip_prefix(name);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
            && labels.iter().all(|label| series.contains(label))
    });
    of_it.map(|(series, value)| (series.to_owned(), value.parse().unwrap())).collect()
}

impl Running {
    async fn metrics(&self, node: usize) -> String {
        self.admin(node, "/metrics").await.unwrap().1
    }

    /// The sum of a metric's samples with these labels, over these nodes.
    async fn sum(&self, nodes: &[usize], name: &str, labels: &[&str]) -> f64 {
        let mut sum = 0.0;
        for node in nodes {
            let page = self.metrics(*node).await;
            sum += samples(&page, name, labels).into_iter().map(|(_, value)| value).sum::<f64>();
        }
        sum
    }
}

#[tokio::test]
async fn a_changed_field_of_a_large_state_costs_less_than_200_bytes_per_standby() {
    let cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0], 3, SOON).await.unwrap();
    cluster.value(0, &Question::new("page", "p", "fill", json!({}))).await;
    let primary = cluster.served_by(0, &mark(1)).await;
    let primary = cluster.nodes.iter().position(|node| node.name() == primary).unwrap();
    let sent = || async {
        let page = cluster.metrics(primary).await;
        samples(&page, "mainstay_replication_sent_bytes_total", &[])
    };
    let before = sent().await;
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (client, at) = (cluster.client().clone(), cluster.nodes[primary].addresses().http);
        writers.spawn(async move {
            for change in 0..CHANGES {
                let question = mark((writer << 32) + change + 2);
                let answer = ask(&client, at, &question).await;
                answer.unwrap().value().unwrap();
            }
        });
    }
    writers.join_all().await;
    let after = sent().await;
    assert_eq!(after.len(), 2, "two standbys are fed: {after:?}");
    let changes = f64::from(u32::try_from(WRITERS * CHANGES).unwrap());
    for (peer, bytes) in after {
        let then =
            before.iter().find(|(series, _)| *series == peer).map_or(0.0, |(_, bytes)| *bytes);
        let each = (bytes - then) / changes;
        assert!((20.0..BYTES_MAX).contains(&each), "{peer}: {each} bytes for each change");
    }
    eventually("the changes are counted, by how they travel", SOON, || async {
        let delta = ["kind=\"page\"", "encoding=\"delta\""];
        let full = ["kind=\"page\"", "encoding=\"full\""];
        let name = "mainstay_state_changes_total";
        cluster.sum(&[primary], name, &delta).await > changes
            && cluster.sum(&[primary], name, &full).await >= 1.0
    })
    .await
    .unwrap();
    let state = ["kind=\"page\"", "form=\"state\""];
    let state = cluster.sum(&[primary], "mainstay_state_change_bytes_total", &state).await;
    assert!(state > changes * 65_536.0, "{state} bytes of states are not 64 KiB each");
}

#[tokio::test]
async fn a_failover_is_told_with_its_parts() {
    let mut cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0, 1], 3, SOON).await.unwrap();
    for key in 0..40 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    let held = cluster.shards(2).await;
    cluster.nodes[2].kill();
    let left = [0, 1];
    let name = "mainstay_promotion_duration_seconds_count";
    let (held, failover) = (f64::from(u32::try_from(held).unwrap()), "cause=\"failover\"");
    eventually("every promotion was timed to its end", SOON, || async {
        cluster.sum(&left, name, &[failover]).await >= held
    })
    .await
    .unwrap();
    let promoted = cluster.sum(&left, "mainstay_promotions_total", &[failover]).await;
    assert!(promoted >= held, "{promoted} promotions of {held} shards");
    let phases = "mainstay_failover_phase_duration_seconds_count";
    // Who noticed the loss later than the map has no time for the first part.
    for (phase, least) in [("decide", 1.0), ("promote", held), ("serve", held)] {
        let label = format!("phase=\"{phase}\"");
        let timed = cluster.sum(&left, phases, &[&label]).await;
        assert!(timed >= least, "{phase}: {timed} of {held}");
    }
    eventually("every shard lacks a copy", SOON, || async {
        cluster.sum(&[0], "mainstay_shards_under_replicated", &[]).await > 31.0
    })
    .await
    .unwrap();
    cluster.restart(2).await.unwrap();
    cluster.cluster.in_sync(&[0], 3, SOON).await.unwrap();
    assert!(cluster.sum(&[0], "mainstay_shards_under_replicated", &[]).await < 1.0);
    let all = cluster.sum(&[0], "mainstay_shards_by_copies", &["copies=\"3\""]).await;
    assert!((all - 32.0).abs() < 0.5, "{all} shards have three copies");
    eventually("nobody lags any more", SOON, || async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.sum(&left, "mainstay_replication_lag_entries", &[]).await < 1.0
    })
    .await
    .unwrap();
}
