//! What the copies cost and how long it took to do without a node, as the nodes count it
//! themselves: bytes on the wire, what entries carry of states, and a failover in its parts.

use serde_json::{Value, json};

use super::nodes::Series;
use super::output::{grouped, millis};

/// The parts of a failover, as the metrics name them and as people do.
const PHASES: [(&str, &str); 3] = [
    ("decide", "noticed and decided"),
    ("promote", "its standby read"),
    ("serve", "promise over and answering"),
];

/// The sums of what nodes counted since they started. One that was killed took its counts along; what
/// is shown are ratios, which stay.
#[derive(Debug, Clone, PartialEq)]
pub struct Copies {
    /// Bytes of a state after a change.
    state_bytes: f64,
    /// Bytes of it in its entry.
    entry_bytes: f64,
    /// Bytes on the wire for each standby, heartbeats included.
    sent_bytes: f64,
    /// Milliseconds of each part of a failover, the mean over shards, and how many there were.
    phases: Vec<(&'static str, f64, f64)>,
}

impl Copies {
    /// What these pages say of a cluster with so many standbys; `None` when nothing was changed.
    pub fn of(pages: &[Series], standbys: usize) -> Option<Self> {
        let sum = |name: &str, labels: &[&str]| -> f64 {
            pages.iter().map(|page| page.sum(name, labels)).sum()
        };
        let changes = sum("mainstay_state_changes_total", &[]);
        let standbys = f64::from(u32::try_from(standbys).unwrap_or(u32::MAX));
        let sent = ["direction=\"sent\"", "class=\"append\""];
        let sent = sum("mainstay_transport_bytes_total", &sent);
        let bytes = |form| sum("mainstay_state_change_bytes_total", &[form]);
        let phase = |(phase, _): &(&'static str, &str)| {
            let label = format!("phase=\"{phase}\"");
            let seconds = sum("mainstay_failover_phase_duration_seconds_sum", &[&label]);
            let shards = sum("mainstay_failover_phase_duration_seconds_count", &[&label]);
            (shards > 0.0).then(|| (*phase, seconds / shards * 1e3, shards))
        };
        (changes > 0.0).then(|| Self {
            state_bytes: bytes("form=\"state\"") / changes,
            entry_bytes: bytes("form=\"entry\"") / changes,
            sent_bytes: sent / changes / standbys,
            phases: PHASES.iter().filter_map(phase).collect(),
        })
    }

    /// The bytes, in one line.
    pub fn bytes_line(&self) -> String {
        format!(
            "a change of a state of {} bytes: {} in its entry ({:.0} %), {} on the wire to each copy",
            whole(self.state_bytes),
            whole(self.entry_bytes),
            self.entry_bytes / self.state_bytes.max(1.0) * 100.0,
            whole(self.sent_bytes),
        )
    }

    /// The failover, in one line; `None` when there was none.
    pub fn failover_line(&self) -> Option<String> {
        let shards = self.phases.iter().map(|(_, _, shards)| *shards).reduce(f64::max)?;
        let parts = PHASES.iter().filter_map(|(phase, text)| {
            let (_, ms, _) = self.phases.iter().find(|(of, ..)| of == phase)?;
            Some(format!("{text} {}", millis(*ms)))
        });
        let parts = parts.collect::<Vec<_>>().join(", ");
        Some(format!("failover of {} shards, on average: {parts}", whole(shards)))
    }

    /// The same for programs.
    pub fn json(&self) -> Value {
        let phases = self.phases.iter().map(|(phase, ms, shards)| {
            ((*phase).to_owned(), json!({ "mean_ms": ms, "shards": shards }))
        });
        json!({
            "state_bytes_per_change": self.state_bytes,
            "entry_bytes_per_change": self.entry_bytes,
            "sent_bytes_per_change_and_copy": self.sent_bytes,
            "failover": phases.collect::<serde_json::Map<_, _>>(),
        })
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts, rounded")]
fn whole(number: f64) -> String {
    grouped(number.max(0.0).round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_told_per_change_and_copy_and_a_failover_in_its_parts() {
        let text = "\
            mainstay_state_changes_total{kind=\"a\",encoding=\"delta\"} 90\n\
            mainstay_state_changes_total{kind=\"a\",encoding=\"full\"} 10\n\
            mainstay_state_change_bytes_total{kind=\"a\",form=\"state\"} 120000\n\
            mainstay_state_change_bytes_total{kind=\"a\",form=\"entry\"} 6000\n\
            mainstay_transport_bytes_total{direction=\"sent\",class=\"append\"} 30000\n\
            mainstay_transport_bytes_total{direction=\"sent\",class=\"call\"} 777\n\
            mainstay_failover_phase_duration_seconds_sum{phase=\"serve\"} 0.4\n\
            mainstay_failover_phase_duration_seconds_count{phase=\"serve\"} 8\n";
        let copies = Copies::of(&[Series::of(text)], 2).unwrap();
        assert_eq!(
            copies.bytes_line(),
            "a change of a state of 1,200 bytes: 60 in its entry (5 %), 150 on the wire to each copy"
        );
        assert_eq!(
            copies.failover_line().unwrap(),
            "failover of 8 shards, on average: promise over and answering 50 ms"
        );
    }

    #[test]
    fn nothing_is_told_of_nodes_that_changed_nothing() {
        assert_eq!(Copies::of(&[Series::of("")], 2), None);
    }
}
