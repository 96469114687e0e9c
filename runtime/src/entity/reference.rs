//! Typed references: a key and a way to it, and the builders of calls.
//!
//! Making a reference or a call does no I/O. A call goes out when it is awaited; what is wrong
//! with a key or an argument also comes out there.

use std::future::{Future, IntoFuture, Ready, ready};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use mainstay_protocol::id::{IdempotencyKey, Key, KindId, MethodId, NameError, Seq, Token};
use mainstay_protocol::message::{Failure, Mode, Pressure, Success, TraceContext};
use mainstay_protocol::replication::freshness::Freshness;

use super::message::{AppError, Command, Query, Wire};
use super::{CallError, Entity, codec};
use crate::call::{Answer, Call, CallFuture, CallPort, DEADLINE_DEFAULT, Retry};

/// A reference to one entity. Cheap to make and to clone; the entity need not exist.
pub struct Ref<E> {
    port: Arc<dyn CallPort>,
    key: Result<Key, NameError>,
    entity: PhantomData<fn() -> E>,
}

impl<E> Clone for Ref<E> {
    fn clone(&self) -> Self {
        Self { port: Arc::clone(&self.port), key: self.key.clone(), entity: PhantomData }
    }
}

impl<E: Entity> std::fmt::Debug for Ref<E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.key {
            Ok(key) => write!(f, "{}/{key}", E::KIND),
            Err(error) => write!(f, "{}/? ({error})", E::KIND),
        }
    }
}

impl<E: Entity> Ref<E> {
    /// The entity of this key, reached through this port. An invalid key is reported by every
    /// call, as [`CallError::Malformed`].
    pub fn new(port: Arc<dyn CallPort>, key: &str) -> Self {
        Self { port, key: Key::new(key), entity: PhantomData }
    }

    /// The entity's key.
    ///
    /// # Errors
    /// [`NameError`] when the reference was made with an invalid one.
    pub fn entity_key(&self) -> Result<&Key, &NameError> {
        self.key.as_ref()
    }

    /// A call of a command.
    #[expect(clippy::needless_pass_by_value, reason = "a message is handed over")]
    pub fn command<M: Command<E>>(&self, message: M) -> CommandCall<E, M> {
        let call = self.draft(Mode::Command, M::NAME, M::DEADLINE, &message);
        CommandCall { port: Arc::clone(&self.port), call, method: PhantomData }
    }

    /// A call of a query.
    #[expect(clippy::needless_pass_by_value, reason = "a message is handed over")]
    pub fn query<M: Query<E>>(&self, message: M) -> QueryCall<E, M> {
        let call = self.draft(Mode::Query, M::NAME, M::DEADLINE, &message);
        QueryCall { port: Arc::clone(&self.port), call, method: PhantomData }
    }

    fn draft<M: Wire>(
        &self,
        mode: Mode,
        method: &str,
        deadline: Option<Duration>,
        message: &M,
    ) -> Draft {
        let key = self.key.clone().map_err(|error| malformed(&error))?;
        let payload = codec::to_bytes(message).map_err(|error| malformed(&error))?;
        Ok(Call {
            kind: KindId::of(E::KIND),
            key,
            method: MethodId::of(method),
            mode,
            freshness: None,
            payload,
            idempotency: None,
            if_version: None,
            deadline: deadline.unwrap_or(DEADLINE_DEFAULT),
            pressure: Pressure::Wait,
            retry: Retry::default(),
            trace: None,
            id: None,
            chain: Vec::new(),
            from_kind: None,
        })
    }
}

/// A call, or what is wrong with it.
type Draft = Result<Call, Failure>;

fn malformed(error: &impl ToString) -> Failure {
    Failure::Malformed { reason: error.to_string() }
}

/// What a command gave, or a query that was asked for more than its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done<T> {
    /// The method's value.
    pub value: T,
    /// Where the entity stood: a later read can ask to include it.
    pub token: Token,
    /// The value is the stored one of an earlier call with the same idempotency key.
    pub replayed: bool,
}

impl<T> Done<T> {
    /// The entity's version after it, for [`CommandCall::if_version`].
    pub const fn version(&self) -> u64 {
        self.token.seq.0
    }
}

/// A call of a command: await it to send it.
#[must_use = "a call is sent when it is awaited"]
pub struct CommandCall<E, M> {
    port: Arc<dyn CallPort>,
    call: Draft,
    method: PhantomData<fn(E, M)>,
}

impl<E: Entity, M: Command<E>> CommandCall<E, M> {
    /// Takes effect once, however often it is repeated with this key: 1 to 255 bytes of your
    /// choice, scoped to the entity.
    pub fn key(mut self, key: &str) -> Self {
        match (IdempotencyKey::new(key), &mut self.call) {
            (Ok(key), Ok(call)) => call.idempotency = Some(key),
            (Err(error), Ok(_)) => self.call = Err(malformed(&error)),
            (_, Err(_)) => {}
        }
        self
    }

    /// Runs at this version of the entity alone, 0 for one that was never written: whatever changed
    /// it since refuses the command with [`CallError::VersionMismatch`]. With a key, a command that
    /// took effect is answered as it was all the same.
    pub fn if_version(self, version: u64) -> Self {
        self.with(|call| call.if_version = Some(Seq(version)))
    }
}

