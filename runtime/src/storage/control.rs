//! The control store: consensus log, vote, snapshot, in `control.redb` on a thread of its own.
//!
//! ```text
//!   save_vote ----\                        /-- one transaction, one fsync --> every `done`, in order
//!   append --------+--> bounded queue --> |
//!   purge --------/                        \-- read: after the writes that were queued before it
//! ```
//!
//! Bytes only: what they mean is known to the consensus room. Writes take effect in the order in
//! which they were queued, and their callbacks run after the fsync, never before it. The log has
//! no holes: an append that would leave one is refused. After the first failed write the store
//! refuses everything, since nobody knows what such a disk holds; the node stops and recovers.

mod keeper;

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[cfg(test)]
use redb::Database;
use tokio::sync::{mpsc, oneshot};

use self::keeper::Keeper;
use super::caught;

/// The name of the file in the data directory.
pub const FILE: &str = "control.redb";
/// Jobs that wait for the thread. Consensus waits for each flush, so few ever do.
const QUEUE: usize = 64;
/// Memory for pages of the file.
const CACHE_BYTES: usize = 8 << 20;

/// Why the control store did not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ControlStoreError {
    /// The data directory belongs to a cluster, but its consensus log is gone. A voter that forgot
    /// its votes must not vote: give the node an empty directory, so that it joins anew.
    #[error("{} is missing from a data directory that belongs to a cluster", path.display())]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// A newer build wrote the file. Start that build.
    #[error("the control store has format {found}, this build reads up to {understood}")]
    NewerFormat {
        /// What was found.
        found: u8,
        /// What this build reads.
        understood: u8,
    },
    /// A stored value fails its checksum. Nothing was changed; the node must not serve.
    #[error("the control store's {what} fails its checksum")]
    Corrupt {
        /// Which value.
        what: String,
    },
    /// The file is not what was written. Nothing was changed; the node must not serve.
    #[error("the control store is damaged: {what}")]
    Damaged {
        /// What is wrong with it.
        what: String,
    },
    /// The entries would leave a hole in the log. Nothing was written.
    #[error("entry {given} does not follow the log, which expects {expected}")]
    Hole {
        /// The index that was given.
        given: u64,
        /// The index that the log expects.
        expected: u64,
    },
    /// The disk failed. What was being written may or may not be there; nothing more is written.
    #[error("the control store failed")]
    Failed(#[source] Arc<redb::Error>),
    /// The store was closed. Nothing was written.
    #[error("the control store is closed")]
    Closed,
}

impl ControlStoreError {
    /// The number under which the operator finds it explained.
    pub fn code(&self) -> &'static str {
        match self {
            Self::NewerFormat { .. } => "MS-1106",
            Self::Missing { .. }
            | Self::Corrupt { .. }
            | Self::Damaged { .. }
            | Self::Hole { .. } => "MS-1105",
            Self::Failed(_) | Self::Closed => "MS-1103",
        }
    }
}

impl<E: Into<redb::Error>> From<E> for ControlStoreError {
    fn from(error: E) -> Self {
        match error.into() {
            redb::Error::Corrupted(what) => Self::Damaged { what },
            error => Self::Failed(Arc::new(error)),
        }
    }
}

fn damaged(what: String) -> ControlStoreError {
    ControlStoreError::Damaged { what }
}

/// The library tells a file that is none of its own by the kind of an input error.
fn not_opened(error: redb::DatabaseError) -> ControlStoreError {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        redb::DatabaseError::UpgradeRequired(found) => {
            damaged(format!("database format {found} is older than any that was ever written"))
        }
        redb::DatabaseError::Storage(redb::StorageError::Io(source))
            if matches!(source.kind(), InvalidData | UnexpectedEof) =>
        {
            damaged(source.to_string())
        }
        other => other.into(),
    }
}

/// What hears that a write is on disk, or failed. It runs on the store's thread: it only passes
/// the news on.
pub type Done = Box<dyn FnOnce(Result<(), ControlStoreError>) + Send>;

