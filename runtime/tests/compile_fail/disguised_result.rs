use mainstay::prelude::*;

type Answer = Result<i64, String>;

#[state(version = 1)]
struct Counter {
    value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[command]
    fn add(&mut self) -> Answer {
        self.value += 1;
        Err("too late".to_owned())
    }
}

fn main() {}
