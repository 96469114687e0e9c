use mainstay::prelude::*;

#[state(version = 1)]
struct Counter {
    _value: i64,
}

#[entity(name = "counter")]
impl Counter {
    #[command]
    fn a(&mut self, _name: &str) {}

    #[command]
    fn b(&mut self, _names: Vec<&'static str>) {}

    #[command]
    fn c<T: Clone>(&mut self, _value: T) {}

    #[command]
    fn d(&mut self, _value: impl Clone) {}

    #[command]
    fn e(&mut self, (_x, _y): (i64, i64)) {}

    #[command]
    fn f(&mut self, _: i64) {}

    #[command]
    fn g(&mut self, _by: i64, _cx: &mut Cx<'_>) {}

    #[query]
    fn h(&self, _cx: &mut Cx<'_>) {}

    #[command]
    fn i(&mut self, _cx: Cx<'_>) {}

    #[command]
    fn j(&mut self, #[serde(rename = "z")] _by: i64) {}

    #[query]
    fn k(&self) -> &str {
        ""
    }

    #[query]
    fn l(&self) -> Result<i64> {
        Ok(1)
    }
}

fn main() {}
