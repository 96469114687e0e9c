//! What a node keeps on disk, and the threads that alone touch it.
//!
//! ```text
//!   <data directory>/
//!     lock           who uses it; one process at a time
//!     identity       node, disk, cluster, start
//!     journal.redb   what lanes appended and nothing else holds yet    mainstay-journal
//!     state.redb     entity states, dedup records, marks               mainstay-state, -load-n
//!     control.redb   the consensus log and vote                        its own thread
//! ```
//!
//! A write is durable when it is in the journal; the state follows in the background, and the
//! journal is cut behind it. [`open`] puts both together again. `docs/storage.md` has the bytes,
//! the upgrade rule and what happens in each failure.

pub mod control;
pub mod fault;
mod checkpoint;
mod committer;
mod error;
mod identity;
mod index;
mod journal;
mod load;
mod queue;
mod read_back;
mod recovery;
mod replay;
mod reserve;
mod state;
mod stop;
mod tables;

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use mainstay_protocol::id::{BootId, ClusterId, NodeId};
use redb::Database;

use crate::{clock, config};
use identity::Directory;
use journal::Found;
use queue::lock;
use recovery::Recovery;

pub use error::{OpenError, StorageError};
pub use identity::{Identity, SetClusterError};
pub use journal::{Batch, Journal, JournalNews, News, Notify, Writer};
pub use recovery::{DirtyRow, Recovered, RecoveredShard};
use reserve::Reserve;
pub use state::{
    CheckpointBatch, CopyRows, DedupKey, DedupPage, DedupRow, Done, ImportBatch, OpenedShard, Scan,
    ScanCursor, ScanPage, ScanRow, ShardMark, SliceRange, State, StatePage, StateRow, StoredState,
};
use stop::Stop;
pub use tables::{Generation, JOURNAL_FILE, STATE_FILE};

/// Threads that read state.
const LOADERS: usize = 2;

/// Where databases live: a directory, or memory that can lose power.
pub trait Disk: fmt::Debug + Send + Sync {
    /// Whether the file is there.
    fn exists(&self, file: &str) -> bool;

    /// Opens the database in a file, made if need be.
    ///
    /// # Errors
    /// What the database says.
    fn open(&self, file: &str, cache_bytes: usize) -> Result<Database, redb::DatabaseError>;
}

/// A directory of the file system.
#[derive(Debug)]
struct FileDisk(PathBuf);

impl Disk for FileDisk {
    fn exists(&self, file: &str) -> bool {
        self.0.join(file).exists()
    }

    fn open(&self, file: &str, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
        create(&self.0.join(file), cache_bytes)
    }
}

/// Opens the database in a file, made if need be; on the drive of a test, if one is installed.
fn create(path: &Path, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    match fault::drive::open(path) {
        None => builder.create(path),
        Some(file) => builder.create_with_backend(file.map_err(redb::StorageError::from)?),
    }
}

/// Whether a data directory was never used: it names no owner. Makes nothing.
pub fn is_fresh(dir: &Path) -> bool {
    !identity::exists(dir)
}

/// Opens the data directory of a node: locks it, checks whose it is, and recovers. Blocks; a node
/// does it once, before it has anything else to do.
///
/// # Errors
/// [`OpenError`], by what is wrong.
pub fn open(
    config: &config::Storage,
    dir: &Path,
    node: Option<&NodeId>,
) -> Result<Opened, OpenError> {
    open_on(&FileDisk(dir.to_owned()), config, dir, node)
}

/// What is stored, under the name that is configured. A name is for ever once there is a cluster that
/// knows it; a first start that failed binds nobody.
fn own(
    stored: Option<Identity>,
    configured: Option<&NodeId>,
) -> Result<Option<Identity>, OpenError> {
    match (stored, configured) {
        (Some(stored), Some(configured)) if stored.node != *configured => {
            let configured = configured.clone();
            if stored.cluster.is_some() {
                return Err(OpenError::OtherNode { stored: stored.node, configured });
            }
            Ok(Some(Identity { node: configured, ..stored }))
        }
        (stored, _) => Ok(stored),
    }
}

