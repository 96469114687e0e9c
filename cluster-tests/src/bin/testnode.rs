//! The node that the process tests start: the real node program, with the entities of the tests.

use std::process::ExitCode;

fn main() -> ExitCode {
    mainstay_cluster_tests::processes::end_with_stdin();
    mainstay_cluster_tests::testnode::take_drive();
    mainstay_node::main(mainstay_cluster_tests::testnode::registry())
}
