//! The settings of a node, one struct per room; `Default` is the only default there is.
//!
//! The node reads them once, from file, environment and flags, and passes them by value; nobody
//! reads configuration later.

use std::path::PathBuf;
use std::time::Duration;

use mainstay_protocol::id::NodeId;

/// All settings of one node.
#[derive(Debug, Clone)]
pub struct Config {
    /// The node's stable name; with an empty data directory and no name, one is made up and kept.
    pub node: Option<NodeId>,
    /// Where all data of this node lives. One process at a time.
    pub data_dir: PathBuf,
    /// The failure zone, or empty.
    pub zone: String,
    /// The node's share of the shards: 1 for most.
    pub weight: u8,
    /// Reaching peers.
    pub peers: Peers,
    /// Creating and joining a cluster.
    pub cluster: ClusterOptions,
    /// The threads that run entities.
    pub lanes: Lanes,
    /// What waits, at most.
    pub limits: Limits,
    /// Disk.
    pub storage: Storage,
    /// How deaths are noticed.
    pub detection: Detection,
}

/// Reaching peers.
#[derive(Debug, Clone)]
pub struct Peers {
    /// Where this node listens for peers and Rust clients: `host:port`; port 0 takes a free one.
    pub listen: String,
    /// What it tells others, when that differs from `listen`.
    pub advertise: Option<String>,
    /// Where HTTP clients reach it, told to the cluster for status pages; set by the node.
    pub http_advertise: String,
}

/// Creating and joining a cluster.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Members to join through: `host:port` of their peer addresses.
    pub join: Vec<String>,
    /// Form a new cluster alone, at once, when the data directory belongs to none (`--dev`).
    pub form_alone: bool,
    /// Form a new cluster when this many fresh nodes see each other; 0 never does. The one with
    /// the lowest name forms it.
    pub expect: u32,
    /// Shards of a new cluster. Fixed at creation.
    pub shards: u32,
    /// Copies beside the primary in a new cluster. Fixed at creation.
    pub standbys: u8,
    /// Members that vote in consensus: 1, 3 or 5.
    pub voters: u8,
}

/// The threads that run entities.
#[derive(Debug, Clone)]
pub struct Lanes {
    /// How many; 0 takes one per core.
    pub count: u16,
    /// Turns that one poll runs before the lane lets others in.
    pub turns_per_poll: u32,
    /// A turn longer than this counts as slow.
    pub slow_turn: Duration,
    /// Threads for `#[command(blocking)]`.
    pub blocking_threads: u16,
}

/// What waits, at most.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Bytes of requests inside this node, all together.
    pub request_bytes: u64,
    /// Requests inside this node that came in here, all together.
    pub requests: u32,
    /// Requests without a reply on one connection between nodes.
    pub window_messages: u32,
    /// Bytes of requests without a reply on one connection between nodes.
    pub window_bytes: u64,
    /// Entries of one shard that are not committed yet.
    pub uncommitted_entries: u32,
    /// Bytes of entity state in memory; beyond it the idlest entities are passivated.
    pub state_bytes: u64,
    /// Bytes of records that make commands take effect once; beyond it keyed commands are refused.
    pub dedup_bytes: u64,
    /// How long such a record is kept, in the log time of its shard. A retry that comes later runs
    /// again.
    pub dedup_retention: Duration,
    /// Bytes of state that is in the journal but not yet in a snapshot; beyond it writes wait.
    pub dirty_bytes: u64,
    /// Connections from peers and clients.
    pub connections: u32,
    /// The longest deadline that a call may ask for.
    pub deadline_max: Duration,
}

/// Disk.
#[derive(Debug, Clone)]
pub struct Storage {
    /// Below this much free space writes are refused.
    pub reserve_bytes: u64,
    /// The journal is cut when it is longer than this.
    pub journal_bytes: u64,
    /// How often dirty entities go into a snapshot.
    pub checkpoint_every: Duration,
    /// How often all states are compared with those of their other copies, with standbys.
    pub audit_every: Duration,
}

/// How deaths are noticed.
#[derive(Debug, Clone)]
pub struct Detection {
    /// How often members say that they live.
    pub heartbeat: Duration,
    /// Silence after which a member counts as down. A closed socket is quicker.
    pub suspect_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: None,
            data_dir: PathBuf::from("mainstay-data"),
            zone: String::new(),
            weight: 1,
            peers: Peers {
                listen: "127.0.0.1:7000".to_owned(),
                advertise: None,
                http_advertise: String::new(),
            },
            cluster: ClusterOptions {
                join: Vec::new(),
                form_alone: false,
                expect: 0,
                shards: 1024,
                standbys: 0,
                voters: 3,
            },
            lanes: Lanes {
                count: 0,
                turns_per_poll: 256,
                slow_turn: Duration::from_millis(10),
                blocking_threads: 8,
            },
            limits: Limits {
                request_bytes: 64 << 20,
                requests: 8192,
                window_messages: 2048,
                window_bytes: 16 << 20,
                uncommitted_entries: 4096,
                state_bytes: 1 << 30,
                dedup_bytes: 256 << 20,
                dedup_retention: Duration::from_secs(24 * 60 * 60),
                dirty_bytes: 256 << 20,
                connections: 4096,
                deadline_max: Duration::from_secs(300),
            },
            storage: Storage {
                reserve_bytes: 256 << 20,
                journal_bytes: 64 << 20,
                checkpoint_every: Duration::from_millis(500),
                audit_every: Duration::from_secs(60 * 60),
            },
            detection: Detection {
                heartbeat: Duration::from_millis(100),
                suspect_after: Duration::from_millis(400),
            },
        }
    }
}
