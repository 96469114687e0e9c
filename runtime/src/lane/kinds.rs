//! The kinds as a lane sees them: found by id, with their counters at hand.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::entry::Change;
use mainstay_protocol::id::{KindId, MethodId};
use metrics::{Gauge, counter, gauge, histogram};

use crate::entity::Registry;
use crate::entity::host::{KindHost, MethodInfo};
use crate::metrics::{CALL_BUCKETS, LocalHistogram, SharedGauge, Tally, float};

/// How a turn ended, for its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TurnOutcome {
    /// A value.
    Ok,
    /// The entity refused.
    AppError,
    /// The handler panicked.
    Panic,
    /// The turn took longer than its kind allows.
    Timeout,
    /// The primary stepped down, or the arguments did not decode.
    Cancelled,
}

/// Bytes of the two hashes that go with a patch.
const DELTA_HASHES_BYTES: usize = 16;

const OUTCOMES: [(TurnOutcome, &str); 5] = [
    (TurnOutcome::Ok, "ok"),
    (TurnOutcome::AppError, "app_error"),
    (TurnOutcome::Panic, "panic"),
    (TurnOutcome::Timeout, "timeout"),
    (TurnOutcome::Cancelled, "cancelled"),
];

/// One kind and its counters on this lane.
pub struct Kind {
    /// The kind.
    pub host: Arc<dyn KindHost>,
    methods: BTreeMap<MethodId, usize>,
    counters: Vec<MethodCounters>,
    /// Time a message waited for its turn.
    pub wait: LocalHistogram,
    /// Turns longer than the threshold.
    pub slow: Tally,
    /// Handlers that panicked.
    pub panics: Tally,
    /// Queries that ran at the primary.
    pub primary_queries: Tally,
    /// Queries that ran on what a standby has.
    pub standby_queries: Tally,
    /// Calls refused because a mailbox was full.
    pub full_rejected: Tally,
    /// Calls that waited because a mailbox was full.
    pub full_waited: Tally,
    /// Activations of entities that were never written.
    pub activated_new: Tally,
    /// Activations from a snapshot on disk.
    pub activated_store: Tally,
    /// Activations from the dirty map.
    pub activated_journal: Tally,
    /// Time from the first message to the state in memory.
    pub activation: LocalHistogram,
    /// Entities let go because nobody asked for them.
    pub passivated_idle: Tally,
    /// Entities let go for memory.
    pub passivated_memory: Tally,
    /// Messages whose deadline passed in the queue.
    pub expired: Tally,
    changes: ChangeTallies,
    /// Entities in memory.
    pub entities: u64,
    /// Messages that wait for their turn.
    pub queued: u64,
    /// The longest that an entity has taken no message while some wait, since the last flush.
    pub oldest: Duration,
    entities_gauge: SharedGauge,
    queued_gauge: SharedGauge,
    oldest_gauge: Gauge,
}

/// Turns that changed a state: how entries carry it, and in how many bytes.
struct ChangeTallies {
    full: Tally,
    delta: Tally,
    state_bytes: Tally,
    entry_bytes: Tally,
}

struct MethodCounters {
    outcomes: Vec<Tally>,
    duration: LocalHistogram,
}

impl std::fmt::Debug for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kind").field("name", &self.host.info().name).finish_non_exhaustive()
    }
}

