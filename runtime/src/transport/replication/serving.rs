//! The fed end of a replication connection: appends go to an inbox, answers come from anywhere.
//!
//! What was handed over and is not done with has a bound in bytes; beyond it nothing more is read.
//! Meanwhile the other end still hears that this one lives.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mainstay_protocol::message::Tag;
use mainstay_protocol::replication::Answer;
use mainstay_protocol::replication::wire::{self, Arrived, DecodeError};
use tokio::net::TcpStream;
use tokio::net::tcp::OwnedWriteHalf;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::MissedTickBehavior;

use super::super::frame;
use super::super::listener::Place;
use super::super::meters::{self, Class, ConnectionMeters, Direction, ReplicationMeters};
use super::halves::{Meters, Reading, write};
use super::{Config, Ended, Feeder};
use crate::chain::chain;

/// Answers in one frame.
const FRAME_ANSWERS_MAX: usize = 1 << 16;

/// An accepted replication connection.
#[derive(Debug)]
pub struct AcceptedReplication {
    pub(in super::super) socket: std::net::TcpStream,
    pub(in super::super) from: Feeder,
    pub(in super::super) config: Arc<Config>,
    pub(in super::super) place: Place,
}

impl AcceptedReplication {
    /// Who feeds.
    pub fn from(&self) -> &Feeder {
        &self.from
    }
}

/// One frame of appends.
#[derive(Debug)]
pub struct Appended {
    /// Who feeds.
    pub from: Arc<Feeder>,
    /// The appends of several shards with their entries, in order.
    pub appends: Vec<Arrived>,
    /// The way back, on the connection that they came on.
    pub answers: AnswerSender,
    /// To be kept until the appends are done with.
    pub room: Room,
}

/// Room in a connection, given back when it is dropped. Without it nothing more is read.
#[derive(Debug)]
pub struct Room {
    _permit: OwnedSemaphorePermit,
}

/// Sends answers on one connection. Clones share it. Never blocks; when the connection is gone,
/// answers go nowhere, and the feeds at its other end ask again.
#[derive(Debug, Clone)]
pub struct AnswerSender(Arc<Outbox>);

#[derive(Debug)]
struct Outbox {
    state: Mutex<State>,
    changed: Notify,
    answers_max: usize,
}

#[derive(Debug, Default)]
struct State {
    answers: Vec<Answer>,
    /// Frames that came in.
    heard: u64,
    /// Bytes came in since the last frame went out.
    owes: bool,
    /// Nothing is read, for want of room here.
    full: bool,
    way: Way,
}

/// Whether answers can go out.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Way {
    #[default]
    Open,
    /// More answers waited than may: the connection is about to end.
    Overflow,
    /// The connection ended.
    Gone,
}

impl AnswerSender {
    /// Sends an answer. Those that wait share a frame.
    pub fn send(&self, answer: Answer) {
        let mut state = self.0.lock();
        if state.way != Way::Open {
            return;
        }
        if state.answers.len() >= self.0.answers_max {
            state.way = Way::Overflow;
            state.answers = Vec::new();
        } else {
            state.answers.push(answer);
        }
        drop(state);
        self.0.changed.notify_one();
    }
}

impl Outbox {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What goes out now: answers, or, when it is time, that this end lives.
    fn take(&self, is_time: bool) -> Result<Option<(u64, Vec<Answer>)>, Ended> {
        let mut state = self.lock();
        if state.way == Way::Overflow {
            return Err(Ended::SlowReader);
        }
        if state.answers.is_empty() && !(is_time && (state.owes || state.full)) {
            return Ok(None);
        }
        state.owes = false;
        Ok(Some((state.heard, std::mem::take(&mut state.answers))))
    }
}

type Never = std::convert::Infallible;

/// Hands over what comes in on one connection, until it ends. Polls on the current runtime.
pub async fn serve(accepted: AcceptedReplication, inbox: mpsc::Sender<Appended>) -> Ended {
    let AcceptedReplication { socket, from, config, place } = accepted;
    let outbox = Arc::new(Outbox {
        state: Mutex::default(),
        changed: Notify::new(),
        answers_max: config.answers_max,
    });
    let from = Arc::new(from);
    let serving = Serving { from: Arc::clone(&from), inbox, outbox, config };
    let Err(ended) = serving.run(socket).await;
    let mut state = serving.outbox.lock();
    state.way = Way::Gone;
    state.answers = Vec::new();
    drop(state);
    meters::cut(ended.word());
    tracing::debug!(peer = %from.node, reason = chain(&ended), "a replication connection ended");
    drop(place);
    ended
}

struct Serving {
    from: Arc<Feeder>,
    inbox: mpsc::Sender<Appended>,
    outbox: Arc<Outbox>,
    config: Arc<Config>,
}

impl Serving {
    async fn run(&self, socket: std::net::TcpStream) -> Result<Never, Ended> {
        let meters = Meters {
            connection: ConnectionMeters::new(Class::Append, Class::Answer),
            replication: ReplicationMeters::new("received", self.from.node.as_str()),
        };
        let (reader, writer) = TcpStream::from_std(socket)?.into_split();
        let reading = Reading::new(reader, Tag::Appends, &self.config, &meters);
        tokio::select! {
            biased;
            ended = self.read_appends(reading, &meters) => ended,
            ended = self.write_answers(writer, &meters) => ended,
        }
    }

