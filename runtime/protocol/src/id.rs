//! The names of things: nodes, disks, shards, entities, requests; and the pinned hashes.
//!
//! Hashes here are part of the stored format: `xxh3` over explicit little-endian bytes, pinned by
//! golden tests. Changing one strands every stored entity.

mod token;

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{Xxh3, xxh3_64};

use crate::limits;
pub use token::{Token, TokenError};

/// Why a name was refused. Nothing was changed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters. Give it at least one.
    #[error("{what} is empty")]
    Empty {
        /// Which name: "key", "kind", "node name", ...
        what: &'static str,
    },
    /// The name is longer than its limit. Shorten it, or store the long part in the state.
    #[error("{what} has {bytes} bytes, the limit is {bytes_max}")]
    TooLong {
        /// Which name.
        what: &'static str,
        /// Its length.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The name holds a character that is not allowed in it.
    #[error("{what} {name:?} may hold only {allowed}")]
    Characters {
        /// Which name.
        what: &'static str,
        /// The name, as given.
        name: String,
        /// What is allowed, in words.
        allowed: &'static str,
    },
}

/// The stable, human name of a node, unique in its cluster: `n1`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct NodeId(Arc<str>);

impl NodeId {
    /// A node name of lower-case letters, digits, `-`, `_` and `.`.
    ///
    /// # Errors
    /// [`NameError`] when it is empty, too long or holds another character.
    pub fn new(name: &str) -> Result<Self, NameError> {
        check_name("node name", name)?;
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Arc<str>> for NodeId {
    type Error = NameError;

    fn try_from(name: Arc<str>) -> Result<Self, NameError> {
        check_name("node name", &name)?;
        Ok(Self(name))
    }
}

impl From<NodeId> for Arc<str> {
    fn from(node: NodeId) -> Self {
        node.0
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Checks a node or kind name: 1 to 64 of `a-z 0-9 - _ .`.
///
/// # Errors
/// [`NameError`], by what is wrong.
pub fn check_name(what: &'static str, name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty { what });
    }
    if name.len() > limits::NAME_BYTES_MAX {
        return Err(NameError::TooLong {
            what,
            bytes: name.len(),
            bytes_max: limits::NAME_BYTES_MAX,
        });
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-_.".contains(c);
    if name.chars().all(allowed) {
        return Ok(());
    }
    Err(NameError::Characters {
        what,
        name: name.to_owned(),
        allowed: "lower-case letters, digits, '-', '_' and '.'",
    })
}

macro_rules! random_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        pub struct $name([u8; 16]);

        impl $name {
            /// The id made of these 16 random bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// The 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }

            /// Reads the 32 hexadecimal digits that `Display` writes.
            pub fn parse(text: &str) -> Option<Self> {
                if text.len() != 32 || !text.is_ascii() {
                    return None;
                }
                let mut bytes = [0; 16];
                for (at, byte) in bytes.iter_mut().enumerate() {
                    *byte = u8::from_str_radix(&text[at * 2..at * 2 + 2], 16).ok()?;
                }
                Some(Self(bytes))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    };
}

random_id! {
    /// Names one cluster for ever; written to every member's disk and said in every handshake.
    ClusterId
}
random_id! {
    /// Names one data directory for ever. An in-sync claim is bound to it: a node that comes back
    /// with an empty directory has another disk id, and none of its old claims.
    DiskId
}

impl DiskId {
    /// The id under which this disk takes part in consensus: a wiped voter never votes under its
    /// old id (KIP-853: a voter is an id and a directory).
    pub fn consensus_id(&self) -> u64 {
        xxh3_64(&self.0).max(1)
    }
}

/// One start of a node's process: milliseconds since the Unix epoch, made greater than the last
/// one stored. A restarted primary has another boot id and needs another epoch.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct BootId(pub u64);

/// A shard: the unit of placement, ordering, replication and failover. `0..shards`.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct ShardId(pub u32);

impl ShardId {
    /// The shard of an affinity key, pinned: `xxh3_64(affinity) % shards`. The kind is not hashed,
    /// so that groups across kinds stay together.
    ///
    /// # Panics
    /// When `shards` is zero: a cluster is created with at least one.
    pub fn of(affinity: &str, shards: u32) -> Self {
        assert!(shards > 0, "a cluster has at least one shard");
        let hash = xxh3_64(affinity.as_bytes());
        Self(u32::try_from(hash % u64::from(shards)).expect("a remainder below a u32"))
    }
}

impl fmt::Display for ShardId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// The generation of a shard's primary; a greater one fences every smaller one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Epoch(pub u64);

/// The place of an entry in its shard, from 1; 0 is "before the first".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Seq(pub u64);

impl Seq {
    /// The next place.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

/// The number of a journal commit on one node, from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct CommitNo(pub u64);

/// An entity kind on the wire and on disk: the low 32 bits of `xxh3_64(name)`. Registration
/// refuses two names with one id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KindId(pub u32);

/// A method of a kind on the wire: the low 32 bits of `xxh3_64(name)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MethodId(pub u32);

impl KindId {
    /// The id of the kind of this name.
    pub fn of(name: &str) -> Self {
        Self(low_32(xxh3_64(name.as_bytes())))
    }
}

impl MethodId {
    /// The id of the method of this name.
    pub fn of(name: &str) -> Self {
        Self(low_32(xxh3_64(name.as_bytes())))
    }
}

fn low_32(hash: u64) -> u32 {
    u32::try_from(hash & u64::from(u32::MAX)).expect("32 bits were kept")
}

/// The key of an entity within its kind: any UTF-8 text of 1 to 512 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct Key(Arc<str>);

impl Key {
    /// A key.
    ///
    /// # Errors
    /// [`NameError`] when it is empty or longer than [`limits::KEY_BYTES_MAX`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    fn check(text: &str) -> Result<(), NameError> {
        if text.is_empty() {
            return Err(NameError::Empty { what: "key" });
        }
        if text.len() > limits::KEY_BYTES_MAX {
            return Err(NameError::TooLong {
                what: "key",
                bytes: text.len(),
                bytes_max: limits::KEY_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The text before the first `separator`, or all of it: the usual affinity key.
    pub fn prefix(&self, separator: char) -> &str {
        self.0.split(separator).next().unwrap_or(&self.0)
    }
}

impl TryFrom<Arc<str>> for Key {
    type Error = NameError;

    fn try_from(text: Arc<str>) -> Result<Self, NameError> {
        Self::check(&text)?;
        Ok(Self(text))
    }
}

impl From<Key> for Arc<str> {
    fn from(key: Key) -> Self {
        key.0
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One entity: its kind and its key.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntityId {
    /// The kind.
    pub kind: KindId,
    /// The key.
    pub key: Key,
}

impl EntityId {
    /// A pinned 64-bit hash of kind and key, for call chains and tables.
    pub fn hash64(&self) -> u64 {
        let mut hasher = Xxh3::new();
        hasher.update(&self.kind.0.to_le_bytes());
        hasher.update(self.key.as_str().as_bytes());
        hasher.digest()
    }
}

/// One request, unique without coordination: the caller's random half and its counter. In-turn
/// calls derive theirs from (request id, call number), so that a turn that runs again asks under
/// the same ids.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct RequestId {
    /// The caller: random.
    pub caller: u64,
    /// The caller's counter.
    pub number: u64,
}

impl RequestId {
    /// The id of whatever request brings this key to this entity: a repetition is the same one.
    #[must_use]
    pub fn of_key(entity: &EntityId, key: &IdempotencyKey) -> Self {
        let mut hasher = Xxh3::with_seed(entity.hash64());
        hasher.update(key.as_str().as_bytes());
        let caller = hasher.digest();
        hasher.update(&[0]);
        Self { caller, number: hasher.digest() }
    }

    /// The id of the `call`-th request that the turn of this request makes.
    #[must_use]
    pub fn derive(self, call: u32) -> Self {
        let mut hasher = Xxh3::new();
        hasher.update(&self.caller.to_le_bytes());
        hasher.update(&self.number.to_le_bytes());
        hasher.update(&call.to_le_bytes());
        Self { caller: hasher.digest(), number: self.number ^ (u64::from(call) << 32) }
    }
}

/// What a caller repeats so that a command takes effect once: 1 to 255 bytes of its choice,
/// scoped to one entity.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Arc<str>", into = "Arc<str>")]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// A key.
    ///
    /// # Errors
    /// [`NameError`] when it is empty or longer than [`limits::IDEMPOTENCY_KEY_BYTES_MAX`].
    pub fn new(text: &str) -> Result<Self, NameError> {
        Self::check(text)?;
        Ok(Self(text.into()))
    }

    fn check(text: &str) -> Result<(), NameError> {
        if text.is_empty() {
            return Err(NameError::Empty { what: "idempotency key" });
        }
        if text.len() > limits::IDEMPOTENCY_KEY_BYTES_MAX {
            return Err(NameError::TooLong {
                what: "idempotency key",
                bytes: text.len(),
                bytes_max: limits::IDEMPOTENCY_KEY_BYTES_MAX,
            });
        }
        Ok(())
    }

    /// The key of an in-turn call: the derived request id, in hexadecimal.
    pub fn derived(request: RequestId) -> Self {
        Self(format!("~{:016x}{:016x}", request.caller, request.number).into())
    }

    /// The key's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<Arc<str>> for IdempotencyKey {
    type Error = NameError;

    fn try_from(text: Arc<str>) -> Result<Self, NameError> {
        Self::check(&text)?;
        Ok(Self(text))
    }
}

impl From<IdempotencyKey> for Arc<str> {
    fn from(key: IdempotencyKey) -> Self {
        key.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_pinned() {
        assert_eq!(ShardId::of("alice", 1024), ShardId(GOLDEN_ALICE_1024));
        assert_eq!(KindId::of("account"), KindId(GOLDEN_ACCOUNT));
        let id = EntityId { kind: KindId(7), key: Key::new("k").unwrap() };
        assert_eq!(id.hash64(), GOLDEN_ENTITY);
    }

    const GOLDEN_ALICE_1024: u32 = 688;
    const GOLDEN_ACCOUNT: u32 = 688_898_259;
    const GOLDEN_ENTITY: u64 = 8_165_592_686_702_342_490;

    #[test]
    fn ids_read_back_what_they_print() {
        let id = ClusterId::from_bytes(*b"0123456789abcdef");
        assert_eq!(ClusterId::parse(&id.to_string()), Some(id));
        assert_eq!(ClusterId::parse("xyz"), None);
    }

    #[test]
    fn bad_names_say_what_is_wrong() {
        assert_eq!(Key::new("").unwrap_err().to_string(), "key is empty");
        let long = "x".repeat(10_000);
        assert_eq!(
            Key::new(&long).unwrap_err().to_string(),
            "key has 10000 bytes, the limit is 512"
        );
        assert!(NodeId::new("N 1").is_err());
        assert!(Key::new("unicode \u{1F600} is fine").is_ok());
    }

    #[test]
    fn a_node_name_that_arrives_is_checked_like_one_that_is_made() {
        let decode =
            |name: &str| rmp_serde::from_slice::<NodeId>(&rmp_serde::to_vec(name).unwrap());
        assert_eq!(decode("n1").unwrap(), NodeId::new("n1").unwrap());
        assert!(decode("").is_err());
        assert!(decode("N 1").is_err());
        assert!(decode(&"n".repeat(1_000_000)).is_err());
    }

    #[test]
    fn derived_request_ids_differ_by_call_and_repeat_by_turn() {
        let request = RequestId { caller: 1, number: 2 };
        assert_eq!(request.derive(0), request.derive(0));
        assert_ne!(request.derive(0), request.derive(1));
    }
}