/// A value that the store keeps one of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// The last vote. Durable before it is acted on.
    Vote,
    /// The last committed place, a hint: it may be lost, and is then found again.
    Committed,
    /// The cluster that this node decided to form. Durable before anybody hears of it.
    Founding,
}

impl Slot {
    fn key(self) -> &'static str {
        match self {
            Self::Vote => "vote",
            Self::Committed => "committed",
            Self::Founding => "founding",
        }
    }
}

/// The ends of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ends {
    /// The marker of the last purge.
    pub purged: Option<Vec<u8>>,
    /// The last entry, when there is one.
    pub last: Option<Vec<u8>>,
}

/// A snapshot: what it covers, and its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredSnapshot {
    /// How many entries it covers, from the first on.
    pub entries: u64,
    /// What it covers.
    pub meta: Vec<u8>,
    /// The state.
    pub data: Vec<u8>,
}

enum Write {
    Put(Slot, Vec<u8>),
    Append(Vec<(u64, Vec<u8>)>),
    Truncate { from: u64 },
    Purge { upto: u64, marker: Vec<u8> },
    Snapshot(StoredSnapshot),
}

type Answer<T> = oneshot::Sender<Result<T, ControlStoreError>>;

enum Job {
    Write(Write, Done),
    Get(Slot, Answer<Option<Vec<u8>>>),
    Entries { range: Range<u64>, bytes_max: usize, answer: Answer<Vec<Vec<u8>>> },
    Ends(Answer<Ends>),
    Snapshot(Answer<Option<StoredSnapshot>>),
    Close(oneshot::Sender<()>),
}

/// A handle of the control store. The thread ends with the last handle.
#[derive(Debug, Clone)]
pub struct ControlStore {
    jobs: mpsc::Sender<Job>,
}

impl ControlStore {
    /// Opens `control.redb` in `dir` and starts its thread. With `must_exist` a missing or empty
    /// file is an error: the directory already belongs to a cluster.
    ///
    /// # Errors
    /// `Missing`, `NewerFormat`, `Corrupt`, `Damaged`, or `Failed` when the file cannot be opened.
    pub fn open(dir: &Path, must_exist: bool) -> Result<Self, ControlStoreError> {
        let path = dir.join(FILE);
        if must_exist && !path.exists() {
            return Err(ControlStoreError::Missing { path });
        }
        let create = || super::create(&path, CACHE_BYTES);
        let database = caught(create).map_err(damaged)?.map_err(not_opened)?;
        Self::spawn(Keeper::open(database, must_exist)?)
    }

    /// A store that takes logs with holes, as the consensus library's own tests write them.
    #[cfg(test)]
    pub(crate) fn open_with_holes(dir: &Path) -> Result<Self, ControlStoreError> {
        let mut keeper = Keeper::open(Database::create(dir.join(FILE))?, false)?;
        keeper.allow_holes();
        Self::spawn(keeper)
    }

    /// Starts the thread over an open database.
    #[cfg(test)]
    fn start(database: Database) -> Result<Self, ControlStoreError> {
        Self::spawn(Keeper::open(database, false)?)
    }

    fn spawn(keeper: Keeper) -> Result<Self, ControlStoreError> {
        let (jobs, queue) = mpsc::channel(QUEUE);
        std::thread::Builder::new()
            .name("mainstay-control-store".to_owned())
            .spawn(move || keeper.run(queue))
            .map_err(redb::StorageError::Io)?;
        Ok(Self { jobs })
    }

    /// Puts a value; it is on disk when this returns, except [`Slot::Committed`], which is only
    /// queued.
    ///
    /// # Errors
    /// `Failed` or `Closed`; then the value may or may not be there.
    pub async fn put(&self, slot: Slot, value: Vec<u8>) -> Result<(), ControlStoreError> {
        if slot == Slot::Committed {
            return self.queue(Job::Write(Write::Put(slot, value), Box::new(drop))).await;
        }
        self.write(Write::Put(slot, value)).await
    }

