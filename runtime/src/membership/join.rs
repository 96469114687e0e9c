//! The start of a node: come back, join, or form the first of a cluster.
//!
//! ```text
//!   data of a cluster -----------------------------> come back: register this start
//!   decided to form one, was interrupted ----------> finish that
//!   fresh: ask the join addresses, then            
//!       somebody belongs to a cluster -------------> register there, then keep its id, then follow
//!       enough fresh nodes see each other ---------> the one with the lowest name forms, the rest join
//!       otherwise ---------------------------------> ask again
//! ```
//!
//! The order on disk keeps a crash at any point harmless. Who forms writes down that it will
//! before anybody can hear of it, and finishes after a crash. Who joins is registered first and
//! keeps the cluster's id after; only then does it take part in consensus.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_protocol::backoff;
use mainstay_protocol::control::{Applied, Command, Member, MemberState, ProposeRefused};
use mainstay_protocol::id::ClusterId;
use mainstay_protocol::membership::{Bootstrap, Candidate, bootstrap};
use mainstay_protocol::message::{ControlAnswer, ControlBody, Reject};
use mainstay_protocol::time::Instant;
use tokio::time::timeout;

use super::{Agreement, AskFailure, JoinError, Known, PeerCaller};
use crate::clock;
use crate::config::ClusterOptions;

/// Between two rounds of questions.
const ROUND: backoff::Config =
    backoff::Config { base: Duration::from_millis(300), cap: Duration::from_secs(2) };
const ROUND_MIN: Duration = Duration::from_millis(50);
/// How long one question may take.
const ASK_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a registration may take: the asked member looks for the leader meanwhile.
const REGISTER_TIMEOUT: Duration = Duration::from_secs(6);
/// Addresses asked in one round.
const ASKED_MAX: usize = 64;
/// How long a registered node waits for the state before it registers again.
const STATE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a start needs.
#[derive(Clone)]
pub struct Joiner {
    /// The node, and whom it heard of.
    pub(crate) known: Arc<Known>,
    /// The control plane.
    pub(crate) agreement: Arc<dyn Agreement>,
    /// The way to others.
    pub(crate) caller: Arc<dyn PeerCaller>,
    /// Where to join, what to form.
    pub(crate) options: ClusterOptions,
    /// This node, as it registers.
    pub(crate) member: Member,
    /// How long a fresh node looks for a member, and how long a name may be in use.
    pub(crate) patience: Patience,
}

impl std::fmt::Debug for Joiner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Joiner").field("options", &self.options).finish_non_exhaustive()
    }
}

/// When a start gives up.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    /// A fresh node that reaches nobody.
    pub reach: Duration,
    /// A name that is in use: longer than a dead member takes to be noticed.
    pub name: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { reach: Duration::from_secs(60), name: Duration::from_secs(10) }
    }
}

/// Who answered in one round.
#[derive(Debug, Default)]
struct Round {
    answers: Vec<(String, Candidate)>,
    rejects: Vec<(String, Reject)>,
}

impl Joiner {
    /// Returns once this node is a registered member and holds the state.
    ///
    /// # Errors
    /// [`JoinError`]. A node that belongs to a cluster waits for it for ever; a fresh one gives up.
    pub async fn run(&self) -> Result<ClusterId, JoinError> {
        let founding = self.agreement.founding().await.map_err(disk)?;
        let cluster = match (self.known.me().cluster, founding) {
            (Some(cluster), _) => cluster,
            (None, Some(cluster)) => self.form(cluster).await?,
            (None, None) => match self.find().await? {
                Found::Cluster(cluster) => return Ok(cluster),
                Found::Nobody => self.form(new_cluster()?).await?,
            },
        };
        self.come_back(cluster).await?;
        Ok(cluster)
    }

