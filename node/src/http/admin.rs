//! `/admin/v1/...`: what the command line asks of a node. Shards and entities come in pages; other
//! lists are short: members, kinds, kept events, the dearest pairs of kinds.

use axum::Router;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{delete, get, post};
use mainstay::protocol::id::{EntityId, Key, KindId, NodeId};
use serde::Deserialize;

use super::problem::Problem;
use super::{Api, events, json, overview, views};
use crate::backend::{LocalityRow, MemberChange, Scan};

/// Rows of a page when nobody says how many.
const PAGE: u32 = 100;
/// Rows of a page at most.
const PAGE_MAX: u32 = 10_000;

/// The routes for operators.
pub fn routes() -> Router<Api> {
    Router::new()
        .route("/admin/v1/status", get(status))
        .route("/admin/v1/nodes", get(nodes))
        .route("/admin/v1/nodes/{node}", delete(remove))
        .route("/admin/v1/nodes/{node}/drain", post(drain))
        .route("/admin/v1/nodes/{node}/undrain", post(undrain))
        .route("/admin/v1/shards", get(shards))
        .route("/admin/v1/entities", get(super::kinds))
        .route("/admin/v1/entities/{kind}", get(entities))
        .route("/admin/v1/entities/{kind}/{key}", get(entity))
        .route("/admin/v1/events", get(events::events))
        .route("/admin/v1/locality", get(locality))
}

type Answer = Result<Response, Problem>;

async fn status(State(api): State<Api>) -> Answer {
    let backend = api.backend()?;
    Ok(json(&overview::Status::of(&backend.node(), &backend.state())))
}

async fn nodes(State(api): State<Api>) -> Answer {
    let backend = api.backend()?;
    let leader = backend.node().leader;
    Ok(json(&overview::Nodes::of(&backend.state(), leader.as_ref())))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ShardPage {
    after: Option<u32>,
    limit: Option<u32>,
}

async fn shards(State(api): State<Api>, query: Result<Query<ShardPage>, QueryRejection>) -> Answer {
    let Query(page) = query.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let limit = limit(page.limit)?;
    let state = api.backend()?.state();
    Ok(json(&overview::Shards::of(&state, page.after, limit)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct EntityPage {
    #[serde(default)]
    prefix: String,
    after: Option<String>,
    limit: Option<u32>,
}

async fn entities(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    query: Result<Query<EntityPage>, QueryRejection>,
) -> Answer {
    let Path(kind) = path.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let Query(page) = query.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let limit = limit(page.limit)?;
    let backend = api.backend()?;
    let id = backend.kind(&kind).ok_or_else(|| no_kind(&kind))?.info().id;
    let scan = Scan { kind: id, prefix: page.prefix, after: page.after, limit };
    let rows = backend.scan(scan).await?;
    let full = u32::try_from(rows.len()).is_ok_and(|rows| rows >= limit);
    let next = rows.last().filter(|_| full).map(|row| row.key.clone());
    Ok(json(&views::Entities {
        schema: "mainstay.entities/v1".to_owned(),
        node: api.name().to_owned(),
        kind,
        entities: rows,
        next,
    }))
}

async fn entity(
    State(api): State<Api>,
    path: Result<Path<(String, String)>, PathRejection>,
) -> Answer {
    let Path((kind, key)) = path.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let key = Key::new(&key)
        .map_err(|error| Problem::new(StatusCode::BAD_REQUEST, "MS-2003", error.to_string()))?;
    let backend = api.backend()?;
    let host = backend.kind(&kind).ok_or_else(|| no_kind(&kind))?;
    let id = EntityId { kind: host.info().id, key: key.clone() };
    let mut seen = backend.inspect(id).await?;
    let here = seen.primary.as_ref().is_some_and(|primary| primary.as_str() == api.name());
    if !here {
        // what lies here of an earlier time says nothing about the entity
        seen.state = None;
    }
    let state = seen.state.as_ref().map(|bytes| host.state_to_json(bytes)).transpose().map_err(
        |error| Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "MS-2110", error.to_string()),
    )?;
    let state_bytes = seen.state.as_ref().map_or(0, bytes::Bytes::len);
    Ok(json(&views::Entity {
        schema: "mainstay.entity/v1".to_owned(),
        kind,
        key: key.as_str().to_owned(),
        shard: seen.shard.0,
        node: api.name().to_owned(),
        primary: seen.primary,
        seq: here.then_some(seen.seq.0),
        active: here.then_some(seen.active),
        state_bytes: here.then_some(u64::try_from(state_bytes).unwrap_or(u64::MAX)),
        state,
    }))
}

async fn drain(api: State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    change(api, path, "drain", MemberChange::Drain).await
}

async fn undrain(api: State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    change(api, path, "undrain", MemberChange::Undrain).await
}

async fn remove(api: State<Api>, path: Result<Path<String>, PathRejection>) -> Answer {
    change(api, path, "remove", MemberChange::Remove).await
}

async fn change(
    State(api): State<Api>,
    path: Result<Path<String>, PathRejection>,
    name: &str,
    change: fn(NodeId) -> MemberChange,
) -> Answer {
    let Path(node) = path.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let node = NodeId::new(&node).map_err(|error| Problem::bad_parameter(error.to_string()))?;
    api.backend()?.change_member(change(node.clone())).await?;
    tracing::info!(change = name, member = %node, "members were changed by an operator");
    let schema = "mainstay.change/v1".to_owned();
    Ok(json(&views::Change { schema, change: name.to_owned(), node }))
}

async fn locality(State(api): State<Api>) -> Answer {
    let backend = api.backend()?;
    let names: Vec<(KindId, &'static str)> =
        backend.kinds().iter().map(|host| (host.info().id, host.info().name)).collect();
    let name = |id: KindId| {
        let found = names.iter().find(|(known, _)| *known == id);
        found.map_or_else(|| format!("(kind {:08x})", id.0), |(_, name)| (*name).to_owned())
    };
    let rows: Vec<views::Traffic> = backend
        .locality()
        .iter()
        .map(|row| views::Traffic {
            from: row.from.map_or_else(|| "(outside)".to_owned(), name),
            to: name(row.to),
            local: row.local,
            local_bytes: row.local_bytes,
            remote: row.remote,
            remote_bytes: row.remote_bytes,
            local_ratio: ratio(row),
        })
        .collect();
    let schema = "mainstay.locality/v1".to_owned();
    Ok(json(&views::Locality { schema, node: api.name().to_owned(), rows }))
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people")]
fn ratio(row: &LocalityRow) -> Option<f64> {
    let all = row.local.saturating_add(row.remote);
    (all > 0).then(|| row.local as f64 / all as f64)
}

fn limit(asked: Option<u32>) -> Result<u32, Problem> {
    match asked.unwrap_or(PAGE) {
        limit @ 1..=PAGE_MAX => Ok(limit),
        other => Err(Problem::bad_parameter(format!("limit is 1 to {PAGE_MAX}, not {other}"))),
    }
}

fn no_kind(name: &str) -> Problem {
    Problem::new(StatusCode::NOT_FOUND, "MS-2001", format!("no kind is named {name:?}"))
}
