//! Who stands for election when the leader of consensus is found dead, before any timer says so.
//!
//! ```text
//!   leader dead here --> ask the other voters: too few agree --> ask again
//!                                |
//!                                v a majority, with this one
//!         wait rank x STAGGER, stand --> another leads: done | nobody does: stand again, later
//! ```
//!
//! The timers of consensus are long, so that a disk that stalls for a moment costs no leader; who
//! is dead is known sooner, by refused connections and by silence. The question comes first because
//! a candidate deposes a leader that others still follow (Raft's Pre-Vote: Ongaro, "Consensus:
//! Bridging Theory and Practice", 9.6, with the detector's verdict in place of the timer).
//!
//! Every heir stands, one after the other: a voter that heard the leader lately grants no vote until
//! it has stood itself. Of two candidates of one term the higher id wins, so the lower stands first.

use std::collections::BTreeSet;
use std::time::Duration;

/// Between two heirs: longer than their verdicts are apart, much shorter than an election's timer.
const STAGGER: Duration = Duration::from_millis(20);
/// After the last heir of the first round stood, before the first stands again; doubled each round.
const AGAIN: Duration = Duration::from_millis(150);
/// How often an heir stands before it leaves the rest to the timers of consensus.
pub const ROUNDS: u32 = 3;

/// A voter that may stand for a dead leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heir {
    /// How many voters stand before it.
    pub rank: u32,
    /// The voters that live, as far as it knows, without itself.
    pub peers: BTreeSet<u64>,
    /// How many of them must take the leader for dead, too: with this one they are a majority.
    pub needed: usize,
}

impl Heir {
    /// Whether voter `me` may stand, when it takes `leader`, and everyone of whom `dead` says so,
    /// for dead. `None` when it has no vote, or when those that live are no majority.
    pub fn of(
        me: u64,
        leader: u64,
        voters: &BTreeSet<u64>,
        dead: impl Fn(u64) -> bool,
    ) -> Option<Self> {
        if me == leader || !voters.contains(&me) || !dead(leader) {
            return None;
        }
        let mut peers = voters.clone();
        peers.retain(|id| *id != me && *id != leader && !dead(*id));
        let needed = voters.len() / 2;
        let rank = u32::try_from(peers.range(..me).count()).unwrap_or(u32::MAX);
        (peers.len() >= needed).then_some(Self { rank, peers, needed })
    }

    /// How long after the voters agreed it stands, in round 0; and how long after the round before
    /// it stands again. Who comes after an heir that has enough voters before it to win gives that one
    /// the time to be heard of.
    pub fn delay(&self, round: u32) -> Duration {
        let spare = usize::try_from(self.rank).is_ok_and(|rank| rank > self.needed);
        let turn = STAGGER.saturating_mul(self.rank) + if spare { AGAIN } else { Duration::ZERO };
        match round.checked_sub(1) {
            None => turn,
            Some(doublings) => turn + AGAIN * 2_u32.saturating_pow(doublings.min(8)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heir(me: u64, voters: &[u64], dead: &[u64]) -> Option<Heir> {
        Heir::of(me, 1, &voters.iter().copied().collect(), |id| dead.contains(&id))
    }

    #[test]
    fn one_of_two_survivors_needs_the_other_to_agree() {
        let heir = heir(3, &[1, 2, 3], &[1]).unwrap();

        assert_eq!((heir.peers, heir.needed), (BTreeSet::from([2]), 1));
    }

    #[test]
    fn survivors_stand_in_the_order_of_their_ids() {
        let voters = [1, 2, 3, 4, 5];
        let ranks = [2, 3, 5].map(|me| heir(me, &voters, &[1, 4]).unwrap().rank);

        assert_eq!(ranks, [0, 1, 2]);
    }

    #[test]
    fn nobody_stands_for_a_leader_that_lives() {
        assert_eq!(heir(3, &[1, 2, 3], &[2]), None);
    }

    #[test]
    fn a_minority_does_not_stand() {
        assert_eq!(heir(3, &[1, 2, 3], &[1, 2]), None);
        assert_eq!(heir(5, &[1, 2, 3, 4, 5], &[1, 2, 3]), None);
        assert!(heir(5, &[1, 2, 3, 4, 5], &[1, 2]).is_some());
    }

    #[test]
    fn a_member_without_a_vote_and_the_leader_itself_do_not_stand() {
        assert_eq!(heir(9, &[1, 2, 3], &[1]), None);
        assert_eq!(heir(1, &[1, 2, 3], &[1]), None);
    }

    #[test]
    fn who_is_not_needed_for_a_majority_waits_until_it_is_known_who_won() {
        let voters = [1, 2, 3, 4, 5];
        let delays = [2, 3, 4, 5].map(|me| heir(me, &voters, &[1]).unwrap().delay(0));

        assert_eq!(delays[..3], [Duration::ZERO, STAGGER, STAGGER * 2]);
        assert_eq!(delays[3], STAGGER * 3 + AGAIN);
    }

    #[test]
    fn who_did_not_win_waits_longer_each_time_and_never_beside_another() {
        let (first, second) =
            (heir(2, &[1, 2, 3], &[1]).unwrap(), heir(3, &[1, 2, 3], &[1]).unwrap());

        assert_eq!(first.delay(0), Duration::ZERO);
        for round in 0..ROUNDS {
            assert!(second.delay(round) >= first.delay(round) + STAGGER);
            assert!(first.delay(round + 1) > second.delay(round));
        }
    }
}