impl Kind {
    fn new(host: Arc<dyn KindHost>) -> Self {
        let kind = host.info().name;
        let methods =
            host.info().methods.iter().enumerate().map(|(at, method)| (method.id, at)).collect();
        let counters =
            host.info().methods.iter().map(|method| MethodCounters::new(kind, method)).collect();
        let tally = |name: &'static str, label: &'static str, value: &'static str| {
            Tally::new(counter!(name, "kind" => kind, label => value))
        };
        let activated = |source: &'static str| {
            Tally::new(counter!(
                "mainstay_activations_total",
                "kind" => kind, "source" => source, "outcome" => "ok"
            ))
        };
        Self {
            methods,
            counters,
            wait: LocalHistogram::new(
                histogram!("mainstay_mailbox_wait_seconds", "kind" => kind),
                CALL_BUCKETS,
            ),
            slow: Tally::new(counter!("mainstay_handler_slow_turns_total", "kind" => kind)),
            panics: Tally::new(counter!("mainstay_handler_panics_total", "kind" => kind)),
            primary_queries: tally("mainstay_queries_total", "copy", "primary"),
            standby_queries: tally("mainstay_queries_total", "copy", "standby"),
            full_rejected: tally("mainstay_mailbox_full_total", "action", "reject"),
            full_waited: tally("mainstay_mailbox_full_total", "action", "wait"),
            activated_new: activated("new"),
            activated_store: activated("local_store"),
            activated_journal: activated("journal"),
            activation: LocalHistogram::new(
                histogram!("mainstay_activation_duration_seconds", "kind" => kind),
                CALL_BUCKETS,
            ),
            passivated_idle: tally("mainstay_passivations_total", "reason", "idle"),
            passivated_memory: tally("mainstay_passivations_total", "reason", "memory"),
            expired: tally("mainstay_dead_letters_total", "reason", "deadline"),
            changes: ChangeTallies {
                full: tally("mainstay_state_changes_total", "encoding", "full"),
                delta: tally("mainstay_state_changes_total", "encoding", "delta"),
                state_bytes: tally("mainstay_state_change_bytes_total", "form", "state"),
                entry_bytes: tally("mainstay_state_change_bytes_total", "form", "entry"),
            },
            entities: 0,
            queued: 0,
            oldest: Duration::ZERO,
            entities_gauge: SharedGauge::new(gauge!(
                "mainstay_entities", "kind" => kind, "role" => "primary"
            )),
            queued_gauge: SharedGauge::new(gauge!("mainstay_mailbox_messages", "kind" => kind)),
            oldest_gauge: gauge!("mainstay_mailbox_oldest_message_age_seconds", "kind" => kind),
            host,
        }
    }

    /// The index of a method.
    pub fn method(&self, id: MethodId) -> Option<usize> {
        self.methods.get(&id).copied()
    }

    /// What is known of a method.
    pub fn info(&self, method: usize) -> &MethodInfo {
        &self.host.info().methods[method]
    }

    /// Counts a turn.
    pub fn turn_ended(&mut self, method: usize, outcome: TurnOutcome, took: Duration) {
        let counters = &mut self.counters[method];
        counters.duration.record(took);
        if let Some(at) = OUTCOMES.iter().position(|(listed, _)| *listed == outcome) {
            counters.outcomes[at].add(1);
        }
    }

    /// Counts what a turn changed of a state that has so many bytes now.
    pub fn changed(&mut self, change: &Change, state_bytes: usize) {
        let (count, entry_bytes) = match change {
            Change::None => return,
            Change::Put(bytes) => (&mut self.changes.full, bytes.len()),
            Change::Delta { patch, .. } => {
                (&mut self.changes.delta, patch.len() + DELTA_HASHES_BYTES)
            }
        };
        count.add(1);
        self.changes.state_bytes.add(state_bytes as u64);
        self.changes.entry_bytes.add(entry_bytes as u64);
    }

    /// Hands what was counted to the metrics.
    pub fn flush(&mut self) {
        for method in &mut self.counters {
            method.duration.flush();
            method.outcomes.iter_mut().for_each(Tally::flush);
        }
        self.wait.flush();
        self.activation.flush();
        for tally in [
            &mut self.slow,
            &mut self.panics,
            &mut self.primary_queries,
            &mut self.standby_queries,
            &mut self.full_rejected,
            &mut self.full_waited,
            &mut self.activated_new,
            &mut self.activated_store,
            &mut self.activated_journal,
            &mut self.passivated_idle,
            &mut self.passivated_memory,
            &mut self.expired,
            &mut self.changes.full,
            &mut self.changes.delta,
            &mut self.changes.state_bytes,
            &mut self.changes.entry_bytes,
        ] {
            tally.flush();
        }
        self.entities_gauge.set(float(self.entities));
        self.queued_gauge.set(float(self.queued));
        self.oldest_gauge.set(self.oldest.as_secs_f64());
        self.oldest = Duration::ZERO;
    }
}

impl MethodCounters {
    fn new(kind: &'static str, method: &MethodInfo) -> Self {
        let name = method.name;
        let outcomes = OUTCOMES
            .iter()
            .map(|(_, outcome)| {
                Tally::new(counter!(
                    "mainstay_handler_calls_total",
                    "kind" => kind, "method" => name, "outcome" => *outcome
                ))
            })
            .collect();
        let duration = histogram!(
            "mainstay_handler_duration_seconds", "kind" => kind, "method" => name
        );
        Self { outcomes, duration: LocalHistogram::new(duration, CALL_BUCKETS) }
    }
}

/// The kinds of a lane.
#[derive(Debug)]
pub struct Kinds {
    by_id: BTreeMap<KindId, usize>,
    kinds: Vec<Kind>,
}

impl Kinds {
    /// The kinds of this registry.
    pub fn new(registry: &Registry) -> Self {
        let kinds: Vec<_> =
            registry.kinds().into_iter().map(|host| Kind::new(Arc::clone(host))).collect();
        let by_id = kinds.iter().enumerate().map(|(at, kind)| (kind.host.info().id, at)).collect();
        Self { by_id, kinds }
    }

    /// The place of a kind.
    pub fn find(&self, id: KindId) -> Option<usize> {
        self.by_id.get(&id).copied()
    }

    /// The kind at a place that `find` gave.
    pub fn at(&mut self, at: usize) -> &mut Kind {
        &mut self.kinds[at]
    }

    /// All of them.
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Kind> {
        self.kinds.iter_mut()
    }
}
