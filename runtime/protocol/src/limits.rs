//! Every fixed limit of names, frames and sets, with its unit and its reason.

/// Bytes of an entity key. A key is a name, not a payload; it is repeated in every entry.
pub const KEY_BYTES_MAX: usize = 512;
/// Bytes of a node name or kind name.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of an idempotency key.
pub const IDEMPOTENCY_KEY_BYTES_MAX: usize = 255;
/// Bytes of one frame between nodes. Larger states travel in chunks.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// Bytes of one command or query payload, and of one reply.
pub const PAYLOAD_BYTES_MAX: usize = 1 << 20;
/// Bytes of one entity's encoded state.
pub const STATE_BYTES_MAX: usize = 8 << 20;
/// Nesting of a decoded message, against depth bombs.
pub const DECODE_DEPTH_MAX: usize = 64;
/// Entities on one call chain: A calls B calls C. Longer chains are refused.
pub const CALL_CHAIN_MAX: usize = 16;
/// Shards of a cluster, fixed at its creation.
pub const SHARDS_MAX: u32 = 262_144;
/// Virtual nodes per unit of weight on the ring.
pub const RING_POINTS_PER_WEIGHT: u32 = 256;
/// Kinds that one node hosts. Each is in everything that a node says about itself.
pub const KINDS_MAX: usize = 4_096;
/// Bytes of an address, `host:port`: a DNS name of 253, a port, and some.
pub const ADDR_BYTES_MAX: usize = 300;
/// Members of a cluster.
pub const MEMBERS_MAX: usize = 4_096;
/// Shards that one command promotes: all of a node's in most clusters, and below the bytes that a
/// command may have (some 250 each).
pub const PROMOTED_SHARDS_MAX: usize = 4_096;
/// Bytes at which a segment is closed and the next entry starts another.
pub const SEGMENT_BYTES_TARGET: usize = 1 << 20;
/// Bytes of one entry: a whole state, a stored reply, names, and what holds them together.
pub const ENTRY_BYTES_MAX: usize = STATE_BYTES_MAX + PAYLOAD_BYTES_MAX + (16 << 10);
/// Bytes of one segment: everything below the target, and the entry that crossed it.
pub const SEGMENT_BYTES_MAX: usize = SEGMENT_BYTES_TARGET + ENTRY_BYTES_MAX;
