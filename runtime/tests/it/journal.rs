//! The journal of a node, as its settings bound it.

use std::time::Duration;

use mainstay::clock;
use mainstay::cluster::Cluster;
use mainstay::config::Config;
use mainstay::entity::Registry;

use crate::bank::Account;

/// `storage.journal_bytes` was read by nobody: a shard that was not saved kept every later record
/// of the node in the journal, and the next start replayed them all.
#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_journal_beyond_its_bound_is_saved_and_cut_out_of_turn() {
    const BYTES_SOFT: u64 = 16 << 10;
    let data = tempfile::tempdir().unwrap();
    let mut config = Config { data_dir: data.path().to_owned(), ..Config::default() };
    config.peers.listen = "127.0.0.1:0".to_owned();
    config.cluster.form_alone = true;
    config.cluster.shards = 8;
    config.lanes.count = 2;
    config.storage.reserve_bytes = 0;
    config.storage.journal_bytes = BYTES_SOFT;
    config.storage.checkpoint_every = Duration::from_secs(60 * 60);
    let registry = Registry::new().entity::<Account>();
    let cluster =
        tokio::task::spawn_blocking(|| Cluster::start(config, registry)).await.unwrap().unwrap();
    cluster.ready().await.unwrap();

    let mut longest = 0;
    for number in 0..400 {
        cluster.get::<Account>(&format!("bank-{number}")).deposit(1).await.unwrap();
        longest = longest.max(cluster.view().await.journal_bytes);
    }
    assert!(longest > BYTES_SOFT, "the test writes too little: {longest} bytes");

    let patience = clock::now() + Duration::from_secs(20);
    loop {
        let bytes = cluster.view().await.journal_bytes;
        if bytes <= BYTES_SOFT {
            break;
        }
        assert!(clock::now() < patience, "{bytes} bytes of journal stay");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(cluster.get::<Account>("bank-7").balance().await.unwrap(), 1);
    cluster.shutdown().await;
}
