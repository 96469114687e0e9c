//! The tests of the house: its own rules, its alert rules, and real node processes.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test")]

mod source;
mod tidy;
mod rules;
mod processes;

/// Says that a test could not do its work here, and why.
#[expect(clippy::print_stdout, reason = "a skipped test is never silent")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}
