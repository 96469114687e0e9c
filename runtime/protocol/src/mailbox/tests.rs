//! Mailboxes against their bounds, and against a simple model.

use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

fn offer(body: u32) -> Offer<u32> {
    Offer {
        owner: 0,
        deadline: Instant::from_millis(100),
        pressure: Pressure::Wait,
        bound: 2,
        source: SourceId(1),
        share: 2,
        body,
    }
}

fn filled() -> (Mailboxes<u32>, Mailbox, Vec<Ticket>) {
    let (mut all, mut mailbox) = (Mailboxes::new(), Mailbox::new());
    let tickets = (0..4).map(|body| all.offer(&mut mailbox, offer(body)).unwrap().1).collect();
    (all, mailbox, tickets)
}

#[test]
fn an_idle_mailbox_is_small() {
    assert_eq!(size_of::<Mailbox>(), 24);
}

#[test]
fn a_full_mailbox_refuses_those_who_do_not_wait_and_those_beyond_their_share() {
    let (mut all, mut mailbox, _) = filled();
    assert_eq!((mailbox.queued(), mailbox.waiting()), (2, 2));
    assert_eq!(all.offer(&mut mailbox, offer(4)), Err(4));
    let refuse = Offer { pressure: Pressure::Refuse, source: SourceId(2), ..offer(5) };
    assert_eq!(all.offer(&mut mailbox, refuse), Err(5));
    let other = Offer { source: SourceId(2), ..offer(6) };
    assert_eq!(all.offer(&mut mailbox, other).unwrap().0, Place::Waiting);
}

#[test]
fn letters_leave_in_the_order_in_which_they_came() {
    let (mut all, mut mailbox, _) = filled();
    for body in 0..4 {
        assert_eq!(all.take(&mut mailbox, Instant::ZERO), Some(Taken::Due(body)));
    }
    assert_eq!(all.take(&mut mailbox, Instant::ZERO), None);
    assert!(all.is_empty() && all.shares.is_empty() && all.next_deadline().is_none());
}

#[test]
fn the_expired_are_never_due() {
    let (mut all, mut mailbox, _) = filled();
    let late = Instant::from_millis(100);
    assert_eq!(all.next_deadline(), Some(late));
    assert_eq!(all.first_expired(Instant::from_millis(99)), None);
    let (_, ticket) = all.first_expired(late).unwrap();
    assert_eq!(all.remove(&mut mailbox, ticket), Some(0));
    assert_eq!(all.take(&mut mailbox, late), Some(Taken::Expired(1)));
}

#[test]
fn a_ticket_names_nothing_once_its_letter_is_taken() {
    let (mut all, mut mailbox, tickets) = filled();
    assert_eq!(all.remove(&mut mailbox, tickets[0]), Some(0));
    all.offer(&mut mailbox, offer(9)).unwrap();
    assert_eq!(all.remove(&mut mailbox, tickets[0]), None);
    assert_eq!(all.replace(tickets[0], Instant::ZERO, 1), Err(1));
}

#[test]
fn a_replaced_letter_keeps_its_place() {
    let (mut all, mut mailbox, tickets) = filled();
    let (_, before) = all.replace(tickets[0], Instant::from_millis(200), 7).unwrap();
    assert_eq!(before, 0);
    let (_, expired) = all.first_expired(Instant::from_millis(150)).unwrap();
    assert_eq!(expired, tickets[1]);
    assert_eq!(all.take(&mut mailbox, Instant::from_millis(150)), Some(Taken::Due(7)));
}

#[derive(Debug, Clone)]
enum Step {
    Offer { owner: usize, source: u64, wait: bool, deadline: u64 },
    Take { owner: usize },
    Expire,
    Pass { millis: u64 },
    Cancel { nth: prop::sample::Index },
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3_usize, 0..3_u64, any::<bool>(), 1..60_u64).prop_map(
            |(owner, source, wait, deadline)| Step::Offer { owner, source, wait, deadline }
        ),
        2 => (0..3_usize).prop_map(|owner| Step::Take { owner }),
        1 => Just(Step::Expire),
        1 => (1..20_u64).prop_map(|millis| Step::Pass { millis }),
        1 => any::<prop::sample::Index>().prop_map(|nth| Step::Cancel { nth }),
    ]
}

