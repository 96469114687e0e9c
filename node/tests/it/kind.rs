//! The one kind of the fake node, made by hand.

use bytes::Bytes;
use mainstay::entity::host::{
    BoxState, KindHost, KindInfo, KindOptions, MethodInfo, MethodSchemas, StateError, Style,
    TurnContext, TurnFuture, TurnResult,
};
use mainstay::protocol::id::{Key, KindId, MethodId};
use mainstay::protocol::message::Mode;
use schemars::SchemaGenerator;
use serde_json::{Value, json};

/// The kind `counter`; its payloads are JSON.
pub(crate) struct Counter {
    pub(crate) info: KindInfo,
}

pub(crate) fn counter_info() -> KindInfo {
    let method = |name: &'static str, doc, mode| MethodInfo {
        id: MethodId::of(name),
        name,
        doc,
        mode,
        style: Style::Inline,
        deadline: None,
    };
    KindInfo {
        id: KindId::of("counter"),
        name: "counter",
        doc: "A number that is counted up.",
        options: KindOptions::default(),
        methods: vec![
            method("add", "Adds, and returns the new value.", Mode::Command),
            method("big", "A long text.", Mode::Query),
            method("fail", "Fails as told.", Mode::Command),
            method("get", "The value.", Mode::Query),
        ],
    }
}

impl KindHost for Counter {
    fn info(&self) -> &KindInfo {
        &self.info
    }

    fn affinity<'k>(&self, key: &'k Key) -> &'k str {
        key.as_str()
    }

    fn fresh(&self, _: &Key) -> BoxState {
        unreachable!("the fake runs no turns")
    }

    fn decode(&self, _: &[u8]) -> Result<BoxState, StateError> {
        unreachable!("the fake runs no turns")
    }

    fn encode(&self, _: &BoxState, _: &mut Vec<u8>) -> Result<(), StateError> {
        unreachable!("the fake runs no turns")
    }

    fn run_inline(&self, _: usize, _: &mut BoxState, _: &TurnContext, _: &[u8]) -> TurnResult {
        unreachable!("the fake runs no turns")
    }

    fn run_query(&self, _: usize, _: &BoxState, _: &TurnContext, _: &[u8]) -> TurnResult {
        unreachable!("the fake runs no turns")
    }

    fn run_async(&self, _: usize, _: BoxState, _: TurnContext, _: Bytes) -> TurnFuture {
        unreachable!("the fake runs no turns")
    }

    fn run_blocking(
        &self,
        _: usize,
        _: BoxState,
        _: TurnContext,
        _: Bytes,
    ) -> (BoxState, TurnResult) {
        unreachable!("the fake runs no turns")
    }

    fn arguments_from_json(&self, method: usize, json: &[u8]) -> Result<Bytes, String> {
        let value: Value = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let wanted = match self.info.methods[method].name {
            "add" if value["by"].as_i64().is_none() => Some("`by`: expected an integer"),
            "fail" if !value["how"].is_string() => Some("`how`: expected text"),
            _ => None,
        };
        match wanted {
            Some(wanted) => Err(wanted.to_owned()),
            None => Ok(Bytes::copy_from_slice(json)),
        }
    }

    fn value_to_json(&self, _: usize, value: &[u8]) -> Result<Value, String> {
        serde_json::from_slice(value).map_err(|error| error.to_string())
    }

    fn error_to_json(&self, _: usize, error: &[u8]) -> Result<(Value, String), String> {
        let error = serde_json::from_slice(error).map_err(|error| error.to_string())?;
        Ok((error, "too poor".to_owned()))
    }

    fn state_to_json(&self, bytes: &[u8]) -> Result<Value, StateError> {
        serde_json::from_slice(bytes)
            .map(|value: i64| json!({ "value": value }))
            .map_err(|error| StateError::Malformed { reason: error.to_string() })
    }

    fn schemas(&self, method: usize, generator: &mut SchemaGenerator) -> MethodSchemas {
        let empty = schemars::json_schema!({"type": "object"});
        let arguments = match self.info.methods[method].name {
            "add" => schemars::json_schema!({
                "type": "object",
                "properties": {"by": {"type": "integer", "format": "int64"}},
                "required": ["by"],
            }),
            "fail" => schemars::json_schema!({
                "type": "object",
                "properties": {"how": generator.subschema_for::<How>()},
                "required": ["how"],
            }),
            _ => empty,
        };
        let value = generator.subschema_for::<i64>();
        MethodSchemas { arguments, value, error: generator.subschema_for::<String>() }
    }
}

/// A type of its own, so that the document has a schema to refer to.
#[derive(schemars::JsonSchema)]
#[expect(dead_code, reason = "only its schema is used")]
struct How(String);
