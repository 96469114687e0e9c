//! The control store and the cluster state, as the consensus library wants them.
//!
//! The state lives in memory; on disk are its last snapshot and the log after it. A start loads
//! the snapshot and applies the log up to the last committed place that was noted.

use std::fmt::Debug;
use std::io::Cursor;
use std::ops::{Bound, RangeBounds};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use mainstay_protocol::control::{ClusterState, Event};
use openraft::storage::{LogFlushed, RaftLogStorage, RaftStateMachine};
use openraft::{
    AnyError, EntryPayload, LogState, OptionalSend, RaftLogId, RaftLogReader, RaftSnapshotBuilder,
    Snapshot, StorageIOError, Vote,
};
use tokio::sync::watch;

use super::types::{
    LogId, Outcome, SnapshotMeta, StoreError, StoredMembership, Types, encode, read_failed, stored,
    write_failed,
};
use crate::storage::control::{ControlStore, Slot, StoredSnapshot};

/// Entries that one append message carries, in bytes: well below a frame.
const APPEND_BYTES_MAX: usize = 4 << 20;

/// What hears of events as they are applied on this node, each once per process.
pub type OnEvents = Arc<dyn Fn(u64, &[Event]) + Send + Sync>;

/// The log and the vote.
#[derive(Debug, Clone)]
pub(super) struct LogStore(pub(super) ControlStore);

impl LogStore {
    async fn read(
        &self,
        range: impl RangeBounds<u64>,
        bytes_max: usize,
    ) -> Result<Vec<openraft::Entry<Types>>, StoreError> {
        let from = match range.start_bound() {
            Bound::Included(from) => *from,
            Bound::Excluded(before) => before + 1,
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(last) => last + 1,
            Bound::Excluded(to) => *to,
            Bound::Unbounded => u64::MAX,
        };
        let rows = self.0.entries(from..to, bytes_max).await.map_err(read_failed)?;
        let entries = rows.iter().map(|row| stored("log entry", row));
        entries.collect::<Result<_, _>>().map_err(read_failed)
    }

    async fn slot<T: serde::de::DeserializeOwned>(
        &self,
        slot: Slot,
    ) -> Result<Option<T>, StoreError> {
        let bytes = self.0.get(slot).await.map_err(read_failed)?;
        bytes.map(|bytes| stored("vote", &bytes)).transpose().map_err(read_failed)
    }
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> Result<Vec<openraft::Entry<Types>>, StoreError> {
        self.read(range, usize::MAX).await
    }

