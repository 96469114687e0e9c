//! The answering end of connections on which one frame asks and one frame answers.
//!
//! An answer may be a thousand times its question, so what a peer does not read stops everything
//! before it: no question starts and none goes on while so many bytes wait for it.

use std::future::{Future, poll_fn};
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use mainstay_protocol::message::Tag;
use mainstay_protocol::time::Instant;
use tokio::net::TcpStream;
use tokio::time::MissedTickBehavior;

use super::Config;
use super::frame::{FrameBuffer, FrameError};
use super::listener::Place;
use super::meters::{self, Class, ConnectionMeters, Direction};
use super::stream::Writing;
use crate::clock;

/// What is asked on a connection, and how much of it at one time.
pub(super) struct Questions {
    pub(super) socket: std::net::TcpStream,
    pub(super) config: Arc<Config>,
    pub(super) place: Place,
    pub(super) tag: Tag,
    pub(super) class: Class,
    pub(super) at_once: usize,
}

/// Why the connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("the peer closed the connection")]
    ByPeer,
    #[error("the connection failed")]
    Io(#[from] std::io::Error),
    #[error("the peer broke the protocol: {0}")]
    Frame(#[from] FrameError),
    #[error("the peer does not read")]
    SlowReader,
    #[error("the peer did not end a frame in time")]
    SlowWriter,
    #[error("the connection was idle")]
    Idle,
}

impl Ended {
    fn word(&self) -> &'static str {
        match self {
            Self::ByPeer => "closed",
            Self::Io(_) => "io",
            Self::Frame(_) => "protocol",
            Self::SlowReader => "slow_reader",
            Self::SlowWriter => "slow_writer",
            Self::Idle => "idle",
        }
    }
}

/// Serves until the connection ends. `answer` turns a question's body into the future of a whole
/// frame; futures run at once, up to the limit, then no more questions are taken.
pub(super) async fn serve<A, F>(questions: Questions, answer: A) -> Ended
where
    A: FnMut(&[u8]) -> Result<F, FrameError>,
    F: Future<Output = Vec<u8>>,
{
    let meters = ConnectionMeters::new(questions.class, questions.class);
    let ended = match converse(&questions, &meters, answer).await {
        Ok(never) => match never {},
        Err(ended) => ended,
    };
    meters::cut(ended.word());
    drop(questions.place);
    ended
}

async fn converse<A, F>(
    questions: &Questions,
    meters: &ConnectionMeters,
    mut answer: A,
) -> Result<std::convert::Infallible, Ended>
where
    A: FnMut(&[u8]) -> Result<F, FrameError>,
    F: Future<Output = Vec<u8>>,
{
    let config = &questions.config;
    let mut stream = TcpStream::from_std(questions.socket.try_clone()?)?;
    let (mut reader, mut writer) = stream.split();
    let (mut reading, mut writing) = (FrameBuffer::default(), Writing::default());
    let mut running = FuturesUnordered::new();
    let mut answers: Vec<u8> = Vec::new();
    let mut watch = Watch { partial_since: None, busy_at: clock::now() };
    let mut tick = tokio::time::interval(config.tick());
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        if let Some(buffer) = writing.refill().filter(|_| !answers.is_empty()) {
            std::mem::swap(buffer, &mut answers);
        }
        let room = answers.len() + writing.pending() < config.unread_bytes_soft;
        let mut frames = 0;
        while room
            && running.len() < questions.at_once
            && let Some((tag, body)) = reading.next_frame()?
        {
            if tag != questions.tag {
                return Err(FrameError::Tag { tag: tag as u8 }.into());
            }
            running.push(answer(body)?);
            frames += 1;
        }
        if frames > 0 {
            meters.count(Direction::Received, frames, 0);
            watch.note(&reading, frames);
        }
        // then no whole frame is left of what was read
        let listening = room && running.len() < questions.at_once;
        tokio::select! {
            biased;
            Some(frame) = running.next(), if room && !running.is_empty() => {
                let frame: Vec<u8> = frame;
                meters.count(Direction::Sent, 1, frame.len());
                answers.extend_from_slice(&frame);
            }
            written = poll_fn(|cx| writing.poll_write(&mut writer, cx)), if writing.pending() > 0 => {
                written?;
            }
            read = poll_fn(|cx| reading.poll_fill(&mut reader, cx)), if listening => {
                let bytes = read?;
                if bytes == 0 {
                    return Err(Ended::ByPeer);
                }
                meters.count(Direction::Received, 0, bytes);
                watch.note(&reading, 0);
            }
            _ = tick.tick() => {
                watch.check(config, &writing, !listening || !running.is_empty())?;
            },
        }
    }
}

struct Watch {
    partial_since: Option<Instant>,
    busy_at: Instant,
}

impl Watch {
    fn note(&mut self, reading: &FrameBuffer, frames: u64) {
        self.busy_at = clock::now();
        self.partial_since = match (reading.partial(), frames) {
            (false, _) => None,
            (true, 0) => self.partial_since.or(Some(self.busy_at)),
            (true, _) => Some(self.busy_at),
        };
    }

    fn check(&mut self, config: &Config, writing: &Writing, working: bool) -> Result<(), Ended> {
        let now = clock::now();
        let since = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| now.saturating_since(at));
        if since(writing.stuck_since()) >= config.write_timeout {
            return Err(Ended::SlowReader);
        }
        if working {
            // nothing may be read meanwhile, so an unfinished frame is not the peer's fault
            self.busy_at = now;
            self.partial_since = self.partial_since.map(|_| now);
        }
        if since(self.partial_since) >= config.frame_timeout {
            return Err(Ended::SlowWriter);
        }
        if now.saturating_since(self.busy_at) >= config.idle_timeout {
            return Err(Ended::Idle);
        }
        Ok(())
    }
}
