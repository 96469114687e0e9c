use mainstay::prelude::*;

#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity]
impl Counter {
    #[command]
    fn add(&mut self) {}
}

#[entity(name = "Counter")]
impl Counter {}

#[entity(name = "counter", idle = "15")]
impl Counter {}

#[entity(name = "counter", mailbox = 0)]
impl Counter {}

#[entity(name = "counter", mailbx = 3)]
impl Counter {
    #[command(deadline = "soon")]
    fn a(&mut self) {}

    #[command(priority = high)]
    fn b(&mut self) {}

    #[command(blocking)]
    async fn c(&mut self) {}

    #[command]
    #[query]
    fn d(&mut self) {}

    #[command]
    fn get_e(&mut self) {}

    #[query]
    fn get__e(&self) {}
}

#[entity(name = "counter")]
impl Clone for Counter {
    fn clone(&self) -> Self {
        Counter { value: self.value }
    }
}

#[entity(name = "counter")]
struct NoImpl;

fn main() {}
