//! Faults, as they strike, and stories, as they are told.

use std::hash::Hash as _;
use std::time::Duration;

use mainstay_protocol::id::DiskId;

use super::{Coming, FAULTY, TICK, World};
use crate::cluster_sim::disk::Disk;
use crate::cluster_sim::faults::{Fault, What, Who};
use crate::cluster_sim::invariants::Broken;
use crate::cluster_sim::node::{Node, name};

impl World {
    // -- faults --

    pub(super) fn start(&mut self, at: usize) {
        self.nodes[at].start();
    }

    pub(super) fn kill(&mut self, at: usize, span: Duration) {
        self.paused.remove(&at).into_iter().flatten().for_each(|coming| {
            // The timers of the node go on with its next process.
            if matches!(coming, Coming::Tick(_)) {
                self.after(TICK, coming);
            }
        });
        let landed = self.rng.usize(0..4);
        self.nodes[at].kill();
        self.nodes[at].disk.cut_power(landed);
        if self.sees_sockets {
            self.plane.close(&name(at));
        }
        self.after(span, Coming::Start(at));
    }

    /// A disk may be lost while everybody in the agreed set has theirs: more at once is outside of
    /// what is promised.
    pub(super) fn may_wipe(&self, at: usize) -> bool {
        let config = self.plane.shard();
        let intact = |node: &Node| {
            config.in_sync.get(&node.name) == Some(&node.disk.id)
                && node.disk.synced.log.len() >= self.committed.len()
        };
        let left = self.nodes.iter().filter(|node| node.at != at && intact(node)).count();
        let all = config
            .in_sync
            .keys()
            .all(|member| self.nodes.iter().any(|node| node.name == *member && intact(node)));
        all && left >= usize::from(self.settings.min_insync).saturating_sub(1).max(1)
    }

    pub(super) fn fault(&mut self, fault: Fault) -> Result<(), Broken> {
        format!("{fault:?}").hash(&mut self.digest);
        self.counts.faults += 1;
        match fault {
            Fault::Kill(at, span) => self.kill(at, span),
            Fault::Wipe(at, span) => {
                if self.may_wipe(at) {
                    self.counts.wipes += 1;
                    self.kill(at, span);
                    self.generations += 1;
                    self.nodes[at].disk = Disk::new(DiskId::from_bytes([self.generations; 16]));
                }
            }
            Fault::PowerLoss => {
                for at in 0..self.nodes.len() {
                    let span = Duration::from_millis(self.rng.u64(1..60));
                    self.kill(at, span);
                }
            }
            Fault::Pause(at, span) => {
                self.paused.entry(at).or_default();
                self.after(span, Coming::Resume(at));
            }
            Fault::Cut(from, to, span) => {
                self.cuts.insert((from, to), self.now + span);
            }
            Fault::Isolate(at, from_plane, span) => self.isolate(at, from_plane, span),
            Fault::SlowDisk(at, span) => {
                self.slow.insert(at, self.now + span);
            }
            Fault::PlaneAway(span) => self.plane_away = self.now + span.min(FAULTY / 5),
            Fault::WallJump(at) => self.walls[at] = self.rng.u64(900_000..1_100_000),
        }
        self.check()
    }

    pub(super) fn isolate(&mut self, at: usize, from_plane: bool, span: Duration) {
        let until = self.now + span;
        for other in (0..self.nodes.len()).filter(|other| *other != at) {
            self.cuts.insert((at, other), until);
            self.cuts.insert((other, at), until);
        }
        if from_plane {
            self.plane_cuts.insert(at, until);
        }
    }

    pub(super) fn resume(&mut self, at: usize) -> Result<(), Broken> {
        let Some(mut later) = self.paused.remove(&at) else { return Ok(()) };
        // A timer may fire after messages that came later, and before earlier ones.
        self.rng.shuffle(&mut later);
        later.into_iter().try_for_each(|coming| self.take(coming))
    }

    // -- stories --

    pub(super) fn tell(&mut self, scene: usize) -> Result<(), Broken> {
        let Some(scene) = self.story.and_then(|scenes| scenes.get(scene)) else { return Ok(()) };
        if scene.at == self.story.map_or(0, |scenes| scenes[0].at) {
            self.first = self.who(Who::Primary);
        }
        let at = self.who(scene.who);
        let span = |millis| Duration::from_millis(millis);
        match scene.what {
            What::Kill(millis) => self.fault(Fault::Kill(at, span(millis))),
            What::Wipe(millis) => self.fault(Fault::Wipe(at, span(millis))),
            What::Pause(millis) => self.fault(Fault::Pause(at, span(millis))),
            What::Isolate(millis) => self.fault(Fault::Isolate(at, true, span(millis))),
            What::Lonely(millis) => self.fault(Fault::Isolate(at, false, span(millis))),
            What::Deaf(to, millis) => {
                let from = self.who(to);
                self.fault(Fault::Cut(from, at, span(millis)))
            }
        }
    }

    pub(super) fn who(&self, who: Who) -> usize {
        let primary = self.plane.shard().primary.as_ref();
        match who {
            Who::Primary => {
                let at = primary
                    .and_then(|claim| self.nodes.iter().position(|node| node.name == claim.node));
                at.unwrap_or(0)
            }
            Who::First => self.first,
            Who::Other(nth) => (self.first + 1 + nth) % self.nodes.len(),
        }
    }
}
