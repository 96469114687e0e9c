//! Runs seeds of a simulator, and stops at the first that fails.
//!
//! `sim shard|cluster --seed N [--seeds COUNT] [--story N] [--planted N]`
//! `sim exhaustive` searches every state of small clusters, with no seed.
//! `sim mutants --seeds COUNT` plants every fault, and says who finds it, and in which seed.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use mainstay_cluster_tests::cluster_sim::{PLANTED, Planted};
use mainstay_cluster_tests::exhaustive::{self, scopes};
use mainstay_cluster_tests::{cluster_sim, sim};

const USAGE: &str = "usage: sim exhaustive | shard|cluster|mutants --seed N [--seeds COUNT] [--story N] [--planted N]";

/// No search keeps more states: some 4 GiB.
const STATES_MAX: usize = 3_000_000;

/// What is asked for.
struct Arguments {
    what: fn(&Self) -> Result<String, String>,
    seed: u64,
    seeds: u64,
    story: Option<usize>,
    planted: Option<Planted>,
}

fn main() -> Result<ExitCode> {
    if std::env::args().nth(1).as_deref() == Some("exhaustive") {
        return search_all();
    }
    let arguments = arguments()?;
    let (seed, seeds) = (arguments.seed, arguments.seeds);
    let mut out = io::stdout();
    match (arguments.what)(&arguments) {
        Ok(counts) => {
            writeln!(out, "{seeds} seeds from {seed}: no violation\n{counts}")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(violation) => {
            writeln!(out, "{violation}")?;
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Every scope of the exhaustive search, small and large.
fn search_all() -> Result<ExitCode> {
    let mut out = io::stdout();
    for scope in scopes::SMALL.iter().chain(&scopes::LARGE) {
        match exhaustive::search(scope, None, STATES_MAX) {
            Ok(report) => writeln!(out, "{}: {report:?}", scope.name)?,
            Err(violation) => {
                writeln!(out, "{}:\n{violation}", scope.name)?;
                return Ok(ExitCode::FAILURE);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One shard, its turns and its clients.
fn shards(arguments: &Arguments) -> Result<String, String> {
    let mut counts = sim::trace::Counts::default();
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let ran = sim::run(seed, None).map_err(|violation| violation.to_string())?;
        counts.add(ran.counts);
    }
    Ok(format!("{counts:#?}"))
}

/// A cluster and its copies.
fn clusters(arguments: &Arguments) -> Result<String, String> {
    let mut counts = cluster_sim::Counts::default();
    for seed in arguments.seed..arguments.seed.saturating_add(arguments.seeds) {
        let ran = cluster_sim::run(seed, arguments.story, arguments.planted);
        let told = |_: &_| cluster_sim::tell(seed, arguments.story, arguments.planted);
        counts.add(ran.map_err(|violation| format!("{}\n{violation}", told(&violation)))?.counts);
    }
    Ok(format!("{counts:#?}"))
}

/// Every planted fault, by random faults and by stories.
fn mutants(arguments: &Arguments) -> Result<String, String> {
    let mut survive = 0;
    for planted in PLANTED {
        let stories = (0..cluster_sim::faults::STORIES.len()).map(Some);
        let found: Vec<_> = std::iter::once(None)
            .chain(stories)
            .filter_map(|story| {
                let (seed, finder) = cluster_sim::seeds_to_kill(planted, story, arguments.seeds)?;
                let told = story.map_or_else(|| "random".to_owned(), |at| format!("story {at}"));
                Some(format!("{told} seed {seed} {finder}"))
            })
            .collect();
        survive += u32::from(found.is_empty());
        writeln!(io::stdout(), "{planted:?}: {}", found.join(", "))
            .map_err(|error| error.to_string())?;
    }
    Ok(format!("{survive} survive"))
}

fn arguments() -> Result<Arguments> {
    let mut arguments = std::env::args().skip(1);
    let what = match arguments.next().as_deref() {
        Some("shard") => shards,
        Some("cluster") => clusters,
        Some("mutants") => mutants,
        _ => bail!(USAGE),
    };
    let mut asked = Arguments { what, seed: 1, seeds: 1, story: None, planted: None };
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a number"))?;
        let value: u64 = value.parse().with_context(|| format!("{name} {value} is no number"))?;
        match name.as_str() {
            "--seed" => asked.seed = value,
            "--seeds" => asked.seeds = value,
            "--story" => {
                let story = usize::try_from(value)?;
                let stories = cluster_sim::faults::STORIES.len();
                anyhow::ensure!(story < stories, "stories are 0 to {}", stories - 1);
                asked.story = Some(story);
            }
            "--planted" => {
                let planted = usize::try_from(value).ok().and_then(|at| PLANTED.get(at));
                asked.planted = Some(*planted.context("there is no such planted fault")?);
            }
            _ => bail!(USAGE),
        }
    }
    Ok(asked)
}
