//! What the admin listener answers and the command line reads: one type per document, each with
//! its schema's name and version. Raw units: seconds, bytes.

use std::sync::Arc;

use mainstay::entity::host::{KindHost, Style};
use mainstay::events::EventRecord;
use mainstay::protocol::id::NodeId;
use mainstay::protocol::message::Mode;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::EntityRow;

/// `mainstay.kinds/v1`: the entity kinds of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kinds {
    /// `mainstay.kinds/v1`.
    pub schema: String,
    /// By name.
    pub kinds: Vec<KindRow>,
}

/// One kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindRow {
    /// Its name.
    pub name: String,
    /// What it is.
    pub doc: String,
    /// Messages that wait for one entity, at most.
    pub mailbox: u32,
    /// How long an idle entity stays in memory.
    pub idle_seconds: f64,
    /// By name.
    pub methods: Vec<MethodRow>,
}

/// One method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MethodRow {
    /// Its name.
    pub name: String,
    /// What it does.
    pub doc: String,
    /// `command` or `query`.
    pub mode: String,
    /// `inline`, `async` or `blocking`.
    pub style: String,
    /// How long a caller waits unless it says otherwise.
    pub deadline_seconds: Option<f64>,
}

/// `mainstay.entities/v1`: a page of one kind's entities on one node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entities {
    /// `mainstay.entities/v1`.
    pub schema: String,
    /// The node: others have others.
    pub node: String,
    /// The kind.
    pub kind: String,
    /// This page, by key.
    pub entities: Vec<EntityRow>,
    /// The last key of this page, when more may follow.
    pub next: Option<String>,
}

/// `mainstay.entity/v1`: one entity.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entity {
    /// `mainstay.entity/v1`.
    pub schema: String,
    /// Its kind.
    pub kind: String,
    /// Its key.
    pub key: String,
    /// Its shard.
    pub shard: u32,
    /// The node that answers.
    pub node: String,
    /// Who serves the shard. Only that node knows the rest.
    pub primary: Option<NodeId>,
    /// The entry that last changed it; 0 when it was never written.
    pub seq: Option<u64>,
    /// It is in memory.
    pub active: Option<bool>,
    /// Bytes of its encoded state.
    pub state_bytes: Option<u64>,
    /// Its state; absent when it was never written.
    pub state: Option<Value>,
}

/// `mainstay.events/v1`: kept events of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Events {
    /// `mainstay.events/v1`.
    pub schema: String,
    /// Oldest first.
    pub events: Vec<EventRow>,
}

/// One event, as it is read: kinds of events that this build does not know are kept as they are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventRow {
    /// Counts from 1 on the node that tells it.
    pub id: u64,
    /// When that node applied it: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The node that tells it.
    pub node: NodeId,
    /// The version of the map that it made.
    pub map_version: u64,
    /// What happened: an object with a member `type`.
    pub event: Value,
}

impl EventRow {
    /// An event of this node's log, as a row.
    ///
    /// # Panics
    /// Never: events have only members that encode.
    pub fn of(record: &EventRecord) -> Self {
        Self {
            id: record.id,
            at_ms: record.at_ms.0,
            node: record.node.clone(),
            map_version: record.map_version,
            event: serde_json::to_value(&record.event).expect("an event encodes"),
        }
    }
}

/// `mainstay.locality/v1`: who called whom from a node, and how far away.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Locality {
    /// `mainstay.locality/v1`.
    pub schema: String,
    /// The node.
    pub node: String,
    /// The pairs that cost most remote bytes, dearest first.
    pub rows: Vec<Traffic>,
}

/// Calls of one kind to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Traffic {
    /// The calling kind, or `(outside)`.
    pub from: String,
    /// The called kind.
    pub to: String,
    /// Answered on the node itself.
    pub local: u64,
    /// Bytes of their arguments and values.
    pub local_bytes: u64,
    /// Answered on another.
    pub remote: u64,
    /// Bytes of their arguments and values.
    pub remote_bytes: u64,
    /// The share of the local ones; absent without calls.
    pub local_ratio: Option<f64>,
}

/// `mainstay.change/v1`: a change of members that was agreed on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Change {
    /// `mainstay.change/v1`.
    pub schema: String,
    /// `drain`, `undrain` or `remove`.
    pub change: String,
    /// Whom it is about.
    pub node: NodeId,
}

impl Kinds {
    /// These kinds.
    pub fn of(kinds: &[Arc<dyn KindHost>]) -> Self {
        let kinds = kinds.iter().map(|host| KindRow::of(host.as_ref())).collect();
        Self { schema: "mainstay.kinds/v1".to_owned(), kinds }
    }
}

impl KindRow {
    fn of(host: &dyn KindHost) -> Self {
        let info = host.info();
        let methods = info.methods.iter().map(|method| MethodRow {
            name: method.name.to_owned(),
            doc: method.doc.to_owned(),
            mode: match method.mode {
                Mode::Command => "command".to_owned(),
                Mode::Query => "query".to_owned(),
            },
            style: match method.style {
                Style::Inline => "inline".to_owned(),
                Style::Async => "async".to_owned(),
                Style::Blocking => "blocking".to_owned(),
            },
            deadline_seconds: method.deadline.map(|span| span.as_secs_f64()),
        });
        Self {
            name: info.name.to_owned(),
            doc: info.doc.to_owned(),
            mailbox: info.options.mailbox,
            idle_seconds: info.options.idle.as_secs_f64(),
            methods: methods.collect(),
        }
    }
}
