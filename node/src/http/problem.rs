//! Refusals as RFC 9457 problem documents: a status, a code, what is known about the effect.
//!
//! Bad input never gives a 5xx. `retryable` says that the same request may succeed later;
//! `outcome` says whether it may have taken effect.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use mainstay::protocol::message::Outcome;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::backend::AdminError;
use crate::explain;

/// One refusal.
#[derive(Debug, Clone)]
pub struct Problem {
    status: StatusCode,
    headers: HeaderMap,
    body: Box<Document>,
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// `urn:mainstay:error:MS-2101`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code's title.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// What happened this time.
    pub detail: String,
    /// The code: `MS-2101`.
    pub code: String,
    /// The same request may succeed later.
    pub retryable: bool,
    /// How long to wait before that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// `not_executed`, `executed` or `unknown`.
    pub outcome: String,
    /// The trace that the request belonged to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// The entity's own error, when it refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Value>,
    /// Which bound was reached, when there was no room.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<String>,
    /// The entity's version, when the command was to run at another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
}

impl Problem {
    /// A refusal that changed nothing and that the same request will meet again.
    pub fn new(status: StatusCode, code: &'static str, detail: impl Into<String>) -> Self {
        let body = Document {
            kind: format!("urn:mainstay:error:{code}"),
            title: explain::title(code).to_owned(),
            status: status.as_u16(),
            detail: detail.into(),
            code: code.to_owned(),
            retryable: false,
            retry_after_ms: None,
            outcome: word(Outcome::NotExecuted).to_owned(),
            trace_id: None,
            error: None,
            bound: None,
            version: None,
        };
        Self { status, headers: HeaderMap::new(), body: Box::new(body) }
    }

    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(mut self, retryable: bool) -> Self {
        self.body.retryable = retryable;
        self
    }

    /// The same request may succeed after this long; adds `Retry-After`, in whole seconds.
    #[must_use]
    pub fn retry_after(mut self, after: Duration) -> Self {
        let millis = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        self.body.retry_after_ms = Some(millis);
        let seconds = HeaderValue::from(millis.div_ceil(1000).max(1));
        self.headers.insert(header::RETRY_AFTER, seconds);
        self.retryable(true)
    }

    /// What is known about the effect.
    #[must_use]
    pub fn outcome(mut self, outcome: Outcome) -> Self {
        word(outcome).clone_into(&mut self.body.outcome);
        self
    }

    /// The entity's own error.
    #[must_use]
    pub fn error(mut self, error: Value) -> Self {
        self.body.error = Some(error);
        self
    }

    /// Which bound was reached.
    #[must_use]
    pub fn bound(mut self, bound: String) -> Self {
        self.body.bound = Some(bound);
        self
    }

    /// The entity's version.
    #[must_use]
    pub fn version(mut self, version: u64) -> Self {
        self.body.version = Some(version);
        self
    }

    /// The trace that the request belonged to.
    #[must_use]
    pub fn trace(mut self, id: String) -> Self {
        self.body.trace_id = Some(id);
        self
    }

    /// One more header.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.headers.insert(name, value);
        self
    }

    /// The connection ends after this answer: the rest of the body is not read.
    #[must_use]
    pub fn closing(self) -> Self {
        self.header(header::CONNECTION, HeaderValue::from_static("close"))
    }

    /// The status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// The node is not up yet.
    pub fn starting() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "MS-2105", "the node is still starting")
            .retry_after(Duration::from_secs(1))
    }

    /// The node has recovered its data and is no member yet.
    pub fn joining() -> Self {
        let detail = "the node is looking for its cluster; /readyz?verbose says where";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "MS-2105", detail)
            .retry_after(Duration::from_secs(1))
    }

    /// The path exists, for other methods than this one.
    pub fn method_not_allowed(method: &Method, allowed: &'static str) -> Self {
        let detail = format!("{method} is not allowed on this path");
        let problem = Self::new(StatusCode::METHOD_NOT_ALLOWED, "MS-2008", detail);
        match allowed {
            "" => problem,
            _ => problem.header(header::ALLOW, HeaderValue::from_static(allowed)),
        }
    }

    /// A header that is not valid.
    pub fn bad_header(name: &'static str, what: impl std::fmt::Display) -> Self {
        let detail = format!("header {name} {what}");
        Self::new(StatusCode::BAD_REQUEST, "MS-2007", detail)
    }

    /// A parameter of an admin request that is not valid.
    pub fn bad_parameter(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "MS-2303", detail)
    }
}

impl From<AdminError> for Problem {
    fn from(error: AdminError) -> Self {
        let detail = error.to_string();
        match error {
            AdminError::NotFound { .. } | AdminError::NoMember { .. } => {
                Self::new(StatusCode::NOT_FOUND, "MS-2301", detail)
            }
            AdminError::Conflict { .. } => Self::new(StatusCode::CONFLICT, "MS-2302", detail),
            AdminError::Unavailable { .. } => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "MS-2105", detail)
                    .retry_after(Duration::from_secs(1))
                    .outcome(Outcome::Unknown)
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let body = serde_json::to_vec(&self.body).expect("a problem document encodes");
        let mut response = Response::new(Body::from(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers;
        let kind = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

fn word(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::NotExecuted => "not_executed",
        Outcome::Executed => "executed",
        Outcome::Unknown => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let problem = Problem::starting().retry_after(Duration::from_millis(1001));
        assert_eq!(problem.headers[header::RETRY_AFTER], "2");
        let problem = Problem::starting().retry_after(Duration::ZERO);
        assert_eq!(problem.headers[header::RETRY_AFTER], "1");
        assert_eq!(problem.body.retry_after_ms, Some(0));
    }
}
