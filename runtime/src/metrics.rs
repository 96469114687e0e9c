//! Every metric in one table, and cheap counting for hot paths.
//!
//! A handle of the `metrics` crate costs 25 ns per count and 110 ns per histogram sample, so rooms
//! on the hot path count in plain integers ([`Tally`], [`LocalHistogram`]) and flush once per
//! batch. Labels come from closed sets only: kinds, methods, peers, outcomes; never a key.

use std::time::Duration;

use metrics::{Counter, Histogram};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts samples in explicit buckets.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its full name.
    pub name: &'static str,
    /// What it is.
    pub is: Type,
    /// Its labels, all from closed sets.
    pub labels: &'static [&'static str],
    /// Its unit: "1", "s", "By".
    pub unit: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// Buckets of calls and handlers, seconds. 0.05 is a bound because the latency objective uses it.
pub const CALL_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Buckets of disk operations, seconds.
pub const DISK_BUCKETS: &[f64] = &[
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];
/// Buckets of counts per batch.
pub const COUNT_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Counter, labels, unit, help }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Gauge, labels, unit, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Histogram(buckets), labels, unit: "s", help }
}

/// A count on a hot path: a plain integer, flushed to its handle once per batch.
#[derive(Debug)]
pub struct Tally {
    pending: u64,
    handle: Counter,
}

impl Tally {
    /// A tally that flushes into this counter.
    pub const fn new(handle: Counter) -> Self {
        Self { pending: 0, handle }
    }

    /// Counts `n`.
    pub const fn add(&mut self, n: u64) {
        self.pending += n;
    }

    /// Hands what was counted to the counter.
    pub fn flush(&mut self) {
        if self.pending > 0 {
            self.handle.increment(std::mem::take(&mut self.pending));
        }
    }
}

/// A histogram on a hot path: plain integers per bucket, flushed once per batch. Each bucket is
/// handed over as its mean, which lies inside it, so counts and sums stay exact.
#[derive(Debug)]
pub struct LocalHistogram {
    bounds: &'static [f64],
    pending: Vec<(u32, f64)>,
    samples: u32,
    handle: Histogram,
}

impl LocalHistogram {
    /// A histogram with these upper bounds that flushes into this handle.
    pub fn new(handle: Histogram, bounds: &'static [f64]) -> Self {
        Self { bounds, pending: vec![(0, 0.0); bounds.len() + 1], samples: 0, handle }
    }

    /// Counts a span, in seconds.
    pub fn record(&mut self, span: Duration) {
        self.record_value(span.as_secs_f64());
    }

    /// Counts a value.
    pub fn record_value(&mut self, value: f64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        let (count, sum) = &mut self.pending[bucket];
        *count += 1;
        *sum += value;
        self.samples += 1;
    }

    /// Hands what was counted to the histogram.
    pub fn flush(&mut self) {
        if self.samples == 0 {
            return;
        }
        self.samples = 0;
        for (count, sum) in &mut self.pending {
            if *count > 0 {
                self.handle.record_many(*sum / f64::from(*count), *count as usize);
                (*count, *sum) = (0, 0.0);
            }
        }
    }
}

/// Every metric there is.
pub const CATALOGUE: &[Metric] = &[
    // -- mailboxes --
    gauge("mainstay_mailbox_messages", &["kind"], "1", "Messages waiting for an entity's turn."),
    counter(
        "mainstay_mailbox_full_total",
        &["kind", "action"],
        "1",
        "Times a mailbox had no room, by what was done: reject or wait.",
    ),
    histogram(
        "mainstay_mailbox_wait_seconds",
        &["kind"],
        CALL_BUCKETS,
        "Time a message waited for its turn.",
    ),
    gauge(
        "mainstay_mailbox_oldest_message_age_seconds",
        &["kind"],
        "s",
        "Age of the oldest waiting message: a stuck entity shows here first.",
    ),
    counter(
        "mainstay_dead_letters_total",
        &["kind", "reason"],
        "1",
        "Messages that nobody will process.",
    ),
    // -- handlers --
    histogram(
        "mainstay_handler_duration_seconds",
        &["kind", "method"],
        CALL_BUCKETS,
        "Time in the handler, without waiting.",
    ),
    counter(
        "mainstay_handler_calls_total",
        &["kind", "method", "outcome"],
        "1",
        "Turns, by outcome: ok, app_error, panic, timeout, cancelled.",
    ),
    counter(
        "mainstay_handler_slow_turns_total",
        &["kind"],
        "1",
        "Turns longer than the configured threshold.",
    ),
    counter("mainstay_handler_panics_total", &["kind"], "1", "Handlers that panicked."),
    // -- entities --
    gauge("mainstay_entities", &["kind", "role"], "1", "Entities in memory."),
    gauge("mainstay_entity_state_bytes", &["role"], "By", "Encoded state in memory."),
    counter(
        "mainstay_activations_total",
        &["kind", "source", "outcome"],
        "1",
        "Activations, by source: new, local_store, journal.",
    ),
    histogram(
        "mainstay_activation_duration_seconds",
        &["kind", "source"],
        CALL_BUCKETS,
        "Time from the first message to the state in memory.",
    ),
    counter(
        "mainstay_passivations_total",
        &["kind", "reason"],
        "1",
        "Entities let go, by reason: idle, memory, drain.",
    ),
    gauge("mainstay_shards", &["role"], "1", "Shards that this node holds."),
    gauge("mainstay_shards_unavailable", &[], "1", "Shards without a live primary."),
    counter(
        "mainstay_shard_moves_total",
        &["cause", "outcome"],
        "1",
        "Planned moves of a shard away from this node.",
    ),
    histogram(
        "mainstay_shard_move_duration_seconds",
        &["cause"],
        CALL_BUCKETS,
        "Time that a planned move took.",
    ),
    gauge(
        "mainstay_shard_epoch",
        &["shard_group"],
        "1",
        "Highest epoch of the shards of a group; a step is a change of primary.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_prefixed_and_end_in_their_unit() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in CATALOGUE {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("mainstay_"), "{}", metric.name);
            let counter = metric.is == Type::Counter;
            assert_eq!(counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(!metric.labels.iter().any(|label| ["key", "id", "address"].contains(label)));
        }
    }

    #[test]
    fn a_flushed_bucket_mean_stays_in_its_bucket() {
        let mut local = LocalHistogram::new(Histogram::noop(), CALL_BUCKETS);
        local.record(Duration::from_micros(300));
        local.record(Duration::from_micros(400));
        let at = CALL_BUCKETS.iter().position(|b| *b >= 0.0005).unwrap();
        assert_eq!(local.pending[at].0, 2);
        local.flush();
        assert!(local.pending.iter().all(|(count, _)| *count == 0));
    }
}
