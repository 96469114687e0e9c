//! The parts of the suite, each beside its floor.

use std::sync::Arc;
use std::time::{Duration, Instant};

use mainstay::call::CallPort;
use mainstay::client::Ref;
use mainstay::client::remote::Client;
use mainstay::router::kinds::KindTable;

use crate::entity::CounterRef;
use crate::floors::{self, per_second};
use crate::harness::{Row, interleave, median};
use crate::nodes::{self, Local, Remote};

/// One measurement.
const SPAN: Duration = Duration::from_millis(800);
/// Entities that asks are spread over.
const ENTITIES: usize = 10_000;

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()
}

#[derive(Clone, Copy)]
enum What {
    Query,
    Command,
}

/// Calls per second of `callers` tasks over the first `entities` counters.
async fn calls(
    port: Arc<dyn CallPort>,
    callers: usize,
    entities: usize,
    what: What,
) -> anyhow::Result<f64> {
    let started = Instant::now();
    let counters = |caller: usize| {
        let mut at = caller * 7919;
        std::iter::from_fn(move || {
            at = (at + 7919) % entities;
            (started.elapsed() < SPAN).then_some(at)
        })
    };
    let done = spread(port, callers, counters, what).await?;
    Ok(per_second(done, started))
}

/// Lets each of `callers` tasks call its counters, one after the other; the calls of all.
async fn spread<I: Iterator<Item = usize> + Send + 'static>(
    port: Arc<dyn CallPort>,
    callers: usize,
    counters: impl Fn(usize) -> I,
    what: What,
) -> anyhow::Result<u64> {
    let callers: Vec<_> = (0..callers)
        .map(|caller| {
            let (port, counters) = (Arc::clone(&port), counters(caller));
            tokio::spawn(async move {
                let mut done = 0_u64;
                for at in counters {
                    let counter = CounterRef::from(Ref::new(Arc::clone(&port), &format!("c{at}")));
                    let _value = match what {
                        What::Query => counter.get().await?,
                        What::Command => counter.add(1).await?.value,
                    };
                    done += 1;
                }
                anyhow::Ok(done)
            })
        })
        .collect();
    let mut done = 0;
    for caller in callers {
        done += caller.await??;
    }
    Ok(done)
}

/// Local ask by entity id, callers on a runtime of their own.
pub(crate) fn local_ask(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let node = Local::start()?;
    let runtime = runtime()?;
    let port = node.cluster.port();
    let mut rows = Vec::new();
    for callers in [1, 64, 256] {
        let ask = || calls(Arc::clone(&port), callers, ENTITIES, What::Query);
        runtime.block_on(ask())?; // activates what is asked
        let (ours, theirs) = interleave(
            rounds,
            || runtime.block_on(ask()),
            || Ok(runtime.block_on(floors::mpsc_oneshot(callers, ENTITIES, SPAN))),
        )?;
        rows.push(Row {
            what: format!("local query by id, {callers} callers over {ENTITIES} entities"),
            unit: "ops/s",
            ours,
            against: "tokio task + mpsc(64) + oneshot, by index",
            theirs,
        });
    }
    Ok(rows)
}

/// Remote ask between two processes on loopback.
pub(crate) fn remote_ask(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let remote = Remote::start()?;
    let runtime = runtime()?;
    let kinds = KindTable::of(nodes::registry().kinds());
    let client = runtime.block_on(Client::connect(std::slice::from_ref(&remote.addr), kinds))?;
    let port = client.port();
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    listener.set_nonblocking(true)?;
    let echo = listener.local_addr()?;
    let floor = std::thread::spawn(move || -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            // Ends with the process.
            floors::tcp_echo(listener).await
        })?;
        Ok(())
    });
    let mut rows = Vec::new();
    for outstanding in [1, 64, 1024] {
        let ask = || calls(Arc::clone(&port), outstanding, ENTITIES, What::Query);
        runtime.block_on(ask())?;
        let (ours, theirs) = interleave(
            rounds,
            || runtime.block_on(ask()),
            || Ok(runtime.block_on(floors::tcp_ask(echo, outstanding, SPAN))?),
        )?;
        rows.push(Row {
            what: format!("remote query by id, {outstanding} outstanding, two processes"),
            unit: "ops/s",
            ours,
            against: "100-byte echo over one connection, no decoding, another thread",
            theirs,
        });
    }
    anyhow::ensure!(!floor.is_finished(), "the echo floor ended early");
    Ok(rows)
}

