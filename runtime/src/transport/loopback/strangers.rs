//! Who is refused at the door, and how.

use super::*;

#[tokio::test]
async fn strangers_are_refused_with_the_reason() {
    let peer = Node::start(Config::default(), echo).await;
    let addr = peer.addr.to_string();
    let purpose = Purpose::Requests { lane: 0 };
    let config = Config::default();
    let disk = DiskId::from_bytes([1; 16]);
    let other = Some(ClusterId::from_bytes([9; 16]));
    let stranger = Identity::node(node("n9"), disk, BootId(1), other);
    let refused = dial(&stranger, &config, &addr, None, purpose).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Cluster { .. }, .. })));
    let refused = dial(&identity("n2"), &config, &addr, Some(node("n3")), purpose).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Node { .. }, .. })));
    let lane = Purpose::Requests { lane: 1 };
    let refused = dial(&identity("n2"), &config, &addr, None, lane).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Lane { .. }, .. })));
}

async fn first_frame(addr: SocketAddr, bytes: &[u8]) -> Option<Reject> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    stream.shutdown().await.unwrap();
    match frame::read_frame(&mut stream, 4096).await {
        Ok((Tag::Reject, body)) => Some(frame::decode(&body).unwrap()),
        Ok((tag, _)) => panic!("{tag:?} to a stranger"),
        Err(_) => None,
    }
}

#[tokio::test]
async fn a_version_of_the_future_and_a_wrong_magic_are_told_apart() {
    let peer = Node::start(Config::default(), echo).await;
    let hello = |magic, wire: (u16, u16)| {
        let hello = Hello {
            magic,
            wire_min: wire.0,
            wire_max: wire.1,
            cluster: None,
            caller: mainstay_protocol::message::Caller::Client { name: "c".to_owned() },
            to: None,
            purpose: Purpose::Control,
        };
        let mut out = Vec::new();
        frame::encode(Tag::Hello, &hello, &mut out).unwrap();
        out
    };
    let future = first_frame(peer.addr, &hello(MAGIC, (1000, 1001))).await;
    assert!(matches!(future, Some(Reject::Version { .. })));
    let foreign = first_frame(peer.addr, &hello(*b"ABCD", (1, 1))).await;
    assert!(matches!(foreign, Some(Reject::Malformed { .. })));
}

#[tokio::test]
async fn random_bytes_on_the_port_harm_nobody() {
    let peer = Node::start(Config::default(), echo).await;
    let mut random = fastrand::Rng::with_seed(42);
    for length in 0..200 {
        let bytes: Vec<u8> = (0..length).map(|_| random.u8(..)).collect();
        let mut stream = TcpStream::connect(peer.addr).await.unwrap();
        drop(stream.write_all(&bytes).await);
        drop(stream.shutdown().await);
        drop(stream.read(&mut [0; 512]).await);
    }
    let http = first_frame(peer.addr, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await;
    assert!(matches!(http, None | Some(Reject::Malformed { .. })));
    // behind a proper handshake as well
    let (mut stream, _) = raw(peer.addr).await;
    stream.write_all(&[9, 0, 0, 0, 10, 1, 2, 3, 4, 5, 6, 7, 8]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "cut");
    let links = links_with(small(8));
    let link = links.link(&node("n1"), &peer.addr.to_string(), 0);
    assert!(link.call(request(Bytes::new()), soon()).await.is_ok());
}

#[tokio::test]
async fn a_handshake_that_does_not_end_is_cut() {
    let config = Config { handshake_timeout: Duration::from_millis(100), ..Config::default() };
    let peer = Node::start(config, echo).await;
    let mut stream = TcpStream::connect(peer.addr).await.unwrap();
    stream.write_all(&[50, 0]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 16]).await.unwrap_or(0), 0, "cut");
}

#[tokio::test]
async fn connections_beyond_the_limit_are_told_that_the_node_is_busy() {
    let peer = Node::start(Config { connections: 2, ..Config::default() }, echo).await;
    let first = raw(peer.addr).await;
    let _second = raw(peer.addr).await;
    let (caller, addr) = (Identity::client("third".to_owned()), peer.addr.to_string());
    let config = Config::default();
    let refused = dial(&caller, &config, &addr, None, Purpose::Control).await;
    assert!(matches!(refused, Err(DialError::Rejected { reject: Reject::Busy { .. }, .. })));
    drop(first);
    let mut again = dial(&caller, &config, &addr, None, Purpose::Control).await;
    for _ in 0..200 {
        if again.is_ok() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
        again = dial(&caller, &config, &addr, None, Purpose::Control).await;
    }
    assert!(again.is_ok(), "a place came free");
}
