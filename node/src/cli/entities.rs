//! `entities`: kinds, lists, one entity, calls.

use std::io::Read as _;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::output::{Output, Trouble, lines, table};
use super::remote::{Remote, RemoteArgs};
use crate::http::path::encode;
use crate::http::views::{Entities, Entity, Kinds};

#[derive(Debug, Subcommand)]
pub(super) enum EntitiesVerb {
    /// Kinds and their methods.
    Kinds(RemoteArgs),
    /// Entities of a kind that the asked node holds, by key.
    #[command(after_help = "Example:\n  mainstay entities ls counter --prefix al --limit 20")]
    Ls(ListArgs),
    /// One entity and its state.
    #[command(after_help = "Example:\n  mainstay entities get counter/alice")]
    Get(GetArgs),
    /// Call a method.
    #[command(after_help = "Examples:\n  mainstay entities call counter/alice add \
        '{\"by\":2}'\n  mainstay entities call counter/alice add @args.json \
        --idempotency-key k1\n  echo '{\"by\":2}' | mainstay entities call counter/alice add -")]
    Call(CallArgs),
}

#[derive(Debug, Args)]
pub(super) struct ListArgs {
    /// The kind.
    kind: String,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Only keys that begin so.
    #[arg(long, default_value = "")]
    prefix: String,
    /// Only keys after this one.
    #[arg(long, value_name = "KEY")]
    after: Option<String>,
    /// At most so many.
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,
}

#[derive(Debug, Args)]
pub(super) struct GetArgs {
    /// The entity: KIND/KEY, the key as it is, not percent-encoded.
    #[arg(value_name = "KIND/KEY")]
    entity: String,
    #[command(flatten)]
    remote: RemoteArgs,
}

#[derive(Debug, Args)]
pub(super) struct CallArgs {
    /// The entity: KIND/KEY, the key as it is, not percent-encoded.
    #[arg(value_name = "KIND/KEY")]
    entity: String,
    /// The method.
    method: String,
    /// The arguments: a JSON object, @FILE, or - for standard input.
    #[arg(value_name = "JSON|@FILE|-", default_value = "{}")]
    arguments: String,
    #[command(flatten)]
    remote: RemoteArgs,
    /// Repeated with the same call, the command takes effect once.
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,
    /// The version at which alone the command runs; 0 is that of an entity never written.
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl EntitiesVerb {
    pub(super) fn remote(&self) -> &RemoteArgs {
        match self {
            Self::Kinds(args) => args,
            Self::Ls(args) => &args.remote,
            Self::Get(args) => &args.remote,
            Self::Call(args) => &args.remote,
        }
    }
}

pub(super) async fn carry_out(
    verb: &EntitiesVerb,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    match verb {
        EntitiesVerb::Kinds(args) => kinds(args, remote, output).await,
        EntitiesVerb::Ls(args) => list(args, remote, output).await,
        EntitiesVerb::Get(args) => get(args, remote, output).await,
        EntitiesVerb::Call(args) => call(args, remote, output).await,
    }
}

async fn kinds(args: &RemoteArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let kinds: Kinds = remote.get("/admin/v1/entities").await?;
    if args.json {
        return output.json(&kinds);
    }
    let mut rows = table(&["kind", "method", "mode", "style", "what it does"]);
    for kind in &kinds.kinds {
        for method in &kind.methods {
            let doc = method.doc.lines().next().unwrap_or_default();
            rows.add_row([&kind.name, &method.name, &method.mode, &method.style, doc]);
        }
    }
    output.data(&lines(&rows))
}

async fn list(args: &ListArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let after =
        args.after.as_ref().map(|key| format!("&after={}", encode(key))).unwrap_or_default();
    let path = format!(
        "/admin/v1/entities/{}?limit={}&prefix={}{after}",
        encode(&args.kind),
        args.limit,
        encode(&args.prefix)
    );
    let entities: Entities = remote.get(&path).await?;
    if args.remote.json {
        return output.json(&entities);
    }
    let mut rows = table(&["key", "shard", "seq", "bytes", "in memory"]);
    for row in &entities.entities {
        rows.add_row([
            row.key.clone(),
            row.shard.to_string(),
            row.seq.0.to_string(),
            row.state_bytes.to_string(),
            if row.active { "yes".to_owned() } else { "no".to_owned() },
        ]);
    }
    output.note(&format!("entities on node {}; others hold others", entities.node));
    if let Some(next) = &entities.next {
        let program = output.program();
        output.note(&format!("more: {program} entities ls {} --after {next:?}", args.kind));
    }
    output.data(&lines(&rows))
}

async fn get(args: &GetArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let (kind, key) = split(&args.entity)?;
    let path = format!("/admin/v1/entities/{}/{}", encode(kind), encode(key));
    let entity: Entity = remote.get(&path).await?;
    if args.remote.json {
        output.json(&entity)?;
    }
    let (Some(seq), Some(bytes)) = (entity.seq, entity.state_bytes) else {
        return Err(elsewhere(&args.entity, &entity));
    };
    let Some(state) = &entity.state else {
        return Err(Trouble::not_found(format!("{} was never written", args.entity)));
    };
    if args.remote.json {
        return Ok(());
    }
    let Entity { shard, node, .. } = &entity;
    output.note(&format!("shard {shard}, served by {node}, changed by entry {seq}, {bytes} bytes"));
    output.json(state)
}

/// The node that was asked knows nothing of an entity that another one serves.
fn elsewhere(name: &str, entity: &Entity) -> Trouble {
    let Entity { node, shard, .. } = entity;
    match &entity.primary {
        Some(primary) => Trouble::failed(format!(
            "{name} is served by {primary}; {node}, which was asked, cannot show it"
        ))
        .help(format!("ask {primary}: --endpoint and its admin address (its admin.listen)"))
        .help("calls work through every node: mainstay entities call"),
        None => {
            Trouble::unavailable(format!("{name} cannot be shown: nobody serves shard {shard} now"))
                .help("mainstay shards ls --unavailable")
        }
    }
}

async fn call(args: &CallArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let (kind, key) = split(&args.entity)?;
    let body = arguments(&args.arguments)?;
    let millis = args.remote.timeout.as_millis().max(1);
    let mut headers = vec![("ms-timeout-ms", millis.to_string())];
    if let Some(key) = &args.idempotency_key {
        headers.push(("idempotency-key", key.clone()));
    }
    if let Some(version) = args.if_version {
        headers.push(("if-match", format!("\"{version}\"")));
    }
    let path = format!("/v1/{}/{}/{}", encode(kind), encode(key), encode(&args.method));
    let answer: Value = remote.call(&path, body, &headers).await?;
    if args.remote.json {
        return output.json(&answer);
    }
    output.json(&answer["value"])
}

fn split(entity: &str) -> Result<(&str, &str), Trouble> {
    entity
        .split_once('/')
        .filter(|(kind, key)| !kind.is_empty() && !key.is_empty())
        .ok_or_else(|| Trouble::usage(format!("{entity:?} is not KIND/KEY")))
}

fn arguments(given: &str) -> Result<String, Trouble> {
    let unreadable = |error: std::io::Error| Trouble::usage(format!("{given}: {error}"));
    match given.strip_prefix('@') {
        Some(file) => std::fs::read_to_string(file).map_err(unreadable),
        None if given == "-" => {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(unreadable)?;
            Ok(text)
        }
        None => Ok(given.to_owned()),
    }
}
