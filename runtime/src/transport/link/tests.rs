//! A link without its driver, against an owner that keeps its own account.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use mainstay_protocol::credits::{Credit, Credits};
use mainstay_protocol::id::{
    BootId, DiskId, Epoch, Key, KindId, MethodId, RequestId, Seq, ShardId, Token,
};
use mainstay_protocol::limits;
use mainstay_protocol::message::{Mode, Reply, Tag, Window};
use proptest::prelude::*;

use std::time::Duration;

use super::super::Config;
use super::super::handshake::Identity;
use super::*;

const WINDOW: Window = Window { messages: 6, bytes: 2_000 };

#[derive(Debug, Clone, Copy)]
enum Step {
    Call {
        depth: usize,
        bytes: usize,
        refuse: bool,
    },
    Poll(prop::sample::Index),
    Drop(prop::sample::Index),
    Open,
    Write,
    Reply(prop::sample::Index),
    Expire,
    /// With so many bytes of what waits taken by the system.
    Fail(prop::sample::Index),
}

fn step() -> impl Strategy<Value = Step> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0_usize..3, 0_usize..900, any::<bool>())
            .prop_map(|(depth, bytes, refuse)| Step::Call { depth, bytes, refuse }),
        4 => at().prop_map(Step::Poll),
        2 => at().prop_map(Step::Drop),
        3 => Just(Step::Open),
        4 => Just(Step::Write),
        4 => at().prop_map(Step::Reply),
        1 => Just(Step::Expire),
        1 => at().prop_map(Step::Fail),
    ]
}

fn request(number: u64, depth: usize, bytes: usize, refuse: bool) -> Request {
    Request {
        correlation: 0,
        id: RequestId { caller: 0, number },
        shard: ShardId(0),
        epoch: Epoch(1),
        kind: KindId(1),
        key: Key::new("k").unwrap(),
        method: MethodId(1),
        mode: Mode::Command,
        pressure: if refuse { Pressure::Refuse } else { Pressure::Wait },
        remaining_us: 0,
        idempotency: None,
        chain: vec![9; depth],
        attempt: 0,
        trace: None,
        from_kind: None,
        freshness: None,
        payload: Bytes::from(vec![0; bytes]),
        if_version: None,
    }
}

/// The owner: what it received, and the same account of the window as the real one keeps.
struct Owner {
    credits: Credits,
    outstanding: BTreeMap<u64, Credit>,
    received: BTreeSet<u64>,
}

impl Owner {
    fn new() -> Self {
        let credits = Credits::new(WINDOW);
        Self { credits, outstanding: BTreeMap::new(), received: BTreeSet::new() }
    }

    /// A connection's end; what was received stays received.
    fn disconnect(&mut self) {
        self.credits = Credits::new(WINDOW);
        self.outstanding.clear();
    }

    fn receive(&mut self, bytes: &[u8]) {
        let mut buffer = frame::FrameBuffer::default();
        buffer.extend(bytes);
        while let Some((tag, body)) = buffer.next_frame().unwrap() {
            if tag == Tag::Cancel {
                continue;
            }
            let request = frame::decode_request(body).unwrap();
            let cost = u64::from(frame::cost(&request));
            let credit = self.credits.try_take(limits::CALL_CHAIN_MAX, cost);
            let credit = credit.expect("a link never oversteps its window");
            assert!(self.outstanding.insert(request.correlation, credit).is_none());
            assert!(self.received.insert(request.id.number), "sent once");
        }
    }
}

struct World {
    link: Link,
    owner: Owner,
    calls: Vec<(u64, LinkCall)>,
    results: BTreeSet<u64>,
    written: u64,
    next: u64,
    // holds the drivers that are started, and never polls them
    _runtime: tokio::runtime::Runtime,
}

