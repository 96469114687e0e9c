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

use futures_util::future::{join, join_all};
use mainstay_protocol::backoff;
use mainstay_protocol::control::Member;
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
/// How long the leader is waited for, which does not answer when it is dead.
const LEADER_TIMEOUT: Duration = Duration::from_millis(20);
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

impl Vacancy {
    fn question(&self) -> ControlBody {
        ControlBody::IsDead { node: self.node.clone(), boot: self.boot }
    }
}

/// Whether this start of a node is dead to somebody who thinks this of the others. Who knows of a newer
/// start heard of it from a leader: the one that asks is merely behind.
pub(super) fn is_dead(live: &LiveView, node: &NodeId, boot: BootId) -> bool {
    live.get(node) == Some(&(boot, Verdict::Dead))
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

    /// Whether this node may stand, as long as the leader is dead in the start that it was.
    fn heir(&self, vacancy: &Vacancy) -> Option<Heir> {
        let state = self.control.current();
        let restarted = |member: &Member| member.boot != vacancy.boot;
        if state.members.get(&vacancy.node).is_some_and(restarted) {
            return None;
        }
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
            if !self.stand(vacancy, &heir, round).await {
                return;
            }
            round += 1;
        }
    }

    /// Waits for its turn, and stands, unless it voted for another meanwhile: that one gets its time.
    /// `false` when there is nothing to stand for any more.
    async fn stand(&self, vacancy: &Vacancy, heir: &Heir, round: u32) -> bool {
        let consensus = self.control.consensus();
        // not of the view, which is behind while a vote is written
        let Some(before) = consensus.term().await else { return false };
        if timeout(heir.delay(round), self.leads(vacancy.leader)).await.is_ok() {
            return false;
        }
        let Some(term) = consensus.term().await else { return false };
        if self.heir(vacancy).is_none() {
            return false;
        }
        if term == before {
            tracing::info!(leader = %vacancy.node, round, "the leader is dead: standing for election");
            consensus.elect().await;
        }
        true
    }

    /// Waits until another leads than `leader`. `None` when consensus stopped.
    async fn leads(&self, leader: u64) -> Option<()> {
        let mut view = self.control.view();
        let another = |view: &View| view.leader.is_some_and(|now| now != leader);
        view.wait_for(another).await.ok().map(drop)
    }

    /// Whether a majority of the voters takes the leader for dead, and nobody answers in its place.
    async fn most_agree(&self, vacancy: &Vacancy, heir: &Heir) -> bool {
        let state = self.control.current();
        let voters =
            state.members.iter().filter(|(_, m)| heir.peers.contains(&m.disk.consensus_id()));
        let questions = voters.map(|(node, member)| {
            let to = Some(node.clone());
            self.caller.ask(&member.peer_addr, to, vacancy.question(), ASK_TIMEOUT)
        });
        let (answers, answers_itself) =
            join(join_all(questions), self.leader_answers(vacancy)).await;
        let agree = answers.iter().filter(|a| matches!(a, Ok(ControlAnswer::IsDead(true)))).count();
        agree >= heir.needed && !answers_itself
    }

    /// Whether the leader's node answers, in whichever start: it leads on, or takes part again, and what
    /// this node knows of its start is out of date.
    async fn leader_answers(&self, vacancy: &Vacancy) -> bool {
        let leader = self.control.consensus().find(vacancy.leader);
        let Some((node, addr)) = leader else { return false };
        self.caller.ask(&addr, Some(node), vacancy.question(), LEADER_TIMEOUT).await.is_ok()
    }
}
