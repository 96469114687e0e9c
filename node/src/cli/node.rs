//! `nodes`, `drain`, `undrain`, `remove`: who takes part.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use clap::{Args, Subcommand};
use reqwest::Method;
use tokio::time::Instant;

use super::output::{Output, Trouble, lines, table};
use super::remote::{Remote, RemoteArgs};
use crate::http::overview::{NodeRow, Nodes, Status};
use crate::http::path::encode;
use crate::http::views::Change;

/// How often a drain is looked at.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Subcommand)]
pub(super) enum NodesVerb {
    /// The members, and how many shards each of them serves.
    Ls(RemoteArgs),
}

#[derive(Debug, Args)]
pub(super) struct MemberArgs {
    /// The member.
    node: String,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub(super) struct DrainArgs {
    /// The member; without one, the node that answers.
    node: Option<String>,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
    /// Wait until it left the cluster, as long as --timeout says.
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, Args)]
pub(super) struct RemoveArgs {
    /// The member.
    node: String,
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
    /// Do not ask.
    #[arg(long, short)]
    yes: bool,
}

pub(super) async fn list(
    args: &RemoteArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let nodes: Nodes = remote.get("/admin/v1/nodes").await?;
    if args.json {
        return output.json(&nodes);
    }
    let head =
        ["name", "state", "zone", "weight", "lanes", "serves", "wanted", "moving", "peers", "api"];
    let mut rows = table(&head);
    for node in &nodes.nodes {
        let leads = if node.leader { " (leader)" } else { "" };
        rows.add_row([
            format!("{}{leads}", node.name),
            if node.state == "up" { output.good("up") } else { output.bad(&node.state) },
            node.zone.clone(),
            node.weight.to_string(),
            node.lanes.to_string(),
            node.primaries.to_string(),
            node.wanted.to_string(),
            format!("+{} -{}", node.arriving, node.leaving),
            node.peers.clone(),
            node.api.clone(),
        ]);
    }
    output.data(&lines(&rows))
}

pub(super) async fn drain(
    args: &DrainArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let name = match &args.node {
        Some(name) => name.clone(),
        None => remote.get::<Status>("/admin/v1/status").await?.node.name.to_string(),
    };
    let path = format!("/admin/v1/nodes/{}/drain", encode(&name));
    let change: Change = remote.change(Method::POST, &path).await?;
    if args.wait {
        wait_until_left(&name, args.remote.timeout, remote, output).await?;
    }
    if args.remote.json {
        return output.json(&change);
    }
    if args.wait {
        return output.data(&format!(
            "{name} handed everything over and left the cluster: its process ends; start it again \
             to rejoin"
        ));
    }
    let program = output.program();
    output.data(&format!(
        "{name} hands its shards over, then leaves the cluster; `{program} undrain` stops that"
    ))
}

/// Waits until a member is none any more. Asked itself, it may answer no more: once it held no
/// shard, that is the same.
async fn wait_until_left(
    name: &str,
    timeout: Duration,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let until = Instant::now() + timeout;
    let mut told = None;
    loop {
        let nodes: Nodes = match remote.get("/admin/v1/nodes").await {
            Ok(nodes) => nodes,
            Err(_) if told == Some(0) => return Ok(()),
            Err(trouble) => return Err(trouble),
        };
        let row = nodes.nodes.iter().find(|row: &&NodeRow| row.name.as_str() == name);
        let Some(left) = row.map(|row| row.primaries) else { return Ok(()) };
        if told != Some(left) {
            output.note(&format!("{name}: {left} shards left"));
            told = Some(left);
        }
        if Instant::now() >= until {
            let text = match left {
                0 => format!("{name} serves no shard, but is still a member after {timeout:?}"),
                _ => format!("{name} still serves {left} shards after {timeout:?}"),
            };
            return Err(Trouble::unavailable(text)
                .help("the drain goes on; wait longer with --timeout, or `mainstay undrain`"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn undrain(
    args: &MemberArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let path = format!("/admin/v1/nodes/{}/undrain", encode(&args.node));
    let change: Change = remote.change(Method::POST, &path).await?;
    if args.remote.json {
        return output.json(&change);
    }
    output.data(&format!("{} stays", args.node))
}

pub(super) async fn remove(
    args: &RemoveArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let name = &args.node;
    if !args.yes && !confirmed(name)? {
        return Err(Trouble::failed(format!("{name} was not removed")));
    }
    let path = format!("/admin/v1/nodes/{}", encode(name));
    let change: Change = remote.change(Method::DELETE, &path).await?;
    if args.remote.json {
        return output.json(&change);
    }
    output.data(&format!("{name} is no member any more"))
}

/// Asks, where there is somebody to ask.
fn confirmed(name: &str) -> Result<bool, Trouble> {
    if !std::io::stdin().is_terminal() {
        return Err(Trouble::usage("removing a member asks first: say --yes"));
    }
    let asked = write!(std::io::stderr(), "remove {name} from the cluster for good? [y/N] ");
    let mut answer = String::new();
    let read = asked.and_then(|()| std::io::stdin().read_line(&mut answer));
    read.map_err(|error| Trouble::failed(format!("no answer: {error}")))?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
