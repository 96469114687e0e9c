//! JSON in and out, and the schemas that describe it.

use mainstay::entity::host::KindHost;
use mainstay::entity::schema::generator;
use mainstay::entity::{State, TypedKind, codec, state};
use serde_json::json;

use crate::bank::{Account, AccountV1, BankError, Statement};

fn method(kind: &dyn KindHost, name: &str) -> usize {
    kind.info().method_index_by_name(name).unwrap()
}

fn arguments(name: &str, json: &str) -> Result<serde_json::Value, String> {
    let kind = TypedKind::<Account>::new();
    let bytes = kind.arguments_from_json(method(&kind, name), json.as_bytes())?;
    Ok(rmp_serde::from_slice(&bytes).unwrap())
}

#[test]
fn arguments_are_members_of_an_object() {
    assert_eq!(arguments("deposit", r#"{"cents":5}"#).unwrap(), json!({"cents": 5}));
    assert_eq!(
        arguments("withdraw", r#"{"cents":5}"#).unwrap(),
        json!({"cents": 5, "note": ""}),
        "an argument may have a default"
    );
    assert_eq!(arguments("statement", "{}").unwrap(), json!({"detailed": null}));
    assert_eq!(arguments("balance", "").unwrap(), json!({}));
    assert_eq!(arguments("balance", " {} \n").unwrap(), json!({}));
}

#[test]
fn integral_floats_are_integers() {
    for text in ["986.0", "9.86e2", "986"] {
        let json = format!(r#"{{"cents":{text}}}"#);
        assert_eq!(arguments("deposit", &json).unwrap(), json!({"cents": 986}), "{text}");
    }
    assert_eq!(arguments("deposit", r#"{"cents":-0.0}"#).unwrap(), json!({"cents": 0}));
    assert!(arguments("deposit", r#"{"cents":0.5}"#).is_err());
    assert!(arguments("deposit", r#"{"cents":1e300}"#).is_err());
}

#[test]
fn what_is_wrong_is_said_with_its_place() {
    let wrong = |name, json| arguments(name, json).unwrap_err();
    assert_eq!(
        wrong("deposit", r#"{"cents":"5"}"#),
        "`cents`: invalid type: string \"5\", expected u32"
    );
    assert_eq!(
        wrong("deposit", r#"{"cents":-1}"#),
        "`cents`: invalid value: integer `-1`, expected u32"
    );
    assert_eq!(wrong("deposit", "{}"), "missing field `cents`");
    assert_eq!(
        wrong("deposit", r#"{"cents":1,"cent":2}"#),
        "unknown argument `cent`, the method has `cents`"
    );
    assert_eq!(wrong("balance", r#"{"a":1}"#), "unknown argument `a`: the method has none");
    assert_eq!(wrong("deposit", "[5]"), "the arguments are a JSON object, not an array");
    assert_eq!(wrong("deposit", "null"), "the arguments are a JSON object, not null");
    assert_eq!(
        wrong("deposit", r#"{"cents":1,"cents":2}"#),
        "`cents` is given twice at line 1 column 18"
    );
    assert!(wrong("deposit", "{").starts_with("EOF while parsing"));
}

#[test]
fn values_and_errors_come_out_as_json() {
    let kind = TypedKind::<Account>::new();
    let at = method(&kind, "statement");
    let statement = Statement { owner: None, cents: -3, small: 1, ratio: 0.5 };
    let bytes = codec::to_bytes(&statement).unwrap();
    assert_eq!(
        kind.value_to_json(at, &bytes).unwrap(),
        json!({"owner": null, "cents": -3, "small": 1, "ratio": 0.5})
    );
    let bytes = codec::to_bytes(&BankError::Insufficient { cents: 3 }).unwrap();
    assert_eq!(
        kind.error_to_json(at, &bytes).unwrap(),
        (json!({"Insufficient": {"cents": 3}}), "only 3 cents are left".to_owned())
    );
    assert!(kind.value_to_json(at, b"\x01").is_err());
    assert!(kind.error_to_json(method(&kind, "balance"), &bytes).is_err());
}

#[test]
fn a_stored_state_of_an_older_version_is_shown_as_it_would_be_read() {
    let kind = TypedKind::<Account>::new();
    let mut bytes = Vec::new();
    state::encode(&AccountV1 { cents: 4 }, &mut bytes).unwrap();
    assert_eq!(
        kind.state_to_json(&bytes).unwrap(),
        json!({"cents": 4, "owner": "migrated", "holds": {}})
    );
    assert_eq!((AccountV1::VERSION, Account::VERSION), (1, 2));
}

#[test]
fn schemas_say_what_is_accepted() {
    let kind = TypedKind::<Account>::new();
    let mut generator = generator();
    let withdraw = kind.schemas(method(&kind, "withdraw"), &mut generator);
    let arguments = withdraw.arguments.as_value();
    assert_eq!(arguments["type"], json!("object"));
    assert_eq!(arguments["required"], json!(["cents"]));
    assert_eq!(arguments["additionalProperties"], json!(false));
    let cents = &arguments["properties"]["cents"];
    assert_eq!((&cents["minimum"], &cents["maximum"]), (&json!(0), &json!(u32::MAX)));
    assert_eq!(withdraw.value.as_value()["maximum"], json!(i64::MAX));
    assert_eq!(withdraw.error.as_value()["$ref"], json!("#/components/schemas/BankError"));

    let balance = kind.schemas(method(&kind, "balance"), &mut generator);
    assert_eq!(balance.arguments.as_value()["additionalProperties"], json!(false));
    assert_eq!(balance.error.as_value(), &json!(false));

    kind.schemas(method(&kind, "statement"), &mut generator);
    let definitions = generator.take_definitions(true);
    let statement = &definitions["Statement"]["properties"];
    assert_eq!(statement["cents"]["minimum"], json!(i64::MIN));
    assert_eq!(statement["small"]["maximum"], json!(255));
    assert_eq!(statement["ratio"]["maximum"], json!(f32::MAX));
    assert!(definitions.contains_key("BankError"));
}
