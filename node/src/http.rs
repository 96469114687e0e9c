//! HTTP: the API for callers and the listener for operators, over any [`Backend`].
//!
//! ```text
//!   socket -> server (limits, timeouts) -> calls   POST /v1/{kind}/{key}/{method}
//!                                       -> openapi GET /v1, /openapi.json
//!   socket -> server                    -> health  /livez /readyz /startupz, /metrics
//!                                       -> admin   /admin/v1/..., and the API again
//! ```
//!
//! Both listeners answer from the first moment. Once the data is recovered the node stands behind
//! them and tells operators how it joins; until it has joined, calls are refused with 503.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use mainstay::protocol::id::NodeId;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

pub mod admin;
pub mod answers;
pub mod calls;
mod condition;
pub mod events;
mod freshness;
pub mod health;
pub mod openapi;
pub mod overview;
pub mod path;
pub mod problem;
pub mod server;
mod trace;
pub mod views;

use crate::backend::Backend;
use crate::settings::Settings;
use problem::Problem;

/// What all handlers share.
#[derive(Clone)]
pub struct Api(Arc<Shared>);

struct Shared {
    backend: OnceLock<Arc<dyn Backend>>,
    open: AtomicBool,
    name: OnceLock<NodeId>,
    openapi: OnceLock<Bytes>,
    limits: CallLimits,
    answers: answers::Answers,
    metrics: Option<PrometheusHandle>,
    stopping: watch::Receiver<bool>,
}

/// What a call may ask for.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// Bytes of a body.
    pub body_bytes: u64,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// Bytes of answers that are not sent yet, all together; small ones do not count.
    pub answer_bytes: u64,
    /// The longest deadline.
    pub deadline_max: Duration,
}

impl CallLimits {
    /// The limits in `settings`.
    pub fn of(settings: &Settings) -> Self {
        Self {
            body_bytes: settings.http.body_bytes,
            body_timeout: settings.http.body_timeout,
            answer_bytes: settings.runtime.limits.request_bytes,
            deadline_max: settings.runtime.limits.deadline_max,
        }
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("limits", &self.0.limits).finish_non_exhaustive()
    }
}

impl Api {
    /// An API without a node behind it yet. Streams end when `stopping` turns true.
    pub fn new(
        limits: CallLimits,
        metrics: Option<PrometheusHandle>,
        stopping: watch::Receiver<bool>,
    ) -> Self {
        let (backend, name, openapi) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        let open = AtomicBool::new(false);
        let answers = answers::Answers::new(limits.answer_bytes);
        Self(Arc::new(Shared { backend, open, name, openapi, limits, answers, metrics, stopping }))
    }

    /// Puts the node behind the API, for operators. Only the first one counts.
    pub fn attach(&self, backend: Arc<dyn Backend>) {
        self.0.name.get_or_init(|| backend.node().name);
        if self.0.backend.set(backend).is_err() {
            tracing::error!("a second node was attached to one API and is not used");
        }
    }

    /// Lets calls in: the node serves.
    pub fn open(&self) {
        self.0.open.store(true, Ordering::Release);
    }

    /// Whether calls are let in.
    pub fn is_open(&self) -> bool {
        self.0.open.load(Ordering::Acquire)
    }

    /// The node, when it has recovered its data.
    pub fn node(&self) -> Option<&Arc<dyn Backend>> {
        self.0.backend.get()
    }

    /// The node, or the refusal of a node that is still starting.
    fn backend(&self) -> Result<&Arc<dyn Backend>, Problem> {
        self.node().ok_or_else(Problem::starting)
    }

    /// The node for a call, or the refusal of one that does not serve yet.
    fn serving(&self) -> Result<&Arc<dyn Backend>, Problem> {
        let backend = self.backend()?;
        if self.is_open() { Ok(backend) } else { Err(Problem::joining()) }
    }

    /// The node's name, empty until it is known.
    fn name(&self) -> &str {
        self.0.name.get().map_or("", NodeId::as_str)
    }

    fn limits(&self) -> &CallLimits {
        &self.0.limits
    }

