//! Kinds by name and id, and what is wrong with them.

use std::sync::Arc;

use mainstay::entity::host::KindHost;
use mainstay::entity::registry::{Problem, Registry};
use mainstay::entity::{
    Command, Cx, Entity, HandleCommand, KindOptions, Methods, Never, Ref, State, TypedKind,
};
use mainstay::protocol::control::GroupingDigest;
use mainstay::protocol::id::{Key, KindId};
use mainstay::{data, state};

use crate::bank::{Account, Counter};

#[test]
fn kinds_are_found_by_name_and_by_id() {
    let registry = Registry::new().entity::<Counter>().entity::<Account>().build().unwrap();
    assert_eq!(registry.kind_by_name("account").unwrap().info().id, KindId::of("account"));
    assert_eq!(registry.kind(KindId::of("counter")).unwrap().info().name, "counter");
    assert!(registry.kind_by_name("nobody").is_none());
    let names: Vec<_> = registry.kinds().iter().map(|kind| kind.info().name).collect();
    assert_eq!(names, ["account", "counter"]);
}

/// Stored clusters hold these digests: a change here keeps every upgraded node out.
#[test]
fn grouping_is_pinned() {
    let registry = Registry::new().entity::<Counter>().entity::<Account>().build().unwrap();
    let grouping = registry.grouping();
    assert_eq!(grouping["counter"], GroupingDigest(GOLDEN_WHOLE_KEY));
    assert_eq!(grouping["account"], GroupingDigest(GOLDEN_FIRST_SEGMENT));
}

const GOLDEN_WHOLE_KEY: u64 = 5_252_614_285_880_112_672;
const GOLDEN_FIRST_SEGMENT: u64 = 18_324_147_744_172_639_443;

#[test]
fn affinity_is_what_group_by_says() {
    let key = Key::new("acme/42").unwrap();
    assert_eq!(TypedKind::<Account>::new().affinity(&key), "acme");
    assert_eq!(TypedKind::<Counter>::new().affinity(&key), "acme/42");
}

#[state(version = 1)]
struct Faulty;

#[data]
struct Twice;

impl Command<Faulty> for Twice {
    const NAME: &'static str = "twice";
    type Value = ();
    type Error = Never;
}

impl HandleCommand<Twice> for Faulty {
    fn handle(&mut self, _: &mut Cx<'_>, _: Twice) -> Result<(), Never> {
        Ok(())
    }
}

impl Entity for Faulty {
    const KIND: &'static str = "events";
    type Ref = Ref<Self>;

    fn options() -> KindOptions {
        KindOptions { mailbox: 0, ..KindOptions::default() }
    }

    fn methods() -> Methods<Self> {
        Methods::new().command::<Twice>().blocking::<Twice>()
    }
}

#[test]
fn everything_wrong_is_reported_at_once() {
    let registry = Registry::new().entity::<Faulty>().entity::<Counter>().entity::<Counter>();
    let error = registry.build().unwrap_err();
    let owned = str::to_owned;
    assert_eq!(
        error.problems,
        [
            Problem::Reserved { kind: owned("events") },
            Problem::Method {
                kind: owned("events"),
                method: owned("twice"),
                other: owned("twice")
            },
            Problem::Option { kind: owned("events"), option: "mailbox" },
            Problem::Kind { kind: owned("counter"), other: owned("counter") },
        ]
    );
    assert_eq!(
        error.to_string(),
        "kind \"events\" has a reserved name; \
         method \"twice\" of kind \"events\" has the id of method \"twice\"; \
         option mailbox of kind \"events\" is zero; \
         kind \"counter\" has the id of kind \"counter\""
    );
}

#[test]
fn a_bad_name_is_refused() {
    #[derive(Default, serde::Serialize, serde::Deserialize)]
    struct Loud;
    impl State for Loud {
        const VERSION: u16 = 1;
    }
    impl Entity for Loud {
        const KIND: &'static str = "LOUD";
        type Ref = Ref<Self>;
        fn methods() -> Methods<Self> {
            Methods::new()
        }
    }
    let kind: Arc<dyn KindHost> = TypedKind::<Loud>::shared();
    let error = Registry::new().host(kind).build().unwrap_err();
    assert!(matches!(&error.problems[..], [Problem::Name(_)]), "{error}");
}
