//! What can go wrong with stored data, and what is true then.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use mainstay_protocol::id::{NodeId, ShardId};
use metrics::counter;

use super::state::CopyRows;
use super::tables::Generation;

/// What a failure may have been of: the closed set of the label `operation`.
const OPERATIONS: [&str; 4] = ["read", "write", "fsync", "statvfs"];
/// Where damage was found: the closed set of the label `where`.
const WAL: &str = "wal";
const SNAPSHOT: &str = "snapshot";

/// Why a data directory cannot be used. Nothing in it was changed, except that `mainstay-data`
/// itself and empty files may have been created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process uses the directory. Stop it, or choose another directory.
    #[error("data directory {dir} is in use by {}", process(*.pid))]
    Locked {
        /// The directory.
        dir: PathBuf,
        /// The process that holds it, when it has said so.
        pid: Option<u32>,
    },
    /// The directory cannot be created, read or written. Check its owner, its mode and the mount.
    #[error("cannot {operation} {path}")]
    Unusable {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        operation: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The directory belongs to a node of another name. Start it under its own name, or choose
    /// another directory: names are bound to their data for ever.
    #[error("the data belongs to node {stored}, not {configured}")]
    OtherNode {
        /// Whose data it is.
        stored: NodeId,
        /// Who was to be started.
        configured: NodeId,
    },
    /// The disk is so full that the files cannot even be opened. Free some space and start again.
    #[error("no space left to open {path}")]
    DiskFull {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file was written by a newer build. Start that build again.
    #[error("{file} has format {found}, this build reads up to {known}")]
    Newer {
        /// The file.
        file: String,
        /// Its format.
        found: u64,
        /// The newest format that this build reads.
        known: u64,
    },
    /// Stored data is damaged or missing. Nothing is served from it: restore the directory from a
    /// copy, or let the node join again with an empty one.
    #[error("{file} is corrupt: {what}")]
    Corrupt {
        /// The file.
        file: String,
        /// What was found.
        what: String,
    },
}

fn process(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}

impl OpenError {
    /// The error's code, as `mainstay explain` takes it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Locked { .. } => "MS-1102",
            Self::Unusable { .. } | Self::OtherNode { .. } => "MS-1103",
            Self::DiskFull { .. } => "MS-1104",
            Self::Corrupt { .. } => "MS-1105",
            Self::Newer { .. } => "MS-1106",
        }
    }

    pub(super) fn from_io(path: PathBuf, operation: &'static str, source: io::Error) -> Self {
        if source.kind() == io::ErrorKind::StorageFull {
            return Self::DiskFull { path, source };
        }
        Self::Unusable { path, operation, source }
    }

    pub(super) fn from_redb(path: PathBuf, error: redb::DatabaseError) -> Self {
        let file = path.display().to_string();
        match error {
            redb::DatabaseError::DatabaseAlreadyOpen => Self::Locked { dir: path, pid: None },
            redb::DatabaseError::UpgradeRequired(found) => Self::Corrupt {
                file,
                what: format!("database format {found} is older than any that was ever written"),
            },
            redb::DatabaseError::Storage(redb::StorageError::Io(source))
                if matches!(
                    source.kind(),
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof
                ) =>
            {
                Self::Corrupt { file, what: source.to_string() }
            }
            redb::DatabaseError::Storage(redb::StorageError::Io(source)) => {
                Self::from_io(path, "open", source)
            }
            redb::DatabaseError::Storage(redb::StorageError::Corrupted(what)) => {
                Self::Corrupt { file, what }
            }
            other => Self::from_io(path, "open", io::Error::other(other)),
        }
    }
}

/// Why a running storage could not do something.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StorageError {
    /// What was read is not what was written. It was not served; nothing was changed. The other
    /// data of the file may be intact.
    #[error("{file} is corrupt: {what}")]
    Corrupt {
        /// The file.
        file: &'static str,
        /// What was found.
        what: String,
    },
    /// A value was written by a newer build. Nothing was changed.
    #[error("{file} holds a value of format {found}, this build reads up to {known}")]
    Newer {
        /// The file.
        file: &'static str,
        /// The value's format.
        found: u64,
        /// The newest format that this build reads.
        known: u64,
    },
    /// The disk refused. Whether a write took effect is unknown until the next start; the file
    /// takes no more of them.
    #[error("{operation} on {file} failed")]
    Io {
        /// The file.
        file: &'static str,
        /// What was tried: "read", "write" or "fsync".
        operation: &'static str,
        /// What the disk said.
        source: Arc<redb::Error>,
    },
    /// There is less free space than the reserve. Nothing was changed; try again when there is
    /// more.
    #[error("{free_bytes} bytes of disk are free, the reserve is {reserve_bytes}")]
    DiskFull {
        /// Free now.
        free_bytes: u64,
        /// What must stay free.
        reserve_bytes: u64,
    },
    /// More was queued than lanes may have outstanding: a bound above was not kept. Nothing of the
    /// refused batch was written; the file takes no more.
    #[error("{file} has {queued_bytes} bytes queued, the bound is {bytes_max}")]
    Overrun {
        /// The file.
        file: &'static str,
        /// What was queued.
        queued_bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// An earlier failure stopped the file. Nothing was changed; the process must start again.
    #[error("{file} stopped after an earlier failure")]
    Stopped {
        /// The file.
        file: &'static str,
    },
    /// The storage was closed. Nothing was changed.
    #[error("the storage is closed")]
    Closed,
    /// Too much is queued already. Nothing was changed; try again later.
    #[error("the {queue} queue holds {max} already")]
    Busy {
        /// Which queue.
        queue: &'static str,
        /// Its bound.
        max: usize,
    },
    /// A copy is not all here: a part of it was lost, or the shard was dropped or activated while it
    /// arrived. The live state is as before; copy the shard again from the beginning.
    #[error(
        "of copy {} of shard {shard} only {} states and {} dedup records are stored",
        .generation.0, .stored.states, .stored.dedup
    )]
    CopyIncomplete {
        /// The shard.
        shard: ShardId,
        /// The generation.
        generation: Generation,
        /// What of it is stored.
        stored: CopyRows,
    },
    /// An import into a generation that is being served. Nothing was changed; use another one.
    #[error("generation {} of shard {shard} is the live one", .generation.0)]
    GenerationLive {
        /// The shard.
        shard: ShardId,
        /// The generation.
        generation: Generation,
    },
}

