//! Clients that dawdle, flood, or do not read.

use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::fake::{Served, serve, serve_patiently};

async fn connect(served: &Served) -> TcpStream {
    TcpStream::connect(served.api).await.unwrap()
}

/// Everything that comes until the other end closes.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    // a reset is an end as well
    drop(stream.read_to_end(&mut bytes).await);
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn still_serves(served: &Served) {
    let began = Instant::now();
    let url = served.url("/v1/counter/alice/get");
    let response = reqwest::Client::new().post(url).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(began.elapsed() < Duration::from_secs(2));
}

#[tokio::test]
async fn a_head_that_trickles_in_is_cut() {
    let served = serve().await;
    let mut stream = connect(&served).await;
    let began = Instant::now();
    for byte in b"POST /v1/counter/alice/add HTTP/1.1\r\nhost: x\r\n".iter().cycle() {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(began.elapsed() < Duration::from_secs(5), "still open");
    }
    still_serves(&served).await;
}

#[tokio::test]
async fn a_body_that_trickles_in_is_cut_with_an_answer() {
    let served = serve().await;
    let mut stream = connect(&served).await;
    let head = "POST /v1/counter/alice/add HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let began = Instant::now();
    let (mut reader, mut writer) = stream.split();
    let trickle = async {
        while writer.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let mut answer = vec![0; 4096];
    let read = tokio::select! {
        read = reader.read(&mut answer) => read.unwrap(),
        () = trickle => panic!("no answer"),
    };
    let answer = String::from_utf8_lossy(&answer[..read]);
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("MS-2009"), "{answer}");
    assert!(began.elapsed() < Duration::from_secs(3));
    still_serves(&served).await;
}

#[tokio::test]
async fn a_declared_flood_is_refused_unread_and_the_answer_arrives() {
    let served = serve().await;
    let mut stream = connect(&served).await;
    let head = "POST /v1/counter/a/add HTTP/1.1\r\nhost: x\r\ncontent-length: 104857600\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = vec![b' '; 1 << 20];
    for _ in 0..100 {
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("MS-2005"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
    still_serves(&served).await;
}

#[tokio::test]
async fn an_undeclared_flood_is_refused_at_the_limit() {
    let served = serve().await;
    let mut stream = connect(&served).await;
    let head = "POST /v1/counter/a/add HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let chunk = [b"100000\r\n".as_slice(), &vec![b' '; 1 << 20], b"\r\n"].concat();
    for _ in 0..100 {
        if stream.write_all(&chunk).await.is_err() {
            break;
        }
    }
    let answer = rest(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("MS-2005"), "{answer}");
    still_serves(&served).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut() {
    let served = serve().await;
    let mut stream = connect(&served).await;
    let ask = "POST /v1/counter/a/big HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    let began = Instant::now();
    let mut calls = 0;
    while began.elapsed() < Duration::from_secs(5) {
        let sent =
            tokio::time::timeout(Duration::from_millis(100), stream.write_all(ask.as_bytes()))
                .await;
        if matches!(sent, Ok(Err(_))) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        calls = served.node.calls.lock().unwrap().len();
    }
    assert!(began.elapsed() < Duration::from_secs(5), "never cut, {calls} calls");
    assert!(calls < 20, "answers of {calls} calls were kept for somebody who does not read");
    still_serves(&served).await;
}

/// Asks for great answers and reads none of them.
async fn hoard(mut stream: TcpStream) {
    let ask = "POST /v1/counter/alice/big HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n";
    while stream.write_all(ask.as_bytes()).await.is_ok() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn answers_that_nobody_reads_are_bounded_and_small_ones_go_on() {
    let served = serve_patiently(Duration::from_secs(60)).await;
    let mut hoarders = tokio::task::JoinSet::new();
    for _ in 0..5 {
        hoarders.spawn(hoard(connect(&served).await));
    }
    // A connection of its own for each: one that is kept may meet its end at the idle limit.
    let client = reqwest::Client::builder().pool_max_idle_per_host(0).build().unwrap();
    let big = async || {
        let answer = client.post(served.url("/v1/counter/alice/big")).send().await?;
        Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.json::<Value>().await?))
    };
    let until = async |status: u16, otherwise: &str| {
        let began = Instant::now();
        loop {
            match big().await {
                Ok((found, document)) if found == status => return document,
                _ => assert!(began.elapsed() < Duration::from_secs(10), "{otherwise}"),
            }
        }
    };
    let problem = until(429, "unread answers have no bound").await;
    assert_eq!((&problem["code"], &problem["bound"]), (&"MS-2101".into(), &"memory".into()));
    assert_eq!(problem["outcome"], "not_executed");
    assert_eq!(problem["retryable"], true);
    still_serves(&served).await;
    hoarders.shutdown().await;
    until(200, "the room does not come back").await;
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_their_turn() {
    let served = serve().await;
    let mut idle = Vec::new();
    for _ in 0..8 {
        idle.push(connect(&served).await);
    }
    let began = Instant::now();
    still_serves(&served).await;
    assert!(began.elapsed() > Duration::from_millis(200), "a place came free by the idle limit");
}

#[tokio::test]
async fn a_body_is_asked_for_only_when_it_is_wanted() {
    let served = serve().await;
    for (path, expected) in
        [("/v1/counter/a/add", "HTTP/1.1 100 Continue"), ("/v1/nothing/a/add", "HTTP/1.1 404")]
    {
        let mut stream = connect(&served).await;
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nexpect: 100-continue\r\ncontent-length: 8\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let read = stream.read(&mut answer).await.unwrap();
        let answer = String::from_utf8_lossy(&answer[..read]);
        assert!(answer.starts_with(expected), "{answer}");
    }
}

#[tokio::test]
async fn garbage_is_answered_or_cut_and_disturbs_nobody() {
    let served = serve().await;
    for garbage in [
        b"\x16\x03\x01\x02\x00\x01\x00".as_slice(),
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/counter/a/add HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/counter/a/add HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        "A".repeat(200_000).as_bytes(),
    ] {
        let mut stream = connect(&served).await;
        drop(stream.write_all(garbage).await);
        let answer = tokio::time::timeout(Duration::from_secs(3), rest(&mut stream)).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
    }
    still_serves(&served).await;
}