#[derive(Debug, Clone)]
struct Modelled {
    body: u32,
    source: u64,
    deadline: Instant,
    ticket: Ticket,
}

const BOUND: u32 = 3;
const SHARE: u32 = 2;

fn check_counts(boxes: &[Mailbox], model: &[VecDeque<Modelled>]) {
    for (mailbox, model) in boxes.iter().zip(model) {
        assert!(mailbox.queued() <= BOUND);
        assert!(mailbox.waiting() == 0 || mailbox.queued() == BOUND);
        assert_eq!((mailbox.queued() + mailbox.waiting()) as usize, model.len());
        for source in 0..3 {
            let waits = model.iter().skip(BOUND as usize).filter(|it| it.source == source);
            assert!(waits.count() <= SHARE as usize);
        }
    }
}

proptest! {
    /// Any interleaving of senders over three entities, against plain queues.
    #[test]
    fn bounds_hold_and_order_is_kept(steps in prop::collection::vec(steps(), 0..300)) {
        let mut all = Mailboxes::new();
        let mut boxes = [Mailbox::new(); 3];
        let mut model: Vec<VecDeque<Modelled>> = vec![VecDeque::new(); 3];
        let (mut now, mut body) = (Instant::ZERO, 0);
        for step in steps {
            match step {
                Step::Offer { owner, source, wait, deadline } => {
                    body += 1;
                    let deadline = now + std::time::Duration::from_millis(deadline);
                    let pressure = if wait { Pressure::Wait } else { Pressure::Refuse };
                    let offer = Offer {
                        owner: u32::try_from(owner).unwrap(), deadline, pressure, bound: BOUND,
                        source: SourceId(source), share: SHARE, body,
                    };
                    let waits = model[owner].iter().skip(BOUND as usize);
                    let held = waits.filter(|it| it.source == source).count();
                    let room = model[owner].len() < BOUND as usize;
                    let fits = room || (wait && held < SHARE as usize);
                    let got = all.offer(&mut boxes[owner], offer);
                    prop_assert_eq!(got.is_ok(), fits);
                    if let Ok((_, ticket)) = got {
                        model[owner].push_back(Modelled { body, source, deadline, ticket });
                    }
                }
                Step::Take { owner } => {
                    let want = model[owner].pop_front().map(|it| {
                        if it.deadline <= now { Taken::Expired(it.body) } else { Taken::Due(it.body) }
                    });
                    prop_assert_eq!(all.take(&mut boxes[owner], now), want);
                }
                Step::Expire => {
                    while let Some((owner, ticket)) = all.first_expired(now) {
                        let body = all.remove(&mut boxes[owner as usize], ticket).unwrap();
                        let model = &mut model[owner as usize];
                        let at = model.iter().position(|it| it.body == body).unwrap();
                        prop_assert!(model.remove(at).unwrap().deadline <= now);
                    }
                    prop_assert!(model.iter().flatten().all(|it| it.deadline > now));
                }
                Step::Pass { millis } => now = now + std::time::Duration::from_millis(millis),
                Step::Cancel { nth } => {
                    let owner = nth.index(3);
                    if !model[owner].is_empty() {
                        let at = nth.index(model[owner].len());
                        let gone = model[owner].remove(at).unwrap();
                        prop_assert_eq!(all.remove(&mut boxes[owner], gone.ticket), Some(gone.body));
                    }
                }
            }
            check_counts(&boxes, &model);
            let first = model.iter().flatten().map(|it| it.deadline).min();
            prop_assert_eq!(all.next_deadline(), first);
        }
    }
}
