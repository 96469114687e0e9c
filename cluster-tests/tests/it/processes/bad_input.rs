//! Bad input gets a clear answer, and everybody else goes on.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::Question;
use serde_json::{Value, json};

use super::{append, get, plan, set, start};

async fn refused(cluster: &super::Running, question: &Question, status: u16, code: &str) {
    let answer = cluster.answer(0, question).await;
    assert_eq!((answer.status, answer.code()), (status, code), "{question}: {}", answer.text());
}

#[tokio::test]
async fn malformed_calls_are_told_apart() {
    let cluster = start(&plan(1)).await;
    let call = |kind, key: &str, method, body| Question::new(kind, key, method, body);
    refused(&cluster, &call("nothing", "a", "get", json!({})), 404, "MS-2001").await;
    refused(&cluster, &call("register", "a", "explode", json!({})), 404, "MS-2002").await;
    refused(&cluster, &call("register", "", "get", json!({})), 400, "MS-2003").await;
    refused(&cluster, &call("register", &"k".repeat(10_240), "get", json!({})), 400, "MS-2003")
        .await;
    refused(&cluster, &call("register", "a", "set", json!({ "value": "x" })), 422, "MS-2004").await;
    refused(&cluster, &call("register", "a", "set", json!({})), 422, "MS-2004").await;
    refused(&cluster, &call("register", "a", "set", json!([1])), 422, "MS-2004").await;
    let mut bomb = json!(1);
    for _ in 0..100 {
        bomb = Value::Array(vec![bomb]);
    }
    refused(&cluster, &call("register", "a", "set", json!({ "value": bomb })), 400, "MS-2004")
        .await;
    let odd = "caf\u{e9} / \u{1f600} %2F ..";
    cluster.answer(0, &set(odd, 4)).await.value().unwrap();
    assert_eq!(cluster.answer(0, &get(odd)).await.value().unwrap(), 4);
}

#[tokio::test]
async fn one_idempotency_key_with_two_payloads_is_a_conflict() {
    let cluster = start(&plan(1)).await;
    cluster.answer(0, &append("list", 1).key("k")).await.value().unwrap();
    refused(&cluster, &append("list", 2).key("k"), 422, "MS-2106").await;
    assert_eq!(cluster.items("list").await, [1]);
}

#[tokio::test]
async fn a_hundred_megabytes_are_refused_without_being_held() {
    let cluster = start(&plan(1)).await;
    let before = cluster.nodes[0].resident_bytes().unwrap();
    let at = cluster.nodes[0].addresses().http;
    let sent = tokio::task::spawn_blocking(move || send_megabytes(at, 100)).await.unwrap();
    assert!(sent.starts_with("HTTP/1.1 413"), "{sent}");
    assert!(sent.contains("MS-2005"), "{sent}");
    let after = cluster.nodes[0].resident_bytes().unwrap();
    assert!(after < before + (32 << 20), "grew from {before} to {after}");
    cluster.answer(0, &set("still-there", 1)).await.value().unwrap();
}

/// Posts a body of that many megabytes, in chunks of unknown total; returns the answer's beginning.
fn send_megabytes(at: SocketAddr, megabytes: usize) -> String {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = "POST /v1/register/a/set HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n\
                Transfer-Encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..megabytes {
        // The node may well answer and close before it was sent everything.
        if stream.write_all(&chunk).is_err() {
            break;
        }
    }
    let mut answer = vec![0; 2_048];
    let read = stream.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..read]).into_owned()
}

#[tokio::test]
async fn garbage_on_the_peer_port_disturbs_nobody() {
    let cluster = start(&plan(3)).await;
    let at = cluster.nodes[0].addresses().peer;
    tokio::task::spawn_blocking(move || {
        let mut rng = fastrand::Rng::with_seed(7);
        for round in 0..200_u32 {
            let mut stream = TcpStream::connect(at).unwrap();
            let mut frame = match round % 4 {
                // a length beyond every limit
                0 => u32::MAX.to_le_bytes().to_vec(),
                // a handshake's tag before nonsense
                1 => [&40_u32.to_le_bytes()[..], &[1]].concat(),
                // another protocol
                2 => b"GET / HTTP/1.1\r\n\r\n".to_vec(),
                // a frame that never ends
                _ => 1_000_u32.to_le_bytes().to_vec(),
            };
            frame.extend((0..rng.usize(0..200)).map(|_| rng.u8(..)));
            // The node may have closed already.
            stream.write_all(&frame).ok();
        }
    })
    .await
    .unwrap();
    for key in 0..20 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    assert!(!cluster.nodes[0].log().contains("panicked"));
    cluster.balanced(&[0, 1, 2], 32).await;
}

#[tokio::test]
async fn clients_that_stop_reading_or_dawdle_hold_nobody_up() {
    let cluster = start(&plan(1)).await;
    for item in 0..2_000 {
        cluster.answer(0, &append("long", item)).await.value().unwrap();
    }
    let before = cluster.nodes[0].resident_bytes().unwrap();
    let at = cluster.nodes[0].addresses().http;
    let deaf: Vec<TcpStream> = (0..30).map(|_| deaf_client(at)).collect();
    let slow: Vec<TcpStream> = (0..30).map(|_| slow_client(at)).collect();

    let began = Instant::now();
    for key in 0..50 {
        let name = format!("r-{key}");
        cluster.answer(0, &set(&name, key).deadline(Duration::from_secs(2))).await.value().unwrap();
    }
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    let after = cluster.nodes[0].resident_bytes().unwrap();
    assert!(after < before + (64 << 20), "grew from {before} to {after}");
    drop((deaf, slow));
}

/// Asks for a long answer again and again and reads none.
fn deaf_client(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.set_write_timeout(Some(Duration::from_millis(20))).unwrap();
    let ask = "POST /v1/list/long/items HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n";
    for _ in 0..500 {
        if stream.write_all(ask.as_bytes()).is_err() {
            break;
        }
    }
    stream
}

/// Begins a request and never ends it.
fn slow_client(at: SocketAddr) -> TcpStream {
    let mut stream = TcpStream::connect(at).unwrap();
    stream.write_all(b"POST /v1/register/a/set HT").unwrap();
    stream
}
