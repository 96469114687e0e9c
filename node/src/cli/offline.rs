//! Commands that ask no node: `explain`, `metrics catalog`, `completions`.

use clap::{Args, Command, Subcommand};
use clap_complete::Shell;
use mainstay::metrics::{CATALOGUE, Metric, Type};
use serde_json::json;

use super::output::{Output, Trouble, lines, table};
use super::remote::RemoteArgs;
use crate::explain;

#[derive(Debug, Args)]
pub(super) struct ExplainArgs {
    /// The code: MS-2101.
    #[arg(required_unless_present = "list")]
    code: Option<String>,
    /// All codes with their titles.
    #[arg(long, conflicts_with = "code")]
    list: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum MetricsVerb {
    /// The metrics that a node has: names, labels, units, what they tell.
    Catalog {
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// The metrics page of a node, as a scraper sees it.
    Dump(RemoteArgs),
}

#[derive(Debug, Args)]
pub(super) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(super) fn explain(args: &ExplainArgs, output: &Output) -> Result<(), Trouble> {
    let Some(id) = &args.code else { return list(args.json, output) };
    let code = explain::find(id).ok_or_else(|| {
        Trouble::not_found(format!("no code {id:?}")).help("mainstay explain --list")
    })?;
    if args.json {
        return output.json(&json!({
            "schema": "mainstay.code/v1",
            "code": code.id,
            "title": code.title(),
            "page": code.page,
        }));
    }
    output.data(code.page)
}

fn list(as_json: bool, output: &Output) -> Result<(), Trouble> {
    if as_json {
        let codes: Vec<_> = explain::CODES
            .iter()
            .map(|code| json!({"code": code.id, "title": code.title()}))
            .collect();
        return output.json(&json!({"schema": "mainstay.codes/v1", "codes": codes}));
    }
    let lines: Vec<String> =
        explain::CODES.iter().map(|code| format!("{}  {}", code.id, code.title())).collect();
    output.data(&lines.join("\n"))
}

pub(super) fn catalog(as_json: bool, output: &Output) -> Result<(), Trouble> {
    if as_json {
        let metrics: Vec<_> = CATALOGUE
            .iter()
            .map(|metric| {
                let buckets = match metric.is {
                    Type::Histogram(buckets) => Some(buckets),
                    Type::Counter | Type::Gauge => None,
                };
                json!({
                    "name": metric.name,
                    "type": word(metric),
                    "labels": metric.labels,
                    "unit": metric.unit,
                    "help": metric.help,
                    "buckets": buckets,
                })
            })
            .collect();
        return output.json(&json!({"schema": "mainstay.metrics/v1", "metrics": metrics}));
    }
    let mut rows = table(&["name", "type", "labels", "unit", "what it tells"]);
    for metric in CATALOGUE {
        let labels = metric.labels.join(", ");
        rows.add_row([metric.name, word(metric), &labels, metric.unit, metric.help]);
    }
    output.data(&lines(&rows))
}

fn word(metric: &Metric) -> &'static str {
    match metric.is {
        Type::Counter => "counter",
        Type::Gauge => "gauge",
        Type::Histogram(_) => "histogram",
    }
}

pub(super) fn completions(
    args: &CompletionsArgs,
    command: &mut Command,
    output: &Output,
) -> Result<(), Trouble> {
    let mut script = Vec::new();
    let program = command.get_bin_name().unwrap_or("mainstay").to_owned();
    clap_complete::generate(args.shell, command, program, &mut script);
    output.data(&String::from_utf8_lossy(&script))
}
