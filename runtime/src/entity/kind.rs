//! A kind with its types: the table of methods, and the host's side of the wall.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_protocol::id::{Key, KindId, MethodId};
use mainstay_protocol::message::Mode;
use schemars::SchemaGenerator;
use serde_json::Value;

use super::host::{
    BoxState, KindHost, KindInfo, MethodInfo, MethodSchemas, StateError, Style, TurnContext,
    TurnFuture, TurnResult,
};
use super::message::{AppError, Command, HandleAsync, HandleCommand, HandleQuery, Query, Wire};
use super::{Cx, Entity, codec, json, schema, state};

/// The table of methods of a kind. A message that is not in it is unknown at run time.
#[derive(Debug)]
pub struct Methods<E: Entity> {
    rows: Vec<Row<E>>,
}

impl<E: Entity> Default for Methods<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> Methods<E> {
    /// An empty table.
    #[must_use]
    pub const fn new() -> Self {
        Self { rows: Vec::new() }
    }

    /// Adds a command that runs inline in the lane.
    #[must_use]
    pub fn command<M: Command<E>>(self) -> Self
    where
        E: HandleCommand<M>,
    {
        self.with_command::<M>(Style::Inline, Run::Now(run_command::<E, M>))
    }

    /// Adds a command that runs on a pool thread: it computes for long, or blocks.
    #[must_use]
    pub fn blocking<M: Command<E>>(self) -> Self
    where
        E: HandleCommand<M>,
    {
        self.with_command::<M>(Style::Blocking, Run::Now(run_command::<E, M>))
    }

    /// Adds a command that waits for others.
    #[must_use]
    pub fn asynchronous<M: Command<E>>(self) -> Self
    where
        E: HandleAsync<M>,
    {
        self.with_command::<M>(Style::Async, Run::Later(run_async::<E, M>))
    }

    /// Adds a query.
    #[must_use]
    pub fn query<M: Query<E>>(mut self) -> Self
    where
        E: HandleQuery<M>,
    {
        let info = MethodInfo {
            id: MethodId::of(M::NAME),
            name: M::NAME,
            doc: M::DOC,
            mode: Mode::Query,
            style: Style::Inline,
            deadline: M::DEADLINE,
        };
        let json = JsonSide::of::<M, M::Value, M::Error>();
        self.rows.push(Row { info, run: Run::Query(run_query::<E, M>), json });
        self
    }

    fn with_command<M: Command<E>>(mut self, style: Style, run: Run<E>) -> Self {
        let info = MethodInfo {
            id: MethodId::of(M::NAME),
            name: M::NAME,
            doc: M::DOC,
            mode: Mode::Command,
            style,
            deadline: M::DEADLINE,
        };
        self.rows.push(Row { info, run, json: JsonSide::of::<M, M::Value, M::Error>() });
        self
    }
}

#[derive(Debug)]
struct Row<E> {
    info: MethodInfo,
    run: Run<E>,
    json: JsonSide,
}

#[derive(Debug)]
enum Run<E> {
    Now(fn(&mut E, &TurnContext, &[u8]) -> TurnResult),
    Later(fn(Box<E>, TurnContext, Bytes) -> TurnFuture),
    Query(fn(&E, &TurnContext, &[u8]) -> TurnResult),
}

/// What HTTP needs of a method.
#[derive(Debug, Clone, Copy)]
struct JsonSide {
    arguments: fn(&[u8]) -> Result<Bytes, String>,
    value: fn(&[u8]) -> Result<Value, String>,
    error: fn(&[u8]) -> ErrorJson,
    schemas: fn(&mut SchemaGenerator) -> MethodSchemas,
}

/// An entity's error as JSON and as text, or what is wrong with its bytes.
type ErrorJson = Result<(Value, String), String>;

impl JsonSide {
    fn of<M: Wire, V: Wire, Err: AppError>() -> Self {
        Self {
            arguments: |json| {
                let message: M = json::arguments(json)?;
                codec::to_bytes(&message).map_err(|error| error.to_string())
            },
            value: |bytes| to_json(&from_bytes::<V>(bytes)?),
            error: |bytes| {
                let error: Err = from_bytes(bytes)?;
                Ok((to_json(&error)?, error.to_string()))
            },
            schemas: |generator| MethodSchemas {
                arguments: schema::arguments::<M>(generator),
                value: schema::of::<V>(generator),
                error: schema::of::<Err>(generator),
            },
        }
    }
}

