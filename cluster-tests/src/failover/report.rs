//! Percentiles of the samples, by kind of fault and by stage, and how they are spread.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::{Kind, Sample};

/// A stage of a failover, and when a sample reached it.
type Stage = (&'static str, fn(&Sample) -> Option<u64>);

const STAGES: [Stage; 3] = [
    ("detected", |sample| sample.detected),
    ("promoted", |sample| sample.promoted),
    ("first write", |sample| Some(sample.written)),
];

/// Milliseconds of one bar of the plot.
const BAR_MS: u64 = 25;
/// Characters of the longest bar.
const BAR_WIDTH: usize = 48;

/// The samples of one kind of fault.
struct Fault<'s> {
    name: String,
    samples: Vec<&'s Sample>,
}

impl Fault<'_> {
    /// How long each sample took to a stage, in microseconds, shortest first.
    fn spans(&self, reached: fn(&Sample) -> Option<u64>) -> Vec<u64> {
        let mut spans: Vec<u64> = self.samples.iter().filter_map(|s| reached(s)).collect();
        spans.sort_unstable();
        spans
    }
}

/// The samples by kind of fault. Without a promotion, a shard had just left the victim as planned, and
/// its sample says nothing.
fn by_fault(samples: &[Sample]) -> Vec<Fault<'_>> {
    let mut faults = Vec::new();
    for (kind, what) in [(Kind::Kill, "kill -9"), (Kind::Freeze, "SIGSTOP")] {
        for (leader, whose) in [(false, ""), (true, " of the leader's node")] {
            let is_of = |s: &&Sample| s.promoted.is_some() && s.kind == kind && s.leader == leader;
            let samples: Vec<_> = samples.iter().filter(is_of).collect();
            if !samples.is_empty() {
                faults.push(Fault { name: format!("{what}{whose}"), samples });
            }
        }
    }
    faults
}

/// The table: milliseconds from the fault on.
pub fn table(samples: &[Sample]) -> String {
    let mut lines = vec![format!(
        "{:<28} {:<12} {:>6} {:>7} {:>8} {:>8} {:>8} {:>8}",
        "fault", "until", "faults", "samples", "p50 ms", "p90 ms", "p99 ms", "max ms"
    )];
    for fault in by_fault(samples) {
        let faults: BTreeSet<usize> = fault.samples.iter().map(|sample| sample.fault).collect();
        for (stage, reached) in STAGES {
            let spans = fault.spans(reached);
            if !spans.is_empty() {
                lines.push(row(&fault.name, stage, faults.len(), &spans));
            }
        }
    }
    lines.join("\n")
}

/// How the first acknowledged writes are spread: a bar for each 25 ms in which there is one.
pub fn plot(samples: &[Sample]) -> String {
    let mut lines = Vec::new();
    for fault in by_fault(samples) {
        let mut bars: BTreeMap<u64, usize> = BTreeMap::new();
        for span in fault.spans(|sample| Some(sample.written)) {
            *bars.entry(span / 1_000 / BAR_MS).or_default() += 1;
        }
        let most = bars.values().copied().max().unwrap_or(1);
        lines.push(format!("first write after {}, samples", fault.name));
        for (bar, count) in bars {
            let (from, upto) = (bar * BAR_MS, (bar + 1) * BAR_MS);
            let length = "#".repeat((count * BAR_WIDTH).div_ceil(most));
            lines.push(format!("{from:>6} to {upto:>5} ms  {length} {count}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(kind: Kind, leader: bool, written_ms: u64) -> Sample {
        let micros = written_ms * 1_000;
        let (detected, promoted) = (Some(micros / 3), Some(micros / 2));
        let victim = "n1".to_owned();
        let (fault, shard, tries) = (1, 0, 1);
        Sample { fault, kind, victim, leader, shard, detected, promoted, written: micros, tries }
    }

    #[test]
    fn the_plot_has_a_bar_for_each_span_in_which_a_write_was_acknowledged() {
        let mut samples: Vec<_> = [80, 90, 95, 110].map(|ms| sample(Kind::Kill, false, ms)).into();
        samples.push(sample(Kind::Freeze, true, 450));
        samples.push(Sample { promoted: None, ..sample(Kind::Kill, false, 5_000) });

        let plotted = plot(&samples);

        let bar = |count: usize| "#".repeat((count * BAR_WIDTH).div_ceil(3));
        let expected = format!(
            "first write after kill -9, samples\n    75 to   100 ms  {} 3\n   100 to   125 ms  {} 1\n\
             first write after SIGSTOP of the leader's node, samples\n   450 to   475 ms  {} 1",
            bar(3),
            bar(1),
            bar(3)
        );
        assert_eq!(plotted, expected);
        assert_eq!(table(&samples).lines().count(), 1 + 2 * STAGES.len());
    }
}