    /// Queues entries, each with its index, without holes. Readable at once; `done` runs when they
    /// are on disk.
    ///
    /// # Errors
    /// `Closed`; `done` was then dropped. Everything else comes through `done`.
    pub async fn append(
        &self,
        entries: Vec<(u64, Vec<u8>)>,
        done: Done,
    ) -> Result<(), ControlStoreError> {
        self.queue(Job::Write(Write::Append(entries), done)).await
    }

    /// Removes entries from `from` on; durable on return.
    ///
    /// # Errors
    /// `Failed` or `Closed`.
    pub async fn truncate(&self, from: u64) -> Result<(), ControlStoreError> {
        self.write(Write::Truncate { from }).await
    }

    /// Removes entries up to `upto`, which `marker` describes; durable on return.
    ///
    /// # Errors
    /// `Failed` or `Closed`.
    pub async fn purge(&self, upto: u64, marker: Vec<u8>) -> Result<(), ControlStoreError> {
        self.write(Write::Purge { upto, marker }).await
    }

    /// Replaces the snapshot, whole or not at all, unless the stored one covers more; durable on
    /// return.
    ///
    /// # Errors
    /// `Failed` or `Closed`.
    pub async fn save_snapshot(&self, snapshot: StoredSnapshot) -> Result<(), ControlStoreError> {
        self.write(Write::Snapshot(snapshot)).await
    }

    /// Reads a value.
    ///
    /// # Errors
    /// `Corrupt`, `Failed` or `Closed`.
    pub async fn get(&self, slot: Slot) -> Result<Option<Vec<u8>>, ControlStoreError> {
        self.read(|answer| Job::Get(slot, answer)).await
    }

    /// Reads entries of a range: at least one when there is one, no more once `bytes_max` is
    /// reached.
    ///
    /// # Errors
    /// `Corrupt`, `Failed` or `Closed`.
    pub async fn entries(
        &self,
        range: Range<u64>,
        bytes_max: usize,
    ) -> Result<Vec<Vec<u8>>, ControlStoreError> {
        self.read(|answer| Job::Entries { range, bytes_max, answer }).await
    }

    /// Reads the ends of the log.
    ///
    /// # Errors
    /// `Corrupt`, `Failed` or `Closed`.
    pub async fn ends(&self) -> Result<Ends, ControlStoreError> {
        self.read(Job::Ends).await
    }

    /// Reads the snapshot.
    ///
    /// # Errors
    /// `Corrupt`, `Failed` or `Closed`.
    pub async fn snapshot(&self) -> Result<Option<StoredSnapshot>, ControlStoreError> {
        self.read(Job::Snapshot).await
    }

    /// Writes what is queued, closes the file and ends the thread.
    pub async fn close(&self) {
        let (answer, closed) = oneshot::channel();
        if self.queue(Job::Close(answer)).await.is_ok() {
            closed.await.ok();
        }
    }

    async fn queue(&self, job: Job) -> Result<(), ControlStoreError> {
        self.jobs.send(job).await.map_err(|_| ControlStoreError::Closed)
    }

    async fn write(&self, write: Write) -> Result<(), ControlStoreError> {
        let (answer, written) = oneshot::channel();
        let done: Done = Box::new(move |result| {
            answer.send(result).ok();
        });
        self.queue(Job::Write(write, done)).await?;
        written.await.map_err(|_| ControlStoreError::Closed)?
    }

    async fn read<T>(&self, job: impl FnOnce(Answer<T>) -> Job) -> Result<T, ControlStoreError> {
        let (answer, read) = oneshot::channel();
        self.queue(job(answer)).await?;
        read.await.map_err(|_| ControlStoreError::Closed)?
    }
}

#[cfg(test)]
pub(crate) mod tests;
