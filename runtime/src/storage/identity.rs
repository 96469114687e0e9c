//! Whose data this is: the lock of a data directory, and the file that names its owner.
//!
//! ```text
//!   lock        the process id of the holder; held by an advisory lock, so a crash releases it
//!   identity    {"format":1,"node":"n1","disk":"..","boot":17..,"cluster":".."}
//!               xxh3 <16 hexadecimal digits of the line above>
//! ```
//!
//! The identity is written last when a directory is made, so a directory with an identity has all
//! its files. It is replaced as a whole: a temporary file, synced, renamed, the directory synced.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use mainstay_protocol::id::{BootId, ClusterId, DiskId, NodeId};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::error::{OpenError, count_corrupt};
use crate::clock;

const LOCK_FILE: &str = "lock";
const IDENTITY_FILE: &str = "identity";
const IDENTITY_TEMP: &str = "identity.tmp";
const FORMAT: u64 = 1;

/// Who a data directory belongs to, and which start of it this is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The node's name, kept for ever.
    pub node: NodeId,
    /// The directory: an empty one gets another id.
    pub disk: DiskId,
    /// This start: greater than every earlier one.
    pub boot: BootId,
    /// The cluster that the data belongs to, once there is one.
    pub cluster: Option<ClusterId>,
}

impl Identity {
    /// The identity of a new, empty directory.
    pub(super) fn make(node: Option<&NodeId>) -> io::Result<Self> {
        let mut disk = [0; 16];
        getrandom::fill(&mut disk).map_err(|error| io::Error::other(error.to_string()))?;
        let disk = DiskId::from_bytes(disk);
        let made_up = || NodeId::new(&format!("n-{}", &disk.to_string()[..8]));
        let node = node.cloned().map_or_else(made_up, Ok).map_err(io::Error::other)?;
        Ok(Self { node, disk, boot: BootId(clock::wall().0), cluster: None })
    }
}

/// A cluster id that cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SetClusterError {
    /// The data belongs to a cluster already, for ever. Nothing was changed.
    #[error("the data belongs to cluster {stored}, not {given}")]
    OtherCluster {
        /// The stored one.
        stored: ClusterId,
        /// The one given.
        given: ClusterId,
    },
    /// The file could not be written. After a restart the directory may or may not know its
    /// cluster; set it again.
    #[error("cannot store the cluster id")]
    Io(#[from] io::Error),
}

impl SetClusterError {
    /// The error's code, as `mainstay explain` takes it.
    pub fn code(&self) -> &'static str {
        match self {
            Self::OtherCluster { .. } => "MS-1203",
            Self::Io(_) => "MS-1103",
        }
    }
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u64,
    node: String,
    disk: String,
    boot: u64,
    cluster: Option<String>,
}

/// A data directory that this process holds.
#[derive(Debug)]
pub(super) struct Directory {
    path: PathBuf,
    _lock: File,
}

impl Directory {
    /// Creates the directory if need be, and locks it.
    pub(super) fn lock(path: &Path) -> Result<Self, OpenError> {
        make_dir(path).map_err(|e| OpenError::from_io(path.to_owned(), "create", e))?;
        let file = path.join(LOCK_FILE);
        let fail = |operation| {
            let file = file.clone();
            move |error| OpenError::from_io(file, operation, error)
        };
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&file)
            .map_err(fail("open"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                let pid =
                    lock.read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
                return Err(OpenError::Locked { dir: path.to_owned(), pid });
            }
            Err(TryLockError::Error(error)) => return Err(fail("lock")(error)),
        }
        // the pid is a courtesy to the next process: on a full disk it may be missing
        let written = lock.set_len(0).and_then(|()| {
            lock.rewind()?;
            writeln!(lock, "{}", std::process::id())
        });
        if let Err(error) = written {
            tracing::warn!(%error, "cannot write the process id into the lock file");
        }
        Ok(Self { path: path.to_owned(), _lock: lock })
    }

    /// The directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads whose data this is; `None` for a new directory.
    pub(super) fn read_identity(&self) -> Result<Option<Identity>, OpenError> {
        let path = self.path.join(IDENTITY_FILE);
        let text = match std::fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(OpenError::from_io(path, "read", error)),
        };
        parse(&text).map(Some)
    }

    /// Replaces the identity, durably.
    pub(super) fn write_identity(&self, identity: &Identity) -> io::Result<()> {
        let temp = self.path.join(IDENTITY_TEMP);
        let mut file = File::create(&temp)?;
        file.write_all(&render(identity)?)?;
        file.sync_all()?;
        std::fs::rename(&temp, self.path.join(IDENTITY_FILE))?;
        self.sync()
    }

    /// Makes names that were created in the directory durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

