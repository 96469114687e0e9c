//! Free disk space: new work stops early enough that the last bytes are never written.
//!
//! ```text
//!   free space   |............ reserve ............|.. headroom ..|........ usable ........
//!                 nothing is written in here        what was       writable() is true
//!                                                   admitted ends here
//! ```
//!
//! A database that was refused a write is unusable until the next start, so the space is looked at
//! before every commit; below the reserve a commit waits instead of failing.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use metrics::{Gauge, counter, gauge};

use super::checkpoint::TXN_SPACE;
use super::error::StorageError;
use crate::metrics::float;

/// What is kept between "no new work" and "no more writes", for what lanes may have admitted when
/// the door closes: at least what a save takes, for commands whose states cannot be saved must not
/// come in.
const HEADROOM_BYTES: RangeInclusive<u64> = TXN_SPACE..=64 << 20;

type Probe = Box<dyn Fn() -> io::Result<u64> + Send + Sync>;

/// Watches the free space of one file system.
pub(super) struct Reserve {
    probe: Probe,
    keep_bytes: u64,
    headroom_bytes: u64,
    free_bytes: AtomicU64,
    writable: AtomicBool,
    free_gauge: Gauge,
}

impl fmt::Debug for Reserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reserve")
            .field("keep_bytes", &self.keep_bytes)
            .field("free_bytes", &self.free_bytes)
            .finish_non_exhaustive()
    }
}

impl Reserve {
    /// Watches the file system of `dir`.
    pub(super) fn of_dir(dir: &Path, reserve_bytes: u64) -> Self {
        let dir = dir.to_owned();
        Self::new(Box::new(move || free_bytes_of(&dir)), reserve_bytes)
    }

    /// Watches what `probe` says.
    pub(super) fn new(probe: Probe, reserve_bytes: u64) -> Self {
        let headroom = (reserve_bytes / 4).clamp(*HEADROOM_BYTES.start(), *HEADROOM_BYTES.end());
        let reserve = Self {
            probe,
            keep_bytes: reserve_bytes,
            // without a reserve nothing is held back
            headroom_bytes: if reserve_bytes == 0 { 0 } else { headroom },
            free_bytes: AtomicU64::new(u64::MAX),
            writable: AtomicBool::new(true),
            free_gauge: gauge!("mainstay_storage_free_bytes"),
        };
        reserve.refresh();
        reserve
    }

    /// Looks at the disk. Called before each commit and every second on an idle node.
    pub(super) fn refresh(&self) {
        let free = match (self.probe)() {
            Ok(free) => free,
            Err(error) => {
                // what was known stays: one failed look is no reason to stop, or to start
                counter!("mainstay_storage_errors_total", "operation" => "statvfs").increment(1);
                tracing::warn!(%error, "cannot read the free disk space");
                return;
            }
        };
        self.free_gauge.set(float(free));
        self.free_bytes.store(free, Ordering::Relaxed);
        let writable = free >= self.keep_bytes.saturating_add(self.headroom_bytes);
        let changed = self.writable.swap(writable, Ordering::AcqRel) != writable;
        if changed && writable {
            tracing::info!(free_bytes = free, "disk space is back, writes are taken again");
        } else if changed {
            let reserve_bytes = self.keep_bytes;
            tracing::error!(
                code = "MS-1104",
                free_bytes = free,
                reserve_bytes,
                "disk space is short, new writes are refused"
            );
        }
    }

    /// Whether new work may be admitted. Free to ask; at most about a second old.
    pub(super) fn writable(&self) -> bool {
        self.writable.load(Ordering::Acquire)
    }

    /// Free bytes, at most about a second old.
    pub(super) fn free_bytes(&self) -> u64 {
        self.free_bytes.load(Ordering::Relaxed)
    }

    /// Looks at the disk and says whether `bytes` more may be written.
    pub(super) fn check(&self, bytes: u64) -> Result<(), StorageError> {
        self.refresh();
        let free_bytes = self.free_bytes();
        if free_bytes.saturating_sub(bytes) >= self.keep_bytes {
            return Ok(());
        }
        Err(StorageError::DiskFull { free_bytes, reserve_bytes: self.keep_bytes })
    }

    /// The same for what gives space back in the end: it may go into the reserve.
    pub(super) fn check_spare(&self, bytes: u64) -> Result<(), StorageError> {
        self.refresh();
        let free_bytes = self.free_bytes();
        if free_bytes >= bytes || self.keep_bytes == 0 {
            return Ok(());
        }
        Err(StorageError::DiskFull { free_bytes, reserve_bytes: self.keep_bytes })
    }
}

fn free_bytes_of(dir: &Path) -> io::Result<u64> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const MIB: u64 = 1 << 20;

    fn watched(reserve_bytes: u64) -> (Arc<AtomicU64>, Reserve) {
        let free = Arc::new(AtomicU64::new(1000 * MIB));
        let seen = Arc::clone(&free);
        let probe = Box::new(move || Ok(seen.load(Ordering::Relaxed)));
        (free, Reserve::new(probe, reserve_bytes))
    }

    #[test]
    fn new_work_stops_before_writes_do() {
        let (free, reserve) = watched(100 * MIB);
        assert!(reserve.writable());
        free.store(124 * MIB, Ordering::Relaxed);
        assert!(reserve.check(10 * MIB).is_ok(), "what was admitted may still be written");
        assert!(!reserve.writable(), "but nothing new is taken");
        assert!(reserve.check(25 * MIB).is_err(), "and the reserve stays untouched");
        assert!(reserve.check_spare(25 * MIB).is_ok(), "but by what gives space back");
        assert!(reserve.check_spare(125 * MIB).is_err(), "where there is any");
    }

    /// Commands came in while every save failed, until memory was full of what could not be saved.
    #[test]
    fn while_commands_come_in_their_states_can_be_saved() {
        for kept in [0, 1, MIB, 16 * MIB, 31 * MIB, 256 * MIB, 4096 * MIB] {
            let (free, reserve) = watched(kept);
            for step in 0..200 {
                free.store(kept + step * MIB / 2, Ordering::Relaxed);
                let saved = reserve.check(TXN_SPACE);
                assert!(!reserve.writable() || saved.is_ok(), "{kept} bytes kept: {saved:?}");
            }
        }
    }

    #[test]
    fn a_failed_look_changes_nothing() {
        let probe = Box::new(|| Err(io::Error::other("no such mount")));
        let reserve = Reserve::new(probe, 100);
        assert!(reserve.writable());
    }

    #[test]
    fn a_real_directory_has_free_space() {
        let dir = tempfile::tempdir().unwrap();
        let reserve = Reserve::of_dir(dir.path(), 1);
        assert!(reserve.free_bytes() > 1 << 20);
        assert!(reserve.free_bytes() < u64::MAX);
    }
}
