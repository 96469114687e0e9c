//! Nodes to measure: one in this process, or one in a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, Command, Stdio};

use mainstay::cluster::Cluster;
use mainstay::config::Config;
use mainstay::entity::Registry;

use crate::entity::Counter;

/// A single node in this process, with its data in a folder that goes with it.
pub(crate) struct Local {
    pub(crate) cluster: Cluster,
    data: tempfile::TempDir,
}

impl Local {
    /// Starts one and waits until it serves.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let data = tempfile::tempdir()?;
        let cluster = Cluster::start(config(data.path()), registry())?;
        cluster.ready_blocking()?;
        Ok(Self { cluster, data })
    }

    /// Ends the node and starts it again over the same data.
    pub(crate) fn restart(&mut self) -> anyhow::Result<()> {
        self.cluster.shutdown_blocking();
        self.cluster = Cluster::start(config(self.data.path()), registry())?;
        self.cluster.ready_blocking()?;
        Ok(())
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.cluster.shutdown_blocking();
    }
}

pub(crate) fn registry() -> Registry {
    Registry::new().entity::<Counter>()
}

fn config(data: &std::path::Path) -> Config {
    let mut config = Config { data_dir: data.to_owned(), ..Config::default() };
    "127.0.0.1:0".clone_into(&mut config.peers.listen);
    config.cluster.form_alone = true;
    config.cluster.shards = 64;
    config
}

/// A node in a process of its own.
pub(crate) struct Remote {
    process: Child,
    pub(crate) addr: String,
}

impl Remote {
    /// Starts this program again as a node, and reads where it listens.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg("--serve")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let out = process.stdout.take().expect("its output is a pipe");
        let mut addr = String::new();
        BufReader::new(out).read_line(&mut addr)?;
        anyhow::ensure!(!addr.trim().is_empty(), "the other process did not say its address");
        Ok(Self { process, addr: addr.trim().to_owned() })
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // Its input closes with the handle: it ends by itself, and leaves no files.
        drop(self.process.stdin.take());
        drop(self.process.wait());
    }
}

/// The other process: serves until its input closes.
#[expect(clippy::print_stdout, reason = "the first line tells the address")]
pub(crate) fn serve_remote() -> anyhow::Result<()> {
    let node = Local::start()?;
    println!("{}", node.cluster.peer_addr());
    std::io::stdout().flush()?;
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {}
    drop(node);
    Ok(())
}