    /// Forms a cluster, or finishes to.
    async fn form(&self, cluster: ClusterId) -> Result<ClusterId, JoinError> {
        tracing::info!(%cluster, "forming a new cluster");
        self.agreement.found(cluster).await.map_err(disk)?;
        let init = Command::Init {
            cluster,
            shards: self.options.shards,
            standbys: self.options.standbys,
            min_insync: (self.options.standbys + 1).min(2),
            grouping: self.known.me().grouping,
        };
        loop {
            match self.agreement.propose(init.clone()).await {
                Ok(_) => break,
                Err(ProposeRefused::Initialised { cluster: found }) if found == cluster => break,
                Err(ProposeRefused::NoLeader { .. }) => pause(0).await,
                Err(refused) => return Err(JoinError::Refused(refused)),
            }
        }
        self.agreement.keep(cluster).await.map_err(disk)?;
        self.known.set_cluster(cluster);
        Ok(cluster)
    }

    /// Registers this start with the cluster that the data belongs to.
    async fn come_back(&self, cluster: ClusterId) -> Result<(), JoinError> {
        let started = clock::now();
        for failures in 0.. {
            // asked even when this node could lead alone: its data may be in the wrong place, and
            // the others may have moved
            let contacts = self.contacts();
            let round = self.ask(&contacts).await;
            let ours = self.ours(&round, cluster)?;
            for (_, candidate) in &ours {
                self.agreement.learn(candidate);
            }
            let mut registered = None;
            if self.agreement.has_leader() && (ours.is_empty() || self.is_known()) {
                registered = self.judge(self.agreement.propose(self.register()).await, started)?;
            }
            if registered.is_none() {
                registered = self.register_through(&ours, started).await?;
            }
            if registered.is_some() && self.await_state().await {
                return Ok(());
            }
            log_now_and_then(failures, &contacts, &"the members of this node's own");
            pause(failures).await;
        }
        unreachable!("the range has no end")
    }

    /// Whether this node is a member as far as it knows. One that left hears of no new leader: those
    /// that are members register it.
    fn is_known(&self) -> bool {
        self.agreement.state().borrow().members.contains_key(&self.known.me().node)
    }

    /// Looks for a cluster to join, as long as it takes or is allowed to.
    async fn find(&self) -> Result<Found, JoinError> {
        let started = clock::now();
        let mut agreed_at = started;
        for failures in 0.. {
            let contacts = self.contacts();
            let round = self.ask(&contacts).await;
            if let Some((addr, min, max)) = round.version() {
                return Err(JoinError::WireVersion { addr, min, max });
            }
            for (_, candidate) in &round.answers {
                self.known.hear(candidate.clone());
            }
            match bootstrap(&self.known.me(), &self.known.heard()) {
                Ok(Bootstrap::Form) => return Ok(Found::Nobody),
                Ok(Bootstrap::Join { cluster, .. } | Bootstrap::Resume { cluster }) => {
                    agreed_at = clock::now();
                    if self.enter(cluster, started).await? {
                        return Ok(Found::Cluster(cluster));
                    }
                }
                Ok(Bootstrap::Wait(for_what)) => {
                    agreed_at = clock::now();
                    if self.give_up(started)? {
                        return Ok(Found::Nobody);
                    }
                    log_now_and_then(failures, &contacts, &for_what);
                }
                // who was heard a while ago may be gone: judge what lasts
                Err(error) if since(agreed_at) > self.patience.name => {
                    return Err(JoinError::Contradiction(error));
                }
                Err(error) => log_now_and_then(failures, &contacts, &error),
            }
            pause(failures).await;
        }
        unreachable!("the range has no end")
    }

    /// Whether to form a cluster alone, now that no member answered; an error when nothing can
    /// come of waiting.
    fn give_up(&self, started: Instant) -> Result<bool, JoinError> {
        let options = &self.options;
        if options.form_alone || options.expect > 0 {
            return Ok(options.form_alone);
        }
        if options.join.is_empty() {
            return Err(JoinError::NoCluster);
        }
        let patience = self.patience.reach;
        if since(started) > patience && self.known.heard().is_empty() {
            return Err(JoinError::NoMemberReachable { join: options.join.clone(), patience });
        }
        Ok(false)
    }

