//! Deaths, restarts, lost disks, cuts.

use super::*;

/// A caller that gave up left its proposal in the gauge for ever.
#[test]
fn a_proposal_that_is_dropped_is_pending_no_more() {
    let recorder = Pending::default();
    let pending = Arc::clone(&recorder.0);
    metrics::with_local_recorder(&recorder, || {
        run(async {
            let (net, disk) = (Arc::default(), Disk::new());
            let node = Start::new(&net, "n1", &disk, options(&["n9"], 3)).start().await;
            let control = node.control();
            let drain = Command::Drain { node: name("n1") };
            let mut proposing = Box::pin(control.propose(drain));

            let answer = timeout(Duration::from_millis(50), &mut proposing).await;

            assert!(answer.is_err(), "no leader is there to answer");
            assert_eq!(pending.load(Ordering::SeqCst), 1.0_f64.to_bits());
            drop(proposing);
            assert_eq!(pending.load(Ordering::SeqCst), 0.0_f64.to_bits());
        });
    });
}

/// Records the gauge of pending proposals.
#[derive(Default)]
struct Pending(Arc<AtomicU64>);

impl metrics::Recorder for Pending {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn register_counter(&self, _: &metrics::Key, _: &Metadata<'_>) -> Counter {
        Counter::noop()
    }
    fn register_gauge(&self, key: &metrics::Key, _: &Metadata<'_>) -> Gauge {
        match key.name() {
            "mainstay_raft_proposals_pending" => Gauge::from_arc(Arc::clone(&self.0)),
            _ => Gauge::noop(),
        }
    }
    fn register_histogram(&self, _: &metrics::Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn when_the_leader_dies_another_leads_and_proposals_go_on() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let mut nodes = Vec::from(three(&net, &disks).await);
        let dead = nodes.remove(leader(&nodes).unwrap());
        let dead_name = dead.name.clone();
        let killed = clock::now();
        dead.kill().await;

        eventually("another leader", || leader(&nodes).is_some()).await;
        println!("another leader after {:?}", clock::now().saturating_since(killed));

        for node in &nodes {
            let started = clock::now();
            while let Err(refused) = probe(&node.control()).await {
                assert!(clock::now().saturating_since(started) < PATIENCE, "{refused}");
            }
        }
        eventually("the dead one is down", || {
            nodes[0].member(dead_name.as_str()).unwrap().state == MemberState::Down
        })
        .await;
        println!("taken for dead after {:?}", clock::now().saturating_since(killed));
        assert_eq!(nodes[0].heard(&Event::MemberDown { node: dead_name }), 1);
    });
}

#[test]
fn a_restarted_node_comes_back_at_another_address() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let [n1, n2, n3] = three(&net, &disks).await;
        let before = n1.member("n3").unwrap();
        n3.kill().await;

        let mut start = Start::new(&net, "n3", &disks[2], options(&["n1"], 3));
        start.addr = "elsewhere";
        let n3 = start.join().await.unwrap();

        let after = n3.member("n3").unwrap();
        assert!(after.boot > before.boot);
        assert_eq!((after.disk, after.peer_addr.as_str()), (before.disk, "elsewhere"));
        let event = Event::MemberRestarted { node: name("n3") };
        eventually("told to the others", || n1.heard(&event) == 1 && n2.heard(&event) == 1).await;
        let live = n1.plane.membership().live();
        eventually("heard again", || {
            live.borrow().get(&name("n3")).is_some_and(|(boot, _)| *boot == after.boot)
        })
        .await;
    });
}

#[test]
fn a_whole_cluster_restarts_as_the_same_cluster() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let nodes = three(&net, &disks).await;
        let before = nodes[0].control().current();
        for node in nodes {
            node.kill().await;
        }

        let again = three(&net, &disks).await;

        let after = again[0].control().current();
        assert_eq!(after.cluster, before.cluster);
        assert!(after.version > before.version);
        assert_eq!(after.members.len(), 3);
    });
}

#[test]
fn a_wiped_node_joins_as_another_voter() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let [n1, _n2, n3] = three(&net, &disks).await;
        let (old, wiped) = (disks[2].id.consensus_id(), Disk::new());
        n3.kill().await;

        let n3 = Start::new(&net, "n3", &wiped, options(&["n1"], 3)).join().await.unwrap();

        assert_eq!(n3.member("n3").unwrap().disk, wiped.id);
        let view = n1.control().view();
        eventually("the new disk votes, the old one is gone", || {
            let view = view.borrow();
            view.voters.contains(&wiped.id.consensus_id())
                && !view.voters.contains(&old)
                && !view.learners.contains(&old)
        })
        .await;
    });
}

#[test]
fn a_node_that_was_cut_off_is_registered_again() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let nodes = three(&net, &disks).await;
        let far = nodes.iter().position(|node| !node.control().is_leader()).unwrap();
        let near = &nodes[(far + 1) % 3];
        let far = &nodes[far];
        net.cut.lock().unwrap().insert(far.addr.clone());
        let state = || near.member(far.name.as_str()).unwrap().state;
        eventually("it is down", || state() == MemberState::Down).await;

        net.cut.lock().unwrap().clear();

        eventually("it is up again", || state() == MemberState::Up).await;
    });
}

#[test]
fn a_leader_without_a_quorum_agrees_on_nothing() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let nodes = three(&net, &disks).await;
        let at = leader(&nodes).unwrap();
        let version = nodes[at].control().current().version;
        net.cut.lock().unwrap().insert(nodes[at].addr.clone());

        let refused = probe(&nodes[at].control()).await;

        assert!(matches!(refused, Err(ProposeRefused::NoLeader { .. })), "{refused:?}");
        assert_eq!(nodes[at].control().current().version, version);
        let others: Vec<_> = (0..3).filter(|other| *other != at).collect();
        eventually("the others lead themselves", || {
            others.iter().any(|other| nodes[*other].control().is_leader())
        })
        .await;
    });
}
