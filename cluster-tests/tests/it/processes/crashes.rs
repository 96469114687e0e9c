//! `kill -9`, and what may never be missing afterwards.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use mainstay_cluster_tests::processes::{Definite, ask};
use serde_json::json;
use tokio::task::JoinSet;

use super::{Running, append, get, plan, set, start};

/// Clients that append to a list each, until told to stop.
const WRITERS: u64 = 12;

/// What one writer was told: items acknowledged, and one that it does not know of.
#[derive(Debug, Default)]
struct Told {
    list: String,
    acknowledged: Vec<u64>,
    unknown: Option<u64>,
}

/// Appends 0, 1, 2, ... until the first call without a definite outcome.
fn write(cluster: &Running, stop: &Arc<AtomicBool>) -> JoinSet<Told> {
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let client = cluster.client().clone();
        let node = usize::try_from(writer).unwrap() % cluster.nodes.len();
        let at = cluster.nodes[node].addresses().http;
        let stop = Arc::clone(stop);
        writers.spawn(async move {
            let mut told = Told { list: format!("list-{writer}"), ..Told::default() };
            for item in 0.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                let question = append(&told.list, item).key(format!("append-{item}"));
                let answer = ask(&client, at, &question).await.ok();
                match answer.and_then(|answer| answer.definite()) {
                    Some(Definite::Value(_)) => told.acknowledged.push(item),
                    other => {
                        assert_eq!(other, None, "an append was refused");
                        told.unknown = Some(item);
                        break;
                    }
                }
            }
            told
        });
    }
    writers
}

#[tokio::test]
async fn a_kill_of_all_nodes_at_once_loses_no_acknowledged_write() {
    let mut cluster = start(&plan(3)).await;
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

    let acknowledged: usize = told.iter().map(|told| told.acknowledged.len()).sum();
    assert!(acknowledged > 50, "only {acknowledged} writes before the kill");
    for told in told {
        let found = cluster.items(&told.list).await;
        let once: BTreeSet<u64> = found.iter().copied().collect();
        assert_eq!(once.len(), found.len(), "{}: applied twice: {found:?}", told.list);
        for item in &told.acknowledged {
            assert!(once.contains(item), "{}: {item} was acknowledged and is gone", told.list);
        }
        let more: Vec<_> = once.iter().filter(|item| !told.acknowledged.contains(item)).collect();
        assert!(more.is_empty() || more == [&told.unknown.unwrap()], "{}: {more:?}", told.list);
    }
}

#[tokio::test]
async fn a_repeated_command_is_answered_from_memory_even_after_a_crash() {
    let mut cluster = start(&plan(3)).await;
    let question = append("once", 7).key("only-once");
    assert_eq!(cluster.value(0, &question).await, 1);
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.ready().await.unwrap();
    assert_eq!(cluster.value(1, &question).await, 1, "the first reply is repeated");
    assert_eq!(cluster.items("once").await, [7]);
}

#[tokio::test]
async fn a_restarted_node_is_the_same_member_and_serves_its_shards_again() {
    let mut cluster = start(&plan(3)).await;
    for key in 0..30 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    let before = cluster.members(0).await;
    cluster.nodes[1].kill();
    cluster.restart(1).await.unwrap();
    cluster.balanced(&[0, 1, 2], 32).await;
    let after = cluster.members(0).await;
    let names = |members: &[serde_json::Value]| -> Vec<String> {
        members.iter().map(|member| member["name"].to_string()).collect()
    };
    assert_eq!(names(&before), names(&after));
    for key in 0..30 {
        assert_eq!(cluster.value(2, &get(&format!("r-{key}"))).await, key);
    }
}

#[tokio::test]
async fn a_frozen_node_delays_only_its_own_shards() {
    let cluster = start(&plan(3)).await;
    let mut served_by_others = Vec::new();
    for key in 0..24 {
        let name = format!("r-{key}");
        cluster.value(0, &set(&name, key)).await;
        let served_by = cluster.served_by(0, &get(&name)).await;
        if served_by != "n3" {
            served_by_others.push(name);
        }
    }
    assert!(served_by_others.len() > 4, "n3 serves nearly everything");
    cluster.nodes[2].signal("STOP").unwrap();
    for name in &served_by_others {
        let answer = cluster.answer(0, &get(name).deadline(Duration::from_secs(2))).await;
        assert_eq!(answer.status, 200, "{name}: {}", answer.text());
    }
    cluster.nodes[2].signal("CONT").unwrap();
    for key in 0..24 {
        assert_eq!(cluster.value(0, &get(&format!("r-{key}"))).await, json!(key));
    }
}
