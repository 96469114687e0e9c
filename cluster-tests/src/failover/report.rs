//! Percentiles of the samples, by kind of fault and by stage.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{Kind, Sample};

/// A stage of a failover, and when a sample reached it.
type Stage = (&'static str, fn(&Sample) -> Option<u64>);

const STAGES: [Stage; 3] = [
    ("detected", |sample| sample.detected),
    ("promoted", |sample| sample.promoted),
    ("first write", |sample| Some(sample.written)),
];

/// The table: milliseconds from the fault on. Without a promotion, a shard had just left the victim
/// as planned, and its sample says nothing.
pub fn table(samples: &[Sample]) -> String {
    let promoted = |sample: &&Sample| sample.promoted.is_some();
    let mut lines = vec![format!(
        "{:<28} {:<12} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "fault", "until", "faults", "samples", "p50 ms", "p90 ms", "p99 ms", "max ms"
    )];
    for (kind, name) in [(Kind::Kill, "kill -9"), (Kind::Freeze, "SIGSTOP")] {
        for (leader, of) in [(false, ""), (true, " of the leader's node")] {
            let of_kind = samples.iter().filter(promoted);
            let of_kind: Vec<&Sample> =
                of_kind.filter(|s| s.kind == kind && s.leader == leader).collect();
            let faults: BTreeSet<usize> = of_kind.iter().map(|sample| sample.fault).collect();
            for (stage, reached) in STAGES {
                let mut spans: Vec<u64> = of_kind.iter().filter_map(|s| reached(s)).collect();
                spans.sort_unstable();
                if !spans.is_empty() {
                    lines.push(row(&format!("{name}{of}"), stage, faults.len(), &spans));
                }
            }
        }
    }
    lines.join("\n")
}

/// One line; the spans are sorted.
fn row(fault: &str, stage: &str, faults: usize, spans: &[u64]) -> String {
    let at = |percent: usize| {
        // The smallest span that this many percent do not exceed.
        let rank = (spans.len() * percent).div_ceil(100).max(1);
        Duration::from_micros(spans[rank - 1]).as_secs_f64() * 1e3
    };
    let (p50, p90, p99, max) = (at(50), at(90), at(99), at(100));
    let samples = spans.len();
    format!(
        "{fault:<28} {stage:<12} {faults:>6} {samples:>7} {p50:>8.0} {p90:>8.0} {p99:>8.0} {max:>8.0}"
    )
}
