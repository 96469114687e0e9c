//! Consensus of one: a disk that fails, a message for another disk.

use mainstay_protocol::control::Grouping;
use mainstay_protocol::id::ClusterId;
use mainstay_protocol::message::ControlBody;

use super::*;
use crate::membership::{AskFailure, AskFuture};
use crate::storage::control::tests::store_that_fails;

struct Nobody;

impl PeerCaller for Nobody {
    fn ask(&self, _: &str, _: Option<NodeId>, _: ControlBody, _: Duration) -> AskFuture {
        let reason = "nobody is there".to_owned();
        Box::pin(std::future::ready(Err(AskFailure::NotSent { reason })))
    }
}

fn init() -> Command {
    Command::Init {
        cluster: ClusterId::from_bytes([7; 16]),
        shards: 4,
        standbys: 0,
        min_insync: 1,
        grouping: Grouping::new(),
    }
}

/// Consensus on disk `[1; 16]`, with nobody else, and what makes that disk fail.
async fn alone() -> (Consensus, Arc<AtomicBool>) {
    let (store, fails) = store_that_fails();
    let consensus = Consensus::start(Parts {
        node: NodeId::new("n1").unwrap(),
        disk: DiskId::from_bytes([1; 16]),
        addr: "n1".to_owned(),
        store,
        caller: Arc::new(Nobody),
        timing: Timing::default(),
        on_events: Arc::new(|_, _| ()),
    });
    (consensus.await.unwrap(), fails)
}

#[tokio::test]
async fn a_failed_disk_stops_consensus_and_is_told() {
    let (consensus, fails) = alone().await;
    consensus.initialize().await.unwrap();
    consensus.view().wait_for(|view| view.leading).await.unwrap();

    fails.store(true, Ordering::SeqCst);
    let written = consensus.write(init()).await;

    assert!(matches!(written, Err(WriteError::Stopped)), "{written:?}");
    let told = consensus.view().wait_for(|view| view.fatal.is_some()).await.is_ok();
    assert!(told);
    assert_eq!(consensus.state().borrow().cluster, None);
}

#[tokio::test]
async fn a_message_for_another_disk_is_refused() {
    let (consensus, _) = alone().await;
    let vote = openraft::raft::VoteRequest::new(openraft::Vote::new(9, 9), None);

    let wiped = DiskId::from_bytes([2; 16]).consensus_id();
    let other = encode(&Addressed { to: wiped, message: vote.clone() });
    let own = DiskId::from_bytes([1; 16]).consensus_id();
    let mine = encode(&Addressed { to: own, message: vote });

    assert!(consensus.handle(ConsensusCall::Vote, &other).await.is_err());
    assert!(consensus.handle(ConsensusCall::Vote, &mine).await.is_ok());
}
