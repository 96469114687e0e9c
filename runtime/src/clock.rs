//! The only place that reads the time.
#![expect(clippy::disallowed_methods, reason = "everything else asks here")]

use std::sync::OnceLock;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use mainstay_protocol::time::{Instant, LogTime, Moment};

static ORIGIN: OnceLock<tokio::time::Instant> = OnceLock::new();

/// The monotonic clock of this process, as rules take it. Follows tokio's clock, so that a paused
/// or simulated runtime pauses the rules too.
pub fn now() -> Instant {
    let origin = *ORIGIN.get_or_init(tokio::time::Instant::now);
    let since = tokio::time::Instant::now().saturating_duration_since(origin);
    Instant::ZERO + since + Duration::from_nanos(1)
}

/// The tokio moment of a rule's moment, for sleeping.
pub fn to_tokio(at: Instant) -> tokio::time::Instant {
    let origin = *ORIGIN.get_or_init(tokio::time::Instant::now);
    origin + at.saturating_since(Instant::ZERO)
}

/// The wall clock, in milliseconds since the Unix epoch: for log time and events only.
pub fn wall() -> LogTime {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    LogTime(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Both clocks at one moment.
pub fn moment() -> Moment {
    Moment { now: now(), wall: wall() }
}
