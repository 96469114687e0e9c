use mainstay::prelude::*;

#[state(version = 1)]
struct Counter {
    value: i64,
    names: Vec<String>,
}

#[entity(name = "counter")]
impl Counter {
    #[query]
    fn bump(&self) -> i64 {
        self.value += 1;
        self.value
    }

    #[query]
    fn push(&self) {
        self.names.push(String::new());
    }
}

fn main() {}
