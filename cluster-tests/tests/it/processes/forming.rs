//! Fresh nodes find each other, form one cluster, and each of them leads to every entity.

use mainstay_cluster_tests::processes::{Addresses, Node, READY_WITHIN, Spec};

use super::{TESTNODE, get, plan, set, start};

#[tokio::test]
async fn three_nodes_form_one_cluster() {
    let cluster = start(&plan(3)).await;
    cluster.balanced(&[0, 1, 2], 32).await;
    let first = cluster.status(0).await;
    assert!(first["cluster"]["id"].is_string(), "{first}");
    for node in 0..3 {
        assert_eq!(cluster.status(node).await["cluster"]["id"], first["cluster"]["id"]);
        assert_eq!(cluster.members(node).await.len(), 3);
        assert!(cluster.shards(node).await > 0, "node {node} serves nothing");
    }
}

#[tokio::test]
async fn every_node_leads_to_every_entity() {
    let cluster = start(&plan(3)).await;
    for key in 0_i64..30 {
        let name = format!("r-{key}");
        let through = usize::try_from(key).unwrap() % 3;
        cluster.answer(through, &set(&name, key)).await.value().unwrap();
        for node in 0..3 {
            assert_eq!(cluster.answer(node, &get(&name)).await.value().unwrap(), &key);
        }
    }
}

#[tokio::test]
async fn a_fourth_node_joins_and_takes_its_share_with_the_state() {
    let mut cluster = start(&plan(3)).await;
    for key in 0..40 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    let addresses = Addresses::free().unwrap();
    let mut spec = Spec::new(TESTNODE.as_ref(), "n4", addresses, cluster.folder());
    spec.join = vec![cluster.nodes[0].addresses().peer.to_string()];
    let mut fourth = Node::new(spec);
    fourth.start().unwrap();
    fourth.ready(cluster.client(), READY_WITHIN).await.unwrap();
    cluster.nodes.push(fourth);

    cluster.balanced(&[0, 1, 2, 3], 32).await;
    let began = std::time::Instant::now();
    while cluster.shards(3).await == 0 {
        assert!(began.elapsed() < super::SOON, "the fourth node was given nothing");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    cluster.balanced(&[0, 1, 2, 3], 32).await;
    for key in 0..40 {
        assert_eq!(cluster.value(3, &get(&format!("r-{key}"))).await, key);
    }
}
