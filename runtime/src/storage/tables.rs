//! The tables of `journal.redb` and `state.redb`: the only file that knows a key's or value's bytes.
//!
//! ```text
//! value     u8 format | u64 checksum | body          checksum = xxh3(body, seed = xxh3(key) ^ format)
//! record    key u64 commit;  body: see tables/records.rs
//! promise   key u32 shard;   body: see tables/records.rs
//! entity    key u32 shard | u64 generation | u32 kind | key;              body = u64 seq | state
//! dedup     key u32 shard | u64 generation | u32 kind | u16 bytes | key | idempotency key
//! dedup 2                                         body = u64 log time | record in MessagePack
//! dedup 1                                         the same, and the record has no version
//! shard 2   key u32;  body = u8 dropped | u64 generation, applied, log time, epoch, since, wrote
//! shard 1   the same without `wrote`, the epoch of the entry at `applied`
//! ```
//!
//! Keys are big-endian, so that the byte order is the order of shards, generations and entities;
//! numbers in values are little-endian. The key seeds the checksum: a value that turns up under
//! another key is as wrong as a damaged one.

pub(super) mod records;

use mainstay_protocol::entry::DedupRecord;
use mainstay_protocol::id::{CommitNo, EntityId, Epoch, IdempotencyKey, Key, KindId, Seq, ShardId};
use mainstay_protocol::replication::Position;
use mainstay_protocol::time::LogTime;
use redb::TableDefinition;
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use super::error::StorageError;

/// The journal's file.
pub const JOURNAL_FILE: &str = "journal.redb";
/// The file of checkpointed state.
pub const STATE_FILE: &str = "state.redb";

/// The layout of rows of entities that this build writes.
const ROW_FORMAT: u8 = 1;
/// The layout of rows of dedup that this build writes; it reads all up to this one.
const DEDUP_FORMAT: u8 = 2;
/// The layout of what is known of a shard that this build writes; it reads all up to this one.
const SHARD_FORMAT: u8 = 2;
/// Bytes before a value's body.
const ENVELOPE_BYTES: usize = 9;

/// The layout of a file's tables that this build writes; it reads all up to this one.
pub(super) fn format(file: &str) -> u64 {
    // the journal's second one has the table of promises
    if file == JOURNAL_FILE { 2 } else { 1 }
}

/// Facts about the file, by name.
pub(super) const ABOUT: TableDefinition<'_, &str, u64> = TableDefinition::new("about");
/// In `ABOUT`: the layout of the tables.
pub(super) const ABOUT_FORMAT: &str = "format";
/// In `ABOUT` of the journal: the first commit that was not cut away.
pub(super) const ABOUT_CUT_BELOW: &str = "cut_below";
/// The journal's records, by commit number.
pub(super) const RECORDS: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("records");
/// The newest promise of each shard some of whose records were cut.
pub(super) const PROMISES: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("promises");
/// Entity states.
pub(super) const ENTITIES: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("entities");
/// Records that make keyed commands take effect once.
pub(super) const DEDUP: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("dedup");
/// What is known of each shard.
pub(super) const SHARDS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("shards");

/// One complete copy of a shard's state on this disk. Copies in the making have another
/// generation than the live one; 0 is the first.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

/// What is known of a shard on this disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct ShardMeta {
    /// The shard's state was dropped; what rows are left are rubbish.
    pub(super) dropped: bool,
    /// The generation that is served.
    pub(super) generation: Generation,
    /// Every entry up to this one is in the tables. Its epoch is 0 beside an entry only in rows of
    /// format 1, which builds wrote that kept one copy of each shard; a start finds it.
    pub(super) applied: Position,
    /// Log time of the entry at `applied`, or later.
    pub(super) log_time: LogTime,
    /// The newest epoch at the last checkpoint.
    pub(super) epoch: Epoch,
    /// Segments of this shard in journal records before this one belong to an earlier stay.
    pub(super) since: CommitNo,
}

