//! The store's thread: the tables, and one transaction for all writes that wait.

use std::ops::Range;

use redb::{Database, Durability, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::mpsc;
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{
    ControlStoreError, Done, Ends, Job, QUEUE, Slot, StoredSnapshot, Write, caught, damaged,
};

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
    /// With `must_exist` the file must name its format: the library makes a new database of an
    /// empty file without a word.
    pub(super) fn open(database: Database, must_exist: bool) -> Result<Self, ControlStoreError> {
        caught(|| Self::read_ends(database, must_exist)).map_err(damaged)?
    }

    fn read_ends(database: Database, must_exist: bool) -> Result<Self, ControlStoreError> {
        let txn = database.begin_write()?;
        let (purged, last) = {
            let mut values = txn.open_table(VALUES)?;
            let found = values.get(FORMAT_KEY)?.map(|value| value.value().to_vec());
            match found.as_deref() {
                None if must_exist => {
                    let what = "it names no format, and its directory belongs to a cluster";
                    return Err(damaged(what.to_owned()));
                }
                None => drop(values.insert(FORMAT_KEY, [FORMAT].as_slice())?),
                Some([found]) if *found <= FORMAT => {}
                Some(other) => {
                    let found = other.first().copied().unwrap_or(0);
                    return Err(ControlStoreError::NewerFormat { found, understood: FORMAT });
                }
            }
            let purged = match get(&values, PURGED)? {
                Some(bytes) => Some(split(PURGED, &bytes)?.0),
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
            None => caught(|| self.write(changes)).map_err(damaged).flatten(),
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
                        put(&mut values, slot.key(), &value)?;
                        Ok(())
                    }
                    Write::Append(entries) => match self.check(&entries) {
                        Ok(()) => {
                            for (index, entry) in entries {
                                let sealed = seal(&index.to_le_bytes(), &entry);
                                log.insert(index, sealed.as_slice())?;
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
                        put(&mut values, PURGED, &join(upto, &marker))?;
                        self.purged = self.purged.max(Some(upto));
                        self.last = self.last.max(Some(upto));
                        Ok(())
                    }
                    Write::Snapshot(snapshot) => {
                        let held = get(&values, SNAPSHOT_META)?;
                        let held = held.map(|meta| split(SNAPSHOT_META, &meta)).transpose()?;
                        // one that was being built while a newer one arrived
                        if held.is_none_or(|(entries, _)| entries <= snapshot.entries) {
                            let meta = join(snapshot.entries, &snapshot.meta);
                            put(&mut values, SNAPSHOT_META, &meta)?;
                            put(&mut values, SNAPSHOT_DATA, &snapshot.data)?;
                        }
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
        let read = || {
            let txn = self.database.begin_read()?;
            read(&txn.open_table(LOG)?, &txn.open_table(VALUES)?)
        };
        caught(read).map_err(damaged)?
    }
}

type Log = redb::ReadOnlyTable<u64, &'static [u8]>;
type Values = redb::ReadOnlyTable<&'static str, &'static [u8]>;

fn get(
    values: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<Vec<u8>>, ControlStoreError> {
    values
        .get(key)?
        .map(|value| unseal(key.as_bytes(), value.value(), || key.to_owned()))
        .transpose()
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
        let entry = entry(index.value(), value.value())?;
        bytes += entry.len();
        if bytes > bytes_max && !found.is_empty() {
            break;
        }
        found.push(entry);
    }
    Ok(found)
}

fn ends(log: &Log, values: &Values) -> Result<Ends, ControlStoreError> {
    let purged = get(values, PURGED)?.map(|bytes| split(PURGED, &bytes)).transpose()?;
    let last = log.last()?.map(|(index, value)| entry(index.value(), value.value())).transpose()?;
    Ok(Ends { purged: purged.map(|(_, marker)| marker), last })
}

fn snapshot(values: &Values) -> Result<Option<StoredSnapshot>, ControlStoreError> {
    let Some((meta, data)) = get(values, SNAPSHOT_META)?.zip(get(values, SNAPSHOT_DATA)?) else {
        return Ok(None);
    };
    let (entries, meta) = split(SNAPSHOT_META, &meta)?;
    Ok(Some(StoredSnapshot { entries, meta, data }))
}

fn put(
    values: &mut redb::Table<'_, &'static str, &'static [u8]>,
    key: &'static str,
    value: &[u8],
) -> Result<(), ControlStoreError> {
    values.insert(key, seal(key.as_bytes(), value).as_slice())?;
    Ok(())
}

/// A count of entries before what describes them.
fn join(count: u64, bytes: &[u8]) -> Vec<u8> {
    [&count.to_le_bytes(), bytes].concat()
}

fn split(what: &str, bytes: &[u8]) -> Result<(u64, Vec<u8>), ControlStoreError> {
    let corrupt = || ControlStoreError::Corrupt { what: what.to_owned() };
    let (count, rest) = bytes.split_first_chunk::<8>().ok_or_else(corrupt)?;
    Ok((u64::from_le_bytes(*count), rest.to_vec()))
}

fn entry(index: u64, sealed: &[u8]) -> Result<Vec<u8>, ControlStoreError> {
    unseal(&index.to_le_bytes(), sealed, || format!("log entry {index}"))
}

/// Checksum, then the value. The key seeds the checksum: a value under another key does not match.
pub(super) fn seal(key: &[u8], value: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(8 + value.len());
    sealed.extend_from_slice(&checksum(key, value).to_le_bytes());
    sealed.extend_from_slice(value);
    sealed
}

fn unseal(
    key: &[u8],
    sealed: &[u8],
    what: impl FnOnce() -> String,
) -> Result<Vec<u8>, ControlStoreError> {
    match sealed.split_first_chunk::<8>() {
        Some((sum, value)) if u64::from_le_bytes(*sum) == checksum(key, value) => {
            Ok(value.to_vec())
        }
        _ => Err(ControlStoreError::Corrupt { what: what() }),
    }
}

fn checksum(key: &[u8], value: &[u8]) -> u64 {
    xxh3_64_with_seed(value, xxh3_64(key))
}
