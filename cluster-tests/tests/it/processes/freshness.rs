//! Queries that other copies than the primary answer, and those that only a round settles.

use std::time::{Duration, Instant};

use mainstay_cluster_tests::processes::{Plan, Question};

use super::{Running, SOON, get, plan, set, start};

/// Three nodes that hold every shard, two of which must have a write.
fn copied() -> Plan {
    plan(3).set("cluster.standbys", 2)
}

const NAMES: [&str; 3] = ["n1", "n2", "n3"];
/// Registers, in shards of different primaries.
const REGISTERS: i64 = 6;

fn register(number: i64) -> String {
    format!("register-{number}")
}

fn at_least(name: &str, token: &str) -> Question {
    get(name).header("MS-Freshness", format!("at-least={token}"))
}

fn max_staleness(name: &str, millis: u64) -> Question {
    get(name).header("MS-Freshness", format!("max-staleness={millis}ms"))
}

impl Running {
    /// Writes a value through these nodes, until it is acknowledged: its token.
    async fn write(&self, through: &[usize], name: &str, value: i64) -> String {
        let question = set(name, value).key(format!("set-{value}")).deadline(SOON / 10);
        let began = Instant::now();
        for node in through.iter().cycle() {
            if let Ok(answer) = self.ask(*node, &question).await
                && answer.status == 200
            {
                return answer.token.expect("an answer says where its entity stood");
            }
            assert!(began.elapsed() < SOON, "{question} is not acknowledged");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        unreachable!("somebody is asked");
    }

    /// Asks one node until it answers: the value, and who served it. Nothing but the value that was
    /// written last may be shown; a refusal may.
    async fn shows(&self, node: usize, question: &Question, expected: i64) -> String {
        let began = Instant::now();
        loop {
            let last = match self.ask(node, question).await {
                Ok(answer) if answer.status == 200 => {
                    assert_eq!(answer.value().unwrap(), expected, "{question} at {node}");
                    return answer.served_by.unwrap_or_default();
                }
                Ok(answer) => answer.text(),
                Err(error) => format!("{error:#}"),
            };
            assert!(began.elapsed() < SOON, "{question} at {node} is not answered: {last}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Running {
    /// Asks one node until it answers from its own copy.
    async fn shown_at_home(&self, node: usize, question: &Question, expected: i64) {
        let began = Instant::now();
        while self.shows(node, question, expected).await != NAMES[node] {
            assert!(began.elapsed() < SOON, "{question} is not answered at {node} itself");
        }
    }
}

#[tokio::test]
async fn what_was_written_through_one_node_is_read_with_its_token_at_every_other() {
    let mut cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0, 1, 2], 3, SOON).await.unwrap();
    let (mut reads, mut at_home) = (0, 0);
    let mut tokens = Vec::new();
    for value in 0..30 {
        let (name, through) = (register(value % REGISTERS), usize::try_from(value % 3).unwrap());
        let token = cluster.write(&[through], &name, value).await;
        for (node, asked) in NAMES.into_iter().enumerate() {
            let by = cluster.shows(node, &at_least(&name, &token), value).await;
            (reads, at_home) = (reads + 1, at_home + u32::from(by == asked));
        }
        tokens.push((name, token, value));
    }
    assert!(at_home > reads / 2, "{at_home} of {reads} were served by the node that was asked");

    cluster.nodes[2].kill();
    for value in 30..60 {
        let (name, through) = (register(value % REGISTERS), usize::try_from(value % 2).unwrap());
        let token = cluster.write(&[through, 1 - through], &name, value).await;
        for node in 0..2 {
            cluster.shows(node, &at_least(&name, &token), value).await;
        }
        tokens.push((name, token, value));
    }
    // It is asked before it has caught up.
    cluster.restart(2).await.unwrap();
    for (name, token, value) in &tokens[60 - usize::try_from(REGISTERS).unwrap()..] {
        cluster.shows(2, &at_least(name, token), *value).await;
    }
    let (_, page) = cluster.admin(0, "/metrics").await.unwrap();
    let copy = |line: &&str| {
        line.starts_with("mainstay_queries_total") && line.contains("copy=\"standby\"")
    };
    let shown = page.lines().filter(copy).filter(|line| !line.ends_with(" 0")).count();
    assert!(shown > 0, "standbys of n1 served none");
}

#[tokio::test]
async fn a_strict_query_shows_the_newest_state_through_every_node() {
    let cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0, 1, 2], 3, SOON).await.unwrap();
    for value in 0..30 {
        let name = register(value % REGISTERS);
        cluster.write(&[usize::try_from(value % 3).unwrap()], &name, value).await;
        for node in 0..3 {
            let strict = get(&name).header("MS-Freshness", "strict");
            cluster.shows(node, &strict, value).await;
        }
    }
}

