//! What the transport counts, with the handles of the metrics kept by whoever counts.
//!
//! Frames and bytes are counted once per chunk or flush, never per frame. Labels are directions,
//! classes, node names and words of closed sets.

use metrics::{Counter, Gauge, Histogram, counter, gauge, histogram};

use crate::metrics::{SharedGauge, float};

/// What travels on a connection.
#[derive(Debug, Clone, Copy)]
pub(super) enum Class {
    Call,
    Reply,
    Control,
    Snapshot,
    Append,
    Answer,
}

impl Class {
    fn word(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Reply => "reply",
            Self::Control => "control",
            Self::Snapshot => "snapshot",
            Self::Append => "append",
            Self::Answer => "answer",
        }
    }
}

/// Seen from this process.
#[derive(Debug, Clone, Copy)]
pub(super) enum Direction {
    Sent,
    Received,
}

/// Frames and bytes of one connection; it counts as open while this lives.
#[derive(Debug)]
pub(super) struct ConnectionMeters {
    received: (Counter, Counter),
    sent: (Counter, Counter),
    open: Gauge,
}

impl ConnectionMeters {
    pub(super) fn new(received: Class, sent: Class) -> Self {
        let pair = |direction: &'static str, class: Class| {
            let class = class.word();
            let frames = counter!("mainstay_transport_frames_total",
                "direction" => direction, "class" => class);
            let bytes = counter!("mainstay_transport_bytes_total",
                "direction" => direction, "class" => class);
            (frames, bytes)
        };
        let open = gauge!("mainstay_transport_connections", "state" => "open");
        open.increment(1.0);
        Self { received: pair("received", received), sent: pair("sent", sent), open }
    }

    pub(super) fn count(&self, direction: Direction, frames: u64, bytes: usize) {
        let (frame_counter, byte_counter) = match direction {
            Direction::Sent => &self.sent,
            Direction::Received => &self.received,
        };
        frame_counter.increment(frames);
        byte_counter.increment(bytes as u64);
    }
}

impl Drop for ConnectionMeters {
    fn drop(&mut self) {
        self.open.decrement(1.0);
    }
}

/// What the links to one peer count. Gauges are sums over the links.
#[derive(Debug)]
pub(super) struct LinkMeters {
    pub(super) reconnects: Counter,
    pub(super) stalls: Counter,
    pub(super) credit_wait: Histogram,
    pub(super) connecting: Gauge,
    credits: SharedGauge,
    queued: SharedGauge,
}

impl LinkMeters {
    pub(super) fn new(peer: &str) -> Self {
        let peer = || peer.to_owned();
        Self {
            reconnects: counter!("mainstay_transport_reconnects_total", "peer" => peer()),
            stalls: counter!("mainstay_transport_credit_stalls_total", "peer" => peer()),
            credit_wait: histogram!("mainstay_transport_credit_wait_seconds"),
            connecting: gauge!("mainstay_transport_connections", "state" => "connecting"),
            credits: SharedGauge::new(
                gauge!("mainstay_transport_credits_available", "peer" => peer()),
            ),
            queued: SharedGauge::new(
                gauge!("mainstay_transport_send_queue_bytes", "peer" => peer()),
            ),
        }
    }

    pub(super) fn show(&mut self, credits: u32, queued_bytes: usize) {
        self.credits.set(f64::from(credits));
        self.queued.set(float(queued_bytes as u64));
    }
}

/// What replication with one peer counts beside frames.
#[derive(Debug)]
pub(super) struct ReplicationMeters {
    appends: Counter,
    sent: Counter,
    received: Counter,
}

impl ReplicationMeters {
    pub(super) fn new(direction: &'static str, peer: &str) -> Self {
        let peer = || peer.to_owned();
        Self {
            appends: counter!("mainstay_replication_appends_total",
                "direction" => direction, "peer" => peer()),
            sent: counter!("mainstay_replication_sent_bytes_total", "peer" => peer()),
            received: counter!("mainstay_replication_received_bytes_total", "peer" => peer()),
        }
    }

    pub(super) fn count_appends(&self, appends: usize) {
        self.appends.increment(appends as u64);
    }

    pub(super) fn count_bytes(&self, direction: Direction, bytes: usize) {
        match direction {
            Direction::Sent => self.sent.increment(bytes as u64),
            Direction::Received => self.received.increment(bytes as u64),
        }
    }
}

/// A connection ended, and why.
pub(super) fn cut(reason: &'static str) {
    counter!("mainstay_transport_closed_total", "reason" => reason).increment(1);
}

/// A handshake failed, here or there.
pub(super) fn handshake_failed(reason: &'static str) {
    counter!("mainstay_transport_handshake_failures_total", "reason" => reason).increment(1);
}
