//! The writing half of a connection's driver: one buffer, one write, and when it last moved.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use mainstay_protocol::time::Instant;
use tokio::io::AsyncWrite;

use crate::clock;

/// Capacity that an idle writer keeps.
const KEEP_BYTES: usize = 256 << 10;

/// Bytes on their way into a socket.
#[derive(Debug, Default)]
pub(super) struct Writing {
    bytes: Vec<u8>,
    at: usize,
    written: u64,
    stuck_since: Option<Instant>,
}

impl Writing {
    /// The buffer to fill, when everything before is written.
    pub(super) fn refill(&mut self) -> Option<&mut Vec<u8>> {
        if self.at < self.bytes.len() {
            return None;
        }
        if self.bytes.capacity() > KEEP_BYTES {
            self.bytes = Vec::new();
        }
        self.bytes.clear();
        self.at = 0;
        Some(&mut self.bytes)
    }

    /// Writes until everything is written or the socket is full.
    pub(super) fn poll_write<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.at < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.at..]) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                }
                Poll::Ready(Ok(written)) => {
                    self.at += written;
                    self.written += written as u64;
                    self.stuck_since = None;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {
                    self.stuck_since.get_or_insert_with(clock::now);
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Bytes that the socket has not taken.
    pub(super) fn pending(&self) -> usize {
        self.bytes.len() - self.at
    }

    /// Bytes that the socket has taken since the beginning.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Since when the socket takes nothing.
    pub(super) fn stuck_since(&self) -> Option<Instant> {
        self.stuck_since
    }
}