fn from_bytes<T: Wire>(bytes: &[u8]) -> Result<T, String> {
    codec::from_bytes(bytes).map_err(|error| error.to_string())
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<Value, String> {
    serde_json::to_value(value).map_err(|error| error.to_string())
}

fn run_command<E, M>(entity: &mut E, context: &TurnContext, payload: &[u8]) -> TurnResult
where
    E: HandleCommand<M>,
    M: Command<E>,
{
    match codec::from_bytes::<M>(payload) {
        Ok(message) => reply(M::NAME, entity.handle(&mut Cx::new(context), message)),
        Err(error) => malformed(M::NAME, &error),
    }
}

fn run_query<E, M>(entity: &E, context: &TurnContext, payload: &[u8]) -> TurnResult
where
    E: HandleQuery<M>,
    M: Query<E>,
{
    match codec::from_bytes::<M>(payload) {
        Ok(message) => reply(M::NAME, entity.handle(&Cx::new(context), message)),
        Err(error) => malformed(M::NAME, &error),
    }
}

fn run_async<E, M>(mut entity: Box<E>, context: TurnContext, payload: Bytes) -> TurnFuture
where
    E: HandleAsync<M>,
    M: Command<E>,
{
    Box::pin(async move {
        let result = match codec::from_bytes::<M>(&payload) {
            Ok(message) => reply(M::NAME, entity.handle(&mut Cx::new(&context), message).await),
            Err(error) => malformed(M::NAME, &error),
        };
        (entity as BoxState, result)
    })
}

fn reply<V: Wire, Err: AppError>(method: &str, result: Result<V, Err>) -> TurnResult {
    let (bytes, wrap): (_, fn(Bytes) -> TurnResult) = match result {
        Ok(value) => (codec::to_bytes(&value), TurnResult::Value),
        Err(error) => (codec::to_bytes(&error), TurnResult::Refused),
    };
    match bytes {
        Ok(bytes) => wrap(bytes),
        // the handler's mistake, as a panic of its own would be: the lane takes the state back
        Err(error) => panic!("the reply of `{method}` does not encode: {error}"),
    }
}

fn malformed(method: &str, error: &codec::DecodeError) -> TurnResult {
    TurnResult::Malformed(format!("the arguments of `{method}` do not decode: {error}"))
}

/// A kind, hosted with its types.
#[derive(Debug)]
pub struct TypedKind<E: Entity> {
    info: KindInfo,
    /// By name, as in `info.methods`.
    rows: Vec<(Run<E>, JsonSide)>,
}

impl<E: Entity> TypedKind<E> {
    /// The host of this kind. [`Registry`](super::Registry) makes one of each.
    #[must_use]
    pub fn new() -> Self {
        let mut rows = E::methods().rows;
        rows.sort_by_key(|row| row.info.name);
        let (methods, rows) = rows.into_iter().map(|row| (row.info, (row.run, row.json))).unzip();
        let info = KindInfo {
            id: KindId::of(E::KIND),
            name: E::KIND,
            doc: E::DOC,
            options: E::options(),
            methods,
        };
        Self { info, rows }
    }

    /// The same, as its hosts share it.
    #[must_use]
    pub fn shared() -> Arc<dyn KindHost> {
        Arc::new(Self::new())
    }

    fn run_now(
        &self,
        method: usize,
        state: &mut BoxState,
        context: &TurnContext,
        payload: &[u8],
    ) -> TurnResult {
        let entity = state.downcast_mut::<E>().expect("a state comes back to the kind it is of");
        match self.rows[method].0 {
            Run::Now(run) => run(entity, context, payload),
            Run::Later(_) | Run::Query(_) => self.wrong_style(method),
        }
    }

    fn wrong_style(&self, method: usize) -> ! {
        let MethodInfo { name, mode, style, .. } = &self.info.methods[method];
        panic!("`{name}` is run as what it is not: it is {mode:?}, {style:?}")
    }
}

impl<E: Entity> Default for TypedKind<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E: Entity> KindHost for TypedKind<E> {
    fn info(&self) -> &KindInfo {
        &self.info
    }

    fn affinity<'k>(&self, key: &'k Key) -> &'k str {
        E::affinity(key)
    }

    fn fresh(&self, _key: &Key) -> BoxState {
        Box::new(E::default())
    }

    fn decode(&self, bytes: &[u8]) -> Result<BoxState, StateError> {
        Ok(Box::new(state::decode::<E>(bytes)?))
    }

    fn encode(&self, state: &BoxState, out: &mut Vec<u8>) -> Result<(), StateError> {
        let entity = state.downcast_ref::<E>().expect("a state comes back to the kind it is of");
        state::encode(entity, out)
    }

    fn run_inline(
        &self,
        method: usize,
        state: &mut BoxState,
        context: &TurnContext,
        payload: &[u8],
    ) -> TurnResult {
        self.run_now(method, state, context, payload)
    }

    fn run_query(
        &self,
        method: usize,
        state: &BoxState,
        context: &TurnContext,
        payload: &[u8],
    ) -> TurnResult {
        let entity = state.downcast_ref::<E>().expect("a state comes back to the kind it is of");
        match self.rows[method].0 {
            Run::Query(run) => run(entity, context, payload),
            Run::Now(_) | Run::Later(_) => self.wrong_style(method),
        }
    }

    fn run_async(
        &self,
        method: usize,
        state: BoxState,
        context: TurnContext,
        payload: Bytes,
    ) -> TurnFuture {
        let entity = state.downcast::<E>().expect("a state comes back to the kind it is of");
        match self.rows[method].0 {
            Run::Later(run) => run(entity, context, payload),
            Run::Now(_) | Run::Query(_) => self.wrong_style(method),
        }
    }

    fn run_blocking(
        &self,
        method: usize,
        mut state: BoxState,
        context: TurnContext,
        payload: Bytes,
    ) -> (BoxState, TurnResult) {
        let result = self.run_now(method, &mut state, &context, &payload);
        (state, result)
    }

    fn arguments_from_json(&self, method: usize, json: &[u8]) -> Result<Bytes, String> {
        (self.rows[method].1.arguments)(json)
    }

    fn value_to_json(&self, method: usize, value: &[u8]) -> Result<Value, String> {
        (self.rows[method].1.value)(value)
    }

    fn error_to_json(&self, method: usize, error: &[u8]) -> Result<(Value, String), String> {
        (self.rows[method].1.error)(error)
    }

    fn state_to_json(&self, bytes: &[u8]) -> Result<Value, StateError> {
        let entity = state::decode::<E>(bytes)?;
        to_json(&entity).map_err(|reason| StateError::Unencodable { reason })
    }

    fn schemas(&self, method: usize, generator: &mut SchemaGenerator) -> MethodSchemas {
        (self.rows[method].1.schemas)(generator)
    }
}
