//! States that cannot be made again after a turn that failed.

use std::cell::Cell;

use serde::Deserialize;

use super::*;

thread_local! {
    /// States of the frail do not decode now.
    static BROKEN: Cell<bool> = const { Cell::new(false) };
}

/// Decodes at times.
#[state(version = 1)]
pub(super) struct Frail {
    #[serde(deserialize_with = "at_times")]
    number: u64,
}

fn at_times<'de, D: serde::Deserializer<'de>>(decoder: D) -> Result<u64, D::Error> {
    if BROKEN.get() {
        return Err(serde::de::Error::custom("not now"));
    }
    u64::deserialize(decoder)
}

#[entity(name = "frail")]
impl Frail {
    #[command]
    fn set(&mut self, number: u64) {
        self.number = number;
    }

    #[command]
    fn fail(&mut self) {
        self.number += 1;
        panic!("as asked");
    }

    #[query]
    fn read(&self) -> u64 {
        self.number
    }
}

impl Rig {
    async fn frail(&mut self, key: &str, method: &str, arguments: &Value) -> LocalCall {
        let request = self.request("frail", method, arguments);
        let call = self.send(Request { key: Key::new(key).unwrap(), ..request });
        self.settle().await;
        call
    }

    async fn number(&mut self, key: &str) -> Value {
        let call = self.frail(key, "read", &json!({})).await;
        let kind = self.kind("frail");
        let read = kind.info().method_index_by_name("read").unwrap();
        kind.value_to_json(read, &answer(call).unwrap()).unwrap()
    }
}

impl Rig {
    /// Of a write that is not committed, and a turn that failed after it and could not be undone.
    async fn undone(&mut self) -> (LocalCall, LocalCall) {
        self.held = Some(Vec::new());
        let written = self.frail("first", "set", &json!({ "number": 7 })).await;
        BROKEN.set(true);
        let failed = self.frail("first", "fail", &json!({})).await;
        BROKEN.set(false);
        (written, failed)
    }

    /// What was written is committed.
    async fn commit(&mut self, (written, failed): (LocalCall, LocalCall)) {
        for held in self.held.take().unwrap() {
            self.core.handle(held);
        }
        self.settle().await;
        answer(written).unwrap();
        assert!(matches!(answer(failed), Err(Failure::Version { .. })));
    }
}

/// The entity stayed in memory, since its last write was not committed, and its row left when it
/// was: the next entity that got the row's place was given the state.
#[actix::test]
async fn a_state_that_could_not_be_made_again_is_never_that_of_another_entity() {
    let mut rig = Rig::new().await;
    let undone = rig.undone().await;
    rig.commit(undone).await;
    assert_eq!(rig.number("second").await, json!(0), "it was never written");
    assert_eq!(rig.number("first").await, json!(7));
}

/// A query found the entity in memory, with what the failed turn had changed.
#[actix::test]
async fn a_turn_that_could_not_be_undone_is_shown_to_nobody() {
    let mut rig = Rig::new().await;
    let undone = rig.undone().await;
    let read = rig.frail("first", "read", &json!({})).await;
    rig.commit(undone).await;
    let kind = rig.kind("frail");
    let at = kind.info().method_index_by_name("read").unwrap();
    assert_eq!(kind.value_to_json(at, &answer(read).unwrap()).unwrap(), json!(7));
    assert_eq!(rig.number("first").await, json!(7));
}
