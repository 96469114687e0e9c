//! A request at the door of its shard: checked against the map, the kinds and the limits, then
//! given to the rules.

use mainstay_protocol::id::{EntityId, ShardId};
use mainstay_protocol::limits;
use mainstay_protocol::mailbox::SourceId;
use mainstay_protocol::message::{Failure, Mode, Request};
use mainstay_protocol::replication::freshness::Freshness;
use mainstay_protocol::shard::{Admitted, Ask, Refused};
use mainstay_protocol::time::Instant;
use xxhash_rust::xxh3::xxh3_64;

use super::Serving;
use super::caller::Caller;
use crate::entity::host;
use crate::journey::{self, Verb};
use crate::lane::env::Env;
use crate::transport::reply::Envelope;

/// Where a request's kind and method are in the lane's table.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    pub(crate) kind: usize,
    pub(crate) method: usize,
}

/// Finds the method that a request names, and checks everything that no shard has to be asked.
pub(crate) fn check(env: &mut Env, request: &Request) -> Result<Target, Failure> {
    let Some(kind) = env.kinds.find(request.kind) else {
        return Err(Failure::Unknown { what: "kind".to_owned() });
    };
    let shards_total = env.shards_total;
    let hosted = env.kinds.at(kind);
    let Some(method) = hosted.method(request.method) else {
        return Err(Failure::Unknown { what: "method".to_owned() });
    };
    if hosted.info(method).mode != request.mode {
        let name = hosted.info(method).name;
        return Err(Failure::Malformed { reason: format!("{name} is not a {:?}", request.mode) });
    }
    if request.mode == Mode::Query && request.if_version.is_some() {
        let name = hosted.info(method).name;
        return Err(Failure::Malformed {
            reason: format!("{name} is a query: it changes no version"),
        });
    }
    check_freshness(request)?;
    let affinity = host::affinity(|key| hosted.host.affinity(key), &request.key)?;
    let shard = ShardId::of(affinity, shards_total);
    if shard != request.shard {
        let reason = format!("the key belongs to shard {shard}, not {}", request.shard);
        return Err(Failure::Malformed { reason });
    }
    if request.payload.len() > limits::PAYLOAD_BYTES_MAX {
        let (bytes, bytes_max) = (request.payload.len(), limits::PAYLOAD_BYTES_MAX);
        let reason = format!("arguments of {bytes} bytes, the limit is {bytes_max}");
        return Err(Failure::Malformed { reason });
    }
    let entity = EntityId { kind: request.kind, key: request.key.clone() };
    if request.chain.len() >= limits::CALL_CHAIN_MAX || request.chain.contains(&entity.hash64()) {
        return Err(Failure::Reentrant);
    }
    if request.mode == Mode::Command {
        env.check_writable()?;
    }
    Ok(Target { kind, method })
}

/// What a request may say of freshness, which came from outside.
fn check_freshness(request: &Request) -> Result<(), Failure> {
    let malformed = |reason| Err(Failure::Malformed { reason });
    match request.freshness.as_deref() {
        Some(_) if request.mode == Mode::Command => {
            malformed("a command shows the newest state, and no other".to_owned())
        }
        Some(Freshness::AtLeast(token)) if token.shard != request.shard => {
            let (of, shard) = (token.shard, request.shard);
            malformed(format!("the token is of shard {of}, the key belongs to {shard}"))
        }
        None | Some(_) => Ok(()),
    }
}

impl Serving {
    /// Gives a checked request to the rules, and answers at once when they refuse it.
    pub(crate) fn admit(
        &mut self,
        env: &mut Env,
        target: Target,
        envelope: Envelope,
        now: Instant,
    ) {
        let Envelope { request, deadline, source, source_share, reply, .. } = envelope;
        let trace = request.trace.filter(|trace| trace.sampled);
        let span = journey::span(Verb::Admit, trace.as_ref(), Some(&request.key)).entered();
        let kind = env.kinds.at(target.kind);
        let ask = Ask {
            entity: EntityId { kind: request.kind, key: request.key },
            method: request.method,
            mode: request.mode,
            freshness: request.freshness.map(|freshness| *freshness),
            pressure: request.pressure,
            payload_hash: xxh3_64(&request.payload),
            idempotency: request.idempotency,
            if_version: request.if_version,
            deadline,
            mailbox: kind.host.info().options.mailbox,
            source: SourceId(source),
            source_share,
        };
        let caller = Caller {
            kind: target.kind,
            method: target.method,
            payload: request.payload,
            id: request.id,
            chain: request.chain,
            arrived: now,
            queued: true,
            trace,
            waiting: trace.map(|trace| Box::new(journey::span(Verb::Queue, Some(&trace), None))),
            reply,
        };
        kind.queued += 1;
        let newest = !matches!(ask.freshness, Some(Freshness::AtLeast(_)));
        if ask.mode == Mode::Query && newest {
            self.note_query();
        }
        match self.primary.handle_request(ask, caller, now) {
            Ok(Admitted::Waiting(_)) => kind.full_waited.add(1),
            Ok(Admitted::Queued(_) | Admitted::Joined | Admitted::Replayed) => {}
            Err(Refused { failure, item }) => {
                kind.queued -= 1;
                if matches!(&failure, Failure::Overloaded { bound, .. } if bound == "mailbox") {
                    kind.full_rejected.add(1);
                }
                item.reply.send(Err(failure));
            }
        }
        self.touched = true;
        drop(span);
    }
}
