//! How long to wait before the next try: exponential, with full jitter and a cap.
//!
//! Callers that fail together must not return together. Full jitter draws the whole delay at
//! random, which ends up with the least work and nearly the least time (Marc Brooker, AWS
//! Architecture Blog 2015, "Exponential Backoff And Jitter"). A backoff spreads tries in time; it
//! does not bound their number: that is [`crate::retry_budget`].

use std::time::Duration;

/// The bounds of the delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// The greatest first delay. About one round trip to the target; doubled by each try.
    pub base: Duration,
    /// The greatest delay of all. Too large, and a target that is back stays unused that long;
    /// too small, and one that is down is asked again and again.
    pub cap: Duration,
}

impl Config {
    /// The greatest delay before the try after `failures` failures (0 is the first): base x
    /// 2^failures, at most the cap.
    pub fn ceiling(&self, failures: u32) -> Duration {
        let factor = 1_u32.checked_shl(failures).unwrap_or(u32::MAX);
        self.base.saturating_mul(factor).min(self.cap)
    }

    /// The delay after `failures` failures: uniform between nothing and [`Self::ceiling`].
    /// `random` is 64 random bits.
    pub fn delay(&self, failures: u32, random: u64) -> Duration {
        let ceiling = u64::try_from(self.ceiling(failures).as_nanos()).unwrap_or(u64::MAX);
        let scaled = (u128::from(random) * (u128::from(ceiling) + 1)) >> 64;
        Duration::from_nanos(u64::try_from(scaled).unwrap_or(ceiling))
    }
}

/// Counts the failures in a row of one target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    config: Config,
    failures: u32,
}

impl Backoff {
    /// A target that has not failed.
    pub const fn new(config: Config) -> Self {
        Self { config, failures: 0 }
    }

    /// The target failed: how long to wait before the next try. `random` is 64 random bits.
    pub fn handle_failed(&mut self, random: u64) -> Duration {
        let delay = self.config.delay(self.failures, random);
        self.failures = self.failures.saturating_add(1);
        debug_assert!(delay <= self.config.cap, "a delay is at most the cap");
        delay
    }

    /// The target answered: the next failure starts from the base again.
    pub const fn handle_succeeded(&mut self) {
        self.failures = 0;
    }

    /// Failures since the last answer.
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const CONFIG: Config = Config { base: Duration::from_millis(10), cap: Duration::from_secs(2) };

    #[test]
    fn ceiling_doubles_up_to_the_cap() {
        let ceilings: Vec<_> = (0..10).map(|n| CONFIG.ceiling(n).as_millis()).collect();
        assert_eq!(ceilings, [10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000]);
        assert_eq!(CONFIG.ceiling(u32::MAX), CONFIG.cap);
    }

    #[test]
    fn jitter_covers_the_whole_span() {
        assert_eq!(CONFIG.delay(3, 0), Duration::ZERO);
        assert_eq!(CONFIG.delay(3, u64::MAX), Duration::from_millis(80));
        assert_eq!(CONFIG.delay(3, u64::MAX / 2 + 1), Duration::from_millis(40));
    }

    #[test]
    fn an_answer_starts_over() {
        let mut backoff = Backoff::new(CONFIG);
        let grown: Vec<_> = (0..3).map(|_| backoff.handle_failed(u64::MAX).as_millis()).collect();
        assert_eq!(grown, [10, 20, 40]);
        backoff.handle_succeeded();
        assert_eq!(backoff.handle_failed(u64::MAX).as_millis(), 10);
        assert_eq!(backoff.failures(), 1);
    }

    proptest! {
        #[test]
        fn a_delay_is_at_most_its_ceiling(failures: u32, random: u64, base_ms in 0_u64..10_000) {
            let config = Config { base: Duration::from_millis(base_ms), ..CONFIG };
            prop_assert!(config.delay(failures, random) <= config.ceiling(failures));
            prop_assert!(config.ceiling(failures) <= config.cap);
        }
    }
}
