//! Control and snapshot connections.

use mainstay_protocol::limits;

use super::*;

fn channel(identity: Arc<Identity>) -> ControlChannel {
    ControlChannel::new(identity, Config::default(), tokio::runtime::Handle::current())
}

const SECOND: Duration = Duration::from_secs(1);

#[tokio::test]
async fn questions_are_answered_each_to_its_asker() {
    let peer = Node::start(Config::default(), echo).await;
    let (channel, addr) = (channel(identity("n2")), peer.addr.to_string());
    let n1 = node("n1");
    // longer ones first: answers come in another order than questions
    let asks = (1..=40_u64).rev().map(|have| {
        let body = ControlBody::Map { have };
        let (channel, addr, n1) = (&channel, &addr, &n1);
        async move { (have, channel.ask(addr, Some(n1), body, SECOND * 5).await) }
    });
    for (have, answer) in futures_util::future::join_all(asks).await {
        let Ok(ControlAnswer::Consensus(text)) = answer else { panic!("{answer:?}") };
        assert_eq!(text, have.to_string());
    }
}

#[tokio::test]
async fn a_question_without_an_answer_says_what_is_known() {
    let peer = Node::start(Config::default(), echo).await;
    let (channel, addr) = (channel(identity("n2")), peer.addr.to_string());
    let map = |have| ControlBody::Map { have };
    let slow = channel.ask(&addr, None, map(5_000), Duration::from_millis(50)).await;
    assert!(matches!(&slow, Err(error @ AskError::Timeout { .. }) if !error.not_sent()));
    let other = channel.ask(&addr, Some(&node("n7")), map(0), SECOND).await;
    assert!(matches!(&other, Err(error @ AskError::OtherNode { .. }) if error.not_sent()));
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = channel.ask(&free.to_string(), None, map(0), SECOND).await;
    assert!(matches!(&nobody, Err(error @ AskError::Unreachable { .. }) if error.not_sent()));
    let fine = channel.ask(&addr, Some(&node("n1")), map(0), SECOND).await;
    assert!(matches!(fine, Ok(ControlAnswer::Map(None))), "the connection goes on");
}

#[tokio::test]
async fn large_questions_and_answers_pass() {
    let peer = Node::start(Config::default(), echo).await;
    let (channel, addr) = (channel(identity("n2")), peer.addr.to_string());
    let what = mainstay_protocol::message::ConsensusCall::Append;
    let asks = (0..8_u8).map(|byte| {
        let body = ControlBody::Consensus { what, body: Bytes::from(vec![byte; 4 << 20]) };
        channel.ask(&addr, None, body, SECOND * 20)
    });
    for (byte, answer) in (0..8_u8).zip(futures_util::future::join_all(asks).await) {
        let Ok(ControlAnswer::Consensus(body)) = answer else { panic!("{answer:?}") };
        assert!(body.len() == 4 << 20 && body.iter().all(|b| *b == byte));
    }
}

#[tokio::test]
async fn clients_may_only_ask_for_the_map() {
    let peer = Node::start(Config::default(), echo).await;
    let channel = channel(Arc::new(Identity::client("c".to_owned())));
    let addr = peer.addr.to_string();
    let map = channel.ask(&addr, None, ControlBody::Map { have: 0 }, SECOND).await;
    assert!(matches!(map, Ok(ControlAnswer::Map(None))));
    let what = mainstay_protocol::message::ConsensusCall::Vote;
    let vote = ControlBody::Consensus { what, body: Bytes::new() };
    let refused = channel.ask(&addr, None, vote, SECOND).await;
    assert!(matches!(refused, Err(AskError::Refused { .. })));
}

#[tokio::test]
async fn shard_state_passes_message_by_message() {
    let peer = Node::start(Config::default(), echo).await;
    let (config, addr) = (Config::default(), peer.addr.to_string());
    let from = identity("n2");
    let mut link =
        SnapshotLink::connect(&from, &config, &addr, node("n1"), SECOND * 20).await.unwrap();
    for byte in 0..3_u8 {
        let state = Bytes::from(vec![byte; 10 << 20]);
        assert_eq!(link.send(state).await.unwrap(), Bytes::from(vec![byte]));
    }
    assert!(matches!(link.send(Bytes::new()).await, Err(SendError::Refused(_))));
    let large = Bytes::from(vec![0; limits::FRAME_BYTES_MAX]);
    assert!(matches!(link.send(large).await, Err(SendError::Unsendable(_))));
    let state = Bytes::from(vec![5; limits::FRAME_BYTES_MAX - 64]);
    assert_eq!(link.send(state).await.unwrap(), Bytes::from(vec![5]), "it goes on");
}

/// One client sent 4,600 questions of 14 bytes in one piece and read nothing: all were answered
/// into memory, half a gigabyte of maps, before one byte was written.
#[tokio::test]
async fn questions_wait_while_their_answers_are_not_read() {
    const ASKED: u64 = 2_000;
    // more than both sockets hold together, and far less than all answers
    const STARTED_MAX: u64 = 1_000;
    let started = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let count = Arc::clone(&started);
    let answer = Bytes::from(vec![7; 64 << 10]);
    let control: ControlHandler = Arc::new(move |_, _| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(ControlAnswer::Consensus(answer.clone()))))
    });
    let peer = Node::of(Plan { control, ..Plan::default() }, echo).await;
    let (caller, addr) = (Identity::client("greedy".to_owned()), peer.addr.to_string());
    let (mut stream, _) =
        dial(&caller, &Config::default(), &addr, None, Purpose::Control).await.unwrap();
    let mut asked = Vec::new();
    for correlation in 0..ASKED {
        let request = ControlRequest { correlation, body: ControlBody::Map { have: 0 } };
        frame::encode(Tag::ControlRequest, &request, &mut asked).unwrap();
    }
    stream.write_all(&asked).await.unwrap();
    until(|| started.load(std::sync::atomic::Ordering::SeqCst) > 0).await;
    tokio::time::sleep(SECOND / 2).await;
    let begun = started.load(std::sync::atomic::Ordering::SeqCst);
    assert!(begun < STARTED_MAX, "{begun} of {ASKED} were answered, and none was read");

    for _ in 0..ASKED {
        let (tag, _) = frame::read_frame(&mut stream, 1 << 20).await.unwrap();
        assert_eq!(tag, Tag::ControlReply, "whoever reads gets everything");
    }
}

/// Askers give up long before a connection counts as dead, and their questions were forgotten with
/// them: a connection whose peer hung was used for ever, each question to its own timeout.
#[tokio::test]
async fn a_peer_that_never_answers_is_given_up() {
    let control: ControlHandler = Arc::new(|_, _| Box::pin(std::future::pending()));
    let peer = Node::of(Plan { control, ..Plan::default() }, echo).await;
    let (addr, limit) = (peer.addr.to_string(), SECOND / 5);
    let config = Config { write_timeout: limit, ..Config::default() };
    let runtime = tokio::runtime::Handle::current();
    let channel = ControlChannel::new(identity("n2"), config, runtime);
    let ask = |timeout| channel.ask(&addr, None, ControlBody::Map { have: 0 }, timeout);

    let mut ends = Vec::new();
    for _ in 0..40 {
        ends.push(ask(limit / 8).await);
    }
    let lost = ends.iter().filter(|end| matches!(end, Err(AskError::Lost { .. })));
    assert!(lost.count() > 0, "nobody waits as long as the limit, and it ends");

    let patient = ask(SECOND * 60).await;
    assert!(matches!(patient, Err(AskError::Lost { .. })), "somebody waits longer: {patient:?}");
}
