//! The feeding end of replication connections: one task per peer, from the first wish for a
//! connection until the peer is forgotten.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mainstay_protocol::backoff::{self, Backoff};
use mainstay_protocol::id::NodeId;
use mainstay_protocol::message::{Purpose, Tag};
use mainstay_protocol::replication::Append;
use mainstay_protocol::replication::wire::{self, Answers};
use mainstay_protocol::time::Instant;
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, mpsc};
use tokio::time::MissedTickBehavior;

use super::super::frame;
use super::super::handshake::dial;
use super::super::meters::{self, Class, ConnectionMeters, Direction, ReplicationMeters};
use super::halves::{Meters, Reading, write};
use super::{Config, Ended, Event, SendError, Set};
use crate::chain::chain;
use crate::clock;

/// Bytes from which on a frame takes no further append.
const FRAME_BYTES_TARGET: usize = 1 << 20;

/// A peer and what waits for it.
#[derive(Debug)]
pub(super) struct Line {
    pub(super) node: NodeId,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    addr: String,
    wanted: bool,
    open: bool,
    /// What was queued when it became too much.
    overflow: Option<usize>,
    queue: VecDeque<(Append, usize)>,
    bytes: usize,
}

impl Line {
    pub(super) fn new(node: NodeId, addr: String) -> Self {
        let queue = VecDeque::new();
        let state = State { addr, wanted: true, open: false, overflow: None, queue, bytes: 0 };
        Self { node, state: Mutex::new(state), changed: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn want(&self, addr: &str) {
        let mut state = self.lock();
        state.wanted = true;
        if state.addr != addr {
            addr.clone_into(&mut state.addr);
            self.changed.notify_one();
        }
    }

    pub(super) fn forget(&self) {
        self.lock().wanted = false;
        self.changed.notify_one();
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.lock().wanted
    }

    pub(super) fn queued_bytes(&self) -> usize {
        self.lock().bytes
    }

    pub(super) fn send(
        &self,
        append: Append,
        bytes: usize,
        bytes_max: usize,
    ) -> Result<(), SendError> {
        let node = || self.node.clone();
        let mut state = self.lock();
        if !state.open {
            return Err(SendError::NotConnected { node: node() });
        }
        let queued = state.bytes + bytes;
        if queued > bytes_max {
            state.close();
            state.overflow = Some(queued);
            self.changed.notify_one();
            return Err(SendError::Overflow { node: node(), bytes: queued });
        }
        state.bytes = queued;
        state.queue.push_back((append, bytes));
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Why the connection has to end, if it has to.
    fn check(&self) -> Result<(), Ended> {
        let state = self.lock();
        match state.overflow {
            Some(bytes) => Err(Ended::Overflow { bytes }),
            None if !state.wanted => Err(Ended::Forgotten),
            None => Ok(()),
        }
    }

    /// Waits until the peer is somewhere else, or not wanted.
    async fn moved(&self, addr: &str) {
        loop {
            {
                let state = self.lock();
                if !state.wanted || state.addr != addr {
                    return;
                }
            }
            self.changed.notified().await;
        }
    }
}

impl State {
    fn open(&mut self) {
        self.close();
        self.open = true;
        self.overflow = None;
    }

    fn close(&mut self) {
        self.open = false;
        self.queue = VecDeque::new();
        self.bytes = 0;
    }

    /// The appends of the next frame.
    fn take(&mut self) -> Vec<Append> {
        let mut taken = Vec::new();
        let mut sum = 0;
        while let Some((_, bytes)) = self.queue.front() {
            sum += bytes;
            if sum > FRAME_BYTES_TARGET && !taken.is_empty() {
                break;
            }
            let (append, bytes) = self.queue.pop_front().expect("looked at above");
            self.bytes -= bytes;
            taken.push(append);
        }
        taken
    }
}

/// Connects, converses, and connects again, until nobody wants the peer.
pub(super) async fn run(set: Arc<Set>, line: Arc<Line>) {
    let Config { backoff_base: base, backoff_max: cap, .. } = set.config;
    let mut backoff = Backoff::new(backoff::Config { base, cap });
    loop {
        if !line.is_wanted() && set.let_go(&line) {
            return;
        }
        let addr = line.lock().addr.clone();
        let event = match connection(&set, &line, &addr, &mut backoff).await {
            Ok(why) => Event::Lost { node: line.node.clone(), why },
            Err(error) => {
                tracing::debug!(peer = %line.node, reason = chain(&error), "no replication");
                Event::Unreachable { node: line.node.clone(), error }
            }
        };
        if set.events.send(event).await.is_err() {
            line.forget();
            continue;
        }
        let delay = backoff.handle_failed(fastrand::u64(..));
        // Either ends the wait.
        drop(tokio::time::timeout(delay, line.moved(&addr)).await);
    }
}

/// One connection, from its handshake to its end.
async fn connection(
    set: &Set,
    line: &Line,
    addr: &str,
    backoff: &mut Backoff,
) -> Result<Ended, super::DialError> {
    let (config, node) = (&set.config, &line.node);
    let dialed = dial(&set.identity, config, addr, Some(node.clone()), Purpose::Replication);
    let (stream, welcome) = dialed.await?;
    line.lock().open();
    let connected = Event::Connected { node: node.clone(), boot: welcome.boot };
    let (ended, heard) = match set.events.send(connected).await {
        Ok(()) => converse(set, line, stream).await,
        Err(_) => (Ended::Forgotten, 0),
    };
    line.lock().close();
    if heard > 0 {
        backoff.handle_succeeded();
    }
    meters::cut(ended.word());
    tracing::debug!(peer = %node, reason = chain(&ended), "a replication connection ended");
    Ok(ended)
}

/// Why it ended, and how many frames the peer heard before.
async fn converse(set: &Set, line: &Line, stream: TcpStream) -> (Ended, u64) {
    let config = &set.config;
    let meters = Meters {
        connection: ConnectionMeters::new(Class::Answer, Class::Append),
        replication: ReplicationMeters::new("sent", line.node.as_str()),
    };
    let (reader, writer) = stream.into_split();
    let owed = Mutex::new(Owed::default());
    let reading = Reading::new(reader, Tag::Answers, config, &meters);
    let listening = Listening { node: &line.node, events: &set.events, owed: &owed };
    let ended = tokio::select! {
        biased;
        ended = listening.read_answers(reading) => ended,
        ended = write_appends(writer, line, config, (&meters, &owed)) => ended,
        ended = watch(line, &owed, config.silence_max) => ended,
    };
    let heard = lock(&owed).heard;
    match ended {
        Ok(never) => match never {},
        // What this side did comes first: the rest may follow from it.
        Err(ended) => (line.check().err().unwrap_or(ended), heard),
    }
}

type Never = std::convert::Infallible;

/// Frames that the peer has not heard.
#[derive(Debug, Default)]
struct Owed {
    sent: u64,
    heard: u64,
    since: Option<Instant>,
    /// This side does not read now: nothing can be said about the peer.
    deaf: bool,
}

impl Owed {
    fn handle_sent(&mut self, now: Instant) {
        self.sent += 1;
        self.since.get_or_insert(now);
    }

    fn handle_heard(&mut self, heard: u64, now: Instant) -> Result<(), Ended> {
        if heard > self.sent || heard < self.heard {
            return Err(Ended::Heard { heard, sent: self.sent });
        }
        self.heard = heard;
        self.since = (heard < self.sent).then_some(now);
        Ok(())
    }

    fn handle_deaf(&mut self, deaf: bool, now: Instant) {
        self.deaf = deaf;
        self.since = self.since.map(|_| now);
    }

    fn is_silent(&self, silence_max: Duration, now: Instant) -> bool {
        let silent = |since| now.saturating_since(since) >= silence_max;
        !self.deaf && self.since.is_some_and(silent)
    }
}

fn lock(owed: &Mutex<Owed>) -> MutexGuard<'_, Owed> {
    owed.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Listening<'a> {
    node: &'a NodeId,
    events: &'a mpsc::Sender<Event>,
    owed: &'a Mutex<Owed>,
}

impl Listening<'_> {
    async fn read_answers(&self, mut reading: Reading<'_>) -> Result<Never, Ended> {
        loop {
            let Answers { heard, answers } = reading.next(wire::decode_answers, || ()).await?;
            lock(self.owed).handle_heard(heard, clock::now())?;
            if answers.is_empty() {
                continue;
            }
            lock(self.owed).handle_deaf(true, clock::now());
            let event = Event::Answers { node: self.node.clone(), answers };
            self.events.send(event).await.map_err(|_| Ended::Forgotten)?;
            lock(self.owed).handle_deaf(false, clock::now());
        }
    }
}

async fn write_appends(
    mut writer: OwnedWriteHalf,
    line: &Line,
    config: &Config,
    (meters, owed): (&Meters, &Mutex<Owed>),
) -> Result<Never, Ended> {
    // An empty frame now and then, so that neither end keeps a connection to nobody.
    let keepalive = config.idle_timeout / 4;
    loop {
        let appends = line.lock().take();
        if appends.is_empty()
            && tokio::time::timeout(keepalive, line.changed.notified()).await.is_ok()
        {
            line.check()?;
            continue;
        }
        let mut out = Vec::new();
        frame::encode_with(Tag::Appends, &mut out, |out| wire::encode_appends(&appends, out))
            .expect("appends that were checked fit a frame");
        lock(owed).handle_sent(clock::now());
        write(&mut writer, &out, config.write_timeout).await?;
        meters.count(Direction::Sent, 1, out.len());
        meters.replication.count_appends(appends.len());
    }
}

/// Looks at what no reader and no writer can see: they may be stuck.
async fn watch(line: &Line, owed: &Mutex<Owed>, silence_max: Duration) -> Result<Never, Ended> {
    let mut tick = tokio::time::interval(silence_max / 4);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        line.check()?;
        if lock(owed).is_silent(silence_max, clock::now()) {
            return Err(Ended::Silent);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: Duration = Duration::from_secs(1);

    fn at(millis: u64) -> Instant {
        Instant::ZERO + Duration::from_millis(millis)
    }

    #[test]
    fn a_peer_that_leaves_a_frame_unheard_is_silent() {
        let mut owed = Owed::default();
        assert!(!owed.is_silent(MAX, at(9_000)), "nothing is owed");
        owed.handle_sent(at(0));
        owed.handle_sent(at(900));
        assert!(!owed.is_silent(MAX, at(999)));
        assert!(owed.is_silent(MAX, at(1_000)));
        owed.handle_heard(1, at(1_000)).unwrap();
        assert!(!owed.is_silent(MAX, at(1_999)));
        assert!(owed.is_silent(MAX, at(2_000)), "the second one is owed since the first");
        owed.handle_heard(2, at(2_000)).unwrap();
        assert!(!owed.is_silent(MAX, at(9_000)));
    }

    #[test]
    fn who_does_not_read_calls_nobody_silent() {
        let mut owed = Owed::default();
        owed.handle_sent(at(0));
        owed.handle_deaf(true, at(10));
        assert!(!owed.is_silent(MAX, at(9_000)));
        owed.handle_deaf(false, at(9_000));
        assert!(!owed.is_silent(MAX, at(9_999)));
        assert!(owed.is_silent(MAX, at(10_000)));
    }

    #[test]
    fn nobody_hears_what_was_not_sent() {
        let mut owed = Owed::default();
        owed.handle_sent(at(0));
        assert!(matches!(owed.handle_heard(2, at(1)), Err(Ended::Heard { heard: 2, sent: 1 })));
        owed.handle_heard(1, at(1)).unwrap();
        assert!(owed.handle_heard(0, at(1)).is_err(), "nor less than before");
    }
}
