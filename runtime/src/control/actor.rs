//! The control leader's hands: asks the director what to propose, and proposes it.
//!
//! It looks whenever the state, a verdict or the leader changed, and on a slow tick, which is slower
//! when there was nothing to do. One round of work at a time, beside the actor; what changes meanwhile
//! starts the next round. A command that is refused is stale: the next look is at a newer state. On a
//! node that does not lead it rests.

use std::sync::Arc;
use std::time::Duration;

use actix::{
    Actor, ActorContext, ActorFutureExt, Addr, AsyncContext, Context, Handler, Message, WrapFuture,
};
use mainstay_protocol::control::director::{self, Config};
use mainstay_protocol::control::voters::{self, Change, Group};
use mainstay_protocol::control::{Command, ProposeRefused};
use mainstay_protocol::time::Instant;
use tokio::sync::watch;
use tokio::time::timeout;

use super::ControlHandle;
use crate::clock;
use crate::membership::LiveView;

/// How often the leader looks when nothing changed, and something is still to be done.
const TICK: Duration = Duration::from_millis(500);
/// How often it looks when nothing is.
const REST: Duration = Duration::from_secs(5);
/// How long a change of consensus members may take before the leader looks again.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a new cluster waits for the members that it expects before it places its shards.
const FORMING: Duration = Duration::from_secs(10);

/// What the actor is made of.
#[derive(Debug)]
pub struct Parts {
    /// The control plane.
    pub control: ControlHandle,
    /// What this node thinks of the others.
    pub live: watch::Receiver<Arc<LiveView>>,
    /// Voters wanted: 1, 3 or 5.
    pub voters: u8,
    /// Members that a new cluster waits for before it places its shards.
    pub expect: u32,
}

/// Runs the director while this node leads.
#[derive(Debug)]
pub struct ControlActor {
    parts: Parts,
    /// A round of work is under way.
    busy: bool,
    /// Something changed since that round began.
    stale: bool,
    /// Since when this node leads.
    leads_since: Option<Instant>,
    /// When it found nothing to do, and nobody to wait for.
    at_rest: Option<Instant>,
}

/// Something may have to be done.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Look;

/// The node stops.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Stop;

/// What one round does.
#[derive(Debug, Default)]
struct Work {
    commands: Vec<Command>,
    change: Option<Change>,
}

impl ControlActor {
    /// Starts the actor on the actix arbiter of the caller.
    pub fn start(parts: Parts) -> Addr<Self> {
        let actor = Self { parts, busy: false, stale: false, leads_since: None, at_rest: None };
        Actor::start(actor)
    }

    fn look(&mut self, ctx: &mut Context<Self>) {
        if self.busy {
            self.stale = true;
            return;
        }
        (self.stale, self.at_rest) = (false, None);
        let view = self.parts.control.view().borrow().clone();
        if !view.leading {
            self.leads_since = None;
            return;
        }
        let since = *self.leads_since.get_or_insert_with(clock::now);
        let work = self.plan(since);
        if work.commands.is_empty() && work.change.is_none() {
            // that a member on its way to a vote has come near is no news, so it is looked for
            let near = self.parts.control.consensus().caught_up();
            let formed = clock::now().saturating_since(since) > FORMING;
            self.at_rest = (formed && view.learners.is_subset(&near)).then(clock::now);
            return;
        }
        self.busy = true;
        let control = self.parts.control.clone();
        let round = async move { carry_out(&control, work).await }.into_actor(self);
        ctx.spawn(round.map(|(), actor, ctx| {
            actor.busy = false;
            if actor.stale {
                actor.look(ctx);
            }
        }));
    }

    fn plan(&self, leads_since: Instant) -> Work {
        let control = &self.parts.control;
        let state = control.current();
        let leads_for = clock::now().saturating_since(leads_since);
        let expected = if leads_for < FORMING { self.parts.expect as usize } else { 0 };
        let config = Config { members_min: expected, ..Config::default() };
        let commands = director::plan(&state, &self.parts.live.borrow(), config);
        let view = control.view().borrow().clone();
        let group = Group {
            leader: view.leader.unwrap_or_default(),
            voters: view.voters,
            learners: view.learners,
            caught_up: control.consensus().caught_up(),
            changing: view.changing,
        };
        let initialised = state.cluster.is_some();
        let change = initialised.then(|| voters::plan(&state, &group, self.parts.voters)).flatten();
        Work { commands, change }
    }
}

impl Actor for ControlActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Context<Self>) {
        ctx.run_interval(TICK, |actor, ctx| {
            let now = clock::now();
            if actor.at_rest.is_none_or(|at| now.saturating_since(at) >= REST) {
                actor.look(ctx);
            }
            let control = actor.parts.control.clone();
            tokio::spawn(async move { control.consensus().report().await });
        });
        let news = (self.parts.control.state(), self.parts.control.view(), self.parts.live.clone());
        tokio::spawn(pass_on(news, ctx.address()));
    }
}

impl Handler<Look> for ControlActor {
    type Result = ();

    fn handle(&mut self, _: Look, ctx: &mut Context<Self>) {
        self.look(ctx);
    }
}

impl Handler<Stop> for ControlActor {
    type Result = ();

    fn handle(&mut self, _: Stop, ctx: &mut Context<Self>) {
        ctx.stop();
    }
}

type News<A, B, C> = (watch::Receiver<A>, watch::Receiver<B>, watch::Receiver<C>);

/// Tells the actor when anything changed. A full mailbox has a look in it already.
async fn pass_on<A, B, C>((mut a, mut b, mut c): News<A, B, C>, actor: Addr<ControlActor>) {
    loop {
        let changed = tokio::select! {
            changed = a.changed() => changed,
            changed = b.changed() => changed,
            changed = c.changed() => changed,
        };
        if changed.is_err() || !actor.connected() {
            return;
        }
        actor.try_send(Look).unwrap_or_default();
    }
}

async fn carry_out(control: &ControlHandle, work: Work) {
    for command in work.commands {
        match control.propose_here(command).await {
            Ok(_) => {}
            Err(ProposeRefused::Stale) => return,
            Err(refused) => {
                tracing::debug!(%refused, "a planned command was refused");
                return;
            }
        }
    }
    if let Some(change) = work.change {
        tracing::info!(?change, "changing the consensus members");
        // dropped when no quorum answers; whatever came of it, the next look sees it
        if timeout(CHANGE_TIMEOUT, change_members(control, change)).await.is_err() {
            tracing::warn!("a change of consensus members takes long");
        }
    }
}

async fn change_members(control: &ControlHandle, change: Change) {
    let consensus = control.consensus();
    let result = match change {
        Change::Add(node) => {
            let state = control.current();
            let Some(member) = state.members.get(&node) else { return };
            consensus.add_learner(member.disk, &node, &member.peer_addr).await
        }
        Change::SetVoters(voters) => consensus.set_voters(voters).await,
        Change::Remove(gone) => consensus.remove(gone).await,
    };
    if let Err(error) = result {
        tracing::debug!(?error, "the consensus members did not change");
    }
}
