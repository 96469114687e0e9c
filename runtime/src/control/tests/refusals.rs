//! Who is not let in, and not believed.

use super::*;

#[test]
fn data_of_another_cluster_is_refused() {
    run(async {
        let (net, disk, other) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let _n1 = Start::new(&net, "n1", &disk, alone.clone()).join().await.unwrap();
        let n2 = Start::new(&net, "n2", &other, alone).join().await.unwrap();
        let own = n2.control().current().cluster;
        n2.kill().await;

        // its own log is enough to lead alone, so only the question at the start can tell
        let refused = Start::new(&net, "n2", &other, options(&["n1"], 0)).join().await;

        let error = refused.err().unwrap();
        assert_eq!(error.code(), "MS-1203");
        assert!(matches!(error, JoinError::OtherCluster { own: o, .. } if Some(o) == own));
    });
}

#[test]
fn a_name_that_is_in_use_is_refused() {
    run(async {
        let (net, disks, stranger) = (Arc::default(), disks(), Disk::new());
        let [n1, _n2, _n3] = three(&net, &disks).await;
        let mut start = Start::new(&net, "n2", &stranger, options(&["n1"], 0));
        start.addr = "elsewhere";
        start.patience.name = Duration::from_secs(4);

        let error = start.join().await.err().unwrap();

        assert_eq!(error, JoinError::NameInUse { node: name("n2") });
        assert_eq!(error.code(), "MS-1202");
        assert_eq!(n1.member("n2").unwrap().disk, disks[1].id);
        assert_eq!(*stranger.cluster.lock().unwrap(), None);
    });
}

#[test]
fn a_kind_that_groups_differently_is_refused() {
    run(async {
        let (net, disk, other) = (Arc::default(), Disk::new(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let _n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let mut start = Start::new(&net, "n2", &other, options(&["n1"], 0));
        start.grouping.insert("account".to_owned(), GroupingDigest(8));

        let error = start.join().await.err().unwrap();

        assert_eq!(error.code(), "MS-1204");
    });
}

#[test]
fn clients_read_the_map_and_nothing_else() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();
        let client = Caller::Client { name: "test".to_owned() };
        let service = n1.plane.service();

        let map = service.handle(ControlBody::Map { have: 0 }, &client).await;
        let version = n1.control().current().version;
        let newest = service.handle(ControlBody::Map { have: version }, &client).await;
        let drain = ControlBody::Propose(Command::Drain { node: name("n1") });
        let drained = service.handle(drain, &client).await;

        assert!(matches!(map, Ok(ControlAnswer::Map(Some(_)))));
        assert!(matches!(newest, Ok(ControlAnswer::Map(None))));
        assert!(drained.is_err());
    });
}

/// Whatever was said in a discovery went into the address book: a client that named a voter's disk
/// and the largest start had all consensus messages sent to an address of its choice.
#[test]
fn nobody_is_believed_about_another_node() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let n1 = &nodes[0];
        let service = n1.plane.service();
        let n2 = n1.member("n2").unwrap();
        let about_n2 = |boot| Candidate {
            node: name("n2"),
            disk: n2.disk,
            boot,
            cluster: n1.control().current().cluster,
            peer_addr: "trap".to_owned(),
            expect: 3,
            known: vec![],
            grouping: Grouping::new(),
        };
        let n2_as = |disk, boot| Caller::Node { node: name("n2"), disk, boot };
        let last = BootId(u64::MAX);
        let place = || n1.control().consensus().find(n2.disk.consensus_id()).unwrap().1;

        for liar in [
            Caller::Client { name: "test".to_owned() },
            Caller::Node { node: name("n3"), disk: n2.disk, boot: last },
            n2_as(disks[2].id, last),
            n2_as(n2.disk, n2.boot),
        ] {
            let told = service.handle(ControlBody::Discover(about_n2(last)), &liar).await;
            assert!(matches!(told, Ok(ControlAnswer::Candidate(_))), "anybody may ask");
            assert_eq!(place(), "n2", "told by {liar:?}");
        }
        let heard = n1.plane.membership().known().heard();
        assert!(heard.iter().all(|them| them.peer_addr != "trap"));

        let next = BootId(n2.boot.0 + 1);
        let itself = n2_as(n2.disk, next);
        service.handle(ControlBody::Discover(about_n2(next)), &itself).await.unwrap();
        assert_eq!(place(), "trap", "a node says where it is itself");

        let large = Candidate { peer_addr: "x".repeat(10_000), ..about_n2(next) };
        assert!(service.handle(ControlBody::Discover(large), &itself).await.is_err());
    });
}
