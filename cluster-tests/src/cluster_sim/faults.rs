//! What goes wrong, and when: drawn per seed, or written down as a story.

use std::time::Duration;

use fastrand::Rng;
use mainstay_protocol::time::Instant;

/// Something goes wrong, or right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// A process dies. It starts again after a while.
    Kill(usize, Duration),
    /// A process dies, and its data directory with it.
    Wipe(usize, Duration),
    /// All processes die at once.
    PowerLoss,
    /// A process stands still, and then goes on as if nothing had been.
    Pause(usize, Duration),
    /// Nothing passes from one node to another.
    Cut(usize, usize, Duration),
    /// Nothing passes between a node and all others; `true`: nor the control plane. Clients reach
    /// it all the same.
    Isolate(usize, bool, Duration),
    /// A disk takes its time.
    SlowDisk(usize, Duration),
    /// The control plane answers nobody.
    PlaneAway(Duration),
    /// The wall clock of a node jumps.
    WallJump(usize),
}

/// A fault of a story, and after how many milliseconds. `Primary` and the others are found when it
/// is its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scene {
    /// When.
    pub at: u64,
    /// Who: the primary, or the n-th of the others.
    pub who: Who,
    /// What.
    pub what: What,
}

/// A node of a story.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Who is primary at that time.
    Primary,
    /// Who was primary when the story began.
    First,
    /// The n-th of those that were not.
    Other(usize),
}

/// What happens to it, and for how many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// Dies.
    Kill(u64),
    /// Dies with its disk.
    Wipe(u64),
    /// Stands still.
    Pause(u64),
    /// Reaches no node, and not the control plane.
    Isolate(u64),
    /// Reaches the control plane only.
    Lonely(u64),
    /// Hears nothing from that other.
    Deaf(Who, u64),
}

const fn scene(at: u64, who: Who, what: What) -> Scene {
    Scene { at, who, what }
}

/// Stories that random faults rarely tell.
pub const STORIES: [(&str, &[Scene]); 7] = [
    ("an old primary that only clients reach", &[scene(300, Who::First, What::Isolate(700))]),
    (
        "a primary stands still with requests in its mailbox, and another one takes over",
        &[scene(300, Who::First, What::Pause(500)), scene(310, Who::First, What::Isolate(700))],
    ),
    (
        "a standby starts again inside the promise that it gave, and is promoted",
        &[
            scene(300, Who::First, What::Isolate(600)),
            scene(305, Who::Other(0), What::Kill(5)),
            scene(306, Who::Other(1), What::Kill(5)),
        ],
    ),
    (
        "exactly one standby hears the primary",
        &[
            scene(300, Who::Other(1), What::Deaf(Who::First, 900)),
            scene(320, Who::First, What::Isolate(500)),
        ],
    ),
    (
        "a wiped node meets an old primary that is alone",
        &[
            scene(300, Who::First, What::Isolate(260)),
            scene(520, Who::Other(0), What::Wipe(30)),
            scene(600, Who::Other(1), What::Lonely(300)),
        ],
    ),
    (
        "a copy joins while both others fail",
        &[
            scene(200, Who::Other(1), What::Kill(400)),
            scene(600, Who::First, What::Kill(40)),
            scene(660, Who::Primary, What::Isolate(200)),
        ],
    ),
    (
        "a disk is replaced under a claim that lives",
        &[
            scene(300, Who::First, What::Wipe(1)),
            scene(700, Who::Primary, What::Kill(20)),
            scene(900, Who::Other(1), What::Pause(100)),
        ],
    ),
];

/// How often what goes wrong, in one seed.
#[derive(Debug, Clone)]
pub struct Habits {
    kinds: Vec<u8>,
    /// Between two faults, in milliseconds, at most.
    every: u64,
    longest: u64,
}

impl Habits {
    /// Swarm testing: each seed has its own subset of faults, and its own pace.
    pub fn draw(rng: &mut Rng) -> Self {
        let kinds: Vec<u8> = (0..9).filter(|_| rng.u8(0..100) < 45).collect();
        let every = [80, 250, 700][rng.usize(0..3)];
        Self { kinds, every, longest: [60, 250, 800][rng.usize(0..3)] }
    }

    /// The next fault, and when.
    pub fn next(&self, rng: &mut Rng, nodes: usize, now: Instant) -> Option<(Instant, Fault)> {
        let kind = *self.kinds.get(rng.usize(0..self.kinds.len().max(1)))?;
        let at = now + Duration::from_millis(rng.u64(1..=self.every));
        let (node, span) = (rng.usize(0..nodes), Duration::from_millis(rng.u64(1..=self.longest)));
        let other = (node + 1 + rng.usize(0..nodes.max(2) - 1)) % nodes;
        let fault = match kind {
            0 => Fault::Kill(node, span),
            1 => Fault::Wipe(node, span),
            2 => Fault::PowerLoss,
            3 => Fault::Pause(node, span),
            4 => Fault::Cut(node, other, span),
            5 => Fault::Isolate(node, rng.bool(), span),
            6 => Fault::SlowDisk(node, span),
            7 => Fault::PlaneAway(span),
            _ => Fault::WallJump(node),
        };
        Some((at, fault))
    }
}
