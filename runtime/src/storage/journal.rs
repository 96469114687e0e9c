//! The journal: what lanes appended, made durable by one thread, one record per commit.
//!
//! ```text
//!  lane 0 --append--\                  +-----------+  one record, one fsync   journal.redb
//!  lane 1 --append---> queue --all---> | committer | ----------------------->  n: segments
//!  lane 2 --append--/    ^             +-----------+
//!        ^               |                   | Committed { writer, ticket, commit }
//!        +---------------+-------notify------+
//! ```
//!
//! The committer takes whatever queued while the last commit ran; it never lingers. A failed
//! commit is never tried again: the journal stops, and everything that is not durable fails with
//! the first error. Below the disk reserve a commit waits, since nothing was written yet.
//!
//! A record is cut away once every segment in it is covered by what `state.redb` says durably of
//! its shard ([`Marks`]), so a lane that forgets a checkpoint pins the journal but loses nothing.
//!
//! What bounds the queue: lanes append only what their shards' uncommitted windows allow
//! (`limits.uncommitted_entries`), and stop admitting commands while [`Journal::has_room`] is
//! false. Beyond four times that room the bound was not kept, and the journal stops.
//!
//! The journal is a node's single point of order, so it also fences: see `index.rs`. The newest
//! promise of a shard outlives the record that holds it: the commit that cuts the record writes the
//! promise into a table beside the records. A mark in `state.redb` would not do: a standby that has
//! nothing to save writes none. Nor would a new record: an idle node would write it again and again.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use mainstay_protocol::entry::Segment;
use mainstay_protocol::id::{CommitNo, Epoch, Seq, ShardId};
use mainstay_protocol::time::Instant;
use redb::Database;

use super::committer::{Committer, Meters};
use super::error::StorageError;
use super::index::Index;
use super::queue::lock;
use super::reserve::Reserve;
use super::stop::Stop;
use super::tables::JOURNAL_FILE;
use super::tables::records::record_len;

/// Queued bytes up to which commands are admitted.
pub(super) const ROOM_BYTES: usize = 128 << 20;
/// Queued bytes beyond which lanes have broken their bounds.
const QUEUE_BYTES_MAX: usize = 4 * ROOM_BYTES;

/// Who appends, and is told what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Writer {
    /// A lane, for the primaries that it runs.
    Lane(u16),
    /// The standbys of this node.
    Standbys,
}

/// What a writer appends in one go.
#[derive(Debug)]
pub struct Batch {
    /// The writer.
    pub writer: Writer,
    /// The writer's own number for it, given back when it is durable.
    pub ticket: u64,
    /// Segments of its shards.
    pub segments: Vec<Segment>,
    /// What standbys promise: the epoch under which their segments here are written. Segments of a
    /// shard that is not named are their own primary's, and written under their own epoch.
    pub promises: BTreeMap<ShardId, Epoch>,
}

/// What became of a batch. For each writer, in the order of its appends.
#[derive(Debug, Clone)]
pub enum JournalNews {
    /// It is durable.
    Committed {
        /// The writer.
        writer: Writer,
        /// The writer's number.
        ticket: u64,
        /// The record that holds it.
        commit: CommitNo,
    },
    /// Nothing of one of its shards was written: this node has promised a newer epoch. A primary of
    /// that shard must step down. `Committed` follows for what is left of the batch, if anything is.
    Fenced {
        /// The writer.
        writer: Writer,
        /// The writer's number.
        ticket: u64,
        /// The shard.
        shard: ShardId,
        /// The newest epoch promised.
        promised: Epoch,
    },
    /// It is not known to be durable; no later batch will be. All shards must step down.
    Failed {
        /// The writer.
        writer: Writer,
        /// The writer's number.
        ticket: u64,
        /// Why the journal stopped.
        error: StorageError,
    },
}

impl JournalNews {
    /// Whom it is for.
    pub const fn writer(&self) -> Writer {
        match self {
            Self::Committed { writer, .. }
            | Self::Fenced { writer, .. }
            | Self::Failed { writer, .. } => *writer,
        }
    }
}

