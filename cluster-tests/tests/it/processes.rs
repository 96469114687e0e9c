//! Tests with real node processes, one cluster at a time.

mod bad_input;
mod chaos;
mod crashes;
mod disk;
mod drift;
mod drives;
mod failover;
mod forming;
mod freshness;
mod identity;
mod idle;
mod journey;
mod leaving;
mod load;
mod replication;
mod telemetry;
mod turns;
mod versions;
mod zones;

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use mainstay_cluster_tests::processes::{Answer, Cluster, Definite, Plan, Question};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

/// The node that the tests start.
const TESTNODE: &str = env!("CARGO_BIN_EXE_testnode");
/// How long something that must happen may take on a busy machine.
const SOON: Duration = Duration::from_secs(30);

/// Held by whoever has processes running: time limits mean little when twenty clusters share two
/// cores.
static TURN: Mutex<()> = Mutex::const_new(());

/// A cluster, and the right to have one.
struct Running {
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

impl Deref for Running {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl DerefMut for Running {
    fn deref_mut(&mut self) -> &mut Cluster {
        &mut self.cluster
    }
}

fn plan(nodes: usize) -> Plan {
    Plan::new(TESTNODE, nodes).set("log.format", "json")
}

async fn start(plan: &Plan) -> Running {
    let turn = TURN.lock().await;
    Running { cluster: Cluster::start(plan).await.unwrap(), _turn: turn }
}

async fn prepare(plan: &Plan) -> Running {
    let turn = TURN.lock().await;
    Running { cluster: Cluster::prepare(plan).unwrap(), _turn: turn }
}

fn append(list: &str, item: u64) -> Question {
    Question::new("list", list, "append", json!({ "item": item }))
}

fn set(register: &str, value: i64) -> Question {
    Question::new("register", register, "set", json!({ "value": value }))
}

fn get(register: &str) -> Question {
    Question::new("register", register, "get", json!({}))
}

impl Running {
    /// The value of a call that must succeed, through whichever node answers.
    async fn value(&self, first: usize, question: &Question) -> Value {
        match self.settle(first, question, SOON).await.unwrap() {
            Definite::Value(value) => value,
            other => panic!("{question}: {other:?}"),
        }
    }

    /// The one answer of one node.
    async fn answer(&self, node: usize, question: &Question) -> Answer {
        self.ask(node, question).await.unwrap()
    }

    async fn items(&self, list: &str) -> Vec<u64> {
        let value = self.value(0, &Question::new("list", list, "items", json!({}))).await;
        serde_json::from_value(value).unwrap()
    }

    async fn status(&self, node: usize) -> Value {
        self.admin_json(node, "/admin/v1/status").await.unwrap()
    }

    /// Shards that a node serves, by its own account.
    async fn shards(&self, node: usize) -> u64 {
        self.status(node).await["node"]["shards"].as_u64().unwrap()
    }

    async fn members(&self, node: usize) -> Vec<Value> {
        let nodes = self.admin_json(node, "/admin/v1/nodes").await.unwrap();
        nodes["nodes"].as_array().unwrap().clone()
    }

    /// Asks one node to drain another.
    async fn drain(&self, node: usize, through: usize) {
        let name = self.nodes[node].name();
        let admin = self.nodes[through].addresses().admin;
        let url = format!("http://{admin}/admin/v1/nodes/{name}/drain");
        let answer = self.client().post(url).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }

    /// Waits until every shard is served by one of these nodes.
    async fn balanced(&self, nodes: &[usize], shards: u64) {
        let began = std::time::Instant::now();
        loop {
            let mut served = 0;
            for node in nodes {
                served += self.shards(*node).await;
            }
            if served == shards {
                return;
            }
            assert!(began.elapsed() < SOON, "{served} of {shards} shards are served by {nodes:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Running {
    /// The name of the node that serves a query.
    async fn served_by(&self, node: usize, question: &Question) -> String {
        self.answer(node, question).await.served_by.unwrap_or_default()
    }
}
