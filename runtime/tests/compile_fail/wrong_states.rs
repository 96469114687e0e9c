use mainstay::prelude::*;

#[state]
struct Versionless {}

#[state(version = 0)]
struct Zero {}

#[state(version = 1)]
struct Generic<T> {
    value: T,
}

#[state(version = 1)]
struct Positional(i64);

#[state(version = 1, default = "none")]
struct NoDefault {}

#[data(version = 1)]
struct Options {}

fn main() {}
