//! Who is alive: a verdict per peer, from heartbeats, closed sockets and silence.
//!
//! Like judging from the quiet of a house whether anybody is in: a light that was just switched
//! off says little, a long quiet says more, and a listener who nodded off may say nothing at all.
//!
//! ```text
//!              silent for suspect_after,
//!              or its socket closed              silent for dead_after,
//!   +-------+  ------------------->  +---------+ or closed for closed_after  +------+
//!   | Alive |                        | Suspect | --------------------------> | Dead |
//!   +-------+  <-------------------  +---------+                             +------+
//!       ^              heard                                                    |
//!       +------------------------------- heard ---------------------------------+
//! ```
//!
//! * Alive: give it shards, route to it. Suspect: give it nothing new. Dead: the control leader
//!   proposes that it is down. No verdict is ever *safe* to act on alone: epochs fence.
//! * A closed socket starts detection sooner. It says that a connection died, not the process.
//! * Verdicts change in [`Detector::handle_timeout`] only, which first looks at its own lateness:
//!   time in which this process did not run is nobody's silence, and after a long pause everyone
//!   starts afresh, before anyone is judged (protocol.md 2.3; the local health of Lifeguard,
//!   Dadgar, Phillips, Currey, DSN 2018).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::id::{BootId, NodeId};
use crate::time::Instant;

/// When silence means what.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// How often the detector wants [`Detector::handle_timeout`]: each heartbeat. Whoever refuses
    /// connections is to be looked at when that has lasted `closed_after`.
    pub tick: Duration,
    /// Silence after which a peer is suspect: several heartbeats.
    pub suspect_after: Duration,
    /// Silence after which it is dead. Short, and a busy machine kills healthy peers; long, and
    /// its shards are away that much longer.
    pub dead_after: Duration,
    /// How long after it refused a connection it is dead, when nothing is heard meanwhile: nobody
    /// listens at its address any more.
    pub closed_after: Duration,
    /// A lateness of the detector itself after which it knows nothing about anyone.
    pub pause: Duration,
}

impl Config {
    /// The bounds for peers that send every `heartbeat` and are dead after `dead_after` of
    /// silence.
    pub fn new(heartbeat: Duration, dead_after: Duration) -> Self {
        Self {
            tick: heartbeat,
            suspect_after: dead_after / 2,
            dead_after,
            closed_after: (heartbeat / 2).min(dead_after),
            pause: dead_after / 2,
        }
    }
}

/// What is thought of a peer. See the picture above.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// Heard from lately.
    Alive,
    /// Silent for a while, or its connection closed.
    Suspect,
    /// Silent for so long that it counts as gone.
    Dead,
}

/// A verdict changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changed {
    /// The peer.
    pub node: NodeId,
    /// The start that is judged; another one is another process.
    pub boot: BootId,
    /// What is thought of it from here on.
    pub verdict: Verdict,
}

#[derive(Debug)]
struct Peer {
    boot: BootId,
    heard_at: Instant,
    closed_at: Option<Instant>,
    verdict: Verdict,
}

/// Judges the peers of one node.
#[derive(Debug)]
pub struct Detector {
    config: Config,
    peers: BTreeMap<NodeId, Peer>,
    ticked_at: Instant,
    changes: VecDeque<Changed>,
}

impl Detector {
    /// A detector that watches nobody yet.
    pub const fn new(config: Config, now: Instant) -> Self {
        Self { config, peers: BTreeMap::new(), ticked_at: now, changes: VecDeque::new() }
    }

    /// Its bounds.
    pub const fn config(&self) -> Config {
        self.config
    }

    /// Starts to watch a peer, or its newer start. It has the full time to be heard first. An
    /// older start than the watched one is ignored.
    pub fn watch(&mut self, node: &NodeId, boot: BootId, now: Instant) {
        if self.peers.get(node).is_some_and(|peer| peer.boot >= boot) {
            return;
        }
        let peer = Peer { boot, heard_at: now, closed_at: None, verdict: Verdict::Alive };
        let before = self.peers.insert(node.clone(), peer);
        if before.is_some_and(|peer| peer.verdict != Verdict::Alive) {
            let verdict = Verdict::Alive;
            self.changes.push_back(Changed { node: node.clone(), boot, verdict });
        }
    }

