//! What a node costs when nobody wants anything of it, and how soon it is there.

use std::time::Duration;

use mainstay_cluster_tests::processes::{Node, READY_WITHIN, Spec};

use super::{TESTNODE, plan, prepare, start};

/// Of a core. The promise is for an optimised build; the one that most tests run is not, and takes
/// two to three times as long for the same heartbeats.
const SHARE_MAX: f64 = if cfg!(debug_assertions) { 0.03 } else { 0.01 };

#[tokio::test]
async fn an_idle_node_uses_less_than_a_hundredth_of_a_core() {
    let cluster = start(&plan(3)).await;
    // Elections, first checkpoints and the balancing of shards are over after this.
    tokio::time::sleep(Duration::from_secs(5)).await;
    let window = Duration::from_secs(10);
    let before: Vec<Duration> = cluster.nodes.iter().map(|node| node.cpu().unwrap()).collect();
    tokio::time::sleep(window).await;
    for (node, before) in cluster.nodes.iter().zip(before) {
        let used = node.cpu().unwrap().saturating_sub(before);
        let share = used.as_secs_f64() / window.as_secs_f64();
        assert!(share < SHARE_MAX, "{} used {:.2} % of a core", node.name(), share * 100.0);
    }
}

#[tokio::test]
async fn an_empty_node_is_ready_within_200_ms() {
    let cluster = prepare(&plan(0)).await;
    let mut best = READY_WITHIN;
    for attempt in 0..5 {
        let addresses = mainstay_cluster_tests::processes::Addresses::free().unwrap();
        let name = format!("quick-{attempt}");
        let mut spec = Spec::new(TESTNODE.as_ref(), &name, addresses, cluster.folder());
        spec.arguments.push("--dev".to_owned());
        let mut node = Node::new(spec);
        node.start().unwrap();
        best = best.min(node.ready(cluster.client(), READY_WITHIN).await.unwrap());
    }
    // The best of five: what is measured is the node, not what else the machine does.
    assert!(best < Duration::from_millis(200), "ready after {best:?}");
}
