//! How many tries may be repeats: a tenth of the calls, plus a small reserve.
//!
//! Retries turn an overloaded target into a dead one: when every call fails and each is tried
//! three times, the target gets three times the load that broke it. Here each call pays a tenth
//! of a token into a bucket, and each repeat takes a whole one out. The bucket holds no more than
//! the reserve, so over *any* span of time, however long the target is down,
//!
//! ```text
//!   attempts <= calls x 1.1 + reserve
//! ```
//!
//! The rule is Finagle's `RetryBudget` and gRPC's retry throttling (proposal A6), without a clock:
//! what refills the bucket is calls, not time, so an idle caller saves up no storm. A caller with
//! few calls lives on the reserve; once that is spent, its failures are passed on.

/// How much a caller may repeat.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// Repeats per hundred calls. More makes an outage of the target worse by that much.
    pub percent: u32,
    /// Repeats that are free at the start, and the most that are saved up.
    pub reserve: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self { percent: 10, reserve: 10 }
    }
}

/// One repeat, in the bucket's unit: a hundredth.
const TOKEN: u64 = 100;

/// The bucket of one caller. Shared by all its calls to all targets.
#[derive(Debug, Clone)]
pub struct RetryBudget {
    config: Config,
    /// Hundredths of a repeat, at most `reserve * TOKEN`.
    tokens: u64,
}

impl RetryBudget {
    /// A full bucket.
    pub const fn new(config: Config) -> Self {
        Self { config, tokens: config.reserve as u64 * TOKEN }
    }

    /// A call is made: its first attempt. Repeats of it are not counted here.
    pub fn handle_call(&mut self) {
        let cap = u64::from(self.config.reserve) * TOKEN;
        self.tokens = (self.tokens + u64::from(self.config.percent)).min(cap);
    }

    /// Takes the right to one repeat. `false`: pass the failure on, nothing was taken.
    #[must_use]
    pub const fn try_retry(&mut self) -> bool {
        if self.tokens < TOKEN {
            return false;
        }
        self.tokens -= TOKEN;
        true
    }

    /// Repeats that could be made at once.
    pub const fn available(&self) -> u64 {
        self.tokens / TOKEN
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Calls a target that is down: each call wants `wanted` repeats.
    fn attempts_at_dead_target(calls: u64, wanted: u32) -> u64 {
        let mut budget = RetryBudget::new(Config::default());
        let mut attempts = 0;
        for _ in 0..calls {
            budget.handle_call();
            attempts += 1;
            attempts += (0..wanted).take_while(|_| budget.try_retry()).count() as u64;
        }
        attempts
    }

    #[test]
    fn a_dead_target_gets_a_tenth_more_and_the_reserve() {
        assert_eq!(attempts_at_dead_target(10_000, 5), 11_009);
        assert_eq!(attempts_at_dead_target(1, 5), 6);
        assert_eq!(attempts_at_dead_target(0, 5), 0);
    }

    #[test]
    fn healthy_calls_save_up_no_more_than_the_reserve() {
        let mut budget = RetryBudget::new(Config::default());
        (0..100_000).for_each(|_| budget.handle_call());
        assert_eq!(budget.available(), 10);
        assert_eq!((0..100).take_while(|_| budget.try_retry()).count(), 10);
        assert!(!budget.try_retry());
    }

    proptest! {
        /// Over any run of steps, whatever came before: repeats <= calls / 10 + reserve.
        #[test]
        fn any_window_keeps_the_bound(
            steps in prop::collection::vec(any::<bool>(), 0..400),
            percent in 0_u32..50, reserve in 0_u32..20, from in 0_usize..400,
        ) {
            let mut budget = RetryBudget::new(Config { percent, reserve });
            let (mut calls, mut retries) = (0_u64, 0_u64);
            for (at, call) in steps.iter().enumerate() {
                let counted = u64::from(at >= from);
                if *call {
                    budget.handle_call();
                    calls += counted;
                } else if budget.try_retry() {
                    retries += counted;
                }
                prop_assert!(retries * TOKEN <= calls * u64::from(percent) + u64::from(reserve) * TOKEN);
            }
        }
    }
}
