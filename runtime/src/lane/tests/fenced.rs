//! Primaries that are deposed: by this node's promise to a newer one, or by the map.

use mainstay_protocol::message::Outcome;

use super::*;
use crate::storage::Batch;

impl Rig {
    /// A standby of the shard promises on this node.
    async fn promise(&mut self, epoch: u64) {
        let (writer, segments) = (Writer::Standbys, Vec::new());
        let promises = BTreeMap::from([(SHARD, Epoch(epoch))]);
        self.storage.journal().append(Batch { writer, ticket: 1, segments, promises });
        self.settle().await;
    }

    /// The map has this node serve in a newer epoch.
    async fn serve_in(&mut self, epoch: u64) {
        self.publish(|config| {
            config.epoch = Epoch(epoch);
            config.primary = Some(claim("n1"));
            config.in_sync = BTreeMap::from([(node("n1"), disk("n1"))]);
        })
        .await;
    }

    /// Lets the journal's answers come that were held back, and says how many those are.
    async fn release(&mut self) -> usize {
        let held = self.held.take().unwrap();
        let count = held.len();
        for held in held {
            self.core.handle(held);
        }
        self.settle().await;
        count
    }

    /// Waits until the tables hold everything up to an entry.
    async fn saved(&mut self, epoch: u64, seq: u64) {
        let patience = clock::now() + Duration::from_secs(10);
        while self.marked().await != (Position { epoch: Epoch(epoch), seq: Seq(seq) }) {
            assert!(clock::now() < patience, "{:?}", self.marked().await);
            self.settle().await;
        }
    }

    async fn lines(&mut self) -> Value {
        let call = self.ask("read", &json!({}));
        self.settle().await;
        let at = self.kind("diary").info().methods.iter().position(|it| it.name == "read");
        self.kind("diary").value_to_json(at.unwrap(), &answer(call).unwrap()).unwrap()
    }
}

/// A fenced shard stayed closed until the node started again; and what was not written must neither
/// be taken for its log, nor be remembered as done.
#[actix::test]
async fn a_fenced_shard_forgets_what_was_not_written_and_serves_in_a_later_epoch() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.held = Some(Vec::new());
    let written = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    rig.promise(5).await;
    let mut fenced = Vec::new();
    for (line, key) in [(3, "k3"), (4, "k4")] {
        fenced.push(rig.ask_keyed("write", &json!({ "line": line }), Some(key)));
        rig.settle().await;
    }
    assert_eq!(rig.release().await, 3, "batches of the lane");
    answer(written).unwrap();
    for fenced in fenced {
        let failure = answer(fenced).unwrap_err();
        let unknown = matches!(failure, Failure::Unavailable { outcome: Outcome::Unknown, .. });
        assert!(unknown, "{failure:?}");
    }
    let call = rig.ask("write", &json!({ "line": 9 }));
    rig.settle().await;
    assert!(matches!(answer(call), Err(Failure::NotPrimary { .. })));

    rig.serve_in(6).await;
    assert_eq!(rig.lines().await, json!([1, 2]));
    let again = rig.ask_keyed("write", &json!({ "line": 3 }), Some("k3"));
    rig.settle().await;
    answer(again).unwrap();
    assert_eq!(rig.lines().await, json!([1, 2, 3]), "it had never taken effect");
    // a noop and two lines of epoch 1, a noop and a line of epoch 6
    rig.saved(6, 5).await;
    assert_eq!(rig.stored().await, json!([1, 2, 3]));
}

/// Everything that the journal held was taken for committed when a primary stepped down. With more
/// than one copy the next primary may replace it, and a snapshot cannot give it back.
#[actix::test]
async fn what_no_standby_acknowledged_is_in_the_log_and_in_no_snapshot() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.publish(|config| {
        config.epoch = Epoch(2);
        config.in_sync = ["n1", "n2"].map(|name| (node(name), disk(name))).into();
    })
    .await;
    rig.saved(1, 2).await;
    let call = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    rig.publish(|config| {
        config.epoch = Epoch(3);
        config.primary = Some(claim("n2"));
    })
    .await;
    let failure = answer(call).unwrap_err();
    let unknown = matches!(failure, Failure::Unavailable { outcome: Outcome::Unknown, .. });
    assert!(unknown, "{failure:?}");
    rig.saved(1, 2).await;
    assert_eq!(rig.stored().await, json!([1]));

    rig.held = Some(Vec::new());
    rig.serve_in(4).await;
    let third = rig.ask("write", &json!({ "line": 3 }));
    rig.settle().await;
    rig.release().await;
    answer(third).unwrap();
    assert_eq!(rig.lines().await, json!([1, 2, 3]), "line 2 is in the new primary's log");
    rig.saved(4, 6).await;
    assert_eq!(rig.stored().await, json!([1, 2, 3]), "and committed with it");
}

#[actix::test]
async fn what_the_only_copy_journaled_is_committed_after_its_primary_stepped_down() {
    let mut rig = Rig::new().await;
    rig.write(1).await;
    rig.held = Some(Vec::new());
    let call = rig.ask("write", &json!({ "line": 2 }));
    rig.settle().await;
    rig.publish(|config| {
        config.epoch = Epoch(2);
        config.primary = None;
    })
    .await;
    assert_eq!(rig.release().await, 1);
    assert!(answer(call).is_err(), "it was told before the journal answered");
    rig.saved(1, 3).await;
    assert_eq!(rig.stored().await, json!([1, 2]));
}
