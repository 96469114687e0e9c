//! The entity that is measured: a counter with a query, the least that does work.

use mainstay::prelude::*;

/// A counter.
#[state(version = 1)]
pub(crate) struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    /// Adds and returns the new value.
    #[command]
    fn add(&mut self, by: i64) -> i64 {
        self.value += by;
        self.value
    }

    /// The value.
    #[query]
    fn get(&self) -> i64 {
        self.value
    }
}
