//! The simulated clients: commands with and without keys, retries, conflicts, queries, deadlines.

use std::collections::BTreeMap;
use std::time::Duration;

use fastrand::Rng;
use mainstay_protocol::id::{IdempotencyKey, Seq};
use mainstay_protocol::mailbox::SourceId;
use mainstay_protocol::message::{Failure, Pressure, Success};
use mainstay_protocol::shard::Ask;
use mainstay_protocol::time::Instant;

use super::model::{self, Method};

/// One attempt of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Names the attempt.
    pub id: u64,
    /// The entity.
    pub entity: usize,
    /// The method.
    pub method: Method,
    /// The argument, and what a retry repeats. Unique, but for panicking inputs.
    pub value: u64,
    /// The idempotency key.
    pub key: Option<u64>,
    /// The version at which alone the command may run.
    pub if_version: Option<u64>,
    /// When the caller gives up.
    pub deadline: Instant,
    /// Wait for room or be refused.
    pub pressure: Pressure,
    /// Which client.
    pub source: u64,
}

/// Bounds and habits of one seed.
#[derive(Debug, Clone, Copy)]
pub struct Habits {
    /// Entities.
    pub entities: usize,
    /// Clients.
    pub sources: u64,
    /// Letters in a mailbox.
    pub mailbox: u32,
    /// Waiters of one source before one entity.
    pub share: u32,
    /// Percent of commands with a key.
    pub keyed: u8,
    /// Percent of commands under a condition.
    pub conditional: u8,
    /// Percent of new calls that panic.
    pub panicking: u8,
    /// The longest usual deadline.
    pub deadline_ms: u64,
}

impl Habits {
    /// Draws the habits of a seed.
    pub fn draw(rng: &mut Rng) -> Self {
        Self {
            entities: rng.usize(1..6),
            sources: rng.u64(1..4),
            mailbox: rng.u32(1..5),
            share: rng.u32(0..3),
            keyed: pick(rng, [0, 30, 60, 95]),
            conditional: pick(rng, [0, 20, 70]),
            panicking: pick(rng, [2, 30]),
            deadline_ms: pick(rng, [5, 40, 400]),
        }
    }
}

/// One of several, each as likely.
pub(crate) fn pick<T: Copy, const N: usize>(rng: &mut Rng, from: [T; N]) -> T {
    from[rng.usize(0..N)]
}

impl Call {
    /// The request as a lane makes it.
    ///
    /// # Panics
    /// Never: simulated keys are short.
    pub fn ask(&self, habits: &Habits) -> Ask {
        let key = |key| IdempotencyKey::new(&format!("k{key}")).expect("it is short");
        Ask {
            entity: model::entity(self.entity),
            method: self.method.id(),
            mode: self.method.mode(),
            freshness: None,
            pressure: self.pressure,
            idempotency: self.key.map(key),
            payload_hash: self.value,
            if_version: self.if_version.map(Seq),
            deadline: self.deadline,
            mailbox: habits.mailbox,
            source: SourceId(self.source),
            source_share: habits.share,
        }
    }
}

/// The version that a reply shows.
pub fn version_of(result: &Result<Success, Failure>) -> Option<Seq> {
    match result {
        Ok(Success { token, .. })
        | Err(Failure::App { token, .. } | Failure::VersionMismatch { token }) => Some(token.seq),
        Err(_) => None,
    }
}

/// Makes calls.
#[derive(Debug)]
pub struct Clients {
    /// How they behave.
    pub habits: Habits,
    ids: u64,
    values: u64,
    /// Calls whose key may come back.
    keyed: Vec<Call>,
    /// The newest version of each entity that a reply showed.
    versions: BTreeMap<usize, u64>,
    /// The calls made so far.
    pub calls: BTreeMap<u64, Call>,
}

/// A value below this is a panicking input's.
const VALUES_FROM: u64 = 1000;

impl Clients {
    /// Clients of these habits.
    pub const fn new(habits: Habits) -> Self {
        Self {
            habits,
            ids: 0,
            values: VALUES_FROM,
            keyed: Vec::new(),
            versions: BTreeMap::new(),
            calls: BTreeMap::new(),
        }
    }

    /// A reply came, and shows the version of its entity.
    pub fn handle_reply(&mut self, call: &Call, result: &Result<Success, Failure>) {
        let newest = self.versions.entry(call.entity).or_default();
        *newest = version_of(result).map_or(0, |version| version.0).max(*newest);
    }

    /// What a command of this entity is made to depend on: mostly the version that is known, which
    /// may have passed, sometimes that there is none.
    fn condition(&self, rng: &mut Rng, entity: usize) -> Option<u64> {
        let known = self.versions.get(&entity).copied().unwrap_or(0);
        let version = if rng.u8(0..8) == 0 { 0 } else { known };
        (rng.u8(0..100) < self.habits.conditional).then_some(version)
    }

    /// The next call.
    pub fn next(&mut self, rng: &mut Rng, now: Instant) -> Call {
        self.ids += 1;
        let again = rng.u8(0..100) < 30 && !self.keyed.is_empty();
        let mut call = if again { self.repeat(rng) } else { self.fresh(rng) };
        call.id = self.ids;
        call.source = rng.u64(0..self.habits.sources);
        call.pressure = if rng.bool() { Pressure::Wait } else { Pressure::Refuse };
        let millis = if rng.u8(0..4) == 0 { 2_000 } else { rng.u64(1..=self.habits.deadline_ms) };
        call.deadline = now + Duration::from_millis(millis);
        if call.key.is_some() && !again {
            self.keyed.push(call.clone());
        }
        self.calls.insert(call.id, call.clone());
        call
    }

    /// A retry under the same key, or another command that wrongly uses it.
    fn repeat(&mut self, rng: &mut Rng) -> Call {
        let recent = self.keyed.len().saturating_sub(12);
        let call = self.keyed[rng.usize(recent..self.keyed.len())].clone();
        match rng.u8(0..100) {
            0..55 => return call,
            55..75 => return Call { if_version: self.condition(rng, call.entity), ..call },
            _ => {}
        }
        self.values += 1;
        Call { value: self.values, method: Method::Append, ..call }
    }

    fn fresh(&mut self, rng: &mut Rng) -> Call {
        let method = match rng.u8(0..100) {
            _ if rng.u8(0..100) < self.habits.panicking => Method::Panic,
            0..55 => Method::Append,
            55..65 => Method::Touch,
            65..78 => Method::Refuse,
            _ => Method::Read,
        };
        self.values += 1;
        // Panicking inputs come back, so that they can be quarantined.
        let value = if method == Method::Panic { rng.u64(1..3) } else { self.values };
        let keyed = method != Method::Read && rng.u8(0..100) < self.habits.keyed;
        let entity = rng.usize(0..self.habits.entities).min(rng.usize(0..self.habits.entities));
        Call {
            id: 0,
            entity,
            method,
            value,
            key: keyed.then_some(self.values),
            if_version: self.condition(rng, entity).filter(|_| method != Method::Read),
            deadline: Instant::ZERO,
            pressure: Pressure::Wait,
            source: 0,
        }
    }
}
