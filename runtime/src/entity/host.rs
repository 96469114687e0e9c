//! The wall between user code and the lane: a kind as an object that knows its types.
//!
//! The lane holds `dyn KindHost`s and boxed states; only an implementation of [`KindHost`] knows
//! what is in the box. Nothing here catches panics: the lane does, once, around every turn. Beside
//! those of handlers there is one: a reply that does not encode, or is too large. A host relies on
//! the lane for running each method in its own style; another style is a panic, too.

use std::any::Any;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{EntityId, Key, KindId, MethodId, RequestId};
use mainstay_protocol::message::{Failure, Mode, TraceContext};
use mainstay_protocol::time::LogTime;

use crate::call::CallPort;

/// An entity's state, its type known to its kind only.
pub type BoxState = Box<dyn Any + Send>;

/// How a method runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A plain `fn`: inline in the lane.
    Inline,
    /// An `async fn`: the state moves into a local task and back; its mailbox waits.
    Async,
    /// `#[command(blocking)]`: the state moves to a pool thread and back.
    Blocking,
}

/// What is known about a method before it runs.
#[derive(Debug, Clone)]
pub struct MethodInfo {
    /// Its id: the hash of its name.
    pub id: MethodId,
    /// Its name, as in code and in the URL.
    pub name: &'static str,
    /// The first paragraph of its doc comment.
    pub doc: &'static str,
    /// Command or query.
    pub mode: Mode,
    /// How it runs.
    pub style: Style,
    /// How long a caller waits unless it says otherwise.
    pub deadline: Option<Duration>,
}

/// What a kind asks of its host.
#[derive(Debug, Clone)]
pub struct KindOptions {
    /// Messages that wait for one entity, at most.
    pub mailbox: u32,
    /// How long an async or blocking turn may take.
    pub turn: Duration,
    /// How long an idle entity stays in memory.
    pub idle: Duration,
}

impl Default for KindOptions {
    fn default() -> Self {
        Self { mailbox: 64, turn: Duration::from_secs(30), idle: Duration::from_secs(15 * 60) }
    }
}

/// What is known about a kind.
#[derive(Debug, Clone)]
pub struct KindInfo {
    /// Its id: the hash of its name.
    pub id: KindId,
    /// Its name, as in code and in the URL.
    pub name: &'static str,
    /// The first paragraph of its doc comment.
    pub doc: &'static str,
    /// Its options.
    pub options: KindOptions,
    /// Its methods, sorted by name. A method's index in here is what `run_*` take.
    pub methods: Vec<MethodInfo>,
}

impl KindInfo {
    /// The index of the method of this id. Kinds have few methods: a walk beats a map.
    pub fn method_index(&self, id: MethodId) -> Option<usize> {
        self.methods.iter().position(|method| method.id == id)
    }

    /// The index of the method of this name.
    pub fn method_index_by_name(&self, name: &str) -> Option<usize> {
        self.methods.binary_search_by_key(&name, |method| method.name).ok()
    }
}

/// The JSON schemas of a method, for OpenAPI.
#[derive(Debug, Clone)]
pub struct MethodSchemas {
    /// Of the arguments: an object with one member per parameter.
    pub arguments: schemars::Schema,
    /// Of the value.
    pub value: schemars::Schema,
    /// Of the entity's own error.
    pub error: schemars::Schema,
}

/// What a turn gave.
#[derive(Debug)]
pub enum TurnResult {
    /// The method's value, in named MessagePack.
    Value(Bytes),
    /// The entity's own refusal, in named MessagePack. The state must be taken back.
    Refused(Bytes),
    /// The arguments did not decode; the handler was not entered.
    Malformed(String),
}

/// A kind's `group_by` panicked over a key, which therefore leads to no shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the kind's group_by panicked over the key {0:?}")]
pub struct GroupPanicked(pub Key);

impl From<GroupPanicked> for Failure {
    fn from(error: GroupPanicked) -> Self {
        Self::Malformed { reason: error.to_string() }
    }
}

/// The affinity of a key, by a kind's `group_by`.
///
/// # Errors
/// [`GroupPanicked`].
pub fn affinity<'k>(
    of: impl Fn(&'k Key) -> &'k str,
    key: &'k Key,
) -> Result<&'k str, GroupPanicked> {
    catch_unwind(AssertUnwindSafe(|| of(key))).map_err(|_| GroupPanicked(key.clone()))
}