    /// Stops to watch a peer that is no member any more.
    pub fn forget(&mut self, node: &NodeId) {
        self.peers.remove(node);
        self.changes.retain(|change| change.node != *node);
    }

    /// Something came from a peer: proof that it lives. A newer start than the watched one is
    /// watched from here on; an older one proves nothing; strangers are ignored.
    pub fn handle_heartbeat(&mut self, node: &NodeId, boot: BootId, now: Instant) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        if boot > peer.boot {
            self.watch(node, boot, now);
        } else if boot == peer.boot {
            peer.heard_at = peer.heard_at.max(now);
            peer.closed_at = None;
            self.changes.extend(peer.judge(node, &self.config, now));
        }
    }

    /// The connection to a peer closed, or it refused one. A repeated hint changes nothing.
    pub fn handle_closed(&mut self, node: &NodeId, boot: BootId, now: Instant) {
        let Some(peer) = self.peers.get_mut(node).filter(|peer| peer.boot == boot) else { return };
        peer.closed_at.get_or_insert(now);
    }

    /// Time passed: first the detector's own lateness, then everyone else's silence.
    pub fn handle_timeout(&mut self, now: Instant) {
        let late = now.saturating_since(self.ticked_at + self.config.tick);
        self.ticked_at = self.ticked_at.max(now);
        for (node, peer) in &mut self.peers {
            if late > self.config.pause {
                peer.heard_at = now;
                peer.closed_at = None;
            } else {
                peer.heard_at = (peer.heard_at + late).min(now);
                peer.closed_at = peer.closed_at.map(|at| (at + late).min(now));
            }
            self.changes.extend(peer.judge(node, &self.config, now));
        }
    }

    /// When [`Self::handle_timeout`] is due: at the next tick, or before it, when a suspect's time
    /// is up. Being late is noticed, so it must not be armed loosely.
    pub fn poll_timeout(&self) -> Instant {
        let suspects = self.peers.values().filter(|peer| peer.verdict == Verdict::Suspect);
        let dead_at = suspects.map(|peer| match peer.closed_at {
            Some(at) => (at + self.config.closed_after).min(peer.heard_at + self.config.dead_after),
            None => peer.heard_at + self.config.dead_after,
        });
        dead_at.min().map_or(self.next_tick(), |at| at.min(self.next_tick()))
    }

    /// When it is due, whoever is suspect.
    pub fn next_tick(&self) -> Instant {
        self.ticked_at + self.config.tick
    }

    /// The next change of a verdict.
    pub fn poll_effect(&mut self) -> Option<Changed> {
        self.changes.pop_front()
    }

    /// What is thought of a peer; `None` for a stranger.
    pub fn verdict(&self, node: &NodeId) -> Option<Verdict> {
        self.peers.get(node).map(|peer| peer.verdict)
    }

    /// The peers, the start that is judged, and the verdict.
    pub fn verdicts(&self) -> impl Iterator<Item = (&NodeId, BootId, Verdict)> {
        self.peers.iter().map(|(node, peer)| (node, peer.boot, peer.verdict))
    }
}

