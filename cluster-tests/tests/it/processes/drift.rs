//! A copy that differs from its primary's is found within a period, told, and mended.

use std::path::Path;
use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::eventually;
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::{Running, SOON, get, plan, set, start};

/// Registers that are written.
const REGISTERS: i64 = 20;
/// Shards of the cluster: a slice each.
const SHARDS: u32 = 8;
const TABLE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entities");
/// Before a state in its row: format, checksum, seq.
const SUM: std::ops::Range<usize> = 1..9;
const BODY: usize = 9;
/// Before the text of an entity's key in the key of its row: shard, generation, kind.
const OWNER_BYTES: usize = 16;

impl Running {
    /// What the nodes counted, all together.
    async fn counted(&self, name: &str, label: &str) -> u64 {
        let mut sum = 0;
        for node in 0..self.nodes.len() {
            let page = self.admin(node, "/metrics").await.unwrap().1;
            let lines = page.lines().filter(|line| line.starts_with(name) && line.contains(label));
            let values = lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
            sum += values.sum::<u64>();
        }
        sum
    }

    async fn checks(&self, result: &str) -> u64 {
        self.counted("mainstay_drift_checks_total{", &format!("\"{result}\"")).await
    }

    async fn rows(&self, outcome: &str) -> u64 {
        self.counted("mainstay_drift_rows_total{", &format!("\"{outcome}\"")).await
    }

    /// A node that serves neither of these registers.
    async fn standby_of(&self, registers: [&str; 2]) -> usize {
        let mut primaries = Vec::new();
        for register in registers {
            primaries.push(self.served_by(0, &get(register)).await);
        }
        let other = |node: &usize| !primaries.contains(&self.nodes[*node].name().to_owned());
        (0..self.nodes.len()).find(other).expect("two of three nodes serve at most")
    }

    /// Waits until so many slices in a row were found the same that every shard is among them.
    async fn found_the_same(&self) {
        let began = Instant::now();
        let mut before = (self.checks("mismatch").await, self.checks("match").await);
        loop {
            tokio::time::sleep(Duration::from_millis(100)).await;
            let now = (self.checks("mismatch").await, self.checks("match").await);
            if now.0 != before.0 {
                before = now;
            } else if now.1 >= before.1 + 3 * u64::from(SHARDS) {
                return;
            }
            assert!(began.elapsed() < SOON, "{before:?}, and then {now:?}");
        }
    }
}

/// Flips the last bit of a register's state; `sealed` with a checksum that says that it is right.
/// Says what the state was.
fn flip(file: &Path, register: &str, sealed: bool) -> Vec<u8> {
    let database = Database::open(file).unwrap();
    let (key, mut value) = find(&database, register).expect("the register was saved");
    let state = value[BODY..].to_vec();
    *value.last_mut().unwrap() ^= 1;
    if sealed {
        let sum = xxh3_64_with_seed(&value[BODY..], xxh3_64(&key) ^ u64::from(value[0]));
        value[SUM].copy_from_slice(&sum.to_le_bytes());
    }
    let txn = database.begin_write().unwrap();
    txn.open_table(TABLE).unwrap().insert(&*key, &*value).unwrap();
    txn.commit().unwrap();
    state
}

fn find(database: &Database, register: &str) -> Option<(Vec<u8>, Vec<u8>)> {
    let txn = database.begin_read().unwrap();
    let rows = txn.open_table(TABLE).unwrap();
    let mut rows = rows.iter().unwrap().map(Result::unwrap);
    let (key, value) = rows.find(|(key, _)| &key.value()[OWNER_BYTES..] == register.as_bytes())?;
    Some((key.value().to_vec(), value.value().to_vec()))
}

#[tokio::test]
async fn a_flipped_byte_of_a_standby_is_found_and_mended() {
    let mut plan = plan(3)
        .set("cluster.standbys", 2)
        .set("storage.audit_every", "1s")
        .set("storage.checkpoint_every", "100ms");
    plan.shards = SHARDS;
    let mut cluster = start(&plan).await;
    cluster.cluster.in_sync(&[0], 3, SOON).await.unwrap();
    for value in 0..REGISTERS {
        cluster.value(0, &set(&format!("r-{value}"), value)).await;
    }
    cluster.found_the_same().await;
    assert_eq!(cluster.checks("mismatch").await, 0);

    let (forged, rotten) = ("r-7", "r-8");
    let standby = cluster.standby_of([forged, rotten]).await;
    let through = (standby + 1) % 3;
    let file = cluster.nodes[standby].spec_mut().data.join("state.redb");
    cluster.nodes[standby].kill();
    let states = [(forged, true), (rotten, false)].map(|(name, seal)| flip(&file, name, seal));
    cluster.restart(standby).await.unwrap();
    cluster.cluster.in_sync(&[through], 3, SOON).await.unwrap();
    eventually("both rows are found and replaced", SOON, || async {
        tokio::time::sleep(Duration::from_millis(100)).await;
        cluster.rows("replaced").await >= 2
    })
    .await
    .unwrap();
    assert!(cluster.checks("mismatch").await >= 1);
    assert_eq!(cluster.rows("outvoted").await + cluster.rows("extra").await, 0);
    cluster.found_the_same().await;
    let mut told = 0;
    for node in 0..3 {
        let events = cluster.admin_json(node, "/admin/v1/events").await.unwrap();
        told += events.to_string().matches("copy_differed").count();
    }
    assert!(told >= 1, "no event tells of it");

    cluster.nodes[standby].kill();
    let database = Database::open(&file).unwrap();
    for (register, state) in [forged, rotten].into_iter().zip(states) {
        let (_, value) = find(&database, register).unwrap();
        assert_eq!(value[BODY..], state, "{register} is as its primary has it");
    }
}
