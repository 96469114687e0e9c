//! `make chaos`: faults on real nodes with standbys, and a check of all that clients saw.
//!
//! `chaos [--faults 50] [--seed N] [--keep]`; without a seed one is drawn, and printed. `--keep`
//! leaves data and logs though all went well. See `cluster-tests/src/chaos.rs`.

use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mainstay_cluster_tests::chaos::{self, Kind, Settings};
use mainstay_cluster_tests::processes::Network;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("FAILED: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let (faults, seed, keep) = arguments()?;
    let program = std::env::current_exe()?.with_file_name("testnode");
    if !program.exists() {
        bail!("{} is missing; build the workspace's binaries first", program.display());
    }
    say(&format!("seed {seed}, {faults} faults"));
    let network = Network::new(1).inspect_err(|error| say(&format!("skipped: cuts: {error:#}")));
    let network = network.is_ok();
    let settings =
        Settings { program, seed, faults: Kind::draw(seed, faults, network), network, keep, say };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let summary = runtime.block_on(chaos::run(&settings))?;
    say(&summary.table());
    Ok(())
}

fn arguments() -> Result<(usize, u64, bool)> {
    let (mut faults, mut seed, mut keep) = (50, fastrand::u64(..1_000_000), false);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        if flag == "--keep" {
            keep = true;
            continue;
        }
        let number = arguments.next().and_then(|number| number.parse().ok());
        let number: u64 = number.with_context(|| format!("{flag} takes a whole number"))?;
        match flag.as_str() {
            "--faults" => faults = usize::try_from(number)?,
            "--seed" => seed = number,
            _ => bail!("unknown argument {flag}\nusage: chaos [--faults 50] [--seed N] [--keep]"),
        }
    }
    Ok((faults, seed, keep))
}

#[expect(clippy::print_stdout, reason = "this program's lines are its output")]
fn say(text: &str) {
    println!("{text}");
}