/// What storage tells its node.
#[derive(Debug, Clone)]
pub enum News {
    /// What became of a batch.
    Journal(JournalNews),
    /// There was no room in the journal's queue, and there is again ([`Journal::has_room`]).
    Room,
    /// The journal or the state takes nothing more: the node must start again. Told once.
    Stopped(StorageError),
}

/// Where news go. Called on threads of storage; must neither block nor panic.
pub type Notify = Arc<dyn Fn(News) + Send + Sync>;

/// What `state.redb` durably says of one shard.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Mark {
    pub(super) applied: Seq,
    pub(super) since: CommitNo,
}

/// What `state.redb` durably says of all shards: told by the state writer, read by the committer.
#[derive(Debug, Default)]
pub(super) struct Marks(Mutex<BTreeMap<ShardId, Mark>>);

impl Marks {
    pub(super) fn set(&self, shard: ShardId, mark: Mark) {
        lock(&self.0).insert(shard, mark);
    }

    pub(super) fn get(&self, shard: ShardId) -> Mark {
        lock(&self.0).get(&shard).copied().unwrap_or_default()
    }
}

/// The journal as it was found, or made.
pub(super) struct Found {
    pub(super) database: Database,
    pub(super) index: Index,
    pub(super) cut_below: CommitNo,
    pub(super) next: CommitNo,
    pub(super) cut_least: u64,
    /// Queued bytes up to which there is room: [`ROOM_BYTES`].
    pub(super) room_bytes: u64,
    /// The length from which on whoever pins the journal is to checkpoint.
    pub(super) bytes_soft: u64,
    pub(super) marks: Arc<Marks>,
    pub(super) reserve: Arc<Reserve>,
    pub(super) stop: Arc<Stop>,
}

pub(super) struct Queue {
    pub(super) batches: VecDeque<Batch>,
    pub(super) bytes: usize,
    pub(super) closing: bool,
    pub(super) gone: bool,
}

pub(super) struct Shared {
    pub(super) queue: Mutex<Queue>,
    pub(super) wake: Condvar,
    pub(super) bytes_soft: u64,
    pub(super) room_bytes: u64,
    pub(super) index: Mutex<Index>,
    /// To read back: it is closed with the committer.
    pub(super) database: Weak<Database>,
    pub(super) queued_bytes: AtomicU64,
    pub(super) journal_bytes: AtomicU64,
    pub(super) next: AtomicU64,
    pub(super) busy_since: AtomicU64,
    pub(super) failure: OnceLock<StorageError>,
    pub(super) marks: Arc<Marks>,
    pub(super) reserve: Arc<Reserve>,
    pub(super) stop: Arc<Stop>,
    pub(super) notify: Notify,
}

/// A handle to the journal; cheap to clone.
#[derive(Clone)]
pub struct Journal {
    shared: Arc<Shared>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal").field("next", &self.next_commit()).finish_non_exhaustive()
    }
}

impl Journal {
    /// Starts the committer over the journal that was found.
    pub(super) fn start(found: Found, notify: Notify) -> io::Result<(Self, JoinHandle<()>)> {
        let Found { database, index, cut_below, next, cut_least, .. } = found;
        let database = Arc::new(database);
        let shared = Arc::new(Shared {
            database: Arc::downgrade(&database),
            queue: Mutex::new(Queue {
                batches: VecDeque::new(),
                bytes: 0,
                closing: false,
                gone: false,
            }),
            wake: Condvar::new(),
            bytes_soft: found.bytes_soft,
            room_bytes: found.room_bytes,
            journal_bytes: AtomicU64::new(index.records().map(|record| record.bytes).sum()),
            index: Mutex::new(index),
            queued_bytes: AtomicU64::new(0),
            next: AtomicU64::new(next.0),
            busy_since: AtomicU64::new(0),
            failure: OnceLock::new(),
            marks: found.marks,
            reserve: found.reserve,
            stop: found.stop,
            notify,
        });
        let committer = Committer {
            shared: Arc::clone(&shared),
            database,
            next,
            cut_below,
            covered_below: cut_below,
            cut_least,
            meters: Meters::new(),
        };
        let thread = std::thread::Builder::new().name("mainstay-journal".to_owned());
        let thread = thread.spawn(move || committer.run())?;
        Ok((Self { shared }, thread))
    }

