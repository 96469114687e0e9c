use mainstay::prelude::*;

#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[query]
    fn a(&mut self) {}

    #[command]
    fn b(&self) {}

    #[command]
    fn c(self) {}

    #[command]
    fn d(&'static mut self) {}

    #[query]
    fn e() {}

    #[command]
    fn f(self: &mut Self) {}

    #[query]
    async fn g(&self) {}
}

fn main() {}
