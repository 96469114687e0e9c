//! A node, asked over its admin address.

use std::time::Duration;

use clap::Args;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::de::DeserializeOwned;

use super::output::Trouble;
use crate::http::problem::Document;

/// How much longer than its deadline a call is waited for.
const GRACE: Duration = Duration::from_secs(2);

/// Which node, and how long to wait for it.
#[derive(Debug, Args)]
pub(super) struct RemoteArgs {
    /// The admin address of a node.
    #[arg(
        long,
        value_name = "URL",
        env = "MAINSTAY_ENDPOINT",
        default_value = "http://127.0.0.1:9070"
    )]
    pub(super) endpoint: String,
    /// How long to wait.
    #[arg(long, value_name = "SPAN", default_value = "10s", value_parser = super::span)]
    pub(super) timeout: Duration,
    /// Print the answer as JSON.
    #[arg(long)]
    pub(super) json: bool,
}

/// The node that commands ask.
#[derive(Debug)]
pub(super) struct Remote {
    endpoint: String,
    client: reqwest::Client,
    timeout: Duration,
}

impl Remote {
    pub(super) fn new(args: &RemoteArgs) -> Result<Self, Trouble> {
        let with_scheme = match args.endpoint.split_once("://") {
            Some(_) => args.endpoint.clone(),
            None => format!("http://{}", args.endpoint),
        };
        // a proxy of the environment is for the world outside, not for the cluster
        let client = reqwest::Client::builder()
            .no_proxy()
            .connect_timeout(args.timeout)
            .build()
            .map_err(|error| Trouble::failed(format!("no HTTP client: {error}")))?;
        let endpoint = with_scheme.trim_end_matches('/').to_owned();
        Ok(Self { endpoint, client, timeout: args.timeout })
    }

    /// Reads a document.
    pub(super) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Trouble> {
        self.document(self.send(path, self.request(Method::GET, path)).await?).await
    }

    /// Reads text.
    pub(super) async fn get_text(&self, path: &str) -> Result<String, Trouble> {
        let response = self.send(path, self.request(Method::GET, path)).await?;
        response.text().await.map_err(|error| self.unreachable(&error))
    }

