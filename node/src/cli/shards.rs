//! `shards`: who serves which.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use clap::{Args, Subcommand};
use mainstay::protocol::id::NodeId;

use super::output::{Output, Trouble, lines, table};
use super::remote::{Remote, RemoteArgs};
use crate::http::overview::{ShardRow, Shards};

/// Shards that one request asks for.
const PAGE: u32 = 2_000;
/// Shards in one line of the map.
const MAP_WIDTH: usize = 64;
/// What stands for a node in the map, by its place in the list of names.
const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

#[derive(Debug, Subcommand)]
pub(super) enum ShardsVerb {
    /// One line per shard.
    #[command(after_help = "Examples:\n  mainstay shards ls --limit 20\n  mainstay shards ls \
        --unavailable")]
    Ls(ListArgs),
    /// All shards at a glance: a letter for the node that serves each.
    Map(RemoteArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    #[command(flatten)]
    remote: RemoteArgs,
    /// Only shards that nobody serves.
    #[arg(long)]
    unavailable: bool,
    /// Only shards on the move.
    #[arg(long)]
    moving: bool,
    /// Only shards that this node serves.
    #[arg(long, value_name = "NODE")]
    node: Option<String>,
    /// Only shards after this one.
    #[arg(long, value_name = "SHARD")]
    after: Option<u32>,
    /// At most so many lines.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl ShardsVerb {
    pub(super) fn remote(&self) -> &RemoteArgs {
        match self {
            Self::Ls(args) => &args.remote,
            Self::Map(args) => args,
        }
    }
}

pub(super) async fn show(
    verb: &ShardsVerb,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    match verb {
        ShardsVerb::Ls(args) => list(args, remote, output).await,
        ShardsVerb::Map(args) => map(args, remote, output).await,
    }
}

async fn list(args: &ListArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let keep = |row: &ShardRow| {
        let primary = row.primary.as_ref().map(NodeId::as_str);
        (!args.unavailable || !row.available)
            && (!args.moving || row.moving_to.is_some())
            && args.node.as_deref().is_none_or(|node| primary == Some(node))
    };
    let shards = collect(args.after, args.limit, keep, remote).await?;
    if args.remote.json {
        return output.json(&shards);
    }
    let mut rows =
        table(&["shard", "epoch", "primary", "state", "in sync", "wanted at", "moving to"]);
    for row in &shards.shards {
        rows.add_row([
            row.shard.to_string(),
            row.epoch.to_string(),
            name(row.primary.as_ref()),
            if row.available { output.good("served") } else { output.bad("UNAVAILABLE") },
            names(&row.in_sync),
            names(&row.targets),
            name(row.moving_to.as_ref()),
        ]);
    }
    if let Some(next) = shards.next {
        output.note(&format!("more: {} shards ls --after {next}", output.program()));
    }
    output.data(&lines(&rows))
}

/// The first `limit` shards that are to be kept, page by page.
async fn collect(
    mut after: Option<u32>,
    limit: usize,
    keep: impl Fn(&ShardRow) -> bool,
    remote: &Remote,
) -> Result<Shards, Trouble> {
    let mut kept = Vec::new();
    loop {
        let from = after.map(|after| format!("&after={after}")).unwrap_or_default();
        let page: Shards = remote.get(&format!("/admin/v1/shards?limit={PAGE}{from}")).await?;
        for row in page.shards.into_iter().filter(&keep) {
            if kept.len() == limit {
                let next = kept.last().map(|row: &ShardRow| row.shard);
                return Ok(Shards { shards: kept, next, ..page_without_rows(page.total) });
            }
            kept.push(row);
        }
        after = page.next;
        if after.is_none() {
            return Ok(Shards { shards: kept, ..page_without_rows(page.total) });
        }
    }
}

fn page_without_rows(total: u32) -> Shards {
    Shards { schema: "mainstay.shards/v1".to_owned(), total, shards: Vec::new(), next: None }
}

async fn map(args: &RemoteArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let shards = collect(None, usize::MAX, |_| true, remote).await?;
    if args.json {
        return output.json(&shards);
    }
    output.data(&picture(&shards.shards))
}

/// A letter per shard; `.` for those that nobody serves, `*` after the letters run out.
fn picture(shards: &[ShardRow]) -> String {
    let mut serves: BTreeMap<&NodeId, usize> = BTreeMap::new();
    for node in shards.iter().filter_map(|row| row.primary.as_ref()) {
        *serves.entry(node).or_default() += 1;
    }
    let letter = |node: &NodeId| {
        let at = serves.keys().position(|name| *name == node).unwrap_or(usize::MAX);
        LETTERS.chars().nth(at).unwrap_or('*')
    };
    let cells: Vec<char> = shards
        .iter()
        .map(|row| row.primary.as_ref().filter(|_| row.available).map_or('.', letter))
        .collect();
    let mut text = String::new();
    for (at, line) in cells.chunks(MAP_WIDTH).enumerate() {
        let line: String = line.iter().collect();
        writeln!(text, "{:>6}  {line}", at * MAP_WIDTH).expect("text takes all");
    }
    for (node, count) in &serves {
        writeln!(text, "{:>6}  {node}: {count} shards", letter(node)).expect("text takes all");
    }
    let unserved = cells.iter().filter(|cell| **cell == '.').count();
    if unserved > 0 {
        writeln!(text, "     .  nobody: {unserved} shards").expect("text takes all");
    }
    text
}

fn name(node: Option<&NodeId>) -> String {
    node.map_or_else(|| "-".to_owned(), ToString::to_string)
}

fn names(nodes: &[NodeId]) -> String {
    let names: Vec<&str> = nodes.iter().map(NodeId::as_str).collect();
    names.join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_picture_has_a_letter_for_every_served_shard() {
        let row = |shard: u32, node: Option<&str>, available| ShardRow {
            shard,
            epoch: 1,
            primary: node.map(|name| NodeId::new(name).unwrap()),
            available,
            in_sync: Vec::new(),
            targets: Vec::new(),
            moving_to: None,
        };
        let text = picture(&[
            row(0, Some("n2"), true),
            row(1, Some("n1"), true),
            row(2, Some("n1"), false),
            row(3, None, false),
        ]);
        assert_eq!(
            text,
            "     0  BA..\n     A  n1: 2 shards\n     B  n2: 1 shards\n     .  nobody: 2 shards\n"
        );
    }
}
