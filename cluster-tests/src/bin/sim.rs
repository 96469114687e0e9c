//! Runs seeds of the simulator: `sim --seed N [--seeds COUNT]`. Stops at the first that fails.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mainstay_cluster_tests::sim::{self, trace::Counts};

fn main() -> Result<ExitCode> {
    let (seed, seeds) = arguments()?;
    let mut out = io::stdout();
    let mut counts = Counts::default();
    for seed in seed..seed.saturating_add(seeds) {
        match sim::run(seed, None) {
            Ok(outcome) => counts.add(outcome.counts),
            Err(violation) => {
                writeln!(out, "{violation}")?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    writeln!(out, "{seeds} seeds from {seed}: no violation\n{counts:#?}")?;
    Ok(ExitCode::SUCCESS)
}

/// `--seed` and `--seeds`.
fn arguments() -> Result<(u64, u64)> {
    let (mut seed, mut seeds) = (1, 1);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
        let value = value.parse().with_context(|| format!("{name} {value} is no number"))?;
        match name.as_str() {
            "--seed" => seed = value,
            "--seeds" => seeds = value,
            _ => bail!("usage: sim --seed N [--seeds COUNT]"),
        }
    }
    Ok((seed, seeds))
}
