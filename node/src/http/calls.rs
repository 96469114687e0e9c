//! `POST /v1/{kind}/{key}/{method}`: a call from outside, from its path to its answer.
//!
//! In this order: path, kind, method, headers, room for the body, the body, its JSON, the call, room
//! for the answer. Room is taken before the body is read, so that a full node leaves bodies in the
//! senders' sockets; the deadline counts from the arrival of the head.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited};
use hyper::body::Body as _;
use mainstay::call::{Answer, Call, DEADLINE_DEFAULT, Retry};
use mainstay::entity::host::{KindHost, MethodInfo};
use mainstay::journey::{self, Verb};
use mainstay::protocol::id::{IdempotencyKey, Key, Seq, Token};
use mainstay::protocol::limits::{DECODE_DEPTH_MAX, PAYLOAD_BYTES_MAX};
use mainstay::protocol::message::{Failure, Mode, Outcome, Pressure, TraceContext};
use mainstay::protocol::replication::freshness::Freshness;
use serde::de::IgnoredAny;
use serde_json::json;
use tokio::time::Instant;
use tracing::Instrument as _;

use super::answers::{RETRY_MEMORY, unsent};
use super::problem::Problem;
use super::{Api, CallLimits, condition, freshness, header_text, path, trace};
use crate::backend::{Backend, Permit};

/// How much longer than its deadline a call is waited for: the node itself ends it, and knows
/// more about its outcome.
const GRACE: Duration = Duration::from_millis(500);

/// Answers everything that is no other route.
pub async fn handle(State(api): State<Api>, request: Request) -> Response {
    let trace = trace::of_request(request.headers());
    let path = request.uri().clone();
    let accept = journey::span(Verb::Accept, Some(&trace), Some(&path));
    let answered = answer(&api, request, trace).instrument(accept).await;
    let _reply = journey::span(Verb::Reply, Some(&trace), Some(&path)).entered();
    let mut response = match answered {
        Ok(response) => response,
        Err(problem) => problem.trace(trace::id(trace)).into_response(),
    };
    response.headers_mut().insert("traceparent", trace::header(trace));
    response
}

async fn answer(api: &Api, request: Request, trace: TraceContext) -> Result<Response, Problem> {
    let began = Instant::now();
    let (head, body) = request.into_parts();
    let segments = segments(head.uri.path())?;
    if head.method != Method::POST {
        return Err(Problem::method_not_allowed(&head.method, "POST"));
    }
    let backend = api.serving()?;
    let target = Target::find(backend, segments)?;
    let mode = target.method().mode;
    let asked = Asked::of(&head.headers, mode, api.limits())?;
    let span = asked.deadline.or(target.method().deadline).unwrap_or(DEADLINE_DEFAULT);
    let deadline = began + span.min(api.limits().deadline_max);

    let incoming = Incoming { body, limits: api.limits() };
    incoming.check(&head.headers)?;
    let mut permit = reserve(backend, incoming.bytes(), asked.pressure, deadline).await?;
    let json = incoming.read().await?;
    permit.shrink_to(u64::try_from(json.len()).unwrap_or(u64::MAX));
    let payload = target.payload(&json)?;
    drop(json);

    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Err(late(Outcome::NotExecuted, true));
    }
    let repeatable = mode == Mode::Query || asked.idempotency.is_some();
    let call = Call {
        kind: target.host.info().id,
        key: target.key.clone(),
        method: target.method().id,
        mode,
        freshness: asked.freshness,
        payload,
        idempotency: asked.idempotency,
        if_version: asked.if_version,
        deadline: remaining,
        pressure: asked.pressure,
        retry: Retry::StaleMap,
        trace: Some(trace),
        id: None,
        chain: Vec::new(),
        from_kind: None,
    };
    let answered = match tokio::time::timeout(remaining + GRACE, backend.call(call)).await {
        Ok(answered) => answered,
        Err(_) => Err(Failure::Deadline { outcome: Outcome::Unknown }),
    };
    let response = match answered {
        Ok(answer) => target.success(&answer, api.name())?,
        Err(failure) => target.refusal(failure, repeatable).trace(trace::id(trace)).into_response(),
    };
    drop(permit);
    api.answers().hold(response).await.ok_or_else(|| unsent(mode, repeatable))
}

/// Kind, key and method as they stand in the path.
fn segments(path: &str) -> Result<[&str; 3], Problem> {
    let mut parts = path.split('/');
    let (before, v1) = (parts.next(), parts.next());
    let (kind, key, method) = (parts.next(), parts.next(), parts.next());
    match (before, v1, kind, key, method, parts.next()) {
        (Some(""), Some("v1"), Some(kind), Some(key), Some(method), None) => {
            Ok([kind, key, method])
        }
        _ => Err(Problem::new(
            StatusCode::NOT_FOUND,
            "MS-2000",
            "calls are POST /v1/{kind}/{key}/{method}, a slash in the key written as %2F",
        )),
    }
}

