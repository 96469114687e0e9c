//! What a node with standbys answers their primaries' audits: the slice of its tables, or that it
//! took rows. Only the primary that this node's map names is answered.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_protocol::control::ClusterState;
use mainstay_protocol::id::{Epoch, NodeId, ShardId};
use mainstay_protocol::message::Caller;
use mainstay_protocol::replication::audit::{Ask, Question, Said};
use mainstay_protocol::snapshot::Row;
use tokio::sync::{oneshot, watch};

use super::super::copying::pages::answered;
use super::super::keeper::Keeper;
use super::super::{Input, ReplicationInbox};
use super::SLICE_BYTES;
use crate::chain::chain;
use crate::shard::dirty;
use crate::storage::{State, StorageError};

/// Rows of a primary that are to take the place of others here.
#[derive(Debug)]
pub struct Replacing {
    /// Who sends them.
    pub from: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which the sender is its primary.
    pub epoch: Epoch,
    /// The rows.
    pub rows: Vec<Row>,
}

/// Why a question was not answered. Nothing was changed.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// It comes from no node.
    #[error("only a member may audit")]
    NoMember,
    /// It does not decode.
    #[error("the question does not decode")]
    Malformed(#[from] rmp_serde::decode::Error),
    /// The node is not the shard's primary in this epoch, as far as is known here.
    #[error("{from} is not the primary of shard {shard} in epoch {}", epoch.0)]
    NotPrimary {
        /// Who asks.
        from: NodeId,
        /// The shard.
        shard: ShardId,
        /// The epoch.
        epoch: Epoch,
    },
    /// The tables could not be read.
    #[error("the tables could not be read")]
    Storage(#[from] StorageError),
    /// The answer does not encode.
    #[error("the answer does not encode")]
    Encode(#[from] rmp_serde::encode::Error),
    /// The room of the standbys ended.
    #[error("this node ends")]
    Ends,
}

/// Answers audits. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Audited {
    /// The tables.
    pub state: State,
    /// The map.
    pub map: watch::Receiver<Arc<ClusterState>>,
    /// The room of the standbys.
    pub standbys: ReplicationInbox,
}

impl Audited {
    /// Answers a question.
    ///
    /// # Errors
    /// Why not, for the eyes of who asks.
    pub async fn answer(
        &self,
        from: Caller,
        question: Result<Question, rmp_serde::decode::Error>,
    ) -> Result<Bytes, String> {
        self.said(from, question).await.map_err(|refused| chain(&refused))
    }

    async fn said(
        &self,
        from: Caller,
        question: Result<Question, rmp_serde::decode::Error>,
    ) -> Result<Bytes, Refused> {
        let Caller::Node { node: from, .. } = from else { return Err(Refused::NoMember) };
        let Question { shard, epoch, what } = question?;
        if !is_primary(&self.map.borrow(), (shard, epoch), &from) {
            return Err(Refused::NotPrimary { from, shard, epoch });
        }
        let said = match what {
            Ask::Compare { after, upto, digest } => {
                // Room for rows that the primary does not have.
                let (range, bytes) = ((after, upto), 2 * SLICE_BYTES);
                let slice = answered(|done| self.state.digest(shard, range, bytes, done)).await?;
                if slice.digest() == digest { Said::Same } else { Said::Rows(slice) }
            }
            Ask::Replace(rows) => {
                let (answer, asked) = oneshot::channel();
                let replacing = Replacing { from, shard, epoch, rows };
                drop(self.standbys.push(Input::Replace(replacing, answer)));
                Said::Replaced(asked.await.map_err(|_| Refused::Ends)?)
            }
        };
        Ok(rmp_serde::to_vec(&said)?.into())
    }
}

fn is_primary(map: &ClusterState, (shard, epoch): (ShardId, Epoch), node: &NodeId) -> bool {
    let config = map.shard(shard).filter(|config| config.epoch == epoch);
    let primary = config.and_then(|config| config.primary.as_ref());
    primary.is_some_and(|claim| claim.node == *node)
}

impl Keeper {
    /// A primary's rows for those that its audit found wrong here: how many are taken.
    pub(in crate::replication) fn handle_replacing(&mut self, replacing: Replacing) -> u32 {
        let Replacing { from, shard, epoch, rows } = replacing;
        if !is_primary(&self.env.map, (shard, epoch), &from) {
            return 0;
        }
        let mut taken = 0;
        self.with_following(shard, |following, _| {
            if following.takes() {
                for Row { entity, seq, bytes } in rows {
                    let row = dirty::Row { seq, bytes };
                    taken += u32::from(following.shadow.replace(entity, row));
                }
            }
            Ok(())
        });
        taken
    }
}