impl<E: Entity, M: Command<E>> IntoFuture for CommandCall<E, M> {
    type Output = Result<Done<M::Value>, CallError<M::Error>>;
    type IntoFuture = CommandFuture<M::Value, M::Error>;

    fn into_future(self) -> Self::IntoFuture {
        CommandFuture { sent: Sent::send(&*self.port, self.call), method: PhantomData }
    }
}

/// A call of a query: await it to send it.
#[must_use = "a call is sent when it is awaited"]
pub struct QueryCall<E, M> {
    port: Arc<dyn CallPort>,
    call: Draft,
    method: PhantomData<fn(E, M)>,
}

impl<E: Entity, M: Query<E>> QueryCall<E, M> {
    /// Sends it, and gives the value with the version of the entity that it shows, for
    /// [`CommandCall::if_version`].
    ///
    /// # Errors
    /// [`CallError`], as when it is awaited.
    pub async fn with_version(self) -> Result<Done<M::Value>, CallError<M::Error>> {
        CommandFuture { sent: Sent::send(&*self.port, self.call), method: PhantomData }.await
    }

    /// Relies on no clock: the primary asks the other copies whether it still is that, after the
    /// query came, whatever they promised before.
    pub fn strict(self) -> Self {
        self.with(|call| call.freshness = Some(Freshness::Strict))
    }

    /// Shows a state that includes what this token was given for, and may be older than the newest
    /// one. A copy of the shard on the node that is called answers by itself.
    pub fn at_least(self, token: Token) -> Self {
        self.with(|call| call.freshness = Some(Freshness::AtLeast(token)))
    }

    /// Shows a state with everything in it that was acknowledged so long before the call, or
    /// earlier. A copy of the shard on the node that is called answers by itself, as long as that
    /// node has asked the primary within that time.
    pub fn max_staleness(self, max_staleness: Duration) -> Self {
        self.with(|call| call.freshness = Some(Freshness::MaxStaleness(max_staleness)))
    }
}

impl<E: Entity, M: Query<E>> IntoFuture for QueryCall<E, M> {
    type Output = Result<M::Value, CallError<M::Error>>;
    type IntoFuture = QueryFuture<M::Value, M::Error>;

    fn into_future(self) -> Self::IntoFuture {
        QueryFuture { sent: Sent::send(&*self.port, self.call), method: PhantomData }
    }
}

macro_rules! call_options {
    ($name:ident) => {
        impl<E, M> $name<E, M> {
            /// How long to wait, in place of the method's own deadline or 5 s.
            pub fn deadline(self, deadline: Duration) -> Self {
                self.with(|call| call.deadline = deadline)
            }

            /// Refuse with [`CallError::Overloaded`] instead of waiting for room.
            pub fn try_send(self) -> Self {
                self.with(|call| call.pressure = Pressure::Refuse)
            }

            /// Ask again, within the deadline and the retry budget, whenever that is safe: when
            /// nothing ran, or when the call is a query or carries an idempotency key.
            pub fn retry(self) -> Self {
                self.with(|call| call.retry = Retry::Safe)
            }

            /// The trace that the call belongs to.
            pub fn trace(self, trace: TraceContext) -> Self {
                self.with(|call| call.trace = Some(trace))
            }

            fn with(mut self, set: impl FnOnce(&mut Call)) -> Self {
                if let Ok(call) = &mut self.call {
                    set(call);
                }
                self
            }
        }

        impl<E, M> std::fmt::Debug for $name<E, M> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.debug_tuple(stringify!($name)).field(&self.call).finish()
            }
        }
    };
}

call_options!(CommandCall);
call_options!(QueryCall);

/// A command on its way. Dropping it gives the reply up, not the command.
pub struct CommandFuture<T, E> {
    sent: Sent,
    method: PhantomData<fn() -> (T, E)>,
}

impl<T: Wire, E: AppError> Future for CommandFuture<T, E> {
    type Output = Result<Done<T>, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.sent.poll(cx).map(|answer| {
            let Success { value, token, replayed, place: _ } = answer?.success;
            Ok(Done { value: read(&value)?, token, replayed })
        })
    }
}

/// A query on its way.
pub struct QueryFuture<T, E> {
    sent: Sent,
    method: PhantomData<fn() -> (T, E)>,
}

impl<T: Wire, E: AppError> Future for QueryFuture<T, E> {
    type Output = Result<T, CallError<E>>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.sent.poll(cx).map(|answer| read(&answer?.success.value))
    }
}

impl<T, E> std::fmt::Debug for CommandFuture<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CommandFuture").finish_non_exhaustive()
    }
}

impl<T, E> std::fmt::Debug for QueryFuture<T, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryFuture").finish_non_exhaustive()
    }
}

fn read<T: Wire, E>(value: &Bytes) -> Result<T, CallError<E>> {
    codec::from_bytes(value).map_err(|error| CallError::unreadable("value", &error))
}

enum Sent {
    Carried(CallFuture),
    Refused(Ready<Failure>),
}

impl Sent {
    fn send(port: &dyn CallPort, call: Draft) -> Self {
        match call {
            Ok(call) => Self::Carried(port.call(call)),
            Err(failure) => Self::Refused(ready(failure)),
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<Answer, Failure>> {
        match self {
            Self::Carried(call) => call.as_mut().poll(cx),
            Self::Refused(failure) => Pin::new(failure).poll(cx).map(Err),
        }
    }
}
