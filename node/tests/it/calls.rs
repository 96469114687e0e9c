//! What a caller sends, and what it is answered.

use std::time::Duration;

use mainstay::client::CallError;
use mainstay::protocol::id::Seq;
use mainstay::protocol::message::{Outcome, Pressure};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};

use crate::fake::{self, Served, serve};

async fn post(served: &Served, path: &str, body: impl Into<reqwest::Body>) -> Response {
    let request = Client::new().post(served.url(path)).header("content-type", "application/json");
    request.body(body).send().await.unwrap()
}

/// The status and the code of a refusal, after a look at the rest of it.
async fn refusal(response: Response) -> (u16, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    assert!(response.headers().contains_key("traceparent"));
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    let code = problem["code"].as_str().unwrap().to_owned();
    assert_eq!(problem["type"], format!("urn:mainstay:error:{code}"));
    assert_eq!(problem["title"], mainstay_node::explain::find(&code).unwrap().title());
    assert_eq!(problem["trace_id"].as_str().unwrap().len(), 32);
    (status, code)
}

async fn check(served: &Served, path: &str, body: &str, status: u16, code: &str) {
    let response = post(served, path, body.to_owned()).await;
    assert_eq!(refusal(response).await, (status, code.to_owned()), "{path} {body:.60}");
}

