//! Relations between settings: what each value allows for itself, another one may forbid.

use std::net::{SocketAddr, ToSocketAddrs};
use std::time::Duration;

use mainstay::protocol::limits::PAYLOAD_BYTES_MAX;
use tracing_subscriber::EnvFilter;

use super::{Loaded, Problem};

/// No time-out is longer.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Adds a problem for each relation that does not hold.
pub fn relations(loaded: &Loaded, problems: &mut Vec<Problem>) {
    let mut checking = Checking { loaded, problems };
    checking.cluster();
    checking.limits();
    checking.times();
    checking.addresses();
    checking.reachable();
    checking.log();
}

struct Checking<'c> {
    loaded: &'c Loaded,
    problems: &'c mut Vec<Problem>,
}

impl Checking<'_> {
    fn require(&mut self, holds: bool, path: &'static str, text: impl FnOnce() -> String) {
        if !holds {
            let at = self.loaded.origin(path).to_string();
            let text = format!("{path}: {}", text());
            self.problems.push(Problem { code: "MS-1001", at, text, help: None });
        }
    }

    fn cluster(&mut self) {
        let loaded = self.loaded;
        let cluster = &loaded.settings.runtime.cluster;
        self.require(cluster.voters % 2 == 1, "cluster.voters", || {
            format!("expected 1, 3 or 5, found {}", cluster.voters)
        });
        self.require(!cluster.form_alone || cluster.expect == 0, "cluster.expect", || {
            "a node that forms a cluster alone waits for nobody: leave out one of the two"
                .to_owned()
        });
        self.require(!cluster.form_alone || cluster.join.is_empty(), "cluster.join", || {
            "a node that joins does not form a cluster alone: leave out one of the two".to_owned()
        });
        for address in &cluster.join {
            self.require(has_port(address), "cluster.join", || {
                format!("expected host:port, found {address:?}")
            });
        }
    }

    fn limits(&mut self) {
        let loaded = self.loaded;
        let payload = u64::try_from(PAYLOAD_BYTES_MAX).expect("a payload has a few MiB");
        let settings = &loaded.settings;
        let limits = &settings.runtime.limits;
        self.require((1..=payload).contains(&settings.http.body_bytes), "http.body_bytes", || {
            format!("expected 1 to {payload} bytes, found {}", settings.http.body_bytes)
        });
        let smallest = settings.http.body_bytes;
        self.require(limits.request_bytes >= smallest, "limits.request_bytes", || {
            format!("must hold at least one body of http.body_bytes, {smallest} bytes")
        });
        self.require(limits.window_bytes >= payload, "limits.window_bytes", || {
            format!("must hold at least one payload of {payload} bytes")
        });
        for (path, bytes) in [
            ("limits.state_bytes", limits.state_bytes),
            ("limits.dedup_bytes", limits.dedup_bytes),
            ("limits.dirty_bytes", limits.dirty_bytes),
            ("storage.journal_bytes", settings.runtime.storage.journal_bytes),
        ] {
            self.require(bytes >= 1 << 20, path, || format!("at least 1MiB, found {bytes} bytes"));
        }
    }

    fn times(&mut self) {
        let loaded = self.loaded;
        let settings = &loaded.settings;
        let detection = &settings.runtime.detection;
        let enough = detection.heartbeat.saturating_mul(3) <= detection.suspect_after;
        self.require(enough, "detection.suspect_after", || {
            format!(
                "must be at least three heartbeats of {:?}, found {:?}: one lost packet would \
                 otherwise count as a death",
                detection.heartbeat, detection.suspect_after
            )
        });
        let limits = &settings.runtime.limits;
        let enough = limits.deadline_max <= limits.dedup_retention;
        self.require(enough, "limits.dedup_retention", || {
            format!(
                "must be at least limits.deadline_max, {:?}, found {:?}: a retry within its \
                 deadline would otherwise run again",
                limits.deadline_max, limits.dedup_retention
            )
        });
        for (path, span) in [
            ("detection.heartbeat", detection.heartbeat),
            ("limits.deadline_max", settings.runtime.limits.deadline_max),
            ("lanes.slow_turn", settings.runtime.lanes.slow_turn),
            ("storage.checkpoint_every", settings.runtime.storage.checkpoint_every),
            ("storage.audit_every", settings.runtime.storage.audit_every),
            ("http.header_timeout", settings.http.header_timeout),
            ("http.body_timeout", settings.http.body_timeout),
            ("http.stall_timeout", settings.http.stall_timeout),
        ] {
            let in_range = (Duration::from_millis(1)..=DAY).contains(&span);
            self.require(in_range, path, || format!("expected 1ms to 24h, found {span:?}"));
        }
    }

    /// Others are told where to reach this node: an address that means them when they use it is no
    /// answer.
    fn reachable(&mut self) {
        let peers = &self.loaded.settings.runtime.peers;
        let told = peers.advertise.as_ref().unwrap_or(&peers.listen);
        let path = if peers.advertise.is_some() { "peers.advertise" } else { "peers.listen" };
        self.require(!is_unspecified(told), path, || {
            format!(
                "others would be told {told}, which means themselves: set peers.advertise to an \
                 address of this machine"
            )
        });
    }

    fn log(&mut self) {
        let filter = &self.loaded.settings.log.filter;
        let parsed = EnvFilter::try_new(filter);
        self.require(parsed.is_ok(), "log.filter", || {
            let why = parsed.err().map(|error| error.to_string()).unwrap_or_default();
            format!("expected a filter such as info or debug,redb=warn, found {filter:?}: {why}")
        });
    }

    fn addresses(&mut self) {
        let loaded = self.loaded;
        let settings = &loaded.settings;
        let listened = [
            ("http.listen", settings.http.listen.as_str()),
            ("admin.listen", settings.admin.listen.as_str()),
            ("peers.listen", settings.runtime.peers.listen.as_str()),
        ];
        for (path, address) in listened {
            self.require(address.to_socket_addrs().is_ok(), path, || {
                format!("expected host:port, found {address:?}")
            });
        }
        for (at, (path, address)) in listened.iter().enumerate() {
            let twin = listened[..at].iter().find(|(_, other)| other == address);
            let free = twin.is_none() || address.ends_with(":0");
            self.require(free, path, || {
                format!("{address} is {} already", twin.map_or("taken", |(path, _)| path))
            });
        }
        let advertised = [
            ("http.advertise", &settings.http.advertise),
            ("peers.advertise", &settings.runtime.peers.advertise),
        ];
        for (path, address) in advertised {
            if let Some(address) = address {
                self.require(has_port(address), path, || {
                    format!("expected host:port, found {address:?}")
                });
            }
        }
    }
}

