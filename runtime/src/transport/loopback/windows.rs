//! The owner's end: windows, slow callers, idle ones, and a full node.

use super::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_calls_share_one_connection() {
    let mut peer = Node::start(Config::default(), echo).await;
    let links = links_with(Config::default());
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..100_u32 {
        let link = link.clone();
        callers.spawn(async move {
            for call in 0..100_u32 {
                let payload = Bytes::from(format!("{caller}/{call}"));
                let answer = link.call(request(payload.clone()), soon()).await.unwrap();
                assert_eq!(answer.value, payload, "each caller gets its own answer");
            }
        });
    }
    let done: Vec<()> = callers.join_all().await;
    assert_eq!(done.len(), 100);
    assert_eq!(link.queued(), (0, 0), "nothing is left behind");
    links.close();
    assert!(matches!(peer.closed.recv().await, Some(Closed::ByCaller | Closed::Io(_))));
    assert!(peer.closed.try_recv().is_err(), "there was one connection");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exhausted_window_pushes_back_on_the_callers() {
    let (held, handler) = hold();
    let peer = Node::start(small(64), handler).await;
    let links = links_with(small(64));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..100 {
        waiting.spawn(link.call(request(Bytes::new()), soon()));
    }
    until(|| held.lock().unwrap().len() == 48).await;
    let refuse = Request { pressure: Pressure::Refuse, ..request(Bytes::new()) };
    let refused = link.call(refuse.clone(), soon()).await;
    assert!(matches!(refused, Err(Failure::Overloaded { ref bound, .. }) if bound == "window"));
    let nested = Request { chain: vec![1], ..refuse };
    let nested = tokio::spawn(link.call(nested, soon()));
    until(|| held.lock().unwrap().len() == 49).await;
    assert!(!nested.is_finished(), "calls of turns have a reserve");
    let answer = |envelope: Envelope| envelope.reply.send(Ok(success(Bytes::new())));
    let mut most = 0;
    while !waiting.is_empty() || !nested.is_finished() {
        let batch: Vec<_> = held.lock().unwrap().drain(..).collect();
        most = most.max(batch.len());
        batch.into_iter().for_each(answer);
        while let Some(done) = waiting.try_join_next() {
            assert!(done.unwrap().is_ok());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(most <= 64, "the owner never had more than the window: {most}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_waiters_are_refused() {
    let (held, handler) = hold();
    let peer = Node::start(small(4), handler).await;
    let links = links_with(Config { waiting_max: 5, ..small(4) });
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let calls: Vec<_> =
        (0..3).map(|_| tokio::spawn(link.call(request(Bytes::new()), soon()))).collect();
    until(|| held.lock().unwrap().len() == 3).await;
    let more: Vec<_> =
        (0..5).map(|_| tokio::spawn(link.call(request(Bytes::new()), soon()))).collect();
    until(|| link.queued().1 == 8).await;
    let refused = link.call(request(Bytes::new()), soon()).await;
    assert!(matches!(refused, Err(Failure::Overloaded { .. })));
    calls.into_iter().chain(more).for_each(|call| call.abort());
}

#[tokio::test]
async fn a_caller_that_oversteps_its_window_is_cut() {
    let (held, handler) = hold();
    let mut peer = Node::start(small(4), handler).await;
    let (mut stream, welcome) = raw(peer.addr).await;
    assert_eq!(welcome.window.messages, 4);
    stream.write_all(&frames(5, &Bytes::new())).await.unwrap();
    assert!(matches!(peer.closed.recv().await, Some(Closed::Window(_))));
    assert_eq!(held.lock().unwrap().len(), 4, "what fitted was taken");
    assert!(held.lock().unwrap()[0].reply.is_gone());
}

#[tokio::test]
async fn a_caller_that_does_not_read_is_not_read_from_and_then_cut() {
    let config = Config {
        window: Window { messages: 2000, bytes: 64 << 20 },
        write_timeout: Duration::from_millis(300),
        unread_bytes_soft: 256 << 10,
        ..Config::default()
    };
    let mut peer = Node::start(config, |inbound| {
        if let Inbound::Request(envelope) = inbound {
            envelope.reply.send(Ok(success(Bytes::from(vec![1; 64 << 10]))));
        }
    })
    .await;
    let (mut stream, _) = raw(peer.addr).await;
    let flood = frames(1900, &Bytes::from(vec![0; 8 << 10]));
    let writing = tokio::spawn(async move {
        let done = stream.write_all(&flood).await;
        (done, stream)
    });
    let Some(Closed::SlowReader { bytes }) = peer.closed.recv().await else { panic!("cut") };
    // 1,900 replies of 64 KiB would be 119 MiB; what waited is the soft bound and one chunk's
    assert!(bytes < 4 << 20, "{bytes} bytes of replies waited");
    drop(writing.await);
}

#[tokio::test]
async fn answers_beyond_the_hard_bound_cut_their_caller_at_once() {
    let (held, handler) = hold();
    let config = Config { unread_bytes_max: 1 << 20, ..Config::default() };
    let mut peer = Node::start(config, handler).await;
    let (mut stream, _) = raw(peer.addr).await;
    stream.write_all(&frames(64, &Bytes::new())).await.unwrap();
    until(|| held.lock().unwrap().len() == 64).await;
    for envelope in held.lock().unwrap().drain(..) {
        envelope.reply.send(Ok(success(Bytes::from(vec![1; 256 << 10]))));
    }
    assert!(matches!(peer.closed.recv().await, Some(Closed::SlowReader { .. })));
}

#[tokio::test]
async fn a_caller_that_sends_a_byte_now_and_then_is_cut() {
    let config = Config { frame_timeout: Duration::from_millis(200), ..Config::default() };
    let mut peer = Node::start(config, echo).await;
    let (mut stream, _) = raw(peer.addr).await;
    let bytes = frames(1, &Bytes::new());
    let dripping = tokio::spawn(async move {
        for byte in bytes {
            if stream.write_all(&[byte]).await.is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    });
    assert!(matches!(peer.closed.recv().await, Some(Closed::SlowWriter)));
    dripping.await.unwrap();
}

#[tokio::test]
async fn an_idle_connection_is_let_go() {
    let config = Config {
        idle_timeout: Duration::from_millis(100),
        frame_timeout: Duration::from_millis(100),
        ..Config::default()
    };
    let mut peer = Node::start(config, echo).await;
    let (_stream, _) = raw(peer.addr).await;
    assert!(matches!(peer.closed.recv().await, Some(Closed::Idle)));
}

#[tokio::test]
async fn an_unused_link_closes_and_opens_again_on_demand() {
    let mut peer = Node::start(Config::default(), echo).await;
    let links = links_with(Config { retire_after: Duration::from_millis(50), ..small(8) });
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    for _ in 0..2 {
        assert!(link.call(request(Bytes::new()), soon()).await.is_ok());
        assert!(matches!(peer.closed.recv().await, Some(Closed::ByCaller)));
    }
}

#[tokio::test]
async fn a_full_node_answers_that_it_is_full() {
    let (held, handler) = hold();
    let intake = Intake::new(2, 1 << 20);
    let peer =
        Node::of(Plan { config: small(64), intake: intake.clone(), ..Plan::default() }, handler)
            .await;
    let links = links_with(small(64));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let calls: Vec<_> =
        (0..2).map(|_| tokio::spawn(link.call(request(Bytes::new()), soon()))).collect();
    until(|| held.lock().unwrap().len() == 2).await;
    let refused = link.call(request(Bytes::new()), soon()).await;
    assert!(matches!(refused, Err(Failure::Overloaded { ref bound, .. }) if bound == "memory"));
    held.lock().unwrap().clear();
    for call in calls {
        let dropped = call.await.unwrap();
        assert!(matches!(dropped, Err(Failure::Unavailable { outcome: Outcome::Unknown, .. })));
    }
    until(|| intake.held() == (0, 0)).await;
}

// a cancel of a request that nobody knows must not trip the owner
#[tokio::test]
async fn a_cancel_for_nothing_changes_nothing() {
    let peer = Node::start(Config::default(), echo).await;
    let (mut stream, _) = raw(peer.addr).await;
    let mut bytes = Vec::new();
    for correlation in 0..5_000 {
        frame::encode(Tag::Cancel, &Cancel { correlation }, &mut bytes).unwrap();
    }
    bytes.extend(frames(1, &Bytes::from_static(b"still here")));
    stream.write_all(&bytes).await.unwrap();
    let (tag, _) = frame::read_frame(&mut stream, 1 << 20).await.unwrap();
    assert_eq!(tag, Tag::Reply);
}

#[test]
fn a_reply_handle_can_be_kept_by_whatever_thread_answers() {
    fn sendable<T: Send>() {}
    sendable::<ReplyHandle>();
    sendable::<Envelope>();
    sendable::<Accepted>();
}
