//! A disk in memory that loses power: for tests and simulations.
//!
//! ```text
//!   write ---> view (what the process reads)      sync: pending becomes durable
//!          +-> pending, in order                  crash(seed): of what is pending an arbitrary
//!              durable <--- sync                               subset of 512-byte sectors stays
//! ```
//!
//! After [`FaultDisk::crash`] every handle that was open fails: the process that held it is gone.
//! Files that are opened then hold what a real disk might. [`drive`] is its sibling for processes.

pub mod drive;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use redb::{Database, StorageBackend};

use super::Disk;
use super::queue::lock;

/// What a disk writes as a whole, or not at all.
const SECTOR: usize = 512;

/// How a disk misbehaves.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Syncs that still succeed; `None` for all.
    pub syncs_left: Option<u64>,
    /// Writes and lengthenings that still succeed before the disk is full; `None` for all.
    pub writes_left: Option<u64>,
    /// Reads that still succeed; `None` for all.
    pub reads_left: Option<u64>,
    /// How long a sync takes.
    pub sync_takes: Duration,
    /// The file that all this is about; all files when empty.
    pub file: &'static str,
    /// Syncs succeed and make nothing durable.
    pub lying: bool,
}

impl Faults {
    /// Whether a file has none of them.
    fn spare(&self, file: &str) -> bool {
        !self.file.is_empty() && self.file != file
    }
}

/// What happened on a disk.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Syncs.
    pub syncs: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Crashes.
    pub crashes: u64,
}

#[derive(Debug, Clone)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    SetLen(usize),
}

#[derive(Default)]
struct Image {
    durable: Vec<u8>,
    view: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Image>,
    faults: Faults,
    counts: Counts,
}

/// A disk with several files that lose power together; clones are the same disk.
#[derive(Clone, Default)]
pub struct FaultDisk(Arc<Mutex<Inner>>);

impl fmt::Debug for FaultDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultDisk").field("counts", &self.counts()).finish_non_exhaustive()
    }
}

impl FaultDisk {
    /// An empty disk that works.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes it misbehave from here on.
    pub fn set_faults(&self, faults: Faults) {
        lock(&self.0).faults = faults;
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        lock(&self.0).counts
    }

    /// Loses power: of what was not synced, an arbitrary subset stays, by the seed. The disk works
    /// again, for those who open its files anew.
    pub fn crash(&self, seed: u64) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut inner = lock(&self.0);
        for image in inner.files.values_mut() {
            image.lose_power(&mut random);
        }
        inner.faults = Faults::default();
        inner.counts.crashes += 1;
    }

    /// A file, as it is read.
    pub fn bytes_of(&self, file: &str) -> Vec<u8> {
        lock(&self.0).files.get(file).map_or_else(Vec::new, |image| image.view.clone())
    }

    /// Flips bits of a byte, durably: what lies on a disk may rot.
    pub fn rot(&self, file: &str, offset: usize, bits: u8) {
        let mut inner = lock(&self.0);
        let image = inner.files.entry(file.to_owned()).or_default();
        for bytes in [&mut image.durable, &mut image.view] {
            if let Some(byte) = bytes.get_mut(offset) {
                *byte ^= bits;
            }
        }
    }

    /// Removes a file, durably.
    pub fn remove(&self, file: &str) {
        lock(&self.0).files.remove(file);
    }
}

impl Disk for FaultDisk {
    fn exists(&self, file: &str) -> bool {
        lock(&self.0).files.contains_key(file)
    }

    fn open(&self, file: &str, cache_bytes: usize) -> Result<Database, redb::DatabaseError> {
        let mut inner = lock(&self.0);
        inner.files.entry(file.to_owned()).or_default();
        let life = inner.counts.crashes;
        drop(inner);
        let backend = FaultFile { disk: self.clone(), file: file.to_owned(), life };
        Database::builder().set_cache_size(cache_bytes).create_with_backend(backend)
    }
}

