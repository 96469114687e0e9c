//! A node that leaves hands its shards over first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_cluster_tests::processes::{Definite, Question};
use serde_json::json;

use super::{Running, SOON, append, get, plan, set, start};

async fn drain(cluster: &Running, node: usize, through: usize) {
    let name = cluster.nodes[node].name();
    let admin = cluster.nodes[through].addresses().admin;
    let url = format!("http://{admin}/admin/v1/nodes/{name}/drain");
    let answer = cluster.client().post(url).send().await.unwrap();
    assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    let began = std::time::Instant::now();
    while cluster.shards(node).await > 0 {
        assert!(began.elapsed() < SOON, "{name} still holds shards");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_drained_node_leaves_its_state_with_the_others() {
    let mut cluster = start(&plan(3)).await;
    for key in 0..40 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    drain(&cluster, 2, 0).await;
    cluster.nodes[2].signal("TERM").unwrap();
    let status = cluster.nodes[2].exit(SOON).await.unwrap();
    assert!(status.success(), "{status}\n{}", cluster.nodes[2].log_tail(20));
    cluster.balanced(&[0, 1], 32).await;
    for key in 0..40 {
        let value = cluster.answer(1, &get(&format!("r-{key}"))).await;
        assert_eq!(value.value().unwrap(), &json!(key));
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
    drain(&cluster, 2, 0).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    stop.store(true, Ordering::Relaxed);
    for (list, items) in writers.join_all().await {
        assert!(items > 0, "{list} was never written");
        assert_eq!(cluster.items(&list).await, (0..items).collect::<Vec<_>>(), "{list}");
    }
}
