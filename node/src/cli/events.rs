//! `events`: what happened, and what happens.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use clap::Args;
use futures_util::StreamExt as _;
use serde_json::Value;

use super::output::{Output, Trouble};
use super::remote::{Remote, RemoteArgs};
use crate::http::views::{EventRow, Events};

#[derive(Debug, Args)]
pub(super) struct EventsArgs {
    #[command(flatten)]
    pub(super) remote: RemoteArgs,
    /// Go on with those that happen from now on, until Ctrl-C or until nobody reads them.
    #[arg(long, short)]
    follow: bool,
    /// Only events after this one.
    #[arg(long, value_name = "ID", default_value_t = 0)]
    after: u64,
}

pub(super) async fn show(
    args: &EventsArgs,
    remote: &Remote,
    output: &Output,
) -> Result<(), Trouble> {
    if args.follow {
        return follow(args, remote, output).await;
    }
    let events: Events = remote.get(&format!("/admin/v1/events?after={}", args.after)).await?;
    if args.remote.json {
        return output.json(&events);
    }
    events.events.iter().try_for_each(|record| output.data(&line(record)))
}

async fn follow(args: &EventsArgs, remote: &Remote, output: &Output) -> Result<(), Trouble> {
    let path = format!("/admin/v1/events?follow=true&after={}", args.after);
    let mut bytes = remote.stream(&path).await?.bytes_stream();
    let mut reader = SseReader::default();
    while let Some(chunk) = bytes.next().await {
        let chunk = chunk.map_err(|error| remote.unreachable(&error))?;
        for data in reader.read(&chunk) {
            let record: EventRow = serde_json::from_str(&data)
                .map_err(|error| Trouble::failed(format!("not an event: {error}")))?;
            let text = if args.remote.json { data } else { line(&record) };
            if !output.read_on(&text)? {
                return Ok(());
            }
        }
    }
    Err(Trouble::unavailable("the stream ended: the node stops").code("MS-1301"))
}

/// The data of server-sent events, out of pieces of any size.
#[derive(Debug, Default)]
struct SseReader {
    rest: Vec<u8>,
}

impl SseReader {
    fn read(&mut self, chunk: &[u8]) -> Vec<String> {
        self.rest.extend_from_slice(chunk);
        let mut found = Vec::new();
        while let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.rest.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if let Some(data) = line.trim_end().strip_prefix("data:") {
                found.push(data.trim_start().to_owned());
            }
        }
        found
    }
}

/// One event in one line: when, where, what, and the rest as `name=value`.
fn line(record: &EventRow) -> String {
    let at = SystemTime::UNIX_EPOCH + Duration::from_millis(record.at_ms);
    let kind = record.event.get("type").and_then(Value::as_str).unwrap_or("event");
    let mut text =
        format!("{} {} #{} {kind}", humantime::format_rfc3339_millis(at), record.node, record.id);
    let members = record.event.as_object().into_iter().flatten();
    for (name, value) in members.filter(|(name, _)| name.as_str() != "type") {
        match value.as_str() {
            Some(word) => write!(text, " {name}={word}"),
            None => write!(text, " {name}={value}"),
        }
        .expect("text takes all");
    }
    text
}

#[cfg(test)]
mod tests {
    use mainstay::protocol::id::NodeId;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let record = EventRow {
            id: 7,
            at_ms: 1_000,
            node: NodeId::new("n1").unwrap(),
            map_version: 3,
            event: json!({"type": "shard_moved", "shard": 3, "to": "n2"}),
        };
        assert_eq!(line(&record), "1970-01-01T00:00:01.000Z n1 #7 shard_moved shard=3 to=n2");
    }

    #[test]
    fn events_are_found_in_pieces_of_any_size() {
        let stream = b": alive\n\nid: 1\ndata: {\"a\":1}\n\nid: 2\ndata:{\"a\":2}\n\n";
        for size in 1..stream.len() {
            let mut reader = SseReader::default();
            let found: Vec<String> =
                stream.chunks(size).flat_map(|chunk| reader.read(chunk)).collect();
            assert_eq!(found, [r#"{"a":1}"#, r#"{"a":2}"#]);
        }
    }
}