/// Why a stored state cannot be used. Nothing was changed on disk.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    /// It was written by a newer build. Upgrade this node.
    #[error("state of version {found}, this build reads up to {known}")]
    Newer {
        /// The version found.
        found: u16,
        /// The newest version that this build reads.
        known: u16,
    },
    /// The bytes are not a state of this kind.
    #[error("state does not decode: {reason}")]
    Malformed {
        /// What was wrong.
        reason: String,
    },
    /// The kind's own code panicked while it made, read or wrote a state.
    #[error("the kind's code panicked over its state")]
    Panicked,
    /// The state cannot be encoded, or is larger than the limit.
    #[error("state does not encode: {reason}")]
    Unencodable {
        /// Why.
        reason: String,
    },
}

/// What a turn knows about its request, and what it can reach.
#[derive(Clone)]
pub struct TurnContext {
    /// The entity whose turn it is.
    pub entity: EntityId,
    /// The request that the turn answers.
    pub request: RequestId,
    /// Log time of the turn: the only clock that a handler should trust.
    pub now: LogTime,
    /// How long the caller still waits.
    pub remaining: Duration,
    /// The trace of the request.
    pub trace: Option<TraceContext>,
    /// The way out: calls to other entities, with this turn's chain, gate and derived keys.
    pub port: Arc<dyn CallPort>,
}

impl std::fmt::Debug for TurnContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnContext").field("entity", &self.entity).finish_non_exhaustive()
    }
}

/// A turn that moves the state out and brings it back.
pub type TurnFuture = Pin<Box<dyn Future<Output = (BoxState, TurnResult)>>>;

/// A kind, hosted.
pub trait KindHost: Send + Sync {
    /// Names, options, methods.
    fn info(&self) -> &KindInfo;

    /// The affinity of a key: entities with equal affinity share a shard.
    fn affinity<'k>(&self, key: &'k Key) -> &'k str;

    /// The state of an entity that was never written.
    fn fresh(&self, key: &Key) -> BoxState;

    /// The state of these bytes.
    ///
    /// # Errors
    /// [`StateError`] when they are of another version or malformed.
    fn decode(&self, bytes: &[u8]) -> Result<BoxState, StateError>;

    /// Appends the bytes of a state to `out`: `u16 schema version (little endian) | named
    /// MessagePack`, the same bytes for equal states on every node.
    ///
    /// # Errors
    /// [`StateError::Unencodable`] when it is too large, or its own encoder refuses.
    fn encode(&self, state: &BoxState, out: &mut Vec<u8>) -> Result<(), StateError>;

    /// Runs an [`Style::Inline`] command.
    fn run_inline(
        &self,
        method: usize,
        state: &mut BoxState,
        context: &TurnContext,
        payload: &[u8],
    ) -> TurnResult;

    /// Runs a query.
    fn run_query(
        &self,
        method: usize,
        state: &BoxState,
        context: &TurnContext,
        payload: &[u8],
    ) -> TurnResult;

    /// Starts an [`Style::Async`] command.
    fn run_async(
        &self,
        method: usize,
        state: BoxState,
        context: TurnContext,
        payload: Bytes,
    ) -> TurnFuture;

    /// Runs a [`Style::Blocking`] command, on a pool thread.
    fn run_blocking(
        &self,
        method: usize,
        state: BoxState,
        context: TurnContext,
        payload: Bytes,
    ) -> (BoxState, TurnResult);

    /// Arguments from JSON to MessagePack, checked against the method's types.
    ///
    /// # Errors
    /// What is wrong and where, for the caller's eyes.
    fn arguments_from_json(&self, method: usize, json: &[u8]) -> Result<Bytes, String>;

    /// A value from MessagePack to JSON.
    ///
    /// # Errors
    /// What is wrong.
    fn value_to_json(&self, method: usize, value: &[u8]) -> Result<serde_json::Value, String>;

    /// The entity's own error from MessagePack: JSON, and its `Display` text.
    ///
    /// # Errors
    /// What is wrong.
    fn error_to_json(
        &self,
        method: usize,
        error: &[u8],
    ) -> Result<(serde_json::Value, String), String>;

    /// A state, as JSON, for inspection.
    ///
    /// # Errors
    /// [`StateError`] when the bytes are no state of this kind.
    fn state_to_json(&self, bytes: &[u8]) -> Result<serde_json::Value, StateError>;

    /// The JSON schemas of a method.
    fn schemas(&self, method: usize, generator: &mut schemars::SchemaGenerator) -> MethodSchemas;
}
