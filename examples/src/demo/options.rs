//! What the demo can be told.

use std::time::Duration;

use clap::Parser;

/// Starts three real nodes, drives a bank and a stream of device readings through them, kills one
/// node with `kill -9`, restarts it, drains another, and then audits every acknowledged write.
///
/// Exits with 0 only if nothing was lost and nothing was applied twice.
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
#[derive(Debug, Clone, Parser)]
#[command(name = "demo", version)]
pub struct Options {
    /// Repeats the choices of an earlier run: who pays whom, which nodes are killed and drained
    #[arg(long)]
    pub seed: Option<u64>,

    /// Seconds under load
    #[arg(long, default_value_t = 34, value_parser = clap::value_parser!(u64).range(6..=3600))]
    pub seconds: u64,

    /// A short run of about 15 seconds in all, for tests
    #[arg(long)]
    pub fast: bool,

    /// Leaves data and logs on disk
    #[arg(long)]
    pub keep: bool,

    /// Prints one JSON object per event instead of text
    #[arg(long)]
    pub json: bool,

    /// Only starts the nodes and leaves them running until Ctrl-C
    #[arg(long)]
    pub hold: bool,
}

impl Options {
    /// How long the load runs.
    pub fn load(&self) -> Duration {
        Duration::from_secs(if self.fast { 8 } else { self.seconds })
    }

    /// The time between two lines of the table.
    pub fn line_every(&self) -> Duration {
        Duration::from_secs(if self.fast { 2 } else { 5 })
    }

    /// The moment of the story that lies at `share` of the load's time.
    pub fn at(&self, share: f64) -> Duration {
        self.load().mul_f64(share)
    }
}
