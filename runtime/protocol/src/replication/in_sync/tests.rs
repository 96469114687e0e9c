//! What counts, who joins, who leaves: each rule as a story of a few lines.

use std::collections::BTreeSet;

use proptest::prelude::*;

use super::*;

fn node(at: u8) -> NodeId {
    NodeId::new(&format!("n{at}")).unwrap()
}

fn disk(at: u8) -> DiskId {
    DiskId::from_bytes([at; 16])
}

fn claims(nodes: &[u8]) -> BTreeMap<NodeId, DiskId> {
    nodes.iter().map(|&at| (node(at), disk(at))).collect()
}

fn copies(version: u64, in_sync: &[u8], wanted: &[u8]) -> Copies {
    let (in_sync, wanted) = (claims(in_sync), claims(wanted));
    Copies { version, in_sync, wanted, gone: BTreeSet::new() }
}

fn ms(millis: u64) -> Instant {
    Instant::from_millis(millis)
}

/// The copies of n1, whose epoch begins with entry 1.
fn primary(in_sync: &[u8], wanted: &[u8], min_insync: u8) -> InSync {
    InSync::new(node(1), copies(7, in_sync, wanted), min_insync, Seq(1), Timing::default())
}

fn holds(set: &mut InSync, at: u8, upto: u64) {
    let version = set.said().version;
    set.handle_holds(&node(at), disk(at), (version, Seq(upto))).unwrap();
}

#[test]
fn one_member_is_the_single_copy_case() {
    let mut one = primary(&[1], &[1], 1);
    holds(&mut one, 1, 5);
    assert_eq!(one.watermark(), Seq(5));
    assert!(one.is_alone());
    assert!(one.has_lease(ms(0)) && one.is_confirmed_since(ms(9)), "there is nobody to ask");
}

#[test]
fn the_slowest_member_holds_the_watermark_and_late_acks_change_nothing() {
    let mut three = primary(&[1, 2, 3], &[1, 2, 3], 2);
    holds(&mut three, 1, 9);
    holds(&mut three, 3, 8);
    assert_eq!(three.watermark(), Seq(0));
    assert!(!three.is_alone());
    holds(&mut three, 2, 6);
    holds(&mut three, 2, 4);
    assert_eq!((three.watermark(), three.durable(&node(2), disk(2))), (Seq(6), Some(Seq(6))));
}

#[test]
fn strangers_and_other_disks_do_not_count() {
    let mut two = primary(&[1, 2], &[1, 2], 2);
    let refused = AckError::NotCopy { node: node(2) };
    assert_eq!(two.handle_holds(&node(2), disk(9), (7, Seq(3))), Err(refused));
    let refused = AckError::NotCopy { node: node(7) };
    assert_eq!(two.handle_heard(&node(7), disk(7), ms(1), true), Err(refused));
}

#[test]
fn a_set_below_the_minimum_commits_nothing() {
    let mut one = primary(&[1], &[1, 2], 2);
    holds(&mut one, 1, 4);
    assert_eq!(one.watermark(), Seq(0));
}

#[test]
fn a_learner_is_waited_for_from_when_it_holds_what_is_committed() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    holds(&mut set, 3, 0);
    holds(&mut set, 1, 5);
    holds(&mut set, 2, 5);
    assert_eq!(set.poll_proposal(ms(0)), None, "n3 holds nothing");
    holds(&mut set, 3, 4);
    assert_eq!(set.poll_proposal(ms(0)), None, "n3 lacks an entry that is committed");
    holds(&mut set, 3, 5);
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2, 3])));
    holds(&mut set, 1, 8);
    holds(&mut set, 2, 8);
    assert_eq!(set.watermark(), Seq(5), "n3 may be in the set already");
    assert_eq!(set.poll_proposal(ms(1)), None);
    assert_eq!(set.poll_proposal(ms(100)), Some(claims(&[1, 2, 3])), "no answer: again");
    set.handle_copies(copies(8, &[1, 2, 3], &[1, 2, 3]));
    holds(&mut set, 3, 8);
    assert_eq!((set.watermark(), set.poll_proposal(ms(300))), (Seq(8), None));
}

