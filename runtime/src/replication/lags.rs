//! How far the standbys of this node's shards are behind, as gauges for each peer.

use std::collections::BTreeMap;
use std::time::Duration;

use mainstay_protocol::id::NodeId;
use mainstay_protocol::replication::feed::Lag;
use mainstay_protocol::time::Instant;
use metrics::{Gauge, gauge};

use super::keeper::Keeper;
use super::part::Part;
use crate::metrics::float;

/// How often lags are told: often enough for those who scrape, and no work of the hot path.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// What was told of each peer. Those who are fed no more are told as zero.
#[derive(Debug, Default)]
pub(super) struct Lags {
    told_at: Option<Instant>,
    gauges: BTreeMap<NodeId, [Gauge; 3]>,
}

impl Keeper {
    /// Tells of each peer what its standby lacks that lacks most, if it is time.
    pub(super) fn tell_lags(&mut self, now: Instant) {
        let lags = &mut self.lags;
        if lags.told_at.is_some_and(|at| now.saturating_since(at) < TOLD_EVERY) {
            return;
        }
        lags.told_at = Some(now);
        let mut worst: BTreeMap<&NodeId, Lag> = BTreeMap::new();
        for part in self.parts.values() {
            let Part::Leading(leading) = part else { continue };
            for (node, lag) in leading.feed.lags(now) {
                let worst = worst.entry(node).or_default();
                *worst = worst.max(lag);
            }
        }
        for node in worst.keys() {
            if !lags.gauges.contains_key(*node) {
                lags.gauges.insert((*node).clone(), gauges(node));
            }
        }
        for (node, [entries, bytes, seconds]) in &lags.gauges {
            let lag = worst.get(node).copied().unwrap_or_default();
            entries.set(float(lag.entries));
            bytes.set(float(lag.bytes));
            seconds.set(lag.age.as_secs_f64());
        }
        // What was told of those who left stays zero.
        lags.gauges.retain(|node, _| worst.contains_key(node));
    }
}

fn gauges(node: &NodeId) -> [Gauge; 3] {
    let peer = || node.as_str().to_owned();
    [
        gauge!("mainstay_replication_lag_entries", "peer" => peer()),
        gauge!("mainstay_replication_lag_bytes", "peer" => peer()),
        gauge!("mainstay_replication_lag_seconds", "peer" => peer()),
    ]
}
