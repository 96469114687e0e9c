//! The probes and the metrics page.
//!
//! | path | asks | a failure should |
//! |---|---|---|
//! | `/livez` | does this process make progress? no peer, no disk | restart it |
//! | `/startupz` | is recovery done? | wait |
//! | `/readyz`, `/healthz` | may calls be sent here? | take it out of the load balancer |
//!
//! `?verbose` lists the checks, `?exclude=NAME` (repeatable) leaves some out.

use std::fmt::Write as _;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get};

use super::{Api, path};
use crate::backend::{Check, Probe};

/// The routes of probes and metrics.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/livez", probe(Probe::Live))
        .route("/startupz", probe(Probe::Started))
        .route("/readyz", probe(Probe::Ready))
        .route("/healthz", probe(Probe::Ready))
        .route("/metrics", get(metrics))
}

fn probe(probe: Probe) -> MethodRouter<Api> {
    get(async move |State(api): State<Api>, RawQuery(query): RawQuery| answer(&api, query, probe))
}

fn answer(api: &Api, query: Option<String>, probe: Probe) -> Response {
    let query = query.unwrap_or_default();
    let pairs = || query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let verbose = pairs().any(|(name, value)| name == "verbose" && value != "false");
    let excluded: Vec<String> = pairs()
        .filter(|(name, _)| *name == "exclude")
        .filter_map(|(_, value)| path::decode(value).ok())
        .collect();
    let checks: Vec<Check> = checks(api)
        .into_iter()
        .filter(|check| check.probe <= probe && !excluded.iter().any(|name| name == check.name))
        .collect();
    let ok = checks.iter().all(|check| check.ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let mut text = String::new();
    for check in checks.iter().filter(|check| verbose || !check.ok) {
        let mark = if check.ok { '+' } else { '-' };
        writeln!(text, "[{mark}]{} {}", check.name, check.text).expect("text takes all");
    }
    text.push_str(if ok { "ok\n" } else { "not ok\n" });
    (status, text).into_response()
}

/// The node's own checks; before it is up, the one that says so.
fn checks(api: &Api) -> Vec<Check> {
    let process =
        Check { name: "process", probe: Probe::Live, ok: true, text: "answers".to_owned() };
    let mut checks = vec![process];
    match api.node() {
        Some(backend) => {
            checks.extend(backend.node().checks);
            let ok = api.is_open();
            let text = if ok { "are let in" } else { "are refused until the node has joined" };
            checks.push(Check { name: "calls", probe: Probe::Ready, ok, text: text.to_owned() });
        }
        None => checks.push(Check {
            name: "recovery",
            probe: Probe::Started,
            ok: false,
            text: "the node is still starting".to_owned(),
        }),
    }
    if *api.stopping().borrow() {
        let text = "the node is ending".to_owned();
        checks.push(Check { name: "stopping", probe: Probe::Ready, ok: false, text });
    }
    checks
}

async fn metrics(State(api): State<Api>) -> Response {
    match &api.0.metrics {
        Some(handle) => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], handle.render()).into_response()
        }
        None => (StatusCode::NOT_FOUND, "no recorder is installed\n").into_response(),
    }
}
