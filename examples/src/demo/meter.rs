//! How many calls settle, how long they take, and how many have to be repeated.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest span that is told apart: ten minutes.
const SPAN_MICROS_MAX: u64 = 600_000_000;

/// Counts for all clients together.
#[derive(Debug)]
pub struct Meter {
    spans: Mutex<Spans>,
    repeated: AtomicU64,
    waiting: AtomicU64,
}

#[derive(Debug)]
struct Spans {
    /// Microseconds since the last line.
    recent: Histogram<u64>,
    longest: Duration,
    total: u64,
}

/// What was counted since the last line, and in all.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// Calls settled since the last line.
    pub settled: u64,
    /// Their median, in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 of them took no longer, in milliseconds.
    pub p99_ms: f64,
    /// Attempts repeated since the last line.
    pub repeated: u64,
    /// Calls that are being repeated.
    pub waiting: u64,
}

impl Default for Meter {
    fn default() -> Self {
        let recent = Histogram::new_with_bounds(1, SPAN_MICROS_MAX, 3)
            .expect("three digits between two bounds are a valid histogram");
        Self {
            spans: Mutex::new(Spans { recent, longest: Duration::ZERO, total: 0 }),
            repeated: AtomicU64::new(0),
            waiting: AtomicU64::new(0),
        }
    }
}

impl Meter {
    /// A call settled, this long after its first attempt.
    pub fn settled(&self, after: Duration) {
        let mut spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        spans.recent.saturating_record(u64::try_from(after.as_micros()).unwrap_or(u64::MAX));
        spans.longest = spans.longest.max(after);
        spans.total += 1;
    }

    /// An attempt gave no definite outcome; `first` when it was the call's first.
    pub fn unsettled(&self, first: bool) {
        self.repeated.fetch_add(1, Ordering::Relaxed);
        if first {
            self.waiting.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A call that was being repeated is not any more.
    pub fn gave_way(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }

    /// What was counted since [`Meter::take`] was last asked.
    pub fn read(&self) -> Reading {
        let spans = self.spans.lock().unwrap_or_else(PoisonError::into_inner);
        let millis = |quantile| {
            let micros = spans.recent.value_at_quantile(quantile);
            Duration::from_micros(micros).as_secs_f64() * 1e3
        };
        Reading {
            settled: spans.recent.len(),
            p50_ms: millis(0.5),
            p99_ms: millis(0.99),
            repeated: self.repeated.load(Ordering::Relaxed),
            waiting: self.waiting.load(Ordering::Relaxed),
        }
    }

    /// The same, and begins to count anew.
    pub fn take(&self) -> Reading {
        let reading = self.read();
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).recent.reset();
        self.repeated.fetch_sub(reading.repeated, Ordering::Relaxed);
        reading
    }

    /// Calls settled in all.
    pub fn total(&self) -> u64 {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).total
    }

    /// The longest that any call took.
    pub fn longest(&self) -> Duration {
        self.spans.lock().unwrap_or_else(PoisonError::into_inner).longest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_counts_what_came_since_the_last_and_the_sum_stays() {
        let meter = Meter::default();
        meter.settled(Duration::from_millis(2));
        meter.settled(Duration::from_secs(30));
        let line = meter.take();
        assert_eq!(line.settled, 2);
        assert!((line.p50_ms - 2.0).abs() < 0.01, "{line:?}");
        assert!((line.p99_ms - 30_000.0).abs() < 50.0, "{line:?}");
        assert_eq!(meter.take().settled, 0);
        assert_eq!(meter.total(), 2);
        assert_eq!(meter.longest(), Duration::from_secs(30));
    }
}
