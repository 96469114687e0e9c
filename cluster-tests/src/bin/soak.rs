//! `make soak`: a node with bad neighbours, for a long time. Do the good ones notice, does it grow?
//!
//! ```text
//!   windows   quiet | loud | quiet | loud | ...            20 pairs
//!   always    paced clients write registers: their p99 per window is what counts
//!   loud      a stalled entity, blocking handlers, and 300 callers of an entity that can serve 50
//! ```
//!
//! Passes when the median over the pairs of p99(loud) / p99(quiet) is at most 1.25, and when the
//! node's memory, once warm, stays within 5 % of its median: that of the quiet windows, and that of
//! the loud ones, whose callers cost memory themselves.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use hdrhistogram::Histogram;
use mainstay_cluster_tests::processes::{Cluster, Plan, Question, ask};
use serde_json::json;
use tokio::task::JoinSet;

const PAIRS: u32 = 20;
const RATIO_MAX: f64 = 1.25;
const MEMORY_DRIFT_MAX: f64 = 0.05;
/// Share of the time that counts as warming up.
const WARM_UP: f64 = 0.2;
const NEIGHBOURS: u32 = 8;
const NEIGHBOUR_PAUSE: Duration = Duration::from_millis(8);
const OVERDRIVERS: u32 = 300;

