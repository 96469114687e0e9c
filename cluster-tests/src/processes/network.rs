//! A network whose cables can be cut: a namespace for each node, joined by a bridge.
//!
//! ```text
//!   namespace of n1   eth0 --+
//!   namespace of n2   eth0 --+-- bridge -- this machine: clients reach every node, always
//!   namespace of n3   eth0 --+
//! ```
//! A cut from one node to another gives the first a wrong hardware address of the second, so that
//! its packets are lost without a word, as on a cable that is out; nobody's connections close. It
//! takes root and `ip`. What a process leaves that is killed is removed by `ip netns del` and
//! `ip link del` of all that begins with `ms-`.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

/// Ports of every node.
pub(super) const PEER: u16 = 7_000;
pub(super) const HTTP: u16 = 7_001;
pub(super) const ADMIN: u16 = 7_002;

/// The network. It goes with this value.
#[derive(Debug)]
pub struct Network {
    /// Begins the name of everything that it made.
    name: String,
    /// Of all addresses.
    prefix: [u8; 2],
    nodes: usize,
}

impl Network {
    /// A network of as many nodes.
    ///
    /// # Errors
    /// When it cannot be made here.
    pub fn new(nodes: usize) -> Result<Self> {
        let prefix = [fastrand::u8(64..128), fastrand::u8(..)];
        let name = format!("ms-{:02x}{:02x}", prefix[0], prefix[1]);
        let network = Self { name, prefix, nodes };
        network.make().context("no network can be made here")?;
        Ok(network)
    }

    fn make(&self) -> Result<()> {
        let bridge = self.bridge();
        ip(&format!("link add {bridge} type bridge"))?;
        ip(&format!("addr add {}/24 dev {bridge}", self.ip(254)))?;
        ip(&format!("link set {bridge} up"))?;
        for node in 0..self.nodes {
            let (space, cable) = (self.space(node), format!("{}v{node}", self.name));
            ip(&format!("netns add {space}"))?;
            ip(&format!("link add {cable} type veth peer name eth0 netns {space}"))?;
            ip(&format!("link set {cable} master {bridge} up"))?;
            ip(&format!("-n {space} link set eth0 address {} up", hardware(node)))?;
            ip(&format!("-n {space} addr add {}/24 dev eth0", self.address(node)))?;
            ip(&format!("-n {space} link set lo up"))?;
        }
        self.heal()
    }

    /// Packets from one node to another are lost from here on.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn cut(&self, from: usize, to: usize) -> Result<()> {
        self.neighbour(from, to, "02:00:00:00:ff:ff")
    }

    /// All cables are whole again.
    ///
    /// # Errors
    /// When that cannot be done.
    pub fn heal(&self) -> Result<()> {
        for from in 0..self.nodes {
            for to in (0..self.nodes).filter(|to| *to != from) {
                self.neighbour(from, to, &hardware(to))?;
            }
        }
        Ok(())
    }

    fn neighbour(&self, from: usize, to: usize, hardware: &str) -> Result<()> {
        let (space, to) = (self.space(from), self.address(to));
        ip(&format!("-n {space} neigh replace {to} lladdr {hardware} dev eth0 nud permanent"))
    }

    /// Where a node is.
    pub(super) fn address(&self, node: usize) -> Ipv4Addr {
        self.ip(u8::try_from(node + 1).unwrap_or(u8::MAX))
    }

    /// What runs a program at a node's place.
    pub(super) fn runner(&self, node: usize) -> Vec<String> {
        ["ip", "netns", "exec"].map(str::to_owned).into_iter().chain([self.space(node)]).collect()
    }

    const fn ip(&self, last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, self.prefix[0], self.prefix[1], last)
    }

    fn bridge(&self) -> String {
        format!("{}br", self.name)
    }

    fn space(&self, node: usize) -> String {
        format!("{}n{node}", self.name)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for node in 0..self.nodes {
            ip(&format!("netns del {}", self.space(node))).ok();
        }
        ip(&format!("link del {}", self.bridge())).ok();
    }
}

fn hardware(node: usize) -> String {
    format!("02:00:00:00:00:{:02x}", node + 1)
}

fn ip(arguments: &str) -> Result<()> {
    let mut command = Command::new("ip");
    let told = command.args(arguments.split(' ')).stdin(Stdio::null()).output()?;
    if !told.status.success() {
        bail!("ip {arguments}: {}", String::from_utf8_lossy(&told.stderr).trim());
    }
    Ok(())
}
