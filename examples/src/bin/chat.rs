//! A node that hosts chat rooms.

use std::process::ExitCode;

use mainstay::prelude::*;
use mainstay_examples::chat::Room;

fn main() -> ExitCode {
    mainstay_node::main(Registry::new().entity::<Room>())
}
