use std::time::Duration;

use mainstay::client::Ref;
use mainstay::prelude::*;
use mainstay::protocol::id::Token;

#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[command]
    fn add(&mut self, by: i64) -> i64 {
        self.value += by;
        self.value
    }
}

fn call(counter: &Ref<Counter>, token: Token) {
    let _ = counter.command(CounterAdd { by: 1 }).strict();
    let _ = counter.command(CounterAdd { by: 1 }).at_least(token);
    let _ = counter.command(CounterAdd { by: 1 }).max_staleness(Duration::from_secs(1));
}

fn main() {}
