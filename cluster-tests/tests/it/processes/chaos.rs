//! A short, fixed run of `make chaos`.

use std::path::PathBuf;

use mainstay_cluster_tests::chaos::{Kind, Settings, run};

use super::{TESTNODE, TURN};

#[tokio::test]
async fn a_handful_of_faults_breaks_no_promise() {
    let _turn = TURN.lock().await;
    let faults = vec![Kind::Kill, Kind::Freeze, Kind::Two, Kind::Wipe, Kind::All];
    let program = PathBuf::from(TESTNODE);
    let settings = Settings { program, seed: 7, faults, network: false, keep: false, say: tell };
    let summary = run(&settings).await.unwrap_or_else(|error| panic!("{error:#}"));
    assert!(summary.acknowledged() > 100, "{summary}");
    assert!(summary.undecided().is_empty(), "{summary:?}");
}

#[expect(clippy::print_stdout, reason = "a failed run shows its faults")]
fn tell(line: &str) {
    println!("{line}");
}