/// Like [`open`], with the databases on another disk than the directory's.
///
/// # Errors
/// [`OpenError`], by what is wrong.
#[doc(hidden)]
pub fn open_on(
    disk: &dyn Disk,
    config: &config::Storage,
    dir: &Path,
    node: Option<&NodeId>,
) -> Result<Opened, OpenError> {
    let directory = Directory::lock(dir)?;
    let stored = own(directory.read_identity()?, node)?;
    let reserve = Reserve::of_dir(dir, config.reserve_bytes);
    let recovery = Recovery::run(disk, stored.is_none())?;
    let fail = |operation| move |error| OpenError::from_io(dir.to_owned(), operation, error);
    directory.sync().map_err(fail("sync"))?;
    let identity = match &stored {
        None => Identity::make(node).map_err(fail("name"))?,
        Some(stored) => {
            let boot = BootId(clock::wall().0.max(stored.boot.0 + 1));
            Identity { boot, ..stored.clone() }
        }
    };
    match directory.write_identity(&identity) {
        Ok(()) => {}
        // a full disk must not keep a node from serving what it has; its next start is later still
        Err(error) if stored.is_some() && error.kind() == io::ErrorKind::StorageFull => {
            tracing::error!(code = "MS-1104", "the disk is full, this start is not recorded");
        }
        Err(error) => return Err(fail("write the identity of")(error)),
    }
    let (read_only, journal_bytes) = (!reserve.writable(), config.journal_bytes);
    let steps = Steps::default();
    Ok(Opened { identity, read_only, directory, reserve, recovery, journal_bytes, steps })
}

/// An opened data directory, before its threads run.
pub struct Opened {
    /// Whose it is.
    pub identity: Identity,
    /// Free disk space is below the reserve: what is there can be served, nothing can be written
    /// until there is more (see [`Journal::writable`]). It was logged as `MS-1104`.
    pub read_only: bool,
    directory: Directory,
    reserve: Reserve,
    recovery: Recovery,
    journal_bytes: u64,
    steps: Steps,
}

/// How much background work goes into one step; tests take smaller ones.
struct Steps {
    cut_least: u64,
    txn_rows: usize,
    room_bytes: usize,
}

impl Default for Steps {
    fn default() -> Self {
        Self {
            cut_least: committer::CUT_LEAST,
            txn_rows: checkpoint::TXN_ROWS_MAX,
            room_bytes: journal::ROOM_BYTES,
        }
    }
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("identity", &self.identity).finish_non_exhaustive()
    }
}

impl Opened {
    /// What was found.
    pub fn recovered(&self) -> &Recovered {
        &self.recovery.recovered
    }

    /// Starts the threads; `notify` gets their news.
    ///
    /// # Errors
    /// [`OpenError::Unusable`] when a thread cannot be started.
    pub fn start(self, notify: Notify) -> Result<(Storage, Recovered), OpenError> {
        let Self { identity, directory, reserve, recovery, journal_bytes, steps, .. } = self;
        let reserve = Arc::new(reserve);
        let stop = Arc::new(Stop::new(Arc::clone(&notify)));
        let marks = Arc::new(recovery.marks);
        let found = Found {
            database: recovery.journal,
            index: recovery.index,
            cut_below: recovery.cut_below,
            next: recovery.recovered.next_commit,
            cut_least: steps.cut_least,
            room_bytes: steps.room_bytes as u64,
            bytes_soft: journal_bytes,
            marks: Arc::clone(&marks),
            reserve: Arc::clone(&reserve),
            stop: Arc::clone(&stop),
        };
        let path = directory.path().to_owned();
        let fail = |error| OpenError::from_io(path.clone(), "start the threads of", error);
        let (journal, committer) = Journal::start(found, notify).map_err(fail)?;
        let database = Arc::new(recovery.state);
        let writer = checkpoint::Writer {
            database: Arc::clone(&database),
            shards: recovery.shards,
            marks,
            reserve,
            stop,
            journal: journal.clone(),
            txn_rows: steps.txn_rows,
            imports: BTreeMap::new(),
        };
        let mut storage = Storage {
            journal,
            state: State::new(),
            identity: Mutex::new(identity),
            threads: vec![committer],
            directory,
        };
        storage.state.sweep();
        storage.start_state(writer, &database).map_err(fail)?;
        Ok((storage, recovery.recovered))
    }
}

