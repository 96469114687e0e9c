//! A port that hosts the kinds itself: one state per key as bytes, one turn at a time, no journal.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use mainstay::call::{Answer, Call, CallFuture, CallPort};
use mainstay::entity::Registry;
use mainstay::entity::host::{BoxState, KindHost, Style, TurnContext, TurnResult};
use mainstay::protocol::id::{EntityId, Epoch, Key, KindId, RequestId, Seq, ShardId, Token};
use mainstay::protocol::message::{Failure, Mode, Success};
use mainstay::protocol::time::LogTime;

pub(crate) struct DirectPort {
    registry: Arc<Registry>,
    states: Mutex<BTreeMap<(KindId, Key), Vec<u8>>>,
    calls: Mutex<Vec<Call>>,
    /// What every call ends with instead of a turn.
    broken: Mutex<Option<Result<Bytes, Failure>>>,
}

pub(crate) const TOKEN: Token = Token { shard: ShardId(3), epoch: Epoch(2), seq: Seq(9) };

impl DirectPort {
    pub(crate) fn new(registry: Registry) -> Arc<Self> {
        Arc::new(Self {
            registry: registry.build().unwrap(),
            states: Mutex::default(),
            calls: Mutex::default(),
            broken: Mutex::default(),
        })
    }

    pub(crate) fn break_with(&self, result: Result<Bytes, Failure>) {
        *self.broken.lock().unwrap() = Some(result);
    }

    pub(crate) fn last_call(&self) -> Call {
        self.calls.lock().unwrap().last().unwrap().clone()
    }

    pub(crate) fn calls(&self) -> usize {
        self.calls.lock().unwrap().len()
    }

    pub(crate) fn stored(&self, kind: &str, key: &str) -> Option<Vec<u8>> {
        let id = (KindId::of(kind), Key::new(key).unwrap());
        self.states.lock().unwrap().get(&id).cloned()
    }

    fn turn(self: Arc<Self>, call: &Call) -> Result<Bytes, Failure> {
        if let Some(broken) = self.broken.lock().unwrap().clone() {
            return broken;
        }
        let registry = Arc::clone(&self.registry);
        let unknown = |what: &str| Failure::Unknown { what: what.to_owned() };
        let kind = registry.kind(call.kind).ok_or_else(|| unknown("kind"))?;
        let method = kind.info().method_index(call.method).ok_or_else(|| unknown("method"))?;
        let id = (call.kind, call.key.clone());
        let stored = self.states.lock().unwrap().get(&id).cloned();
        let state = match stored {
            Some(bytes) => kind
                .decode(&bytes)
                .map_err(|error| Failure::Version { reason: error.to_string() })?,
            None => kind.fresh(&call.key),
        };
        let context = context(&self, call.kind, call.key.clone());
        let run = || run(&**kind, method, state, context, &call.payload);
        let (state, result) = catch_unwind(AssertUnwindSafe(run))
            .map_err(|_| Failure::Panicked { quarantined: false })?;
        match result {
            TurnResult::Value(value) => {
                let mut bytes = Vec::new();
                kind.encode(&state, &mut bytes).unwrap();
                self.states.lock().unwrap().insert(id, bytes);
                Ok(value)
            }
            TurnResult::Refused(error) => {
                Err(Failure::App { error, token: TOKEN, replayed: false })
            }
            TurnResult::Malformed(reason) => Err(Failure::Malformed { reason }),
        }
    }
}

impl CallPort for Handle {
    fn call(&self, call: Call) -> CallFuture {
        self.0.calls.lock().unwrap().push(call.clone());
        let port = Arc::clone(&self.0);
        Box::pin(async move {
            let value = tokio::task::spawn_blocking(move || port.turn(&call)).await.unwrap()?;
            let success = Success { value, token: TOKEN, replayed: false, place: None };
            Ok(Answer { success, served_by: None })
        })
    }
}

/// The port as references hold it.
pub(crate) fn handle(port: &Arc<DirectPort>) -> Arc<dyn CallPort> {
    Arc::new(Handle(Arc::clone(port)))
}

struct Handle(Arc<DirectPort>);

/// Runs one turn in the style of its method.
pub(crate) fn run(
    kind: &dyn KindHost,
    method: usize,
    mut state: BoxState,
    context: TurnContext,
    payload: &Bytes,
) -> (BoxState, TurnResult) {
    let info = &kind.info().methods[method];
    match (info.mode, info.style) {
        (Mode::Query, _) => {
            let result = kind.run_query(method, &state, &context, payload);
            (state, result)
        }
        (Mode::Command, Style::Inline) => {
            let result = kind.run_inline(method, &mut state, &context, payload);
            (state, result)
        }
        (Mode::Command, Style::Blocking) => {
            kind.run_blocking(method, state, context, payload.clone())
        }
        (Mode::Command, Style::Async) => tokio::runtime::Handle::current()
            .block_on(kind.run_async(method, state, context, payload.clone())),
    }
}

pub(crate) fn context(port: &Arc<DirectPort>, kind: KindId, key: Key) -> TurnContext {
    TurnContext {
        entity: EntityId { kind, key },
        request: RequestId { caller: 1, number: 2 },
        now: LogTime(1000),
        remaining: Duration::from_secs(1),
        trace: None,
        port: handle(port),
    }
}