fn seal(format: u8, key: &[u8], value: &mut [u8]) {
    let seed = xxh3_64(key) ^ u64::from(format);
    let checksum = xxh3_64_with_seed(&value[ENVELOPE_BYTES..], seed);
    value[0] = format;
    value[1..ENVELOPE_BYTES].copy_from_slice(&checksum.to_le_bytes());
}

/// The format and the body of a stored value, once both and its checksum are found good.
fn unseal<'v>(
    file: &'static str,
    newest: u8,
    key: &[u8],
    value: &'v [u8],
) -> Result<(u8, Fields<'v>), StorageError> {
    let fields = Fields { file, rest: value };
    if value.len() < ENVELOPE_BYTES {
        return Err(fields.corrupt("a value is shorter than its checksum"));
    }
    let (envelope, body) = value.split_at(ENVELOPE_BYTES);
    let stored = u64::from_le_bytes(envelope[1..].try_into().expect("eight bytes follow one"));
    let format = envelope[0];
    if xxh3_64_with_seed(body, xxh3_64(key) ^ u64::from(format)) != stored {
        return Err(fields.corrupt("a value does not match its checksum"));
    }
    if format > newest {
        let (found, known) = (u64::from(format), u64::from(newest));
        return Err(StorageError::Newer { file, found, known });
    }
    Ok((format, Fields { file, rest: body }))
}

/// The fields of a body or key, taken from the front.
struct Fields<'v> {
    file: &'static str,
    rest: &'v [u8],
}

impl<'v> Fields<'v> {
    fn corrupt(&self, what: &str) -> StorageError {
        StorageError::corrupt(self.file, what)
    }

    fn take(&mut self, bytes: usize) -> Result<&'v [u8], StorageError> {
        let Some((taken, rest)) = self.rest.split_at_checked(bytes) else {
            return Err(self.corrupt("a value ends early"));
        };
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], StorageError> {
        Ok(self.take(N)?.try_into().expect("as many bytes as asked for"))
    }

    fn u32_le(&mut self) -> Result<u32, StorageError> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64_le(&mut self) -> Result<u64, StorageError> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn finish(self) -> Result<(), StorageError> {
        if self.rest.is_empty() {
            return Ok(());
        }
        Err(self.corrupt("a value has bytes left over"))
    }
}

// -- state --

/// The key below which all rows of a shard's generation lie.
pub(super) fn generation_prefix(shard: ShardId, generation: Generation) -> Vec<u8> {
    let mut key = Vec::with_capacity(64);
    key.extend_from_slice(&shard.0.to_be_bytes());
    key.extend_from_slice(&generation.0.to_be_bytes());
    key
}

/// The key below which all rows of a kind lie.
pub(super) fn kind_prefix(shard: ShardId, generation: Generation, kind: KindId) -> Vec<u8> {
    let mut key = generation_prefix(shard, generation);
    key.extend_from_slice(&kind.0.to_be_bytes());
    key
}

/// The key of an entity's row.
pub(super) fn entity_key(shard: ShardId, generation: Generation, entity: &EntityId) -> Vec<u8> {
    let mut key = kind_prefix(shard, generation, entity.kind);
    key.extend_from_slice(entity.key.as_str().as_bytes());
    key
}

/// The key of a record that makes a command take effect once.
pub(super) fn dedup_key(
    shard: ShardId,
    generation: Generation,
    entity: &EntityId,
    idempotency: &IdempotencyKey,
) -> Vec<u8> {
    let mut key = kind_prefix(shard, generation, entity.kind);
    let text = entity.key.as_str().as_bytes();
    let bytes = u16::try_from(text.len()).expect("entity keys are at most 512 bytes");
    key.extend_from_slice(&bytes.to_be_bytes());
    key.extend_from_slice(text);
    key.extend_from_slice(idempotency.as_str().as_bytes());
    key
}

