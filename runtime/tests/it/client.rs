//! Typed references: what goes out, and what comes of what comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay::call::Retry;
use mainstay::client::{CallError, Ref};
use mainstay::entity::{Entity, Registry};
use mainstay::protocol::id::NodeId;
use mainstay::protocol::message::{Failure, Mode, Outcome, Pressure, TraceContext};
use mainstay::protocol::replication::freshness::Freshness;

use crate::bank::{Account, BankError, Counter};
use crate::direct_port::{self, DirectPort, TOKEN};

fn bank() -> Arc<DirectPort> {
    DirectPort::new(Registry::new().entity::<Account>())
}

fn get<E: Entity>(port: &Arc<DirectPort>, key: &str) -> E::Ref {
    Ref::<E>::new(direct_port::handle(port), key).into()
}

#[tokio::test]
async fn a_command_changes_what_a_query_sees() {
    let port = bank();
    let account = get::<Account>(&port, "acme/1");
    let done = account.deposit(500).await.unwrap();
    assert_eq!((done.value, done.token, done.replayed), (500, TOKEN, false));
    assert_eq!(account.balance().await.unwrap(), 500);
    assert_eq!(get::<Account>(&port, "acme/2").balance().await.unwrap(), 0);
}

#[tokio::test]
async fn a_refusal_takes_the_state_back() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    account.deposit(5).await.unwrap();
    let before = port.stored("account", "a");
    let error = account.withdraw(9, "too much".to_owned()).await.unwrap_err();
    assert_eq!(error, CallError::App(BankError::Insufficient { cents: 5 }));
    assert_eq!((error.outcome(), error.code()), (Outcome::Executed, "MS-2201"));
    assert_eq!(error.to_string(), "only 5 cents are left");
    assert_eq!(port.stored("account", "a"), before);
}

#[tokio::test]
async fn an_async_turn_calls_another_entity() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    account.deposit(10).await.unwrap();
    assert_eq!(account.transfer("b".to_owned(), 4).await.unwrap().value, 4);
    assert_eq!(account.balance().await.unwrap(), 6);
    let error = account.transfer(String::new(), 4).await.unwrap_err();
    assert_eq!(error, CallError::App(BankError::Closed));
}

#[tokio::test]
async fn a_panic_leaves_nothing() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    account.deposit(10).await.unwrap();
    let error = account.close().await.unwrap_err();
    assert_eq!(error, CallError::Panicked { quarantined: false });
    assert_eq!(account.balance().await.unwrap(), 10);
}

#[tokio::test]
async fn a_reply_that_is_too_large_is_a_panic_of_its_handler() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    assert_eq!(account.fill(1000).await.unwrap().value.len(), 1000);
    let error = account.fill(2 << 20).await.unwrap_err();
    assert_eq!(error, CallError::Panicked { quarantined: false });
}

#[tokio::test]
async fn what_is_asked_for_is_what_is_sent() {
    let port = bank();
    let account = get::<Account>(&port, "acme/1");
    let trace = TraceContext { trace: 7, span: 8, sampled: true };
    account.deposit(1).key("pay-1").deadline(Duration::from_millis(50)).await.unwrap();
    let call = port.last_call();
    assert_eq!(call.idempotency.unwrap().as_str(), "pay-1");
    assert_eq!(call.deadline, Duration::from_millis(50));
    assert_eq!((call.mode, call.pressure), (Mode::Command, Pressure::Wait));
    assert_eq!(call.retry, Retry::StaleMap);
    assert_eq!(call.payload, Bytes::from_static(b"\x81\xa5cents\x01"));

    assert_eq!(call.if_version, None);
    let at = account.balance().with_version().await.unwrap();
    assert_eq!((at.value, at.version()), (1, TOKEN.seq.0));
    assert_eq!(account.deposit(1).if_version(at.version()).await.unwrap().version(), 9);
    assert_eq!(port.last_call().if_version, Some(TOKEN.seq));
    let mismatch = Failure::VersionMismatch { token: TOKEN };
    assert_eq!(CallError::<BankError>::from(mismatch), CallError::VersionMismatch { current: 9 });

    account.balance().try_send().retry().trace(trace).await.unwrap();
    let call = port.last_call();
    assert_eq!((call.mode, call.pressure), (Mode::Query, Pressure::Refuse));
    assert_eq!((call.retry, call.trace), (Retry::Safe, Some(trace)));
    assert_eq!(call.deadline, Duration::from_secs(5));
}

#[tokio::test]
async fn a_query_says_how_fresh_a_state_it_wants() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    let token = account.deposit(1).await.unwrap().token;
    account.balance().await.unwrap();
    assert_eq!(port.last_call().freshness, None);
    account.balance().strict().await.unwrap();
    assert_eq!(port.last_call().freshness, Some(Freshness::Strict));
    account.balance().at_least(token).await.unwrap();
    assert_eq!(port.last_call().freshness, Some(Freshness::AtLeast(token)));
    let span = Duration::from_millis(250);
    account.balance().max_staleness(span).deadline(span).await.unwrap();
    let call = port.last_call();
    assert_eq!((call.freshness, call.deadline), (Some(Freshness::MaxStaleness(span)), span));
}

#[tokio::test]
async fn a_method_brings_its_own_deadline() {
    let port = bank();
    let account = get::<Account>(&port, "a");
    account.withdraw(0, String::new()).await.unwrap();
    assert_eq!(port.last_call().deadline, Duration::from_millis(200));
}

