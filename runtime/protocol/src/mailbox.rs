//! Mailboxes: what waits for one entity, in the order in which it came, with a hard bound.
//!
//! ```text
//!   offer -> [ queue: at most `bound` ] -> take
//!                 ^ the first moves up when one leaves
//!            [ waiting room: senders that chose to wait ]
//!              at most `share` per source
//! ```
//! A letter goes into the queue when there is room. When there is none, a sender that chose
//! [`Pressure::Wait`] stands in the waiting room until its deadline, and no source (a connection,
//! or the node itself) has more than its share standing before one entity: one hot entity cannot
//! eat a connection's window. Everyone else is refused. `queued <= bound` always.
//!
//! A letter whose deadline has passed is handed out as [`Taken::Expired`], by `take` or by
//! `take_expired`, and never as due.
//!
//! The letters of all entities of a shard are in one [`Mailboxes`]; an entity itself has a
//! [`Mailbox`] of 24 bytes, and no allocation while it is idle.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use crate::list::{List, Pool};
use crate::message::Pressure;
use crate::time::Instant;

/// Where letters come from, for fair waiting rooms: a connection, or the node itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(pub u64);

/// What is offered to a mailbox.
#[derive(Debug)]
pub struct Offer<M> {
    /// Whose mailbox it is: told back by [`Mailboxes::first_expired`].
    pub owner: u32,
    /// When the letter must have been taken.
    pub deadline: Instant,
    /// Wait for room, or be refused.
    pub pressure: Pressure,
    /// Letters in the queue, at most.
    pub bound: u32,
    /// Where it comes from.
    pub source: SourceId,
    /// Letters of this source in the waiting room, at most.
    pub share: u32,
    /// The letter.
    pub body: M,
}

/// Names a letter until it is taken; afterwards it names nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ticket {
    id: u32,
    number: u64,
}

/// Where a letter was put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// In the queue.
    Queued,
    /// In the waiting room.
    Waiting,
}

/// A letter that was taken.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken<M> {
    /// Its deadline has not passed: run it.
    Due(M),
    /// Its deadline has passed: tell the sender, and do not run it.
    Expired(M),
}

/// One entity's mailbox. Its letters are in a [`Mailboxes`].
#[derive(Debug, Clone, Copy)]
pub struct Mailbox {
    queue: List,
    waiting: List,
}

impl Default for Mailbox {
    fn default() -> Self {
        Self::new()
    }
}

impl Mailbox {
    /// An empty mailbox.
    pub const fn new() -> Self {
        Self { queue: List::new(), waiting: List::new() }
    }

    /// Letters in the queue.
    pub const fn queued(&self) -> u32 {
        self.queue.len()
    }

    /// Letters in the waiting room.
    pub const fn waiting(&self) -> u32 {
        self.waiting.len()
    }

    /// Nothing queued, and then nobody waits either.
    pub const fn is_empty(&self) -> bool {
        self.queue.is_empty() && self.waiting.is_empty()
    }
}

#[derive(Debug)]
struct Letter<M> {
    body: M,
    deadline: Instant,
    number: u64,
    source: SourceId,
    owner: u32,
    place: Place,
}

/// How many of each source wait before each entity.
#[derive(Debug, Default)]
pub struct Shares {
    held: BTreeMap<(u32, SourceId), u32>,
}

impl Shares {
    /// Takes a place before `owner`, unless the source has `share` already.
    pub fn take(&mut self, owner: u32, source: SourceId, share: u32) -> bool {
        let held = self.held(owner, source);
        if held >= share {
            return false;
        }
        self.held.insert((owner, source), held + 1);
        true
    }

    /// Gives a place back.
    ///
    /// # Panics
    /// When it was not taken.
    pub fn give_back(&mut self, owner: u32, source: SourceId) {
        let held = self.held.get_mut(&(owner, source)).expect("a place is taken before it is left");
        *held -= 1;
        if *held == 0 {
            self.held.remove(&(owner, source));
        }
    }

    /// Places that `source` has before `owner`.
    pub fn held(&self, owner: u32, source: SourceId) -> u32 {
        self.held.get(&(owner, source)).copied().unwrap_or(0)
    }

    /// Nobody waits.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }
}

/// The letters of all mailboxes of one shard.
#[derive(Debug)]
pub struct Mailboxes<M> {
    letters: Pool<Letter<M>>,
    shares: Shares,
    /// Deadlines of letters, earliest first; those of letters that are gone are skipped.
    deadlines: BinaryHeap<Reverse<(Instant, u64, u32)>>,
    number: u64,
}

impl<M> Default for Mailboxes<M> {
    fn default() -> Self {
        Self::new()
    }
}

impl<M> Mailboxes<M> {
    /// No letters.
    pub fn new() -> Self {
        Self {
            letters: Pool::new(),
            shares: Shares::default(),
            deadlines: BinaryHeap::new(),
            number: 0,
        }
    }

    /// Puts a letter into the queue, or its sender into the waiting room.
    ///
    /// # Errors
    /// Gives the letter back when there is room in neither.
    pub fn offer(&mut self, mailbox: &mut Mailbox, offer: Offer<M>) -> Result<(Place, Ticket), M> {
        let place = if mailbox.queue.len() < offer.bound && mailbox.waiting.is_empty() {
            Place::Queued
        } else if offer.pressure == Pressure::Wait
            && self.shares.take(offer.owner, offer.source, offer.share)
        {
            Place::Waiting
        } else {
            return Err(offer.body);
        };
        self.number += 1;
        let number = self.number;
        let Offer { owner, deadline, source, body, .. } = offer;
        let list = match place {
            Place::Queued => &mut mailbox.queue,
            Place::Waiting => &mut mailbox.waiting,
        };
        let letter = Letter { body, deadline, number, source, owner, place };
        let id = self.letters.append(list, letter);
        self.arm(deadline, number, id);
        Ok((place, Ticket { id, number }))
    }