    async fn read_appends(
        &self,
        mut reading: Reading<'_>,
        meters: &Meters,
    ) -> Result<Never, Ended> {
        let room = Arc::new(Semaphore::new(self.config.append_room_bytes as usize));
        let decode = |body: &[u8]| -> Result<_, DecodeError> {
            Ok((wire::decode_appends(body)?, u32::try_from(body.len()).unwrap_or(u32::MAX)))
        };
        loop {
            let note = || self.outbox.lock().owes = true;
            let (appends, bytes) = reading.next(decode, note).await?;
            meters.replication.count_appends(appends.len());
            {
                let mut state = self.outbox.lock();
                state.heard += 1;
                state.owes = true;
                state.full = true;
            }
            if !appends.is_empty() {
                let bytes = bytes.min(self.config.append_room_bytes);
                let taken = Arc::clone(&room).acquire_many_owned(bytes).await;
                let permit = taken.expect("nobody closes this semaphore");
                let room = Room { _permit: permit };
                let (from, answers) = (Arc::clone(&self.from), self.answers());
                let appended = Appended { from, appends, answers, room };
                self.inbox.send(appended).await.map_err(|_| Ended::Forgotten)?;
            }
            self.outbox.lock().full = false;
        }
    }

    fn answers(&self) -> AnswerSender {
        AnswerSender(Arc::clone(&self.outbox))
    }

    async fn write_answers(
        &self,
        mut writer: OwnedWriteHalf,
        meters: &Meters,
    ) -> Result<Never, Ended> {
        let mut tick = tokio::time::interval(self.config.silence_max / 4);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let is_time = tokio::select! {
                biased;
                () = self.outbox.changed.notified() => false,
                _ = tick.tick() => true,
            };
            let Some((heard, answers)) = self.outbox.take(is_time)? else { continue };
            let (out, frames) = encode(heard, &answers);
            write(&mut writer, &out, self.config.write_timeout).await?;
            meters.count(Direction::Sent, frames, out.len());
        }
    }
}

/// The frames of these answers, at least one, and how many they are.
fn encode(heard: u64, answers: &[Answer]) -> (Vec<u8>, u64) {
    let (mut out, mut frames) = (Vec::new(), 0);
    let mut put = |answers: &[Answer]| {
        frame::encode_with(Tag::Answers, &mut out, |out| wire::encode_answers(heard, answers, out))
            .expect("so many answers fit a frame");
        frames += 1;
    };
    if answers.is_empty() {
        put(&[]);
    }
    for of_one_disk in answers.chunk_by(|one, next| one.disk == next.disk) {
        of_one_disk.chunks(FRAME_ANSWERS_MAX).for_each(&mut put);
    }
    (out, frames)
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::id::{DiskId, Epoch, Seq, ShardId};
    use mainstay_protocol::replication::Told;

    use super::*;

    fn outbox() -> Arc<Outbox> {
        let (state, changed) = (Mutex::default(), Notify::new());
        Arc::new(Outbox { state, changed, answers_max: 2 })
    }

    fn answer(disk: u8) -> Answer {
        let (shard, epoch, disk) = (ShardId(1), Epoch(1), DiskId::from_bytes([disk; 16]));
        Answer { shard, epoch, disk, what: Told::Holds { upto: Seq(4), version: 1 } }
    }

    #[test]
    fn more_answers_than_may_wait_end_the_connection() {
        let outbox = outbox();
        let answers = AnswerSender(Arc::clone(&outbox));
        (0..2).for_each(|_| answers.send(answer(1)));
        assert_eq!(outbox.take(false).unwrap().unwrap().1.len(), 2);
        (0..9).for_each(|_| answers.send(answer(1)));
        assert!(outbox.lock().answers.is_empty(), "nothing of it is kept");
        assert!(matches!(outbox.take(false), Err(Ended::SlowReader)));
    }

    #[test]
    fn who_owes_a_word_says_it_when_it_is_time() {
        let outbox = outbox();
        assert_eq!(outbox.take(true).unwrap(), None);
        outbox.lock().owes = true;
        assert_eq!(outbox.take(false).unwrap(), None);
        assert_eq!(outbox.take(true).unwrap(), Some((0, vec![])));
        assert_eq!(outbox.take(true).unwrap(), None);
        outbox.lock().full = true;
        assert_eq!(outbox.take(true).unwrap(), Some((0, vec![])));
        assert_eq!(outbox.take(true).unwrap(), Some((0, vec![])), "as long as nothing is read");
    }

    #[test]
    fn answers_of_two_disks_share_no_frame() {
        assert_eq!(encode(1, &[]).1, 1);
        assert_eq!(encode(1, &[answer(1), answer(1)]).1, 1);
        assert_eq!(encode(1, &[answer(1), answer(2), answer(2)]).1, 2);
    }
}
