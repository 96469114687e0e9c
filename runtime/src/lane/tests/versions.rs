//! The version of an entity, as a lane tells it and compares it.

use super::*;

/// Leaves memory at once.
#[state(version = 1)]
pub(super) struct Brief {
    times: u64,
}

#[entity(name = "brief", idle = "1ms")]
impl Brief {
    #[command]
    fn count(&mut self) -> u64 {
        self.times += 1;
        self.times
    }
}

impl Rig {
    /// The version that a reply shows, of a command that is to run at this one alone.
    async fn version(
        &mut self,
        (kind, method): (&str, &str),
        arguments: &Value,
        if_version: Option<u64>,
    ) -> Result<u64, Failure> {
        let request = self.request(kind, method, arguments);
        let call = self.send(Request { if_version: if_version.map(Seq), ..request });
        self.settle().await;
        let answered = call.now_or_never().expect("the lane has settled");
        answered.map(|success| success.token.seq.0)
    }

    /// Serves in the next epoch, as after a restart: what was in memory is activated anew.
    async fn serve_anew(&mut self) {
        self.publish(|config| config.epoch = Epoch(config.epoch.0 + 1)).await;
    }
}

fn current(result: Result<u64, Failure>) -> u64 {
    match result {
        Err(Failure::VersionMismatch { token }) => token.seq.0,
        other => panic!("{other:?}"),
    }
}

const WRITE: (&str, &str) = ("diary", "write");
const READ: (&str, &str) = ("diary", "read");

/// A version was the place of the epoch's first entry when nothing had been written since, so that
/// it moved with every restart, and back with every passivation.
#[actix::test]
async fn a_version_stays_while_its_state_does() {
    let mut rig = Rig::new().await;
    let line = |line: u64| json!({ "line": line });
    assert_eq!(rig.version(READ, &json!({}), None).await, Ok(0));
    let written = rig.version(WRITE, &line(1), Some(0)).await.unwrap();
    for _ in 0..2 {
        rig.serve_anew().await;
        assert_eq!(rig.version(READ, &json!({}), None).await, Ok(written));
        assert_eq!(current(rig.version(WRITE, &line(9), Some(0)).await), written);
    }
    rig.serve_anew().await;
    let again = rig.version(WRITE, &line(2), Some(written)).await.unwrap();
    assert!(again > written);
    assert_eq!(current(rig.version(WRITE, &line(9), Some(written)).await), again);
    rig.serve_anew().await;
    assert_eq!(current(rig.version(WRITE, &line(9), Some(written)).await), again, "read from disk");
    assert_eq!(rig.stored().await, json!([1, 2]));
}

#[actix::test]
async fn a_version_stays_when_its_entity_leaves_memory() {
    let mut rig = Rig::new().await;
    let count = ("brief", "count");
    let first = rig.version(count, &json!({}), Some(0)).await.unwrap();
    rig.write(1).await;
    let patience = clock::now() + Duration::from_secs(10);
    while rig.core.shards[&SHARD].is_serving().unwrap().primary.entities() > 1 {
        assert!(clock::now() < patience, "the diary stays, and nothing else");
        rig.settle().await;
    }
    assert_eq!(current(rig.version(count, &json!({}), Some(0)).await), first);
    rig.version(count, &json!({}), Some(first)).await.unwrap();
}

#[actix::test]
async fn of_two_writes_for_one_version_one_is_done() {
    let mut rig = Rig::new().await;
    let write = |line: u64| Request {
        if_version: Some(Seq(0)),
        ..rig.request("diary", "write", &json!({ "line": line }))
    };
    let (first, second) = (rig.send(write(1)), rig.send(write(2)));
    rig.settle().await;
    answer(first).unwrap();
    assert!(matches!(answer(second), Err(Failure::VersionMismatch { .. })));
    let call = rig.ask("read", &json!({}));
    rig.settle().await;
    answer(call).unwrap();
    assert_eq!(rig.stored().await, json!([1]));
}

#[actix::test]
async fn a_query_under_a_condition_is_refused() {
    let mut rig = Rig::new().await;
    let refused = rig.version(READ, &json!({}), Some(0)).await;
    assert!(matches!(refused, Err(Failure::Malformed { .. })), "{refused:?}");
}
