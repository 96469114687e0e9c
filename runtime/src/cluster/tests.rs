//! Nodes in this process: when they are ready, and what their operators see.

use std::path::Path;

use mainstay_protocol::id::{KindId, Seq};

use super::*;
use crate::config::Config;
use crate::prelude::*;

/// A counter that can hold its lane up.
#[state(version = 1)]
struct Meter {
    count: u64,
}

#[entity(name = "meter")]
impl Meter {
    #[command]
    fn add(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    #[query]
    fn block(&self, millis: u64) -> u64 {
        std::thread::sleep(Duration::from_millis(millis));
        self.count
    }
}

fn config(dir: &Path) -> Config {
    let mut config = Config { data_dir: dir.to_owned(), ..Config::default() };
    config.peers.listen = "127.0.0.1:0".to_owned();
    config.cluster.shards = 8;
    config.lanes.count = 2;
    config.storage.reserve_bytes = 0;
    config.storage.checkpoint_every = Duration::from_millis(20);
    config
}

async fn start(config: Config) -> Cluster {
    let registry = Registry::new().entity::<Meter>();
    tokio::task::spawn_blocking(|| Cluster::start(config, registry)).await.unwrap().unwrap()
}

/// A node alone, with a meter under each of these keys, all in snapshots.
async fn alone(dir: &Path, keys: impl IntoIterator<Item = String>) -> Cluster {
    let mut config = config(dir);
    config.cluster.form_alone = true;
    let cluster = start(config).await;
    cluster.ready().await.unwrap();
    for key in keys {
        cluster.get::<Meter>(&key).add().await.unwrap();
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    cluster
}

async fn listed(cluster: &Cluster, after: Option<&str>, limit: usize) -> Vec<EntityRow> {
    cluster.entities(KindId::of("meter"), "m-", after, limit).await.unwrap()
}

/// A member whose journal failed before it served anything was neither ready nor ended, for ever.
#[tokio::test]
async fn a_node_that_ends_before_it_serves_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path());
    config.cluster.join = vec!["127.0.0.1:9".to_owned()];
    let cluster = start(config).await;
    let failed = Arc::new(StartError::Consensus("gone".to_owned()));
    for (over, ready) in [
        (Phase::Failed(Arc::clone(&failed)), Err(failed)),
        (Phase::Stopping, Err(Arc::new(StartError::Stopped))),
        (Phase::Left, Ok(())),
    ] {
        cluster.0.phase.send_replace(Phase::Member);
        let waits = tokio::spawn({
            let cluster = cluster.clone();
            async move { cluster.ready().await }
        });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished(), "a member without a map serves nothing");
        cluster.0.phase.send_replace(over);
        let told = tokio::time::timeout(Duration::from_secs(10), waits).await;
        assert_eq!(told.expect("it ended").unwrap(), ready);
    }
    cluster.shutdown().await;
}

#[tokio::test]
async fn entities_are_listed_in_pages_and_each_is_active_while_it_is_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let keys: Vec<_> = (0..50).map(|n| format!("m-{n:02}")).collect();
    let cluster = alone(dir.path(), keys.iter().cloned().chain(["other".to_owned()])).await;
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = listed(&cluster, after.as_deref(), 7).await;
        assert!(page.len() <= 7);
        let Some(last) = page.last() else { break };
        after = Some(last.key.clone());
        found.extend(page);
    }
    assert!(found.iter().map(|row| &row.key).eq(&keys), "{found:?}");
    assert!(found.iter().all(|row| row.active && row.seq > Seq(0) && row.state_bytes > 0));
    cluster.shutdown().await;

    let cluster = alone(dir.path(), ["m-07".to_owned()]).await;
    let active: Vec<_> =
        listed(&cluster, None, 50).await.into_iter().filter(|r| r.active).collect();
    assert_eq!(active.iter().map(|row| &*row.key).collect::<Vec<_>>(), ["m-07"]);
    cluster.shutdown().await;
}

/// Its entities were missing in the list, as if there were none.
#[tokio::test]
async fn a_list_without_a_lane_is_none() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = alone(dir.path(), ["m-1".to_owned()]).await;
    let busy = tokio::spawn({
        let meter = cluster.get::<Meter>("m-1");
        async move { meter.block(3_000).await }
    });
    tokio::time::sleep(Duration::from_millis(300)).await;
    let refused = cluster.entities(KindId::of("meter"), "", None, 10).await;
    assert!(matches!(refused, Err(AdminError::Busy { .. })), "{refused:?}");
    assert_eq!(busy.await.unwrap().unwrap(), 1);
    assert_eq!(listed(&cluster, None, 10).await.len(), 1);
    cluster.shutdown().await;
}
