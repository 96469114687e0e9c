//! The table of all settings: path, meaning, range, and how to get at the value.

use std::sync::LazyLock;

use super::Settings;
use super::value::{Kind, Raw, Value};

/// One setting.
#[derive(Debug)]
pub struct Field {
    /// Where it stands in the file: `limits.deadline_max`.
    pub path: &'static str,
    /// What it means; the comment in the sample file and the description in the schema.
    pub doc: &'static str,
    /// The least and greatest number, for numbers.
    pub range: Option<(i64, i64)>,
    /// What it is.
    pub kind: Kind,
    get: fn(&Settings) -> &dyn Value,
    get_mut: fn(&mut Settings) -> &mut dyn Value,
}

impl Field {
    /// The value in `settings`.
    pub fn show(&self, settings: &Settings) -> Raw {
        (self.get)(settings).show()
    }

    /// Sets the value in `settings`.
    ///
    /// # Errors
    /// What was expected and what was found; the value is then as before.
    pub fn set(&self, settings: &mut Settings, raw: &Raw) -> Result<(), String> {
        let before = self.show(settings);
        let value = (self.get_mut)(settings);
        value.read(raw)?;
        let Some((least, greatest)) = self.range else { return Ok(()) };
        match value.show() {
            Raw::Number(number) if !(least..=greatest).contains(&number) => {
                value.read(&before)?;
                Err(format!("expected an integer of {least} to {greatest}, found {number}"))
            }
            _ => Ok(()),
        }
    }

    /// The last part of the path.
    pub fn key(&self) -> &'static str {
        self.path.rsplit('.').next().unwrap_or(self.path)
    }

    /// The path without its last part, empty at the top.
    pub fn table(&self) -> &'static str {
        self.path.rsplit_once('.').map_or("", |(table, _)| table)
    }
}

macro_rules! fields {
    ($($path:literal: $($field:ident).+ $(in $least:literal..=$greatest:literal)? => $doc:literal;)*) => {
        /// All settings, in the order of the sample file.
        pub static FIELDS: LazyLock<Vec<Field>> = LazyLock::new(|| {
            let defaults = Settings::default();
            vec![$(Field {
                path: $path,
                doc: $doc,
                range: fields!(@range $($least $greatest)?),
                kind: defaults.$($field).+.kind(),
                get: |settings| &settings.$($field).+,
                get_mut: |settings| &mut settings.$($field).+,
            },)*]
        });
    };
    (@range) => { None };
    (@range $least:literal $greatest:literal) => { Some(($least, $greatest)) };
}

fields! {
    "node": runtime.node =>
        "The node's stable name, unique in its cluster. Without one, a name is made up and kept.";
    "data_dir": runtime.data_dir =>
        "Where all data of this node lives. One process at a time.";
    "zone": runtime.zone =>
        "The failure zone: copies of a shard go to different zones where there are some.";
    "weight": runtime.weight in 1..=255 =>
        "The node's share of the shards: 1 for most.";

    "http.listen": http.listen =>
        "Where callers reach the API: host:port; port 0 takes a free one.";
    "http.advertise": http.advertise =>
        "What others are told, when that differs from http.listen.";
    "http.connections": http.connections in 1..=1_000_000 =>
        "Connections, at most; more wait in the kernel's queue.";
    "http.body_bytes": http.body_bytes =>
        "Bytes of a request's body, at most. Up to 1MiB, the limit of a payload between nodes.";
    "http.header_timeout": http.header_timeout =>
        "How long a request's head may take to arrive, idle time before it included.";
    "http.body_timeout": http.body_timeout =>
        "How long a request's body may take to arrive.";
    "http.stall_timeout": http.stall_timeout =>
        "How long a reader may take nothing while something is written to it.";

    "admin.listen": admin.listen =>
        "Where operators reach the node: health, metrics, and the command line. Keep it private.";
    "admin.connections": admin.connections in 1..=1_000_000 =>
        "Connections, at most, event streams included.";

    "peers.listen": runtime.peers.listen =>
        "Where other nodes and Rust clients reach this one.";
    "peers.advertise": runtime.peers.advertise =>
        "What others are told, when that differs from peers.listen.";

    "cluster.join": runtime.cluster.join =>
        "Peer addresses of members to join through. Any few of them will do.";
    "cluster.expect": runtime.cluster.expect in 0..=99 =>
        "Form a new cluster when this many fresh nodes see each other; 0 never does.";
    "cluster.form_alone": runtime.cluster.form_alone =>
        "Form a new cluster alone, at once, when the data directory belongs to none. For trying out.";
    "cluster.shards": runtime.cluster.shards in 1..=262_144 =>
        "Shards of a new cluster, fixed at its creation: many times the nodes it will ever have.";
    "cluster.standbys": runtime.cluster.standbys in 0..=4 =>
        "Copies beside the primary in a new cluster; with 0, a lost node's shards wait for it.";
    "cluster.voters": runtime.cluster.voters in 1..=5 =>
        "Members that vote in consensus: 1, 3 or 5.";

    "lanes.count": runtime.lanes.count in 0..=1024 =>
        "Threads that run entities; 0 takes one per core.";
    "lanes.turns_per_poll": runtime.lanes.turns_per_poll in 1..=65_536 =>
        "Turns that a lane runs before it looks at its connections again.";
    "lanes.slow_turn": runtime.lanes.slow_turn =>
        "A turn longer than this counts as slow.";
    "lanes.blocking_threads": runtime.lanes.blocking_threads in 1..=1024 =>
        "Threads for blocking commands.";

    "limits.request_bytes": runtime.limits.request_bytes =>
        "Bytes of requests inside the node, all together. At its limit, bodies are not read.";
    "limits.requests": runtime.limits.requests in 1..=16_777_216 =>
        "Requests inside the node that came in here, all together.";
    "limits.window_messages": runtime.limits.window_messages in 1..=1_048_576 =>
        "Requests without a reply on one connection between nodes.";
    "limits.window_bytes": runtime.limits.window_bytes =>
        "Bytes of requests without a reply on one connection between nodes.";
    "limits.uncommitted_entries": runtime.limits.uncommitted_entries in 1..=1_048_576 =>
        "Entries of one shard that are not committed yet; beyond it commands are refused.";
    "limits.state_bytes": runtime.limits.state_bytes =>
        "Bytes of entity state in memory; beyond it the idlest entities are passivated.";
    "limits.dedup_bytes": runtime.limits.dedup_bytes =>
        "Bytes of idempotency records; beyond it commands with a key are refused.";
    "limits.dedup_retention": runtime.limits.dedup_retention =>
        "How long an idempotency key is remembered: a retry after that runs again.";
    "limits.dirty_bytes": runtime.limits.dirty_bytes =>
        "Bytes of state in the journal but in no snapshot yet; beyond it writes wait.";
    "limits.connections": runtime.limits.connections in 1..=1_000_000 =>
        "Connections from peers and Rust clients.";
    "limits.deadline_max": runtime.limits.deadline_max =>
        "The longest deadline that a call may ask for.";

    "storage.reserve_bytes": runtime.storage.reserve_bytes =>
        "Disk space that stays free; commands are refused from a quarter above it, 64MiB at most.";
    "storage.journal_bytes": runtime.storage.journal_bytes =>
        "The journal is cut when it is longer than this.";
    "storage.checkpoint_every": runtime.storage.checkpoint_every =>
        "How often changed entities go into a snapshot.";
    "storage.audit_every": runtime.storage.audit_every =>
        "How often all states are compared with their other copies, where there are standbys.";

    "detection.heartbeat": runtime.detection.heartbeat =>
        "How often members say that they live.";
    "detection.suspect_after": runtime.detection.suspect_after =>
        "Silence after which a member counts as down: at least three heartbeats.";

    "log.format": log.format =>
        "auto (compact on a terminal, json elsewhere), pretty, compact or json.";
    "log.filter": log.filter =>
        "What is logged: info, or debug,redb=warn. Also MAINSTAY_LOG.";

    "stop.drain": stop.drain =>
        "On SIGTERM, hand the shards over before ending.";
    "stop.timeout": stop.timeout =>
        "How long handing over, and then the requests under way, may take at the end.";
}

