//! One node process: where it listens, what it was told, and what can be done to it.

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mainstay::storage::fault::drive::STALLS;

use super::{http, network};

/// Where a node listens.
#[derive(Debug, Clone, Copy)]
pub struct Addresses {
    /// For peers and Rust clients.
    pub peer: SocketAddr,
    /// For HTTP clients.
    pub http: SocketAddr,
    /// For operators.
    pub admin: SocketAddr,
}

impl Addresses {
    /// Three ports of the loopback address that nobody listens on.
    ///
    /// # Errors
    /// When none is found in a thousand tries.
    pub fn free() -> Result<Self> {
        Ok(Self { peer: free_port()?, http: free_port()?, admin: free_port()? })
    }
}

impl Addresses {
    /// Those of a node of this network.
    pub(super) fn within(network: &network::Network, node: usize) -> Self {
        let at = |port| SocketAddr::from((network.address(node), port));
        Self { peer: at(network::PEER), http: at(network::HTTP), admin: at(network::ADMIN) }
    }
}

/// A free port below the range of outgoing connections, so that none of those takes it meanwhile.
fn free_port() -> Result<SocketAddr> {
    for _ in 0..1_000 {
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(10_000..32_000)));
        if TcpListener::bind(at).is_ok() {
            return Ok(at);
        }
    }
    bail!("no free port below 32000 in 1000 tries")
}

/// What a node process is told.
#[derive(Debug, Clone)]
pub struct Spec {
    /// A program and its arguments that become the program below; nothing starts that itself.
    pub runner: Vec<String>,
    /// The program.
    pub program: PathBuf,
    /// Its name in the cluster.
    pub name: String,
    /// Where it listens.
    pub addresses: Addresses,
    /// Its data directory.
    pub data: PathBuf,
    /// Where its output goes.
    pub log: PathBuf,
    /// Peers to join through.
    pub join: Vec<String>,
    /// Fresh nodes that form a cluster together; 0 leaves the flag away.
    pub expect: u32,
    /// Further arguments of `run`.
    pub arguments: Vec<String>,
    /// Further environment.
    pub environment: Vec<(String, String)>,
}

impl Spec {
    /// A node that joins nobody and waits for nobody, with data and log below `folder`.
    pub fn new(program: &Path, name: &str, addresses: Addresses, folder: &Path) -> Self {
        Self {
            runner: Vec::new(),
            program: program.to_owned(),
            name: name.to_owned(),
            addresses,
            data: folder.join(name),
            log: folder.join(format!("{name}.log")),
            join: Vec::new(),
            expect: 0,
            arguments: Vec::new(),
            environment: Vec::new(),
        }
    }

    fn command(&self) -> Command {
        let mut command = match self.runner.as_slice() {
            [] => Command::new(&self.program),
            [runner, arguments @ ..] => {
                let mut command = Command::new(runner);
                command.args(arguments).arg(&self.program);
                command
            }
        };
        command.arg("run").args(["--node", &self.name]).arg("--data-dir").arg(&self.data);
        command.args(["--listen", &self.addresses.peer.to_string()]);
        command.args(["--http", &self.addresses.http.to_string()]);
        command.args(["--admin", &self.addresses.admin.to_string()]);
        for peer in &self.join {
            command.args(["--join", peer]);
        }
        if self.expect > 0 {
            command.args(["--expect", &self.expect.to_string()]);
        }
        command.args(&self.arguments);
        // A setting of the machine must not reach a node under test.
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("MAINSTAY_")) {
                command.env_remove(name);
            }
        }
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }
}

/// A node: its process when it runs, and all that stays when it does not.
#[derive(Debug)]
pub struct Node {
    spec: Spec,
    child: Option<Child>,
    started_at: Instant,
    left: bool,
}

impl Node {
    /// A node that does not run yet.
    pub fn new(spec: Spec) -> Self {
        Self { spec, child: None, started_at: Instant::now(), left: false }
    }

