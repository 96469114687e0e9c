//! Whether the parts of an append fit together.

use super::AppendError;
use crate::id::ShardId;
use crate::replication::{Append, Position};

/// Whether the parts of an append follow each other.
pub(super) fn check_shape(shard: ShardId, append: &Append) -> Result<(), AppendError> {
    let malformed = |reason| Err(AppendError::Malformed { reason });
    if append.shard != shard {
        return malformed("it is for another shard");
    }
    let mut last = append.prev;
    if last.epoch > append.epoch {
        return malformed("what it goes on from is of a later epoch");
    }
    for segment in &append.segments {
        if segment.shard != shard {
            return malformed("a segment of another shard");
        }
        if segment.first != last.seq.next() || segment.last < segment.first {
            return malformed("its segments do not follow each other");
        }
        if segment.epoch < last.epoch || segment.epoch > append.epoch {
            return malformed("epochs that run backwards, or ahead of the primary's");
        }
        last = Position { epoch: segment.epoch, seq: segment.last };
    }
    Ok(())
}
