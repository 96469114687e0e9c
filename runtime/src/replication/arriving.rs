//! Copies of states that arrive, as this room takes them: it asks the standby, and tells it.

use mainstay_protocol::id::ShardId;
use mainstay_protocol::replication::standby::Ticket;
use tokio::sync::oneshot;

use super::copying::arrivals::{Arrived, Offer, Standbys};
use super::copying::pages::count_copy;
use super::shadow::Start;
use super::{Input, ReplicationInbox};
use crate::shard::dirty::Dirty;

/// The standbys of this node, to those who bring copies.
#[derive(Debug, Clone)]
pub struct Arriving(pub ReplicationInbox);

impl Standbys for Arriving {
    type Copy = (ShardId, Ticket);

    async fn begin(&self, offer: Offer) -> Option<Self::Copy> {
        let (answer, asked) = oneshot::channel();
        let shard = offer.shard;
        drop(self.0.push(Input::CopyBegins(offer, answer)));
        let ticket = asked.await.ok().flatten();
        if ticket.is_none() {
            count_copy("received", "refused");
        }
        Some((shard, ticket?))
    }

    async fn end(&self, (shard, ticket): Self::Copy, arrived: Arrived) -> bool {
        let Arrived { base: applied, log_time, dedup, .. } = arrived;
        let dirty = Dirty::recovered(applied, applied, [], Vec::new());
        let start = Box::new(Start { applied, log_time, dedup, dirty });
        let (answer, asked) = oneshot::channel();
        drop(self.0.push(Input::CopyEnds(shard, ticket, start, answer)));
        let goes_on = asked.await.unwrap_or(false);
        count_copy("received", if goes_on { "ok" } else { "failed" });
        goes_on
    }

    fn broke_off(&self, (shard, ticket): Self::Copy) {
        count_copy("received", "failed");
        drop(self.0.push(Input::CopyBroke(shard, ticket)));
    }
}
