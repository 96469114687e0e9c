//! Appends and answers between two nodes: in order, together, and over again after a loss.

use mainstay_protocol::entry::{Entry, Op, SegmentWriter};
use mainstay_protocol::replication::wire;
use mainstay_protocol::replication::{Answer, Append, Position, Told};
use mainstay_protocol::time::LogTime;

use super::feeds::{Appended, Ended, Event, Feeder, Replicator, SendError};
use super::*;

const DISK: DiskId = DiskId::from_bytes([3; 16]);

fn config() -> Config {
    Config { silence_max: Duration::from_millis(400), ..small(8) }
}

fn append(number: u64, bytes: usize) -> Append {
    let shard = ShardId(u32::try_from(number % 16).unwrap());
    let mut writer = SegmentWriter::new(shard, Epoch(1), Seq(number));
    let entity = mainstay_protocol::id::EntityId { kind: KindId(1), key: Key::new("k").unwrap() };
    let change = mainstay_protocol::entry::Change::Put(vec![7; bytes].into());
    let op = Op::Turn { entity, change, dedup: None };
    writer.push(&Entry { seq: Seq(number + 1), log_time: LogTime(1), op });
    Append {
        shard,
        epoch: Epoch(1),
        version: 1,
        sent_at: number,
        lease: false,
        prev: Position { epoch: Epoch(1), seq: Seq(number) },
        segments: vec![writer.take().unwrap()],
        committed: Seq(number),
    }
}

fn answer(append: &Append) -> Answer {
    let what = Told::Heard { sent_at: append.sent_at, promised: false };
    Answer { shard: append.shard, epoch: append.epoch, disk: DISK, what }
}

fn replicator(config: Config) -> (Replicator, mpsc::Receiver<Event>) {
    let (events, told) = mpsc::channel(16);
    let runtime = tokio::runtime::Handle::current();
    (Replicator::new(identity("n2"), config, runtime, events), told)
}

async fn fed(addr: &str, config: Config) -> (Node, mpsc::Receiver<Appended>) {
    let (appended, inbox) = mpsc::channel(4);
    let plan = Plan { addr: addr.to_owned(), config, appended, ..Plan::default() };
    (Node::of(plan, echo).await, inbox)
}

