//! Questions to a node over HTTP, and what an answer settles.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

/// How long a question waits for its answer, beyond the call's own deadline.
const SLACK: Duration = Duration::from_secs(2);

/// A call of one entity over HTTP.
#[derive(Debug, Clone)]
pub struct Question {
    /// The path after `/v1/`: `kind/key/method`, percent-encoded.
    pub path: String,
    /// The body.
    pub body: Value,
    /// The idempotency key.
    pub key: Option<String>,
    /// The deadline that the caller asks for.
    pub deadline: Duration,
    /// Further headers.
    pub headers: Vec<(&'static str, String)>,
}

impl Question {
    /// A call of `method` of the entity `key` of `kind`, 5 s deadline, no idempotency key.
    pub fn new(kind: &str, key: &str, method: &str, body: Value) -> Self {
        Self {
            path: format!("{kind}/{}/{method}", percent_encode(key)),
            body,
            key: None,
            deadline: Duration::from_secs(5),
            headers: Vec::new(),
        }
    }

    /// The same under an idempotency key.
    #[must_use]
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// The same with another deadline.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// The same with one more header.
    #[must_use]
    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }
}

impl fmt::Display for Question {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.path, self.body)
    }
}

/// What a node answered.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The body as JSON; `Null` when it is none.
    pub body: Value,
    /// The node whose entity answered, if the answer says so.
    pub served_by: Option<String>,
    /// Where the entity stood, if the answer says so.
    pub token: Option<String>,
}

/// An outcome that will not change.
#[derive(Debug, Clone, PartialEq)]
pub enum Definite {
    /// It was executed and gave this value.
    Value(Value),
    /// The entity refused: this is its error.
    Refused(Value),
    /// It will go no better another time: this is the problem.
    Impossible(String),
}

impl Answer {
    /// The value of a call that succeeded.
    ///
    /// # Errors
    /// When it did not.
    pub fn value(&self) -> Result<&Value> {
        self.body.get("value").filter(|_| self.status == 200).with_context(|| self.text())
    }

    /// The code of a problem, or an empty text.
    pub fn code(&self) -> &str {
        self.body.get("code").and_then(Value::as_str).unwrap_or_default()
    }

    /// What this settles about the call; `None` when the same call may yet go either way.
    pub fn definite(&self) -> Option<Definite> {
        if self.status == 200 {
            return Some(Definite::Value(self.body.get("value").cloned().unwrap_or_default()));
        }
        if self.code() == "MS-2201" {
            return Some(Definite::Refused(self.body.get("error").cloned().unwrap_or_default()));
        }
        let told = |member| self.body.get(member);
        let hopeless = told("retryable") == Some(&Value::Bool(false));
        let unknown = told("outcome").and_then(Value::as_str) == Some("unknown");
        (hopeless && !unknown).then(|| Definite::Impossible(self.text()))
    }

    /// Status and body in one line.
    pub fn text(&self) -> String {
        format!("{} {}", self.status, self.body)
    }
}

/// A client that keeps its connections.
pub(super) fn client() -> Result<reqwest::Client> {
    // Below the node's `http.header_timeout`, which closes idle connections: a request that meets
    // such a close on its way has no answer.
    let builder = reqwest::Client::builder().pool_idle_timeout(Duration::from_secs(20));
    Ok(builder.connect_timeout(Duration::from_secs(1)).no_proxy().build()?)
}

/// Asks the node whose HTTP address this is.
///
/// # Errors
/// When no HTTP answer came: refused, cut, or timed out.
pub async fn ask(client: &reqwest::Client, at: SocketAddr, question: &Question) -> Result<Answer> {
    let mut request = client
        .post(format!("http://{at}/v1/{}", question.path))
        .header("MS-Timeout-Ms", question.deadline.as_millis().to_string())
        .timeout(question.deadline + SLACK)
        .json(&question.body);
    if let Some(key) = &question.key {
        request = request.header("Idempotency-Key", key);
    }
    for (name, value) in &question.headers {
        request = request.header(*name, value);
    }
    let response = request.send().await?;
    let status = response.status().as_u16();
    let said = |name: &str| response.headers().get(name)?.to_str().ok().map(str::to_owned);
    let (served_by, token) = (said("ms-served-by"), said("ms-token"));
    let body = serde_json::from_slice(&response.bytes().await?).unwrap_or(Value::Null);
    Ok(Answer { status, body, served_by, token })
}

pub(super) async fn get(
    client: &reqwest::Client,
    at: SocketAddr,
    path: &str,
) -> Result<(u16, String)> {
    let response =
        client.get(format!("http://{at}{path}")).timeout(Duration::from_secs(5)).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// A key as one segment of a path: everything but letters, digits and `-._~` is escaped.
fn percent_encode(key: &str) -> String {
    let mut encoded = String::with_capacity(key.len());
    for byte in key.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', hex(byte >> 4), hex(byte & 15)]);
        }
    }
    encoded
}

fn hex(digit: u8) -> char {
    char::from(b"0123456789ABCDEF"[usize::from(digit)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_escaped_to_one_segment() {
        let question = Question::new("account", "acme/4 2?", "deposit", Value::Null);
        assert_eq!(question.path, "account/acme%2F4%202%3F/deposit");
    }

    #[test]
    fn a_timeout_settles_nothing_and_a_refusal_does() {
        let answer = |status, body: &str| Answer {
            status,
            body: body.parse().unwrap(),
            served_by: None,
            token: None,
        };
        assert_eq!(answer(504, r#"{"code":"MS-2103","retryable":true}"#).definite(), None);
        let unknown = r#"{"code":"MS-2105","retryable":false,"outcome":"unknown"}"#;
        assert_eq!(answer(503, unknown).definite(), None);
        assert_eq!(answer(502, "null").definite(), None);
        let conflict = r#"{"code":"MS-2106","retryable":false}"#;
        assert!(matches!(answer(422, conflict).definite(), Some(Definite::Impossible(_))));
        let refused = answer(409, r#"{"code":"MS-2201","error":"Short"}"#).definite();
        assert_eq!(refused, Some(Definite::Refused("Short".into())));
        let value = answer(200, r#"{"value":7,"version":1}"#).definite();
        assert_eq!(value, Some(Definite::Value(7.into())));
    }
}