/// The disk of n3 is a little slower than that of n2, and writes never end: it never held what was
/// committed when it said what it holds.
#[test]
fn a_learner_that_is_always_a_little_behind_joins_under_writes_that_never_end() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    let proposed = (1..100).find_map(|seq| {
        holds(&mut set, 1, seq + 5);
        holds(&mut set, 2, seq + 5);
        holds(&mut set, 3, seq);
        assert!(set.durable(&node(3), disk(3)).unwrap() >= set.watermark() || seq < 6);
        set.poll_proposal(ms(seq))
    });
    assert_eq!(proposed, Some(claims(&[1, 2, 3])));
    assert!(set.durable(&node(3), disk(3)) >= Some(set.watermark()));
}

#[test]
fn a_learner_that_is_far_behind_holds_nothing_up() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    for seq in 1..100 {
        holds(&mut set, 1, seq + 100);
        holds(&mut set, 2, seq + 100);
        holds(&mut set, 3, seq);
        assert_eq!((set.watermark(), set.poll_proposal(ms(seq))), (Seq(seq + 100), None));
    }
}

#[test]
fn a_learner_that_was_waited_for_in_vain_is_waited_for_again_when_it_holds_everything() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=2).for_each(|at| holds(&mut set, at, 9));
    holds(&mut set, 3, 4);
    (1..=2).for_each(|at| holds(&mut set, at, 11));
    assert_eq!((set.watermark(), set.poll_proposal(ms(0))), (Seq(9), None), "it is near");
    set.handle_timeout(Seq(11), ms(0));
    set.handle_timeout(Seq(11), ms(300));
    assert_eq!((set.watermark(), set.poll_proposal(ms(300))), (Seq(11), None));
    holds(&mut set, 3, 10);
    (1..=2).for_each(|at| holds(&mut set, at, 12));
    assert_eq!((set.watermark(), set.poll_proposal(ms(301))), (Seq(12), None), "not again");
    holds(&mut set, 3, 12);
    assert_eq!(set.poll_proposal(ms(302)), Some(claims(&[1, 2, 3])));
}

/// n3 was taken for dead and left; it saw that, and removed what it had. It came back as a learner.
/// A primary that was busy saw neither, only how it stands now.
#[test]
fn what_a_dropped_copy_acknowledged_does_not_count_for_the_one_made_anew() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 3], 2);
    for at in 1..=3 {
        holds(&mut set, at, 5);
    }
    set.handle_copies(copies(10, &[1, 2], &[1, 2, 3]));
    assert_eq!(set.durable(&node(3), disk(3)), Some(Seq(0)));
    assert_eq!(set.poll_proposal(ms(0)), None, "n3 may hold nothing");
    set.handle_holds(&node(3), disk(3), (9, Seq(5))).unwrap();
    assert_eq!(set.poll_proposal(ms(0)), None, "on its way since before it was dropped");
    set.handle_holds(&node(3), disk(3), (10, Seq(5))).unwrap();
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2, 3])));
}

#[test]
fn who_holds_the_noop_joins_also_while_the_set_cannot_commit_it() {
    let mut set =
        InSync::new(node(1), copies(7, &[1, 2], &[1, 2, 3]), 2, Seq(9), Timing::default());
    holds(&mut set, 1, 9);
    holds(&mut set, 3, 8);
    assert_eq!(set.poll_proposal(ms(0)), None, "entries before the noop may be committed");
    holds(&mut set, 3, 9);
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2, 3])), "n2 may be gone for good");
}

#[test]
fn a_replaced_disk_is_a_copy_of_its_own_and_takes_the_place_of_the_claim() {
    let mut said = copies(7, &[1, 2], &[1]);
    said.wanted.insert(node(2), disk(22));
    said.gone.insert(node(2));
    let mut set = InSync::new(node(1), said, 2, Seq(1), Timing::default());
    holds(&mut set, 1, 1);
    assert_eq!(set.watermark(), Seq(0), "the claim is waited for");
    set.handle_holds(&node(2), disk(22), (7, Seq(1))).unwrap();
    let replaced = [(node(1), disk(1)), (node(2), disk(22))].into();
    assert_eq!(set.poll_proposal(ms(0)), Some(replaced));
    assert_eq!(set.watermark(), Seq(0), "and still is");
}