/// The next event that is no failed attempt.
async fn next(told: &mut mpsc::Receiver<Event>) -> Event {
    let event = async {
        loop {
            match told.recv().await.expect("a replicator that lives") {
                Event::Unreachable { .. } => {}
                event => return event,
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(20), event).await.expect("an event")
}

async fn connected(told: &mut mpsc::Receiver<Event>) {
    let event = next(told).await;
    assert!(matches!(event, Event::Connected { boot: BootId(1), .. }), "{event:?}");
}

async fn lost(told: &mut mpsc::Receiver<Event>) -> Ended {
    match next(told).await {
        Event::Lost { why, .. } => why,
        event => panic!("{event:?}"),
    }
}

#[tokio::test]
async fn appends_and_answers_come_in_order_and_share_frames() {
    const COUNT: u64 = 10_000;
    let (peer, mut inbox) = fed("127.0.0.1:0", config()).await;
    let (replicator, mut told) = replicator(config());
    assert!(matches!(
        replicator.send(&node("n1"), append(0, 1)),
        Err(SendError::NotConnected { .. })
    ));
    replicator.connect(&node("n1"), &peer.addr.to_string());
    connected(&mut told).await;
    let standby = tokio::spawn(async move {
        let (mut count, mut frames) = (0, 0);
        while count < COUNT {
            let appended = inbox.recv().await.unwrap();
            let me =
                Feeder { node: node("n2"), disk: DiskId::from_bytes([1; 16]), boot: BootId(1) };
            assert_eq!(*appended.from, me);
            frames += 1;
            for wire::Arrived { append: arrived, entries } in &appended.appends {
                assert_eq!(*arrived, append(count, 10));
                assert_eq!(entries[..], arrived.segments[0].entries().unwrap()[..]);
                appended.answers.send(answer(arrived));
                count += 1;
            }
        }
        frames
    });
    for number in 0..COUNT {
        replicator.send(&node("n1"), append(number, 10)).unwrap();
        if number % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let (mut count, mut batches) = (0, 0);
    while count < COUNT {
        let Event::Answers { answers, .. } = next(&mut told).await else { panic!("lost") };
        batches += 1;
        for told in answers {
            assert_eq!(told, answer(&append(count, 10)));
            count += 1;
        }
    }
    let frames = standby.await.unwrap();
    assert!(frames < COUNT / 10, "{frames} frames of appends");
    assert!(batches < COUNT / 10, "{batches} frames of answers");
    assert_eq!(replicator.queued_bytes(&node("n1")), 0);
    replicator.close();
    assert!(matches!(lost(&mut told).await, Ended::Forgotten));
    replicator.connect(&node("n1"), &peer.addr.to_string());
    connected(&mut told).await;
}

#[tokio::test]
async fn a_peer_that_restarts_is_lost_and_found() {
    let (first, mut inbox) = fed("127.0.0.1:0", config()).await;
    let addr = first.addr.to_string();
    let (replicator, mut told) = replicator(config());
    replicator.connect(&node("n1"), &addr);
    connected(&mut told).await;
    replicator.send(&node("n1"), append(1, 10)).unwrap();
    let old = inbox.recv().await.unwrap();
    first.kill().await;
    assert!(matches!(lost(&mut told).await, Ended::ByPeer | Ended::Io(_)));
    let refused = replicator.send(&node("n1"), append(2, 10));
    assert_eq!(refused, Err(SendError::NotConnected { node: node("n1") }));
    let (_second, mut inbox) = fed(&addr, config()).await;
    connected(&mut told).await;
    // Nobody hears what is answered on the connection before.
    old.answers.send(answer(&append(1, 10)));
    replicator.send(&node("n1"), append(3, 10)).unwrap();
    let appended = inbox.recv().await.unwrap();
    assert_eq!(appended.appends[0].append, append(3, 10));
    appended.answers.send(answer(&append(3, 10)));
    let Event::Answers { answers, .. } = next(&mut told).await else { panic!("lost") };
    assert_eq!(answers, [answer(&append(3, 10))]);
}

/// Accepts one connection, shakes hands, and does nothing more.
async fn stopped() -> (SocketAddr, tokio::task::JoinHandle<TcpStream>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let accepting = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        frame::read_frame(&mut stream, 4096).await.unwrap();
        let welcome = Welcome {
            wire: 1,
            cluster: Some(CLUSTER),
            node: node("n1"),
            boot: BootId(1),
            lanes: 1,
            window: Config::default().window,
            map_version: 0,
        };
        let mut out = Vec::new();
        frame::encode(Tag::Welcome, &welcome, &mut out).unwrap();
        stream.write_all(&out).await.unwrap();
        stream
    });
    (addr, accepting)
}

#[tokio::test]
async fn a_peer_that_hears_nothing_is_cut() {
    let (addr, accepting) = stopped().await;
    let (replicator, mut told) = replicator(config());
    replicator.connect(&node("n1"), &addr.to_string());
    connected(&mut told).await;
    let _stream = accepting.await.unwrap();
    replicator.send(&node("n1"), append(1, 10)).unwrap();
    assert!(matches!(lost(&mut told).await, Ended::Silent));
}

#[tokio::test]
async fn what_waits_for_a_stopped_peer_has_a_bound() {
    let (addr, accepting) = stopped().await;
    let silence_max = Duration::from_secs(4);
    let (replicator, mut told) =
        replicator(Config { append_queue_bytes: 4 << 20, silence_max, ..config() });
    replicator.connect(&node("n1"), &addr.to_string());
    connected(&mut told).await;
    let _stream = accepting.await.unwrap();
    let mut refused = None;
    for number in 0..1_000 {
        refused = replicator.send(&node("n1"), append(number, 1 << 20)).err();
        assert!(replicator.queued_bytes(&node("n1")) <= 4 << 20);
        if refused.is_some() {
            break;
        }
        tokio::task::yield_now().await;
    }
    assert!(matches!(refused, Some(SendError::Overflow { .. })), "{refused:?}");
    assert_eq!(replicator.queued_bytes(&node("n1")), 0, "nothing of it is kept");
    assert!(matches!(lost(&mut told).await, Ended::Overflow { .. }));
}

#[tokio::test]
async fn a_standby_that_takes_its_time_is_read_no_further_and_not_cut() {
    let config = Config { append_room_bytes: 1 << 20, ..config() };
    let (peer, mut inbox) = fed("127.0.0.1:0", config.clone()).await;
    let (replicator, mut told) = replicator(config);
    replicator.connect(&node("n1"), &peer.addr.to_string());
    connected(&mut told).await;
    for number in 0..40 {
        replicator.send(&node("n1"), append(number, 1 << 20)).unwrap();
    }
    let held = inbox.recv().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(inbox.try_recv().is_err(), "the room is taken");
    assert!(told.try_recv().is_err(), "and the connection stays");
    assert!(replicator.queued_bytes(&node("n1")) > 0);
    drop(held);
    for _ in 1..40 {
        drop(inbox.recv().await.unwrap());
    }
    assert_eq!(replicator.queued_bytes(&node("n1")), 0);
}

#[tokio::test]
async fn strangers_feed_nobody() {
    let (peer, _inbox) = fed("127.0.0.1:0", config()).await;
    let addr = peer.addr.to_string();
    // The address belongs to another node now.
    let (replicator, mut told) = replicator(config());
    replicator.connect(&node("n7"), &addr);
    let event = told.recv().await.unwrap();
    let Event::Unreachable { error: DialError::Rejected { reject, .. }, .. } = event else {
        panic!("{event:?}");
    };
    assert_eq!(reject, Reject::Node { is: node("n1"), meant: node("n7") });
    let purpose = Purpose::Replication;
    let client = Identity::client("shop".to_owned());
    let refused = dial(&client, &config(), &addr, None, purpose).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Malformed { .. }, .. })));
    let other = Some(ClusterId::from_bytes([9; 16]));
    let stranger = Identity::node(node("n2"), DISK, BootId(1), other);
    let refused = dial(&stranger, &config(), &addr, None, purpose).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Cluster { .. }, .. })));
}