    async fn limited_get_log_entries(
        &mut self,
        start: u64,
        end: u64,
    ) -> Result<Vec<openraft::Entry<Types>>, StoreError> {
        self.read(start..end, APPEND_BYTES_MAX).await
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> Result<LogState<Types>, StoreError> {
        let ends = self.0.ends().await.map_err(read_failed)?;
        let purged: Option<LogId> =
            ends.purged.map(|bytes| stored("purged", &bytes)).transpose().map_err(read_failed)?;
        let last: Option<openraft::Entry<Types>> =
            ends.last.map(|bytes| stored("log entry", &bytes)).transpose().map_err(read_failed)?;
        let last_log_id = last.map(|entry| *entry.get_log_id()).or(purged);
        Ok(LogState { last_purged_log_id: purged, last_log_id })
    }

    async fn get_log_reader(&mut self) -> Self::LogReader {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote<u64>) -> Result<(), StoreError> {
        self.0.put(Slot::Vote, encode(vote)).await.map_err(write_failed)
    }

    async fn read_vote(&mut self) -> Result<Option<Vote<u64>>, StoreError> {
        self.slot(Slot::Vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> Result<(), StoreError> {
        let value = encode(&committed);
        self.0.put(Slot::Committed, value).await.map_err(write_failed)
    }

    async fn read_committed(&mut self) -> Result<Option<LogId>, StoreError> {
        Ok(self.slot::<Option<LogId>>(Slot::Committed).await?.flatten())
    }

    async fn append<I>(&mut self, entries: I, callback: LogFlushed<Types>) -> Result<(), StoreError>
    where
        I: IntoIterator<Item = openraft::Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let rows: Vec<(u64, Vec<u8>)> =
            entries.into_iter().map(|entry| (entry.log_id.index, encode(&entry))).collect();
        let done = Box::new(move |result: Result<(), _>| {
            callback.log_io_completed(result.map_err(std::io::Error::other));
        });
        self.0.append(rows, done).await.map_err(write_failed)
    }

    async fn truncate(&mut self, log_id: LogId) -> Result<(), StoreError> {
        self.0.truncate(log_id.index).await.map_err(write_failed)
    }

    async fn purge(&mut self, log_id: LogId) -> Result<(), StoreError> {
        let marker = encode(&log_id);
        self.0.purge(log_id.index, marker).await.map_err(write_failed)
    }
}

/// The cluster state, and how far it has come.
pub(super) struct StateMachine {
    store: ControlStore,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
    published: watch::Sender<Arc<ClusterState>>,
    /// False while a start applies what was applied before: that is no news.
    live: Arc<AtomicBool>,
    on_events: OnEvents,
}

impl StateMachine {
    /// The state of the last snapshot, or the empty one.
    pub(super) async fn load(
        store: ControlStore,
        published: watch::Sender<Arc<ClusterState>>,
        live: Arc<AtomicBool>,
        on_events: OnEvents,
    ) -> Result<Self, StoreError> {
        let mut machine = Self {
            store,
            state: Arc::new(ClusterState::new()),
            applied: None,
            membership: StoredMembership::default(),
            published,
            live,
            on_events,
        };
        let snapshot = machine.store.snapshot().await.map_err(read_failed)?;
        if let Some(snapshot) = snapshot {
            let meta = stored("snapshot", &snapshot.meta).map_err(read_failed)?;
            let state = stored("snapshot", &snapshot.data).map_err(read_failed)?;
            machine.replace(&meta, state);
        }
        Ok(machine)
    }

    fn replace(&mut self, meta: &SnapshotMeta, state: ClusterState) {
        self.applied = meta.last_log_id;
        self.membership = meta.last_membership.clone();
        self.state = Arc::new(state);
        self.publish();
    }

    fn publish(&self) {
        self.published.send_replace(Arc::clone(&self.state));
    }
}

impl RaftStateMachine<Types> for StateMachine {
    type SnapshotBuilder = Builder;

    async fn applied_state(&mut self) -> Result<(Option<LogId>, StoredMembership), StoreError> {
        Ok((self.applied, self.membership.clone()))
    }

    async fn apply<I>(&mut self, entries: I) -> Result<Vec<Outcome>, StoreError>
    where
        I: IntoIterator<Item = openraft::Entry<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let live = self.live.load(Ordering::Relaxed);
        let mut outcomes = Vec::new();
        let mut changed = false;
        for entry in entries {
            self.applied = Some(entry.log_id);
            outcomes.push(match entry.payload {
                EntryPayload::Blank => Outcome(None),
                EntryPayload::Membership(membership) => {
                    self.membership = StoredMembership::new(Some(entry.log_id), membership);
                    Outcome(None)
                }
                EntryPayload::Normal(command) => {
                    let result = Arc::make_mut(&mut self.state).apply(command);
                    changed |= result.is_ok();
                    if let (true, Ok(applied)) = (live, &result) {
                        (self.on_events)(applied.version, &applied.events);
                    }
                    Outcome(Some(result))
                }
            });
        }
        if changed {
            self.publish();
        }
        Ok(outcomes)
    }

    async fn get_snapshot_builder(&mut self) -> Builder {
        Builder {
            store: self.store.clone(),
            state: Arc::clone(&self.state),
            applied: self.applied,
            membership: self.membership.clone(),
        }
    }

    async fn begin_receiving_snapshot(&mut self) -> Result<Box<Cursor<Vec<u8>>>, StoreError> {
        Ok(Box::default())
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMeta,
        snapshot: Box<Cursor<Vec<u8>>>,
    ) -> Result<(), StoreError> {
        let data = snapshot.into_inner();
        let state = super::types::decode(&data).map_err(|error| {
            StorageIOError::read_snapshot(Some(meta.signature()), AnyError::new(&error))
        })?;
        let stored = StoredSnapshot { entries: entries(meta), meta: encode(meta), data };
        self.store.save_snapshot(stored).await.map_err(write_failed)?;
        self.replace(meta, state);
        metrics::counter!("mainstay_raft_snapshots_total", "direction" => "received", "outcome" => "ok")
            .increment(1);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> Result<Option<Snapshot<Types>>, StoreError> {
        let snapshot = self.store.snapshot().await.map_err(read_failed)?;
        let Some(snapshot) = snapshot else { return Ok(None) };
        let meta = stored("snapshot", &snapshot.meta).map_err(read_failed)?;
        Ok(Some(Snapshot { meta, snapshot: Box::new(Cursor::new(snapshot.data)) }))
    }
}

/// How many entries a snapshot covers.
fn entries(meta: &SnapshotMeta) -> u64 {
    meta.last_log_id.map_or(0, |last| last.index + 1)
}

/// Writes a snapshot of the state as it was when the builder was made.
pub(super) struct Builder {
    store: ControlStore,
    state: Arc<ClusterState>,
    applied: Option<LogId>,
    membership: StoredMembership,
}

impl RaftSnapshotBuilder<Types> for Builder {
    async fn build_snapshot(&mut self) -> Result<Snapshot<Types>, StoreError> {
        let snapshot_id = self.applied.map_or_else(|| "empty".to_owned(), |id| id.to_string());
        let meta = SnapshotMeta {
            last_log_id: self.applied,
            last_membership: self.membership.clone(),
            snapshot_id,
        };
        let data = encode(&*self.state);
        let stored =
            StoredSnapshot { entries: entries(&meta), meta: encode(&meta), data: data.clone() };
        self.store.save_snapshot(stored).await.map_err(write_failed)?;
        metrics::counter!("mainstay_raft_snapshots_total", "direction" => "made", "outcome" => "ok")
            .increment(1);
        Ok(Snapshot { meta, snapshot: Box::new(Cursor::new(data)) })
    }
}

#[cfg(test)]
mod tests {
    use mainstay_protocol::control::{Command, Grouping};
    use mainstay_protocol::id::ClusterId;
    use openraft::testing::{StoreBuilder, Suite};
    use openraft::{CommittedLeaderId, Entry};

    use super::*;

    struct OnDisk;

    impl StoreBuilder<Types, LogStore, StateMachine, tempfile::TempDir> for OnDisk {
        async fn build(&self) -> Result<(tempfile::TempDir, LogStore, StateMachine), StoreError> {
            let dir = tempfile::tempdir().unwrap();
            let store = ControlStore::open_with_holes(dir.path()).unwrap();
            let machine = machine(&store).await;
            Ok((dir, LogStore(store), machine))
        }
    }

    async fn machine(store: &ControlStore) -> StateMachine {
        let (published, _) = watch::channel(Arc::new(ClusterState::new()));
        let live = Arc::new(AtomicBool::new(true));
        StateMachine::load(store.clone(), published, live, Arc::new(|_, _| ())).await.unwrap()
    }

    fn init(index: u64) -> Entry<Types> {
        let command = Command::Init {
            cluster: ClusterId::from_bytes([7; 16]),
            shards: 4,
            standbys: 0,
            min_insync: 1,
            grouping: Grouping::new(),
        };
        let log_id = LogId::new(CommittedLeaderId::new(1, 1), index);
        Entry { log_id, payload: EntryPayload::Normal(command) }
    }

    #[test]
    fn the_library_accepts_the_store() {
        Suite::test_all(OnDisk).unwrap();
    }

    #[tokio::test]
    async fn a_snapshot_restores_the_state_and_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let store = ControlStore::open(dir.path(), false).unwrap();
        let mut before = machine(&store).await;
        before.apply([init(1)]).await.unwrap();
        before.get_snapshot_builder().await.build_snapshot().await.unwrap();
        store.close().await;

        let store = ControlStore::open(dir.path(), true).unwrap();
        let mut after = machine(&store).await;

        assert_eq!(after.state, before.state);
        assert_eq!(after.applied_state().await.unwrap(), before.applied_state().await.unwrap());
    }

    #[tokio::test]
    async fn a_refused_command_is_an_outcome_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let store = ControlStore::open(dir.path(), false).unwrap();
        let mut machine = machine(&store).await;
        machine.apply([init(1)]).await.unwrap();
        let state = Arc::clone(&machine.state);

        let outcomes = machine.apply([init(2)]).await.unwrap();

        assert!(matches!(outcomes[0], Outcome(Some(Err(_)))), "{outcomes:?}");
        assert_eq!(machine.state, state);
    }

    #[tokio::test]
    async fn what_a_start_applies_again_is_no_news() {
        let dir = tempfile::tempdir().unwrap();
        let store = ControlStore::open(dir.path(), false).unwrap();
        let (published, _) = watch::channel(Arc::new(ClusterState::new()));
        let live = Arc::new(AtomicBool::new(false));
        let (news, heard) = std::sync::mpsc::sync_channel(1);
        let on_events: OnEvents = Arc::new(move |version, _| news.send(version).unwrap());
        let machine = StateMachine::load(store, published, Arc::clone(&live), on_events).await;
        let mut machine = machine.unwrap();

        machine.apply([init(1)]).await.unwrap();

        assert!(heard.try_recv().is_err());
    }
}