/// What a call is for.
struct Target {
    host: Arc<dyn KindHost>,
    method: usize,
    key: Key,
}

impl Target {
    fn find(backend: &Arc<dyn Backend>, [kind, key, method]: [&str; 3]) -> Result<Self, Problem> {
        let host =
            path::decode(kind).ok().and_then(|name| backend.kind(&name)).ok_or_else(|| {
                let detail = format!("no kind is named {:?}", short(kind));
                Problem::new(StatusCode::NOT_FOUND, "MS-2001", detail)
            })?;
        let name = path::decode(method).unwrap_or_default();
        let found = host.info().methods.iter().position(|info| info.name == name);
        let method = found.ok_or_else(|| {
            let detail = format!("kind {} has no method {:?}", host.info().name, short(method));
            Problem::new(StatusCode::NOT_FOUND, "MS-2002", detail)
        })?;
        let bad_key = |what: String| Problem::new(StatusCode::BAD_REQUEST, "MS-2003", what);
        let key = path::decode(key).map_err(|error| bad_key(format!("the key: {error}")))?;
        let key = Key::new(&key).map_err(|error| bad_key(error.to_string()))?;
        Ok(Self { host, method, key })
    }

    fn method(&self) -> &MethodInfo {
        &self.host.info().methods[self.method]
    }

    /// The arguments, from JSON to what travels.
    fn payload(&self, json: &[u8]) -> Result<Bytes, Problem> {
        let json = if json.iter().all(u8::is_ascii_whitespace) { b"{}" } else { json };
        let malformed = |status, what: String| Problem::new(status, "MS-2004", what);
        let depth = depth(json);
        if depth > DECODE_DEPTH_MAX {
            let what = format!("the body nests deeper than {DECODE_DEPTH_MAX} levels");
            return Err(malformed(StatusCode::BAD_REQUEST, what));
        }
        let not_json = |error: &dyn std::fmt::Display| {
            malformed(StatusCode::BAD_REQUEST, format!("the body is not JSON: {error}"))
        };
        let text = std::str::from_utf8(json).map_err(|error| not_json(&error))?;
        serde_json::from_str::<IgnoredAny>(text).map_err(|error| not_json(&error))?;
        if !json.trim_ascii_start().starts_with(b"{") {
            let what = "the body must be a JSON object with a member per parameter".to_owned();
            return Err(malformed(StatusCode::UNPROCESSABLE_ENTITY, what));
        }
        let payload = self
            .host
            .arguments_from_json(self.method, json)
            .map_err(|reason| malformed(StatusCode::UNPROCESSABLE_ENTITY, reason))?;
        if payload.len() > PAYLOAD_BYTES_MAX {
            let found = u64::try_from(payload.len()).unwrap_or(u64::MAX);
            return Err(too_large(found, u64::try_from(PAYLOAD_BYTES_MAX).unwrap_or(u64::MAX)));
        }
        Ok(payload)
    }

