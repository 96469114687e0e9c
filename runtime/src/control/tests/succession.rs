//! A dead leader is followed because it is dead, not because a timer ran out.

use mainstay_protocol::failure_detector::Verdict;

use super::*;
use crate::control::succession::is_dead;
use crate::membership::LiveView;

/// Timers of consensus that do not run out while a test runs.
const NEVER: Timing = Timing {
    heartbeat: Duration::from_millis(200),
    election_min: Duration::from_secs(300),
    election_max: Duration::from_secs(301),
};

/// The timers of consensus were as short as a failover may take, and disks that stalled for longer
/// cost one leader after the other: a drain failed because none stayed for five seconds.
#[test]
fn a_dead_leader_is_followed_though_no_timer_ran_out() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let mut nodes = Vec::from(three_with(&net, &disks, NEVER).await);
        let dead = nodes.remove(leader(&nodes).unwrap());
        let killed = clock::now();
        dead.kill().await;

        eventually("another leader", || leader(&nodes).is_some()).await;

        println!("another leader after {:?}", clock::now().saturating_since(killed));
        probe(&nodes[0].control()).await.unwrap();
        probe(&nodes[1].control()).await.unwrap();
    });
}

/// A candidate deposes the leader that the others follow: one that is cut off from it alone must not
/// become one.
#[test]
fn a_leader_that_one_voter_alone_does_not_reach_stays() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let nodes = three_with(&net, &disks, NEVER).await;
        let at = leader(&nodes).unwrap();
        let (led, far) = (&nodes[at], &nodes[(at + 1) % 3]);
        let before = led.control().view().borrow().clone();
        *net.apart.lock().unwrap() = Some([led.addr.clone(), far.addr.clone()]);

        let live = far.plane.membership().live();
        let dead = || live.borrow().get(&led.name).is_some_and(|(_, v)| *v == Verdict::Dead);
        eventually("dead to the one that is cut off", dead).await;
        sleep(Duration::from_secs(1)).await;

        assert!(dead());
        for node in &nodes {
            let view = node.control().view().borrow().clone();
            assert_eq!((view.leader, view.term), (before.leader, before.term), "{}", node.name);
        }
        probe(&led.control()).await.unwrap();
    });
}

/// Its own log said who led, and what it knew of that node's start was old, so that it counted as dead;
/// who knew the newer start agreed. It deposed the leader that had come back, again and again.
#[test]
fn a_voter_that_knows_an_old_start_of_the_leader_lets_it_lead() {
    run(async {
        let (net, disks) = (Arc::<Net>::default(), disks());
        let mut nodes = Vec::from(three_with(&net, &disks, NEVER).await);
        let at = leader(&nodes).unwrap();
        let (led, away) = (format!("n{}", at + 1), format!("n{}", (at + 1) % 3 + 1));
        let start = |node: &'static str| {
            let disk = ["n1", "n2", "n3"].iter().position(|name| *name == node).unwrap();
            Start { timing: NEVER, ..Start::new(&net, node, &disks[disk], options(&["n1"], 3)) }
        };
        let of = |name: &str| ["n1", "n2", "n3"].into_iter().find(|known| *known == name).unwrap();
        for name in [&away, &led] {
            let at = nodes.iter().position(|node| node.name.as_str() == name).unwrap();
            nodes.remove(at).kill().await;
        }
        nodes.push(start(of(&led)).join().await.unwrap());
        let term = nodes[1].control().view().borrow().term;

        // it hears of the newer start neither from the leader nor, without it, from the log
        *net.apart.lock().unwrap() = Some([led.clone(), away.clone()]);
        nodes.push(start(of(&away)).start().await);
        let live = nodes[2].plane.membership().live();
        let dead = || live.borrow().get(&name(&led)).is_some_and(|(_, v)| *v == Verdict::Dead);
        eventually("dead to the one that is behind", dead).await;
        sleep(Duration::from_secs(1)).await;

        for node in &nodes {
            assert_eq!(node.control().view().borrow().term, term, "{}", node.name);
        }
        assert!(nodes[1].control().is_leader());
    });
}

#[test]
fn a_start_that_another_followed_is_dead_to_nobody() {
    let live = LiveView::from([(name("n1"), (BootId(2), Verdict::Alive))]);
    assert!(!is_dead(&live, &name("n1"), BootId(1)), "who asks is behind");
    let live = LiveView::from([(name("n1"), (BootId(2), Verdict::Dead))]);
    assert!(is_dead(&live, &name("n1"), BootId(2)));
    assert!(!is_dead(&live, &name("n1"), BootId(1)));
    assert!(!is_dead(&live, &name("n2"), BootId(1)), "nobody knows it");
}
