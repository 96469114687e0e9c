//! `bench [NAME] [--rounds N] [--json FILE]`: each part beside its floor, interleaved, as ratios.
//!
//! The machine is noisy, so no figure stands alone: every round measures Mainstay and its floor
//! one after the other (A B A B ..), the ratio is taken per round, and the median of the rounds is
//! reported with its spread.
#![expect(clippy::print_stdout, reason = "a program whose output is its table")]

mod entity;
mod floors;
mod harness;
mod nodes;
mod parts;

use std::path::PathBuf;

use harness::{Report, Row};

/// A part of the suite.
type Part = fn(rounds: usize) -> anyhow::Result<Vec<Row>>;

const PARTS: &[(&str, Part)] = &[
    ("local-ask", parts::local_ask),
    ("remote-ask", parts::remote_ask),
    ("durable-command", parts::durable_command),
    ("activation", parts::activation),
    ("idle-memory", parts::idle_memory),
];

fn main() -> anyhow::Result<()> {
    let options = Options::parse(std::env::args().skip(1))?;
    if options.serve {
        return nodes::serve_remote();
    }
    let mut report = Report::new();
    for (name, part) in PARTS {
        if options.name.as_deref().is_none_or(|wanted| wanted == *name) {
            println!("measuring {name} ..");
            report.rows.extend(part(options.rounds)?);
        }
    }
    anyhow::ensure!(!report.rows.is_empty(), "no such part; there are: {}", names());
    println!("\n{report}");
    if let Some(file) = options.json {
        std::fs::write(&file, serde_json::to_vec_pretty(&report)?)?;
    }
    Ok(())
}

fn names() -> String {
    PARTS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

struct Options {
    name: Option<String>,
    rounds: usize,
    json: Option<PathBuf>,
    /// The process is the other side of the remote part.
    serve: bool,
}

impl Options {
    fn parse(mut args: impl Iterator<Item = String>) -> anyhow::Result<Self> {
        let mut options = Self { name: None, rounds: 5, json: None, serve: false };
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--rounds" => {
                    let given = args.next().unwrap_or_default();
                    options.rounds = given.parse().map_err(|_| {
                        anyhow::anyhow!("--rounds takes a number of at least 1, not {given:?}")
                    })?;
                    anyhow::ensure!(options.rounds > 0, "--rounds takes at least 1");
                }
                "--json" => options.json = args.next().map(PathBuf::from),
                "--serve" => options.serve = true,
                "--help" | "-h" => {
                    println!("bench [NAME] [--rounds N] [--json FILE]\nparts: {}", names());
                    std::process::exit(0);
                }
                name if PARTS.iter().any(|(part, _)| *part == name) => {
                    options.name = Some(name.to_owned());
                }
                other => anyhow::bail!("no part or option {other:?}; parts: {}", names()),
            }
        }
        Ok(options)
    }
}
