//! Every metric in one table, and cheap counting for hot paths.
//!
//! A handle of the `metrics` crate costs 25 ns per count and 110 ns per histogram sample, so rooms
//! on the hot path count in plain integers ([`Tally`], [`LocalHistogram`]) and flush once per
//! batch. Labels come from closed sets only: kinds, methods, peers, outcomes; never a key.

mod meters;

pub use meters::{Counted, LocalHistogram, SharedGauge, Tally};

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Type {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts samples in explicit buckets.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy)]
pub struct Metric {
    /// Its full name.
    pub name: &'static str,
    /// What it is.
    pub is: Type,
    /// Its labels, all from closed sets.
    pub labels: &'static [&'static str],
    /// Its unit: "1", "s", "By".
    pub unit: &'static str,
    /// What it says, in one sentence.
    pub help: &'static str,
}

/// Buckets of calls and handlers, seconds. 0.05 is a bound because the latency objective uses it.
pub const CALL_BUCKETS: &[f64] =
    &[0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];
/// Buckets of disk operations, seconds.
pub const DISK_BUCKETS: &[f64] = &[
    0.00001, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0,
];
/// Buckets of counts per batch.
pub const COUNT_BUCKETS: &[f64] =
    &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 4096.0];

const fn counter(
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Counter, labels, unit, help }
}

const fn gauge(
    name: &'static str,
    labels: &'static [&'static str],
    unit: &'static str,
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Gauge, labels, unit, help }
}

const fn histogram(
    name: &'static str,
    labels: &'static [&'static str],
    buckets: &'static [f64],
    help: &'static str,
) -> Metric {
    Metric { name, is: Type::Histogram(buckets), labels, unit: "s", help }
}

/// A count as metrics take it.
#[expect(clippy::cast_precision_loss, reason = "metrics are floats; beyond 2^53 they round")]
pub const fn float(count: u64) -> f64 {
    count as f64
}

