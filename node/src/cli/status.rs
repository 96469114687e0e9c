//! `status` and `locality`: what a node knows at a glance.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;

use super::output::{Output, Trouble, humanised, lines, table};
use super::remote::{Remote, RemoteArgs};
use crate::http::overview::Status;
use crate::http::views::Locality;

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
    /// Exit with 7 when the node or its cluster is not healthy.
    #[arg(long)]
    check: bool,
}

pub(super) async fn show(
    args: &StatusArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let status: Status = remote.get("/admin/v1/status").await?;
    if args.remote.json {
        output.json(&status)?;
    } else {
        output.data(&screen(&status, output))?;
    }
    if args.check && !status.healthy { Err(Trouble::unhealthy()) } else { Ok(()) }
}

fn screen(status: &Status, output: &Output) -> String {
    let (node, cluster) = (&status.node, &status.cluster);
    let health = if status.healthy { output.good("healthy") } else { output.bad("NOT HEALTHY") };
    let uptime = Duration::from_secs_f64(node.uptime_seconds.max(0.0).floor());
    let id = cluster.id.as_deref().unwrap_or("(none yet)");
    let leader = cluster.leader.as_ref().map_or("(none)", |leader| leader.as_str());
    let mut text = format!(
        "{health}\n\
         node     {name} {phase}, up {uptime}, mainstay {version}, {lanes} lanes\n\
         holds    {shards} shards, {entities} entities in memory ({bytes}), {requests} requests\n\
         cluster  {id}, leader {leader}, map version {map}\n\
         members  {up} up, {draining} draining, {down} down\n\
         shards   {all}: {unavailable} unavailable, {moving} moving, {under} under-replicated\n\
         failure  {may_fail} members may be lost without losing a shard\n",
        name = node.name,
        phase = node.phase,
        uptime = humantime::format_duration(uptime),
        version = node.version,
        lanes = node.lanes,
        shards = node.shards,
        entities = node.entities,
        bytes = humanised(node.state_bytes),
        requests = node.requests,
        map = cluster.map_version,
        up = cluster.members_up,
        draining = cluster.members_draining,
        down = cluster.members_down,
        all = cluster.shards,
        unavailable = cluster.shards_unavailable,
        moving = cluster.shards_moving,
        under = cluster.shards_under_replicated,
        may_fail = cluster.members_may_fail,
    );
    for check in &status.checks {
        let mark = if check.ok { output.good("[+]") } else { output.bad("[-]") };
        writeln!(text, "{mark} {} {}", check.name, check.text).expect("text takes all");
    }
    if cluster.shards_unavailable > 0 {
        let program = output.program();
        writeln!(text, "next     {program} nodes ls; {program} shards ls --unavailable")
            .expect("text takes all");
    }
    text
}

pub(super) async fn locality(
    args: &RemoteArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    let locality: Locality = remote.get("/admin/v1/locality").await?;
    if args.json {
        return output.json(&locality);
    }
    let mut rows = table(&["from", "to", "local", "bytes", "remote", "bytes", "stays"]);
    for row in &locality.rows {
        let share = row
            .local_ratio
            .map_or_else(|| "-".to_owned(), |ratio| format!("{:.1} %", ratio * 100.0));
        rows.add_row([
            row.from.clone(),
            row.to.clone(),
            row.local.to_string(),
            humanised(row.local_bytes),
            row.remote.to_string(),
            humanised(row.remote_bytes),
            share,
        ]);
    }
    output.note(&format!(
        "calls from node {} since it started, those that cost most remote bytes first",
        locality.node
    ));
    output.data(&lines(&rows))
}