impl Peer {
    /// Passes the verdict of this moment; says so when it is another one than before.
    fn judge(&mut self, node: &NodeId, config: &Config, now: Instant) -> Option<Changed> {
        let silence = now.saturating_since(self.heard_at);
        let closed = self.closed_at.map(|at| now.saturating_since(at));
        let gone = closed.is_some_and(|span| span >= config.closed_after);
        let verdict = if silence >= config.dead_after || gone {
            Verdict::Dead
        } else if silence >= config.suspect_after || closed.is_some() {
            Verdict::Suspect
        } else {
            Verdict::Alive
        };
        if verdict == self.verdict {
            return None;
        }
        self.verdict = verdict;
        Some(Changed { node: node.clone(), boot: self.boot, verdict })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HEARTBEAT: u64 = 100;
    const DEAD_AFTER: u64 = 1_000;
    const BOOT: BootId = BootId(7);

    #[test]
    fn a_suspect_is_looked_at_when_its_time_is_up_and_not_at_the_tick_after_it() {
        let mut scene = Scene::new(2);
        scene.run(HEARTBEAT, &[0, 1]);
        scene.now += 30;
        scene.hear(0);
        let silent_from = scene.now;
        assert_eq!(scene.detector.poll_timeout(), scene.detector.next_tick());

        while scene.detector.verdict(&scene.peers[0]) != Some(Dead) {
            scene.now = scene.detector.poll_timeout().as_nanos() / 1_000_000;
            scene.hear(1);
            scene.detector.handle_timeout(Instant::from_millis(scene.now));
        }

        assert_eq!(scene.now, silent_from + DEAD_AFTER);
        assert_eq!(scene.detector.verdict(&scene.peers[1]), Some(Alive));
    }

    struct Scene {
        detector: Detector,
        now: u64,
        peers: Vec<NodeId>,
    }

    impl Scene {
        fn new(peers: usize) -> Self {
            let config =
                Config::new(Duration::from_millis(HEARTBEAT), Duration::from_millis(DEAD_AFTER));
            let mut detector = Detector::new(config, Instant::ZERO);
            let peers: Vec<_> =
                (0..peers).map(|at| NodeId::new(&format!("n{at}")).unwrap()).collect();
            for peer in &peers {
                detector.watch(peer, BOOT, Instant::ZERO);
            }
            Self { detector, now: 0, peers }
        }

        /// Runs the detector, on time, for `millis`; the peers in `alive` are heard.
        fn run(&mut self, millis: u64, alive: &[usize]) {
            let end = self.now + millis;
            while self.now < end {
                self.now += HEARTBEAT / 2;
                if (end - self.now).is_multiple_of(HEARTBEAT) {
                    for &peer in alive {
                        self.hear(peer);
                    }
                }
                self.detector.handle_timeout(Instant::from_millis(self.now));
            }
        }

        fn hear(&mut self, peer: usize) {
            let now = Instant::from_millis(self.now);
            self.detector.handle_heartbeat(&self.peers[peer], BOOT, now);
        }

        fn close(&mut self, peer: usize) {
            let now = Instant::from_millis(self.now);
            self.detector.handle_closed(&self.peers[peer], BOOT, now);
        }

        /// The process does not run for so long, then notices.
        fn pause(&mut self, millis: u64) {
            self.now += millis;
            self.detector.handle_timeout(Instant::from_millis(self.now));
        }

        fn verdicts(&self) -> Vec<Verdict> {
            self.detector.verdicts().map(|(.., verdict)| verdict).collect()
        }

        fn changes(&mut self) -> Vec<(usize, Verdict)> {
            let detector = &mut self.detector;
            let changes = std::iter::from_fn(|| detector.poll_effect());
            let at = |node: &NodeId| self.peers.iter().position(|peer| peer == node).unwrap();
            changes.map(|change| (at(&change.node), change.verdict)).collect()
        }
    }

    use Verdict::{Alive, Dead, Suspect};

    #[test]
    fn silence_is_first_suspect_then_dead() {
        let mut scene = Scene::new(2);
        scene.run(450, &[0]);
        assert_eq!(scene.verdicts(), [Alive, Alive]);
        scene.run(100, &[0]);
        assert_eq!(scene.verdicts(), [Alive, Suspect]);
        scene.run(500, &[0]);
        assert_eq!(scene.verdicts(), [Alive, Dead]);
        assert_eq!(scene.changes(), [(1, Suspect), (1, Dead)]);
    }

    #[test]
    fn a_closed_socket_starts_detection_sooner_and_does_not_end_it() {
        let mut scene = Scene::new(2);
        scene.run(1_000, &[0, 1]);
        scene.close(1);
        scene.pause(25);
        assert_eq!(scene.verdicts(), [Alive, Suspect], "closed, not dead");
        scene.run(300, &[0]);
        assert_eq!(scene.verdicts(), [Alive, Dead]);
    }

    #[test]
    fn a_peer_that_connects_again_is_alive() {
        let mut scene = Scene::new(1);
        scene.run(1_000, &[0]);
        scene.close(0);
        scene.pause(25);
        scene.hear(0);
        scene.run(1_000, &[0]);
        assert_eq!(scene.changes(), [(0, Suspect), (0, Alive)]);
    }

    #[test]
    fn repeated_hints_do_not_put_death_off() {
        let mut scene = Scene::new(1);
        for _ in 0..10 {
            scene.close(0);
            scene.run(50, &[]);
        }
        assert_eq!(scene.verdicts(), [Dead]);
    }

    #[test]
    fn a_dead_peer_that_is_heard_is_alive_at_once() {
        let mut scene = Scene::new(1);
        scene.run(2_000, &[]);
        scene.hear(0);
        assert_eq!(scene.changes(), [(0, Suspect), (0, Dead), (0, Alive)]);
    }

    #[test]
    fn a_detector_that_was_paused_judges_nobody() {
        let mut scene = Scene::new(3);
        scene.run(1_000, &[0, 1, 2]);
        scene.pause(60_000);
        assert_eq!(scene.verdicts(), [Alive, Alive, Alive]);
        scene.run(900, &[0, 1]);
        assert_eq!(scene.verdicts(), [Alive, Alive, Suspect], "the full time from the resume on");
        scene.run(200, &[0, 1]);
        assert_eq!(scene.verdicts(), [Alive, Alive, Dead]);
    }

    #[test]
    fn a_heartbeat_that_is_read_before_the_pause_is_noticed_saves_nobody_else_either() {
        let mut scene = Scene::new(2);
        scene.run(1_000, &[0, 1]);
        scene.now += 30_000;
        scene.hear(0);
        scene.pause(0);
        assert_eq!(scene.verdicts(), [Alive, Alive]);
    }

    #[test]
    fn a_silence_before_the_pause_counts_no_more() {
        let mut scene = Scene::new(1);
        scene.run(900, &[]);
        assert_eq!(scene.verdicts(), [Suspect]);
        scene.pause(60_000);
        scene.run(900, &[]);
        assert_eq!(scene.verdicts(), [Suspect], "the full time again");
    }

    #[test]
    fn short_lateness_is_nobodys_silence() {
        let mut scene = Scene::new(1);
        scene.run(1_000, &[0]);
        for _ in 0..3 {
            scene.pause(450);
        }
        assert_eq!(scene.verdicts(), [Alive]);
    }

    #[test]
    fn a_detector_that_is_often_late_still_finds_the_dead() {
        let mut scene = Scene::new(2);
        for _ in 0..40 {
            scene.pause(300);
            scene.hear(0);
        }
        assert_eq!(scene.verdicts(), [Alive, Dead]);
    }

    #[test]
    fn an_older_start_proves_nothing_and_a_newer_one_is_another_process() {
        let mut scene = Scene::new(1);
        let (peer, later) = (scene.peers[0].clone(), Instant::from_millis(2_000));
        scene.run(2_000, &[]);
        scene.detector.handle_heartbeat(&peer, BootId(6), later);
        assert_eq!(scene.verdicts(), [Dead]);
        scene.detector.watch(&peer, BootId(8), later);
        assert_eq!(scene.verdicts(), [Alive]);
        scene.detector.handle_closed(&peer, BOOT, later);
        scene.run(100, &[]);
        assert_eq!(scene.verdicts(), [Alive], "the old process's socket");
    }

    proptest! {
        /// Whatever the pauses of the detector: a peer whose heartbeats it reads whenever it runs
        /// is never dead, and one that is silent for good is found.
        #[test]
        fn pauses_kill_nobody_and_hide_nobody(pauses in prop::collection::vec(0_u64..3_000, 0..40)) {
            let mut scene = Scene::new(2);
            for pause in pauses {
                scene.pause(pause);
                prop_assert!(scene.verdicts()[0] != Dead);
                scene.hear(0);
                scene.run(HEARTBEAT, &[0]);
                prop_assert_eq!(scene.verdicts()[0], Alive);
            }
            scene.run(DEAD_AFTER + HEARTBEAT, &[0]);
            prop_assert_eq!(scene.verdicts(), [Alive, Dead]);
        }
    }
}