#[tokio::test]
async fn a_call_gives_value_version_and_where_it_was_served() {
    let served = serve().await;
    let response = post(&served, "/v1/counter/alice/add", r#"{"by":2}"#).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["ms-version"], "0");
    assert_eq!(response.headers()["etag"], "\"0\"");
    assert_eq!(response.headers()["ms-epoch"], "3");
    assert_eq!(response.headers()["ms-served-by"], "n1");
    assert_eq!(response.headers().get("idempotent-replay"), None);
    assert_eq!(response.json::<Value>().await.unwrap(), json!({"value": 2, "version": 0}));
    let call = served.node.calls.lock().unwrap()[0].clone();
    assert!(fake::waited(&call));
    assert!(call.deadline <= Duration::from_secs(5) && call.deadline > Duration::from_secs(4));
}

#[tokio::test]
async fn an_empty_body_stands_for_no_arguments() {
    let served = serve().await;
    let response = Client::new().post(served.url("/v1/counter/alice/get")).send().await.unwrap();
    assert_eq!(response.json::<Value>().await.unwrap()["value"], 0);
    check(&served, "/v1/counter/alice/add", "", 422, "MS-2004").await;
}

#[tokio::test]
async fn a_repeated_key_is_replayed_and_a_reused_one_refused() {
    let served = serve().await;
    let add = async |by: i64| {
        let request = Client::new().post(served.url("/v1/counter/alice/add"));
        request.header("idempotency-key", "k1").json(&json!({"by": by})).send().await.unwrap()
    };
    assert_eq!(add(2).await.json::<Value>().await.unwrap()["value"], 2);
    let replayed = add(2).await;
    assert_eq!(replayed.headers()["idempotent-replay"], "true");
    assert_eq!(replayed.json::<Value>().await.unwrap()["value"], 2);
    assert_eq!(refusal(add(3).await).await, (422, "MS-2106".to_owned()));
}

#[tokio::test]
async fn a_command_runs_at_the_version_that_its_header_names_and_at_no_other() {
    let served = serve().await;
    let add = async |tag: &str| {
        let request = Client::new().post(served.url("/v1/counter/alice/add"));
        request.header("if-match", tag).json(&json!({"by": 2})).send().await.unwrap()
    };
    let created = add("\"0\"").await;
    assert_eq!(
        (created.status().as_u16(), &created.headers()["etag"]),
        (200, &"\"0\"".parse().unwrap())
    );
    let refused = add("\"0\"").await;
    assert_eq!(refused.headers()["etag"], "\"1\"");
    assert_eq!(
        (&refused.headers()["ms-version"], &refused.headers()["ms-epoch"]),
        (&"1".parse().unwrap(), &"3".parse().unwrap())
    );
    let problem: Value = refused.json().await.unwrap();
    assert_eq!((&problem["code"], &problem["version"]), (&json!("MS-2111"), &json!(1)));
    assert_eq!(
        (&problem["outcome"], &problem["retryable"]),
        (&json!("not_executed"), &json!(false))
    );
    let added = add("2").await;
    assert_eq!(added.json::<Value>().await.unwrap()["value"], 4, "quotes may be left out");
    assert_eq!(served.node.calls.lock().unwrap()[2].if_version, Some(Seq(2)));
}

#[tokio::test]
async fn unknown_kinds_methods_and_paths_are_told_apart() {
    let served = serve().await;
    for (path, status, code) in [
        ("/v1/nothing/alice/add", 404, "MS-2001"),
        ("/v1/%FF/alice/add", 404, "MS-2001"),
        ("/v1/counter/alice/explode", 404, "MS-2002"),
        ("/v1/counter/alice/", 404, "MS-2002"),
        ("/v1/counter/alice", 404, "MS-2000"),
        ("/v1/counter/a/b/add", 404, "MS-2000"),
        ("/", 404, "MS-2000"),
        ("/admin/v1/status", 404, "MS-2000"),
    ] {
        check(&served, path, "{}", status, code).await;
    }
}

#[tokio::test]
async fn odd_keys_work_or_are_refused() {
    let served = serve().await;
    for key in ["%C3%A4%F0%9F%98%80", "a%2Fb", "%20", "%00", "a+b", &"k".repeat(512)] {
        let path = format!("/v1/counter/{key}/add");
        assert_eq!(post(&served, &path, r#"{"by":1}"#).await.status(), 200, "{key}");
    }
    let keys: Vec<String> =
        served.node.calls.lock().unwrap().iter().map(|call| call.key.to_string()).collect();
    assert_eq!(keys[..5], ["\u{e4}\u{1f600}", "a/b", " ", "\0", "a+b"]);
    for key in ["", "%FF", "%C3", "%zz", "%", &"k".repeat(513), &"k".repeat(10_240)] {
        check(&served, &format!("/v1/counter/{key}/add"), "{}", 400, "MS-2003").await;
    }
}

#[tokio::test]
async fn bodies_that_are_no_arguments_are_refused() {
    let served = serve().await;
    let bomb = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let deep = format!(r#"{{"by":{}1{}}}"#, "[".repeat(70), "]".repeat(70));
    for (body, status) in [
        ("{", 400),
        ("{'by':1}", 400),
        ("{\"by\":1}x", 400),
        ("\u{feff}{}", 400),
        (bomb.as_str(), 400),
        (deep.as_str(), 400),
        ("[1]", 422),
        ("null", 422),
        ("\"text\"", 422),
        (r#"{"by":"two"}"#, 422),
        (r#"{"by":1e400}"#, 422),
        (r#"{"by":99999999999999999999}"#, 422),
    ] {
        check(&served, "/v1/counter/alice/add", body, status, "MS-2004").await;
    }
    let invalid_utf8 = post(&served, "/v1/counter/a/add", b"{\"\xff\":1}".to_vec()).await;
    assert_eq!(refusal(invalid_utf8).await, (400, "MS-2004".to_owned()));
    assert!(served.node.calls.lock().unwrap().is_empty());
}

#[tokio::test]
async fn other_media_types_are_refused() {
    let served = serve().await;
    for kind in ["text/plain", "application/x-www-form-urlencoded", "application/xml", "json"] {
        let request = Client::new().post(served.url("/v1/counter/alice/add"));
        let response = request.header("content-type", kind).body("{\"by\":1}").send().await;
        assert_eq!(refusal(response.unwrap()).await, (415, "MS-2006".to_owned()), "{kind}");
    }
}

#[tokio::test]
async fn headers_are_checked() {
    let served = serve().await;
    let long = "k".repeat(256);
    for (header, value) in [
        ("ms-timeout-ms", "soon"),
        ("ms-timeout-ms", "0"),
        ("ms-timeout-ms", "-1"),
        ("ms-timeout-ms", "60001"),
        ("ms-timeout-ms", "99999999999999999999999"),
        ("ms-pressure", "please"),
        ("idempotency-key", ""),
        ("idempotency-key", long.as_str()),
        ("if-match", "*"),
        ("if-match", "W/\"3\""),
        ("if-match", "\"3\", \"4\""),
        ("if-match", "\"latest\""),
        ("if-match", ""),
    ] {
        let request = Client::new().post(served.url("/v1/counter/alice/add"));
        let response = request.header(header, value).send().await.unwrap();
        assert_eq!(refusal(response).await, (400, "MS-2007".to_owned()), "{header}: {value}");
    }
    let request = Client::new().post(served.url("/v1/counter/alice/add"));
    let request = request.header("idempotency-key", b"\xff".as_slice());
    assert_eq!(refusal(request.send().await.unwrap()).await, (400, "MS-2007".to_owned()));
    let request = Client::new().post(served.url("/v1/counter/alice/get"));
    let response = request.header("idempotency-key", long.as_str()).send().await.unwrap();
    assert_eq!(response.status(), 200, "queries have no use for a key");
    let request = Client::new().post(served.url("/v1/counter/alice/get"));
    let response = request.header("if-match", "\"0\"").send().await.unwrap();
    assert_eq!(refusal(response).await, (400, "MS-2007".to_owned()), "a query changes nothing");
    let request = Client::new().post(served.url("/v1/counter/alice/add"));
    let request = request.header("if-match", "\"3\"").header("if-match", "\"4\"");
    assert_eq!(refusal(request.send().await.unwrap()).await, (400, "MS-2007".to_owned()));
    served.node.calls.lock().unwrap().clear();
    let request = Client::new().post(served.url("/v1/counter/alice/get"));
    let request = request.header("ms-timeout-ms", "1500").header("ms-pressure", "refuse");
    assert_eq!(request.header("prefer", "respond-async").send().await.unwrap().status(), 200);
    let call = served.node.calls.lock().unwrap()[0].clone();
    assert_eq!(call.pressure, Pressure::Refuse);
    assert!(call.deadline <= Duration::from_millis(1500));
}

#[tokio::test]
async fn a_trace_goes_on_through_the_call() {
    let served = serve().await;
    let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let request = Client::new().post(served.url("/v1/counter/alice/get"));
    let response = request.header("traceparent", parent).send().await.unwrap();
    let returned = response.headers()["traceparent"].to_str().unwrap();
    assert!(returned.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-"));
    assert_ne!(returned, parent);
    let trace = served.node.calls.lock().unwrap()[0].trace.unwrap();
    assert!(trace.sampled);
    assert!(returned.contains(&format!("{:016x}", trace.span)));
}

#[tokio::test]
async fn methods_other_than_post_are_refused_with_a_problem() {
    let served = serve().await;
    for (method, path, allow) in [
        (Method::GET, "/v1/counter/alice/get", "POST"),
        (Method::PUT, "/v1/counter/alice/add", "POST"),
        (Method::DELETE, "/v1/nothing/alice/add", "POST"),
        (Method::TRACE, "/v1/counter/alice/add", "POST"),
        (Method::POST, "/v1", "GET,HEAD"),
        (Method::DELETE, "/openapi.json", "GET,HEAD"),
    ] {
        let response = Client::new().request(method, served.url(path)).send().await.unwrap();
        assert_eq!(response.status(), 405, "{path}");
        assert_eq!(response.headers()["allow"], allow, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["code"], "MS-2008");
    }
}

#[tokio::test]
async fn failures_have_their_status_code_and_outcome() {
    let served = serve().await;
    for (how, status, code, retryable, outcome) in [
        ("app", 409, "MS-2201", false, "executed"),
        ("app-unreadable", 500, "MS-2110", false, "executed"),
        ("overloaded", 429, "MS-2101", true, "not_executed"),
        ("late", 504, "MS-2102", true, "not_executed"),
        ("late-unknown", 504, "MS-2103", false, "unknown"),
        ("not-primary", 503, "MS-2104", true, "not_executed"),
        ("unavailable", 503, "MS-2105", true, "not_executed"),
        ("unavailable-unknown", 503, "MS-2105", false, "unknown"),
        ("malformed", 422, "MS-2004", false, "not_executed"),
        ("reentrant", 409, "MS-2107", false, "not_executed"),
        ("mismatch", 412, "MS-2111", false, "not_executed"),
        ("panicked", 500, "MS-2108", false, "not_executed"),
        ("quarantined", 500, "MS-2109", false, "not_executed"),
        ("version", 500, "MS-2110", false, "not_executed"),
        ("stale", 503, "MS-2112", true, "not_executed"),
        ("unknown-kind", 404, "MS-2001", false, "not_executed"),
    ] {
        let body = json!({"how": how}).to_string();
        let response = post(&served, "/v1/counter/alice/fail", body).await;
        assert_eq!(response.status(), status, "{how}");
        let retry_after = response.headers().get("retry-after").cloned();
        let problem: Value = response.json().await.unwrap();
        assert_eq!(problem["code"], code, "{how}");
        assert_eq!(problem["retryable"], retryable, "{how}");
        assert_eq!(problem["outcome"], outcome, "{how}");
        let in_rust = match CallError::<String>::from(served.node.failure(how)).outcome() {
            Outcome::NotExecuted => "not_executed",
            Outcome::Executed => "executed",
            Outcome::Unknown => "unknown",
        };
        assert_eq!(in_rust, outcome, "{how}: HTTP and Rust callers are told the same");
        assert_eq!(retry_after.is_some(), status == 429 || status == 503, "{how}");
        match how {
            "app" => {
                assert_eq!(problem["error"], json!({"Poor": 5}));
                assert_eq!(problem["detail"], "too poor");
            }
            "overloaded" => {
                assert_eq!(retry_after.unwrap(), "2");
                assert_eq!(problem["retry_after_ms"], 1500);
                assert_eq!(problem["bound"], "mailbox");
            }
            _ => assert_eq!(problem.get("error"), None),
        }
    }
    let request = Client::new().post(served.url("/v1/counter/alice/fail"));
    let request = request.header("idempotency-key", "k").json(&json!({"how": "late-unknown"}));
    let problem: Value = request.send().await.unwrap().json().await.unwrap();
    assert_eq!(problem["retryable"], true, "with a key, unknown is safe to repeat");
}

#[tokio::test]
async fn a_full_node_refuses_those_who_do_not_wait_and_holds_the_others() {
    use mainstay_node::backend::Backend as _;
    let served = serve().await;
    let all = served.node.try_reserve(u64::from(fake::ROOM)).unwrap();
    let request = || {
        let request = Client::new().post(served.url("/v1/counter/alice/add"));
        request.json(&json!({"by": 1}))
    };
    let refused = request().header("ms-pressure", "refuse").send().await.unwrap();
    assert_eq!(refused.headers()["retry-after"], "1");
    assert_eq!(refusal(refused).await, (429, "MS-2101".to_owned()));
    let late = request().header("ms-timeout-ms", "50").send().await.unwrap();
    assert_eq!(refusal(late).await, (504, "MS-2102".to_owned()));
    let waiting = tokio::spawn(request().send());
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(!waiting.is_finished());
    drop(all);
    assert_eq!(waiting.await.unwrap().unwrap().status(), 200);
}

#[tokio::test]
async fn a_body_of_unknown_length_gives_back_what_it_does_not_need() {
    use mainstay_node::backend::Backend as _;
    let served = serve().await;
    let pieces = ["{\"by\"", ":2}"].map(Ok::<_, std::io::Error>);
    let body = reqwest::Body::wrap_stream(futures_util::stream::iter(pieces));
    let response = post(&served, "/v1/counter/alice/add", body).await;
    assert_eq!(response.json::<Value>().await.unwrap()["value"], 2);
    assert!(served.node.try_reserve(u64::from(fake::ROOM)).is_some(), "all room is back");
}

#[tokio::test]
async fn kinds_and_methods_are_listed() {
    let served = serve().await;
    let kinds: Value = reqwest::get(served.url("/v1")).await.unwrap().json().await.unwrap();
    assert_eq!(kinds["schema"], "mainstay.kinds/v1");
    assert_eq!(kinds["kinds"][0]["methods"][0]["name"], "add");
    assert_eq!(kinds["kinds"][0]["methods"][3]["mode"], "query");
}
