//! The feed of one shard: what its primary appended, on its way to every other copy.
//!
//! ```text
//!                 Gap: try earlier          Holds
//!            +----------------------+   +-----------+
//!            v                      |   |           v
//!   (new) -> asking --one append--> ?  -+--> streaming --many appends, a window of bytes-->
//!            |                                      |
//!            | older than what is kept              | a new connection
//!            v                                      |
//!         waiting --its turn--> copying --copied--> asking
//! ```
//! Entries are kept until every other copy holds them, and a little longer, or up to a limit; a copy
//! that is further behind gets the states themselves. A slow copy costs its window and that limit,
//! no more: when it owes an answer it is asked by a heartbeat, and says whether it lacks what was
//! sent. What is kept beside states that are sent is in `copying.rs`.
//!
//! A shard at rest sends nothing: everybody holds everything and knows it. Whether a member lives
//! is the failure detector's to say, for all shards at once.

mod copying;
mod lag;
mod peer;

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use super::history::History;
use super::in_sync::Copies;
use super::{Answer, Append, Position, Told};
use crate::entry::Segment;
use crate::id::{DiskId, Epoch, NodeId, Seq, ShardId};
use crate::mutants::{Mutant, Planted};
use crate::time::Instant;
use lag::Kept;
pub use lag::Lag;
use peer::{Peer, Stage};

/// The limits of a feed.
#[derive(Debug, Clone, Copy)]
pub struct Config {
    /// Bytes on their way to one copy that it has not acknowledged.
    pub window_bytes: u64,
    /// Bytes of one append, unless one segment has more.
    pub append_bytes: u64,
    /// Bytes of committed entries that are kept for copies that lack them. Of one shard: whoever
    /// makes the feed divides what its node has for all of them.
    pub retain_bytes: u64,
    /// Bytes of committed entries that are kept when nobody lacks them, so that a copy that was away
    /// for a moment needs no states. Of one shard, like the others.
    pub recent_bytes: u64,
    /// Bytes of committed entries that are kept beside states that are being sent, and until who got
    /// them has caught up. Of one shard: whoever gives turns to copies divides what its node has.
    pub copying_bytes: u64,
    /// How long a copy that got the states has to catch up, before it is one that lacks entries like
    /// others.
    pub catch_up: Duration,
    /// A copy that owes an answer for so long is asked again.
    pub ask_again: Duration,
    /// How often promises are asked for, while the shard serves queries.
    pub heartbeat: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            window_bytes: 4 << 20,
            append_bytes: 1 << 20,
            retain_bytes: 8 << 20,
            recent_bytes: 1 << 20,
            copying_bytes: 128 << 20,
            catch_up: Duration::from_secs(30),
            ask_again: Duration::from_millis(100),
            heartbeat: Duration::from_millis(25),
        }
    }
}

/// What a feed wants done, in this order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Send it.
    Send {
        /// To whom.
        to: NodeId,
        /// What.
        append: Append,
    },
    /// Send the states, once it is their turn: [`Feed::handle_copy_turn`] says as of which place.
    Copy {
        /// To whom.
        to: NodeId,
    },
    /// Tell the primary how far a copy is.
    Holds {
        /// Which.
        from: NodeId,
        /// Its disk.
        disk: DiskId,
        /// Everything up to here is on it.
        upto: Seq,
        /// The record that it heard of by then, or a newer one.
        version: u64,
    },
    /// Tell the primary that a copy heard an append.
    Heard {
        /// Which.
        from: NodeId,
        /// Its disk.
        disk: DiskId,
        /// When the append was sent.
        sent_at: Instant,
        /// It keeps a promise.
        promised: bool,
    },
    /// Tell the primary that a copy lost what it had acknowledged.
    Regressed {
        /// Which.
        from: NodeId,
        /// Its disk.
        disk: DiskId,
        /// All that it may have.
        upto: Seq,
    },
    /// A newer epoch exists: this primary is deposed.
    Deposed {
        /// The epoch.
        by: Epoch,
    },
}

