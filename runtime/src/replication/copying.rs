//! Copies of the states for standbys that are too far behind for entries.
//!
//! ```text
//!   feed: Copy(base) --> the lane saves the shard --> send ---page by page---> CopyIn: begin? drop,
//!   feed: handle_copied <---------------------------- Ok                       store, live at base
//! ```
//! The shard serves on meanwhile, so rows may be newer than `base`: each has the place of the entry
//! that made it, and the standby, which gets every entry after `base`, skips what a row holds. Only
//! what is committed is saved, so no row is of an entry that another history replaces.
//!
//! A copy goes at the pace at which its receiver makes pages durable, one at a time. It is not held
//! back beyond that: a feed keeps only so many entries behind `base`, and a copy that takes longer
//! than these last is needed once more. So its `base` is named when its turn has come, and the turn
//! lasts until its receiver has caught up.

pub mod arrivals;
pub mod pages;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use mainstay_protocol::id::{Epoch, NodeId, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::snapshot::{Head, Reason};
use mainstay_protocol::time::LogTime;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::clock;
use crate::storage::{ShardMark, State};
use crate::transport;
use crate::transport::handshake::Identity;
pub use arrivals::CopyIn;
pub use pages::CopyError;
use pages::{Outgoing, PAGE_BYTES, Way, answered};

/// Copies that a node sends at one time; others wait. Each holds a page and the entries that come
/// meanwhile in memory, and keeps a reading thread of the storage busy, of which there are two.
pub const COPIES_OUT_MAX: usize = 2;

/// What copies need of the node that sends them.
#[derive(Debug)]
pub struct CopyParts {
    state: State,
    identity: Arc<Identity>,
    config: transport::Config,
    numbers: Numbers,
    turns: Arc<Semaphore>,
}

impl CopyParts {
    /// The tables, who this node is, and how it connects.
    pub fn new(state: State, identity: Arc<Identity>, config: transport::Config) -> Self {
        let turns = Arc::new(Semaphore::new(COPIES_OUT_MAX));
        Self { state, identity, config, numbers: Numbers::default(), turns }
    }

    /// The next turn to send a copy, after those who asked before.
    pub(super) async fn turn(&self) -> OwnedSemaphorePermit {
        Arc::clone(&self.turns).acquire_owned().await.expect("nobody closes it")
    }
}

/// A copy to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    /// The shard.
    pub shard: ShardId,
    /// The epoch in which this node is its primary.
    pub epoch: Epoch,
    /// Everything up to here is in the tables, dedup records included, before the copy is sent.
    pub base: Position,
    /// The shard's log time there, or later.
    pub log_time: LogTime,
    /// Who gets it.
    pub to: NodeId,
    /// Where that one listens.
    pub addr: String,
}

/// Sends a copy that has its turn: when this is `Ok`, the other end has it, durably, and its standby
/// goes on from there. May be dropped at any time; the copy then breaks off.
///
/// # Errors
/// [`CopyError`], by what is wrong. The other end has nothing that counts, unless only its last
/// answer was lost.
pub async fn send(parts: &CopyParts, copy: CopyOut) -> Result<(), CopyError> {
    let sent = send_now(parts, copy).await;
    pages::count_copy("sent", if sent.is_ok() { "ok" } else { "failed" });
    sent
}

async fn send_now(parts: &CopyParts, copy: CopyOut) -> Result<(), CopyError> {
    let CopyOut { shard, epoch, base, log_time, to, addr } = copy;
    let CopyParts { state, identity, config, .. } = parts;
    let reason = Reason::Standby { base };
    let head = Head { shard, copy: parts.numbers.next(), epoch, reason };
    let way = Way { identity, config, addr: &addr, to: &to };
    let mut copy = Outgoing::begin(way, head).await?;
    copy.states(state).await?;
    let mut after = None;
    loop {
        let page = answered(|done| state.export_dedup(shard, after, PAGE_BYTES, done)).await?;
        after = page.rows.last().map(|row| (row.entity.clone(), row.record.key.clone()));
        if !page.rows.is_empty() {
            let records = page.rows.into_iter().map(|row| (row.entity, row.log_time, row.record));
            copy.records(records.collect()).await?;
        }
        if page.last {
            check(page.mark, &head, base)?;
            return copy.finish(base, log_time).await;
        }
    }
}

/// Whether all pages were read from the shard as its primary of this epoch saved it, by what the
/// tables say after the last page. One that was dropped begins at 0, and is back in a later epoch.
/// A copy without this would be cut off, and its rows would be as many as were sent.
fn check(mark: Option<ShardMark>, head: &Head, base: Position) -> Result<(), CopyError> {
    let saved = match mark {
        Some(mark) => mark.applied.seq >= base.seq && mark.epoch <= head.epoch,
        None => base.seq == Seq(0),
    };
    if saved { Ok(()) } else { Err(CopyError::Replaced) }
}

/// Numbers that grow, across starts as well while the wall clock does.
#[derive(Debug, Default)]
struct Numbers(AtomicU64);

impl Numbers {
    fn next(&self) -> u64 {
        let wall = clock::wall().0;
        let next = |last: u64| Some(wall.max(last + 1));
        let last = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next);
        let last = last.expect("there always is a next one");
        wall.max(last + 1)
    }
}

#[cfg(test)]
mod tests;
