//! The program behind `make demo`, and the nodes that it starts.

use std::process::ExitCode;

fn main() -> ExitCode {
    mainstay_examples::demo::main()
}