/// Whether a node that was sent these bytes on a replication connection cuts it.
async fn is_cut(peer: &Node, bytes: &[u8]) -> bool {
    let me = identity("n2");
    let addr = peer.addr.to_string();
    let (mut stream, _) = dial(&me, &config(), &addr, None, Purpose::Replication).await.unwrap();
    // It may be cut before everything is written.
    drop(stream.write_all(bytes).await);
    let mut came = Vec::new();
    let end = tokio::time::timeout(Duration::from_secs(5), stream.read_to_end(&mut came)).await;
    end.is_ok() && came.is_empty()
}

#[tokio::test]
async fn garbage_and_what_is_too_large_are_cut() {
    let (peer, mut inbox) = fed("127.0.0.1:0", config()).await;
    let mut random = fastrand::Rng::with_seed(7);
    for length in 5..50 {
        let mut bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        bytes[..5].copy_from_slice(&[length - 4, 0, 0, 0, Tag::Appends as u8]);
        assert!(is_cut(&peer, &bytes).await, "{bytes:?}");
    }
    let large = u32::try_from(mainstay_protocol::limits::FRAME_BYTES_MAX + 1).unwrap();
    let large = [&large.to_le_bytes()[..], &[Tag::Appends as u8]].concat();
    assert!(is_cut(&peer, &large).await, "a frame over the limit");
    let mut lie = append(4, 10);
    lie.segments[0].last = Seq(9);
    let mut frame = Vec::new();
    let put = |out: &mut Vec<u8>| wire::encode_appends([&lie], out);
    frame::encode_with(Tag::Appends, &mut frame, put).unwrap();
    assert!(is_cut(&peer, &frame).await, "a lie about places");
    let mut answers = Vec::new();
    let put = |out: &mut Vec<u8>| wire::encode_answers(0, &[], out);
    frame::encode_with(Tag::Answers, &mut answers, put).unwrap();
    assert!(is_cut(&peer, &answers).await, "answers to nothing");
    assert!(inbox.try_recv().is_err(), "nothing of it was handed over");
    // What may not be sent is not sent, and harms nobody.
    let (replicator, mut told) = replicator(config());
    replicator.connect(&node("n1"), &peer.addr.to_string());
    connected(&mut told).await;
    lie.segments[0].bytes = vec![1; mainstay_protocol::limits::SEGMENT_BYTES_MAX + 1].into();
    let refused = replicator.send(&node("n1"), lie);
    assert!(matches!(refused, Err(SendError::Unsendable(wire::EncodeError::Size { .. }))));
    replicator.send(&node("n1"), append(1, 10)).unwrap();
    assert_eq!(inbox.recv().await.unwrap().appends[0].append, append(1, 10));
}

#[tokio::test]
async fn a_peer_that_answers_garbage_is_cut() {
    let (addr, accepting) = stopped().await;
    let (replicator, mut told) = replicator(config());
    replicator.connect(&node("n1"), &addr.to_string());
    connected(&mut told).await;
    let mut stream = accepting.await.unwrap();
    let mut out = Vec::new();
    let put = |out: &mut Vec<u8>| wire::encode_answers(1, &[], out);
    frame::encode_with(Tag::Answers, &mut out, put).unwrap();
    stream.write_all(&out).await.unwrap();
    assert!(matches!(lost(&mut told).await, Ended::Heard { heard: 1, sent: 0 }));
}
