//! Questions to a lane: how it is, what it has in memory. Answered between two drains.

use bytes::Bytes;
use mainstay_protocol::id::{EntityId, Epoch, Seq, ShardId};
use tokio::sync::oneshot;

use super::core::Core;
use crate::shard::ShardHost;

/// A question.
#[derive(Debug)]
pub enum Inspect {
    /// How is the lane?
    Lane(oneshot::Sender<LaneView>),
    /// What of this entity is in memory?
    Entity(ShardId, EntityId, oneshot::Sender<EntityView>),
    /// Which entities of a kind are not yet in a snapshot?
    List(Listing, oneshot::Sender<Vec<ListedEntity>>),
    /// Which of these entities are in memory?
    Active(Vec<(ShardId, EntityId)>, oneshot::Sender<Vec<bool>>),
}

/// Which entities to list: the first ones in key order.
#[derive(Debug, Clone)]
pub struct Listing {
    /// The kind.
    pub kind: mainstay_protocol::id::KindId,
    /// Only keys that begin so.
    pub prefix: String,
    /// Only keys that come after this one.
    pub after: Option<String>,
    /// So many of each shard, at most.
    pub limit: usize,
}

impl Listing {
    fn wants(&self, entity: &EntityId) -> bool {
        let key = entity.key.as_str();
        entity.kind == self.kind
            && key.starts_with(&self.prefix)
            && self.after.as_deref().is_none_or(|after| key > after)
    }
}

/// A lane, at one moment.
#[derive(Debug, Clone, Default)]
pub struct LaneView {
    /// Shards that it is the primary of, with their epochs and last entries.
    pub serving: Vec<(ShardId, Epoch, Seq)>,
    /// Shards whose primary is taking over: replies wait for the first commit.
    pub starting: u32,
    /// Entities in memory.
    pub entities: u64,
    /// Bytes of their state.
    pub state_bytes: u64,
    /// Requests inside.
    pub requests: u64,
}

/// One entity, at one moment.
#[derive(Debug, Clone, Default)]
pub struct EntityView {
    /// This lane is the primary of its shard.
    pub serving: bool,
    /// It is in memory.
    pub active: bool,
    /// Its committed state, when no snapshot holds it.
    pub dirty: Option<(Seq, Bytes)>,
}

/// One entity of a list.
#[derive(Debug, Clone)]
pub struct ListedEntity {
    /// The entity.
    pub entity: EntityId,
    /// Its shard.
    pub shard: ShardId,
    /// The entry that last changed it.
    pub seq: Seq,
    /// Bytes of its encoded state.
    pub bytes: u64,
}

impl Core {
    /// Answers a question.
    pub(super) fn answer(&mut self, question: Inspect) {
        match question {
            Inspect::Lane(to) => drop(to.send(self.view())),
            Inspect::Entity(shard, entity, to) => {
                let mut view = EntityView::default();
                if let Some(host) = self.shards.get_mut(&shard) {
                    if let Some(serving) = host.is_serving() {
                        view.serving = true;
                        view.active = serving.primary.slot_of(&entity).is_some();
                    }
                    let row = host.dirty().and_then(|dirty| dirty.get(&entity).cloned());
                    view.dirty = row.map(|row| (row.seq, row.bytes));
                }
                drop(to.send(view));
            }
            Inspect::List(listing, to) => drop(to.send(self.list(&listing))),
            Inspect::Active(entities, to) => {
                let active = entities.iter().map(|(shard, entity)| self.is_active(*shard, entity));
                drop(to.send(active.collect()));
            }
        }
    }

    fn is_active(&self, shard: ShardId, entity: &EntityId) -> bool {
        let serving = self.shards.get(&shard).and_then(ShardHost::is_serving);
        serving.is_some_and(|serving| serving.primary.slot_of(entity).is_some())
    }

    fn view(&self) -> LaneView {
        let mut view = LaneView {
            state_bytes: self.env.passivation.bytes(),
            entities: u64::from(self.env.passivation.residents()),
            ..LaneView::default()
        };
        for host in self.shards.values() {
            let Some(serving) = host.is_serving() else { continue };
            let primary = &serving.primary;
            view.serving.push((host.shard, serving.epoch, primary.last()));
            view.starting += u32::from(!primary.is_active());
            view.requests += u64::from(primary.requests());
        }
        view
    }

    fn list(&mut self, listing: &Listing) -> Vec<ListedEntity> {
        let mut listed = Vec::new();
        for (shard, host) in &mut self.shards {
            let Some(dirty) = host.dirty() else { continue };
            let rows = dirty.iter().filter(|(entity, _)| listing.wants(entity));
            listed.extend(rows.take(listing.limit).map(|(entity, row)| ListedEntity {
                entity: entity.clone(),
                shard: *shard,
                seq: row.seq,
                bytes: row.bytes.len() as u64,
            }));
        }
        listed
    }
}
