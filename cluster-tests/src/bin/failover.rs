//! `make failover-bench`: from a fault to the first acknowledged write, many times.
//!
//! `failover [--faults 100] [--json FILE]`; see `cluster-tests/src/failover.rs`.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mainstay_cluster_tests::failover::{self, Sample};

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
    let (faults, json) = arguments()?;
    let program = std::env::current_exe()?.with_file_name("testnode");
    if !program.exists() {
        bail!("{} is missing; build the workspace's binaries first", program.display());
    }
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let samples: Vec<Sample> = runtime.block_on(failover::run(program, faults, say))?;
    say(&failover::table(&samples));
    say(&failover::plot(&samples));
    if let Some(path) = json {
        serde_json::to_writer_pretty(File::create(&path)?, &samples)?;
        say(&format!("samples, in microseconds: {}", path.display()));
    }
    Ok(())
}

fn arguments() -> Result<(usize, Option<PathBuf>)> {
    let (mut faults, mut json) = (100, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(flag) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{flag} takes a value"))?;
        match flag.as_str() {
            "--faults" => faults = value.parse().context("--faults takes a whole number")?,
            "--json" => json = Some(PathBuf::from(value)),
            _ => bail!("unknown argument {flag}\nusage: failover [--faults 100] [--json FILE]"),
        }
    }
    Ok((faults, json))
}

#[expect(clippy::print_stdout, reason = "this program's lines are its output")]
fn say(text: &str) {
    println!("{text}");
}