    /// Appends a batch. Never waits; the news come through the [`Notify`] given at the start.
    pub fn append(&self, batch: Batch) {
        let bytes = batch_bytes(&batch);
        let mut queue = lock(&self.shared.queue);
        if queue.gone {
            drop(queue);
            let error = self.shared.failure.get().cloned().unwrap_or(StorageError::Closed);
            self.shared.tell_failed(&batch, &error);
            return;
        }
        queue.bytes += bytes;
        if queue.bytes > QUEUE_BYTES_MAX {
            let (queued_bytes, bytes_max) = (queue.bytes, QUEUE_BYTES_MAX);
            self.shared.fail(StorageError::Overrun { file: JOURNAL_FILE, queued_bytes, bytes_max });
        }
        self.shared.queued_bytes.store(queue.bytes as u64, Ordering::Relaxed);
        queue.batches.push_back(batch);
        drop(queue);
        self.shared.wake.notify_one();
    }

    /// Whether new commands may be admitted: the disk is above its reserve and no file stopped.
    pub fn writable(&self) -> bool {
        self.shared.reserve.writable() && self.shared.stop.first().is_none()
    }

    /// Whether less is queued than a slow disk may make wait; otherwise lanes admit no commands.
    pub fn has_room(&self) -> bool {
        self.shared.has_room()
    }

    /// Why a file of this node stopped, if one did.
    pub fn stopped(&self) -> Option<StorageError> {
        self.shared.stop.first().cloned()
    }

    /// Bytes of records that a start would have to replay.
    pub fn journal_bytes(&self) -> u64 {
        self.shared.journal_bytes.load(Ordering::Relaxed)
    }

    /// The shards to checkpoint now: those that keep the oldest record from being cut, once the
    /// journal is longer than `storage.journal_bytes`.
    pub fn overdue(&self) -> Vec<ShardId> {
        if self.journal_bytes() > self.shared.bytes_soft { self.pins() } else { Vec::new() }
    }

    /// The shards of the oldest record that cannot be cut.
    pub(super) fn pins(&self) -> Vec<ShardId> {
        let index = lock(&self.shared.index);
        let needed = index
            .records()
            .map(|record| index.uncovered(record, &self.shared.marks).collect::<Vec<_>>());
        needed.into_iter().find(|shards| !shards.is_empty()).unwrap_or_default()
    }

    /// The number of the next commit.
    pub fn next_commit(&self) -> CommitNo {
        CommitNo(self.shared.next.load(Ordering::Acquire))
    }

    /// How long the commit under way has taken: progress, for heartbeats. Zero when idle.
    pub fn stalled_for(&self, now: Instant) -> Duration {
        match self.shared.busy_since.load(Ordering::Relaxed) {
            0 => Duration::ZERO,
            since => now.saturating_since(Instant::from_nanos(since)),
        }
    }

    pub(super) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Takes no more batches; the committer ends when all that were taken are durable.
    pub(super) fn close(&self) {
        lock(&self.shared.queue).closing = true;
        self.shared.wake.notify_all();
    }
}

pub(super) fn batch_bytes(batch: &Batch) -> usize {
    let bytes = batch.segments.iter().map(|segment| segment.bytes.len()).sum();
    record_len(batch.segments.len(), batch.promises.len(), bytes)
}

impl Shared {
    pub(super) fn tell(&self, news: JournalNews) {
        (self.notify)(News::Journal(news));
    }

    pub(super) fn tell_failed(&self, batch: &Batch, error: &StorageError) {
        let (writer, ticket) = (batch.writer, batch.ticket);
        self.tell(JournalNews::Failed { writer, ticket, error: error.clone() });
    }

    pub(super) fn has_room(&self) -> bool {
        self.queued_bytes.load(Ordering::Relaxed) < self.room_bytes
    }

    /// Stops the journal, for good; the first error stays. Also told when no batch waits.
    pub(super) fn fail(&self, error: StorageError) {
        self.stop.set(&error);
        // an earlier failure is the one to tell
        drop(self.failure.set(error));
    }
}
