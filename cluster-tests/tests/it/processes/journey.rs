//! One request across two nodes, seen in their logs: the verbs of ARCHITECTURE.md, in its order.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_cluster_tests::processes::Question;
use serde_json::{Value, json};

use super::{SOON, plan, start};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
/// The verbs of one copy; `replicate` joins them with the standbys.
const VERBS: [&str; 9] =
    ["accept", "route", "forward", "admit", "queue", "handle", "append", "release", "reply"];

/// When a span of the trace began, and on which node.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Began {
    at: String,
    node: String,
}

#[tokio::test]
async fn one_request_passes_the_rooms_in_the_order_that_is_drawn() {
    let filter = "info,mainstay::journey=debug,mainstay_node=debug";
    let mut plan = plan(3);
    plan.environment.push(("MAINSTAY_LOG".to_owned(), filter.to_owned()));
    let cluster = start(&plan).await;

    // A key that another node serves, so that the request is forwarded.
    let mut far = None;
    for key in 0..64 {
        let key = format!("far-{key}");
        let probe = Question::new("register", &key, "get", json!({}));
        if cluster.served_by(0, &probe).await != "n1" {
            far = Some(key);
            break;
        }
    }
    let key = far.expect("n1 does not serve 64 keys out of 64");
    let question = Question::new("register", &key, "set", json!({ "value": 1 }))
        .header("traceparent", format!("00-{TRACE}-00f067aa0ba902b7-01"));
    cluster.answer(0, &question).await.value().unwrap();

    let began_at = std::time::Instant::now();
    let spans = loop {
        let spans: BTreeMap<String, Began> = cluster
            .nodes
            .iter()
            .flat_map(|node| journey(node.name(), &node.log()))
            .fold(BTreeMap::new(), |mut first, (verb, began)| {
                let known: &mut Began = first.entry(verb).or_insert_with(|| began.clone());
                if began < *known {
                    *known = began;
                }
                first
            });
        if VERBS.iter().all(|verb| spans.contains_key(*verb)) {
            break spans;
        }
        assert!(began_at.elapsed() < SOON, "spans seen: {spans:#?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    for pair in VERBS.windows(2) {
        let (earlier, later) = (&spans[pair[0]], &spans[pair[1]]);
        assert!(earlier.at <= later.at, "{} {earlier:?} after {} {later:?}", pair[0], pair[1]);
    }
    assert_eq!(spans["accept"].node, "n1");
    assert_eq!(spans["forward"].node, "n1");
    assert_ne!(spans["admit"].node, "n1");
    assert_eq!(spans["admit"].node, spans["release"].node);
    assert_eq!(spans["reply"].node, "n1");
}

/// The beginnings of spans of the trace in one node's log: lines that say that a span is new.
fn journey(node: &str, log: &str) -> Vec<(String, Began)> {
    log.lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "new" || line["fields"]["message"] == "new")
        .filter_map(|line| {
            let span = &line["span"];
            let text = |value: &Value| value.as_str().map(str::to_owned);
            (text(&span["trace_id"])? == TRACE).then_some(())?;
            let began = Began { at: text(&line["timestamp"])?, node: node.to_owned() };
            Some((text(&span["name"])?, began))
        })
        .collect()
}