    /// Starts its process. The log is appended to.
    ///
    /// # Errors
    /// When the program cannot be started, or runs already.
    pub fn start(&mut self) -> Result<()> {
        ensure!(self.child.is_none(), "{} runs already", self.spec.name);
        let log = File::options().create(true).append(true).open(&self.spec.log)?;
        let mut command = self.spec.command();
        command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log).process_group(0);
        self.started_at = Instant::now();
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", self.spec.program.display()))?;
        self.child = Some(child);
        self.left = false;
        Ok(())
    }

    /// Waits until it is ready; how long that took from its start.
    ///
    /// # Errors
    /// When it ends before, or is not within `within`; with the end of its log.
    pub async fn ready(&mut self, client: &reqwest::Client, within: Duration) -> Result<Duration> {
        loop {
            if let Ok((200, _)) = http::get(client, self.spec.addresses.admin, "/readyz").await {
                return Ok(self.started_at.elapsed());
            }
            if let Some(status) = self.try_exit()? {
                bail!(
                    "{} ended ({status}) before it was ready\n{}",
                    self.name(),
                    self.log_tail(20)
                );
            }
            if self.started_at.elapsed() > within {
                bail!("{} is not ready after {within:?}\n{}", self.name(), self.log_tail(20));
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Waits until its process has ended by itself.
    ///
    /// # Errors
    /// When it has not within `within`.
    pub async fn exit(&mut self, within: Duration) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.try_exit()? {
                return Ok(status);
            }
            if began.elapsed() > within {
                bail!("{} still runs after {within:?}\n{}", self.name(), self.log_tail(20));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// How its process ended by itself, if it did.
    ///
    /// # Errors
    /// When it was ended from outside, or was not started.
    pub fn try_exit(&mut self) -> Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else { bail!("{} does not run", self.spec.name) };
        let status = child.try_wait()?;
        if let Some(status) = status {
            self.child = None;
            self.left = status.success();
        }
        Ok(status)
    }

    /// Ends its process at once, as `kill -9` does. Nothing when it does not run.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // An error means that it has ended already, which is what is wanted.
            child.kill().ok();
            child.wait().ok();
        }
    }

    /// Sends a signal by name: `STOP`, `CONT`, `TERM`, `INT`.
    ///
    /// # Errors
    /// When it does not run, or the signal cannot be sent.
    pub fn signal(&self, signal: &str) -> Result<()> {
        let pid = self.pid().with_context(|| format!("{} does not run", self.spec.name))?;
        let sent =
            Command::new("sh").args(["-c", &format!("kill -{signal} {pid}")]).status()?.success();
        if sent { Ok(()) } else { bail!("kill -{signal} {pid} failed") }
    }

    /// Its disk stands still: no sync of its databases ends. See [`super::Plan::on_drives`].
    ///
    /// # Errors
    /// When it has no data directory.
    pub fn stall_disk(&self) -> Result<()> {
        File::create(self.spec.data.join(STALLS))?;
        Ok(())
    }

    /// Its disk goes on.
    ///
    /// # Errors
    /// When it did not stand still.
    pub fn resume_disk(&self) -> Result<()> {
        Ok(fs::remove_file(self.spec.data.join(STALLS))?)
    }

    /// Whether it has a process that was not seen to end.
    pub fn runs(&self) -> bool {
        self.child.is_some()
    }

    /// Whether its process ended by itself, in order.
    pub fn left(&self) -> bool {
        self.left
    }

    /// The id of its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Its name in the cluster.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Where it listens.
    pub fn addresses(&self) -> Addresses {
        self.spec.addresses
    }

    /// What it is told at its next start.
    pub fn spec_mut(&mut self) -> &mut Spec {
        &mut self.spec
    }

    /// All that it wrote.
    pub fn log(&self) -> String {
        fs::read(&self.spec.log)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The last lines of what it wrote.
    pub fn log_tail(&self, lines: usize) -> String {
        let log = self.log();
        let all: Vec<&str> = log.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Processor time that its process has used, user and system; Linux only.
    pub fn cpu(&self) -> Option<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid()?)).ok()?;
        // The name in parentheses may hold spaces: count from behind it.
        let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
        let ticks: u64 =
            fields.get(11)?.parse::<u64>().ok()? + fields.get(12)?.parse::<u64>().ok()?;
        Some(Duration::from_millis(ticks * 10))
    }

    /// Bytes of its process in memory; Linux only.
    pub fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()? * 1024)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Ends this process when its standard input closes: whoever started it is gone, or lets it go.
/// Programs that the harness starts call this first.
pub fn end_with_stdin() {
    std::thread::spawn(|| {
        let mut byte = [0];
        loop {
            match std::io::stdin().lock().read(&mut byte) {
                Ok(0) | Err(_) => std::process::exit(0),
                Ok(_) => {}
            }
        }
    });
}