/// Whether `address` stands for all addresses of the machine, which tells others none of them.
fn is_unspecified(address: &str) -> bool {
    address.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified())
}

/// Whether `address` is `host:port`. The host is not looked up: it may not exist yet.
fn has_port(address: &str) -> bool {
    address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::super::value::Raw;
    use super::super::{Sources, load};

    fn check(flags: &[(&'static str, &str)]) -> Vec<String> {
        let flags = flags
            .iter()
            .map(|(path, value)| (*path, format!("--{path}"), Raw::Untyped((*value).to_owned())))
            .collect();
        match load(&Sources { flags, ..Sources::default() }) {
            Ok(_) => Vec::new(),
            Err(invalid) => invalid.0.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn relations_are_checked() {
        assert_eq!(check(&[]), [] as [&str; 0]);
        for flags in [
            &[("cluster.voters", "4")][..],
            &[("cluster.form_alone", "true"), ("cluster.expect", "3")],
            &[("cluster.form_alone", "true"), ("cluster.join", "a:1")],
            &[("cluster.join", "nowhere")],
            &[("http.body_bytes", "2MiB")],
            &[("http.body_bytes", "0B")],
            &[("limits.request_bytes", "1KiB")],
            &[("detection.suspect_after", "299ms")],
            &[("http.body_timeout", "0s")],
            &[("http.listen", "nonsense")],
            &[("http.listen", "127.0.0.1:7000")],
            &[("peers.advertise", "host")],
            &[("peers.listen", "0.0.0.0:7000")],
            &[("peers.listen", "[::]:7000")],
            &[("peers.advertise", "0.0.0.0:7000")],
            &[("log.filter", "inf=o=")],
        ] {
            assert_eq!(check(flags).len(), 1, "{flags:?}: {:?}", check(flags));
        }
        assert_eq!(
            check(&[("http.listen", "127.0.0.1:0"), ("admin.listen", "127.0.0.1:0")]).len(),
            0
        );
        let advertised = [("peers.listen", "0.0.0.0:7000"), ("peers.advertise", "n1:7000")];
        assert_eq!(check(&advertised), [] as [&str; 0]);
        let said = check(&advertised[..1]);
        assert!(said[0].contains("set peers.advertise"), "{said:?}");
        let said = check(&[("detection.suspect_after", "299ms")]);
        assert!(said[0].starts_with("flag --detection.suspect_after: "), "{said:?}");
    }
}