impl Image {
    fn lose_power(&mut self, random: &mut fastrand::Rng) {
        // most crashes keep some; none and all are the ends that a coin seldom shows
        let keep = [0.0, 0.1, 0.5, 0.9, 1.0][random.usize(0..5)];
        for pending in self.pending.drain(..) {
            match pending {
                Pending::SetLen(len) => {
                    if random.f64() < keep {
                        self.durable.resize(len, 0);
                    }
                }
                Pending::Write { offset, bytes } => {
                    for sector in sectors(offset, bytes.len()) {
                        if random.f64() < keep {
                            put(&mut self.durable, offset + sector.start, &bytes[sector]);
                        }
                    }
                }
            }
        }
        self.view.clone_from(&self.durable);
    }
}

/// The parts of so many bytes from `offset` on that lie in a sector each.
fn sectors(offset: usize, bytes: usize) -> impl Iterator<Item = Range<usize>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let end = ((offset + at) / SECTOR * SECTOR + SECTOR - offset).min(bytes);
        let sector = at..end;
        at = end;
        (!sector.is_empty()).then_some(sector)
    })
}

fn put(image: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    let end = offset + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[offset..end].copy_from_slice(bytes);
}

/// One file of the disk, as one life of the process holds it.
#[derive(Debug)]
struct FaultFile {
    disk: FaultDisk,
    file: String,
    life: u64,
}

impl FaultFile {
    fn with<T>(
        &self,
        action: impl FnOnce(&mut Image, &mut Faults, &mut Counts) -> io::Result<T>,
    ) -> io::Result<T> {
        let mut inner = lock(&self.disk.0);
        let Inner { files, faults, counts } = &mut *inner;
        if counts.crashes != self.life {
            return Err(io::Error::other("the power was lost"));
        }
        let image = files.get_mut(&self.file).ok_or(io::ErrorKind::NotFound)?;
        if faults.spare(&self.file) {
            return action(image, &mut Faults::default(), counts);
        }
        action(image, faults, counts)
    }
}

fn spend(left: &mut Option<u64>, kind: io::ErrorKind) -> io::Result<()> {
    match left {
        Some(0) => Err(kind.into()),
        Some(left) => {
            *left -= 1;
            Ok(())
        }
        None => Ok(()),
    }
}

fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(io::Error::other)
}

impl StorageBackend for FaultFile {
    fn len(&self) -> io::Result<u64> {
        self.with(|image, _, _| Ok(image.view.len() as u64))
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|image, faults, _| {
            spend(&mut faults.reads_left, io::ErrorKind::Other)?;
            let offset = place(offset)?;
            let bytes = image.view.get(offset..offset + out.len());
            out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
            Ok(())
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with(|image, faults, _| {
            let len = place(len)?;
            if len > image.view.len() {
                spend(&mut faults.writes_left, io::ErrorKind::StorageFull)?;
            }
            image.view.resize(len, 0);
            image.pending.push(Pending::SetLen(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        let faults = lock(&self.disk.0).faults;
        if !faults.spare(&self.file) {
            std::thread::sleep(faults.sync_takes);
        }
        self.with(|image, faults, counts| {
            spend(&mut faults.syncs_left, io::ErrorKind::Other)?;
            counts.syncs += 1;
            if faults.lying {
                return Ok(());
            }
            let Image { durable, pending, .. } = image;
            for pending in pending.drain(..) {
                match pending {
                    Pending::SetLen(len) => durable.resize(len, 0),
                    Pending::Write { offset, bytes } => put(durable, offset, &bytes),
                }
            }
            Ok(())
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|image, faults, counts| {
            spend(&mut faults.writes_left, io::ErrorKind::StorageFull)?;
            let offset = place(offset)?;
            counts.written_bytes += data.len() as u64;
            put(&mut image.view, offset, data);
            image.pending.push(Pending::Write { offset, bytes: data.to_vec() });
            Ok(())
        })
    }
}