/// Every metric there is.
pub const CATALOGUE: &[Metric] = &[
    // -- mailboxes --
    gauge("mainstay_mailbox_messages", &["kind"], "1", "Messages that wait for their turn."),
    counter(
        "mainstay_mailbox_full_total",
        &["kind", "action"],
        "1",
        "Times a mailbox had no room, by what was done: reject or wait.",
    ),
    histogram(
        "mainstay_mailbox_wait_seconds",
        &["kind"],
        CALL_BUCKETS,
        "Time a message waited for its turn.",
    ),
    gauge(
        "mainstay_mailbox_oldest_message_age_seconds",
        &["kind"],
        "s",
        "Longest time that an entity has taken no message while some wait: stuck ones show here.",
    ),
    counter(
        "mainstay_dead_letters_total",
        &["kind", "reason"],
        "1",
        "Messages that nobody will process.",
    ),
    // -- handlers --
    histogram(
        "mainstay_handler_duration_seconds",
        &["kind", "method"],
        CALL_BUCKETS,
        "Time in the handler, without waiting.",
    ),
    counter(
        "mainstay_handler_calls_total",
        &["kind", "method", "outcome"],
        "1",
        "Turns, by outcome: ok, app_error, panic, timeout, cancelled.",
    ),
    counter(
        "mainstay_handler_slow_turns_total",
        &["kind"],
        "1",
        "Turns longer than the configured threshold.",
    ),
    counter("mainstay_handler_panics_total", &["kind"], "1", "Handlers that panicked."),
    counter(
        "mainstay_queries_total",
        &["kind", "copy"],
        "1",
        "Queries that ran here, by the copy of the shard that they were shown: primary, standby.",
    ),
    counter(
        "mainstay_standby_refusals_total",
        &["reason"],
        "1",
        "Queries that a standby here did not show: behind, elsewhere, full, unreadable.",
    ),
    // -- entities --
    gauge("mainstay_entities", &["kind", "role"], "1", "Entities in memory."),
    gauge("mainstay_entity_state_bytes", &["role"], "By", "Encoded state in memory."),
    counter(
        "mainstay_activations_total",
        &["kind", "source", "outcome"],
        "1",
        "Activations, by source: new, local_store, journal.",
    ),
    histogram(
        "mainstay_activation_duration_seconds",
        &["kind"],
        CALL_BUCKETS,
        "Time from the first message to the state in memory.",
    ),
    counter(
        "mainstay_passivations_total",
        &["kind", "reason"],
        "1",
        "Entities let go, by reason: idle, memory, drain.",
    ),
    gauge("mainstay_shards", &["role"], "1", "Shards that this node holds."),
    gauge("mainstay_shards_unavailable", &[], "1", "Shards without a live primary."),
    counter(
        "mainstay_shard_moves_total",
        &["cause", "outcome"],
        "1",
        "Planned moves of a shard away from this node.",
    ),
    histogram(
        "mainstay_shard_move_duration_seconds",
        &["cause"],
        CALL_BUCKETS,
        "Time that a planned move took.",
    ),
    gauge(
        "mainstay_shard_epoch",
        &["shard_group"],
        "1",
        "Highest epoch of the shards of a group; a step is a change of primary.",
    ),
    // -- calls --
    counter(
        "mainstay_calls_total",
        &["kind", "locality", "outcome"],
        "1",
        "Calls made here, by where they went: local, remote, none (refused before).",
    ),
    histogram(
        "mainstay_call_duration_seconds",
        &["kind", "locality"],
        CALL_BUCKETS,
        "Time that callers here waited; of local calls one in about 16 is recorded.",
    ),
    counter(
        "mainstay_call_retries_total",
        &["kind", "reason"],
        "1",
        "Attempts after the first: not_primary, overloaded, unavailable, stale.",
    ),
    counter(
        "mainstay_call_forwards_total",
        &["kind"],
        "1",
        "Attempts that a node refused which is not the primary: the map was stale.",
    ),
    // -- transport --
    gauge("mainstay_transport_connections", &["state"], "1", "Connections: open, connecting."),
    counter(
        "mainstay_transport_reconnects_total",
        &["peer"],
        "1",
        "Attempts to connect after a failure.",
    ),
    counter(
        "mainstay_transport_closed_total",
        &["reason"],
        "1",
        "Connections that ended: closed, idle, io, protocol, window, slow_reader, slow_writer, silent, failed.",
    ),
    counter(
        "mainstay_transport_bytes_total",
        &["direction", "class"],
        "By",
        "Bytes of frames: call, reply, control, snapshot, append, answer.",
    ),
    counter(
        "mainstay_transport_frames_total",
        &["direction", "class"],
        "1",
        "Frames: call, reply, control, snapshot, append, answer.",
    ),
    gauge(
        "mainstay_transport_credits_available",
        &["peer"],
        "1",
        "Messages that may yet be sent to a peer.",
    ),
    counter(
        "mainstay_transport_credit_stalls_total",
        &["peer"],
        "1",
        "Calls that had to wait for a credit.",
    ),
    histogram(
        "mainstay_transport_credit_wait_seconds",
        &[],
        CALL_BUCKETS,
        "Time that calls waited for a credit or a connection.",
    ),
    gauge(
        "mainstay_transport_send_queue_bytes",
        &["peer"],
        "By",
        "Bytes that wait to be written to a peer.",
    ),
    counter(
        "mainstay_transport_handshake_failures_total",
        &["reason"],
        "1",
        "Handshakes that failed: connect, timeout, closed, version, cluster_id, node, lane, busy, malformed, protocol.",
    ),
    // -- replication --
    counter(
        "mainstay_replication_appends_total",
        &["direction", "peer"],
        "1",
        "Appends to standbys, sent or received; several share a frame.",
    ),
    counter(
        "mainstay_replication_sent_bytes_total",
        &["peer"],
        "By",
        "Bytes of appends and answers sent to a peer.",
    ),
    counter(
        "mainstay_replication_received_bytes_total",
        &["peer"],
        "By",
        "Bytes of appends and answers received from a peer.",
    ),
    gauge(
        "mainstay_replication_lag_entries",
        &["peer"],
        "1",
        "Entries that a standby's node is not known to hold, of the shard that lacks most.",
    ),
    gauge("mainstay_replication_lag_bytes", &["peer"], "By", "Bytes of them, as far as kept here."),
    gauge(
        "mainstay_replication_lag_seconds",
        &["peer"],
        "s",
        "How long the oldest entry of this epoch has been waiting that a standby's node lacks.",
    ),
    gauge(
        "mainstay_shards_by_copies",
        &["copies"],
        "1",
        "Shards of the cluster by copies in sync on members that are up, as this node's map says.",
    ),
    gauge(
        "mainstay_shards_under_replicated",
        &[],
        "1",
        "Shards of the cluster with fewer copies in sync than the cluster was made for.",
    ),
    counter(
        "mainstay_promotions_total",
        &["cause"],
        "1",
        "Standbys that became primary here, by cause: start, restart, failover, handoff.",
    ),
    histogram(
        "mainstay_promotion_duration_seconds",
        &["cause"],
        CALL_BUCKETS,
        "Time from the map that names this node a shard's primary until it answers.",
    ),
    histogram(
        "mainstay_failover_phase_duration_seconds",
        &["phase"],
        CALL_BUCKETS,
        "Parts of a failover, by shard: decide (from the connection lost to the map), promote, serve.",
    ),
    counter(
        "mainstay_replication_copies_total",
        &["direction", "outcome"],
        "1",
        "Copies of states for standbys, sent or received: ok, failed; received ones also refused.",
    ),
    counter(
        "mainstay_replication_copy_bytes_total",
        &["direction"],
        "By",
        "Bytes of messages of copies of states for standbys.",
    ),
    counter(
        "mainstay_state_changes_total",
        &["kind", "encoding"],
        "1",
        "Turns that changed a state, by how their entries carry it: delta, full.",
    ),
    counter(
        "mainstay_state_change_bytes_total",
        &["kind", "form"],
        "By",
        "Bytes of changes: whole states after them (state), and what entries carry (entry).",
    ),
    counter(
        "mainstay_drift_checks_total",
        &["result"],
        "1",
        "Slices compared with every other copy in sync: match, moving, mismatch; error when not.",
    ),
    counter(
        "mainstay_drift_rows_total",
        &["outcome"],
        "1",
        "Rows that differed: replaced by the primary's, left, extra, outvoted (the primary's is).",
    ),
    gauge(
        "mainstay_drift_oldest_check_age_seconds",
        &[],
        "s",
        "Age of the last whole comparison of the shard served here for which it is longest ago.",
    ),
    // -- the node --
    gauge("mainstay_build_info", &["version"], "1", "1, with the release as a label."),
    gauge(
        "mainstay_node_info",
        &["node", "zone"],
        "1",
        "1, with the stable name and the failure zone of the node as labels.",
    ),
    counter("mainstay_log_messages_total", &["level"], "1", "Log lines that passed the filter."),
    // -- HTTP --
    counter(
        "mainstay_http_requests_total",
        &["route", "method", "code"],
        "1",
        "Answered HTTP requests, by route template.",
    ),
    histogram(
        "mainstay_http_request_duration_seconds",
        &["route", "method"],
        CALL_BUCKETS,
        "Time from the head of a request to the head of its answer.",
    ),
    gauge(
        "mainstay_http_inflight_requests",
        &["listener"],
        "1",
        "HTTP requests inside the node, by listener: api, admin.",
    ),
    // -- storage --
    counter("mainstay_wal_fsyncs_total", &[], "1", "Journal commits: one fsync each."),
    Metric {
        name: "mainstay_wal_fsync_duration_seconds",
        is: Type::Histogram(DISK_BUCKETS),
        labels: &[],
        unit: "s",
        help: "Time of one journal commit.",
    },
    counter("mainstay_wal_written_bytes_total", &[], "By", "Bytes of journal records."),
    Metric {
        name: "mainstay_wal_batch_records",
        is: Type::Histogram(COUNT_BUCKETS),
        labels: &[],
        unit: "1",
        help: "Entries per journal commit.",
    },
    gauge("mainstay_wal_size_bytes", &[], "By", "Journal that a start would replay."),
    Metric {
        name: "mainstay_snapshot_duration_seconds",
        is: Type::Histogram(DISK_BUCKETS),
        labels: &[],
        unit: "s",
        help: "Time of one checkpoint of entity states.",
    },
    gauge("mainstay_recovery_duration_seconds", &[], "s", "Time of the last recovery."),
    gauge("mainstay_recovery_replayed_records", &[], "1", "Records that the last recovery read."),
    counter(
        "mainstay_storage_errors_total",
        &["operation"],
        "1",
        "Failed disk operations: read, write, fsync, statvfs.",
    ),
    counter(
        "mainstay_checksum_failures_total",
        &["where"],
        "1",
        "Stored bytes that do not match their checksum: wal, snapshot.",
    ),
    gauge("mainstay_storage_free_bytes", &[], "By", "Free space on the data directory's disk."),
    // -- control plane --
    gauge("mainstay_cluster_members", &["state"], "1", "Members: alive, draining, down."),
    gauge("mainstay_cluster_map_version", &[], "1", "Version of the map that this node holds."),
    counter("mainstay_heartbeats_missed_total", &["peer"], "1", "Heartbeats without an answer."),
    gauge(
        "mainstay_peer_progress_age_seconds",
        &["peer", "part"],
        "s",
        "How long a member's slowest lane or its journal's commit has been busy, as it says.",
    ),
    gauge("mainstay_raft_has_leader", &[], "1", "1 while the control plane has a leader."),
    gauge("mainstay_raft_is_leader", &[], "1", "1 on the control plane's leader."),
    gauge(
        "mainstay_raft_is_voter",
        &[],
        "1",
        "1 on a voter of the control plane while its voters are not changed.",
    ),
    gauge("mainstay_raft_term", &[], "1", "Term of the control plane."),
    gauge("mainstay_raft_commit_index", &[], "1", "Last committed index of the control log."),
    gauge("mainstay_raft_applied_index", &[], "1", "Last applied index of the control log."),
    gauge("mainstay_raft_proposals_pending", &[], "1", "Proposals without an answer."),
    gauge("mainstay_raft_peer_lag_entries", &["peer"], "1", "Entries that a member lacks."),
    counter("mainstay_raft_leader_changes_total", &[], "1", "Changes of the leader."),
    counter(
        "mainstay_raft_proposals_total",
        &["outcome"],
        "1",
        "Proposals of this node: committed, refused, failed, forwarded.",
    ),
    counter(
        "mainstay_raft_snapshots_total",
        &["direction", "outcome"],
        "1",
        "Snapshots of the control state, made, sent or received.",
    ),
    histogram(
        "mainstay_raft_proposal_duration_seconds",
        &[],
        CALL_BUCKETS,
        "Time from a proposal to its answer.",
    ),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_prefixed_and_end_in_their_unit() {
        let mut seen = std::collections::BTreeSet::new();
        for metric in CATALOGUE {
            assert!(seen.insert(metric.name), "{} twice", metric.name);
            assert!(metric.name.starts_with("mainstay_"), "{}", metric.name);
            let counter = metric.is == Type::Counter;
            assert_eq!(counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            assert!(!metric.labels.iter().any(|label| ["key", "id", "address"].contains(label)));
        }
    }
}