/// The place of a token's entry.
fn seq(token: &str) -> u64 {
    token.rsplit('.').next().unwrap().parse().unwrap()
}

fn epoch(token: &str) -> u64 {
    token.split('.').nth(1).unwrap().parse().unwrap()
}

impl Running {
    /// What a node answers to a query: the version and the token.
    async fn version(&self, node: usize, question: &Question) -> (u64, String) {
        let began = Instant::now();
        loop {
            if let Ok(answer) = self.ask(node, question).await
                && answer.status == 200
            {
                return (answer.body["version"].as_u64().unwrap(), answer.token.unwrap());
            }
            assert!(began.elapsed() < SOON, "{question} is not answered");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// Nor where its shard stands, nor what a failover adds to the log, is the version of an entity.
#[tokio::test]
async fn a_standby_tells_the_version_that_a_condition_can_name() {
    let mut cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0, 1, 2], 3, SOON).await.unwrap();
    let mut written = Vec::new();
    for value in 0..2 * REGISTERS {
        written.push((register(value), cluster.write(&[0], &register(value), value).await));
    }
    for (name, token) in &written {
        for node in [0, 1, 2] {
            let shown = cluster.version(node, &at_least(name, token)).await;
            assert_eq!(shown.0, seq(token), "{name} at {node}");
            for _ in 0..2 {
                let aged = cluster.version(node, &max_staleness(name, 60_000)).await;
                assert_eq!((aged.0, seq(&aged.1)), (seq(token), seq(token)), "{name} at {node}");
            }
        }
    }

    cluster.nodes[2].kill();
    let mut later = 0;
    for (name, before) in &written {
        let (version, token) = cluster.version(0, &get(name)).await;
        assert_eq!(version, seq(before), "{name} was not written");
        later += u32::from(epoch(&token) > epoch(before));
        for node in [0, 1] {
            let (version, _) = cluster.version(node, &at_least(name, &token)).await;
            assert_eq!(version, seq(before), "{name} at {node}");
        }
        let conditional = || set(name, 100).header("If-Match", format!("\"{version}\""));
        let done = cluster.answer(0, &conditional()).await;
        assert_eq!(done.status, 200, "{}", done.text());
        let refused = cluster.answer(1, &conditional()).await;
        assert_eq!((refused.status, refused.code()), (412, "MS-2111"), "{}", refused.text());
    }
    assert!(later > 0, "n3 was the primary of some");
}

/// SIGSTOP is what a cut looks like to the others: nobody answers, and nobody hangs up.
#[tokio::test]
async fn a_node_that_hears_of_no_primary_refuses_what_may_be_too_old() {
    let cluster = start(&copied()).await;
    cluster.cluster.in_sync(&[0, 1, 2], 3, SOON).await.unwrap();
    let mut elsewhere = None;
    for number in 0..32 {
        let name = register(number);
        if cluster.served_by(0, &get(&name)).await != NAMES[0] {
            elsewhere = Some(name);
            break;
        }
    }
    let name = elsewhere.expect("n1 is not the primary of every shard");
    let token = cluster.write(&[0], &name, 7).await;
    let hour = max_staleness(&name, 3_600_000);
    assert_ne!(cluster.shows(0, &hour, 7).await, NAMES[0], "nobody has asked the primary yet");
    cluster.shows(0, &at_least(&name, &token), 7).await;
    cluster.shown_at_home(0, &hour, 7).await;

    for node in [1, 2] {
        cluster.nodes[node].signal("STOP").unwrap();
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    let young = max_staleness(&name, 250).deadline(Duration::from_secs(1));
    for _ in 0..3 {
        let refused = cluster.answer(0, &young).await;
        assert_eq!((refused.status, refused.code()), (503, "MS-2112"), "{}", refused.text());
    }
    cluster.shown_at_home(0, &hour, 7).await;
    cluster.shown_at_home(0, &at_least(&name, &token), 7).await;
    for node in [1, 2] {
        cluster.nodes[node].signal("CONT").unwrap();
    }
    cluster.shows(0, &young, 7).await;
    cluster.write(&[0, 1, 2], &name, 8).await;
    cluster.shows(0, &max_staleness(&name, 0), 8).await;
}
