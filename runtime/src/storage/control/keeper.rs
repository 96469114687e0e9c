//! The store's thread: the tables, and one transaction for all writes that wait.

use std::ops::Range;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_64;

use super::{ControlStoreError, Done, Ends, Job, QUEUE, Slot, StoredSnapshot, Write};

/// The format that this build writes; it reads no newer one.
const FORMAT: u8 = 1;
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(super) const VALUES: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("values");
pub(super) const FORMAT_KEY: &str = "format";
const PURGED: &str = "purged";
const SNAPSHOT_META: &str = "snapshot-meta";
const SNAPSHOT_DATA: &str = "snapshot-data";

/// The thread's side: the database, and where the log ends.
pub(super) struct Keeper {
    database: Database,
    /// The last purged index.
    purged: Option<u64>,
    /// The last index, purged or not.
    last: Option<u64>,
    broken: Option<ControlStoreError>,
    #[cfg(test)]
    holes: bool,
}

impl Keeper {
    pub(super) fn open(database: Database) -> Result<Self, ControlStoreError> {
        let txn = database.begin_write()?;
        let (purged, last) = {
            let mut values = txn.open_table(VALUES)?;
            let found = values.get(FORMAT_KEY)?.map(|value| value.value().to_vec());
            match found.as_deref() {
                None => drop(values.insert(FORMAT_KEY, [FORMAT].as_slice())?),
                Some([found]) if *found <= FORMAT => {}
                Some(other) => {
                    let found = other.first().copied().unwrap_or(0);
                    return Err(ControlStoreError::NewerFormat { found, understood: FORMAT });
                }
            }
            let purged = match get(&values, PURGED)? {
                Some(bytes) => Some(split_purged(&bytes)?.0),
                None => None,
            };
            let log = txn.open_table(LOG)?;
            let last = log.last()?.map(|(index, _)| index.value());
            (purged, last.or(purged))
        };
        txn.commit()?;
        Ok(Self {
            database,
            purged,
            last,
            broken: None,
            #[cfg(test)]
            holes: false,
        })
    }

    /// Takes logs with holes from here on.
    #[cfg(test)]
    pub(super) fn allow_holes(&mut self) {
        self.holes = true;
    }

    pub(super) fn run(mut self, mut queue: mpsc::Receiver<Job>) {
        let mut writes = Vec::new();
        while let Some(job) = queue.blocking_recv() {
            let mut next = Some(job);
            // take what queued while the last fsync ran; a read waits for the writes before it
            while let Some(job) = next {
                match job {
                    Job::Write(write, done) => writes.push((write, done)),
                    Job::Close(closed) => {
                        self.commit(&mut writes);
                        drop(self);
                        closed.send(()).ok();
                        return;
                    }
                    read => {
                        self.commit(&mut writes);
                        self.answer(read);
                    }
                }
                next = if writes.len() < QUEUE { queue.try_recv().ok() } else { None };
            }
            self.commit(&mut writes);
        }
    }

    /// One transaction and one fsync for all of `writes`; then their callbacks, in order.
    fn commit(&mut self, writes: &mut Vec<(Write, Done)>) {
        if writes.is_empty() {
            return;
        }
        let (changes, dones): (Vec<Write>, Vec<Done>) = writes.drain(..).unzip();
        let results = match self.broken.clone() {
            Some(error) => Err(error),
            None => self.write(changes),
        };
        match results {
            Ok(results) => dones.into_iter().zip(results).for_each(|(done, result)| done(result)),
            Err(error) => {
                tracing::error!(error = &error as &dyn std::error::Error, "control store failed");
                self.broken = Some(error.clone());
                for done in dones {
                    done(Err(error.clone()));
                }
            }
        }
    }

    /// The outer error is the disk's and ends the store; an inner one refuses that write alone.
    fn write(
        &mut self,
        changes: Vec<Write>,
    ) -> Result<Vec<Result<(), ControlStoreError>>, ControlStoreError> {
        let lazy = changes.iter().all(|write| matches!(write, Write::Put(Slot::Committed, _)));
        let mut txn = self.database.begin_write()?;
        if lazy {
            txn.set_durability(Durability::None)?;
        } else {
            txn.set_durability(Durability::Immediate)?;
            txn.set_two_phase_commit(true);
        }
        let mut results = Vec::with_capacity(changes.len());
        {
            let mut log = txn.open_table(LOG)?;
            let mut values = txn.open_table(VALUES)?;
            for change in changes {
                results.push(match change {
                    Write::Put(slot, value) => {
                        values.insert(slot.key(), seal(&value).as_slice())?;
                        Ok(())
                    }
                    Write::Append(entries) => match self.check(&entries) {
                        Ok(()) => {
                            for (index, entry) in entries {
                                log.insert(index, seal(&entry).as_slice())?;
                                self.last = Some(index);
                            }
                            Ok(())
                        }
                        Err(hole) => Err(hole),
                    },
                    Write::Truncate { from } => {
                        log.retain_in(from.., |_, _| false)?;
                        self.last = log.last()?.map(|(index, _)| index.value()).or(self.purged);
                        Ok(())
                    }
                    Write::Purge { upto, marker } => {
                        log.retain_in(..=upto, |_, _| false)?;
                        let value = seal(&[&upto.to_le_bytes(), marker.as_slice()].concat());
                        values.insert(PURGED, value.as_slice())?;
                        self.purged = self.purged.max(Some(upto));
                        self.last = self.last.max(Some(upto));
                        Ok(())
                    }
                    Write::Snapshot(snapshot) => {
                        values.insert(SNAPSHOT_META, seal(&snapshot.meta).as_slice())?;
                        values.insert(SNAPSHOT_DATA, seal(&snapshot.data).as_slice())?;
                        Ok(())
                    }
                });
            }
        }
        txn.commit()?;
        Ok(results)
    }

