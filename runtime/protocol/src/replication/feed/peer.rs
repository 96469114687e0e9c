//! One copy, as the feed of its shard sees it.

use std::collections::VecDeque;

use super::super::Position;
use super::super::history::History;
use super::place;
use crate::id::{DiskId, Seq};
use crate::time::Instant;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// One append is on its way, to learn where the copy is.
    Asking,
    /// Appends follow each other.
    Streaming,
    /// It needs the states, and they have not had their turn: nothing is kept for it.
    Waiting,
    /// The states are being sent, as of this place.
    Copying { base: Seq },
}

#[derive(Debug)]
pub(super) struct Peer {
    pub(super) disk: DiskId,
    pub(super) stage: Stage,
    /// It got the states as of this place, and has until then to catch up.
    pub(super) catching_up: Option<(Seq, Instant)>,
    /// The next append goes on from here.
    pub(super) next: Position,
    /// Where this attempt to find its place began, and when.
    asked: Position,
    pub(super) attempt: Instant,
    /// The latest append that it heard was sent then.
    pub(super) heard: Instant,
    /// It acknowledged everything up to here.
    pub(super) matched: Seq,
    /// The last place and the bytes of each append that is not acknowledged.
    pub(super) in_flight: VecDeque<(Seq, u64)>,
    /// It was told that everything up to here is committed.
    pub(super) told: Seq,
    /// When the last append was sent.
    pub(super) sent_at: Instant,
    /// Since when it owes an answer.
    pub(super) owes_since: Option<Instant>,
}

impl Peer {
    pub(super) const fn new(disk: DiskId, from: Position, now: Instant) -> Self {
        Self {
            disk,
            stage: Stage::Asking,
            catching_up: None,
            next: from,
            asked: from,
            attempt: now,
            heard: Instant::ZERO,
            matched: Seq(0),
            in_flight: VecDeque::new(),
            told: Seq(0),
            sent_at: Instant::ZERO,
            owes_since: None,
        }
    }

    /// One append from here, to learn where the copy is.
    pub(super) fn ask(&mut self, from: Position, now: Instant) {
        self.stage = Stage::Asking;
        (self.next, self.asked, self.attempt) = (from, from, now);
        self.in_flight.clear();
        self.owes_since = None;
    }

    /// What was on its way may be lost: it is asked where it surely is, or where it was asked.
    pub(super) fn ask_again(&mut self, history: &History, now: Instant) {
        let surely = self.matched > Seq(0);
        let from = if surely { place(history, self.matched) } else { self.asked };
        self.ask(from, now);
    }

    /// It heard an append that was sent then. What it owes may take its disk a while.
    pub(super) fn handle_heard(&mut self, sent_at: Instant, now: Instant) {
        self.heard = self.heard.max(sent_at);
        if self.owes_since.is_some_and(|since| sent_at >= since) {
            self.owes_since = Some(now);
        }
    }

    /// It needs the states.
    pub(super) fn wait_for_states(&mut self) {
        (self.stage, self.catching_up) = (Stage::Waiting, None);
        self.in_flight.clear();
        self.owes_since = None;
    }

    /// The states are on their way to it, or will be: it hears nothing else.
    pub(super) const fn gets_states(&self) -> bool {
        matches!(self.stage, Stage::Waiting | Stage::Copying { .. })
    }

    /// It has, or will have, everything up to here.
    pub(super) fn lacks_after(&self) -> Seq {
        match (self.stage, self.catching_up) {
            (Stage::Copying { base }, _) => base,
            (_, Some((base, _))) => base.max(self.matched),
            (_, None) => self.matched,
        }
    }

    pub(super) fn catches_up_until(&self) -> Option<Instant> {
        self.catching_up.map(|(_, until)| until)
    }

    pub(super) fn handle_holds(&mut self, upto: Seq, now: Instant) {
        self.matched = self.matched.max(upto);
        while self.in_flight.front().is_some_and(|(last, _)| *last <= upto) {
            self.in_flight.pop_front();
        }
        let owes = !self.in_flight.is_empty();
        self.owes_since = owes.then_some(now);
        if self.stage == Stage::Asking && !owes {
            self.stage = Stage::Streaming;
        }
    }

    pub(super) fn in_flight_bytes(&self) -> u64 {
        self.in_flight.iter().map(|(_, bytes)| bytes).sum()
    }

    /// Entries may go: its place is known, or is asked for with them.
    pub(super) fn takes_entries(&self) -> bool {
        match self.stage {
            Stage::Asking => self.owes_since.is_none(),
            Stage::Streaming => true,
            Stage::Waiting | Stage::Copying { .. } => false,
        }
    }
}