/// The feed of one shard, in one epoch.
#[derive(Debug)]
pub struct Feed {
    config: Config,
    shard: ShardId,
    epoch: Epoch,
    history: History,
    kept: VecDeque<Kept>,
    kept_bytes: u64,
    /// Bytes of all segments so far, those of the tail included.
    fed_bytes: u64,
    committed: Seq,
    /// Everything up to here can be saved: states are sent as of this place.
    savable: Seq,
    /// Of the record that the primary goes by.
    version: u64,
    peers: BTreeMap<NodeId, Peer>,
    /// Promises are asked for until then.
    leases_until: Instant,
    effects: VecDeque<Effect>,
    planted: Planted,
}

impl Feed {
    /// The feed of an epoch that begins: `tail` are the last segments of the log, which ends where
    /// `history` does. All that is not known to be committed belongs to the tail: a member that
    /// lacks some of it can be sent neither those entries nor, before they are committed, the states.
    /// So does what is committed and cannot be saved yet.
    ///
    /// # Panics
    /// When the tail begins later.
    pub fn new(
        config: Config,
        (shard, epoch): (ShardId, Epoch),
        mut history: History,
        tail: Vec<Segment>,
        (committed, savable): (Seq, Seq),
    ) -> Self {
        let end = history.last().seq;
        history.forget_below(tail.first().map_or(end, |first| Seq(first.first.0 - 1)));
        let begins = history.base().seq;
        assert!(begins <= committed, "a feed's tail reaches down to what is committed");
        assert!(begins <= savable, "a feed's tail reaches down to what can be saved");
        let mut this = Self {
            config,
            shard,
            epoch,
            history,
            kept: VecDeque::with_capacity(tail.len()),
            kept_bytes: 0,
            fed_bytes: 0,
            committed,
            savable: savable.min(committed),
            version: 0,
            peers: BTreeMap::new(),
            leases_until: Instant::ZERO,
            effects: VecDeque::new(),
            planted: Planted::default(),
        };
        for segment in tail {
            this.keep(segment, None);
        }
        this
    }

    /// Breaks a rule on purpose, for the simulator.
    #[cfg(feature = "mutants")]
    pub const fn plant(&mut self, mutant: Mutant) {
        self.planted = Planted::new(mutant);
    }

    /// What to do next.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// Who else holds the shard, or should, by the record that the primary goes by. With a new record
    /// whoever is in no set is asked again: it may have been dropped and made anew meanwhile.
    pub fn handle_copies(&mut self, me: &NodeId, copies: &Copies, now: Instant) {
        let moved = copies.version != self.version;
        self.version = copies.version;
        // A node that came back with another disk is fed for that one.
        let all = copies.in_sync.iter().chain(&copies.wanted);
        let others: BTreeMap<&NodeId, &DiskId> = all.filter(|(node, _)| *node != me).collect();
        self.peers.retain(|node, peer| others.get(node) == Some(&&peer.disk));
        for (node, peer) in &mut self.peers {
            let outside = copies.in_sync.get(node) != Some(&peer.disk);
            if moved && outside && !peer.gets_states() {
                peer.ask_again(&self.history, now);
            }
        }
        for (node, disk) in others {
            if !self.peers.contains_key(node) {
                self.peers.insert(node.clone(), Peer::new(*disk, self.first_asked(), now));
            }
        }
        self.pump(now);
    }

    /// Where a copy that nothing is known of is asked first: right before this epoch's entries.
    fn first_asked(&self) -> Position {
        let before = Position { epoch: Epoch(self.epoch.0 - 1), seq: self.history.last().seq };
        self.history.agreement(before).unwrap_or_else(|| self.history.base())
    }

    /// The primary appended; the same goes to its own journal.
    pub fn handle_segment(&mut self, segment: Segment, now: Instant) {
        self.history.append(segment.epoch, segment.last);
        self.keep(segment, Some(now));
        self.pump(now);
    }

    /// The watermark moved, or more can be saved.
    pub fn handle_committed(&mut self, committed: Seq, savable: Seq, now: Instant) {
        if committed > self.committed || savable > self.savable {
            self.committed = self.committed.max(committed);
            self.savable = self.savable.max(savable.min(self.committed));
            self.forget();
            self.pump(now);
        }
    }

    /// The shard answers queries, or will: promises are asked for until then.
    pub fn ask_leases(&mut self, until: Instant) {
        self.leases_until = self.leases_until.max(until);
    }