    /// Becomes a member of a cluster that was found; false is "try again".
    async fn enter(&self, cluster: ClusterId, started: Instant) -> Result<bool, JoinError> {
        let heard = self.known.heard().into_iter().filter(|them| them.cluster == Some(cluster));
        let members: Vec<_> = heard.map(|them| (them.peer_addr.clone(), them)).collect();
        if self.register_through(&members, started).await?.is_none() {
            return Ok(false);
        }
        self.agreement.keep(cluster).await.map_err(disk)?;
        self.known.set_cluster(cluster);
        if !self.await_state().await {
            self.come_back(cluster).await?;
        }
        Ok(true)
    }

    /// Registers again whenever the cluster took this node for dead. Ends when the node left, or
    /// when a newer start of it is registered.
    pub(crate) async fn stay(self) {
        let me = self.known.me();
        let mut state = self.agreement.state();
        let mut failures = 0;
        while state.changed().await.is_ok() {
            let down = loop {
                let state = Arc::clone(&state.borrow_and_update());
                match state.members.get(&me.node) {
                    Some(m) if (m.disk, m.boot) != (me.disk, me.boot) => return,
                    Some(m) if m.state == MemberState::Down => {}
                    Some(_) => break false,
                    None => return,
                }
                if self.agreement.propose(self.register()).await.is_ok() {
                    break true;
                }
                pause(failures).await;
                failures += 1;
            };
            if down {
                tracing::warn!("this node was taken for dead and is registered again");
                failures = 0;
            }
        }
    }

    /// Asks every address who it is.
    async fn ask(&self, addrs: &BTreeSet<String>) -> Round {
        let me = self.known.me();
        let asking = addrs.iter().take(ASKED_MAX).map(|addr| {
            let body = ControlBody::Discover(me.clone());
            let asking = self.caller.ask(addr, None, body, ASK_TIMEOUT);
            async move { (addr.clone(), asking.await) }
        });
        let mut round = Round::default();
        for (addr, answer) in join_all(asking).await {
            match answer {
                // a join list may name the node itself
                Ok(ControlAnswer::Candidate(them)) if them.disk == me.disk => {}
                Ok(ControlAnswer::Candidate(them)) => match them.check() {
                    Ok(()) => round.answers.push((addr, them)),
                    Err(error) => tracing::warn!(addr, %error, "an answer is not believed"),
                },
                Err(AskFailure::Rejected(reject)) => round.rejects.push((addr, reject)),
                Ok(_) | Err(_) => {}
            }
        }
        round
    }

    /// Whom to ask: the configured addresses, the members that are known, who asked this node.
    fn contacts(&self) -> BTreeSet<String> {
        let me = self.known.me();
        let mut contacts: BTreeSet<String> = self.options.join.iter().cloned().collect();
        let state = Arc::clone(&self.agreement.state().borrow());
        let others = state.members.iter().filter(|(node, _)| **node != me.node);
        contacts.extend(others.map(|(_, member)| member.peer_addr.clone()));
        contacts.extend(self.known.heard().into_iter().map(|candidate| candidate.peer_addr));
        contacts.remove(&me.peer_addr);
        contacts
    }

    /// The answers of this node's cluster; an error when only another one is there.
    fn ours(&self, round: &Round, own: ClusterId) -> Result<Vec<(String, Candidate)>, JoinError> {
        let ours = round.members_of(own);
        if !ours.is_empty() {
            return Ok(ours);
        }
        let other =
            |addr: &String, found| JoinError::OtherCluster { own, addr: addr.clone(), found };
        for (addr, candidate) in &round.answers {
            if let Some(found) = candidate.cluster
                && self.options.join.contains(addr)
            {
                return Err(other(addr, found));
            }
        }
        for (addr, reject) in &round.rejects {
            match reject {
                Reject::Cluster { accepter, .. } if self.options.join.contains(addr) => {
                    return Err(other(addr, *accepter));
                }
                _ => {}
            }
        }
        Ok(ours)
    }

