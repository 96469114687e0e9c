//! The control store over restarts, damage and a disk that fails.

use std::sync::atomic::{AtomicBool, Ordering};

use redb::ReadableTable;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::keeper::{FORMAT_KEY, LOG, VALUES, seal};
use super::*;

fn snapshot(entries: u64) -> StoredSnapshot {
    let data = format!("state of {entries}").into_bytes();
    StoredSnapshot { entries, meta: b"meta".to_vec(), data }
}

fn open(dir: &tempfile::TempDir) -> ControlStore {
    ControlStore::open(dir.path(), false).unwrap()
}

async fn append(store: &ControlStore, indexes: Range<u64>) -> Result<(), ControlStoreError> {
    let entries = indexes.map(|index| (index, vec![u8::try_from(index).unwrap(); 100]));
    let (sender, flushed) = oneshot::channel();
    let done: Done = Box::new(|result| sender.send(result).unwrap());
    store.append(entries.collect(), done).await.unwrap();
    flushed.await.unwrap()
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let snapshot = snapshot(3);
    store.put(Slot::Vote, b"vote".to_vec()).await.unwrap();
    store.put(Slot::Founding, b"founding".to_vec()).await.unwrap();
    append(&store, 0..10).await.unwrap();
    store.purge(3, b"marker".to_vec()).await.unwrap();
    store.truncate(8).await.unwrap();
    store.save_snapshot(snapshot.clone()).await.unwrap();
    store.close().await;

    let store = open(&dir);

    assert_eq!(store.get(Slot::Vote).await.unwrap().unwrap(), b"vote");
    assert_eq!(store.get(Slot::Founding).await.unwrap().unwrap(), b"founding");
    assert_eq!(store.get(Slot::Committed).await.unwrap(), None);
    let ends = Ends { purged: Some(b"marker".to_vec()), last: Some(vec![7; 100]) };
    assert_eq!(store.ends().await.unwrap(), ends);
    assert_eq!(store.entries(0..100, usize::MAX).await.unwrap().len(), 4);
    assert_eq!(store.snapshot().await.unwrap(), Some(snapshot));
}

#[tokio::test]
async fn a_hole_is_refused_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    append(&store, 0..3).await.unwrap();

    let after_hole = append(&store, 4..6).await;
    let before_end = append(&store, 2..3).await;

    assert!(matches!(after_hole, Err(ControlStoreError::Hole { given: 4, expected: 3 })));
    assert!(matches!(before_end, Err(ControlStoreError::Hole { given: 2, expected: 3 })));
    assert_eq!(store.entries(0..100, usize::MAX).await.unwrap().len(), 3);
    append(&store, 3..4).await.unwrap();
}

#[tokio::test]
async fn a_purge_beyond_the_end_moves_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    append(&store, 0..3).await.unwrap();
    store.purge(9, b"nine".to_vec()).await.unwrap();

    assert!(append(&store, 3..4).await.is_err());
    append(&store, 10..11).await.unwrap();
}

/// A snapshot that took long to build replaced a newer one that the leader had sent meanwhile;
/// the log before the newer one was gone already, and the next start had a hole.
#[tokio::test]
async fn an_older_snapshot_never_replaces_a_newer_one() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.save_snapshot(snapshot(900)).await.unwrap();

    store.save_snapshot(snapshot(500)).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap(), Some(snapshot(900)));

    store.save_snapshot(snapshot(901)).await.unwrap();
    assert_eq!(store.snapshot().await.unwrap(), Some(snapshot(901)));
}

#[tokio::test]
async fn a_limited_read_gives_at_least_one_entry() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    append(&store, 0..10).await.unwrap();

    assert_eq!(store.entries(0..10, 1).await.unwrap().len(), 1);
    assert_eq!(store.entries(0..10, 250).await.unwrap().len(), 2);
}

#[tokio::test]
async fn writes_that_wait_share_one_transaction_and_keep_their_order() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    let (sender, mut order) = mpsc::channel(200);
    for index in 0..200_u64 {
        let sender = sender.clone();
        let done: Done = Box::new(move |result| sender.try_send((index, result.is_ok())).unwrap());
        store.append(vec![(index, vec![0; 10])], done).await.unwrap();
    }

    for index in 0..200 {
        assert_eq!(order.recv().await, Some((index, true)));
    }
}

#[tokio::test]
async fn a_missing_store_of_a_member_is_an_error() {
    let dir = tempfile::tempdir().unwrap();

    let error = ControlStore::open(dir.path(), true).unwrap_err();

    assert_eq!(error.code(), "MS-1105");
}