impl StorageError {
    /// Makes every series that counts failures of the storage, at zero: a rule over `increase`
    /// cannot see the first failure of a series that begins with it. To be called once the recorder
    /// of the process is installed.
    pub fn count_from_zero() {
        for operation in OPERATIONS {
            counter!("mainstay_storage_errors_total", "operation" => operation).increment(0);
        }
        for place in [WAL, SNAPSHOT] {
            counter!("mainstay_checksum_failures_total", "where" => place).increment(0);
        }
    }

    /// The error's code, as `mainstay explain` takes it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Corrupt { .. } => "MS-1105",
            Self::Newer { .. } => "MS-1106",
            Self::DiskFull { .. } => "MS-1104",
            Self::Io { source, .. } if disk_is_full(source) => "MS-1104",
            Self::Busy { .. } => "MS-2101",
            Self::Io { .. }
            | Self::Overrun { .. }
            | Self::Stopped { .. }
            | Self::Closed
            | Self::CopyIncomplete { .. }
            | Self::GenerationLive { .. } => "MS-1103",
        }
    }

    /// Whether the file takes nothing more, neither reads nor writes, until it is opened anew.
    pub(super) fn stops_its_file(&self) -> bool {
        match self {
            Self::Stopped { .. } => true,
            Self::Io { source, .. } => {
                matches!(**source, redb::Error::Io(_) | redb::Error::LockPoisoned(_))
            }
            _ => false,
        }
    }

    /// The typed form of the database's error, counted.
    pub(super) fn from_redb(
        file: &'static str,
        operation: &'static str,
        error: impl Into<redb::Error>,
    ) -> Self {
        match error.into() {
            redb::Error::Corrupted(what) => Self::corrupt(file, what),
            redb::Error::PreviousIo => Self::Stopped { file },
            error => {
                counter!("mainstay_storage_errors_total", "operation" => operation).increment(1);
                Self::Io { file, operation, source: Arc::new(error) }
            }
        }
    }

    /// Damage found, counted.
    pub(super) fn corrupt(file: &'static str, what: impl Into<String>) -> Self {
        count_corrupt(file);
        Self::Corrupt { file, what: what.into() }
    }
}

fn disk_is_full(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Io(source) if source.kind() == io::ErrorKind::StorageFull)
}

/// Counts one failed check, by the file's role.
pub(super) fn count_corrupt(file: &str) {
    let place = if file.contains("journal") { WAL } else { SNAPSHOT };
    counter!("mainstay_checksum_failures_total", "where" => place).increment(1);
}

impl From<StorageError> for OpenError {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Corrupt { file, what } => Self::Corrupt { file: file.to_owned(), what },
            StorageError::Newer { file, found, known } => {
                Self::Newer { file: file.to_owned(), found, known }
            }
            StorageError::Io { file, operation, source } => {
                let kind = match source.as_ref() {
                    redb::Error::Io(source) => source.kind(),
                    _ => io::ErrorKind::Other,
                };
                Self::from_io(PathBuf::from(file), operation, io::Error::new(kind, source))
            }
            other => Self::from_io(PathBuf::from("storage"), "open", io::Error::other(other)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_apart_from_an_unusable_one() {
        let full = io::Error::from(io::ErrorKind::StorageFull);
        assert_eq!(OpenError::from_io("x".into(), "write", full).code(), "MS-1104");
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert_eq!(OpenError::from_io("x".into(), "write", denied).code(), "MS-1103");
        let full = redb::Error::Io(io::Error::from(io::ErrorKind::StorageFull));
        let full = StorageError::from_redb("state.redb", "write", full);
        assert_eq!(full.code(), "MS-1104");
        assert_eq!(OpenError::from(full).code(), "MS-1104");
    }

    #[test]
    fn texts_name_the_thing_and_leave_the_source_to_the_chain() {
        let error = OpenError::Locked { dir: "data".into(), pid: Some(7) };
        assert_eq!(error.to_string(), "data directory data is in use by process 7");
        let source = redb::Error::Io(io::Error::other("cable pulled"));
        let error = StorageError::from_redb("journal.redb", "fsync", source);
        assert_eq!(error.to_string(), "fsync on journal.redb failed");
        let source = std::error::Error::source(&error).expect("the chain goes on");
        assert!(source.to_string().contains("cable pulled"));
    }
}
