//! The command line: its words, and which room carries each of them out.
//!
//! Data goes to standard output, everything else to standard error. Exit codes: 0 ok, 1 failed,
//! 2 usage, 3 not found, 4 conflict, 5 unavailable or timed out, 7 unhealthy, 130 interrupted.
//! With `--json`, what goes to standard error is one JSON object.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{
    Args, Command, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum,
};

use crate::backend::Launch;
use crate::settings::LogFormat;

mod config;
mod entities;
mod events;
mod node;
mod offline;
mod output;
mod remote;
mod shards;
mod status;

use output::{Output, Trouble};
use remote::Remote;

const EXIT_CODES: &str = "Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 conflict, 5 \
    unavailable or timed out, 7 unhealthy, 130 interrupted.";

/// Stateful entities, placed where their state lives.
#[derive(Debug, Parser)]
#[command(name = "mainstay", version, infer_subcommands = true)]
struct Cli {
    /// Whether to use colour.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        help = "Whether to use colour; NO_COLOR and CLICOLOR_FORCE are heeded as well"
    )]
    color: ColorChoice,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ColorChoice {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Start a node.
    #[command(
        after_help = "Examples:\n  mainstay run --dev                      a cluster of one, \
        for trying out\n  mainstay run --dev --join 127.0.0.1:7000 --data-dir data-2\n  \
        mainstay run --config mainstay.toml --node n1 --expect 3 --join n2:7000 --join n3:7000"
    )]
    Run(Box<RunArgs>),
    /// One screen: health, members, shards.
    #[command(after_help = "Examples:\n  mainstay status\n  mainstay status --check && echo \
        healthy\n  mainstay status --json | jq .cluster.shards_unavailable")]
    Status(status::StatusArgs),
    /// Members of the cluster.
    #[command(subcommand)]
    Nodes(node::NodesVerb),
    /// Shards: who serves which.
    #[command(subcommand)]
    Shards(shards::ShardsVerb),
    /// Entities: kinds, lists, one entity, calls.
    #[command(subcommand, alias = "e")]
    Entities(entities::EntitiesVerb),
    /// Hand a member's shards over to the others; it leaves the cluster then, and its process ends.
    #[command(after_help = "Examples:\n  mainstay drain --wait --timeout 2m     the node that \
        answers\n  mainstay drain n3 --wait")]
    Drain(node::DrainArgs),
    /// A member that drains stays after all.
    Undrain(node::MemberArgs),
    /// Remove a member that is down for good; refused while it holds shards.
    Remove(node::RemoveArgs),
    /// What happened to the cluster, as this node saw it.
    #[command(after_help = "Examples:\n  mainstay events\n  mainstay events --follow --json")]
    Events(events::EventsArgs),
    /// Who calls whom, and how many of these calls stay on their node.
    Locality(remote::RemoteArgs),
    /// Settings: shown, checked, described.
    #[command(subcommand)]
    Config(config::ConfigVerb),
    /// What an error code means and what to do.
    #[command(after_help = "Examples:\n  mainstay explain MS-2101\n  mainstay explain --list")]
    Explain(offline::ExplainArgs),
    /// Metrics of a node.
    #[command(subcommand)]
    Metrics(offline::MetricsVerb),
    /// A completion script for a shell.
    #[command(after_help = "Example:\n  source <(mainstay completions bash)")]
    Completions(offline::CompletionsArgs),
}

#[derive(Debug, Args)]
struct RunArgs {
    /// Settings file; ./mainstay.toml is read when it exists.
    #[arg(long, short, value_name = "FILE", env = "MAINSTAY_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    flags: Flags,
}

/// The settings that flags give: of `run`, and of what shows or checks settings.
#[derive(Debug, Default, Args)]
struct Flags {
    /// For trying out: form a cluster alone, move off default ports that are taken.
    #[arg(long)]
    dev: bool,
    /// Peer address of a member to join through; repeat for more.
    #[arg(long, value_name = "HOST:PORT", num_args = 1..)]
    join: Vec<String>,
    /// Form a new cluster when this many fresh nodes see each other.
    #[arg(long, value_name = "N")]
    expect: Option<String>,
    /// The node's stable name.
    #[arg(long, value_name = "NAME")]
    node: Option<String>,
    /// Where all data of this node lives.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<String>,
    /// Where peers reach this node.
    #[arg(long, value_name = "HOST:PORT")]
    listen: Option<String>,
    /// Where callers reach the API.
    #[arg(long, value_name = "HOST:PORT")]
    http: Option<String>,
    /// Where operators reach the node.
    #[arg(long, value_name = "HOST:PORT")]
    admin: Option<String>,
    /// The failure zone.
    #[arg(long, value_name = "ZONE")]
    zone: Option<String>,
    /// Shards of a new cluster.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// How log lines look [default: compact on a terminal, json elsewhere].
    #[arg(long, value_enum)]
    log_format: Option<LogFormat>,
    /// What is logged: info, or debug,redb=warn.
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// Any setting, by its path: --set limits.requests=9000.
    #[arg(long, value_name = "PATH=VALUE")]
    set: Vec<String>,
}

/// Runs the command line of this process.
pub fn main(launch: impl Launch) -> ExitCode {
    main_from(std::env::args_os(), launch)
}