    /// Whether the entries follow the log and each other. A log that never held anything begins
    /// anywhere: its first entries follow a snapshot, or are the first.
    fn check(&self, entries: &[(u64, Vec<u8>)]) -> Result<(), ControlStoreError> {
        #[cfg(test)]
        if self.holes {
            return Ok(());
        }
        let mut last = self.last;
        for (given, _) in entries {
            let expected = last.map_or(*given, |last| last + 1);
            if *given != expected {
                return Err(ControlStoreError::Hole { given: *given, expected });
            }
            last = Some(*given);
        }
        Ok(())
    }

    fn answer(&self, job: Job) {
        match job {
            Job::Get(slot, answer) => {
                answer.send(self.read(|_, values| get(values, slot.key()))).ok();
            }
            Job::Entries { range, bytes_max, answer } => {
                answer.send(self.read(|log, _| entries(log, range, bytes_max))).ok();
            }
            Job::Ends(answer) => {
                answer.send(self.read(ends)).ok();
            }
            Job::Snapshot(answer) => {
                answer.send(self.read(|_, values| snapshot(values))).ok();
            }
            Job::Write(..) | Job::Close(_) => unreachable!("only reads are answered"),
        }
    }

    fn read<T>(
        &self,
        read: impl FnOnce(&Log, &Values) -> Result<T, ControlStoreError>,
    ) -> Result<T, ControlStoreError> {
        if let Some(error) = &self.broken {
            return Err(error.clone());
        }
        let txn = self.database.begin_read()?;
        read(&txn.open_table(LOG)?, &txn.open_table(VALUES)?)
    }
}

type Log = redb::ReadOnlyTable<u64, &'static [u8]>;
type Values = redb::ReadOnlyTable<&'static str, &'static [u8]>;

fn get(
    values: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Vec<u8>>, ControlStoreError> {
    values.get(key)?.map(|value| unseal(value.value(), || key.to_owned())).transpose()
}

fn entries(
    log: &Log,
    range: Range<u64>,
    bytes_max: usize,
) -> Result<Vec<Vec<u8>>, ControlStoreError> {
    let mut found = Vec::new();
    let mut bytes = 0;
    for row in log.range(range)? {
        let (index, value) = row?;
        let entry = unseal(value.value(), || format!("log entry {}", index.value()))?;
        bytes += entry.len();
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(entry);
    }
    Ok(found)
}

fn ends(log: &Log, values: &Values) -> Result<Ends, ControlStoreError> {
    let purged = get(values, PURGED)?.map(|bytes| split_purged(&bytes)).transpose()?;
    let last = log
        .last()?
        .map(|(index, value)| unseal(value.value(), || format!("log entry {}", index.value())))
        .transpose()?;
    Ok(Ends { purged: purged.map(|(_, marker)| marker), last })
}

fn snapshot(values: &Values) -> Result<Option<StoredSnapshot>, ControlStoreError> {
    let meta = get(values, SNAPSHOT_META)?;
    let data = get(values, SNAPSHOT_DATA)?;
    Ok(meta.zip(data).map(|(meta, data)| StoredSnapshot { meta, data }))
}

fn split_purged(bytes: &[u8]) -> Result<(u64, Vec<u8>), ControlStoreError> {
    let corrupt = || ControlStoreError::Corrupt { what: PURGED.to_owned() };
    let (index, marker) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
    Ok((u64::from_le_bytes(*index), marker.to_vec()))
}

/// Checksum, then the value.
pub(super) fn seal(value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(8 + value.len());
    sealed.extend_from_slice(&xxh3_64(value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn unseal(sealed: &[u8], what: impl FnOnce() -> String) -> Result<Vec<u8>, ControlStoreError> {
    match sealed.split_first_chunk::<8>() {
        Some((sum, value)) if u64::from_le_bytes(*sum) == xxh3_64(value) => Ok(value.to_vec()),
        _ => Err(ControlStoreError::Corrupt { what: what() }),
    }
}