/// Durable command on one node, one copy.
pub(crate) fn durable_command(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let node = Local::start()?;
    let runtime = runtime()?;
    let port = node.cluster.port();
    let mut rows = Vec::new();
    for callers in [1, 64, 256] {
        let (ours, theirs) = interleave(
            rounds,
            || runtime.block_on(calls(Arc::clone(&port), callers, ENTITIES, What::Command)),
            || Ok(floors::append_log(callers, SPAN)?),
        )?;
        rows.push(Row {
            what: format!("durable command, one copy, {callers} callers"),
            unit: "ops/s",
            ours,
            against: "append-only file, one fdatasync per batch of as many",
            theirs,
        });
    }
    Ok(rows)
}

/// First query of entities that are on disk and not in memory.
pub(crate) fn activation(rounds: usize) -> anyhow::Result<Vec<Row>> {
    let runtime = runtime()?;
    let mut node = Local::start()?;
    runtime.block_on(write_each(node.cluster.port(), ENTITIES))?;
    let (ours, theirs) = interleave(
        rounds,
        || {
            node.restart()?;
            runtime.block_on(query_each(node.cluster.port(), ENTITIES))
        },
        || floors::redb_reads(SPAN),
    )?;
    Ok(vec![Row {
        what: format!("activation from disk, {ENTITIES} entities once, 64 callers"),
        unit: "ops/s",
        ours,
        against: "redb point reads on one thread",
        theirs,
    }])
}

async fn write_each(port: Arc<dyn CallPort>, entities: usize) -> anyhow::Result<()> {
    each(port, entities, What::Command).await.map(drop)
}

async fn query_each(port: Arc<dyn CallPort>, entities: usize) -> anyhow::Result<f64> {
    let started = Instant::now();
    let done = each(port, entities, What::Query).await?;
    Ok(per_second(done, started))
}

/// Calls each of the entities once, 64 at a time.
async fn each(port: Arc<dyn CallPort>, entities: usize, what: What) -> anyhow::Result<u64> {
    spread(port, 64, |caller| (caller..entities).step_by(64), what).await
}

/// Resident bytes per idle entity, beside a tokio task with a channel.
pub(crate) fn idle_memory(_rounds: usize) -> anyhow::Result<Vec<Row>> {
    const MANY: usize = 200_000;
    let node = Local::start()?;
    let runtime = runtime()?;
    runtime.block_on(query_each(node.cluster.port(), 1_000))?;
    let before = resident_bytes()?;
    runtime.block_on(query_each(node.cluster.port(), MANY))?;
    let entity = (resident_bytes()? - before) / f64::from(u32::try_from(MANY - 1_000)?);
    let before = resident_bytes()?;
    let floor = runtime.block_on(floors::idle_tasks(MANY));
    let task = (resident_bytes()? - before) / f64::from(u32::try_from(MANY)?);
    drop(floor);
    let row = Row {
        what: format!("resident memory per idle entity, {MANY} never written"),
        unit: "B",
        ours: vec![median(&[entity])],
        against: "tokio task + mpsc(16)",
        theirs: vec![task],
    };
    Ok(vec![row])
}

/// Resident bytes of this process.
fn resident_bytes() -> anyhow::Result<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages = statm.split_whitespace().nth(1).unwrap_or_default();
    Ok(pages.parse::<f64>()? * 4096.0)
}