    /// Takes the first letter of the queue; the first of the waiting room moves up.
    pub fn take(&mut self, mailbox: &mut Mailbox, now: Instant) -> Option<Taken<M>> {
        let letter = self.take_out(mailbox, mailbox.queue.front()?);
        if letter.deadline <= now {
            return Some(Taken::Expired(letter.body));
        }
        Some(Taken::Due(letter.body))
    }

    /// The owner and ticket of a letter whose deadline has passed, if there is one. Take it with
    /// [`Self::remove`], or give it another body with [`Self::replace`].
    pub fn first_expired(&self, now: Instant) -> Option<(u32, Ticket)> {
        let &Reverse((deadline, number, id)) = self.deadlines.peek()?;
        let letter = self.letters.get(id).filter(|_| deadline <= now)?;
        debug_assert!(letter.number == number, "the first deadline is that of a letter");
        Some((letter.owner, Ticket { id, number }))
    }

    /// Takes a letter out of the middle. `None` when it was taken before.
    pub fn remove(&mut self, mailbox: &mut Mailbox, ticket: Ticket) -> Option<M> {
        self.find(ticket)?;
        Some(self.take_out(mailbox, ticket.id).body)
    }

    /// Gives a letter's place to another one, and hands the first one out. `Err` gives the other
    /// one back when the ticket names nothing any more.
    ///
    /// # Errors
    /// As said.
    pub fn replace(
        &mut self,
        ticket: Ticket,
        deadline: Instant,
        body: M,
    ) -> Result<(Ticket, M), M> {
        let letter = self.letters.get_mut(ticket.id);
        let Some(letter) = letter.filter(|letter| letter.number == ticket.number) else {
            return Err(body);
        };
        self.number += 1;
        let number = self.number;
        letter.deadline = deadline;
        letter.number = number;
        let before = std::mem::replace(&mut letter.body, body);
        self.arm(deadline, number, ticket.id);
        self.prune();
        Ok((Ticket { id: ticket.id, number }, before))
    }

    /// Whose mailbox a letter is in, and the letter itself. `None` when it was taken.
    pub fn get(&self, ticket: Ticket) -> Option<(u32, &M)> {
        let letter = self.find(ticket)?;
        Some((letter.owner, &letter.body))
    }

    /// The next deadline of a letter.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.peek().map(|&Reverse((deadline, ..))| deadline)
    }

    /// Letters, waiting ones counted.
    pub fn len(&self) -> u32 {
        self.letters.len()
    }

    /// No letters at all.
    pub fn is_empty(&self) -> bool {
        self.letters.len() == 0
    }

    /// The places that sources hold before entities.
    pub const fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The same, to take places and give them back.
    pub const fn shares_mut(&mut self) -> &mut Shares {
        &mut self.shares
    }

    /// All letters, in no meaningful but a reproducible order; every mailbox ends with this.
    pub fn into_letters(self) -> impl Iterator<Item = M> {
        self.letters.into_values().map(|letter| letter.body)
    }

    fn find(&self, ticket: Ticket) -> Option<&Letter<M>> {
        self.letters.get(ticket.id).filter(|letter| letter.number == ticket.number)
    }

    fn take_out(&mut self, mailbox: &mut Mailbox, id: u32) -> Letter<M> {
        let place = self.letters.get(id).expect("a listed letter is in the pool").place;
        match place {
            Place::Queued => {
                self.letters.unlink(&mut mailbox.queue, id);
                self.move_up(mailbox);
            }
            Place::Waiting => self.letters.unlink(&mut mailbox.waiting, id),
        }
        let letter = self.letters.remove(id);
        if place == Place::Waiting {
            self.shares.give_back(letter.owner, letter.source);
        }
        self.prune();
        letter
    }

    /// One has left the queue: the first of the waiting room takes its place.
    fn move_up(&mut self, mailbox: &mut Mailbox) {
        if let Some(id) = self.letters.pop_front(&mut mailbox.waiting) {
            self.letters.push_back(&mut mailbox.queue, id);
            let letter = self.letters.get_mut(id).expect("a listed letter is in the pool");
            letter.place = Place::Queued;
            self.shares.give_back(letter.owner, letter.source);
        }
    }

    fn arm(&mut self, deadline: Instant, number: u64, id: u32) {
        self.deadlines.push(Reverse((deadline, number, id)));
        // Most letters are taken long before their deadline; what they leave behind is swept out
        // when it is more than half, so that the sweep costs O(1) per letter.
        if self.deadlines.len() > 64 + 2 * self.letters.len() as usize {
            let letters = &self.letters;
            self.deadlines.retain(|&Reverse((_, number, id))| {
                letters.get(id).is_some_and(|letter| letter.number == number)
            });
        }
    }

    /// Keeps the first deadline that of a letter.
    fn prune(&mut self) {
        while let Some(&Reverse((_, number, id))) = self.deadlines.peek() {
            if self.find(Ticket { id, number }).is_some() {
                return;
            }
            self.deadlines.pop();
        }
    }
}

#[cfg(test)]
mod tests;