    fn register(&self) -> Command {
        let me = self.known.me();
        Command::Register { node: me.node, member: self.member.clone(), grouping: me.grouping }
    }

    /// Asks members, one after the other, to have this node registered.
    async fn register_through(
        &self,
        members: &[(String, Candidate)],
        started: Instant,
    ) -> Result<Option<Applied>, JoinError> {
        for (addr, candidate) in members {
            let body = ControlBody::Propose(self.register());
            let to = Some(candidate.node.clone());
            match self.caller.ask(addr, to, body, REGISTER_TIMEOUT).await {
                Ok(ControlAnswer::Proposed(result)) => return self.judge(result, started),
                Ok(_) => {}
                Err(failure) => tracing::debug!(%addr, %failure, "could not register there"),
            }
        }
        Ok(None)
    }

    /// `None` is "try again".
    fn judge(
        &self,
        result: Result<Applied, ProposeRefused>,
        started: Instant,
    ) -> Result<Option<Applied>, JoinError> {
        match result {
            Ok(applied) => Ok(Some(applied)),
            Err(ProposeRefused::NoLeader { .. } | ProposeRefused::NotInitialised) => Ok(None),
            // an earlier process of this name may be dead and not yet noticed
            Err(ProposeRefused::NameInUse { node }) => {
                if since(started) < self.patience.name {
                    return Ok(None);
                }
                Err(JoinError::NameInUse { node })
            }
            Err(ProposeRefused::Grouping { kind }) => Err(JoinError::Grouping { kind }),
            Err(refused) => Err(JoinError::Refused(refused)),
        }
    }

    /// Waits until this start is in the state that is applied here.
    async fn await_state(&self) -> bool {
        let me = self.known.me();
        let mut state = self.agreement.state();
        let here = state.wait_for(|state| {
            state.members.get(&me.node).is_some_and(|m| (m.disk, m.boot) == (me.disk, me.boot))
        });
        timeout(STATE_TIMEOUT, here).await.is_ok_and(|state| state.is_ok())
    }
}

/// How the search for a cluster ended.
enum Found {
    /// This node is a member of it.
    Cluster(ClusterId),
    /// This node is to form one.
    Nobody,
}

impl Round {
    fn members_of(&self, cluster: ClusterId) -> Vec<(String, Candidate)> {
        let members = self.answers.iter().filter(|(_, them)| them.cluster == Some(cluster));
        members.cloned().collect()
    }

    fn version(&self) -> Option<(String, u16, u16)> {
        self.rejects.iter().find_map(|(addr, reject)| match reject {
            Reject::Version { min, max } => Some((addr.clone(), *min, *max)),
            _ => None,
        })
    }
}

fn since(moment: Instant) -> Duration {
    clock::now().saturating_since(moment)
}

fn disk(reason: String) -> JoinError {
    JoinError::Disk { reason }
}

fn new_cluster() -> Result<ClusterId, JoinError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| disk(error.to_string()))?;
    Ok(ClusterId::from_bytes(bytes))
}

/// Says what is waited for: at once, then every sixteenth time.
fn log_now_and_then(failures: u32, asked: &BTreeSet<String>, why: &dyn std::fmt::Display) {
    if failures.is_multiple_of(16) {
        let asked = asked.iter().take(ASKED_MAX).map(String::as_str).collect::<Vec<_>>().join(", ");
        tracing::info!(asked, "no cluster yet: waiting for {why}");
    }
}

async fn pause(failures: u32) {
    tokio::time::sleep(ROUND.delay(failures, fastrand::u64(..)).max(ROUND_MIN)).await;
}
