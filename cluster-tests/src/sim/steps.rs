//! The kinds of steps of the simulated world, and how often each happens in a seed.

use fastrand::Rng;

/// How often what happens, drawn per seed: the weight of each kind of step.
pub(super) type Weights = [(Step, u32); 19];

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Call,
    Cancel,
    Turn,
    FinishTurn,
    Flush,
    Deliver,
    Sync,
    Ack,
    Release,
    Time,
    Timer,
    WallJump,
    Passivate,
    StandbyCrash,
    Crash,
    PowerLoss,
    Resign,
    Handoff,
    HandoffGivenUp,
}

/// What goes on when the faults are over.
pub(super) const HEALING: [Step; 9] = [
    Step::Turn,
    Step::FinishTurn,
    Step::Flush,
    Step::Deliver,
    Step::Sync,
    Step::Ack,
    Step::Release,
    Step::Time,
    Step::Timer,
];

/// Swarm testing: each seed has its own speeds and its own subset of faults.
pub(super) fn draw(rng: &mut Rng) -> Weights {
    let mut weights = [
        (Step::Call, 30),
        (Step::Cancel, 2),
        (Step::Turn, 20),
        (Step::FinishTurn, 8),
        (Step::Flush, 12),
        (Step::Deliver, 20),
        (Step::Sync, 12),
        (Step::Ack, 16),
        (Step::Release, 14),
        (Step::Time, 10),
        (Step::Timer, 5),
        (Step::WallJump, 1),
        (Step::Passivate, 10),
        (Step::StandbyCrash, 2),
        (Step::Crash, 2),
        (Step::PowerLoss, 1),
        (Step::Resign, 1),
        (Step::Handoff, 2),
        (Step::HandoffGivenUp, 1),
    ];
    for (step, weight) in &mut weights {
        let fault = matches!(
            step,
            Step::WallJump
                | Step::StandbyCrash
                | Step::Crash
                | Step::PowerLoss
                | Step::Resign
                | Step::Handoff
                | Step::Cancel
                | Step::Passivate
        );
        let factor = if fault { rng.u32(0..3) } else { rng.u32(1..4) };
        *weight *= factor;
    }
    weights
}

/// The step at a place of the weights laid end to end.
pub(super) fn choose(weights: &Weights, place: u32) -> Step {
    let mut upto = 0;
    let chosen = weights.iter().find(|(_, weight)| {
        upto += weight;
        place < upto
    });
    chosen.map_or(Step::Time, |&(step, _)| step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_chosen_as_often_as_it_weighs() {
        let weights = draw(&mut Rng::with_seed(1));
        let total = weights.iter().map(|(_, weight)| weight).sum();
        for (step, weight) in weights {
            let chosen = (0..total).filter(|&place| choose(&weights, place) == step).count();
            assert_eq!(chosen, weight as usize);
        }
    }
}