impl World {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let node = |name| NodeId::new(name).unwrap();
        let disk = DiskId::from_bytes([1; 16]);
        let identity = Arc::new(Identity::node(node("n2"), disk, BootId(1), None));
        let config = Config { waiting_max: 4, ..Config::default() };
        let links = super::super::links::Links::new(identity, config, runtime.handle().clone());
        let link = links.link(&node("n1"), "127.0.0.1:1", 0);
        Self {
            link,
            owner: Owner::new(),
            calls: Vec::new(),
            results: BTreeSet::new(),
            written: 0,
            next: 0,
            _runtime: runtime,
        }
    }

    fn phase_is(&self, wanted: fn(&Phase) -> bool) -> bool {
        wanted(&self.link.0.lock().phase)
    }

    fn poll(&mut self, at: usize) {
        let (number, call) = &mut self.calls[at];
        let mut context = Context::from_waker(Waker::noop());
        if let Poll::Ready(result) = Pin::new(call).poll(&mut context) {
            let number = *number;
            self.judge(number, &result);
            assert!(self.results.insert(number), "answered once");
            drop(self.calls.swap_remove(at));
        }
    }

    fn judge(&self, number: u64, result: &Result<Success, Failure>) {
        let refused = matches!(
            result,
            Err(Failure::Overloaded { .. }
                | Failure::Malformed { .. }
                | Failure::Deadline { outcome: Outcome::NotExecuted }
                | Failure::Unavailable { outcome: Outcome::NotExecuted, .. })
        );
        let received = self.owner.received.contains(&number);
        assert!(!(refused && received), "a call that was received is not called unexecuted");
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Call { depth, bytes, refuse } => {
                let request = request(self.next, depth, bytes, refuse);
                let deadline = clock::now() + Duration::from_secs(3_600);
                self.calls.push((self.next, self.link.call(request, deadline)));
                self.next += 1;
                self.poll(self.calls.len() - 1);
            }
            Step::Poll(at) if !self.calls.is_empty() => self.poll(at.index(self.calls.len())),
            Step::Drop(at) if !self.calls.is_empty() => {
                drop(self.calls.swap_remove(at.index(self.calls.len())));
            }
            Step::Open if self.phase_is(|phase| matches!(phase, Phase::Connecting)) => {
                wake_all(self.link.0.lock().open(Credits::new(WINDOW), clock::now()));
                self.written = 0;
            }
            Step::Write => self.write(),
            Step::Reply(at) if !self.owner.outstanding.is_empty() => {
                self.reply(at.index(self.owner.outstanding.len()));
            }
            Step::Expire => {
                let late = clock::now() + Duration::from_secs(7_200);
                wake_all(self.link.0.lock().expire(late));
            }
            Step::Fail(at)
                if !self.phase_is(|phase| matches!(phase, Phase::Idle | Phase::Backoff { .. })) =>
            {
                self.fail(at);
            }
            Step::Poll(_) | Step::Drop(_) | Step::Open | Step::Reply(_) | Step::Fail(_) => {}
        }
    }

    fn write(&mut self) {
        let mut bytes = Vec::new();
        self.link.0.lock().take_out(&mut bytes);
        self.written += bytes.len() as u64;
        self.owner.receive(&bytes);
    }

    fn reply(&mut self, nth: usize) {
        let correlation = *self.owner.outstanding.keys().nth(nth).unwrap();
        let credit = self.owner.outstanding.remove(&correlation).unwrap();
        self.owner.credits.give_back(credit);
        let token = Token { shard: ShardId(0), epoch: Epoch(1), seq: Seq(1) };
        let success = Success { value: Bytes::new(), token, replayed: false, place: None };
        let mut replies = vec![Reply { correlation, result: Ok(success) }];
        let wakers = self.link.0.lock().settle(&mut replies, clock::now());
        wake_all(wakers.expect("the reply of an outstanding request"));
    }

    fn fail(&mut self, at: prop::sample::Index) {
        let mut bytes = Vec::new();
        self.link.0.lock().take_out(&mut bytes);
        let part = at.index(bytes.len() + 1);
        self.owner.receive(&bytes[..part]);
        self.written += part as u64;
        let wakers = self.link.0.lock().fail("test", self.written, clock::now());
        wake_all(wakers);
        self.owner.disconnect();
        self.written = 0;
        // backoff is time, and not what is tested
        self.link.0.lock().phase = Phase::Idle;
    }

    /// Everything is answered; then nothing may be left.
    fn finish(mut self) {
        self.step(Step::Open);
        for _ in 0..1_000 {
            for at in (0..self.calls.len()).rev() {
                self.poll(at);
            }
            self.write();
            while !self.owner.outstanding.is_empty() {
                self.reply(0);
            }
            if self.calls.is_empty() {
                break;
            }
        }
        assert!(self.calls.is_empty(), "every call came to an end");
        let state = self.link.0.lock();
        assert_eq!(state.slots.len(), 0, "no slot is left");
        assert!(state.nested.is_empty() && state.plain.is_empty());
        if let Phase::Open(credits) = &state.phase {
            assert_eq!(credits.taken(), Window { messages: 0, bytes: 0 });
        }
    }
}

/// 400 cases, or what `PROPTEST_CASES` says when it is set.
fn cases() -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(), // has read it
        None => ProptestConfig::with_cases(400),
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn every_call_ends_once_within_the_window_and_no_promise_is_broken(
        steps in proptest::collection::vec(step(), 0..120),
    ) {
        let mut world = World::new();
        for step in steps {
            world.step(step);
        }
        world.finish();
    }
}
