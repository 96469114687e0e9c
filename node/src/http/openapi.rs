//! An OpenAPI 3.1 document of the entities, made from the schemas that their types give.

use std::sync::Arc;

use mainstay::entity::host::{KindHost, KindInfo, MethodInfo};
use mainstay::protocol::limits::{IDEMPOTENCY_KEY_BYTES_MAX, KEY_BYTES_MAX};
use mainstay::protocol::message::Mode;
use schemars::{Schema, SchemaGenerator, generate::SchemaSettings};
use serde_json::{Map, Value, json};

use super::CallLimits;

/// The document of these kinds.
pub fn document(kinds: &[Arc<dyn KindHost>], limits: &CallLimits) -> Value {
    let mut generator = generator();
    let mut paths = Map::new();
    paths.insert("/v1".to_owned(), kinds_path());
    for host in kinds {
        let info = host.info();
        for (at, method) in info.methods.iter().enumerate() {
            let path = format!("/v1/{}/{{key}}/{}", info.name, method.name);
            let operation = operation(host.as_ref(), at, &mut generator, limits);
            paths.insert(path, json!({ "post": operation }));
        }
    }
    let mut schemas = generator.take_definitions(true);
    schemas.insert("MainstayProblem".to_owned(), problem_schema());
    let tags: Vec<Value> = kinds.iter().map(|host| tag(host.info())).collect();
    let mut document = json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Mainstay entities",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Stateful entities, called by kind, key and method. Repeat a command \
                whose outcome is unknown with the same Idempotency-Key: it takes effect once. \
                Send a command with the version that you read as If-Match: it runs at no other.",
        },
        "servers": [{ "url": "/" }],
        "tags": tags,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "parameters": parameters(limits),
            "responses": responses(),
            "headers": headers(),
        },
    });
    bound_integers(&mut document);
    document
}

fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            "/components/schemas".clone_into(settings.definitions_path.to_mut());
            settings.meta_schema = None;
        })
        .into_generator()
}

fn tag(info: &KindInfo) -> Value {
    json!({ "name": info.name, "description": info.doc })
}

fn kinds_path() -> Value {
    json!({ "get": {
        "operationId": "kinds",
        "summary": "The kinds and methods of this node",
        "responses": {
            "200": {
                "description": "The kinds",
                "content": { "application/json": { "schema": { "type": "object" } } },
            },
            "503": { "$ref": "#/components/responses/Unavailable" },
        },
    }})
}

fn operation(
    host: &dyn KindHost,
    at: usize,
    generator: &mut SchemaGenerator,
    limits: &CallLimits,
) -> Value {
    let info = host.info();
    let method = &info.methods[at];
    let schemas = host.schemas(at, generator);
    let needs_body = schemas
        .arguments
        .get("required")
        .and_then(Value::as_array)
        .is_some_and(|required| !required.is_empty());
    let mut parameters = vec![reference("parameters", "Key")];
    if method.mode == Mode::Command {
        parameters.push(reference("parameters", "IdempotencyKey"));
        parameters.push(reference("parameters", "IfMatch"));
    } else {
        parameters.push(reference("parameters", "Freshness"));
    }
    for name in ["TimeoutMs", "Pressure", "Traceparent"] {
        parameters.push(reference("parameters", name));
    }
    json!({
        "operationId": format!("{}.{}", info.name, method.name),
        "tags": [info.name],
        "summary": method.doc.lines().next().unwrap_or_default(),
        "description": describe(method, limits),
        "parameters": parameters,
        "requestBody": {
            "required": needs_body,
            "content": { "application/json": { "schema": schemas.arguments } },
        },
        "responses": outcomes(method.mode, &schemas.value, &schemas.error),
    })
}

fn describe(method: &MethodInfo, limits: &CallLimits) -> String {
    let mode = match method.mode {
        Mode::Command => "A command: it may change the entity.",
        Mode::Query => "A query: it cannot change the entity.",
    };
    let most = limits.body_bytes;
    format!("{}\n\n{mode} The body has at most {most} bytes.", method.doc).trim().to_owned()
}

fn reference(part: &str, name: &str) -> Value {
    json!({ "$ref": format!("#/components/{part}/{name}") })
}

