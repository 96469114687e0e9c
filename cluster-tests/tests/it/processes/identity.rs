//! Starts that must be refused, each with its own code, and nothing changed.

use std::time::Duration;

use mainstay_cluster_tests::processes::{Addresses, Node, READY_WITHIN, Spec, eventually};

use super::{Running, SOON, TESTNODE, plan, prepare, set, start};

/// Starts a node that must end by itself with this code in its log.
async fn refused(mut node: Node, code: &str) {
    node.start().unwrap();
    let status = node.exit(SOON).await.unwrap();
    assert!(!status.success(), "{} ended well", node.name());
    let log = node.log();
    assert!(log.contains(code), "{code} is not in\n{log}");
    assert!(!log.contains("panicked"), "{log}");
}

fn spec(cluster: &Running, name: &str) -> Spec {
    Spec::new(TESTNODE.as_ref(), name, Addresses::free().unwrap(), cluster.folder())
}

fn dev(mut spec: Spec) -> Spec {
    spec.arguments.push("--dev".to_owned());
    spec
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let cluster = start(&plan(3)).await;
    let taken = cluster.nodes[0].addresses();
    for which in 0..3 {
        let mut spec = dev(spec(&cluster, &format!("stranger-{which}")));
        match which {
            0 => spec.addresses.peer = taken.peer,
            1 => spec.addresses.http = taken.http,
            _ => spec.addresses.admin = taken.admin,
        }
        refused(Node::new(spec), "MS-1101").await;
    }
}

#[tokio::test]
async fn a_data_directory_has_one_process() {
    let cluster = start(&plan(1)).await;
    let mut spec = dev(spec(&cluster, "n1"));
    spec.data = cluster.folder().join("n1");
    spec.log = cluster.folder().join("second.log");
    refused(Node::new(spec), "MS-1102").await;
    cluster.value(0, &set("still-there", 1)).await;
}

#[tokio::test]
async fn a_node_name_has_one_member() {
    let cluster = start(&plan(3)).await;
    let mut spec = spec(&cluster, "n2");
    spec.data = cluster.folder().join("impostor");
    spec.log = cluster.folder().join("impostor.log");
    spec.join = vec![cluster.nodes[0].addresses().peer.to_string()];
    refused(Node::new(spec), "MS-1202").await;
    assert_eq!(cluster.members(0).await.len(), 3);
}

#[tokio::test]
async fn data_of_another_cluster_is_refused_and_kept() {
    let mut cluster = start(&plan(3)).await;
    let mut other = Node::new(dev(spec(&cluster, "other")));
    other.start().unwrap();
    other.ready(cluster.client(), READY_WITHIN).await.unwrap();
    cluster.nodes.push(other);
    cluster.answer(3, &set("mine", 5)).await.value().unwrap();

    let mut other = cluster.nodes.pop().unwrap();
    other.kill();
    let mut moved = Node::new(other.spec_mut().clone());
    moved.spec_mut().arguments.clear();
    moved.spec_mut().join = vec![cluster.nodes[0].addresses().peer.to_string()];
    refused(moved, "MS-1203").await;

    other.start().unwrap();
    other.ready(cluster.client(), READY_WITHIN).await.unwrap();
    cluster.nodes.push(other);
    let kept = cluster.answer(3, &super::get("mine")).await;
    assert_eq!(kept.value().unwrap(), 5);
}

#[tokio::test]
async fn a_node_that_is_told_nothing_forms_no_cluster() {
    let cluster = prepare(&plan(0)).await;
    let spec = spec(&cluster, "lonely");
    refused(Node::new(spec.clone()), "MS-1206").await;
    assert!(!spec.data.exists(), "the refused start left {}", spec.data.display());
}

#[tokio::test]
async fn a_first_start_that_failed_binds_the_directory_to_no_name() {
    let mut cluster = start(&plan(1)).await;
    let mut impostor = spec(&cluster, "n1");
    impostor.data = cluster.folder().join("second");
    impostor.log = cluster.folder().join("second.log");
    impostor.join = vec![cluster.nodes[0].addresses().peer.to_string()];
    refused(Node::new(impostor.clone()), "MS-1202").await;

    let mut renamed = Node::new(Spec { name: "n2".to_owned(), ..impostor });
    renamed.start().unwrap();
    renamed.ready(cluster.client(), READY_WITHIN).await.unwrap();
    renamed.kill();
    renamed.spec_mut().name = "n3".to_owned();
    refused(renamed, "MS-1103").await;
    assert_eq!(cluster.members(0).await.len(), 2);
    cluster.nodes[0].kill();
}

#[tokio::test]
async fn two_of_three_expected_nodes_wait_for_the_third() {
    let mut cluster = prepare(&plan(3)).await;
    cluster.nodes[0].start().unwrap();
    cluster.nodes[1].start().unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    for node in 0..2 {
        let (status, _) = cluster.admin(node, "/readyz").await.unwrap();
        assert_eq!(status, 503, "node {node} is ready without the third");
    }
    cluster.nodes[2].start().unwrap();
    cluster.ready().await.unwrap();
    assert_eq!(cluster.members(0).await.len(), 3);
}

#[tokio::test]
async fn a_node_that_is_stopped_while_it_joins_ends_in_order() {
    for signal in ["TERM", "INT"] {
        let mut cluster = prepare(&plan(0)).await;
        let mut spec = spec(&cluster, &format!("early-{}", signal.to_lowercase()));
        let nobody = Addresses::free().unwrap().peer.to_string();
        spec.join = vec![nobody.clone()];
        let mut node = Node::new(spec);
        node.start().unwrap();
        let waits = async || node.log().contains("no cluster yet");
        eventually("it says that it waits", SOON, waits).await.unwrap();
        assert!(node.log().contains(&nobody), "{}", node.log());
        cluster.nodes.push(node);
        let joining = async || cluster.admin(0, "/startupz").await.is_ok_and(|got| got.0 == 200);
        eventually("recovery is done", SOON, joining).await.unwrap();
        assert_eq!(cluster.status(0).await["node"]["phase"], "joining");
        let (status, ready) = cluster.admin(0, "/readyz?verbose").await.unwrap();
        assert!(status == 503 && ready.contains("[+]recovery done"), "{ready}");
        assert!(ready.contains(&format!("looks for its cluster at {nobody}")), "{ready}");
        let refused = cluster.answer(0, &set("r", 1)).await;
        assert_eq!((refused.status, refused.code()), (503, "MS-2105"));
        let mut node = cluster.nodes.pop().unwrap();
        node.signal(signal).unwrap();
        let status = node.exit(SOON).await.unwrap();
        assert_eq!(status.code(), Some(0), "{}", node.log());
        assert!(!node.log().contains("panicked"), "{}", node.log());
    }
}
