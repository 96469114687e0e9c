//! A node that hosts the bank's accounts and transfers.

use std::process::ExitCode;

use mainstay::prelude::*;
use mainstay_examples::bank::{Account, Transfer};

fn main() -> ExitCode {
    mainstay_node::main(Registry::new().entity::<Account>().entity::<Transfer>())
}
