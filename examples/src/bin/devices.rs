//! A node that hosts devices and their readings.

use std::process::ExitCode;

use mainstay::prelude::*;
use mainstay_examples::devices::Telemetry;

fn main() -> ExitCode {
    mainstay_node::main(Registry::new().entity::<Telemetry>())
}
