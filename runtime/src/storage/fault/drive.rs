//! A drive with a cache that `kill -9` empties and that stands still when told: for process tests.
//!
//! ```text
//!   write ---> view, in memory        sync: waits while <its folder>/stalls exists, then what is
//!          +-> pending, in order            pending goes to the file
//!          +-> now and then a sector to the file at once, as caches do
//! ```
//!
//! The file holds what was synced, whatever the system's own cache would have kept: a process that
//! is killed leaves what a machine leaves whose power is cut. A program installs it before its node
//! starts; a node that nobody made for tests has none.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock};
use std::time::Duration;

use redb::StorageBackend;

use super::{Pending, place, put, sectors};
use crate::storage::queue::lock;

/// While a file of this name is in the folder of a database, its syncs wait.
pub const STALLS: &str = "stalls";
/// How often a sync that waits looks whether it may go on.
const LOOK_EVERY: Duration = Duration::from_millis(5);
/// So many of a hundred sectors are on the disk before anybody syncs.
const EARLY_PERCENT: u8 = 10;

static SEED: OnceLock<u64> = OnceLock::new();

/// From here on every database that this process opens lies on such a drive; the seed decides
/// which sectors it writes early.
pub fn install(seed: u64) {
    SEED.get_or_init(|| seed);
}

/// The file, on the drive that is installed, if one is.
pub(in crate::storage) fn open(path: &Path) -> Option<io::Result<impl StorageBackend>> {
    SEED.get().map(|seed| DriveFile::open(path, *seed))
}

/// A file of the drive.
#[derive(Debug)]
struct DriveFile {
    file: File,
    stalls: PathBuf,
    cache: Mutex<Cache>,
}

#[derive(Debug)]
struct Cache {
    view: Vec<u8>,
    pending: Vec<Pending>,
    random: fastrand::Rng,
}

impl DriveFile {
    fn open(path: &Path, seed: u64) -> io::Result<Self> {
        let options = File::options().read(true).write(true).create(true).truncate(false).clone();
        let file = options.open(path)?;
        let view = std::fs::read(path)?;
        let random = fastrand::Rng::with_seed(seed);
        let cache = Mutex::new(Cache { view, pending: Vec::new(), random });
        Ok(Self { file, stalls: path.with_file_name(STALLS), cache })
    }
}

impl StorageBackend for DriveFile {
    fn len(&self) -> io::Result<u64> {
        Ok(lock(&self.cache).view.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let offset = place(offset)?;
        let cache = lock(&self.cache);
        let bytes = cache.view.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = place(len)?;
        let mut cache = lock(&self.cache);
        cache.view.resize(len, 0);
        cache.pending.push(Pending::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        while self.stalls.exists() {
            std::thread::sleep(LOOK_EVERY);
        }
        let mut cache = lock(&self.cache);
        for pending in cache.pending.drain(..) {
            match pending {
                Pending::SetLen(len) => self.file.set_len(len as u64)?,
                Pending::Write { offset, bytes } => {
                    self.file.write_all_at(&bytes, offset as u64)?;
                }
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let offset = place(offset)?;
        let mut cache = lock(&self.cache);
        let Cache { view, pending, random } = &mut *cache;
        put(view, offset, data);
        // not while it stands still, and never instead of the write that a sync waits for
        if !self.stalls.exists() {
            for sector in sectors(offset, data.len()) {
                if random.u8(..100) < EARLY_PERCENT {
                    let at = (offset + sector.start) as u64;
                    self.file.write_all_at(&data[sector], at)?;
                }
            }
        }
        pending.push(Pending::Write { offset, bytes: data.to_vec() });
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::SECTOR;
    use super::*;

    #[test]
    fn a_sync_and_nothing_else_makes_all_of_a_write_durable() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let read = || std::fs::read(&path).unwrap();
        let drive = DriveFile::open(&path, 1).unwrap();
        let bytes = vec![7; 100 * SECTOR];
        drive.set_len(bytes.len() as u64).unwrap();
        drive.write(0, &bytes).unwrap();

        let early = read().chunks(SECTOR).filter(|sector| sector.contains(&7)).count();
        assert!((1..100).contains(&early), "{early} of 100 sectors were written early");
        let lost = DriveFile::open(&path, 1).unwrap();
        assert_ne!(lock(&lost.cache).view, bytes, "who starts now sees what the file holds");

        drive.sync_data().unwrap();
        assert_eq!(read(), bytes);
    }

    #[test]
    fn a_sync_waits_while_the_drive_stands_still() {
        let dir = tempfile::tempdir().unwrap();
        let stalls = dir.path().join(STALLS);
        let drive = DriveFile::open(&dir.path().join("file"), 1).unwrap();
        File::create(&stalls).unwrap();
        drive.write(0, &[7; 8]).unwrap();
        std::thread::scope(|scope| {
            let sync = scope.spawn(|| drive.sync_data());
            std::thread::sleep(10 * LOOK_EVERY);
            assert!(!sync.is_finished());
            std::fs::remove_file(&stalls).unwrap();
            sync.join().unwrap().unwrap();
        });
    }
}
