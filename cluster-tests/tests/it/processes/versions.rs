//! Versions of entities, and commands under a condition, over real nodes.

use std::time::Instant;

use mainstay_cluster_tests::processes::{Answer, Question};
use serde_json::Value;

use super::{Running, SOON, get, plan, set, start};

const REGISTERS: i64 = 12;

/// A write that runs at this version alone.
fn set_at(register: &str, value: i64, version: u64) -> Question {
    set(register, value).header("If-Match", format!("\"{version}\""))
}

fn version(answer: &Answer) -> u64 {
    answer.body["version"].as_u64().unwrap_or_else(|| panic!("{}", answer.text()))
}

impl Running {
    /// What a register shows, through whichever node answers.
    async fn shown(&self, first: usize, register: &str) -> (i64, u64) {
        let began = Instant::now();
        for node in (0..self.nodes.len()).cycle().skip(first) {
            if let Ok(answer) = self.ask(node, &get(register)).await
                && let Ok(value) = answer.value()
            {
                return (value.as_i64().unwrap(), version(&answer));
            }
            assert!(began.elapsed() < SOON, "nobody shows {register}");
        }
        unreachable!("nodes are asked again and again")
    }

    /// Writes registers, and gives their versions.
    async fn registers(&self) -> Vec<(String, u64)> {
        let mut written = Vec::new();
        for value in 1..=REGISTERS {
            let name = format!("r-{value}");
            self.value(0, &set_at(&name, value, 0).key("create")).await;
            let (shown, version) = self.shown(1, &name).await;
            assert_eq!(shown, value);
            written.push((name, version));
        }
        written
    }

    async fn same(&self, first: usize, written: &[(String, u64)]) {
        for ((name, version), value) in written.iter().zip(1..) {
            assert_eq!(self.shown(first, name).await, (value, *version), "{name}");
        }
    }

    /// Each register takes one write at the version that is known of it, and no second one.
    async fn take_one_write(&self, node: usize, written: &[(String, u64)]) {
        for (name, before) in written {
            let done = self.answer(node, &set_at(name, 0, *before)).await;
            assert!(version(&done) > *before, "{}", done.text());
            let refused = self.answer(node, &set_at(name, 0, *before)).await;
            assert_eq!((refused.status, refused.code()), (412, "MS-2111"), "{}", refused.text());
            assert_eq!(version(&refused), version(&done));
        }
    }
}

/// Adds to a register what was read plus one, at the version that was read, until that was done.
async fn increment(cluster: &Running, node: usize, register: &str) -> u32 {
    for refused in 0.. {
        let (value, version) = cluster.shown(node, register).await;
        let answer = cluster.answer(node, &set_at(register, value + 1, version)).await;
        match answer.status {
            200 => return refused,
            412 => {}
            _ => panic!("{}", answer.text()),
        }
    }
    unreachable!("one of those that write at one version goes on")
}

#[tokio::test]
async fn clients_that_write_what_they_read_at_its_version_lose_no_update() {
    const CLIENTS: usize = 6;
    const TIMES: usize = 15;
    let cluster = start(&plan(3)).await;
    let clients = (0..CLIENTS).map(async |client| {
        let mut refused = 0;
        for _ in 0..TIMES {
            refused += increment(&cluster, client % 3, "counted").await;
        }
        refused
    });
    let refused: u32 = futures_util::future::join_all(clients).await.into_iter().sum();
    let total = i64::try_from(CLIENTS * TIMES).unwrap();
    assert_eq!(cluster.shown(0, "counted").await.0, total);
    let writes = Question::new("register", "counted", "writes", serde_json::json!({}));
    assert_eq!(cluster.value(0, &writes).await, Value::from(total), "each was done once");
    assert!(refused > 0, "they were never in each other's way");
}

#[tokio::test]
async fn a_version_stays_through_crashes_and_moves() {
    let mut cluster = start(&plan(3)).await;
    let written = cluster.registers().await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start().unwrap();
    }
    cluster.ready().await.unwrap();
    cluster.same(0, &written).await;
    cluster.drain(2, 0).await;
    cluster.balanced(&[0, 1], 32).await;
    cluster.same(1, &written).await;
    cluster.take_one_write(0, &written).await;
    let repeated = cluster.answer(1, &set_at("r-1", 1, 0).key("create")).await;
    assert_eq!((repeated.status, version(&repeated)), (200, written[0].1), "as it was answered");
}

#[tokio::test]
async fn a_version_stays_through_a_failover() {
    let mut cluster = start(&plan(3).set("cluster.standbys", 2)).await;
    cluster.in_sync(&[0, 1, 2], 3, SOON).await.unwrap();
    let written = cluster.registers().await;
    cluster.nodes[2].kill();
    cluster.same(0, &written).await;
    cluster.take_one_write(1, &written).await;
    let repeated = cluster.answer(1, &set_at("r-1", 1, 0).key("create")).await;
    assert_eq!((repeated.status, version(&repeated)), (200, written[0].1), "as it was answered");
}
