//! Stands for election when most voters take the leader for dead.
//!
//! ```text
//!   verdicts (membership) --+--> vacancy? --> ask the other voters --> Consensus::elect
//!   leader, voters (view) --+
//! ```
//!
//! The rule is `succession` in the protocol crate; here are its clock and its questions. It runs
//! beside the control actor, on every node, and rests while the leader lives.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_protocol::backoff;
use mainstay_protocol::control::succession::{Heir, ROUNDS};
use mainstay_protocol::failure_detector::Verdict;
use mainstay_protocol::id::{BootId, NodeId};
use mainstay_protocol::message::{ControlAnswer, ControlBody};
use tokio::sync::watch;
use tokio::time::timeout;

use super::ControlHandle;
use super::consensus::View;
use crate::membership::{LiveView, PeerCaller};

/// How long a voter is waited for that is asked whether the leader is dead.
const ASK_TIMEOUT: Duration = Duration::from_millis(100);
/// Between two such questions, while too few agree: at first, when verdicts are a moment apart, and
/// later, when this node alone is cut off from the leader.
const ASK_AGAIN: backoff::Config =
    backoff::Config { base: Duration::from_millis(20), cap: Duration::from_millis(500) };

/// What a succession is made of.
pub(super) struct Succession {
    pub(super) control: ControlHandle,
    pub(super) caller: Arc<dyn PeerCaller>,
    pub(super) live: watch::Receiver<Arc<LiveView>>,
}

/// A leader that this node takes for dead.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Vacancy {
    leader: u64,
    node: NodeId,
    boot: BootId,
}

/// Whether a start of a node is dead to somebody who thinks this of the others: it was found dead,
/// or is known to have been followed by another start.
pub(super) fn is_dead(live: &LiveView, node: &NodeId, boot: BootId) -> bool {
    live.get(node).is_some_and(|(judged, verdict)| {
        *judged > boot || *judged == boot && *verdict == Verdict::Dead
    })
}

impl Succession {
    /// Runs until consensus stops.
    pub(super) async fn run(mut self) {
        let mut view = self.control.view();
        loop {
            let now = view.borrow_and_update().clone();
            if let Some(vacancy) = self.vacancy(&now) {
                // what it leaves is for the timers of consensus
                self.fill(&vacancy).await;
            }
            tokio::select! {
                changed = view.changed() => if changed.is_err() { return },
                changed = self.live.changed() => if changed.is_err() { return },
            }
        }
    }

    /// The leader, when it is dead to this node.
    fn vacancy(&self, view: &View) -> Option<Vacancy> {
        let leader = view.leader.filter(|_| !view.leading)?;
        let state = self.control.current();
        let mut members = state.members.iter();
        let (node, member) = members.find(|(_, m)| m.disk.consensus_id() == leader)?;
        let vacancy = Vacancy { leader, node: node.clone(), boot: member.boot };
        is_dead(&self.live.borrow(), &vacancy.node, vacancy.boot).then_some(vacancy)
    }

    fn heir(&self, vacancy: &Vacancy) -> Option<Heir> {
        let state = self.control.current();
        let live = Arc::clone(&self.live.borrow());
        let dead = |id: u64| {
            let mut members = state.members.iter();
            members
                .find(|(_, member)| member.disk.consensus_id() == id)
                .is_none_or(|(node, member)| is_dead(&live, node, member.boot))
        };
        let voters = self.control.view().borrow().voters.clone();
        Heir::of(self.control.consensus().id(), vacancy.leader, &voters, dead)
    }

    /// Stands a few times, until somebody leads or the leader turns out to live.
    async fn fill(&self, vacancy: &Vacancy) {
        let (mut round, mut refusals) = (0, 0);
        while round < ROUNDS {
            let Some(heir) = self.heir(vacancy) else { return };
            if !self.most_agree(vacancy, &heir).await {
                let pause = ASK_AGAIN.delay(refusals, fastrand::u64(..));
                refusals += 1;
                if timeout(pause, self.leads(vacancy.leader)).await.is_ok() {
                    return;
                }
                continue;
            }
            let term = self.control.view().borrow().term;
            if timeout(heir.delay(round), self.leads(vacancy.leader)).await.is_ok() {
                return;
            }
            // who voted for another candidate meanwhile gives it its time
            if self.control.view().borrow().term == term {
                tracing::info!(leader = %vacancy.node, round, "the leader is dead: standing for election");
                self.control.consensus().elect().await;
            }
            round += 1;
        }
    }

    /// Waits until another leads than `leader`. `None` when consensus stopped.
    async fn leads(&self, leader: u64) -> Option<()> {
        let mut view = self.control.view();
        let another = |view: &View| view.leader.is_some_and(|now| now != leader);
        view.wait_for(another).await.ok().map(drop)
    }

    async fn most_agree(&self, vacancy: &Vacancy, heir: &Heir) -> bool {
        let state = self.control.current();
        let voters =
            state.members.iter().filter(|(_, m)| heir.peers.contains(&m.disk.consensus_id()));
        let questions = voters.map(|(node, member)| {
            let body = ControlBody::IsDead { node: vacancy.node.clone(), boot: vacancy.boot };
            self.caller.ask(&member.peer_addr, Some(node.clone()), body, ASK_TIMEOUT)
        });
        let answers = join_all(questions).await;
        let agree = answers.iter().filter(|a| matches!(a, Ok(ControlAnswer::IsDead(true)))).count();
        agree >= heir.needed
    }
}
