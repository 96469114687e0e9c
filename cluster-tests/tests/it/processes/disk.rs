//! Disks that fill up or rot, and what leaves them by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::{Question, ask};
use serde_json::json;

use super::{SOON, append, get, plan, prepare, set, start};
use crate::skipped;

/// A small file system in memory, mounted for the length of a test.
struct SmallDisk(PathBuf);

impl SmallDisk {
    /// Nothing when this process may not mount.
    fn mount(at: &Path, size: &str) -> Option<Self> {
        fs::create_dir_all(at).unwrap();
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"]).arg(at);
        mount.output().ok()?.status.success().then(|| Self(at.to_owned()))
    }

    fn filler(&self) -> PathBuf {
        self.0.join("filler")
    }

    /// Writes until the disk takes no more, then gives `spare` bytes back.
    fn fill(&self, spare: u64) {
        let file = fs::File::options().create(true).append(true).open(self.filler()).unwrap();
        let mut step = 1 << 20;
        while step > 0 {
            if std::io::Write::write_all(&mut &file, &vec![0; step]).is_err() {
                step /= 4;
            }
        }
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(spare)).unwrap();
    }

    fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // A mount that is left behind is worse than an error that nobody can act on.
        Command::new("umount").arg("-l").arg(&self.0).output().ok();
    }
}

