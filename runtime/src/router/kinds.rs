//! What the router knows of each kind: how it groups keys, and the metrics of its calls.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::id::{Key, KindId};
use mainstay_protocol::message::Failure;
use metrics::{Counter, Histogram, counter, histogram};

use crate::call::Answer;
use crate::entity::host::KindHost;

/// The affinity of a key: entities with equal affinity share a shard.
pub type Affinity = dyn for<'k> Fn(&'k Key) -> &'k str + Send + Sync;

/// The kinds that a router can call.
#[derive(Debug, Clone, Default)]
pub struct KindTable {
    // sorted by id; a kind's index names it in the locality account
    rows: Vec<(KindId, Arc<Row>)>,
}

/// One kind.
pub struct Row {
    name: &'static str,
    affinity: Box<Affinity>,
    meters: CallMeters,
}

impl fmt::Debug for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Row").field("name", &self.name).finish_non_exhaustive()
    }
}

impl KindTable {
    /// The kinds of these hosts: those of a registry.
    pub fn of<'a>(hosts: impl IntoIterator<Item = &'a Arc<dyn KindHost>>) -> Self {
        hosts.into_iter().fold(Self::default(), |table, host| {
            let name = host.info().name;
            let host = Arc::clone(host);
            table.with(name, Box::new(move |key| host.affinity(key)))
        })
    }

    /// Adds one kind; its id is that of its name.
    #[must_use]
    pub fn with(self, name: &'static str, affinity: Box<Affinity>) -> Self {
        let mut rows: BTreeMap<KindId, Arc<Row>> = self.rows.into_iter().collect();
        let row = Row { name, affinity, meters: CallMeters::new(name) };
        rows.insert(KindId::of(name), Arc::new(row));
        Self { rows: rows.into_iter().collect() }
    }

    /// A kind's index and row.
    pub(super) fn get(&self, kind: KindId) -> Option<(usize, &Row)> {
        let at = self.rows.binary_search_by_key(&kind, |(id, _)| *id).ok()?;
        Some((at, &self.rows[at].1))
    }

    /// The names of all kinds, by index.
    pub(super) fn names(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.rows.iter().map(|(_, row)| row.name)
    }
}

impl Row {
    pub(super) fn affinity(&self) -> &Affinity {
        &self.affinity
    }

    pub(super) fn meters(&self) -> &CallMeters {
        &self.meters
    }
}

/// Where a call was carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// To a lane of this process.
    Local,
    /// To another node.
    Remote,
    /// Nowhere: it was refused before.
    None,
}

const PLACES: [(Place, &str); 3] =
    [(Place::Local, "local"), (Place::Remote, "remote"), (Place::None, "none")];

/// What calls come to, as metrics say it.
const OUTCOMES: [&str; 7] =
    ["ok", "app_error", "overloaded", "deadline", "unavailable", "panicked", "rejected"];

fn outcome(result: &Result<Answer, Failure>) -> usize {
    match result {
        Ok(_) => 0,
        Err(Failure::App { .. }) => 1,
        Err(Failure::Overloaded { .. }) => 2,
        Err(Failure::Deadline { .. }) => 3,
        Err(Failure::Unavailable { .. } | Failure::NotPrimary { .. } | Failure::Stale { .. }) => 4,
        Err(Failure::Panicked { .. }) => 5,
        Err(
            Failure::Unknown { .. }
            | Failure::Malformed { .. }
            | Failure::KeyConflict
            | Failure::VersionMismatch { .. }
            | Failure::Reentrant
            | Failure::Version { .. },
        ) => 6,
    }
}

/// Why a call was tried again.
#[derive(Debug, Clone, Copy)]
pub(super) enum RetryReason {
    NotPrimary,
    Overloaded,
    Unavailable,
    Stale,
}

impl RetryReason {
    pub(super) fn of(failure: &Failure) -> Self {
        match failure {
            Failure::NotPrimary { .. } => Self::NotPrimary,
            Failure::Overloaded { .. } => Self::Overloaded,
            Failure::Stale { .. } => Self::Stale,
            _ => Self::Unavailable,
        }
    }
}

/// The metrics of one kind's calls, by handle.
pub(super) struct CallMeters {
    calls: [[Counter; OUTCOMES.len()]; PLACES.len()],
    durations: [Histogram; PLACES.len()],
    retries: [Counter; 4],
    forwards: Counter,
}

impl CallMeters {
    fn new(kind: &'static str) -> Self {
        let calls = PLACES.map(|(_, place)| {
            OUTCOMES.map(|outcome| {
                counter!("mainstay_calls_total",
                    "kind" => kind, "locality" => place, "outcome" => outcome)
            })
        });
        let durations = PLACES.map(|(_, place)| {
            histogram!("mainstay_call_duration_seconds", "kind" => kind, "locality" => place)
        });
        let retries = ["not_primary", "overloaded", "unavailable", "stale"].map(
            |reason| counter!("mainstay_call_retries_total", "kind" => kind, "reason" => reason),
        );
        let forwards = counter!("mainstay_call_forwards_total", "kind" => kind);
        Self { calls, durations, retries, forwards }
    }

    pub(super) fn count(&self, place: Place, result: &Result<Answer, Failure>, took: Duration) {
        let at = PLACES.iter().position(|(known, _)| *known == place).unwrap_or(2);
        self.calls[at][outcome(result)].increment(1);
        // a sample of a bucketed histogram costs as much as a local call's queues
        if place != Place::Local || fastrand::u8(..) < u8::MAX / LOCAL_SAMPLES {
            self.durations[at].record(took.as_secs_f64());
        }
    }

    pub(super) fn retried(&self, reason: RetryReason) {
        self.retries[reason as usize].increment(1);
    }

    pub(super) fn forwarded(&self) {
        self.forwards.increment(1);
    }
}

/// Of the durations of local calls, one in about so many is recorded.
const LOCAL_SAMPLES: u8 = 16;
