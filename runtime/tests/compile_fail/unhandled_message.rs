use mainstay::client::Ref;
use mainstay::prelude::*;

#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[query]
    fn get(&self) -> i64 {
        self.value
    }
}

#[data]
struct Stranger;

fn call(counter: &Ref<Counter>) {
    let _ = counter.command(Stranger);
    let _ = counter.query(Stranger);
    let _ = counter.command(CounterGet {});
}

fn main() {}