    fn success(&self, answer: &Answer, me: &str) -> Result<Response, Problem> {
        let success = &answer.success;
        let value = self.host.value_to_json(self.method, &success.value).map_err(|reason| {
            let detail = format!("the value does not decode with this build: {reason}");
            Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "MS-2110", detail)
                .outcome(Outcome::Executed)
        })?;
        let body = json!({"value": value, "version": success.token.seq.0});
        let mut response = axum::Json(body).into_response();
        let headers = response.headers_mut();
        for (name, value) in token_headers(success.token, success.replayed) {
            headers.insert(name, value);
        }
        let served_by = answer.served_by.as_ref().map_or(me, |node| node.as_str());
        if let Ok(value) = HeaderValue::from_str(served_by) {
            headers.insert("ms-served-by", value);
        }
        Ok(response)
    }

    /// The problem of a call that gave no value. `repeatable`: repeating it cannot do harm.
    fn refusal(&self, failure: Failure, repeatable: bool) -> Problem {
        let internal =
            |code, detail: String| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, code, detail);
        match failure {
            Failure::App { error, token, replayed } => self.own_error(&error, token, replayed),
            Failure::Overloaded { retry_after_ms, bound } => {
                let detail = format!("no room: {bound}");
                Problem::new(StatusCode::TOO_MANY_REQUESTS, "MS-2101", detail)
                    .retry_after(Duration::from_millis(retry_after_ms))
                    .bound(bound)
            }
            Failure::Deadline { outcome } => late(outcome, repeatable),
            Failure::NotPrimary { .. } => {
                unavailable("MS-2104", "the shard's primary was not found in time".to_owned())
            }
            Failure::Unavailable { outcome, reason } => {
                let safe = repeatable || outcome == Outcome::NotExecuted;
                unavailable("MS-2105", reason).outcome(outcome).retryable(safe)
            }
            Failure::Unknown { what } => {
                let code = if what == "method" { "MS-2002" } else { "MS-2001" };
                let detail = format!("the shard's primary does not know this {what}");
                Problem::new(StatusCode::NOT_FOUND, code, detail)
            }
            Failure::Malformed { reason } => {
                Problem::new(StatusCode::UNPROCESSABLE_ENTITY, "MS-2004", reason)
            }
            Failure::KeyConflict => Problem::new(
                StatusCode::UNPROCESSABLE_ENTITY,
                "MS-2106",
                "the idempotency key was used with another method or other arguments, or is under \
                 way with another If-Match",
            ),
            Failure::VersionMismatch { token } => {
                let version = token.seq.0;
                let detail = format!("the entity is at version {version}; nothing was changed");
                let problem = Problem::new(StatusCode::PRECONDITION_FAILED, "MS-2111", detail);
                with_token(problem.version(version), token, false)
            }
            Failure::Reentrant => Problem::new(
                StatusCode::CONFLICT,
                "MS-2107",
                "the call came back to an entity that waits for it",
            ),
            Failure::Panicked { quarantined: false } => {
                internal("MS-2108", "the method panicked; see the node's log".to_owned())
            }
            Failure::Panicked { quarantined: true } => {
                internal("MS-2109", "the method panicked on this input before".to_owned())
            }
            Failure::Version { reason } => internal("MS-2110", reason),
            Failure::Stale { reason } => unavailable("MS-2112", reason),
        }
    }

    /// The entity ran and refused: an execution, also when its error cannot be read here.
    fn own_error(&self, error: &[u8], token: Token, replayed: bool) -> Problem {
        let (error, text) = match self.host.error_to_json(self.method, error) {
            Ok(decoded) => decoded,
            Err(reason) => {
                let detail = format!("the entity's error does not decode: {reason}");
                return Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "MS-2110", detail)
                    .outcome(Outcome::Executed);
            }
        };
        let refused = Problem::new(StatusCode::CONFLICT, "MS-2201", text)
            .outcome(Outcome::Executed)
            .error(error);
        with_token(refused, token, replayed)
    }
}

/// What the caller's headers ask for.
struct Asked {
    deadline: Option<Duration>,
    idempotency: Option<IdempotencyKey>,
    if_version: Option<Seq>,
    pressure: Pressure,
    freshness: Option<Freshness>,
}

impl Asked {
    fn of(headers: &HeaderMap, mode: Mode, limits: &CallLimits) -> Result<Self, Problem> {
        let longest = limits.deadline_max.as_millis();
        let deadline = header_text(headers, "ms-timeout-ms")?
            .map(|text| match text.parse::<u64>() {
                Ok(millis) if (1..=longest).contains(&u128::from(millis)) => {
                    Ok(Duration::from_millis(millis))
                }
                _ => {
                    let what = format!("is not a whole number of 1 to {longest}");
                    Err(Problem::bad_header("MS-Timeout-Ms", what))
                }
            })
            .transpose()?;
        let idempotency = match mode {
            Mode::Query => None,
            Mode::Command => header_text(headers, "idempotency-key")?
                .map(IdempotencyKey::new)
                .transpose()
                .map_err(|error| Problem::bad_header("Idempotency-Key", format!(": {error}")))?,
        };
        let pressure = match header_text(headers, "ms-pressure")? {
            None | Some("wait") => Pressure::Wait,
            Some("refuse") => Pressure::Refuse,
            Some(_) => {
                return Err(Problem::bad_header("MS-Pressure", "is neither wait nor refuse"));
            }
        };
        let if_version = condition::of(headers, mode)?;
        let freshness = freshness::of(headers, mode)?;
        Ok(Self { deadline, idempotency, if_version, pressure, freshness })
    }
}

/// A body on its way in.
struct Incoming<'l> {
    body: Body,
    limits: &'l CallLimits,
}