#[test]
fn who_was_refused_is_let_go_by_a_proposal_of_the_set_as_it_is() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    assert!(set.poll_proposal(ms(0)).is_some());
    set.handle_timeout(Seq(2), ms(0));
    set.handle_timeout(Seq(2), ms(400));
    let again = set.poll_proposal(ms(400));
    assert_eq!(again, Some(claims(&[1, 2])), "n3 is too slow, and still waited for");
    holds(&mut set, 1, 2);
    holds(&mut set, 2, 2);
    assert_eq!(set.watermark(), Seq(1), "the older proposal may still be accepted");
    set.handle_copies(copies(8, &[1, 2], &[1, 2, 3]));
    assert_eq!(set.watermark(), Seq(2), "now it cannot");
}

#[test]
fn who_is_too_slow_to_be_proposed_is_not_waited_for() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    assert!(set.poll_proposal(ms(0)).is_some());
    holds(&mut set, 1, 2);
    set.handle_timeout(Seq(2), ms(0));
    set.handle_timeout(Seq(2), ms(400));
    let again = set.poll_proposal(ms(400));
    assert_eq!(again, Some(claims(&[1, 2])), "n2 is slow too, but one would be too few");
    set.handle_copies(copies(8, &[1, 2], &[1, 2, 3]));
    holds(&mut set, 2, 2);
    set.handle_timeout(Seq(2), ms(401));
    assert_eq!(set.watermark(), Seq(2), "n3 is in no set that may be accepted");
    assert_eq!(set.poll_proposal(ms(401)), None);
    holds(&mut set, 3, 2);
    assert_eq!(set.poll_proposal(ms(402)), Some(claims(&[1, 2, 3])), "it is back");
}

#[test]
fn a_copy_that_lost_its_disk_before_it_was_proposed_is_not_waited_for() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    let mut wiped = copies(7, &[1, 2], &[1, 2]);
    wiped.wanted.insert(node(3), disk(33));
    set.handle_copies(wiped);
    (1..=2).for_each(|at| holds(&mut set, at, 2));
    assert_eq!(set.watermark(), Seq(2));
}

#[test]
fn a_member_that_holds_writes_up_is_proposed_away_and_waited_for_until_it_is() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    holds(&mut set, 1, 2);
    holds(&mut set, 2, 2);
    set.handle_timeout(Seq(2), ms(0));
    set.handle_timeout(Seq(2), ms(299));
    assert_eq!(set.poll_proposal(ms(299)), None);
    set.handle_timeout(Seq(2), ms(300));
    assert_eq!(set.poll_proposal(ms(300)), Some(claims(&[1, 2])));
    assert_eq!(set.watermark(), Seq(1));
    set.handle_copies(copies(8, &[1, 2], &[1, 2, 3]));
    assert_eq!(set.watermark(), Seq(2));
    holds(&mut set, 3, 2);
    assert_eq!(set.poll_proposal(ms(301)), Some(claims(&[1, 2, 3])), "it caught up");
}

#[test]
fn a_slow_copy_that_moves_is_not_too_slow() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    for step in 0..10 {
        holds(&mut set, 3, step + 1);
        set.handle_timeout(Seq(20), ms(step * 200));
    }
    let set = set.poll_proposal(ms(2000)).unwrap();
    assert_eq!(set, claims(&[1, 3]), "n2 stood still, n3 did not");
}

#[test]
fn the_set_only_grows_while_too_few_acknowledged_the_epoch() {
    let gone = |version| {
        let mut said = copies(version, &[1, 2, 3], &[1, 2]);
        said.gone.insert(node(3));
        said
    };
    let mut set = InSync::new(node(1), gone(7), 2, Seq(1), Timing::default());
    holds(&mut set, 1, 1);
    assert_eq!(set.poll_proposal(ms(0)), None, "n2 has not acknowledged, n3 may be the last");
    holds(&mut set, 2, 0);
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2])));
}

