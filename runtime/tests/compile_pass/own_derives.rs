//! Derives that a type has already stay its own.

use mainstay::prelude::*;

#[data]
#[derive(Eq, PartialOrd, Ord, Debug)]
struct Id(u64);

#[state(version = 1)]
#[derive(Clone, Debug, Default)]
struct Holds {
    holds: std::collections::BTreeMap<u64, Id>,
}

#[entity(name = "holds")]
impl Holds {
    #[query]
    fn first(&self) -> Option<Id> {
        self.clone().holds.into_values().min()
    }
}

fn main() {
    assert_eq!(Holds::default().first(), None);
}
