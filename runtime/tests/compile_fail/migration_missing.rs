use mainstay::prelude::*;

#[state(version = 1)]
struct Old {}

#[state(version = 2, from = Old)]
struct New {}

#[state(version = 1, from = Old)]
struct SameVersion {}

impl Migrate<Old> for SameVersion {
    fn migrate(_: Old) -> Self {
        Self {}
    }
}

fn main() {}
