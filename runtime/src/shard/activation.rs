//! One entity in memory: its state, and the bytes of its last good turn.
//!
//! The bytes are both the base of the next delta and the way back when a turn fails: an `Err`, a
//! panic or a lost primacy decodes them again, so a failed turn leaves nothing behind.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use mainstay_protocol::entry::Change;
use mainstay_protocol::id::Key;
use mainstay_protocol::replication::delta;

use crate::entity::host::{BoxState, KindHost, StateError};

/// What an entity costs in memory beside its state, as `bench idle-memory` measures it.
const OVERHEAD: u64 = 256;

/// One entity in memory.
pub struct Activation {
    /// The live state; away while an async or blocking turn has it.
    state: Option<BoxState>,
    /// The encoded state after the last good turn; `None` before the first write.
    base: Option<Bytes>,
}

impl std::fmt::Debug for Activation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Activation")
            .field("away", &self.state.is_none())
            .field("base_bytes", &self.bytes())
            .finish_non_exhaustive()
    }
}

impl Activation {
    /// The activation of these bytes, or of a fresh entity.
    ///
    /// # Errors
    /// [`StateError`] when the bytes do not decode; nothing is changed.
    pub fn new(kind: &dyn KindHost, key: &Key, base: Option<Bytes>) -> Result<Self, StateError> {
        let state = decode(kind, key, base.as_ref())?;
        Ok(Self { state: Some(state), base })
    }

    /// Bytes that count against the memory for entities: the encoded state, and what an entity
    /// costs that has none.
    pub fn bytes(&self) -> u64 {
        OVERHEAD + self.base.as_ref().map_or(0, |base| base.len() as u64)
    }

    /// Its state is here, and not away with a turn or lost with one.
    pub const fn is_whole(&self) -> bool {
        self.state.is_some()
    }

    /// The live state.
    ///
    /// # Panics
    /// When a turn has it: the shard runs one turn per entity at a time.
    pub fn state(&self) -> &BoxState {
        self.state.as_ref().expect("no turn of this entity is running")
    }

    /// The live state, to change.
    ///
    /// # Panics
    /// When a turn has it: the shard runs one turn per entity at a time.
    pub fn state_mut(&mut self) -> &mut BoxState {
        self.state.as_mut().expect("no turn of this entity is running")
    }

    /// Lends the state to an async or blocking turn.
    ///
    /// # Panics
    /// When a turn has it already.
    pub fn lend(&mut self) -> BoxState {
        self.state.take().expect("no turn of this entity is running")
    }

    /// Keeps a good turn: what it changed, and the bytes it left.
    ///
    /// `scratch` is any buffer; it is overwritten.
    ///
    /// # Errors
    /// [`StateError`] when the state cannot be encoded; then the turn is no good and must be
    /// undone.
    pub fn keep(
        &mut self,
        kind: &dyn KindHost,
        state: Option<BoxState>,
        scratch: &mut Vec<u8>,
    ) -> Result<Change, StateError> {
        if state.is_some() {
            self.state = state;
        }
        scratch.clear();
        caught(|| kind.encode(self.state(), scratch))?;
        if self.base.as_ref().is_some_and(|base| base[..] == scratch[..]) {
            return Ok(Change::None);
        }
        let next = Bytes::copy_from_slice(scratch);
        let change = delta::change(self.base.as_deref(), &next);
        self.base = Some(next);
        Ok(change)
    }

    /// The bytes after the last good turn.
    pub const fn base(&self) -> Option<&Bytes> {
        self.base.as_ref()
    }

    /// Takes the state back to the last good turn.
    ///
    /// # Errors
    /// [`StateError`] when the bytes, which decoded before, do not: the kind's decoder is not
    /// deterministic. The state is gone then, and only what is undone later is of use again.
    pub fn undo(&mut self, kind: &dyn KindHost, key: &Key) -> Result<(), StateError> {
        self.state = None;
        self.state = Some(decode(kind, key, self.base.as_ref())?);
        Ok(())
    }
}

fn decode(kind: &dyn KindHost, key: &Key, base: Option<&Bytes>) -> Result<BoxState, StateError> {
    caught(|| match base {
        Some(bytes) => kind.decode(bytes),
        None => Ok(kind.fresh(key)),
    })
}

/// `Default`, `Serialize`, `Deserialize` and `Migrate` are user code too.
fn caught<T>(act: impl FnOnce() -> Result<T, StateError>) -> Result<T, StateError> {
    catch_unwind(AssertUnwindSafe(act)).unwrap_or(Err(StateError::Panicked))
}