/// Runs a command line.
pub fn main_from(
    args: impl IntoIterator<Item = impl Into<OsString> + Clone>,
    launch: impl Launch,
) -> ExitCode {
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let json = args.iter().take_while(|arg| *arg != "--").any(|arg| arg == "--json");
    let program = program(&args);
    let output = Output::new(ColorChoice::Auto, json, &program);
    let mut command = command(&program, &launch.kinds());
    if args.len() <= 1 {
        let help = command.render_long_help();
        return output.finish(output.data(&help.to_string()));
    }
    let parsed = command.try_get_matches_from_mut(args);
    let cli = match parsed.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => cli,
        Err(error) if json && error.use_stderr() => {
            return output.finish(Err(Trouble::usage(error.to_string().trim_end())));
        }
        Err(error) => {
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            // a closed standard error leaves the exit code
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    let output = Output::new(cli.color, json, &program);
    let result = dispatch(cli.verb, command, &output, launch);
    output.finish(result)
}

/// What this program is called: any program that hosts entities is a node with all these words.
fn program(args: &[OsString]) -> String {
    let name = args.first().and_then(|path| Path::new(path).file_stem());
    name.map_or_else(|| "mainstay".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The command line under the program's own name, with first steps that work.
fn command(program: &str, kinds: &[&str]) -> Command {
    let steps = match kinds {
        [] => "mainstay status --endpoint http://127.0.0.1:9070\n  mainstay explain --list",
        kinds if kinds.contains(&"counter") => {
            "mainstay run --dev\n  curl localhost:8080/v1/counter/alice/add --json \
             '{\"by\":2}'\n  mainstay status"
        }
        _ => "mainstay run --dev\n  mainstay entities kinds\n  mainstay status",
    };
    let help = format!("{EXIT_CODES}\n\nFirst steps:\n  {steps}");
    renamed(Cli::command().after_help(help), program).bin_name(program)
}

/// The examples of a command and of those below it, under the program's own name.
fn renamed(command: Command, program: &str) -> Command {
    let name = format!("{program} ");
    let help = command.get_after_help().map(|help| help.to_string().replace("mainstay ", &name));
    let command = match help {
        Some(help) => command.after_help(help),
        None => command,
    };
    command.mut_subcommands(|command| renamed(command, program))
}

fn dispatch(
    verb: Verb,
    mut command: Command,
    output: &Output,
    launch: impl Launch,
) -> Result<(), Trouble> {
    match verb {
        Verb::Run(args) => config::run(&args, output, Box::new(launch)),
        Verb::Config(verb) => config::carry_out(verb, output),
        Verb::Explain(args) => offline::explain(&args, output),
        Verb::Completions(args) => offline::completions(&args, &mut command, output),
        Verb::Metrics(offline::MetricsVerb::Catalog { json }) => offline::catalog(json, output),
        Verb::Metrics(offline::MetricsVerb::Dump(args)) if args.json => {
            let text = "metrics dump prints the page of a scraper, which has no JSON form";
            Err(Trouble::usage(text)
                .help("what there is, as JSON: mainstay metrics catalog --json"))
        }
        Verb::Metrics(offline::MetricsVerb::Dump(args)) => {
            with_node(&args, async |node| output.data(&node.get_text("/metrics").await?))
        }
        Verb::Status(args) => {
            with_node(&args.remote, async |node| status::show(&args, node, output).await)
        }
        Verb::Nodes(node::NodesVerb::Ls(args)) => {
            with_node(&args, async |remote| node::list(&args, remote, output).await)
        }
        Verb::Drain(args) => {
            with_node(&args.remote, async |remote| node::drain(&args, remote, output).await)
        }
        Verb::Undrain(args) => {
            with_node(&args.remote, async |remote| node::undrain(&args, remote, output).await)
        }
        Verb::Remove(args) => {
            with_node(&args.remote, async |remote| node::remove(&args, remote, output).await)
        }
        Verb::Shards(verb) => {
            with_node(verb.remote(), async |remote| shards::show(&verb, remote, output).await)
        }
        Verb::Entities(verb) => with_node(verb.remote(), async |remote| {
            entities::carry_out(&verb, remote, output).await
        }),
        Verb::Events(args) => {
            with_node(&args.remote, async |remote| events::show(&args, remote, output).await)
        }
        Verb::Locality(args) => {
            with_node(&args, async |remote| status::locality(&args, remote, output).await)
        }
    }
}

/// Carries out something that asks a node, and lets Ctrl-C end it.
fn with_node(
    args: &remote::RemoteArgs,
    work: impl AsyncFnOnce(&Remote) -> Result<(), Trouble>,
) -> Result<(), Trouble> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| Trouble::failed(format!("no runtime: {error}")))?;
    let remote = Remote::new(args)?;
    runtime.block_on(async {
        tokio::select! {
            done = work(&remote) => done,
            _ = tokio::signal::ctrl_c() => Err(Trouble::interrupted()),
        }
    })
}

/// Reads a duration of the command line.
fn span(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound_and_fits_the_page() {
        let mut command = command("mainstay", &["counter"]);
        command.clone().debug_assert();
        command.build();
        let mut commands = vec![command];
        while let Some(mut command) = commands.pop() {
            let help = command.clone().term_width(100).render_help().to_string();
            let widest = help.lines().map(|line| line.chars().count()).max().unwrap();
            assert!(widest <= 100, "{}: {widest}\n{help}", command.get_name());
            commands.extend(command.get_subcommands_mut().map(|command| command.clone()));
        }
    }
}
