//! The types that the consensus library is instantiated with, and their encoding.
//!
//! Everything is named MessagePack, on disk and on the wire, so that fields can be added: a
//! rolling upgrade reads what the build before it wrote.

use std::io::Cursor;

use mainstay_protocol::control::{Applied, Command, ProposeRefused};
use mainstay_protocol::id::NodeId;
use openraft::{AnyError, StorageError, StorageIOError};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::storage::control::ControlStoreError;

openraft::declare_raft_types!(
    /// Mainstay's consensus: commands on the cluster state, between disks.
    pub(crate) Types:
        D = Command,
        R = Outcome,
        NodeId = u64,
        Node = Peer,
        Entry = openraft::Entry<Types>,
        SnapshotData = Cursor<Vec<u8>>,
);

pub(crate) type Raft = openraft::Raft<Types>;
pub(crate) type RaftMetrics = openraft::RaftMetrics<u64, Peer>;
pub(crate) type LogId = openraft::LogId<u64>;
pub(crate) type StoredMembership = openraft::StoredMembership<u64, Peer>;
pub(crate) type SnapshotMeta = openraft::SnapshotMeta<u64, Peer>;

/// Where a consensus member was when it joined. Its present address is in the address book.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Peer {
    /// Its node name; `None` in the library's own tests only.
    pub(crate) node: Option<NodeId>,
    /// Its peer address.
    pub(crate) addr: String,
}

/// What applying an entry gave; `None` for the library's own entries.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Outcome(pub(crate) Option<Result<Applied, ProposeRefused>>);

/// Encodes a value of the consensus room.
pub(crate) fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    rmp_serde::to_vec_named(value).expect("consensus values hold only what MessagePack can say")
}

/// Decodes what [`encode`] wrote.
pub(crate) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, rmp_serde::decode::Error> {
    rmp_serde::from_slice(bytes)
}

/// Decodes a stored value; what does not decode is damage.
pub(crate) fn stored<T: DeserializeOwned>(
    what: &str,
    bytes: &[u8],
) -> Result<T, ControlStoreError> {
    decode(bytes).map_err(|_| ControlStoreError::Corrupt { what: what.to_owned() })
}

pub(crate) type StoreError = StorageError<u64>;

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(crate) fn read_failed(error: ControlStoreError) -> StoreError {
    StorageIOError::read(AnyError::new(&error)).into()
}

#[expect(clippy::needless_pass_by_value, reason = "it is given to map_err")]
pub(crate) fn write_failed(error: ControlStoreError) -> StoreError {
    StorageIOError::write(AnyError::new(&error)).into()
}