    /// Changes something, and reads the document that says so.
    pub(super) async fn change<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
    ) -> Result<T, Trouble> {
        self.document(self.send(path, self.request(method, path)).await?).await
    }

    /// Calls an entity: posts JSON with these headers. The node knows more about a call that is
    /// late than whoever stops waiting, so it gets some time to say so.
    pub(super) async fn call<T: DeserializeOwned>(
        &self,
        path: &str,
        body: String,
        headers: &[(&str, String)],
    ) -> Result<T, Trouble> {
        let timeout = self.timeout.saturating_add(GRACE);
        let request = self.request(Method::POST, path).timeout(timeout);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
        let request = request.header("content-type", "application/json").body(body);
        self.document(self.send(path, request).await?).await
    }

    /// Opens a stream that has no end of its own.
    pub(super) async fn stream(&self, path: &str) -> Result<Response, Trouble> {
        let request = self.client.get(format!("{}{path}", self.endpoint));
        let response = tokio::time::timeout(self.timeout, request.send())
            .await
            .map_err(|_| self.late(self.timeout))?
            .map_err(|error| self.unreachable(&error))?;
        self.check(path, response).await
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.endpoint)).timeout(self.timeout)
    }

    async fn send(&self, path: &str, request: RequestBuilder) -> Result<Response, Trouble> {
        let request = request.build().map_err(|error| self.unreachable(&error))?;
        let reads = request.method() == Method::GET;
        let timeout = request.timeout().copied().unwrap_or(self.timeout);
        let response = self.client.execute(request).await.map_err(|error| {
            let trouble =
                if error.is_timeout() { self.late(timeout) } else { self.unreachable(&error) };
            // what was sent may have been done
            let sent = !reads && !error.is_connect();
            if sent { trouble.fact("outcome", "unknown") } else { trouble }
        })?;
        self.check(path, response).await
    }

    async fn check(&self, path: &str, response: Response) -> Result<Response, Trouble> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let text = response.text().await.unwrap_or_default();
        let problem = serde_json::from_str::<Document>(&text).ok();
        // the API knows no admin path: it takes one for a call
        let unknown = problem.as_ref().is_none_or(|problem| problem.code == "MS-2000");
        if unknown && status == StatusCode::NOT_FOUND && !path.starts_with("/v1") {
            return Err(self.not_admin());
        }
        let other = || {
            let line = text.lines().next().unwrap_or_default();
            Trouble::failed(format!("{status}: {line}")).exit(exit_of(status.as_u16(), ""))
        };
        Err(problem.map_or_else(other, refusal))
    }

    /// Somebody answers, but not as the admin port of a node does.
    fn not_admin(&self) -> Trouble {
        Trouble::unavailable(format!("{} is not an admin address (9070 by default)", self.endpoint))
            .code("MS-1301")
            .help("--endpoint or MAINSTAY_ENDPOINT name the admin.listen of a node, not its API or peers")
    }

    async fn document<T: DeserializeOwned>(&self, response: Response) -> Result<T, Trouble> {
        let bytes = response.bytes().await.map_err(|error| self.unreachable(&error))?;
        serde_json::from_slice(&bytes).map_err(|error| {
            Trouble::failed(format!("{} answers something else: {error}", self.endpoint))
                .help("is this the admin address of a node of this release?")
        })
    }

    pub(super) fn unreachable(&self, error: &reqwest::Error) -> Trouble {
        let mut cause: &dyn std::error::Error = error;
        while let Some(source) = cause.source() {
            cause = source;
        }
        // a peer port takes the connection and speaks another protocol
        if error.is_request() && !error.is_connect() && !error.is_timeout() {
            return self.not_admin().fact("why", cause.to_string());
        }
        Trouble::unavailable(format!("{} does not answer", self.endpoint))
            .code("MS-1301")
            .fact("why", cause.to_string())
            .help("--endpoint or MAINSTAY_ENDPOINT name the admin address of a node")
    }

    fn late(&self, timeout: Duration) -> Trouble {
        Trouble::unavailable(format!("{} gave no answer in {timeout:?}", self.endpoint))
            .code("MS-1301")
    }
}

/// The trouble that a node's refusal is.
fn refusal(problem: Document) -> Trouble {
    let detail =
        if problem.detail.is_empty() { problem.title.clone() } else { problem.detail.clone() };
    let mut trouble = Trouble::failed(detail)
        .exit(exit_of(problem.status, &problem.code))
        .code(problem.code.clone());
    if problem.outcome != "not_executed" {
        trouble = trouble.fact("outcome", problem.outcome);
    }
    if let Some(error) = problem.error {
        trouble = trouble.fact("refused", error.to_string());
    }
    if let Some(trace) = problem.trace_id {
        trouble = trouble.fact("trace", trace);
    }
    trouble
}

/// The exit code of a refusal.
fn exit_of(status: u16, code: &str) -> u8 {
    match (status, code) {
        (_, "MS-2201") => 1,
        (_, "MS-2106") | (409 | 412, _) => 4,
        (400 | 413 | 415 | 422, _) => 2,
        (404, _) => 3,
        (408 | 429 | 503 | 504, _) => 5,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_have_their_exit_codes() {
        for (status, code, exit) in [
            (404, "MS-2001", 3),
            (409, "MS-2201", 1),
            (409, "MS-2302", 4),
            (412, "MS-2111", 4),
            (422, "MS-2106", 4),
            (422, "MS-2004", 2),
            (503, "MS-2105", 5),
            (504, "MS-2103", 5),
            (500, "MS-2108", 1),
        ] {
            assert_eq!(exit_of(status, code), exit, "{status} {code}");
        }
    }
}
