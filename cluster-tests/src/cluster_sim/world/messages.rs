//! The network, the control plane's ear, and the clients.

use std::hash::Hash as _;
use std::time::Duration;

use mainstay_protocol::time::Instant;

use super::{Coming, FAULTY, HEALING, QUIET, World};
use crate::cluster_sim::clients::{Clients, End};
use crate::cluster_sim::invariants::{Broken, View};
use crate::cluster_sim::node::name;
use crate::cluster_sim::node::wire::{Reply, To, Wire};

impl World {
    // -- the network --

    pub(super) fn send(&mut self, from: usize, to: To, wire: &Wire) {
        (from, format!("{to:?}"), self.now.as_nanos()).hash(&mut self.digest);
        let now = self.now;
        let is_cut = match to {
            To::Node(to) => self.cuts.get(&(from, to)).is_some_and(|until| now < *until),
            To::Plane => self.cut_from_plane(from),
            To::Client(_) => false,
        };
        let lost = self.rng.u8(0..100) < self.lossy;
        if is_cut || lost {
            self.counts.lost += 1;
            return;
        }
        self.counts.messages += 1;
        let times = if self.rng.u8(0..50) == 0 { 2 } else { 1 };
        for _ in 0..times {
            let span = self.latency();
            self.after(span, Coming::Message(to, Some(from), wire.clone()));
        }
    }

    pub(super) fn latency(&mut self) -> Duration {
        let long = self.rng.u8(0..60) == 0;
        Duration::from_micros(if long { self.rng.u64(0..40_000) } else { self.rng.u64(100..1_500) })
    }

    pub(super) fn cut_from_plane(&self, at: usize) -> bool {
        self.now < self.plane_away
            || self.plane_cuts.get(&at).is_some_and(|until| self.now < *until)
    }

    // -- the control plane --

    pub(super) fn plane_hears(&mut self, from: usize, wire: Wire) {
        if self.cut_from_plane(from) {
            return;
        }
        let version = self.plane.state().version;
        match wire {
            Wire::Register(disk, boot) => {
                self.plane.register(&name(from), disk, boot, self.now);
            }
            Wire::Beat(boot, known) => {
                self.plane.beat(&name(from), boot, self.now);
                if known < version {
                    self.send_map(from);
                }
            }
            Wire::Propose(claim, expect, set) => self.plane.propose(claim, expect, set),
            Wire::Complete(expect, to) => self.plane.complete(expect, to),
            _ => {}
        }
        if self.plane.state().version != version {
            self.plane.plan(self.now);
            self.publish();
        }
    }

    pub(super) fn publish(&mut self) {
        (0..self.nodes.len()).for_each(|at| self.send_map(at));
    }

    pub(super) fn send_map(&mut self, at: usize) {
        if self.cut_from_plane(at) || self.rng.u8(0..100) < self.lossy {
            return;
        }
        let map = Wire::Map(self.plane.state().clone());
        let span = self.latency();
        self.after(span, Coming::Message(To::Node(at), None, map));
    }

    // -- clients --

    pub(super) fn client_begins(&mut self, id: u64) {
        let at = usize::try_from(id).unwrap_or(0);
        let quiet = self.now > Instant::ZERO + FAULTY + HEALING.saturating_sub(QUIET);
        if self.clients.all[at].op.is_none() && !quiet {
            self.counts.ops += 1;
            self.clients.begin(at, &mut self.rng);
            self.ask(at);
        }
    }

    /// Sends the present attempt of a client.
    pub(super) fn ask(&mut self, at: usize) {
        let client = &self.clients.all[at];
        let Some(op) = &client.op else { return };
        let (call, target) = (op.call.clone(), client.target);
        let patience = Clients::patience(&mut self.rng);
        self.after(patience, Coming::GivesUp(at as u64, call.id));
        if self.rng.u8(0..100) >= self.lossy {
            let span = self.latency();
            let request = Wire::Request(call, patience.saturating_sub(span));
            self.after(span, Coming::Message(To::Node(target), None, request));
        }
    }

    pub(super) fn client_hears(
        &mut self,
        id: u64,
        call: u64,
        reply: Option<Reply>,
    ) -> Result<(), Broken> {
        let at = usize::try_from(id).unwrap_or(0);
        let before = self.clients.all[at].op.as_ref().is_some_and(|op| op.call.id == call);
        if !before {
            return Ok(());
        }
        let Some((op, end)) = self.clients.handle(at, call, reply, &mut self.rng) else {
            self.clients.again(at);
            self.ask(at);
            return Ok(());
        };
        match end {
            End::Shown(_) => self.counts.shown += 1,
            End::Unknown => self.counts.unknown += 1,
            End::NotExecuted => self.counts.not_executed += 1,
        }
        (op.call.value, format!("{end:?}")).hash(&mut self.digest);
        let span = Duration::from_micros(self.rng.u64(100..8_000));
        self.after(span, Coming::Client(id));
        let (nodes, plane, committed, now) = (&self.nodes, &self.plane, &self.committed, self.now);
        let min_insync = usize::from(self.settings.min_insync);
        let view = View { nodes, plane, committed, now, min_insync };
        self.invariants.ask(|invariant| invariant.ended(&op, &end, &view))
    }
}