/// The least key above all keys that begin with `prefix`.
pub(super) fn prefix_end(mut prefix: Vec<u8>) -> Vec<u8> {
    while let Some(last) = prefix.pop() {
        if last < u8::MAX {
            prefix.push(last + 1);
            return prefix;
        }
    }
    panic!("a prefix begins with a shard, and shards are far below 2^32 - 1")
}

/// The shard and the generation of a row, of entities or dedup.
pub(super) fn read_owner(key: &[u8]) -> Result<(ShardId, Generation), StorageError> {
    let mut fields = Fields { file: STATE_FILE, rest: key };
    let shard = ShardId(u32::from_be_bytes(fields.array()?));
    Ok((shard, Generation(u64::from_be_bytes(fields.array()?))))
}

/// The entity of a row.
pub(super) fn read_entity_key(key: &[u8]) -> Result<EntityId, StorageError> {
    let mut fields = Fields { file: STATE_FILE, rest: key };
    fields.take(4 + 8)?;
    let kind = KindId(u32::from_be_bytes(fields.array()?));
    let key = std::str::from_utf8(fields.rest).ok().and_then(|text| Key::new(text).ok());
    key.map(|key| EntityId { kind, key }).ok_or_else(|| fields.corrupt("a key is no entity's"))
}

fn sealed(format: u8, key: &[u8], body: impl FnOnce(&mut Vec<u8>), value: &mut Vec<u8>) {
    value.clear();
    value.resize(ENVELOPE_BYTES, 0);
    body(value);
    seal(format, key, value);
}

/// Writes an entity's value into `value`.
pub(super) fn write_entity(key: &[u8], seq: Seq, state: &[u8], value: &mut Vec<u8>) {
    let body = |value: &mut Vec<u8>| {
        value.extend_from_slice(&seq.0.to_le_bytes());
        value.extend_from_slice(state);
    };
    sealed(ROW_FORMAT, key, body, value);
}

/// Reads an entity's value: the seq of its last entry, and its state.
pub(super) fn read_entity<'v>(
    key: &[u8],
    value: &'v [u8],
) -> Result<(Seq, &'v [u8]), StorageError> {
    let (_, mut body) = unseal(STATE_FILE, ROW_FORMAT, key, value)?;
    Ok((Seq(body.u64_le()?), body.rest))
}

/// Writes a dedup record into `value`.
pub(super) fn write_dedup(key: &[u8], at: LogTime, record: &DedupRecord, value: &mut Vec<u8>) {
    let body = |value: &mut Vec<u8>| {
        value.extend_from_slice(&at.0.to_le_bytes());
        rmp_serde::encode::write(value, record).expect("writing to memory does not fail");
    };
    sealed(DEDUP_FORMAT, key, body, value);
}

/// Reads a dedup record: its entity, its log time and itself.
pub(super) fn read_dedup(
    key: &[u8],
    value: &[u8],
) -> Result<(EntityId, LogTime, DedupRecord), StorageError> {
    let (_, mut body) = unseal(STATE_FILE, DEDUP_FORMAT, key, value)?;
    let at = LogTime(body.u64_le()?);
    let record: DedupRecord = rmp_serde::from_slice(body.rest)
        .map_err(|error| body.corrupt(&format!("a dedup record does not decode: {error}")))?;
    let mut fields = Fields { file: STATE_FILE, rest: key };
    let owner = fields.take(4 + 8 + 4)?;
    let bytes = usize::from(u16::from_be_bytes(fields.array()?));
    let text = fields.take(bytes)?;
    let entity = read_entity_key(&[owner, text].concat())?;
    Ok((entity, at, record))
}

