//! A counter: the smallest whole program, with durable state and an HTTP API.

use std::process::ExitCode;

use mainstay::prelude::*;

/// A number that is counted up.
#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    /// Adds, and returns the new value.
    #[command]
    fn add(&mut self, by: i64) -> i64 {
        self.value = self.value.saturating_add(by);
        self.value
    }

    /// The value.
    #[query]
    fn get(&self) -> i64 {
        self.value
    }
}

fn main() -> ExitCode {
    mainstay_node::main(Registry::new().entity::<Counter>())
}
