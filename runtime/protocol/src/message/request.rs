//! How a request is written: as its fields in order, of which the last ones are left away.
//!
//! ```text
//!   neither said      16 fields, as all builds know them
//!   a condition       17: ..., if_version
//!   a freshness       18: ..., nil, freshness
//! ```
//! What is written says by its place which field it is, so a field that is left away may have none
//! after it that is not.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::Request;

/// The fields that are always there.
const ALWAYS: usize = 16;

impl Serialize for Request {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (condition, freshness) = (self.if_version.is_some(), self.freshness.is_some());
        let more = if freshness { 2 } else { usize::from(condition) };
        let mut all = serializer.serialize_struct("Request", ALWAYS + more)?;
        all.serialize_field("correlation", &self.correlation)?;
        all.serialize_field("id", &self.id)?;
        all.serialize_field("shard", &self.shard)?;
        all.serialize_field("epoch", &self.epoch)?;
        all.serialize_field("kind", &self.kind)?;
        all.serialize_field("key", &self.key)?;
        all.serialize_field("method", &self.method)?;
        all.serialize_field("mode", &self.mode)?;
        all.serialize_field("pressure", &self.pressure)?;
        all.serialize_field("remaining_us", &self.remaining_us)?;
        all.serialize_field("idempotency", &self.idempotency)?;
        all.serialize_field("chain", &self.chain)?;
        all.serialize_field("attempt", &self.attempt)?;
        all.serialize_field("trace", &self.trace)?;
        all.serialize_field("from_kind", &self.from_kind)?;
        all.serialize_field("payload", &self.payload)?;
        if more > 0 {
            all.serialize_field("if_version", &self.if_version)?;
        }
        if freshness {
            all.serialize_field("freshness", &self.freshness)?;
        }
        all.end()
    }
}
