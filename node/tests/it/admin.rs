//! The operators' listener.

use std::time::Duration;

use mainstay::protocol::control::Event;
use mainstay_node::backend::{Check, Probe};
use mainstay_node::http::{Api, admin_router, server};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::fake::{self, Served, name, serve};

async fn get(served: &Served, path: &str) -> (u16, Value) {
    let response = reqwest::get(served.admin_url(path)).await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

async fn probe(served: &Served, path: &str) -> (u16, String) {
    let response = reqwest::get(served.admin_url(path)).await.unwrap();
    (response.status().as_u16(), response.text().await.unwrap())
}

#[tokio::test]
async fn probes_ask_for_what_they_are_for() {
    let served = serve().await;
    for path in ["/livez", "/startupz", "/readyz", "/healthz"] {
        assert_eq!(probe(&served, path).await, (200, "ok\n".to_owned()), "{path}");
    }
    let check = |name, probe| Check { name, probe, ok: false, text: "broken".to_owned() };
    served.node.checks.lock().unwrap().push(check("journal", Probe::Ready));
    assert_eq!(probe(&served, "/livez").await.0, 200);
    assert_eq!(probe(&served, "/startupz").await.0, 200);
    assert_eq!(probe(&served, "/readyz").await, (503, "[-]journal broken\nnot ok\n".to_owned()));
    assert_eq!(probe(&served, "/readyz?exclude=journal").await.0, 200);
    let verbose = probe(&served, "/readyz?verbose").await.1;
    assert_eq!(
        verbose,
        "[+]process answers\n[+]member of a cluster of 2\n[-]journal broken\n\
         [+]calls are let in\nnot ok\n"
    );
    served.node.checks.lock().unwrap().push(check("lanes", Probe::Live));
    assert_eq!(probe(&served, "/livez").await.0, 503);
}

#[tokio::test]
async fn a_node_that_starts_is_alive_but_not_ready() {
    let (_stop, stopping) = watch::channel(false);
    let api = Api::new(fake::limits(), None, stopping.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let limits = server::Limits {
        connections: 4,
        header_timeout: Duration::from_secs(1),
        stall_timeout: Duration::from_secs(1),
    };
    tokio::spawn(server::serve(listener, admin_router(api), limits, stopping));
    for (path, status) in [
        ("/livez", 200),
        ("/startupz", 503),
        ("/readyz", 503),
        ("/admin/v1/status", 503),
        ("/v1", 503),
        ("/openapi.json", 503),
    ] {
        let response = reqwest::get(format!("http://{address}{path}")).await.unwrap();
        assert_eq!(response.status(), status, "{path}");
    }
}

#[tokio::test]
async fn status_counts_what_the_map_says() {
    let served = serve().await;
    let (status, body) = get(&served, "/admin/v1/status").await;
    assert_eq!(status, 200);
    assert_eq!(body["schema"], "mainstay.status/v1");
    assert_eq!(body["healthy"], true);
    assert_eq!(body["node"]["shards"], 2);
    assert_eq!(body["cluster"]["shards"], 3);
    assert_eq!(body["cluster"]["members_up"], 2);
    assert_eq!(body["cluster"]["members_may_fail"], 0);
    served.node.state.lock().unwrap().members.get_mut(&name("n2")).unwrap().boot.0 = 9;
    let (_, body) = get(&served, "/admin/v1/status").await;
    assert_eq!(body["cluster"]["shards_unavailable"], 1, "the claim is of an older start");
    assert_eq!(body["healthy"], false);
}

#[tokio::test]
async fn lists_are_paged() {
    let served = serve().await;
    let (_, page) = get(&served, "/admin/v1/shards?limit=2").await;
    assert_eq!((page["shards"].as_array().unwrap().len(), &page["next"]), (2, &1.into()));
    let (_, page) = get(&served, "/admin/v1/shards?limit=2&after=1").await;
    assert_eq!((page["shards"].as_array().unwrap().len(), &page["next"]), (1, &Value::Null));
    for query in ["limit=0", "limit=10001", "limit=x", "after=-1", "colour=red"] {
        let (status, problem) = get(&served, &format!("/admin/v1/shards?{query}")).await;
        assert_eq!((status, &problem["code"]), (400, &"MS-2303".into()), "{query}");
    }
    let (_, nodes) = get(&served, "/admin/v1/nodes").await;
    assert_eq!(nodes["nodes"][0]["primaries"], 2);
    assert_eq!(nodes["nodes"][0]["leader"], true);
    assert_eq!(nodes["nodes"][1]["primaries"], 1);
}

#[tokio::test]
async fn entities_are_listed_and_shown() {
    let served = serve().await;
    for key in ["a", "b%2Fc", "d"] {
        let url = served.admin_url(&format!("/v1/counter/{key}/add"));
        let call = reqwest::Client::new().post(url).body(r#"{"by":7}"#).send().await.unwrap();
        assert_eq!(call.status(), 200, "the admin listener takes calls as well");
    }
    let (_, page) = get(&served, "/admin/v1/entities/counter?limit=2").await;
    assert_eq!(page["entities"][1]["key"], "b/c");
    assert_eq!(page["next"], "b/c");
    let (_, page) = get(&served, "/admin/v1/entities/counter?limit=2&after=b%2Fc").await;
    assert_eq!((page["entities"][0]["key"].as_str(), &page["next"]), (Some("d"), &Value::Null));
    let (_, entity) = get(&served, "/admin/v1/entities/counter/b%2Fc").await;
    assert_eq!(entity["state"]["value"], 7);
    assert_eq!(entity["primary"], "n1");
    let (_, none) = get(&served, "/admin/v1/entities/counter/zz").await;
    assert_eq!((&none["state"], &none["seq"]), (&Value::Null, &0.into()));
    assert_eq!(get(&served, "/admin/v1/entities/nothing").await.1["code"], "MS-2001");
    assert_eq!(get(&served, "/admin/v1/entities/counter/%FF").await.1["code"], "MS-2303");
}

#[tokio::test]
async fn members_are_changed_or_the_rule_is_named() {
    let served = serve().await;
    let client = reqwest::Client::new();
    let drained = client.post(served.admin_url("/admin/v1/nodes/n2/drain")).send().await.unwrap();
    assert_eq!(drained.json::<Value>().await.unwrap()["change"], "drain");
    assert_eq!(get(&served, "/admin/v1/nodes").await.1["nodes"][1]["state"], "draining");
    let unknown = client.post(served.admin_url("/admin/v1/nodes/n9/drain")).send().await.unwrap();
    assert_eq!(unknown.status(), 404);
    let refused = client.delete(served.admin_url("/admin/v1/nodes/n1")).send().await.unwrap();
    assert_eq!(refused.status(), 409);
    assert_eq!(refused.json::<Value>().await.unwrap()["code"], "MS-2302");
    let odd = client.delete(served.admin_url("/admin/v1/nodes/N%201")).send().await.unwrap();
    assert_eq!(odd.status(), 400);
    for path in ["/admin/v1/nodes", "/readyz", "/v1"] {
        let wrong = client.put(served.admin_url(path)).send().await.unwrap();
        assert_eq!(wrong.status(), 405, "{path}");
        assert_eq!(wrong.headers()["content-type"], "application/problem+json", "{path}");
        assert!(wrong.headers().contains_key("allow"), "{path}");
        assert_eq!(wrong.json::<Value>().await.unwrap()["code"], "MS-2008", "{path}");
    }
}

#[tokio::test]
async fn events_are_listed_and_streamed_without_a_gap() {
    let served = serve().await;
    let (_, events) = get(&served, "/admin/v1/events").await;
    assert_eq!(events["events"][0]["event"]["type"], "member_joined");
    assert_eq!(get(&served, "/admin/v1/events?after=1").await.1["events"], Value::Array(vec![]));
    let url = served.admin_url("/admin/v1/events?follow=true");
    let mut stream = reqwest::get(url).await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    served.node.events.record(2, [Event::MemberDown { node: name("n2") }]);
    let mut text = String::new();
    while !text.contains("member_down") {
        let chunk = tokio::time::timeout(Duration::from_secs(5), stream.chunk()).await.unwrap();
        text.push_str(&String::from_utf8_lossy(&chunk.unwrap().unwrap()));
    }
    assert!(text.find("id: 1\n").unwrap() < text.find("id: 2\n").unwrap(), "{text}");
}

#[tokio::test]
async fn locality_names_the_kinds() {
    let served = serve().await;
    let (_, locality) = get(&served, "/admin/v1/locality").await;
    assert_eq!(locality["rows"][0]["from"], "(outside)");
    assert_eq!(locality["rows"][0]["to"], "counter");
    assert_eq!(locality["rows"][0]["local_ratio"], 0.75);
    assert_eq!(locality["rows"][0]["remote_bytes"], 5 << 20, "dearest first, not busiest");
    assert_eq!(locality["rows"][1]["local_bytes"], 900);
}
