//! What the nodes say about themselves while the demo runs: their shards, and how many calls they
//! could answer without asking another node.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::join_all;
use mainstay_cluster_tests::processes::Cluster;
use serde_json::Value;

/// Questions to the admin ports of all nodes; it does not mind that some are down.
#[derive(Debug, Clone)]
pub struct Watch {
    client: reqwest::Client,
    admin: Vec<SocketAddr>,
    /// Calls counted up to the last look, per node: answered there, and in all.
    seen: Vec<(f64, f64)>,
}

/// One look at all nodes.
#[derive(Debug, Clone)]
pub struct Look {
    /// Shards of each node as primary; `None` for a node that does not answer.
    pub shards: Vec<Option<u64>>,
    /// Share of calls since the last look that were answered on the node where they came in.
    pub local: Option<f64>,
}

impl Watch {
    /// A watch over these nodes.
    pub fn new(cluster: &Cluster) -> Self {
        let admin: Vec<_> = cluster.nodes.iter().map(|node| node.addresses().admin).collect();
        let seen = vec![(0.0, 0.0); admin.len()];
        Self { client: cluster.client().clone(), admin, seen }
    }

    /// Looks at every node.
    pub async fn look(&mut self) -> Look {
        let shards = join_all(self.admin.iter().map(|at| shards(&self.client, *at))).await;
        let pages = join_all(self.admin.iter().map(|at| page(&self.client, *at))).await;
        let (mut local, mut all) = (0.0, 0.0);
        for (seen, page) in self.seen.iter_mut().zip(&pages) {
            let Some(page) = page else { continue };
            let calls = |labels: &[&str]| page.sum("mainstay_calls_total", labels);
            let now = (calls(&["locality=\"local\""]), calls(&[]));
            // A restarted node counts from zero again.
            let before = if now.1 < seen.1 { (0.0, 0.0) } else { *seen };
            local += now.0 - before.0;
            all += now.1 - before.1;
            *seen = now;
        }
        Look { shards, local: (all > 0.0).then(|| local / all) }
    }
}

/// The shards that the node at this admin address serves; `None` when it does not answer.
pub async fn shards(client: &reqwest::Client, at: SocketAddr) -> Option<u64> {
    let status: Value = serde_json::from_str(&text(client, at, "/admin/v1/status").await?).ok()?;
    status["node"]["shards"].as_u64()
}

/// The shards without a live primary, by the map of the node at this admin address.
pub async fn unavailable(client: &reqwest::Client, at: SocketAddr) -> Option<u64> {
    let status: Value = serde_json::from_str(&text(client, at, "/admin/v1/status").await?).ok()?;
    status["cluster"]["shards_unavailable"].as_u64()
}

/// The metrics page of the node at this admin address; `None` when it does not answer.
pub async fn page(client: &reqwest::Client, at: SocketAddr) -> Option<Series> {
    Some(Series::of(&text(client, at, "/metrics").await?))
}

async fn text(client: &reqwest::Client, at: SocketAddr, path: &str) -> Option<String> {
    let request = client.get(format!("http://{at}{path}")).timeout(Duration::from_secs(1));
    request.send().await.ok()?.error_for_status().ok()?.text().await.ok()
}

/// The series of a metrics page, by name and labels as they stand there.
#[derive(Debug, Clone, Default)]
pub struct Series(BTreeMap<String, f64>);

impl Series {
    /// Reads a page.
    pub fn of(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        Self(series.collect())
    }

    /// The sum of a metric's series that have all of these labels.
    pub fn sum(&self, metric: &str, labels: &[&str]) -> f64 {
        let of_it = |series: &str| {
            let rest = series.strip_prefix(metric);
            rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('{'))
                && labels.iter().all(|label| series.contains(label))
        };
        self.0.iter().filter(|(series, _)| of_it(series)).map(|(_, value)| value).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_locality() {
        let page = Series::of(
            "# TYPE mainstay_calls_total counter\n\
             mainstay_calls_total{kind=\"a\",locality=\"local\",outcome=\"ok\"} 30\n\
             mainstay_calls_total{kind=\"a\",locality=\"remote\",outcome=\"ok\"} 10\n",
        );
        let local = page.sum("mainstay_calls_total", &["locality=\"local\""]);
        assert!((local - 30.0).abs() < 1e-9);
        assert!((page.sum("mainstay_calls_total", &[]) - 40.0).abs() < 1e-9);
    }
}
