//! The two halves of a replication connection: whole frames of one kind in, each in time; bytes
//! out, as long as the peer takes some.

use std::future::poll_fn;
use std::time::Duration;

use mainstay_protocol::message::Tag;
use tokio::io::AsyncWriteExt;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use super::super::frame::{FrameBuffer, FrameError};
use super::super::meters::{ConnectionMeters, Direction, ReplicationMeters};
use super::Ended;
use crate::clock;

/// The meters of one connection.
#[derive(Debug)]
pub(super) struct Meters {
    pub(super) connection: ConnectionMeters,
    pub(super) replication: ReplicationMeters,
}

impl Meters {
    pub(super) fn count(&self, direction: Direction, frames: u64, bytes: usize) {
        self.connection.count(direction, frames, bytes);
        self.replication.count_bytes(direction, bytes);
    }
}

/// Frames as they come in.
pub(super) struct Reading<'a> {
    reader: OwnedReadHalf,
    frames: FrameBuffer,
    tag: Tag,
    frame_timeout: Duration,
    idle_timeout: Duration,
    meters: &'a Meters,
}

impl<'a> Reading<'a> {
    pub(super) fn new(
        reader: OwnedReadHalf,
        tag: Tag,
        config: &super::Config,
        meters: &'a Meters,
    ) -> Self {
        Self {
            reader,
            frames: FrameBuffer::default(),
            tag,
            frame_timeout: config.frame_timeout,
            idle_timeout: config.idle_timeout,
            meters,
        }
    }

    /// The next frame, decoded. `note` hears of every chunk of bytes.
    pub(super) async fn next<T, E>(
        &mut self,
        decode: impl Fn(&[u8]) -> Result<T, E>,
        mut note: impl FnMut(),
    ) -> Result<T, Ended>
    where
        Ended: From<E>,
    {
        // Counted from here: what came before waited for this side.
        let mut begun_at = self.frames.partial().then(clock::now);
        loop {
            if let Some((tag, body)) = self.frames.next_frame()? {
                if tag != self.tag {
                    return Err(FrameError::Tag { tag: tag as u8 }.into());
                }
                self.meters.count(Direction::Received, 1, 0);
                return Ok(decode(body)?);
            }
            let until = match begun_at {
                Some(begun_at) => begun_at + self.frame_timeout,
                None => clock::now() + self.idle_timeout,
            };
            let fill = poll_fn(|cx| self.frames.poll_fill(&mut self.reader, cx));
            match tokio::time::timeout_at(clock::to_tokio(until), fill).await {
                Ok(Ok(0)) => return Err(Ended::ByPeer),
                Ok(Ok(bytes)) => {
                    self.meters.count(Direction::Received, 0, bytes);
                    begun_at.get_or_insert_with(clock::now);
                    note();
                }
                Ok(Err(error)) => return Err(error.into()),
                Err(_) if begun_at.is_some() => return Err(Ended::SlowWriter),
                Err(_) => return Err(Ended::Idle),
            }
        }
    }
}

/// Writes all of it, as long as the peer takes a byte within `timeout`.
pub(super) async fn write(
    writer: &mut OwnedWriteHalf,
    mut bytes: &[u8],
    timeout: Duration,
) -> Result<(), Ended> {
    while !bytes.is_empty() {
        let written = tokio::time::timeout(timeout, writer.write(bytes)).await;
        match written.map_err(|_| Ended::SlowReader)?? {
            0 => return Err(std::io::Error::from(std::io::ErrorKind::WriteZero).into()),
            written => bytes = &bytes[written..],
        }
    }
    Ok(())
}
