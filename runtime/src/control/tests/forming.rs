//! How clusters form, settle and take members in.

use super::*;

#[test]
fn three_fresh_nodes_form_exactly_one_cluster() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;

        let clusters: BTreeSet<_> =
            nodes.iter().map(|node| node.control().current().cluster.unwrap()).collect();
        assert_eq!(clusters.len(), 1);
        assert_eq!(*disks[2].cluster.lock().unwrap(), clusters.first().copied());
        let created = nodes.iter().flat_map(|node| node.events.lock().unwrap().clone());
        let created = created.filter(|event| matches!(event, Event::ClusterCreated { .. }));
        let ids: BTreeSet<String> = created
            .map(|event| match event {
                Event::ClusterCreated { cluster, .. } => cluster,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(ids.len(), 1);
        for node in &nodes {
            eventually("every shard has a primary", || {
                node.control().current().shards.iter().all(|shard| shard.primary.is_some())
            })
            .await;
        }
    });
}

#[test]
fn a_settled_cluster_proposes_nothing() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let logged = || nodes.iter().filter_map(|node| node.control().consensus().last_log()).max();
        eventually("placed", || {
            nodes[0].control().current().shards.iter().all(|shard| shard.primary.is_some())
        })
        .await;
        sleep(Duration::from_secs(1)).await;

        let before = logged();
        sleep(Duration::from_secs(2)).await;

        assert_eq!(logged(), before);
    });
}

#[test]
fn a_fourth_node_joins_and_follows_without_a_vote() {
    run(async {
        let (net, disks, disk) = (Arc::default(), disks(), Disk::new());
        let nodes = three(&net, &disks).await;

        let fourth = Start::new(&net, "n4", &disk, options(&["n2"], 0)).join().await.unwrap();

        let state = fourth.control().current();
        assert_eq!(state.cluster, nodes[0].control().current().cluster);
        assert_eq!(state.members.len(), 4);
        let view = fourth.control().view();
        eventually("a learner", || view.borrow().learners.contains(&disk.id.consensus_id())).await;
        assert_eq!(view.borrow().voters.len(), 3);
    });
}

#[test]
fn nobody_to_join_and_none_to_form_end_the_start() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());

        let nothing = Start::new(&net, "n1", &disk, options(&[], 0)).join().await;
        assert_eq!(nothing.err().unwrap().code(), "MS-1206");

        let nobody = Start::new(&net, "n1", &disk, options(&["n9"], 0)).join().await;
        assert_eq!(nobody.err().unwrap().code(), "MS-1201");
    });
}

#[test]
fn a_start_that_was_interrupted_while_forming_finishes() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let cluster = ClusterId::from_bytes([9; 16]);
        let n1 = Start::new(&net, "n1", &disk, alone.clone()).start().await;
        n1.plane.found_for_test(cluster).await;
        n1.kill().await;

        let n1 = Start::new(&net, "n1", &disk, options(&[], 0)).join().await.unwrap();

        assert_eq!(n1.control().current().cluster, Some(cluster));
        assert_eq!(*disk.cluster.lock().unwrap(), Some(cluster));
    });
}

#[test]
fn the_log_stays_bounded_and_a_late_node_gets_a_snapshot() {
    run(async {
        let (net, disk, late) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let control = n1.control();
        for _ in 0..20 {
            let round = (0..120).map(|_| probe(&control));
            join_all(round).await.into_iter().for_each(|result| result.unwrap());
        }

        let n2 = Start::new(&net, "n2", &late, options(&["n1"], 0)).join().await.unwrap();

        let kept = control.consensus().log_len();
        assert!(kept < 1_700, "{kept} entries were kept");
        assert_eq!(n2.control().current().cluster, control.current().cluster);
    });
}
