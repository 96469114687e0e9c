//! The simulated members: journals with an unsynced end, and a network of segments and
//! acknowledgements.
//!
//! A member's journal is its log; place `n` of the vector is seq `n + 1`. What lies behind
//! `synced` is lost in a crash. A new primary keeps all that it has; the others drop what differs
//! from it and are sent the rest, as standbys do at the first append of an epoch.

use std::collections::VecDeque;

use mainstay_protocol::entry::{DedupRecord, Entry, Op, Segment};
use mainstay_protocol::id::{DiskId, EntityId, Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::replication::Timing;
use mainstay_protocol::replication::in_sync::Copies;
use mainstay_protocol::shard::{Post, Recovered};
use mainstay_protocol::time::{Instant, LogTime};

/// The simulated shard.
pub const SHARD: ShardId = ShardId(3);

/// An entry in a journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// The epoch that wrote it.
    pub epoch: Epoch,
    /// The entry.
    pub entry: Entry,
}

/// One copy of the shard.
#[derive(Debug)]
pub struct Member {
    /// Its name.
    pub name: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Its journal.
    pub log: Vec<Stored>,
    /// How much of it is on disk.
    pub synced: usize,
    /// What is on its way to it.
    inbox: VecDeque<Vec<Stored>>,
}

/// All copies.
#[derive(Debug)]
pub struct Cluster {
    /// The members; all are in the in-sync set.
    pub members: Vec<Member>,
    /// Which one is the primary.
    pub primary: usize,
    /// The present epoch.
    pub epoch: Epoch,
    acks: Vec<(Epoch, usize, Seq)>,
}

impl Cluster {
    /// A cluster of empty journals.
    ///
    /// # Panics
    /// Never: simulated names are short.
    pub fn new(copies: usize) -> Self {
        let member = |at| Member {
            name: NodeId::new(&format!("n{at}")).expect("it is short"),
            disk: DiskId::from_bytes([u8::try_from(at).unwrap_or(u8::MAX); 16]),
            log: Vec::new(),
            synced: 0,
            inbox: VecDeque::new(),
        };
        let members = (0..copies).map(member).collect();
        Self { members, primary: 0, epoch: Epoch(0), acks: Vec::new() }
    }

    /// The primary's journal.
    pub fn log(&self) -> &[Stored] {
        &self.members[self.primary].log
    }

    /// How much of the log every member has on disk.
    pub fn durable(&self) -> usize {
        self.members.iter().map(|member| member.synced).min().unwrap_or(0)
    }

    /// Writes a segment into the primary's journal and sends it to the others.
    ///
    /// # Errors
    /// What is wrong with a segment that does not read back.
    pub fn write(&mut self, segment: &Segment) -> Result<Vec<Stored>, String> {
        let entries = segment.entries().map_err(|error| error.to_string())?;
        let stored = |entry| Stored { epoch: segment.epoch, entry };
        let entries: Vec<Stored> = entries.into_iter().map(stored).collect();
        for (at, member) in self.members.iter_mut().enumerate() {
            if at == self.primary {
                member.log.extend(entries.iter().cloned());
            } else {
                member.inbox.push_back(entries.clone());
            }
        }
        Ok(entries)
    }

    /// The next segment reaches a standby.
    pub fn deliver(&mut self, at: usize) {
        let member = &mut self.members[at];
        if let Some(entries) = member.inbox.pop_front() {
            member.log.extend(entries);
        }
    }

    /// A member's disk has everything, and it says so.
    pub fn sync(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.synced = member.log.len();
        self.acks.push((self.epoch, at, Seq(member.synced as u64)));
    }

    /// Any acknowledgement arrives, perhaps to arrive again; one of an earlier epoch is dropped.
    pub fn ack(&mut self, nth: usize, again: bool) -> Option<(usize, Seq)> {
        let at = nth % self.acks.len().max(1);
        let &(epoch, member, upto) = self.acks.get(at)?;
        if !again {
            self.acks.remove(at);
        }
        (epoch == self.epoch).then_some((member, upto))
    }

    /// A member's process dies: what is unsynced is gone, and what was on its way.
    pub fn crash(&mut self, at: usize) {
        let member = &mut self.members[at];
        member.log.truncate(member.synced);
        member.inbox.clear();
    }

    /// A member becomes the primary of the next epoch.
    pub fn promote(&mut self, at: usize) -> (Post, Recovered) {
        self.primary = at;
        self.epoch = Epoch(self.epoch.0 + 1);
        let log = self.log().to_vec();
        self.members[at].synced = log.len();
        self.members[at].inbox.clear();
        for member in &mut self.members {
            let same = member.log.iter().zip(&log).take_while(|(a, b)| a == b).count();
            member.log.truncate(same);
            member.synced = member.synced.min(same);
        }
        (0..self.members.len()).for_each(|at| self.resend(at));
        let last = Seq(log.len() as u64);
        let claim = |member: &Member| (member.name.clone(), member.disk);
        let in_sync = self.members.iter().map(claim).collect();
        let post = Post {
            shard: SHARD,
            epoch: self.epoch,
            me: self.members[at].name.clone(),
            copies: Copies { in_sync, ..Copies::default() },
            min_insync: u8::try_from(self.members.len().min(2)).unwrap_or(2),
            timing: Timing::default(),
            serve_from: Instant::ZERO,
        };
        let log_time = log.last().map_or(LogTime(0), |stored| stored.entry.log_time);
        (post, Recovered { last, log_time, dedup: log.iter().filter_map(record_of).collect() })
    }

    /// A standby is sent what it has not got.
    pub fn resend(&mut self, at: usize) {
        if at == self.primary {
            return;
        }
        let rest = self.log()[self.members[at].log.len()..].to_vec();
        let member = &mut self.members[at];
        member.inbox.clear();
        member.inbox.extend((!rest.is_empty()).then_some(rest));
    }
}

fn record_of(stored: &Stored) -> Option<(EntityId, LogTime, DedupRecord)> {
    let Op::Turn { entity, dedup: Some(record), .. } = &stored.entry.op else {
        return None;
    };
    Some((entity.clone(), stored.entry.log_time, record.clone()))
}
