//! Whole copies, from one node to another.

use super::*;

/// A node that takes copies.
async fn receiver(copies: Copies) -> Node {
    let snapshots = Arc::new(move |from: Caller, message: Bytes| {
        let copies = copies.clone();
        let taken = async move {
            let (from, message) = pages::read(from, &message).map_err(|error| error.to_string())?;
            copies.take(from, message).await
        };
        let taken: futures_util::future::BoxFuture<'static, _> = Box::pin(taken);
        taken
    });
    Node::of(Plan { snapshots, ..Plan::default() }, echo).await
}

fn sender(state: State) -> CopyParts {
    CopyParts::new(state, identity("n2"), transport::Config::default())
}

fn copy_to(peer: &Node, base: Position) -> CopyOut {
    let (addr, to) = (peer.addr.to_string(), node("n1"));
    let log_time = LogTime(base.seq.0);
    CopyOut { shard: SHARD, epoch: EPOCH, base, log_time, to, addr }
}

/// What entry `seq` made of an entity: enough for several pages of a shard.
fn state_at(key: &str, seq: u64) -> String {
    format!("{key} at {seq}{}", ".".repeat(60_000))
}

const ENTITIES: u64 = 60;

fn key(n: u64) -> String {
    format!("k{n:02}")
}

fn states(seq: impl Fn(u64) -> u64) -> Vec<StateRow> {
    let each = (1..=ENTITIES).map(|n| (key(n), seq(n)));
    each.map(|(key, seq)| row(&key, seq, &state_at(&key, seq))).collect()
}