#[tokio::test]
async fn a_full_disk_refuses_commands_serves_queries_and_goes_on_when_there_is_space() {
    let plan = plan(1).set("storage.reserve_bytes", "32MiB");
    let mut cluster = prepare(&plan).await;
    let at = cluster.nodes[0].spec_mut().data.clone();
    let Some(disk) = SmallDisk::mount(&at, "128m") else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    cluster.nodes[0].start().unwrap();
    cluster.ready().await.unwrap();
    cluster.value(0, &set("before", 1)).await;

    disk.fill(16 << 20);
    let began = Instant::now();
    let refused = loop {
        // One that came in before the node noticed waits for space until its deadline.
        let question = set("while-full", 2).deadline(Duration::from_secs(1));
        let answer = cluster.answer(0, &question).await;
        if answer.status == 429 {
            break answer;
        }
        assert!(began.elapsed() < SOON, "a disk below its reserve takes commands");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((refused.code(), refused.body["bound"].as_str()), ("MS-2101", Some("disk")));
    assert_eq!(cluster.answer(0, &get("before")).await.value().unwrap(), 1);

    disk.free();
    cluster.value(0, &set("after", 3)).await;

    // Not one free block, and a crash: it says why it does not serve.
    disk.fill(0);
    cluster.nodes[0].kill();
    let said_before = cluster.nodes[0].log().len();
    cluster.nodes[0].start().unwrap();
    let began = Instant::now();
    // It comes up as far as it can without a write, or ends.
    while !cluster.nodes[0].log()[said_before..].contains("joined")
        && cluster.nodes[0].exit(Duration::from_millis(20)).await.is_err()
    {
        assert!(began.elapsed() < SOON, "{}", cluster.nodes[0].log_tail(20));
    }
    let said = cluster.nodes[0].log().split_off(said_before);
    assert!(said.contains("MS-1104"), "{said}");
    assert!(!cluster.nodes[0].log().contains("panicked"), "{}", cluster.nodes[0].log_tail(20));
    cluster.nodes[0].kill();
    disk.free();
    cluster.restart(0).await.unwrap();
    assert_eq!(cluster.value(0, &get("before")).await, 1);
    assert_eq!(cluster.value(0, &get("after")).await, 3);
    cluster.value(0, &set("again", 4)).await;
    cluster.nodes[0].kill();
}

/// A move to a full disk could not end, and its shard would be served by nobody meanwhile.
#[tokio::test]
async fn a_full_disk_takes_no_shards_in_and_those_that_want_to_go_there_stay_served() {
    let plan = plan(3).set("storage.reserve_bytes", "32MiB");
    let mut cluster = prepare(&plan).await;
    let at = cluster.nodes[2].spec_mut().data.clone();
    let Some(disk) = SmallDisk::mount(&at, "128m") else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.ready().await.unwrap();
    cluster.balanced(&[0, 1, 2], 32).await;
    for key in 0..30 {
        cluster.value(0, &set(&format!("r-{key}"), key)).await;
    }
    let held = cluster.shards(2).await;
    disk.fill(16 << 20);
    // Some heartbeats later everybody knows.
    tokio::time::sleep(Duration::from_secs(2)).await;
    cluster.drain(1, 0).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(cluster.shards(2).await, held, "shards moved to a full disk");
    for key in 0..30 {
        let question = get(&format!("r-{key}")).deadline(Duration::from_secs(2));
        assert_eq!(cluster.answer(0, &question).await.value().unwrap(), key);
    }
    disk.free();
    cluster.balanced(&[0, 2], 32).await;
    cluster.nodes[2].kill();
}

/// Without a reserve the disk fills up under the journal itself.
#[tokio::test]
async fn a_node_whose_journal_cannot_be_written_says_so_and_ends_and_keeps_what_it_acknowledged() {
    let plan = plan(1).set("storage.reserve_bytes", "0B");
    let mut cluster = prepare(&plan).await;
    let at = cluster.nodes[0].spec_mut().data.clone();
    let Some(disk) = SmallDisk::mount(&at, "64m") else {
        skipped("mounting a tmpfs needs root");
        return;
    };
    cluster.nodes[0].start().unwrap();
    cluster.ready().await.unwrap();
    cluster.value(0, &set("before", 1)).await;
    disk.fill(0);
    let mut acknowledged = 0;
    for item in 0.. {
        let client = cluster.client().clone();
        let at = cluster.nodes[0].addresses().http;
        let question = append("filling", item).deadline(Duration::from_secs(1));
        match ask(&client, at, &question).await {
            Ok(answer) if answer.status == 200 => acknowledged = item + 1,
            Ok(_) | Err(_) => break,
        }
    }
    let status = cluster.nodes[0].exit(SOON).await.unwrap();
    let log = cluster.nodes[0].log();
    assert!(!status.success() && log.contains("MS-1110"), "{log}");
    assert!(!log.contains("panicked"), "{log}");

    disk.free();
    cluster.restart(0).await.unwrap();
    assert_eq!(cluster.value(0, &get("before")).await, 1);
    let found = cluster.items("filling").await;
    let whole: Vec<u64> = (0..acknowledged).collect();
    assert_eq!(found[..whole.len()], whole, "{found:?}");
    cluster.nodes[0].kill();
}

#[tokio::test]
async fn a_journal_with_a_flipped_bit_is_refused_and_left_as_it_is() {
    let plan = plan(1).set("storage.checkpoint_every", "1h");
    let mut cluster = start(&plan).await;
    for item in 0..50 {
        cluster.value(0, &append("a-list-with-a-name-to-look-for", item)).await;
    }
    cluster.nodes[0].kill();
    let journal = cluster.nodes[0].spec_mut().data.join("journal.redb");
    let mut bytes = fs::read(&journal).unwrap();
    let name = b"a-list-with-a-name-to-look-for";
    let places: Vec<usize> = bytes
        .windows(name.len())
        .enumerate()
        .filter(|(_, w)| w == name)
        .map(|(at, _)| at)
        .collect();
    assert!(places.len() >= 50, "only {} entries in the journal", places.len());
    for at in places {
        bytes[at] ^= 1;
    }
    fs::write(&journal, &bytes).unwrap();

    cluster.nodes[0].start().unwrap();
    let status = cluster.nodes[0].exit(SOON).await.unwrap();
    let log = cluster.nodes[0].log();
    assert!(!status.success() && log.contains("MS-1105"), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

/// Its copy could never arrive, and nobody served the shard for as long as it was to be moved.
#[tokio::test]
async fn a_shard_that_cannot_be_copied_is_served_by_the_node_that_is_to_hand_it_over() {
    const VALUE: i64 = 0x0112_2334_4556_6778;
    let mut plan = plan(2);
    plan.shards = 1;
    let mut cluster = start(&plan).await;
    let owner = usize::from(cluster.shards(0).await == 0);
    cluster.value(owner, &set("rotten", VALUE)).await;
    cluster.value(owner, &set("whole", 7)).await;
    // Saved, and cut from the journal.
    tokio::time::sleep(Duration::from_secs(3)).await;
    cluster.nodes[owner].signal("TERM").unwrap();
    cluster.nodes[owner].exit(SOON).await.unwrap();
    let state = cluster.nodes[owner].spec_mut().data.join("state.redb");
    let mut bytes = fs::read(&state).unwrap();
    let value = VALUE.to_be_bytes();
    let found: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at..].starts_with(&value)).collect();
    assert!(!found.is_empty(), "the value is not in the tables");
    for at in found {
        bytes[at] ^= 1;
    }
    fs::write(&state, &bytes).unwrap();
    cluster.restart(owner).await.unwrap();

    cluster.drain(owner, 1 - owner).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for _ in 0..20 {
        let question = get("whole").deadline(Duration::from_secs(1));
        assert_eq!(cluster.answer(owner, &question).await.value().unwrap(), 7);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let log = cluster.nodes[owner].log();
    assert_eq!(log.matches("its move is given up").count(), 1, "{log}");
}

#[tokio::test]
async fn an_expired_idempotency_key_leaves_the_disk() {
    let plan = plan(1)
        .set("limits.deadline_max", "3s")
        .set("limits.dedup_retention", "3s")
        .set("storage.checkpoint_every", "100ms");
    let mut cluster = start(&plan).await;
    let soon = Duration::from_millis(2_900);
    let first = append("once", 7).key("a-key").deadline(soon);
    assert_eq!(cluster.value(0, &first).await, 1);
    assert_eq!(cluster.value(0, &first).await, 1, "the first reply is repeated");
    for (item, length) in [(8, 2), (9, 4)] {
        tokio::time::sleep(Duration::from_millis(3_300)).await;
        // Records expire by the time of their shard's log, which only a command moves.
        assert_eq!(cluster.value(0, &append("once", item).deadline(soon)).await, length);
        if item == 8 {
            assert_eq!(cluster.value(0, &first).await, 3, "after the retention it runs again");
        }
    }
    // The next snapshot takes the expired record along.
    let file = cluster.nodes[0].spec_mut().data.join("state.redb");
    let began = Instant::now();
    loop {
        tokio::time::sleep(Duration::from_millis(500)).await;
        cluster.nodes[0].kill();
        let rows = dedup_rows(&file);
        cluster.restart(0).await.unwrap();
        if rows == 0 {
            break;
        }
        assert!(began.elapsed() < SOON, "{rows} records stay on the disk");
    }
    let items = Question::new("list", "once", "items", json!({})).deadline(soon);
    assert_eq!(cluster.value(0, &items).await, json!([7, 8, 7, 9]));
}

fn dedup_rows(file: &Path) -> u64 {
    use redb::{Database, ReadableDatabase, ReadableTableMetadata, TableDefinition};
    const DEDUP: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("dedup");
    let database = Database::open(file).unwrap();
    let txn = database.begin_read().unwrap();
    txn.open_table(DEDUP).unwrap().len().unwrap()
}