    fn answers(&self) -> &answers::Answers {
        &self.0.answers
    }

    fn stopping(&self) -> watch::Receiver<bool> {
        self.0.stopping.clone()
    }
}

/// The routes for callers.
pub fn api_router(api: Api) -> Router {
    routes(Router::new()).layer(from_fn_with_state("api", measure)).with_state(api)
}

/// The routes for operators: their own, and the callers' as well.
pub fn admin_router(api: Api) -> Router {
    routes(admin::routes().merge(health::routes()))
        .layer(from_fn_with_state("admin", measure))
        .with_state(api)
}

/// The callers' routes beside `others`. The fallbacks come last: they hold for what is there then.
fn routes(others: Router<Api>) -> Router<Api> {
    others
        .route("/v1", get(kinds))
        .route("/openapi.json", get(openapi_json))
        .fallback(calls::handle)
        .method_not_allowed_fallback(method_not_allowed)
}

async fn kinds(State(api): State<Api>) -> Result<Response, Problem> {
    let kinds = api.backend()?.kinds();
    Ok(json(&views::Kinds::of(&kinds)))
}

async fn openapi_json(State(api): State<Api>) -> Result<Response, Problem> {
    let backend = api.backend()?;
    let limits = *api.limits();
    let document = api.0.openapi.get_or_init(|| {
        let document = openapi::document(&backend.kinds(), &limits);
        Bytes::from(serde_json::to_vec(&document).expect("a JSON value encodes"))
    });
    Ok(([(header::CONTENT_TYPE, "application/json")], document.clone()).into_response())
}

async fn method_not_allowed(method: Method) -> Problem {
    Problem::method_not_allowed(&method, "")
}

/// A JSON answer.
fn json(value: &impl serde::Serialize) -> Response {
    axum::Json(value).into_response()
}

/// The text of a header, if it is there.
///
/// # Errors
/// A problem when its bytes are not visible ASCII.
fn header_text<'h>(headers: &'h HeaderMap, name: &'static str) -> Result<Option<&'h str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    match value.to_str() {
        Ok(text) => Ok(Some(text.trim())),
        Err(_) => Err(Problem::bad_header(name, "is not visible ASCII")),
    }
}

/// Counts and times every request under its route's template, never under its path.
async fn measure(State(listener): State<&'static str>, request: Request, next: Next) -> Response {
    let route = template(request.uri().path());
    let method = match *request.method() {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::DELETE => "DELETE",
        _ => "_other",
    };
    let inflight = metrics::gauge!("mainstay_http_inflight_requests", "listener" => listener);
    inflight.increment(1.0);
    let guard = Inflight(inflight);
    let began = tokio::time::Instant::now();
    let response = next.run(request).await;
    drop(guard);
    let code = response.status().as_u16().to_string();
    metrics::counter!("mainstay_http_requests_total", "route" => route, "method" => method,
        "code" => code)
    .increment(1);
    metrics::histogram!("mainstay_http_request_duration_seconds", "route" => route,
        "method" => method)
    .record(began.elapsed().as_secs_f64());
    response
}

/// Counts down also when the request is dropped because its caller went away.
struct Inflight(metrics::Gauge);

impl Drop for Inflight {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

fn template(path: &str) -> &'static str {
    let mut parts = path.split('/').skip(1);
    match parts.next().unwrap_or_default() {
        "v1" if parts.next().is_some() => "/v1/{kind}/{key}/{method}",
        "v1" => "/v1",
        "openapi.json" => "/openapi.json",
        "livez" | "readyz" | "startupz" | "healthz" => "/health",
        "metrics" => "/metrics",
        "admin" => "/admin/v1",
        _ => "_other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_a_closed_set() {
        assert_eq!(template("/v1"), "/v1");
        assert_eq!(template("/v1/counter/alice/add"), "/v1/{kind}/{key}/{method}");
        assert_eq!(template("/v1/counter"), "/v1/{kind}/{key}/{method}");
        assert_eq!(template("/readyz"), "/health");
        assert_eq!(template("/etc/passwd"), "_other");
        assert_eq!(template("*"), "_other");
    }
}