#[tokio::test]
async fn nothing_is_sent_before_it_is_awaited() {
    let port = bank();
    let call = get::<Account>(&port, "a").deposit(1);
    assert_eq!(port.calls(), 0);
    call.await.unwrap();
    assert_eq!(port.calls(), 1);
}

#[tokio::test]
async fn bad_keys_come_out_where_the_call_is_awaited() {
    let port = bank();
    let no_key = get::<Account>(&port, "");
    assert_eq!(format!("{no_key:?}"), "AccountRef(account/? (key is empty))");
    let error = no_key.deposit(1).key("k").deadline(Duration::ZERO).await.unwrap_err();
    assert_eq!(error, CallError::Malformed { reason: "key is empty".to_owned() });
    let error = no_key.balance().await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::NotExecuted, "MS-2004"));

    let account = get::<Account>(&port, "a");
    let error = account.deposit(1).key(&"k".repeat(256)).await.unwrap_err();
    let reason = "idempotency key has 256 bytes, the limit is 255".to_owned();
    assert_eq!(error, CallError::Malformed { reason });
    assert_eq!(port.calls(), 0);
}

#[tokio::test]
async fn arguments_that_are_too_large_are_not_sent() {
    let port = bank();
    let error = get::<Account>(&port, "a").withdraw(1, "x".repeat(2 << 20)).await.unwrap_err();
    let reason = "it takes more than 1048576 bytes".to_owned();
    assert_eq!(error, CallError::Malformed { reason });
    assert_eq!(port.calls(), 0);
}

#[tokio::test]
async fn an_unknown_kind_is_told_apart_from_an_unknown_method() {
    let port = bank();
    let error = get::<Counter>(&port, "a").get().await.unwrap_err();
    assert_eq!(error, CallError::Unknown { what: "kind".to_owned() });
    assert_eq!((error.code(), error.is_retryable()), ("MS-2001", false));
    let error = CallError::<BankError>::from(Failure::Unknown { what: "method".to_owned() });
    assert_eq!(error.code(), "MS-2002");
}

#[tokio::test]
async fn a_reply_of_a_newer_build_was_executed_all_the_same() {
    let port = bank();
    port.break_with(Ok(Bytes::from_static(b"\xa3new")));
    let error = get::<Account>(&port, "a").deposit(1).await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Executed, "MS-2110"));
    let failure =
        Failure::App { error: Bytes::from_static(b"\xa3new"), token: TOKEN, replayed: false };
    port.break_with(Err(failure));
    let error = get::<Account>(&port, "a").deposit(1).await.unwrap_err();
    assert_eq!((error.outcome(), error.code()), (Outcome::Executed, "MS-2110"));
}

/// Every failure: its code, what is known, whether to ask again, and when.
#[test]
fn each_failure_says_what_is_true() {
    use Outcome::{Executed, NotExecuted, Unknown};
    let text = || "why".to_owned();
    let soon = Some(Duration::from_millis(20));
    let not_primary =
        Failure::NotPrimary { map_version: 4, primary: Some(NodeId::new("n2").unwrap()) };
    let expected = [
        (
            Failure::Overloaded { retry_after_ms: 20, bound: text() },
            ("MS-2101", NotExecuted, true, soon),
        ),
        (Failure::Deadline { outcome: NotExecuted }, ("MS-2102", NotExecuted, true, None)),
        (Failure::Deadline { outcome: Unknown }, ("MS-2103", Unknown, false, None)),
        (not_primary, ("MS-2105", NotExecuted, true, None)),
        (
            Failure::Unavailable { outcome: Unknown, reason: text() },
            ("MS-2105", Unknown, false, None),
        ),
        (
            Failure::Unavailable { outcome: Executed, reason: text() },
            ("MS-2105", Executed, false, None),
        ),
        (Failure::KeyConflict, ("MS-2106", NotExecuted, false, None)),
        (Failure::VersionMismatch { token: TOKEN }, ("MS-2111", NotExecuted, false, None)),
        (Failure::Reentrant, ("MS-2107", NotExecuted, false, None)),
        (Failure::Panicked { quarantined: false }, ("MS-2108", NotExecuted, false, None)),
        (Failure::Panicked { quarantined: true }, ("MS-2109", NotExecuted, false, None)),
        (Failure::Malformed { reason: text() }, ("MS-2004", NotExecuted, false, None)),
        (Failure::Version { reason: text() }, ("MS-2110", NotExecuted, false, None)),
        (Failure::Stale { reason: text() }, ("MS-2112", NotExecuted, true, None)),
    ];
    for (failure, expected) in expected {
        let error = CallError::<BankError>::from(failure);
        let found = (error.code(), error.outcome(), error.is_retryable(), error.retry_after());
        assert_eq!(found, expected, "{error}");
        let text = error.to_string();
        assert!(!text.is_empty() && !text.ends_with('.'), "{text}");
    }
}

fn is_send<T: Send>(value: T) -> T {
    value
}

#[tokio::test]
async fn calls_can_be_awaited_on_any_thread() {
    let port = bank();
    let account = is_send(get::<Account>(&port, "a"));
    let future = is_send(account.deposit(1).into_future());
    tokio::spawn(future).await.unwrap().unwrap();
    let failed: Box<dyn std::error::Error + Send + Sync> =
        Box::new(CallError::<BankError>::Reentrant);
    assert_eq!(failed.to_string(), "the entity waits for this very call");
}
