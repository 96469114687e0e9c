//! The host's side of an entity: what the lane sees.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use mainstay::entity::host::{KindHost, MethodInfo, StateError, Style, TurnContext, TurnResult};
use mainstay::entity::{Registry, TypedKind, codec, state};
use mainstay::protocol::id::{Key, KindId, MethodId};
use mainstay::protocol::message::Mode;

use crate::bank::{Account, AccountDeposit, AccountV1, BankError};
use crate::direct_port::{self, DirectPort};

fn kind() -> TypedKind<Account> {
    TypedKind::new()
}

fn key() -> Key {
    Key::new("acme/42").unwrap()
}

fn turn() -> TurnContext {
    let port = DirectPort::new(Registry::new().entity::<Account>());
    direct_port::context(&port, KindId::of("account"), key())
}

fn method(kind: &dyn KindHost, name: &str) -> usize {
    kind.info().method_index_by_name(name).unwrap()
}

#[test]
fn a_kind_tells_what_its_attributes_say() {
    let kind = kind();
    let info = kind.info();
    assert_eq!(
        (info.name, info.doc, info.id),
        ("account", "A bank account.", KindId::of("account"))
    );
    assert_eq!(info.options.mailbox, 8);
    assert_eq!(info.options.idle, Duration::from_secs(90));
    assert_eq!(info.options.turn, Duration::from_secs(2));
    let names: Vec<_> = info.methods.iter().map(|method| method.name).collect();
    let sorted = [
        "audit",
        "balance",
        "close",
        "deposit",
        "fill",
        "only_in_tests",
        "statement",
        "transfer",
        "type",
        "withdraw",
    ];
    assert_eq!(names, sorted);
    let MethodInfo { id, doc, mode, style, deadline, .. } = info.methods[method(&kind, "deposit")];
    assert_eq!((id, doc), (MethodId::of("deposit"), "Adds money, and gives the balance."));
    assert_eq!((mode, style, deadline), (Mode::Command, Style::Inline, None));
    let style = |name| info.methods[method(&kind, name)].style;
    assert_eq!((style("transfer"), style("audit")), (Style::Async, Style::Blocking));
    assert_eq!(info.methods[method(&kind, "balance")].mode, Mode::Query);
    assert_eq!(info.methods[method(&kind, "withdraw")].deadline, Some(Duration::from_millis(200)));
    assert_eq!(info.method_index(MethodId::of("close")), Some(2));
    assert_eq!(info.method_index(MethodId::of("nothing")), None);
}

#[test]
fn a_turn_runs_on_the_boxed_state() {
    let kind = kind();
    let mut state = kind.fresh(&key());
    let payload = codec::to_bytes(&AccountDeposit { cents: 7 }).unwrap();
    let deposit = method(&kind, "deposit");
    for expected in [7, 14] {
        let result = kind.run_inline(deposit, &mut state, &turn(), &payload);
        assert!(matches!(result, TurnResult::Value(value) if value == [expected][..]));
    }
    let result = kind.run_query(method(&kind, "balance"), &state, &turn(), b"\x80");
    assert!(matches!(result, TurnResult::Value(value) if value == [14][..]));
}

#[test]
fn a_refusal_is_told_apart_from_a_value() {
    let kind = kind();
    let mut state = kind.fresh(&key());
    let payload = kind.arguments_from_json(method(&kind, "withdraw"), br#"{"cents":1}"#).unwrap();
    let result = kind.run_inline(method(&kind, "withdraw"), &mut state, &turn(), &payload);
    let TurnResult::Refused(error) = result else { panic!("{result:?}") };
    let error: BankError = codec::from_bytes(&error).unwrap();
    assert_eq!(error, BankError::Insufficient { cents: 0 });
}

#[tokio::test]
async fn malformed_arguments_reach_no_handler_in_any_style() {
    let kind = kind();
    let mut before = Vec::new();
    let mut state = kind.fresh(&key());
    kind.encode(&state, &mut before).unwrap();
    let bad = Bytes::from_static(b"\x81\xa5cents\xa1x");
    let names = ["deposit", "audit", "transfer", "statement"];
    for name in names {
        let payload = if name == "audit" { Bytes::from_static(b"\x80\x00") } else { bad.clone() };
        let payload =
            if name == "statement" { Bytes::from_static(b"\x81\xa8detailed\x05") } else { payload };
        let at = method(&kind, name);
        let result = match kind.info().methods[at].style {
            Style::Async => {
                let (back, result) = kind.run_async(at, state, turn(), payload).await;
                state = back;
                result
            }
            Style::Inline | Style::Blocking => {
                let (back, result) = direct_port::run(&kind, at, state, turn(), &payload);
                state = back;
                result
            }
        };
        let TurnResult::Malformed(reason) = result else { panic!("{name}: {result:?}") };
        assert!(reason.starts_with(&format!("the arguments of `{name}` do not decode: ")));
    }
    let mut after = Vec::new();
    kind.encode(&state, &mut after).unwrap();
    assert_eq!(after, before);
}

#[test]
fn added_and_removed_arguments_do_not_break_older_callers() {
    let kind = kind();
    let mut state = kind.fresh(&key());
    let newer = b"\x82\xa5cents\x05\xa5extra\xc3";
    let result = kind.run_inline(method(&kind, "deposit"), &mut state, &turn(), newer);
    assert!(matches!(result, TurnResult::Value(_)), "{result:?}");
    let older = b"\x81\xa5cents\x05";
    let result = kind.run_inline(method(&kind, "withdraw"), &mut state, &turn(), older);
    assert!(matches!(result, TurnResult::Value(_)), "{result:?}");
}

#[test]
fn a_state_of_the_first_version_is_read_and_written_back_as_the_second() {
    let kind = kind();
    let mut old = Vec::new();
    state::encode(&AccountV1 { cents: 9 }, &mut old).unwrap();
    let state = kind.decode(&old).unwrap();
    let mut new = Vec::new();
    kind.encode(&state, &mut new).unwrap();
    assert_eq!((old[0], new[0]), (1, 2));
    let account = state::decode::<Account>(&new).unwrap();
    assert_eq!((account.cents, account.owner.as_deref()), (9, Some("migrated")));
    let error = kind.decode(b"\x03\x00\x80").err().unwrap();
    assert_eq!(error, StateError::Newer { found: 3, known: 2 });
}

#[test]
#[should_panic(expected = "`balance` is run as what it is not")]
fn a_query_is_never_run_as_a_command() {
    let kind = kind();
    let mut state = kind.fresh(&key());
    kind.run_inline(method(&kind, "balance"), &mut state, &turn(), b"\x80");
}

#[test]
fn the_host_is_shared_between_threads() {
    let kind: Arc<dyn KindHost> = TypedKind::<Account>::shared();
    let name = std::thread::spawn(move || kind.info().name).join().unwrap();
    assert_eq!(name, "account");
}