impl Incoming<'_> {
    /// Refuses what can be refused without reading.
    fn check(&self, headers: &HeaderMap) -> Result<(), Problem> {
        let declared = self.body.size_hint().exact();
        if let Some(bytes) = declared.filter(|bytes| *bytes > self.limits.body_bytes) {
            return Err(too_large(bytes, self.limits.body_bytes).closing());
        }
        if declared == Some(0) || is_json(headers) {
            return Ok(());
        }
        Err(Problem::new(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "MS-2006",
            "arguments are application/json",
        ))
    }

    /// Bytes to take room for: what is declared, or the most that may come.
    fn bytes(&self) -> u64 {
        self.body.size_hint().exact().unwrap_or(self.limits.body_bytes)
    }

    async fn read(self) -> Result<Bytes, Problem> {
        let limit = self.limits.body_bytes;
        let limited = Limited::new(self.body, usize::try_from(limit).unwrap_or(usize::MAX));
        match tokio::time::timeout(self.limits.body_timeout, limited.collect()).await {
            Ok(Ok(collected)) => Ok(collected.to_bytes()),
            Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Problem::new(
                StatusCode::PAYLOAD_TOO_LARGE,
                "MS-2005",
                format!("the body has more than {limit} bytes"),
            )
            .closing()),
            Ok(Err(error)) => {
                let detail = format!("the body ended early: {error}");
                Err(Problem::new(StatusCode::BAD_REQUEST, "MS-2004", detail).closing())
            }
            Err(_) => {
                let detail = format!("no whole body within {:?}", self.limits.body_timeout);
                Err(Problem::new(StatusCode::REQUEST_TIMEOUT, "MS-2009", detail)
                    .retryable(true)
                    .closing())
            }
        }
    }
}

/// Takes room for a body before it is read.
async fn reserve(
    backend: &Arc<dyn Backend>,
    bytes: u64,
    pressure: Pressure,
    deadline: Instant,
) -> Result<Box<dyn Permit>, Problem> {
    match pressure {
        Pressure::Refuse => backend.try_reserve(bytes).ok_or_else(|| {
            Problem::new(StatusCode::TOO_MANY_REQUESTS, "MS-2101", "no room: memory")
                .retry_after(RETRY_MEMORY)
                .bound("memory".to_owned())
        }),
        Pressure::Wait => tokio::time::timeout_at(deadline, backend.reserve(bytes))
            .await
            .map_err(|_| late(Outcome::NotExecuted, true)),
    }
}

/// Whether the body says that it is JSON, or says nothing.
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
    let essence = text.split(';').next().unwrap_or_default().trim();
    let subtype = essence.strip_prefix("application/").unwrap_or_default();
    subtype == "json" || subtype.ends_with("+json")
}

/// How deep the brackets nest, outside of strings. Right for JSON, harmless for anything else.
fn depth(json: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'[' | b'{' if !in_text => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_text => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn with_token(problem: Problem, token: Token, replayed: bool) -> Problem {
    let headers = token_headers(token, replayed).into_iter();
    headers.fold(problem, |problem, (name, value)| problem.header(name, value))
}

fn token_headers(token: Token, replayed: bool) -> Vec<(HeaderName, HeaderValue)> {
    let mut headers = condition::headers(token).to_vec();
    headers.extend(freshness::token_header(token));
    if replayed {
        let name = HeaderName::from_static("idempotent-replay");
        headers.push((name, HeaderValue::from_static("true")));
    }
    headers
}

fn too_large(found: u64, limit: u64) -> Problem {
    let detail = format!("the arguments have {found} bytes, the limit is {limit}");
    Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "MS-2005", detail)
}

fn late(outcome: Outcome, repeatable: bool) -> Problem {
    let (code, detail) = match outcome {
        Outcome::NotExecuted => ("MS-2102", "the deadline passed before the call ran"),
        Outcome::Executed | Outcome::Unknown => ("MS-2103", "the deadline passed; it may have run"),
    };
    let safe = repeatable || outcome == Outcome::NotExecuted;
    Problem::new(StatusCode::GATEWAY_TIMEOUT, code, detail).outcome(outcome).retryable(safe)
}

fn unavailable(code: &'static str, reason: String) -> Problem {
    Problem::new(StatusCode::SERVICE_UNAVAILABLE, code, reason).retry_after(Duration::from_secs(1))
}

/// A name from outside, short enough to be repeated.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn depth_counts_brackets_outside_of_strings() {
        assert_eq!(depth(br#"{"a":[1,[2]]}"#), 3);
        assert_eq!(depth(br#"{"a":"[[[[\"[[["}"#), 1);
        assert_eq!(depth(b"]]]]["), 1);
        assert_eq!(depth(&vec![b'['; 100_000]), 100_000);
    }

    #[test]
    fn json_is_told_from_other_types() {
        for (text, expected) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("application/vnd.x+json", true),
            ("application/x-www-form-urlencoded", false),
            ("text/json", false),
            ("", false),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(text));
            assert_eq!(is_json(&headers), expected, "{text}");
        }
        assert!(is_json(&HeaderMap::new()));
    }

    #[test]
    fn only_the_shape_of_a_call_is_a_call() {
        assert_eq!(segments("/v1/counter/a%2Fb/add").unwrap(), ["counter", "a%2Fb", "add"]);
        assert_eq!(segments("/v1/counter//add").unwrap(), ["counter", "", "add"]);
        for path in ["/", "*", "/v1/", "/v1/counter", "/v1/counter/a", "/v1/c/a/b/d", "/v2/c/a/m"] {
            assert!(segments(path).is_err(), "{path}");
        }
    }
}