fn outcomes(mode: Mode, value: &Schema, error: &Schema) -> Value {
    let mut outcomes = json!({
        "200": {
            "description": "The method's value",
            "headers": {
                "ETag": reference("headers", "ETag"),
                "MS-Version": reference("headers", "Version"),
                "MS-Epoch": reference("headers", "Epoch"),
                "MS-Token": reference("headers", "Token"),
                "MS-Served-By": reference("headers", "ServedBy"),
                "Idempotent-Replay": reference("headers", "IdempotentReplay"),
                "traceparent": reference("headers", "Traceparent"),
            },
            "content": { "application/json": { "schema": {
                "type": "object",
                "required": ["value", "version"],
                "properties": {
                    "value": value,
                    "version": {
                        "type": "integer", "minimum": 0,
                        "description": "The entity's version, 0 when it was never written",
                    },
                },
            }}},
        },
        "409": {
            "description": "The entity refused (MS-2201, `error` is its own error), or the call \
                came back to an entity that waits for it (MS-2107). Nothing was changed.",
            "content": { "application/problem+json": { "schema": {
                "allOf": [reference("schemas", "MainstayProblem")],
                "properties": { "error": error },
            }}},
        },
    });
    for (status, name, _) in RESPONSES {
        if *name != UNMET || mode == Mode::Command {
            outcomes[*status] = reference("responses", name);
        }
    }
    outcomes
}

/// The refusal that only commands give.
const UNMET: &str = "PreconditionFailed";

/// Refusals that every method may give, or every command: status, name, meaning.
const RESPONSES: &[(&str, &str, &str)] = &[
    ("400", "BadRequest", "The key, a header or the JSON is not valid (MS-2003, 2004, 2007)"),
    ("404", "NotFound", "No such path, kind or method (MS-2000, 2001, 2002)"),
    ("405", "MethodNotAllowed", "Entities are called with POST (MS-2008)"),
    ("408", "RequestTimeout", "The body came too slowly (MS-2009)"),
    ("412", UNMET, "The entity is at another version than If-Match names (MS-2111)"),
    ("413", "TooLarge", "The body is too large (MS-2005)"),
    ("415", "MediaType", "The body is not application/json (MS-2006)"),
    (
        "422",
        "Unprocessable",
        "The arguments do not fit (MS-2004), or the idempotency key was used for another call \
         (MS-2106)",
    ),
    ("429", "Overloaded", "No room for another request (MS-2101)"),
    ("500", "Failed", "The method panicked (MS-2108, 2109), or two builds differ (MS-2110)"),
    (
        "503",
        "Unavailable",
        "The shard cannot serve at the moment (MS-2104, 2105), or no copy is as fresh as the query \
         wants (MS-2112)",
    ),
    ("504", "Deadline", "The deadline passed (MS-2102: not executed, MS-2103: unknown)"),
];

fn responses() -> Value {
    let mut responses = Map::new();
    for (status, name, meaning) in RESPONSES {
        let mut response = json!({
            "description": meaning,
            "content": { "application/problem+json": {
                "schema": reference("schemas", "MainstayProblem"),
            }},
        });
        match *status {
            "405" => {
                response["headers"] = json!({ "Allow": { "schema": { "type": "string" } } });
            }
            "412" => {
                response["headers"] = json!({
                    "ETag": reference("headers", "ETag"),
                    "MS-Version": reference("headers", "Version"),
                    "MS-Epoch": reference("headers", "Epoch"),
                    "MS-Token": reference("headers", "Token"),
                });
            }
            "429" | "503" => {
                response["headers"] = json!({ "Retry-After": reference("headers", "RetryAfter") });
            }
            _ => {}
        }
        responses.insert((*name).to_owned(), response);
    }
    Value::Object(responses)
}

