//! What callers learn when connections fail, deadlines pass, or they give up.

use super::*;

#[tokio::test]
async fn nobody_there_means_not_executed() {
    let _peer = Node::start(Config::default(), echo).await;
    let links = links_with(small(8));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let link = links.link(&node("n1"), &free.to_string(), 0);
    for _ in 0..3 {
        let failed = link.call(request(Bytes::new()), soon()).await;
        let Err(Failure::Unavailable { outcome: Outcome::NotExecuted, reason }) = failed else {
            panic!("{failed:?}");
        };
        assert!(reason.contains("n1"), "{reason}");
    }
}

#[tokio::test]
async fn a_connection_that_dies_leaves_sent_calls_unknown_and_others_not_executed() {
    let (held, handler) = hold();
    let peer = Node::start(small(4), handler).await;
    let links = links_with(small(4));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let sent: Vec<_> =
        (0..3).map(|_| tokio::spawn(link.call(request(Bytes::new()), soon()))).collect();
    until(|| held.lock().unwrap().len() == 3).await;
    let waits = tokio::spawn(link.call(request(Bytes::new()), soon()));
    until(|| link.queued().1 == 4).await;
    peer.kill().await;
    for call in sent {
        let lost = call.await.unwrap();
        let outcome = Outcome::Unknown;
        assert!(matches!(lost, Err(Failure::Unavailable { outcome: o, .. }) if o == outcome));
    }
    let outcome = Outcome::NotExecuted;
    let lost = waits.await.unwrap();
    assert!(matches!(lost, Err(Failure::Unavailable { outcome: o, .. }) if o == outcome));
    held.lock().unwrap().clear();
}

#[tokio::test]
async fn a_link_reconnects_when_its_peer_is_back() {
    let first = Node::start(small(8), echo).await;
    let addr = first.addr.to_string();
    let links = links_with(small(8));
    let link = links.link(&node("n1"), &addr, 0);
    assert!(link.call(request(Bytes::new()), soon()).await.is_ok());
    first.kill().await;
    until(|| link.queued() == (0, 0)).await;
    let mut failed = 0;
    let mut second = None;
    loop {
        match link.call(request(Bytes::new()), soon()).await {
            Ok(_) => break,
            Err(Failure::Unavailable { .. }) => failed += 1,
            Err(other) => panic!("{other:?}"),
        }
        if failed == 3 {
            let plan = Plan { addr: addr.clone(), config: small(8), ..Plan::default() };
            second = Some(Node::of(plan, echo).await);
        }
        assert!(failed < 1_000, "it never came back");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(second.is_some(), "it failed while the peer was away");
}

#[tokio::test]
async fn a_deadline_says_what_is_known() {
    let (held, handler) = hold();
    let peer = Node::start(small(4), handler).await;
    let links = links_with(small(4));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let begin = clock::now();
    let short = begin + Duration::from_millis(150);
    let sent: Vec<_> =
        (0..3).map(|_| tokio::spawn(link.call(request(Bytes::new()), short))).collect();
    until(|| held.lock().unwrap().len() == 3).await;
    let waits = tokio::spawn(link.call(request(Bytes::new()), short));
    for call in sent {
        let expected = Err(Failure::Deadline { outcome: Outcome::Unknown });
        assert_eq!(call.await.unwrap(), expected);
    }
    let expected = Err(Failure::Deadline { outcome: Outcome::NotExecuted });
    assert_eq!(waits.await.unwrap(), expected);
    assert!(clock::now().saturating_since(begin) < Duration::from_secs(5));
    let late = link.call(request(Bytes::new()), clock::now()).await;
    assert_eq!(late, Err(Failure::Deadline { outcome: Outcome::NotExecuted }));
    // the owner's late answers bring the credits back
    held.lock().unwrap().clear();
    until(|| link.queued() == (0, 0)).await;
    let next = tokio::spawn(link.call(request(Bytes::new()), soon()));
    until(|| held.lock().unwrap().len() == 1).await;
    next.abort();
}

#[tokio::test]
async fn a_caller_that_gives_up_is_known_to_the_owner() {
    let (held, mut handler) = hold();
    let cancelled = Arc::new(Mutex::new(Vec::new()));
    let note = Arc::clone(&cancelled);
    let peer = Node::start(small(8), move |inbound| {
        if let Inbound::Cancel { correlation, .. } = inbound {
            note.lock().unwrap().push(correlation);
        } else {
            handler(inbound);
        }
    })
    .await;
    let links = links_with(small(8));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    let call = tokio::spawn(link.call(request(Bytes::new()), soon()));
    until(|| held.lock().unwrap().len() == 1).await;
    assert!(!held.lock().unwrap()[0].reply.is_gone());
    call.abort();
    until(|| cancelled.lock().unwrap().len() == 1).await;
    let envelope = held.lock().unwrap().pop().unwrap();
    assert_eq!(cancelled.lock().unwrap()[0], envelope.request.correlation);
    assert!(envelope.reply.is_gone());
    assert_eq!(link.queued().1, 1, "its credit is held until the owner lets go");
    drop(envelope);
    until(|| link.queued().1 == 0).await;
}

#[tokio::test]
async fn a_new_connection_is_not_granted_what_the_old_one_left_queued() {
    let (held, handler) = hold();
    let peer = Node::start(small(64), handler).await;
    let caller = Identity::client("stubborn".to_owned());
    let config = Config::default();
    let addr = peer.addr.to_string();
    let purpose = Purpose::Requests { lane: 0 };
    let (mut first, welcome) = dial(&caller, &config, &addr, None, purpose).await.unwrap();
    assert_eq!(welcome.window.messages, 64);
    first.write_all(&frames(40, &Bytes::new())).await.unwrap();
    until(|| held.lock().unwrap().len() == 40).await;
    drop(first);
    let (_second, welcome) = dial(&caller, &config, &addr, None, purpose).await.unwrap();
    assert_eq!(welcome.window.messages, 24);
    held.lock().unwrap().clear();
    let (_third, welcome) = dial(&caller, &config, &addr, None, purpose).await.unwrap();
    assert_eq!(welcome.window.messages, 64);
}
