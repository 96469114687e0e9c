//! Rules of a turn, seen from outside.

use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::Question;
use serde_json::json;

use super::{Running, get, plan, set, start};

fn tick(fatal: bool) -> Question {
    Question::new("bomb", "b", "tick", json!({ "fatal": fatal }))
}

#[tokio::test]
async fn a_panic_leaves_the_state_as_it_was_and_the_entity_alive() {
    let cluster = start(&plan(1)).await;
    assert_eq!(cluster.answer(0, &tick(false)).await.value().unwrap(), 1);
    assert_eq!(cluster.answer(0, &tick(true)).await.code(), "MS-2108");
    assert_eq!(cluster.answer(0, &tick(false)).await.value().unwrap(), 2);
}

#[tokio::test]
async fn an_input_that_panics_three_times_is_quarantined_and_no_other() {
    let cluster = start(&plan(1)).await;
    for _ in 0..3 {
        cluster.answer(0, &tick(true).key("poison")).await;
    }
    assert_eq!(cluster.answer(0, &tick(true).key("poison")).await.code(), "MS-2109");
    assert_eq!(cluster.answer(0, &tick(false)).await.value().unwrap(), 1);
}

/// Fifty calls of entities that have nothing to do with anything else.
async fn neighbours(cluster: &Running) -> Instant {
    for key in 0..50 {
        cluster.answer(0, &set(&format!("r-{key}"), key)).await.value().unwrap();
    }
    Instant::now()
}

#[tokio::test]
async fn a_sleeping_entity_keeps_its_own_callers_waiting_and_nobody_else() {
    let cluster = start(&plan(1)).await;
    let began = Instant::now();
    let quiet = neighbours(&cluster).await - began;
    // Long beside what the neighbours take when nobody sleeps, however slow the machine is.
    let nap = Duration::from_secs(1) + 4 * quiet;
    let busy = |kind, method| {
        Question::new(kind, "s", method, json!({ "millis": nap.as_millis() }))
            .deadline(nap + Duration::from_secs(10))
    };
    let (sleep, block) = (busy("sleeper", "sleep"), busy("blocker", "block"));
    let ended = async |question| {
        assert_eq!(cluster.answer(0, question).await.value().unwrap(), 1);
        Instant::now()
    };
    let served = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        neighbours(&cluster).await
    };
    let touch = Question::new("sleeper", "s", "touch", json!({})).deadline(sleep.deadline);
    let touched = async {
        // One that comes before the sleep finds an entity that has not slept yet.
        while cluster.answer(0, &touch).await.value().unwrap() == 0 {}
        Instant::now()
    };
    let began = Instant::now();
    let (slept, blocked, served, touched) =
        tokio::join!(ended(&sleep), ended(&block), served, touched);
    assert!(touched - began >= nap, "touched after {:?}", touched - began);
    assert!(served < slept && served < blocked, "neighbours of those that sleep for {nap:?} wait");
}

#[tokio::test]
async fn expired_work_is_never_executed() {
    let cluster = start(&plan(1)).await;
    let sleep = Question::new("sleeper", "s", "sleep", json!({ "millis": 1_000 }));
    let late = Question::new("sleeper", "s", "sleep", json!({ "millis": 0 }))
        .deadline(Duration::from_millis(200));
    let (first, second) = tokio::join!(cluster.answer(0, &sleep), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.answer(0, &late).await
    });
    assert_eq!(first.value().unwrap(), 1);
    assert_eq!((second.status, second.code()), (504, "MS-2102"), "{}", second.text());
    let touch = Question::new("sleeper", "s", "touch", json!({}));
    assert_eq!(cluster.answer(0, &touch).await.value().unwrap(), 1, "one nap, not two");
}

#[tokio::test]
async fn a_full_mailbox_refuses_those_who_will_not_wait() {
    let cluster = start(&plan(1)).await;
    let sleep = Question::new("sleeper", "s", "sleep", json!({ "millis": 1_000 }));
    let touch = Question::new("sleeper", "s", "touch", json!({})).header("MS-Pressure", "refuse");
    let (slept, answers) = tokio::join!(cluster.answer(0, &sleep), async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asks = (0..200).map(|_| cluster.answer(0, &touch));
        futures_util::future::join_all(asks).await
    });
    assert_eq!(slept.status, 200);
    let refused = answers.iter().filter(|answer| answer.code() == "MS-2101").count();
    let served = answers.iter().filter(|answer| answer.status == 200).count();
    assert_eq!(refused + served, 200);
    assert!((1..=64).contains(&served), "{served} were let into a mailbox of 64");
}

#[tokio::test]
async fn a_call_cycle_is_refused_at_once() {
    let cluster = start(&plan(3)).await;
    let deadline = Duration::from_secs(60);
    let circle = Question::new("relay", "a", "circle", json!({ "via": "b", "depth": 5 }));
    let began = Instant::now();
    let answer = cluster.answer(0, &circle.deadline(deadline)).await;
    assert_eq!(answer.value().unwrap(), true, "the cycle was seen");
    assert!(began.elapsed() < deadline / 10, "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_call_from_a_turn_reaches_an_entity_on_another_node() {
    let cluster = start(&plan(3)).await;
    for item in 0..12_u64 {
        let list = format!("list-{item}");
        let body = json!({ "list": list, "item": item });
        let relay = Question::new("relay", &format!("r-{item}"), "append", body).key("once");
        assert_eq!(cluster.value(0, &relay).await, 1);
        assert_eq!(cluster.value(1, &relay).await, 1, "repeated, not done again");
        assert_eq!(cluster.items(&list).await, [item]);
    }
    assert_eq!(cluster.value(0, &get("untouched")).await, 0);
}