fn parameters(limits: &CallLimits) -> Value {
    let longest = u64::try_from(limits.deadline_max.as_millis()).unwrap_or(u64::MAX);
    json!({
        "Key": {
            "name": "key", "in": "path", "required": true,
            "description": "The entity's key: 1 to 512 bytes of UTF-8, percent-encoded",
            "schema": { "type": "string", "minLength": 1, "maxLength": KEY_BYTES_MAX },
        },
        "IdempotencyKey": {
            "name": "Idempotency-Key", "in": "header", "required": false,
            "description": "Repeated with the same call, the command takes effect once",
            "schema": {
                "type": "string", "minLength": 1, "maxLength": IDEMPOTENCY_KEY_BYTES_MAX,
                "pattern": "^[!-~]([ -~]*[!-~])?$",
            },
        },
        "IfMatch": {
            "name": "If-Match", "in": "header", "required": false,
            "description": "The version at which alone the command runs, as an answer's ETag says \
                it; \"0\" is that of an entity never written",
            "schema": { "type": "string", "pattern": "^(\"(0|[1-9][0-9]{0,18})\"|0|[1-9][0-9]{0,18})$" },
        },
        "TimeoutMs": {
            "name": "MS-Timeout-Ms", "in": "header", "required": false,
            "description": "How long the caller waits, in milliseconds",
            "schema": { "type": "integer", "minimum": 1, "maximum": longest },
        },
        "Pressure": {
            "name": "MS-Pressure", "in": "header", "required": false,
            "description": "When there is no room: wait until the deadline, or refuse at once",
            "schema": { "type": "string", "enum": ["wait", "refuse"], "default": "wait" },
        },
        "Freshness": {
            "name": "MS-Freshness", "in": "header", "required": false,
            "description": "How fresh a state is shown: strict, at-least= the MS-Token of an \
                answer, or max-staleness= a span in ms or s; without it the newest",
            "schema": { "type": "string", "pattern": super::freshness::PATTERN },
        },
        "Traceparent": {
            "name": "traceparent", "in": "header", "required": false,
            "description": "W3C trace context; an invalid one begins a new trace",
            "schema": { "type": "string" },
        },
    })
}

fn headers() -> Value {
    let header = |description: &str, kind: &str| json!({ "description": description, "schema": { "type": kind } });
    json!({
        "ETag": header("The entity's version in quotes, for If-Match", "string"),
        "Version": header("The entity's version", "integer"),
        "Epoch": header("In which epoch of the shard's primary", "integer"),
        "Token": header("Both with the shard, for a later at-least", "string"),
        "ServedBy": header("The node that served the call", "string"),
        "IdempotentReplay": header("true: the stored answer of an earlier call", "string"),
        "Traceparent": header("The trace and span of this call", "string"),
        "RetryAfter": header("Seconds to wait before the next try", "integer"),
    })
}

fn problem_schema() -> Value {
    json!({
        "type": "object",
        "description": "RFC 9457 problem document",
        "required": ["type", "title", "status", "detail", "code", "retryable", "outcome"],
        "properties": {
            "type": { "type": "string" },
            "title": { "type": "string" },
            "status": { "type": "integer" },
            "detail": { "type": "string" },
            "code": { "type": "string", "pattern": "^MS-[0-9]{4}$" },
            "retryable": {
                "type": "boolean", "description": "The same request may succeed later",
            },
            "retry_after_ms": { "type": "integer", "minimum": 0 },
            "outcome": {
                "type": "string", "enum": ["not_executed", "executed", "unknown"],
                "description": "Whether the call took effect",
            },
            "trace_id": { "type": "string" },
            "error": { "description": "The entity's own error" },
            "bound": { "type": "string", "description": "Which bound was reached" },
            "version": {
                "type": "integer", "minimum": 0,
                "description": "The entity's version, when the command was to run at another",
            },
        },
    })
}

/// Says the bounds of integers that only have a format: a schema that takes any integer would
/// promise more than the type holds.
fn bound_integers(value: &mut Value) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(bound_integers),
        Value::Object(members) => {
            let bounds = match members.get("format").and_then(Value::as_str) {
                Some("int32") => Some((json!(i32::MIN), json!(i32::MAX))),
                Some("int64") => Some((json!(i64::MIN), json!(i64::MAX))),
                Some("uint32") => Some((json!(0), json!(u32::MAX))),
                Some("uint64") => Some((json!(0), json!(u64::MAX))),
                _ => None,
            };
            if let Some((least, greatest)) = bounds {
                members.entry("minimum").or_insert(least);
                members.entry("maximum").or_insert(greatest);
            }
            members.values_mut().for_each(bound_integers);
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_get_the_bounds_of_their_types() {
        let mut schema = json!({"properties": {
            "a": {"type": "integer", "format": "int64"},
            "b": {"type": "integer", "format": "uint64", "minimum": 5},
            "c": {"type": "number", "format": "double"},
        }});
        bound_integers(&mut schema);
        assert_eq!(schema["properties"]["a"]["minimum"], i64::MIN);
        assert_eq!(schema["properties"]["a"]["maximum"], i64::MAX);
        assert_eq!(schema["properties"]["b"]["minimum"], 5);
        assert_eq!(schema["properties"]["c"].get("maximum"), None);
    }

    #[test]
    fn every_status_has_its_response() {
        let described = responses();
        for (_, name, _) in RESPONSES {
            assert!(described.get(name).is_some());
        }
    }
}
