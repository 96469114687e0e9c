//! The simulated clients: each has one operation at a time, repeats it under its key, and keeps
//! asking the node that it knows, also when that is no primary any more.

use std::time::Duration;

use fastrand::Rng;
use mainstay_protocol::id::Seq;
use mainstay_protocol::message::{Failure, Pressure};
use mainstay_protocol::time::Instant;

use super::node::wire::Reply;
use crate::sim::clients::{Call, version_of};
use crate::sim::model::{self, Method};

/// Attempts of one operation.
const ATTEMPTS: u32 = 6;

/// One operation, from its first attempt to its end.
#[derive(Debug, Clone)]
pub struct Op {
    /// The present attempt.
    pub call: Call,
    /// The list of its entity was so long in some reply before it began.
    pub floor: usize,
    /// The version that its reply shows.
    pub version: Option<Seq>,
    attempts: u32,
    /// It may have taken effect.
    maybe: bool,
}

/// How an operation ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// With the list that its reply shows.
    Shown(Vec<u64>),
    /// It did not happen, and will not.
    NotExecuted,
    /// It may have happened, or will.
    Unknown,
}

/// A client.
#[derive(Debug)]
pub struct Client {
    /// The node that it asks.
    pub target: usize,
    /// What it does.
    pub op: Option<Op>,
    sticky: bool,
}

/// All clients.
#[derive(Debug)]
pub struct Clients {
    /// The clients.
    pub all: Vec<Client>,
    /// The longest list that any reply showed, by entity.
    pub shown: Vec<usize>,
    /// The newest version that any reply showed, by entity.
    versions: Vec<u64>,
    nodes: usize,
    keyed: u8,
    reads: u8,
    ids: u64,
    values: u64,
}

impl Clients {
    /// Clients of a cluster of so many nodes.
    pub fn new(rng: &mut Rng, nodes: usize) -> Self {
        let client =
            |rng: &mut Rng| Client { target: rng.usize(0..nodes), op: None, sticky: rng.bool() };
        let all = (0..rng.u64(2..5)).map(|_| client(rng)).collect();
        let entities = rng.usize(1..4);
        Self {
            all,
            shown: vec![0; entities],
            versions: vec![0; entities],
            nodes,
            keyed: rng.u8(0..100),
            reads: rng.u8(10..60),
            ids: 0,
            values: 0,
        }
    }

    /// The next operation of an idle client.
    pub fn begin(&mut self, at: usize, rng: &mut Rng) -> &Op {
        self.values += 1;
        let entity = rng.usize(0..self.shown.len());
        let method = match rng.u8(0..100) {
            roll if roll < self.reads => Method::Read,
            roll if roll % 10 == 0 => Method::Touch,
            roll if roll % 10 == 1 => Method::Refuse,
            _ => Method::Append,
        };
        let keyed = method != Method::Read && rng.u8(0..100) < self.keyed;
        let conditional = method == Method::Append && self.values.is_multiple_of(3);
        let call = Call {
            id: 0,
            entity,
            method,
            value: self.values,
            key: keyed.then_some(self.values),
            if_version: conditional.then_some(self.versions[entity]),
            deadline: Instant::ZERO,
            pressure: Pressure::Wait,
            source: at as u64,
        };
        let op = Op { call, floor: self.shown[entity], version: None, attempts: 0, maybe: false };
        self.all[at].op = Some(op);
        self.attempt(at)
    }

    /// Another attempt, under a number of its own.
    fn attempt(&mut self, at: usize) -> &Op {
        self.ids += 1;
        let op = self.all[at].op.as_mut().expect("a client attempts what it began");
        op.call.id = self.ids;
        op.attempts += 1;
        op
    }

    /// How long a client waits for a reply.
    pub fn patience(rng: &mut Rng) -> Duration {
        Duration::from_millis(rng.u64(20..250))
    }

    /// A reply, or its absence, ends the operation, or leads to another attempt.
    pub fn handle(
        &mut self,
        at: usize,
        id: u64,
        reply: Option<Reply>,
        rng: &mut Rng,
    ) -> Option<(Op, End)> {
        let client = &mut self.all[at];
        let op = client.op.as_mut().filter(|op| op.call.id == id)?;
        if let Some(Reply::Result(result)) = &reply {
            op.version = version_of(result);
            let newest = &mut self.versions[op.call.entity];
            *newest = op.version.map_or(0, |version| version.0).max(*newest);
        }
        // Final, whatever became of earlier attempts: had one taken effect, its key would be known.
        let unmet = matches!(reply, Some(Reply::Result(Err(Failure::VersionMismatch { .. }))));
        let end = match reply {
            Some(Reply::Result(Ok(success))) => End::Shown(model::decode(&success.value)),
            Some(Reply::Result(Err(Failure::App { error, .. }))) => {
                End::Shown(model::decode(&error))
            }
            Some(Reply::Result(Err(failure))) => match failure {
                Failure::Deadline { outcome } | Failure::Unavailable { outcome, .. }
                    if outcome != mainstay_protocol::message::Outcome::NotExecuted =>
                {
                    End::Unknown
                }
                _ => End::NotExecuted,
            },
            Some(Reply::NotExecuted) => End::NotExecuted,
            Some(Reply::Unknown) | None => End::Unknown,
        };
        op.maybe |= end == End::Unknown;
        let shown = matches!(end, End::Shown(_));
        let harmless = op.call.key.is_some() || !op.maybe || op.call.method == Method::Read;
        if !client.sticky || rng.u8(0..10) == 0 {
            client.target = rng.usize(0..self.nodes);
        }
        if !shown && !unmet && harmless && op.attempts < ATTEMPTS {
            return None;
        }
        let op = client.op.take()?;
        if let End::Shown(list) = &end {
            let longest = &mut self.shown[op.call.entity];
            *longest = (*longest).max(list.len());
        }
        let end = if !shown && !unmet && op.maybe { End::Unknown } else { end };
        Some((op, end))
    }

    /// The next attempt of an operation that goes on.
    pub fn again(&mut self, at: usize) -> Option<&Op> {
        self.all[at].op.as_ref()?;
        Some(self.attempt(at))
    }
}