/// Writes what is known of a shard into `value`.
pub(super) fn write_shard(shard: ShardId, meta: &ShardMeta, value: &mut Vec<u8>) {
    let ShardMeta { generation, applied, log_time, epoch, since, .. } = *meta;
    debug_assert!((applied.seq == Seq(0)) == (applied.epoch == Epoch(0)), "{shard}: {applied:?}");
    let numbers = [generation.0, applied.seq.0, log_time.0, epoch.0, since.0, applied.epoch.0];
    let body = |value: &mut Vec<u8>| {
        value.push(u8::from(meta.dropped));
        for number in numbers {
            value.extend_from_slice(&number.to_le_bytes());
        }
    };
    sealed(SHARD_FORMAT, &shard.0.to_be_bytes(), body, value);
}

/// Reads what is known of a shard.
pub(super) fn read_shard(shard: ShardId, value: &[u8]) -> Result<ShardMeta, StorageError> {
    let key = shard.0.to_be_bytes();
    let (format, mut body) = unseal(STATE_FILE, SHARD_FORMAT, &key, value)?;
    let [dropped] = body.array()?;
    let mut meta = ShardMeta {
        dropped: dropped != 0,
        generation: Generation(body.u64_le()?),
        applied: Position { epoch: Epoch(0), seq: Seq(body.u64_le()?) },
        log_time: LogTime(body.u64_le()?),
        epoch: Epoch(body.u64_le()?),
        since: CommitNo(body.u64_le()?),
    };
    if format > 1 {
        meta.applied.epoch = Epoch(body.u64_le()?);
    }
    body.finish()?;
    Ok(meta)
}

#[cfg(test)]
pub(super) mod tests {
    use bytes::Bytes;
    use mainstay_protocol::entry::StoredReply;
    use mainstay_protocol::id::MethodId;
    use proptest::prelude::*;

    use super::*;

    fn entity(kind: u32, key: &str) -> EntityId {
        EntityId { kind: KindId(kind), key: Key::new(key).unwrap() }
    }

    #[test]
    fn bytes_of_the_stored_format_are_pinned() {
        let key = entity_key(ShardId(1), Generation(2), &entity(3, "k"));
        assert_eq!(key, [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 3, b'k']);
        let mut value = Vec::new();
        write_entity(&key, Seq(9), b"state", &mut value);
        assert_eq!(value[0], 1);
        assert_eq!(value[1..9], 0x994d_56d5_2d02_8ee8_u64.to_le_bytes());
        assert_eq!(value[9..], [9, 0, 0, 0, 0, 0, 0, 0, b's', b't', b'a', b't', b'e']);
        let applied = Position { epoch: Epoch(8), seq: Seq(3) };
        let meta = ShardMeta { applied, ..ShardMeta::default() };
        write_shard(ShardId(1), &meta, &mut value);
        assert_eq!((value[0], value[9]), (2, 0));
        let numbers = [0, 3, 0, 0, 0, 8_u64].map(u64::to_le_bytes).concat();
        assert_eq!(value[10..], numbers);
    }

    #[test]
    fn a_dedup_record_of_format_1_is_read_and_one_of_format_2_is_pinned() {
        let (entity, key) = (entity(3, "k"), IdempotencyKey::new("i").unwrap());
        let row = dedup_key(ShardId(1), Generation(2), &entity, &key);
        let (reply, version) = (StoredReply::Quarantined, Seq(6));
        let record = DedupRecord { key, method: MethodId(4), payload_hash: 5, reply, version };
        let body = [&[7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0xa1, b'i', 4, 5, 0xab], &b"Quarantined"[..]];
        let mut value = Vec::new();
        write_dedup(&row, LogTime(7), &record, &mut value);
        assert_eq!((value[0], &value[9..]), (2, &[&body.concat()[..], &[6]].concat()[..]));

        let mut old = [&[0; ENVELOPE_BYTES][..], &body.concat()].concat();
        old[ENVELOPE_BYTES + 8] = 0x94;
        seal(1, &row, &mut old);
        let first = DedupRecord { version: Seq(0), ..record };
        assert_eq!(read_dedup(&row, &old).unwrap(), (entity, LogTime(7), first));
    }