/// The setting at `path`.
pub fn find(path: &str) -> Option<&'static Field> {
    FIELDS.iter().find(|field| field.path == path)
}

/// Whether `path` is a table of settings.
pub fn is_table(path: &str) -> bool {
    FIELDS.iter().any(|field| field.table() == path) && !path.is_empty()
}

/// All tables, in order.
pub fn tables() -> Vec<&'static str> {
    let mut tables: Vec<&str> = FIELDS.iter().map(Field::table).collect();
    tables.dedup();
    tables
}

/// The path that `path` is probably meant to be: the same key elsewhere, or a near spelling.
pub fn nearest(path: &str) -> Option<&'static str> {
    let key = path.rsplit('.').next().unwrap_or(path);
    let elsewhere = FIELDS.iter().find(|field| field.key() == key).map(|field| field.path);
    let spelled = near(path, FIELDS.iter().map(|field| field.path));
    spelled.or(elsewhere).or_else(|| {
        let key = near(key, FIELDS.iter().map(Field::key))?;
        FIELDS.iter().find(|field| field.key() == key).map(|field| field.path)
    })
}

/// The path that `path` is but for a slip: a near spelling of the whole of it.
pub fn misspelt(path: &str) -> Option<&'static str> {
    near(path, FIELDS.iter().map(|field| field.path))
}

/// The table that `name` is probably meant to be.
pub fn nearest_table(name: &str) -> Option<&'static str> {
    near(name, tables().into_iter().filter(|table| !table.is_empty()))
}

fn near<'c>(word: &str, candidates: impl Iterator<Item = &'c str>) -> Option<&'c str> {
    candidates
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min()
        .filter(|(distance, candidate)| distance * 3 <= candidate.len())
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn paths_are_distinct_and_tables_stand_together() {
        let paths: BTreeSet<&str> = FIELDS.iter().map(|field| field.path).collect();
        assert_eq!(paths.len(), FIELDS.len());
        let distinct: BTreeSet<&str> = tables().into_iter().collect();
        assert_eq!(distinct.len(), tables().len());
        assert!(FIELDS.iter().all(|field| field.doc.len() <= 96 && field.doc.is_ascii()));
    }

    #[test]
    fn a_value_out_of_range_changes_nothing() {
        let mut settings = Settings::default();
        let voters = find("cluster.voters").unwrap();
        assert!(voters.set(&mut settings, &Raw::Number(9)).is_err());
        assert_eq!(settings.runtime.cluster.voters, 3);
    }

    #[test]
    fn near_names_are_suggested() {
        assert_eq!(nearest("wieght"), Some("weight"));
        assert_eq!(nearest("limits.deadline"), Some("limits.deadline_max"));
        assert_eq!(nearest("server.deadline_max"), Some("limits.deadline_max"));
        assert_eq!(nearest("colour_of_the_sky"), None);
        assert_eq!(nearest_table("limit"), Some("limits"));
    }
}