/// A lane that saves newer rows all the time, from the first one that is `due` on.
async fn go_on(state: State, stop: Arc<std::sync::atomic::AtomicBool>) {
    let mut seq = ENTITIES + 1;
    while !stop.load(Ordering::Relaxed) {
        seq += 1;
        let key = key(1 + seq * 7 % ENTITIES);
        let rows = vec![row(&key, seq, &state_at(&key, seq))];
        save(&state, rows, &[remembered(&format!("later {seq}"), seq)], seq).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_of_a_shard_that_serves_on_arrives_whole() {
    let (from, mut at) = (Rig::new(), Rig::new());
    save(&at.state(), vec![row("stale", 5, "of an earlier stay")], &[], 5).await;
    let early: Vec<_> = (1..=50).map(|n| remembered(&format!("early {n}"), n)).collect();
    save(&from.state(), states(|n| n), &early, ENTITIES).await;
    let room = Arc::new(Room::closed());
    let peer = receiver(CopyIn::new(at.state(), Arc::clone(&room))).await;
    let parts = sender(from.state());
    let copy = copy_to(&peer, base(ENTITIES));
    let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let sends = async {
        let sent = send(&parts, copy).await;
        stop.store(true, Ordering::Relaxed);
        sent
    };
    let serves = async {
        until(|| room.offers() == 1).await;
        // newer than the base, and before the first page
        let last = key(ENTITIES);
        let newer = vec![row(&last, ENTITIES + 1, &state_at(&last, ENTITIES + 1))];
        save(&from.state(), newer, &[], ENTITIES + 1).await;
        room.gate.add_permits(1);
        go_on(from.state(), Arc::clone(&stop)).await;
    };

    let (sent, ()) = tokio::join!(sends, serves);

    sent.unwrap();
    let arrived = room.arrived().pop().unwrap();
    assert_eq!(
        (arrived.shard, arrived.base, arrived.log_time),
        (SHARD, base(ENTITIES), LogTime(ENTITIES))
    );
    let records: BTreeMap<_, _> =
        arrived.dedup.into_iter().map(|record| (record.2.key.clone(), record)).collect();
    for record in early {
        assert_eq!(records.get(&record.2.key), Some(&record));
    }
    assert_eq!(load(&at.state(), "stale").await, None);
    check_states(&at.state()).await;
    let recovered = at.restart().shards.remove(&SHARD).unwrap();
    assert_eq!((recovered.applied, recovered.epoch), (Seq(ENTITIES), EPOCH));
    assert_eq!(recovered.dedup.len(), records.len());
    check_states(&at.state()).await;
}

/// Every entity is there as some entry made it, and one is newer than the base.
async fn check_states(state: &State) {
    let mut newer = 0;
    for n in 1..=ENTITIES {
        let stored = load(state, &key(n)).await.unwrap();
        assert!(stored.seq >= Seq(n));
        assert_eq!(stored.bytes, state_at(&key(n), stored.seq.0));
        newer += u64::from(stored.seq > Seq(ENTITIES));
    }
    assert!(newer > 0, "the shard served on");
}

#[tokio::test]
async fn a_copy_that_is_refused_changes_nothing() {
    let (from, mut at) = (Rig::new(), Rig::new());
    save(&from.state(), states(|n| n), &[], ENTITIES).await;
    save(&at.state(), vec![row("a", 70, "here already")], &[], 70).await;
    let room = Arc::new(Room::refusing());
    let peer = receiver(CopyIn::new(at.state(), Arc::clone(&room))).await;

    let sent = send(&sender(from.state()), copy_to(&peer, base(ENTITIES))).await;

    let Err(CopyError::Send(transport::snapshots::SendError::Refused(why))) = sent else {
        panic!("{sent:?}")
    };
    assert_eq!(why, ReceiveError::Refused.to_string());
    let offer = room.offers.lock().unwrap().pop().unwrap();
    assert_eq!((offer.from, offer.epoch, offer.base), (node("n2"), EPOCH, base(ENTITIES)));
    assert!(room.arrived().is_empty() && room.broken().is_empty());
    let recovered = at.restart().shards.remove(&SHARD).unwrap();
    assert_eq!(recovered.applied, Seq(70));
    assert_eq!(load(&at.state(), "a").await.unwrap().bytes, "here already");
}

/// Its rows would be as many as were sent: nobody at the other end could tell.
#[tokio::test]
async fn a_shard_that_is_dropped_while_it_is_copied_is_not_taken_for_whole() {
    let (from, mut at) = (Rig::new(), Rig::new());
    save(&from.state(), states(|n| n), &[], ENTITIES).await;
    let room = Arc::new(Room::closed());
    let peer = receiver(CopyIn::new(at.state(), Arc::clone(&room))).await;
    let parts = sender(from.state());
    let drops = async {
        until(|| room.offers() == 1).await;
        answered(|done| from.state().drop_shard(SHARD, done)).await.unwrap();
        room.gate.add_permits(1);
    };

    let (sent, ()) = tokio::join!(send(&parts, copy_to(&peer, base(ENTITIES))), drops);

    assert!(matches!(sent, Err(CopyError::Replaced)), "{sent:?}");
    assert!(room.arrived().is_empty());
    assert_eq!(at.stored_after_restart(), []);
}

#[test]
fn what_was_saved_in_a_later_epoch_or_not_up_to_the_base_is_no_copy() {
    let reason = Reason::Standby { base: base(9) };
    let head = Head { shard: SHARD, copy: 1, epoch: EPOCH, reason };
    let at = |applied, epoch| Some(ShardMark { epoch: Epoch(epoch), ..mark(applied) });
    let whole = |mark, seq| check(mark, &head, base(seq)).is_ok();
    assert!(whole(at(9, 3), 9) && whole(at(12, 2), 9));
    assert!(!whole(at(9, 4), 9), "this node is not the primary that it was");
    assert!(!whole(at(8, 3), 9), "the lane did not save it before");
    assert!(!whole(None, 9));
    assert!(whole(None, 0), "a shard that nothing was ever saved of");
}

#[tokio::test]
async fn so_many_copies_have_their_turn_at_one_time_and_no_more() {
    let (from, at) = (Rig::new(), Rig::new());
    let room = Arc::new(Room::closed());
    let peer = receiver(CopyIn::new(at.state(), Arc::clone(&room))).await;
    let parts = sender(from.state());
    let sends = (10..15).map(|shard| {
        let copy = CopyOut { shard: ShardId(shard), ..copy_to(&peer, Position::default()) };
        let parts = &parts;
        async move {
            let _turn = parts.turn().await;
            send(parts, copy).await
        }
    });
    let watches = async {
        until(|| room.offers() == COPIES_OUT_MAX).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(room.offers(), COPIES_OUT_MAX);
        room.gate.add_permits(5);
    };

    let (sent, ()) = tokio::join!(futures_util::future::join_all(sends), watches);

    assert!(sent.iter().all(Result::is_ok), "{sent:?}");
    assert_eq!(room.arrived().len(), 5);
}

#[tokio::test]
async fn a_copy_to_nobody_says_so() {
    let from = Rig::new();
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let copy = CopyOut {
        shard: SHARD,
        epoch: EPOCH,
        base: Position::default(),
        log_time: LogTime(0),
        to: node("n1"),
        addr: free.to_string(),
    };
    let sent = send(&sender(from.state()), copy).await;
    assert!(matches!(&sent, Err(error @ CopyError::Dial(_)) if !error.is_hopeless()), "{sent:?}");
}