/// The running storage of a node. Dropping it is closing it.
#[derive(Debug)]
pub struct Storage {
    journal: Journal,
    state: State,
    identity: Mutex<Identity>,
    threads: Vec<JoinHandle<()>>,
    directory: Directory,
}

impl Storage {
    fn start_state(
        &mut self,
        writer: checkpoint::Writer,
        database: &Arc<Database>,
    ) -> io::Result<()> {
        let writes = Arc::clone(&self.state.writes);
        let stop = Arc::clone(&writer.stop);
        let thread = std::thread::Builder::new().name("mainstay-state".to_owned());
        self.threads.push(thread.spawn(move || writer.run(&writes))?);
        for n in 0..LOADERS {
            let reads = Arc::clone(&self.state.reads);
            let (database, stop) = (Arc::clone(database), Arc::clone(&stop));
            let thread = std::thread::Builder::new().name(format!("mainstay-load-{n}"));
            self.threads.push(thread.spawn(move || load::run(&reads, &database, &stop))?);
        }
        Ok(())
    }

    /// The journal.
    pub fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The checkpointed state.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Whose data this is.
    pub fn identity(&self) -> Identity {
        lock(&self.identity).clone()
    }

    /// Binds the data to a cluster, durably. Waits for the disk; it happens once in the life of a
    /// directory, and again with the same cluster it does nothing.
    ///
    /// # Errors
    /// [`SetClusterError`], by what is wrong.
    pub fn set_cluster(&self, cluster: ClusterId) -> Result<(), SetClusterError> {
        let mut identity = lock(&self.identity);
        match identity.cluster {
            Some(stored) if stored == cluster => return Ok(()),
            Some(stored) => return Err(SetClusterError::OtherCluster { stored, given: cluster }),
            None => {}
        }
        let bound = Identity { cluster: Some(cluster), ..identity.clone() };
        self.directory.write_identity(&bound)?;
        *identity = bound;
        Ok(())
    }

    /// Closes: takes nothing more, waits until everything that was queued is durable and answered,
    /// ends the threads and releases the directory. Handles that are left answer `Closed`.
    pub fn close(self) {
        drop(self);
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        self.journal.close();
        self.state.close();
        for thread in self.threads.drain(..) {
            let name = thread.thread().name().unwrap_or_default().to_owned();
            if thread.join().is_err() {
                tracing::error!(thread = name, "a storage thread panicked");
            }
        }
    }
}

/// Runs something over a database, which panics on some kinds of damage: a damaged file must not
/// take the process with it.
fn guarded<T>(
    file: &'static str,
    action: impl FnOnce() -> Result<T, StorageError>,
) -> Result<T, StorageError> {
    caught(action).unwrap_or_else(|what| Err(StorageError::corrupt(file, what)))
}

/// The same for whoever has errors of its own: the panic's text, as damage.
fn caught<T>(action: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(action))
        .map_err(|panic| format!("reading it panicked: {}", text_of(&*panic)))
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    match panic.downcast_ref::<String>() {
        Some(text) => text,
        None => panic.downcast_ref::<&str>().copied().unwrap_or("without a text"),
    }
}

#[cfg(test)]
mod tests;
