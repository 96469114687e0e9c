//! The command line without a node: it hosts no entity, and asks clusters of any program.

use std::process::ExitCode;

use mainstay::prelude::*;

fn main() -> ExitCode {
    mainstay_node::main(Registry::new())
}
