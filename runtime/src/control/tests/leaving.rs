//! Leaving on purpose.

use super::*;

#[test]
fn a_leader_that_leaves_hands_everything_over_and_is_gone() {
    run(async {
        let (net, disks) = (Arc::default(), disks());
        let mut nodes = Vec::from(three(&net, &disks).await);
        let held = || nodes[0].control().current().shards.iter().all(|s| s.primary.is_some());
        eventually("every shard has a primary", held).await;
        let lanes = nodes.iter().map(|n| complete_handoffs(n.control(), n.name.clone()));
        let lanes: Vec<_> = lanes.map(tokio::spawn).collect();
        let leaver = nodes.remove(leader(&nodes).unwrap());
        let gone = leaver.name.clone();

        let started = clock::now();
        leaver.plane.leave(&gone, PATIENCE).await.unwrap();

        let took = clock::now().saturating_since(started);
        assert!(took < PATIENCE / 2, "it did not notice that it was gone: {took:?}");
        let left = nodes[0].control();
        eventually("it is no member", || !left.current().members.contains_key(&gone)).await;
        let serves =
            left.current().shards.iter().filter_map(|s| s.primary.clone()).collect::<Vec<_>>();
        assert_eq!(serves.iter().filter(|claim| claim.node == gone).count(), 0);
        let view = left.view();
        eventually("one voter of two", || view.borrow().voters.len() == 1).await;
        eventually("somebody leads", || leader(&nodes).is_some()).await;
        let event = Event::MemberLeft { node: gone };
        eventually("both are told", || nodes.iter().all(|n| n.heard(&event) == 1)).await;
        lanes.iter().for_each(tokio::task::JoinHandle::abort);
    });
}

/// Stands in for the lanes: every move of this node is done at once. An answer that was lost says
/// nothing about the command, so it looks again when nothing changed, as lanes do.
async fn complete_handoffs(control: ControlHandle, node: NodeId) {
    let mut states = control.state();
    loop {
        let state = Arc::clone(&states.borrow_and_update());
        for (shard, config) in state.shards() {
            let mine = config.primary.as_ref().is_some_and(|claim| claim.node == node);
            let Some(handoff) = config.handoff.as_ref().filter(|_| mine) else { continue };
            let to = state.claim_of(&handoff.to).unwrap();
            let command = Command::CompleteHandoff { shard, expect: config.expect(), to };
            if let Err(refused) = control.propose(command).await {
                println!("{node} completes the move of shard {shard} later: {refused}");
            }
        }
        timeout(Duration::from_millis(200), states.changed()).await.ok();
    }
}

#[test]
fn the_last_member_cannot_leave() {
    run(async {
        let (net, disk) = (Arc::default(), Disk::new());
        let alone = ClusterOptions { form_alone: true, ..options(&[], 0) };
        let n1 = Start::new(&net, "n1", &disk, alone).join().await.unwrap();

        let left = n1.plane.leave(&name("n1"), PATIENCE).await;

        assert_eq!(left, Err(LeaveError::LastMember { node: name("n1") }));
    });
}
