//! Each example does what its first lines say.

use std::time::Duration;

use mainstay_cluster_tests::processes::{Question, ask};
use mainstay_examples::chat::{AUTHOR_BYTES_MAX, KEPT};
use serde_json::{Value, json};

use super::{Running, start};

#[tokio::test]
async fn the_counter_counts() {
    let node = start(env!("CARGO_BIN_EXE_counter")).await;
    assert_eq!(node.value("counter", "alice", "add", json!({ "by": 2 })).await, 2);
    assert_eq!(node.value("counter", "alice", "add", json!({ "by": -5 })).await, -3);
    assert_eq!(node.value("counter", "alice", "get", json!({})).await, -3);
    assert_eq!(node.value("counter", "bob", "get", json!({})).await, 0);
}

#[test]
fn the_counter_is_a_program_of_at_most_30_lines() {
    let source = include_str!("../../src/bin/counter.rs");
    let code = source.lines().map(str::trim);
    let code = code.filter(|line| !line.is_empty() && !line.starts_with("//")).count();
    assert!(code <= 30, "{code} lines of code");
}

/// Orders a transfer that the bank takes.
async fn order(node: &Running, transfer: &str, from: &str, to: &str, cents: u64) -> Value {
    let terms = json!({ "from": from, "to": to, "cents": cents });
    node.value("transfer", transfer, "order", terms.clone()).await;
    terms
}

#[tokio::test]
async fn the_bank_moves_money_once_and_never_more_than_there_is() {
    let node = start(env!("CARGO_BIN_EXE_bank")).await;
    node.value("account", "north/a", "deposit", json!({ "cents": 1_000 })).await;
    let terms = order(&node, "north/t-1", "north/a", "south/b", 300).await;
    for _ in 0..2 {
        assert_eq!(node.value("transfer", "north/t-1", "run", json!({})).await, terms);
    }
    assert_eq!(node.value("account", "north/a", "balance", json!({})).await, 700);
    assert_eq!(node.value("account", "south/b", "balance", json!({})).await, 300);

    order(&node, "north/t-2", "north/a", "south/b", 701).await;
    let refused = node.ask("transfer", "north/t-2", "run", json!({})).await;
    assert_eq!((refused.status, refused.code()), (409, "MS-2201"), "{}", refused.text());
    assert_eq!(refused.body["error"], json!({ "Short": { "cents": 700 } }));
    let itself = json!({ "from": "north/a", "to": "north/a", "cents": 1 });
    let refused = node.ask("transfer", "north/t-3", "order", itself).await;
    assert_eq!(refused.body["error"], "SameAccount");
    let refused = node.ask("transfer", "north/t-3", "run", json!({})).await;
    assert_eq!(refused.body["error"], "NotOrdered");
    let statement = node.value("account", "north/a", "statement", json!({})).await;
    assert_eq!(statement, json!({ "cents": 700, "moves": 2 }));
}

#[tokio::test]
async fn a_transfer_that_is_cut_and_run_again_keeps_its_terms() {
    let mut node = start(env!("CARGO_BIN_EXE_bank")).await;
    node.value("account", "a", "deposit", json!({ "cents": 10 })).await;
    let terms = order(&node, "t", "a", "b", 10).await;
    // The node dies with the money on its way, or before, or after: nobody knows.
    let run = Question::new("transfer", "t", "run", json!({}));
    let (at, client) = (node.cluster.nodes[0].addresses().http, node.cluster.client().clone());
    let running = tokio::spawn(async move { ask(&client, at, &run).await.is_ok() });
    tokio::time::sleep(Duration::from_millis(3)).await;
    node.cluster.nodes[0].kill();
    running.await.unwrap();
    node.cluster.restart(0).await.unwrap();

    let other = json!({ "from": "a", "to": "c", "cents": 10 });
    let refused = node.ask("transfer", "t", "order", other).await;
    assert_eq!(refused.body["error"], "OtherTerms", "{}", refused.text());
    order(&node, "t", "a", "b", 10).await;
    assert_eq!(node.value("transfer", "t", "run", json!({})).await, terms);
    for (account, cents) in [("a", 0), ("b", 10), ("c", 0)] {
        assert_eq!(node.value("account", account, "balance", json!({})).await, cents, "{account}");
    }
}

#[tokio::test]
async fn a_transfer_that_cannot_arrive_is_given_back() {
    let node = start(env!("CARGO_BIN_EXE_bank")).await;
    node.value("account", "a", "deposit", json!({ "cents": 10 })).await;
    node.value("account", "full", "deposit", json!({ "cents": u64::MAX })).await;
    order(&node, "t", "a", "full", 10).await;
    let refused = node.ask("transfer", "t", "run", json!({})).await;
    assert_eq!(refused.body["error"], "Full", "{}", refused.text());
    assert_eq!(node.value("account", "a", "balance", json!({})).await, 10);
}

#[tokio::test]
async fn a_repeated_reading_counts_once() {
    let node = start(env!("CARGO_BIN_EXE_devices")).await;
    assert_eq!(node.value("device", "d", "summary", json!({})).await, json!(null));
    for (seq, value, taken) in
        [(1, 20, "Counted"), (2, 25, "Counted"), (2, 25, "Old"), (1, 99, "Old"), (5, 30, "Counted")]
    {
        let body = json!({ "seq": seq, "value": value });
        assert_eq!(node.value("device", "d", "reading", body).await, taken);
    }
    let summary = json!({
        "last_seq": 5, "count": 3, "latest": 30, "least": 20, "greatest": 30, "mean_milli": 25_000
    });
    assert_eq!(node.value("device", "d", "summary", json!({})).await, summary);
}

#[tokio::test]
async fn a_room_remembers_its_last_messages_only() {
    let node = start(env!("CARGO_BIN_EXE_chat")).await;
    for number in 1..=KEPT + 5 {
        let body = json!({ "author": "ada", "text": format!("message {number}") });
        assert_eq!(node.value("room", "lobby", "say", body).await, number);
    }
    let all = node.value("room", "lobby", "since", json!({ "id": 0 })).await;
    let all = all.as_array().unwrap();
    assert_eq!((all.len(), &all[0]["id"]), (KEPT, &json!(6)));
    let last = node.value("room", "lobby", "since", json!({ "id": KEPT + 4 })).await;
    assert_eq!(last[0]["text"], format!("message {}", KEPT + 5));
    let empty = node.ask("room", "lobby", "say", json!({ "author": "ada", "text": " " })).await;
    assert_eq!(empty.body["error"], "Empty", "{}", empty.text());
    let endless = json!({ "author": "a".repeat(AUTHOR_BYTES_MAX + 1), "text": "hello" });
    let refused = node.ask("room", "lobby", "say", endless).await;
    assert_eq!(refused.body["error"], "AuthorTooLong", "{}", refused.text());
}