#[test]
fn who_is_not_wanted_leaves_when_all_who_are_have_come() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 4], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    assert_eq!(set.poll_proposal(ms(0)), None, "n4 is not there yet");
    holds(&mut set, 4, 1);
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2, 4])));
}

#[test]
fn who_is_not_wanted_stays_while_the_copy_that_takes_its_place_is_on_a_lost_disk() {
    let mut said = copies(7, &[1, 2, 3, 4], &[1, 3]);
    said.wanted.insert(node(2), disk(22));
    said.gone.insert(node(2));
    let mut set = InSync::new(node(1), said, 2, Seq(1), Timing::default());
    for at in [1, 3, 4] {
        holds(&mut set, at, 1);
    }
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 3, 4])));
}

#[test]
fn a_copy_on_a_new_disk_begins_anew() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 1));
    assert!(set.poll_proposal(ms(0)).is_some());
    let mut wiped = copies(7, &[1, 2], &[1, 2]);
    wiped.wanted.insert(node(3), disk(33));
    set.handle_copies(wiped);
    let known: Vec<_> = set.copies().filter(|(at, ..)| **at == node(3)).collect();
    let (before, now) = ((&node(3), disk(3), Seq(1), true), (&node(3), disk(33), Seq(0), false));
    assert_eq!(known, [before, now], "the old one may be a member until the version moves");
    assert_eq!(set.poll_proposal(ms(100)), Some(claims(&[1, 2])));
    let mut later = copies(8, &[1, 2], &[1, 2]);
    later.wanted.insert(node(3), disk(33));
    set.handle_copies(later);
    assert!(set.handle_holds(&node(3), disk(3), (9, Seq(9))).is_err());
}

#[test]
fn what_the_control_plane_said_earlier_is_not_believed_later() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=2).for_each(|at| holds(&mut set, at, 4));
    set.handle_copies(copies(6, &[1, 3], &[1, 2, 3]));
    holds(&mut set, 1, 5);
    assert_eq!(set.watermark(), Seq(4), "n2 is a member");
}

#[test]
fn a_copy_that_lost_what_it_acknowledged_is_to_leave() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 5));
    set.handle_regressed(&node(3), disk(3), Seq(2));
    assert_eq!(set.poll_proposal(ms(0)), Some(claims(&[1, 2])));
    assert_eq!(set.watermark(), Seq(5), "what is committed stays committed");
}

#[test]
fn a_copy_that_lost_what_it_acknowledged_does_not_join() {
    let mut set = primary(&[1, 2], &[1, 2, 3], 2);
    (1..=3).for_each(|at| holds(&mut set, at, 5));
    set.handle_regressed(&node(3), disk(3), Seq(2));
    assert_eq!(set.poll_proposal(ms(0)), None);
    (1..=2).for_each(|at| holds(&mut set, at, 6));
    assert_eq!(set.watermark(), Seq(6), "it was not proposed: nobody waits for it");
    holds(&mut set, 3, 6);
    assert_eq!(set.poll_proposal(ms(1)), Some(claims(&[1, 2, 3])));
    set.handle_regressed(&node(3), disk(3), Seq(2));
    assert_eq!(set.poll_proposal(ms(101)), Some(claims(&[1, 2])), "not again");
    (1..=2).for_each(|at| holds(&mut set, at, 7));
    assert_eq!(set.watermark(), Seq(6), "but it may be a member");
}

#[test]
fn a_lease_is_everybodys_promise_counted_from_when_it_was_asked_for() {
    let mut set = primary(&[1, 2, 3], &[1, 2, 3], 2);
    set.handle_heard(&node(2), disk(2), ms(10), true).unwrap();
    assert!(!set.has_lease(ms(20)), "n3 promised nothing");
    set.handle_heard(&node(3), disk(3), ms(20), true).unwrap();
    assert!(set.has_lease(ms(89)) && !set.has_lease(ms(90)), "80 ms from when n2 was asked");
    set.handle_heard(&node(2), disk(2), ms(60), false).unwrap();
    assert!(!set.has_lease(ms(90)), "heard, and not promised");
    assert!(set.is_confirmed_since(ms(19)) && !set.is_confirmed_since(ms(20)), "n3 before that");
}

