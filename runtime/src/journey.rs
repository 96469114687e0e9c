//! The ten verbs of a message's way, as tracing spans under the request's own trace id.
//!
//! Code, logs and dashboards say the same word. Spans are made only for requests whose caller
//! records its trace (`traceparent` with the sampled flag), so that others pay one comparison.

use mainstay_protocol::message::TraceContext;
use tracing::Span;

/// The tracing target of all journey spans.
pub const TARGET: &str = "mainstay::journey";

/// What a room does with a message, in the order in which a message meets the rooms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// The ingress takes it in.
    Accept,
    /// The router finds its owner.
    Route,
    /// The transport carries it there.
    Forward,
    /// The shard lets it in.
    Admit,
    /// It waits in its entity's mailbox.
    Queue,
    /// The entity's turn.
    Handle,
    /// Its entry goes to the journal.
    Append,
    /// Its entry goes to the standbys.
    Replicate,
    /// The watermark reached it.
    Release,
    /// The ingress answers.
    Reply,
}

/// The span of one verb; disabled when the request's caller does not record.
pub fn span(
    verb: Verb,
    trace: Option<&TraceContext>,
    entity: Option<&dyn std::fmt::Display>,
) -> Span {
    let Some(trace) = trace.filter(|trace| trace.sampled) else { return Span::none() };
    macro_rules! named {
        ($name:literal) => {
            tracing::debug_span!(
                target: "mainstay::journey",
                $name,
                trace_id = format_args!("{:032x}", trace.trace),
                entity = entity.map(tracing::field::display),
            )
        };
    }
    match verb {
        Verb::Accept => named!("accept"),
        Verb::Route => named!("route"),
        Verb::Forward => named!("forward"),
        Verb::Admit => named!("admit"),
        Verb::Queue => named!("queue"),
        Verb::Handle => named!("handle"),
        Verb::Append => named!("append"),
        Verb::Replicate => named!("replicate"),
        Verb::Release => named!("release"),
        Verb::Reply => named!("reply"),
    }
}
