//! The way out of a turn: calls to other entities, held back until what they may reveal is safe.
//!
//! The output gate: a call leaves only after every entry that the turn's state includes is
//! committed, for otherwise it would tell others of a state that a crash takes back. Its request
//! id and idempotency key are derived from (request id, call number), so a turn that runs again
//! repeats no effect. Its chain names every entity whose turn waits for it, so that a cycle is
//! refused instead of waited out.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use futures_util::FutureExt;
use futures_util::future::Shared;
use mainstay_protocol::id::{EntityId, IdempotencyKey, RequestId};
use mainstay_protocol::limits;
use mainstay_protocol::message::{Failure, Mode, Outcome, TraceContext};
use tokio::sync::oneshot;

use crate::call::{Call, CallFuture, CallPort};

/// Resolves when the entries below a turn are committed; fails when its epoch ends first.
pub type Gate = Shared<oneshot::Receiver<()>>;

/// What opens a gate. Dropped without opening, the gated calls fail as not executed.
pub type GateOpener = oneshot::Sender<()>;

/// A closed gate and what opens it.
pub fn gate() -> (GateOpener, Gate) {
    let (opener, gate) = oneshot::channel();
    (opener, gate.shared())
}

/// The port that a turn calls through.
pub struct TurnPort {
    out: Arc<dyn CallPort>,
    entity: EntityId,
    request: RequestId,
    chain: Vec<u64>,
    trace: Option<TraceContext>,
    gate: Option<Gate>,
    calls: AtomicU32,
    asked: Arc<AtomicBool>,
}

impl std::fmt::Debug for TurnPort {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TurnPort").field("entity", &self.entity).finish_non_exhaustive()
    }
}

/// Whose turn it is, and on whose behalf.
#[derive(Debug)]
pub struct Behalf {
    /// The entity.
    pub entity: EntityId,
    /// The request that the turn answers.
    pub request: RequestId,
    /// The entities whose turns wait for this one, oldest first.
    pub chain: Vec<u64>,
    /// The trace of the request.
    pub trace: Option<TraceContext>,
}

impl TurnPort {
    /// The port of one turn. Without a gate everything below the turn is committed already.
    pub fn new(out: Arc<dyn CallPort>, behalf: Behalf, gate: Option<Gate>) -> Self {
        let Behalf { entity, request, mut chain, trace } = behalf;
        chain.push(entity.hash64());
        let (calls, asked) = (AtomicU32::new(0), Arc::default());
        Self { out, entity, request, chain, trace, gate, calls, asked }
    }

    /// Whether a command has left.
    pub fn asked(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.asked)
    }
}

impl CallPort for TurnPort {
    fn call(&self, mut call: Call) -> CallFuture {
        let number = self.calls.fetch_add(1, Ordering::Relaxed);
        if self.chain.len() >= limits::CALL_CHAIN_MAX {
            return std::future::ready(Err(Failure::Reentrant)).boxed();
        }
        let id = self.request.derive(number);
        call.id = Some(id);
        call.chain.clone_from(&self.chain);
        call.from_kind = Some(self.entity.kind);
        call.trace = call.trace.or(self.trace);
        if call.mode == Mode::Command && call.idempotency.is_none() {
            call.idempotency = Some(IdempotencyKey::derived(id));
        }
        // A query leaves nothing behind.
        let acts = call.mode == Mode::Command;
        let Some(gate) = self.gate.clone() else {
            self.asked.fetch_or(acts, Ordering::Relaxed);
            return self.out.call(call);
        };
        let (out, asked) = (Arc::clone(&self.out), Arc::clone(&self.asked));
        async move {
            if gate.await.is_err() {
                let reason = "the primary stepped down before the call left".to_owned();
                return Err(Failure::Unavailable { outcome: Outcome::NotExecuted, reason });
            }
            asked.fetch_or(acts, Ordering::Relaxed);
            out.call(call).await
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use std::time::Duration;

    use bytes::Bytes;
    use mainstay_protocol::id::{Key, KindId, MethodId};
    use mainstay_protocol::message::Pressure;

    use crate::call::Retry;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<Call>>);

    impl CallPort for Recorder {
        fn call(&self, call: Call) -> CallFuture {
            self.0.lock().unwrap().push(call);
            std::future::ready(Err(Failure::KeyConflict)).boxed()
        }
    }

    fn entity(key: &str) -> EntityId {
        EntityId { kind: KindId(1), key: Key::new(key).unwrap() }
    }

    fn call() -> Call {
        Call {
            kind: KindId(2),
            key: Key::new("b").unwrap(),
            method: MethodId(3),
            mode: Mode::Command,
            freshness: None,
            payload: Bytes::new(),
            idempotency: None,
            if_version: None,
            deadline: Duration::from_secs(1),
            pressure: Pressure::Wait,
            retry: Retry::StaleMap,
            trace: None,
            id: None,
            chain: Vec::new(),
            from_kind: None,
        }
    }

    fn port(recorder: &Arc<Recorder>, gate: Option<Gate>) -> TurnPort {
        let request = RequestId { caller: 1, number: 1 };
        let behalf = Behalf { entity: entity("a"), request, chain: vec![9], trace: None };
        TurnPort::new(Arc::clone(recorder) as Arc<dyn CallPort>, behalf, gate)
    }

    #[tokio::test]
    async fn a_turn_that_runs_again_asks_under_the_same_keys() {
        let recorder = Arc::new(Recorder::default());
        for _ in 0..2 {
            let port = port(&recorder, None);
            drop(port.call(call()).await);
            drop(port.call(call()).await);
        }
        let calls = recorder.0.lock().unwrap();
        assert_eq!(calls[0].idempotency, calls[2].idempotency);
        assert_ne!(calls[0].idempotency, calls[1].idempotency);
        assert_eq!(calls[0].chain, [9, entity("a").hash64()]);
    }

    #[tokio::test]
    async fn a_gated_call_leaves_only_after_the_commit() {
        let recorder = Arc::new(Recorder::default());
        let (opener, gate) = gate();
        let port = port(&recorder, Some(gate));
        let mut gated = port.call(call());
        assert!((&mut gated).now_or_never().is_none());
        assert!(recorder.0.lock().unwrap().is_empty());
        assert!(!port.asked().load(Ordering::Relaxed));
        opener.send(()).unwrap();
        drop(gated.await);
        assert_eq!(recorder.0.lock().unwrap().len(), 1);
        assert!(port.asked().load(Ordering::Relaxed));
    }

    #[tokio::test]
    async fn a_gate_that_never_opens_refuses_the_call() {
        let recorder = Arc::new(Recorder::default());
        let (opener, gate) = gate();
        let port = port(&recorder, Some(gate));
        drop(opener);
        assert!(matches!(
            port.call(call()).await,
            Err(Failure::Unavailable { outcome: Outcome::NotExecuted, .. })
        ));
        assert!(recorder.0.lock().unwrap().is_empty());
    }
}
