//! `run` and `config`: everything that reads settings.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum as _};
use mainstay::metrics::CATALOGUE;
use serde_json::{Value, json};

use super::output::{Output, Trouble, lines, table};
use super::{Flags, RunArgs};
use crate::backend::Launch;
use crate::run::{INGRESS_THREADS, Signals, run as run_node};
use crate::settings::fields::{self, FIELDS};
use crate::settings::value::Raw;
use crate::settings::{Invalid, Loaded, Settings, Sources, load, schema};
use crate::telemetry;

#[derive(Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// The settings that `run` would take from here.
    #[command(after_help = "Examples:\n  mainstay config show --origin\n  mainstay config show \
        --defaults > mainstay.toml\n  mainstay config show --origin --set limits.requests=9000")]
    Show(Box<ShowArgs>),
    /// Check a file, and flags of `run` beside it, without starting.
    Check {
        /// The file.
        file: PathBuf,
        #[command(flatten)]
        flags: Box<Flags>,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// A JSON schema of the file, for editors.
    Schema,
}

#[derive(Debug, Args)]
pub(super) struct ShowArgs {
    /// Settings file; ./mainstay.toml is read when it exists.
    #[arg(long, short, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
    /// Say where each value comes from.
    #[arg(long)]
    origin: bool,
    /// Only the defaults, as a file with comments.
    #[arg(long, conflicts_with_all = ["origin", "config"])]
    defaults: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

pub(super) fn carry_out(verb: ConfigVerb, output: &Output) -> Result<(), Trouble> {
    match verb {
        ConfigVerb::Show(args) => show(&args, output),
        ConfigVerb::Check { file, flags: given, json } => {
            let sources = Sources {
                file: Some(file),
                flags: flags(&given)?,
                dev: given.dev,
                ..Sources::default()
            };
            check(&sources, json, output)
        }
        ConfigVerb::Schema => output.json(&schema::json_schema()),
    }
}

fn show(args: &ShowArgs, output: &Output) -> Result<(), Trouble> {
    if args.defaults && !args.json {
        return output.data(&schema::sample(&Settings::default(), schema::DEFAULTS));
    }
    let sources =
        if args.defaults { Sources::default() } else { sources(args.config.clone(), &args.flags)? };
    let loaded = read(&sources)?;
    for warning in &loaded.warnings {
        output.note(&format!("warning: {warning}"));
    }
    if args.json {
        return output.json(&as_json(&loaded));
    }
    if !args.origin {
        return output
            .data(&schema::sample(&loaded.settings, "as `run` would take them from here"));
    }
    let mut rows = table(&["setting", "value", "comes from"]);
    for field in FIELDS.iter() {
        let value = field.show(&loaded.settings).to_string();
        rows.add_row([field.path, &value, &loaded.origin(field.path).to_string()]);
    }
    output.data(&lines(&rows))
}

fn as_json(loaded: &Loaded) -> Value {
    let settings: Vec<Value> = FIELDS
        .iter()
        .map(|field| {
            let value = match field.show(&loaded.settings) {
                Raw::Untyped(text) | Raw::Text(text) => json!(text),
                Raw::Number(number) => json!(number),
                Raw::Flag(flag) => json!(flag),
                Raw::List(list) => json!(list),
                Raw::Absent | Raw::Other(_) => Value::Null,
            };
            let origin = loaded.origin(field.path).to_string();
            json!({"setting": field.path, "value": value, "origin": origin})
        })
        .collect();
    json!({
        "schema": "mainstay.config/v1",
        "settings": settings,
        "warnings": loaded.warnings,
    })
}

fn check(sources: &Sources, as_json: bool, output: &Output) -> Result<(), Trouble> {
    let name = sources.file.as_ref().map(|file| file.display().to_string()).unwrap_or_default();
    let checked = load(sources);
    if as_json {
        let problems: Vec<Value> = checked
            .as_ref()
            .err()
            .into_iter()
            .flat_map(|invalid| &invalid.0)
            .map(|problem| {
                json!({"code": problem.code, "at": problem.at, "text": problem.text,
                    "help": problem.help})
            })
            .collect();
        output.json(&json!({"schema": "mainstay.config-check/v1", "problems": problems}))?;
    }
    match checked {
        Ok(_) if as_json => Ok(()),
        Ok(_) => output.data(&format!("{name} is valid")),
        Err(invalid) => Err(trouble(&invalid)),
    }
}

fn read(sources: &Sources) -> Result<Loaded, Trouble> {
    load(sources).map_err(|invalid| trouble(&invalid))
}

fn trouble(invalid: &Invalid) -> Trouble {
    let code = invalid.0.first().map_or("MS-1001", |problem| problem.code);
    let trouble = Trouble::usage(invalid.to_string()).code(code);
    invalid.0.iter().fold(trouble, |trouble, problem| trouble.fact("problem", problem.to_string()))
}

fn environment() -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

/// Runs a node until it is told to stop.
pub(super) fn run(args: &RunArgs, output: &Output, launch: Box<dyn Launch>) -> Result<(), Trouble> {
    if launch.kinds().is_empty() {
        return Err(Trouble::usage("this program hosts no entity, so it is no node").help(
            "a node is a program that hands its entities to mainstay_node::main, such as \
             examples/src/bin/counter.rs",
        ));
    }
    let loaded = read(&sources(args.config.clone(), &args.flags)?)?;
    telemetry::install_log(&loaded.settings.log, output.color_err)
        .map_err(|error| Trouble::usage(error.to_string()).code("MS-1001"))?;
    let metrics = telemetry::install_metrics(CATALOGUE)
        .map_err(|error| Trouble::failed(error.to_string()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(INGRESS_THREADS)
        .thread_name("mainstay-ingress")
        .enable_all()
        .build()
        .map_err(|error| Trouble::failed(format!("no runtime: {error}")))?;
    let ended = runtime.block_on(async {
        let signals = Signals::take()
            .map_err(|error| Trouble::failed(format!("signals cannot be taken: {error}")))?;
        run_node(loaded, launch, Some(metrics), signals).await.map_err(Trouble::from)
    });
    runtime.shutdown_background();
    ended
}

/// All layers.
fn sources(file: Option<PathBuf>, given: &Flags) -> Result<Sources, Trouble> {
    Ok(Sources { file, env: environment(), flags: flags(given)?, dev: given.dev })
}

/// The flags of `run`, as settings.
fn flags(args: &Flags) -> Result<Vec<(&'static str, String, Raw)>, Trouble> {
    let mut flags = Vec::new();
    let named = [
        ("cluster.expect", "--expect", &args.expect),
        ("node", "--node", &args.node),
        ("data_dir", "--data-dir", &args.data_dir),
        ("peers.listen", "--listen", &args.listen),
        ("http.listen", "--http", &args.http),
        ("admin.listen", "--admin", &args.admin),
        ("zone", "--zone", &args.zone),
        ("cluster.shards", "--shards", &args.shards),
        ("log.filter", "--log", &args.log),
    ];
    for (path, flag, value) in named {
        if let Some(value) = value {
            flags.push((path, flag.to_owned(), Raw::Untyped(value.clone())));
        }
    }
    if !args.join.is_empty() {
        flags.push(("cluster.join", "--join".to_owned(), Raw::List(args.join.clone())));
    }
    if let Some(format) = args.log_format.and_then(|format| format.to_possible_value()) {
        let word = format.get_name().to_owned();
        flags.push(("log.format", "--log-format".to_owned(), Raw::Untyped(word)));
    }
    for set in &args.set {
        let (path, value) = set
            .split_once('=')
            .ok_or_else(|| Trouble::usage(format!("--set {set}: expected PATH=VALUE")))?;
        let field = fields::find(path).ok_or_else(|| {
            let unknown =
                Trouble::usage(format!("--set: unknown setting `{path}`")).code("MS-1002");
            match fields::nearest(path) {
                Some(near) => unknown.help(format!("did you mean `{near}`?")),
                None => unknown,
            }
        })?;
        flags.push((field.path, format!("--set {path}"), Raw::Untyped(value.to_owned())));
    }
    Ok(flags)
}
