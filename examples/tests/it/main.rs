//! Every example is started and called, every block of the README is executed, and the demo
//! audits its own writes.

#![expect(clippy::unwrap_used, reason = "a test's helpers may fail as loudly as the test")]

mod demo;
mod each;
mod readme;

use mainstay_cluster_tests::processes::{Cluster, Plan, Question};
use serde_json::Value;
use tokio::sync::{Mutex, MutexGuard};

static TURN: Mutex<()> = Mutex::const_new(());

/// One example, running as a single node.
struct Running {
    cluster: Cluster,
    _turn: MutexGuard<'static, ()>,
}

async fn start(program: &str) -> Running {
    let turn = TURN.lock().await;
    Running { cluster: Cluster::start(&Plan::new(program, 1)).await.unwrap(), _turn: turn }
}

impl Running {
    async fn value(&self, kind: &str, key: &str, method: &str, body: Value) -> Value {
        let answer = self.ask(kind, key, method, body).await;
        answer.value().unwrap().clone()
    }

    async fn ask(
        &self,
        kind: &str,
        key: &str,
        method: &str,
        body: Value,
    ) -> mainstay_cluster_tests::processes::Answer {
        self.cluster.ask(0, &Question::new(kind, key, method, body)).await.unwrap()
    }
}