#[tokio::test]
async fn damage_is_found_by_its_checksum() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    append(&store, 0..3).await.unwrap();
    store.close().await;
    let database = Database::open(dir.path().join(FILE)).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(LOG)
        .unwrap()
        .insert(1, seal(&1_u64.to_le_bytes(), b"x")[..8].to_vec().as_slice())
        .unwrap();
    txn.commit().unwrap();
    drop(database);

    let read = open(&dir).entries(0..3, usize::MAX).await;

    assert!(matches!(read, Err(ControlStoreError::Corrupt { what }) if what == "log entry 1"));
}

#[tokio::test]
async fn a_newer_format_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).close().await;
    let database = Database::open(dir.path().join(FILE)).unwrap();
    let txn = database.begin_write().unwrap();
    txn.open_table(VALUES).unwrap().insert(FORMAT_KEY, [9].as_slice()).unwrap();
    txn.commit().unwrap();
    drop(database);

    let error = ControlStore::open(dir.path(), true).unwrap_err();

    assert_eq!(error.code(), "MS-1106");
}

/// redb takes an empty file for a new one: a voter whose file was emptied had forgotten its
/// votes, and voted again.
#[tokio::test]
async fn an_emptied_store_of_a_member_is_an_error_each_time() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    store.put(Slot::Vote, b"vote".to_vec()).await.unwrap();
    store.close().await;
    std::fs::write(dir.path().join(FILE), b"").unwrap();

    for _ in 0..2 {
        let error = ControlStore::open(dir.path(), true).unwrap_err();
        assert!(matches!(error, ControlStoreError::Damaged { .. }), "{error:?}");
        assert_eq!(error.code(), "MS-1105");
    }
}

#[tokio::test]
async fn a_file_that_is_no_store_is_damage_and_not_a_failed_disk() {
    let dir = tempfile::tempdir().unwrap();
    open(&dir).close().await;
    let file = dir.path().join(FILE);
    let whole = std::fs::read(&file).unwrap();
    let rotten = whole.iter().map(|byte| byte ^ 0x55).collect();
    for bytes in [whole[..100].to_vec(), vec![0; whole.len()], rotten] {
        std::fs::write(&file, bytes).unwrap();

        let error = ControlStore::open(dir.path(), true).unwrap_err();

        assert_eq!(error.code(), "MS-1105", "{error:?}");
    }
}

#[tokio::test]
async fn an_entry_under_another_index_is_damage() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir);
    append(&store, 0..3).await.unwrap();
    store.close().await;
    let database = Database::open(dir.path().join(FILE)).unwrap();
    let txn = database.begin_write().unwrap();
    {
        let mut log = txn.open_table(LOG).unwrap();
        let second = log.get(2).unwrap().unwrap().value().to_vec();
        log.insert(1, second.as_slice()).unwrap();
    }
    txn.commit().unwrap();
    drop(database);

    let read = open(&dir).entries(0..3, usize::MAX).await;

    assert!(matches!(read, Err(ControlStoreError::Corrupt { what }) if what == "log entry 1"));
}

/// A disk whose fsync fails on demand.
#[derive(Debug)]
struct FailingDisk {
    memory: InMemoryBackend,
    fails: Arc<AtomicBool>,
}

/// A store on a disk that fails once the flag is set.
pub(crate) fn store_that_fails() -> (ControlStore, Arc<AtomicBool>) {
    let fails = Arc::new(AtomicBool::new(false));
    let disk = FailingDisk { memory: InMemoryBackend::new(), fails: Arc::clone(&fails) };
    let database = Database::builder().create_with_backend(disk).unwrap();
    (ControlStore::start(database).unwrap(), fails)
}

impl StorageBackend for FailingDisk {
    fn len(&self) -> io::Result<u64> {
        self.memory.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.memory.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.memory.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        if self.fails.load(Ordering::SeqCst) {
            return Err(io::Error::other("planted"));
        }
        self.memory.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.memory.write(offset, data)
    }
}

#[tokio::test]
async fn a_failed_fsync_acknowledges_nothing_ever_again() {
    let (store, fails) = store_that_fails();
    append(&store, 0..1).await.unwrap();

    fails.store(true, Ordering::SeqCst);
    let unflushed = append(&store, 1..2).await;
    fails.store(false, Ordering::SeqCst);
    let vote = store.put(Slot::Vote, b"vote".to_vec()).await;

    assert!(matches!(unflushed, Err(ControlStoreError::Failed(_))), "{unflushed:?}");
    assert!(matches!(vote, Err(ControlStoreError::Failed(_))), "{vote:?}");
}