/// The control plane of the property: it accepts any proposal for its version, the latest or not.
struct Plane {
    said: Copies,
    proposed: Vec<BTreeMap<NodeId, DiskId>>,
}

impl Plane {
    fn accept(&mut self, which: usize) {
        if !self.proposed.is_empty() {
            let which = which % self.proposed.len();
            self.said.in_sync = self.proposed.swap_remove(which);
            self.said.version += 1;
            self.proposed.clear();
        }
    }

    /// Another copy is wanted, and a member of the set is gone or not.
    fn change(&mut self, roll: u64) {
        self.said.wanted = claims(&[1, 2, if roll.is_multiple_of(2) { 3 } else { 4 }]);
        self.said.gone.clear();
        let gone = node(2 + u8::try_from(roll % 3).unwrap());
        if roll.is_multiple_of(5) && self.said.in_sync.contains_key(&gone) {
            self.said.gone.insert(gone);
        }
    }

    fn propose(&mut self, set: &mut InSync, now: Instant) {
        let Some(proposed) = set.poll_proposal(now) else { return };
        for (joins, disk) in proposed.iter().filter(|it| !self.said.in_sync.contains_key(it.0)) {
            let held = set.durable(joins, *disk).unwrap();
            assert!(held >= set.watermark(), "{joins} joins without what is committed");
        }
        self.proposed.push(proposed);
    }
}

proptest! {
    /// Whatever comes: the watermark never runs backwards, and when it moves, the confirmed set
    /// has its least size and every copy that may be a member holds it. Who joins holds what is
    /// committed, and when nothing is proposed, writes wait for the confirmed set alone.
    #[test]
    fn what_is_committed_is_held_by_whoever_may_be_promoted(
        ops in prop::collection::vec((1..5_u8, 0..30_u64, 0..8_u8), 0..200),
    ) {
        let mut set = primary(&[1, 2], &[1, 2, 3], 2);
        let mut plane = Plane { said: copies(7, &[1, 2], &[1, 2, 3]), proposed: Vec::new() };
        let mut before = Seq(0);
        let mut now = ms(0);
        for (at, upto, kind) in ops {
            now = now + std::time::Duration::from_millis(50);
            match kind {
                0 => plane.accept(usize::try_from(upto).unwrap()),
                1 => plane.change(upto),
                2 => {
                    set.handle_timeout(Seq(30), now);
                    plane.propose(&mut set, now);
                }
                3 if at > 1 => set.handle_regressed(&node(at), disk(at), Seq(upto)),
                _ => {
                    let version = set.said().version - u64::from(kind == 4);
                    drop(set.handle_holds(&node(at), disk(at), (version, Seq(upto))));
                }
            }
            set.handle_copies(plane.said.clone());
            prop_assert!(set.watermark() >= before);
            if set.watermark() > before {
                prop_assert!(plane.said.in_sync.len() >= 2);
                for (member, disk) in plane.said.in_sync.iter().chain(plane.proposed.iter().flatten()) {
                    let held = set.durable(member, *disk).unwrap();
                    prop_assert!(held >= set.watermark(), "{member}");
                }
            }
            before = set.watermark();
        }
        plane.accept(0);
        set.handle_copies(plane.said.clone());
        plane.said.in_sync.keys().for_each(|member| {
            let held = (plane.said.version, Seq(40));
            set.handle_holds(member, plane.said.in_sync[member], held).unwrap();
        });
        set.handle_timeout(Seq(40), now);
        set.handle_timeout(Seq(40), now + Timing::default().patience);
        plane.propose(&mut set, now + Timing::default().patience);
        prop_assert!(!plane.proposed.is_empty() || set.watermark() == Seq(40));
    }
}
