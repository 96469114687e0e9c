//! Events: the kept ones as a list, or these and all that follow as a stream.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt as _;
use serde::Deserialize;
use tokio::sync::broadcast::error::RecvError;

use super::problem::Problem;
use super::views::EventRow;
use super::{Api, header_text, json, views};
use crate::backend::EventFeed;

/// How often a quiet stream says that it is alive, so that a reader that is gone is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Which events.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    /// Only those with a greater id.
    after: Option<u64>,
    /// Stream them, and those that follow.
    #[serde(default)]
    follow: bool,
}

/// `GET /admin/v1/events`.
pub(super) async fn events(
    State(api): State<Api>,
    query: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    let Query(wanted) = query.map_err(|error| Problem::bad_parameter(error.body_text()))?;
    let backend = api.backend()?;
    let accepts = header_text(&headers, header::ACCEPT.as_str())?.unwrap_or_default();
    let resumed = header_text(&headers, "last-event-id")?
        .map(|text| text.parse().map_err(|_| Problem::bad_parameter("Last-Event-ID is a number")))
        .transpose()?;
    let after = resumed.or(wanted.after).unwrap_or(0);
    let feed = backend.events(after);
    if wanted.follow || accepts.contains("text/event-stream") {
        return Ok(stream(&api, feed));
    }
    let events = feed.kept.iter().map(EventRow::of).collect();
    Ok(json(&views::Events { schema: "mainstay.events/v1".to_owned(), events }))
}

fn stream(api: &Api, feed: EventFeed) -> Response {
    let mut stopping = api.stopping();
    let stopped = async move { drop(stopping.wait_for(|stop| *stop).await) };
    let kept = futures_util::stream::iter(feed.kept);
    let live = futures_util::stream::unfold(feed.live, |mut live| async move {
        loop {
            match live.recv().await {
                Ok(record) => return Some((record, live)),
                // too slow: the ids jump, and the reader sees it
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return None,
            }
        }
    });
    let all = kept.chain(live).map(|record| Ok::<_, Infallible>(message(&EventRow::of(&record))));
    let until_stopped = all.take_until(Box::pin(stopped));
    Sse::new(until_stopped).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn message(record: &EventRow) -> Event {
    let data = serde_json::to_string(record).expect("an event encodes");
    Event::default().id(record.id.to_string()).data(data)
}
