//! What a node says when it is up: five lines for people, one event for machines.

use std::net::SocketAddr;
use std::path::Path;

use crate::backend::NodeView;
use crate::settings::{Loaded, LogFormat, Origin};

/// Where a node can be reached, and what it hosts.
#[derive(Debug)]
pub struct Banner<'b> {
    /// The settings that it runs with.
    pub loaded: &'b Loaded,
    /// The node.
    pub node: &'b NodeView,
    /// Its cluster's id.
    pub cluster: Option<String>,
    /// How many members the cluster has.
    pub members: usize,
    /// The names of its kinds.
    pub kinds: Vec<&'static str>,
    /// Where callers reach it.
    pub api: SocketAddr,
    /// Where operators reach it.
    pub admin: SocketAddr,
}

impl Banner<'_> {
    /// The five lines.
    pub fn text(&self) -> String {
        let settings = &self.loaded.settings;
        let mode = if self.loaded.dev { "dev mode, " } else { "" };
        let cluster = self.cluster.as_ref().map_or("none yet", |id| &id[..id.len().min(8)]);
        let leader =
            self.node.leader.as_ref().map_or_else(|| "none yet".to_owned(), ToString::to_string);
        let members = if self.members == 1 { "member" } else { "members" };
        format!(
            "mainstay {version} \u{b7} node {name} \u{b7} cluster {cluster} \u{b7} {mode}data in {data}\n\
             \x20 api      {api:<28} (openapi: /openapi.json)\n\
             \x20 admin    {admin:<28} (metrics /metrics, health /livez /readyz)\n\
             \x20 peers    {peers:<28} ({count} {members}, leader {leader})\n\
             \x20 entities {kinds:<28} config: {config} (config show --origin)\n",
            version = env!("CARGO_PKG_VERSION"),
            name = self.node.name,
            data = settings.runtime.data_dir.display(),
            api = format!("http://{}/v1", self.api),
            admin = format!("http://{}", self.admin),
            peers = self.node.peers_addr,
            count = self.members,
            kinds = self.kinds.join(", "),
            config = self.config(),
        )
    }

    /// The event.
    pub fn log(&self) {
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            node = %self.node.name,
            cluster = self.cluster.as_deref().unwrap_or_default(),
            leader = self.node.leader.as_ref().map(tracing::field::display),
            members = self.members,
            api = %format_args!("http://{}/v1", self.api),
            admin = %format_args!("http://{}", self.admin),
            peers = self.node.peers_addr,
            data_dir = %self.loaded.settings.runtime.data_dir.display(),
            entities = self.kinds.join(","),
            "the node is up"
        );
    }

    /// Tells it in the way that `format` asks for.
    pub fn tell(&self, format: LogFormat) {
        use std::io::Write as _;
        if format == LogFormat::Json {
            self.log();
        } else if let Err(error) = write!(std::io::stderr(), "{}", self.text()) {
            tracing::debug!(%error, "standard error is closed");
        }
    }

    /// The layers that say something: `defaults + ./mainstay.toml + MAINSTAY_LOG`.
    fn config(&self) -> String {
        let mut layers = vec!["defaults".to_owned()];
        layers.extend(self.loaded.file.as_deref().map(|file: &Path| file.display().to_string()));
        let mut flags = 0;
        for origin in self.loaded.origins.values() {
            match origin {
                Origin::Env(name) => layers.push(name.clone()),
                Origin::Flag(_) => flags += 1,
                Origin::Default | Origin::File { .. } => {}
            }
        }
        if flags > 0 {
            layers.push(format!("{flags} flags"));
        }
        layers.join(" + ")
    }
}
