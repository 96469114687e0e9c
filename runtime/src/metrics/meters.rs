//! Counting on hot paths: plain integers, flushed to their handles once per batch.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

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

/// A gauge that several lanes or links share: each adds and takes away its own part.
#[derive(Debug)]
pub struct SharedGauge {
    told: f64,
    handle: Gauge,
}

impl SharedGauge {
    /// One part of a gauge.
    pub const fn new(handle: Gauge) -> Self {
        Self { told: 0.0, handle }
    }

    /// This part is now so much.
    pub fn set(&mut self, value: f64) {
        let change = value - std::mem::replace(&mut self.told, value);
        if change > 0.0 {
            self.handle.increment(change);
        } else if change < 0.0 {
            self.handle.decrement(-change);
        }
    }
}

/// Counts as one in a gauge while it lives, also when what it counts is dropped half way.
#[derive(Debug)]
pub struct Counted(Gauge);

impl Counted {
    /// One more.
    pub fn new(handle: Gauge) -> Self {
        handle.increment(1.0);
        Self(handle)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::super::CALL_BUCKETS;
    use super::*;

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