    /// A query waits for a round: everybody is asked at once.
    pub fn ask_round(&mut self, now: Instant) {
        let nodes: Vec<_> = self.peers.keys().cloned().collect();
        for node in nodes {
            self.send(&node, now);
        }
    }

    /// A connection to this node is new: what was on its way may be lost. States have a connection of
    /// their own.
    pub fn handle_connected(&mut self, node: &NodeId, now: Instant) {
        if let Some(peer) = self.peers.get_mut(node).filter(|peer| !peer.gets_states()) {
            peer.ask_again(&self.history, now);
        }
        self.pump(now);
    }

    /// A copy answered.
    pub fn handle_answer(&mut self, from: &NodeId, answer: &Answer, now: Instant) {
        let (disk, shard) = (answer.disk, answer.shard);
        if let Told::Fenced { promised } = answer.what
            && promised > self.epoch
            && shard == self.shard
        {
            self.effects.push_back(Effect::Deposed { by: promised });
            return;
        }
        let of_now = answer.epoch == self.epoch && shard == self.shard;
        let ignores = self.planted.has(Mutant::IgnoreDisk);
        let Some(peer) =
            self.peers.get_mut(from).filter(|it| of_now && (it.disk == disk || ignores))
        else {
            return;
        };
        let from = from.clone();
        match answer.what {
            // What was never sent was not heard, and would make every answer look late.
            Told::Heard { sent_at, .. } if sent_at > peer.sent_at.as_nanos() => return,
            Told::Heard { sent_at, promised } => {
                let sent_at = Instant::from_nanos(sent_at);
                peer.handle_heard(sent_at, now);
                self.effects.push_back(Effect::Heard { from, disk, sent_at, promised });
                return;
            }
            Told::Holds { upto, version } if upto <= self.history.last().seq => {
                peer.handle_holds(upto, now);
                self.note_caught_up(&from);
                self.effects.push_back(Effect::Holds { from, disk, upto, version });
                self.forget();
            }
            Told::Gap { sent_at, last } => {
                let sent_at = Instant::from_nanos(sent_at);
                // One that comes after answers to later appends tells how it was, not how it is.
                if sent_at >= peer.attempt.max(peer.heard) && !peer.gets_states() {
                    self.handle_gap(&from, last, now);
                }
            }
            Told::Holds { .. } | Told::Fenced { .. } => return,
        }
        self.pump(now);
    }

    fn handle_gap(&mut self, from: &NodeId, last: Position, now: Instant) {
        let Some(peer) = self.peers.get_mut(from) else { return };
        if last.seq < peer.matched {
            let (from, disk, upto) = (from.clone(), peer.disk, last.seq);
            peer.matched = upto;
            self.effects.push_back(Effect::Regressed { from, disk, upto });
        }
        if let Some(at) = self.history.agreement(last) {
            peer.ask(at, now);
            return;
        }
        peer.wait_for_states();
        self.effects.push_back(Effect::Copy { to: from.clone() });
    }

