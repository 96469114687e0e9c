//! A node that leaves hands its shards over first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_cluster_tests::processes::{Definite, Question, eventually};
use serde_json::json;

use super::{Running, SOON, append, get, plan, set, start};

/// Waits until a node that was drained has left and ended by itself.
async fn gone(cluster: &mut Running, node: usize, through: usize) {
    let status = cluster.nodes[node].exit(SOON).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", cluster.nodes[node].log_tail(20));
    let log = cluster.nodes[node].log();
    assert!(log.contains("the node left its cluster and ends"), "{log}");
    let name = cluster.nodes[node].name();
    let members = cluster.members(through).await;
    assert!(members.iter().all(|member| member["name"] != name), "{members:?}");
}

#[tokio::test]
async fn a_drained_node_leaves_its_state_with_the_others() {
    let mut cluster = start(&plan(3)).await;
    for key in 0..40 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    cluster.drain(2, 0).await;
    gone(&mut cluster, 2, 0).await;
    cluster.balanced(&[0, 1], 32).await;
    for key in 0..40 {
        let value = cluster.answer(1, &get(&format!("r-{key}"))).await;
        assert_eq!(value.value().unwrap(), &json!(key));
    }
}

/// Waits until a node is no member any more.
async fn left(cluster: &Running, node: usize, through: usize) {
    let name = cluster.nodes[node].name();
    let began = std::time::Instant::now();
    while cluster.members(through).await.iter().any(|member| member["name"] == name) {
        assert!(began.elapsed() < SOON, "{name} is still a member");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_node_that_left_joins_again_when_it_is_started_again() {
    let mut cluster = start(&plan(3)).await;
    // whoever answers, the first to lead included: consensus goes on without it
    for leaver in 0..2 {
        let through = (leaver + 1) % 3;
        cluster.drain(leaver, leaver).await;
        gone(&mut cluster, leaver, through).await;
        cluster.restart(leaver).await.unwrap();
        assert_eq!(cluster.members(through).await.len(), 3);
    }
    cluster.balanced(&[0, 1, 2], 32).await;
}

#[tokio::test]
async fn what_a_tool_asks_of_a_member_that_left_or_is_down_is_refused_with_the_reason() {
    let mut cluster = start(&plan(3)).await;
    cluster.nodes[1].kill();
    let down = async || cluster.members(0).await.iter().any(|member| member["state"] == "down");
    eventually("n2 counts as down", SOON, down).await.unwrap();
    let admin = cluster.nodes[0].addresses().admin;
    let client = cluster.client().clone();
    let change = async |method: reqwest::Method, path: &str| {
        let url = format!("http://{admin}/admin/v1/nodes/{path}");
        let answer = client.request(method, url).send().await.unwrap();
        answer.json::<serde_json::Value>().await.unwrap()
    };
    let refused = change(reqwest::Method::POST, "n2/drain").await;
    assert_eq!(refused["code"], "MS-2302", "{refused}");
    assert!(refused["detail"].as_str().unwrap().contains("start it again"), "{refused}");
    cluster.restart(1).await.unwrap();

    cluster.drain(1, 0).await;
    gone(&mut cluster, 1, 0).await;
    for (method, path) in [(reqwest::Method::POST, "n2/undrain"), (reqwest::Method::DELETE, "n2")] {
        let refused = change(method, path).await;
        assert_eq!(refused["code"], "MS-2301", "{refused}");
        assert!(refused["detail"].as_str().unwrap().contains("left the cluster"), "{refused}");
    }
}

#[tokio::test]
async fn a_drain_under_load_loses_nothing_and_repeats_nothing() {
    let cluster = Arc::new(start(&plan(3)).await);
    let stop = Arc::new(AtomicBool::new(false));
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..8_usize {
        let (cluster, stop) = (Arc::clone(&cluster), Arc::clone(&stop));
        writers.spawn(async move {
            let list = format!("list-{writer}");
            let mut items = 0;
            while !stop.load(Ordering::Relaxed) {
                let question: Question = append(&list, items).key(format!("k-{items}"));
                let settled = cluster.settle(writer % 2, &question, SOON).await.unwrap();
                assert!(matches!(settled, Definite::Value(_)), "{settled:?}");
                items += 1;
            }
            (list, items)
        });
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster.drain(2, 0).await;
    left(&cluster, 2, 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for (list, items) in writers.join_all().await {
        assert!(items > 0, "{list} was never written");
        assert_eq!(cluster.items(&list).await, (0..items).collect::<Vec<_>>(), "{list}");
    }
}