/// Whether a directory has an owner. Makes nothing.
pub(super) fn exists(dir: &Path) -> bool {
    dir.join(IDENTITY_FILE).exists()
}

/// Creates a directory for its owner only, and makes its name durable.
fn make_dir(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path)?;
    match path.parent() {
        Some(parent) if parent != Path::new("") => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

fn render(identity: &Identity) -> io::Result<Vec<u8>> {
    let stored = Stored {
        format: FORMAT,
        node: identity.node.as_str().to_owned(),
        disk: identity.disk.to_string(),
        boot: identity.boot.0,
        cluster: identity.cluster.map(|cluster| cluster.to_string()),
    };
    let line = serde_json::to_string(&stored)?;
    Ok(format!("{line}\nxxh3 {:016x}\n", xxh3_64(line.as_bytes())).into_bytes())
}

fn parse(text: &[u8]) -> Result<Identity, OpenError> {
    let corrupt = |what: &str| {
        count_corrupt(IDENTITY_FILE);
        OpenError::Corrupt { file: IDENTITY_FILE.to_owned(), what: what.to_owned() }
    };
    let text = std::str::from_utf8(text).map_err(|_| corrupt("it is not text"))?;
    let (line, check) = text.split_once('\n').ok_or_else(|| corrupt("it has no checksum"))?;
    if check.trim_end() != format!("xxh3 {:016x}", xxh3_64(line.as_bytes())) {
        return Err(corrupt("it does not match its checksum"));
    }
    let value: serde_json::Value =
        serde_json::from_str(line).map_err(|_| corrupt("it is not JSON"))?;
    let found = value["format"].as_u64().ok_or_else(|| corrupt("it names no format"))?;
    if found > FORMAT {
        return Err(OpenError::Newer { file: IDENTITY_FILE.to_owned(), found, known: FORMAT });
    }
    let stored: Stored =
        serde_json::from_value(value).map_err(|_| corrupt("a field is missing or wrong"))?;
    let cluster = match &stored.cluster {
        Some(text) => Some(ClusterId::parse(text).ok_or_else(|| corrupt("no cluster id"))?),
        None => None,
    };
    Ok(Identity {
        node: NodeId::new(&stored.node).map_err(|_| corrupt("no node name"))?,
        disk: DiskId::parse(&stored.disk).ok_or_else(|| corrupt("no disk id"))?,
        boot: BootId(stored.boot),
        cluster,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_holder_learns_the_pid_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::lock(dir.path()).unwrap();
        let error = Directory::lock(dir.path()).unwrap_err();
        let own = std::process::id();
        assert!(matches!(&error, OpenError::Locked { pid: Some(pid), .. } if *pid == own));
        assert_eq!(error.code(), "MS-1102");
        drop(held);
        Directory::lock(dir.path()).unwrap();
    }

    #[test]
    fn an_identity_reads_back() {
        let dir = tempfile::tempdir().unwrap();
        let held = Directory::lock(dir.path()).unwrap();
        assert_eq!(held.read_identity().unwrap(), None);
        let mut identity = Identity::make(None).unwrap();
        identity.cluster = Some(ClusterId::from_bytes([3; 16]));
        held.write_identity(&identity).unwrap();
        assert_eq!(held.read_identity().unwrap(), Some(identity));
    }

    #[test]
    fn every_damaged_byte_is_noticed() {
        let text = render(&Identity::make(None).unwrap()).unwrap();
        for at in 0..text.len() - 1 {
            let mut damaged = text.clone();
            damaged[at] ^= 1;
            let error = parse(&damaged).expect_err("damage at every place is noticed");
            assert_eq!(error.code(), "MS-1105", "byte {at}");
        }
    }

    #[test]
    fn an_identity_of_a_newer_build_is_refused() {
        let line = r#"{"format":2,"shape":"unknown"}"#;
        let text = format!("{line}\nxxh3 {:016x}\n", xxh3_64(line.as_bytes()));
        assert_eq!(parse(text.as_bytes()).unwrap_err().code(), "MS-1106");
    }

    #[test]
    fn two_new_directories_are_two_disks() {
        let (a, b) = (Identity::make(None).unwrap(), Identity::make(None).unwrap());
        assert_ne!(a.disk, b.disk);
        assert_ne!(a.node, b.node);
    }
}