    /// Time passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.end_catching_up(now);
        let due = |peer: &Peer| {
            let times = [self.asks(peer), self.beat(peer)];
            times.into_iter().flatten().any(|due| now >= due)
        };
        let due: Vec<_> = self.peers.iter().filter(|(_, peer)| due(peer)).collect();
        let due: Vec<_> = due.into_iter().map(|(node, _)| node.clone()).collect();
        for node in due {
            self.remind(&node, now);
            self.send(&node, now);
        }
        self.pump(now);
    }

    /// When a copy is asked again that owes an answer.
    fn asks(&self, peer: &Peer) -> Option<Instant> {
        peer.owes_since.map(|since| since + self.config.ask_again)
    }

    /// A copy that is late with an answer is asked by a heartbeat at the end of what was sent: it
    /// acknowledges, or answers a gap if something was lost. Its disk may be slow only.
    fn remind(&mut self, node: &NodeId, now: Instant) {
        let late = self.peers.get(node).and_then(|peer| self.asks(peer));
        if let Some(peer) = self.peers.get_mut(node)
            && late.is_some_and(|due| now >= due)
        {
            peer.owes_since = Some(now);
        }
    }

    /// When a copy is to hear something, if it is: that a promise is wanted, or what is committed.
    fn beat(&self, peer: &Peer) -> Option<Instant> {
        let due = peer.sent_at + self.config.heartbeat;
        let uninformed = peer.told < self.committed.min(peer.next.seq);
        (!peer.gets_states() && (due < self.leases_until || uninformed)).then_some(due)
    }

    /// When to call [`Self::handle_timeout`].
    pub fn poll_timeout(&self) -> Option<Instant> {
        let each = self
            .peers
            .values()
            .flat_map(|peer| [self.asks(peer), self.beat(peer), peer.catches_up_until()]);
        each.flatten().min()
    }

    /// Sends what can be sent to everybody.
    fn pump(&mut self, now: Instant) {
        let nodes: Vec<_> = self.peers.keys().cloned().collect();
        for node in nodes {
            while self.may_send(&node) {
                self.send(&node, now);
            }
        }
    }

    /// A copy that was behind what is kept now is asked where what is kept begins: it may be there
    /// by what is on its way.
    fn find_again(&mut self, node: &NodeId, now: Instant) {
        let base = self.history.base();
        let Some(peer) = self.peers.get_mut(node) else { return };
        if peer.next.seq < base.seq && !peer.gets_states() {
            peer.ask(base, now);
        }
    }

    /// Whether there is something to tell this copy, and room for it.
    fn may_send(&self, node: &NodeId) -> bool {
        let peer = &self.peers[node];
        match peer.stage {
            Stage::Waiting | Stage::Copying { .. } => false,
            Stage::Asking => peer.owes_since.is_none(),
            Stage::Streaming => {
                let behind = peer.next.seq < self.history.last().seq;
                behind && peer.in_flight_bytes() < self.config.window_bytes
            }
        }
    }

    /// Sends the next entries as far as there is room, or a heartbeat.
    fn send(&mut self, node: &NodeId, now: Instant) {
        self.find_again(node, now);
        let Some(peer) = self.peers.get_mut(node) else { return };
        let full = peer.in_flight_bytes() >= self.config.window_bytes || !peer.takes_entries();
        let mut segments = Vec::new();
        let mut bytes = 0;
        let first = self.kept.partition_point(|kept| kept.segment.last <= peer.next.seq);
        for Kept { segment, .. } in self.kept.iter().skip(first).take_while(|_| !full) {
            if bytes >= self.config.append_bytes {
                break;
            }
            bytes += segment.bytes.len() as u64;
            // The first may begin earlier, when what the copy has ends inside of it.
            let part = segment.from(peer.next.seq.next()).expect("what is kept decodes");
            segments.push(part.expect("it ends after what the copy has"));
        }
        let prev = peer.next;
        if let Some(last) = segments.last() {
            peer.next = Position { epoch: last.epoch, seq: last.last };
            peer.in_flight.push_back((last.last, bytes));
        }
        if !segments.is_empty() || peer.stage == Stage::Asking {
            peer.owes_since.get_or_insert(now);
        }
        peer.told = self.committed.min(peer.next.seq);
        peer.sent_at = now;
        let append = Append {
            shard: self.shard,
            epoch: self.epoch,
            version: self.version,
            sent_at: now.as_nanos(),
            lease: now < self.leases_until,
            prev,
            segments,
            committed: self.committed,
        };
        self.effects.push_back(Effect::Send { to: node.clone(), append });
    }

    /// What the copy that fed others goes on from as a standby: the epochs of its log, and up to
    /// where everything is committed.
    pub fn into_log(self) -> (History, Seq) {
        (self.history, self.committed)
    }

    /// Everybody holds everything up to here.
    pub fn matched(&self) -> Seq {
        let end = self.history.last().seq;
        self.peers.values().map(|peer| peer.matched).min().unwrap_or(end)
    }

    /// Bytes of entries kept.
    pub const fn kept_bytes(&self) -> u64 {
        self.kept_bytes
    }
}

/// This place of the log, or the base when it lies before.
fn place(history: &History, seq: Seq) -> Position {
    history.epoch_at(seq).map_or_else(|| history.base(), |epoch| Position { epoch, seq })
}

#[cfg(test)]
mod tests;