fn main() -> ExitCode {
    let seconds = match seconds() {
        Ok(seconds) => seconds,
        Err(error) => {
            say(&format!("{error:#}\nusage: soak [--seconds 600]"));
            return ExitCode::from(2);
        }
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let soaked = runtime.context("no runtime").and_then(|runtime| runtime.block_on(soak(seconds)));
    match soaked {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            say(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn seconds() -> Result<u64> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.as_slice() {
        [] => Ok(600),
        [flag, seconds] if flag == "--seconds" => {
            let seconds = seconds.parse().context("--seconds takes a whole number")?;
            if seconds < 2 * u64::from(PAIRS) {
                bail!("--seconds is at least {}", 2 * PAIRS)
            }
            Ok(seconds)
        }
        _ => bail!("unknown arguments {arguments:?}"),
    }
}

/// What all clients share.
#[derive(Debug)]
struct Stage {
    client: reqwest::Client,
    at: std::net::SocketAddr,
    loud: AtomicBool,
    spans: Mutex<Histogram<u64>>,
    failures: AtomicU64,
    /// How the last of them ended.
    failed: Mutex<String>,
}

async fn soak(seconds: u64) -> Result<bool> {
    let program = std::env::current_exe()?.with_file_name("testnode");
    if !program.exists() {
        bail!("{} is missing; build the workspace's binaries first", program.display());
    }
    let cluster = Cluster::start(&Plan::new(program, 1)).await?;
    let stage = Arc::new(Stage {
        client: cluster.client().clone(),
        at: cluster.nodes[0].addresses().http,
        loud: AtomicBool::new(false),
        spans: Mutex::new(Histogram::new_with_bounds(1, 60_000_000, 3)?),
        failures: AtomicU64::new(0),
        failed: Mutex::default(),
    });
    let mut clients = JoinSet::new();
    for number in 0..NEIGHBOURS {
        clients.spawn(neighbour(Arc::clone(&stage), number));
    }
    for number in 0..OVERDRIVERS {
        clients.spawn(bad(Arc::clone(&stage), "sleeper", "hot", 20, number));
    }
    for number in 0..4 {
        clients.spawn(bad(Arc::clone(&stage), "sleeper", "stalled", 20_000, number));
        clients.spawn(bad(Arc::clone(&stage), "blocker", "blocked", 500, number));
    }

    let window = Duration::from_secs(seconds) / (2 * PAIRS);
    let began = Instant::now();
    let mut ratios = Vec::new();
    let (mut memory_quiet, mut memory_loud) = (Vec::new(), Vec::new());
    for pair in 1..=PAIRS {
        // The order within a pair alternates, so that a drift of the machine favours neither.
        let loud_first = pair % 2 == 0;
        let first = measure(&stage, &cluster, loud_first, window).await?;
        let second = measure(&stage, &cluster, !loud_first, window).await?;
        let (quiet, loud) = if loud_first { (second, first) } else { (first, second) };
        let ratio = loud.p99.as_secs_f64() / quiet.p99.as_secs_f64();
        say(&format!(
            "{pair:>2} of {PAIRS}   p99 quiet {:>9.2?}  loud {:>9.2?}  ratio {ratio:.2}   \
             memory quiet {:.1}  loud {:.1} MiB",
            quiet.p99, loud.p99, quiet.memory, loud.memory
        ));
        ratios.push(ratio);
        if began.elapsed().as_secs_f64() >= WARM_UP * f64::from(u32::try_from(seconds)?) {
            memory_quiet.push(quiet.memory);
            memory_loud.push(loud.memory);
        }
    }
    clients.shutdown().await;
    let drift = drift(&mut memory_quiet)?.max(drift(&mut memory_loud)?);
    Ok(verdict(median(&mut ratios)?, drift, &stage))
}

fn verdict(ratio: f64, drift: f64, stage: &Stage) -> bool {
    let failures = stage.failures.load(Ordering::Relaxed);
    let good = ratio <= RATIO_MAX && drift <= MEMORY_DRIFT_MAX && failures == 0;
    say(&format!(
        "{}: median p99 ratio {ratio:.2} (at most {RATIO_MAX}), memory within {:.1} % of its \
         median (at most {} %), neighbours' failures {failures} {}",
        if good { "passed" } else { "FAILED" },
        drift * 100.0,
        MEMORY_DRIFT_MAX * 100.0,
        stage.failed.lock().unwrap_or_else(PoisonError::into_inner),
    ));
    good
}

/// How far the values stray from their median, as a part of it.
fn drift(values: &mut [f64]) -> Result<f64> {
    let middle = median(values)?;
    Ok(values.iter().map(|at| (at / middle - 1.0).abs()).fold(0.0, f64::max))
}

/// What one window showed.
struct Window {
    p99: Duration,
    /// The node's resident memory at its end, in MiB.
    memory: f64,
}

/// The neighbours' p99 over one window, and the memory at its end.
async fn measure(stage: &Stage, cluster: &Cluster, loud: bool, window: Duration) -> Result<Window> {
    stage.loud.store(loud, Ordering::Relaxed);
    // The change itself is not measured.
    tokio::time::sleep(window / 5).await;
    stage.spans.lock().unwrap_or_else(PoisonError::into_inner).reset();
    tokio::time::sleep(window * 4 / 5).await;
    let spans = stage.spans.lock().unwrap_or_else(PoisonError::into_inner);
    let p99 = Duration::from_micros(spans.value_at_quantile(0.99).max(1));
    let resident = cluster.nodes[0].resident_bytes().context("the node ended")?;
    Ok(Window { p99, memory: mebibytes(resident) })
}

/// Writes registers at its own pace and never does anybody harm.
async fn neighbour(stage: Arc<Stage>, number: u32) {
    for turn in 0_u32.. {
        let key = format!("r-{number}-{}", turn % 32);
        let question = Question::new("register", &key, "set", json!({ "value": turn }));
        let began = Instant::now();
        match ask(&stage.client, stage.at, &question).await {
            Ok(answer) if answer.status == 200 => {
                let micros = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
                let mut spans = stage.spans.lock().unwrap_or_else(PoisonError::into_inner);
                spans.saturating_record(micros);
            }
            other => {
                stage.failures.fetch_add(1, Ordering::Relaxed);
                let text = other.map_or_else(|error| format!("{error:#}"), |answer| answer.text());
                *stage.failed.lock().unwrap_or_else(PoisonError::into_inner) = text;
            }
        }
        tokio::time::sleep(NEIGHBOUR_PAUSE).await;
    }
}

/// Calls an entity that takes `millis` for each call, without pause while it is loud, except the
/// one that a refusal asks for.
async fn bad(stage: Arc<Stage>, kind: &'static str, key: &'static str, millis: u64, number: u32) {
    let method = if kind == "blocker" { "block" } else { "sleep" };
    let question = Question::new(kind, key, method, json!({ "millis": millis }))
        .deadline(Duration::from_secs(2));
    tokio::time::sleep(Duration::from_millis(u64::from(number))).await;
    loop {
        if !stage.loud.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        }
        let pause = match ask(&stage.client, stage.at, &question).await {
            Ok(answer) => answer.body["retry_after_ms"].as_u64().unwrap_or(1),
            Err(_) => 50,
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}

fn median(values: &mut [f64]) -> Result<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().context("nothing was measured")
}

#[expect(clippy::cast_precision_loss, reason = "for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

#[expect(clippy::print_stdout, reason = "this program's figures are its output")]
fn say(text: &str) {
    println!("{text}");
}
