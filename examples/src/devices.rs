//! Devices that send readings: each reading counts once, however often it is sent.
//!
//! A device numbers its readings. The entity keeps the last number, so a repeated or late reading
//! is recognised by its number alone and no idempotency key needs to be stored.

use mainstay::prelude::*;

/// What is kept of one device.
#[state(version = 1)]
pub struct Telemetry {
    last_seq: u64,
    count: u64,
    sum: i64,
    least: i64,
    greatest: i64,
    latest: i64,
}

/// A device's readings, summed up.
#[data]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// The number of the last reading that was taken.
    pub last_seq: u64,
    /// Readings taken.
    pub count: u64,
    /// The last one.
    pub latest: i64,
    /// The least one.
    pub least: i64,
    /// The greatest one.
    pub greatest: i64,
    /// Their mean, in thousandths.
    pub mean_milli: i64,
}

/// What became of a reading.
#[data]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was new and counts.
    Counted,
    /// One with this number, or a later one, was taken before. It changes nothing.
    Old,
}

#[entity(name = "device")]
impl Telemetry {
    /// Takes a reading, in whatever unit the device measures, unless its number is old.
    #[command]
    fn reading(&mut self, seq: u64, value: i64) -> Taken {
        if seq <= self.last_seq {
            return Taken::Old;
        }
        let first = self.count == 0;
        self.last_seq = seq;
        self.count += 1;
        self.sum = self.sum.saturating_add(value);
        self.least = if first { value } else { self.least.min(value) };
        self.greatest = if first { value } else { self.greatest.max(value) };
        self.latest = value;
        Taken::Counted
    }

    /// The readings so far, summed up; nothing when there was none.
    #[query]
    fn summary(&self) -> Option<Summary> {
        let count = i128::from(self.count);
        let mean = (i128::from(self.sum) * 1000).checked_div(count)?;
        Some(Summary {
            last_seq: self.last_seq,
            count: self.count,
            latest: self.latest,
            least: self.least,
            greatest: self.greatest,
            mean_milli: i64::try_from(mean).unwrap_or(i64::MAX),
        })
    }
}