    /// A shard's row as nodes wrote it that kept one copy of each: generation, applied, log time,
    /// epoch, since.
    pub(in crate::storage) fn old_shard(shard: ShardId, numbers: [u64; 5]) -> Vec<u8> {
        let mut value = vec![0; ENVELOPE_BYTES + 1];
        value.extend(numbers.map(u64::to_le_bytes).as_flattened());
        seal(1, &shard.0.to_be_bytes(), &mut value);
        value
    }

    #[test]
    fn what_is_known_of_a_shard_in_format_1_is_read() {
        let value = old_shard(ShardId(6), [1, 2, 3, 4, 5]);
        let meta = read_shard(ShardId(6), &value).unwrap();
        assert_eq!((meta.applied.seq, meta.epoch, meta.since), (Seq(2), Epoch(4), CommitNo(5)));
        assert_eq!((meta.generation, meta.applied.epoch), (Generation(1), Epoch(0)));
    }

    #[test]
    fn a_value_under_another_key_is_refused() {
        let (here, there) = (entity(1, "a"), entity(1, "b"));
        let key = entity_key(ShardId(0), Generation(0), &here);
        let mut value = Vec::new();
        write_entity(&key, Seq(1), b"x", &mut value);
        assert_eq!(read_entity(&key, &value).unwrap(), (Seq(1), &b"x"[..]));
        let other = entity_key(ShardId(0), Generation(0), &there);
        assert!(matches!(read_entity(&other, &value), Err(StorageError::Corrupt { .. })));
    }

    #[test]
    fn a_value_of_a_newer_format_says_so() {
        let key = [7];
        let mut value = vec![0; ENVELOPE_BYTES + 3];
        seal(2, &key, &mut value);
        let error = unseal(STATE_FILE, 1, &key, &value).map(|_| ()).unwrap_err();
        assert_eq!(error.code(), "MS-1106");
    }

    #[test]
    fn the_end_of_a_prefix_is_above_all_below_it() {
        assert_eq!(prefix_end(vec![1, 2]), [1, 3]);
        assert_eq!(prefix_end(vec![1, 255, 255]), [2]);
    }

    proptest! {
        #[test]
        fn keys_sort_as_entities_do(
            a in (0..3_u32, "[a-c]{1,3}"), b in (0..3_u32, "[a-c]{1,3}"),
        ) {
            let (a, b) = (entity(a.0, &a.1), entity(b.0, &b.1));
            let key = |e: &EntityId| entity_key(ShardId(1), Generation(0), e);
            prop_assert_eq!(key(&a).cmp(&key(&b)), a.cmp(&b));
            prop_assert_eq!(read_entity_key(&key(&a)).unwrap(), a);
        }

        #[test]
        fn dedup_records_and_shards_come_back(
            key in "\\PC{1,40}", idempotency in "\\PC{1,40}", at in any::<u64>(),
        ) {
            let entity = entity(4, &key);
            let record = DedupRecord {
                key: IdempotencyKey::new(&idempotency).unwrap(),
                method: MethodId(3),
                payload_hash: 8,
                reply: StoredReply::App(Bytes::from_static(b"no")),
                version: Seq(at),
            };
            let key = dedup_key(ShardId(2), Generation(1), &entity, &record.key);
            let mut value = Vec::new();
            write_dedup(&key, LogTime(at), &record, &mut value);
            let back = read_dedup(&key, &value).unwrap();
            prop_assert_eq!(back, (entity, LogTime(at), record));

            let applied = Position { epoch: Epoch(at.min(7)), seq: Seq(at) };
            let meta = ShardMeta { dropped: at % 2 == 0, applied, ..ShardMeta::default() };
            write_shard(ShardId(9), &meta, &mut value);
            prop_assert_eq!(read_shard(ShardId(9), &value).unwrap(), meta);
            prop_assert!(read_shard(ShardId(8), &value).is_err());
        }
    }
}
