//! Deltas: what changed between two encodings of one entity's state, as a small patch.
//!
//! ```text
//!   base   AAAAAAAAAAAAAAAA bb CCCCCCCCCCCCCCCCC       DDDDDDDD
//!   next   AAAAAAAAAAAAAAAA xx CCCCCCCCCCCCCCCCC yyyyy DDDDDDDD
//!   patch  copy 16 | insert xx | copy 17 | insert yyyyy | copy 8
//! ```
//! A patch is `varint length of next | operations`. An operation starts with a varint `n << 1 | c`:
//! with c = 0 the next n bytes are new; with c = 1 n bytes are copied from the base, and a signed
//! varint follows that says how far from the expected place they start. Expected is the place as
//! far along in the base as the patch is in the new bytes, counted from the last copy: after a
//! changed field of the same size it is exactly right, and costs one byte.
//!
//! Copies are found by looking at the expected place first, then at where the last copy ended, and,
//! when that does not help enough, in an index of the base's 16-byte blocks: an insert into the
//! middle of a large map costs little more than what was inserted. Both ends are checked by
//! `xxh3_64`, so that a patch for other bytes is refused and never applied.

use bytes::Bytes;
use xxhash_rust::xxh3::xxh3_64;

use crate::entry::Change;
use crate::limits;

/// Bytes of one block of the index.
const BLOCK: usize = 16;
/// Bytes that a copy from an expected place must at least save.
const COPY_MIN: usize = 6;
/// Bytes from which on a copy from an expected place is taken without a second look.
const COPY_SURE: usize = 64;
/// Bytes of a patch from which on the index is worth its cost.
const INDEX_FROM: usize = 96;
/// Bytes that a delta costs in an entry beside its patch: two hashes, and names.
const DELTA_OVERHEAD: usize = 24;

/// Why a change could not be applied. Nothing was changed; ask for the whole state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// There is nothing that the patch could apply to.
    #[error("a patch for an entity that has no state here")]
    NoBase,
    /// The patch is for other bytes than the ones here.
    #[error("the patch is for a state with hash {want:016x}, this one has {have:016x}")]
    OtherBase {
        /// The hash that it is for.
        want: u64,
        /// The hash of the bytes here.
        have: u64,
    },
    /// The patch is cut short, points outside its base, or claims too much.
    #[error("the patch is malformed: {reason}")]
    Malformed {
        /// What is wrong.
        reason: &'static str,
    },
    /// The patch gave other bytes than it was made to give.
    #[error("the patch should give a state with hash {want:016x}, it gave {have:016x}")]
    OtherResult {
        /// The hash that it should give.
        want: u64,
        /// The hash of what it gave.
        have: u64,
    },
}

/// What became of an encoded state: nothing, the whole new one, or a patch when that is less than
/// half of it. `base` is what every copy holds, `None` for an entity that was never written.
pub fn change(base: Option<&[u8]>, next: &Bytes) -> Change {
    let Some(base) = base else {
        return Change::Put(next.clone());
    };
    if base == &next[..] {
        return Change::None;
    }
    let bytes_max = (next.len() / 2).saturating_sub(DELTA_OVERHEAD);
    match diff(base, next, bytes_max) {
        Some(patch) => Change::Delta {
            base_hash: xxh3_64(base),
            next_hash: xxh3_64(next),
            patch: patch.into(),
        },
        None => Change::Put(next.clone()),
    }
}

/// The bytes after a change of `base`, `None` for an entity that was never written.
///
/// # Errors
/// [`ApplyError`], by what is wrong.
pub fn apply_change(base: Option<&Bytes>, change: &Change) -> Result<Option<Bytes>, ApplyError> {
    match change {
        Change::None => Ok(base.cloned()),
        Change::Put(next) => Ok(Some(next.clone())),
        Change::Delta { base_hash, next_hash, patch } => {
            let base = base.ok_or(ApplyError::NoBase)?;
            let have = xxh3_64(base);
            if have != *base_hash {
                return Err(ApplyError::OtherBase { want: *base_hash, have });
            }
            let next = apply(base, patch)?;
            let have = xxh3_64(&next);
            if have != *next_hash {
                return Err(ApplyError::OtherResult { want: *next_hash, have });
            }
            Ok(Some(next.into()))
        }
    }
}

/// A patch from `base` to `next` of at most `bytes_max` bytes, if there is one that this finds.
pub fn diff(base: &[u8], next: &[u8], bytes_max: usize) -> Option<Vec<u8>> {
    let prefix = common_prefix(base, next);
    let rest = next.len().min(base.len()) - prefix;
    let suffix = common_suffix(&base[base.len() - rest..], &next[next.len() - rest..]);
    let end = next.len() - suffix;

    let mut patch = Patch { next, out: Vec::with_capacity(64.min(bytes_max)), done: 0, base_at: 0 };
    put_varint(&mut patch.out, next.len() as u64);
    patch.copy(0, 0, prefix);
    let mut index = None;
    let mut at = prefix;
    while at < end {
        let Some((from, len)) = patch.find(base, at, end, &mut index) else {
            at += 1;
            if patch.out.len() + (at - patch.done) > bytes_max {
                return None;
            }
            continue;
        };
        let back = common_suffix(&base[..from], &next[patch.done..at]);
        patch.copy(at - back, from - back, len + back);
        at += len;
    }
    patch.copy(end, base.len() - suffix, suffix);
    patch.insert(next.len());
    (patch.out.len() <= bytes_max).then_some(patch.out)
}

/// Applies a patch.
///
/// # Errors
/// [`ApplyError::Malformed`]. What it gives is never longer than the patch says at its start, and
/// that is never more than a state may have.
pub fn apply(base: &[u8], patch: &[u8]) -> Result<Vec<u8>, ApplyError> {
    let malformed = |reason| ApplyError::Malformed { reason };
    let mut rest = patch;
    let len = usize::try_from(take_varint(&mut rest)?).unwrap_or(usize::MAX);
    if len > limits::STATE_BYTES_MAX {
        return Err(malformed("it gives more than a state may have"));
    }
    // What a patch claims is believed only as far as its base and its own bytes can cover.
    let mut next = Vec::with_capacity(len.min(base.len() + patch.len()));
    let mut base_at = 0_usize;
    while !rest.is_empty() {
        let head = take_varint(&mut rest)?;
        let count = usize::try_from(head >> 1).unwrap_or(usize::MAX);
        if count == 0 || count > len - next.len() {
            return Err(malformed("an operation gives nothing, or more than was said"));
        }
        if head & 1 == 0 {
            let bytes = rest.get(..count).ok_or_else(|| malformed("it is cut short"))?;
            next.extend_from_slice(bytes);
            rest = &rest[count..];
            base_at = base_at.saturating_add(count);
        } else {
            let shift = unzigzag(take_varint(&mut rest)?);
            let outside = || malformed("a copy lies outside the base");
            let from = i64::try_from(base_at).ok().and_then(|at| at.checked_add(shift));
            let from = from.and_then(|from| usize::try_from(from).ok()).ok_or_else(outside)?;
            let upto = from.checked_add(count).ok_or_else(outside)?;
            next.extend_from_slice(base.get(from..upto).ok_or_else(outside)?);
            base_at = upto;
        }
    }
    if next.len() == len { Ok(next) } else { Err(malformed("it is cut short")) }
}

/// A patch in the making: everything before `done` is said.
struct Patch<'n> {
    next: &'n [u8],
    out: Vec<u8>,
    done: usize,
    /// Where in the base the reader of the patch stands.
    base_at: usize,
}

impl Patch<'_> {
    /// The copy that starts at `at`, if one is worth it: its place in the base, and its length.
    fn find(
        &self,
        base: &[u8],
        at: usize,
        end: usize,
        index: &mut Option<Blocks>,
    ) -> Option<(usize, usize)> {
        let next = &self.next[at..end];
        let pending = at - self.done;
        let expected = [self.base_at + pending, self.base_at]
            .map(|from| (from, base.get(from..).map_or(0, |base| common_prefix(base, next))));
        let near = expected.into_iter().find(|&(_, len)| len >= COPY_MIN);
        let weak = near.is_none_or(|(_, len)| len < COPY_SURE);
        // Similar records match a little everywhere: a patch that has grown asks the index too.
        let worth_an_index = pending >= BLOCK || self.out.len() > INDEX_FROM;
        let block = next.first_chunk().filter(|_| weak && worth_an_index);
        let Some(block) = block else {
            return near;
        };
        let far = index.get_or_insert_with(|| Blocks::of(base)).find(base, block);
        let far = far.map(|from| (from, common_prefix(&base[from..], next)));
        far.filter(|&(_, len)| near.is_none_or(|(_, short)| len > short)).or(near)
    }

    /// Everything before `to` that is not said yet is new bytes.
    fn insert(&mut self, to: usize) {
        if to > self.done {
            let bytes = &self.next[self.done..to];
            put_varint(&mut self.out, (bytes.len() as u64) << 1);
            self.out.extend_from_slice(bytes);
            self.base_at += bytes.len();
            self.done = to;
        }
    }

    /// The new bytes from `at` on are those of the base from `from` on.
    fn copy(&mut self, at: usize, from: usize, len: usize) {
        if len == 0 {
            return;
        }
        self.insert(at);
        put_varint(&mut self.out, (len as u64) << 1 | 1);
        put_varint(&mut self.out, zigzag(signed(from) - signed(self.base_at)));
        self.base_at = from + len;
        self.done = at + len;
    }
}

/// Where each 16-byte block of the base starts, by hash; the first of equal ones.
struct Blocks {
    /// Block number + 1; 0 is empty.
    places: Vec<u32>,
    shift: u32,
}

impl Blocks {
    fn of(base: &[u8]) -> Self {
        let blocks = base.len() / BLOCK;
        let bits = (blocks * 2).max(2).next_power_of_two().trailing_zeros();
        let mut this = Self { places: vec![0; 1 << bits], shift: 64 - bits };
        for (number, block) in (1..).zip(base.as_chunks::<BLOCK>().0) {
            let place = this.place(block);
            if this.places[place] == 0 {
                this.places[place] = number;
            }
        }
        this
    }

    fn find(&self, base: &[u8], block: &[u8; BLOCK]) -> Option<usize> {
        let number = self.places[self.place(block)].checked_sub(1)?;
        let from = number as usize * BLOCK;
        (base[from..from + BLOCK] == block[..]).then_some(from)
    }

    fn place(&self, block: &[u8; BLOCK]) -> usize {
        let [low, high] = [block.first_chunk(), block.last_chunk()]
            .map(|half| u64::from_le_bytes(*half.expect("a block is two words")));
        let mixed = (low ^ high.rotate_left(29)).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mixed = (mixed ^ high ^ mixed >> 32).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        usize::try_from(mixed >> self.shift).expect("a table in memory is indexed by a usize")
    }
}

fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_chunks::<8>().0.iter().zip(b.as_chunks::<8>().0);
    let whole = words.take_while(|(a, b)| a == b).count() * 8;
    whole + a[whole..].iter().zip(&b[whole..]).take_while(|(a, b)| a == b).count()
}

fn common_suffix(a: &[u8], b: &[u8]) -> usize {
    let words = a.as_rchunks::<8>().1.iter().rev().zip(b.as_rchunks::<8>().1.iter().rev());
    let whole = words.take_while(|(a, b)| a == b).count() * 8;
    let (a, b) = (&a[..a.len() - whole], &b[..b.len() - whole]);
    whole + a.iter().rev().zip(b.iter().rev()).take_while(|(a, b)| a == b).count()
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value.to_le_bytes()[0] | 0x80);
        value >>= 7;
    }
    out.push(value.to_le_bytes()[0]);
}

fn take_varint(rest: &mut &[u8]) -> Result<u64, ApplyError> {
    let mut value = 0;
    for shift in (0..63).step_by(7) {
        let (&byte, after) =
            rest.split_first().ok_or(ApplyError::Malformed { reason: "it is cut short" })?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Ok(value);
        }
    }
    Err(ApplyError::Malformed { reason: "a number is too long" })
}

fn signed(at: usize) -> i64 {
    i64::try_from(at).expect("a slice is shorter than 2^63")
}

const fn zigzag(value: i64) -> u64 {
    (value << 1 ^ value >> 63).cast_unsigned()
}

const fn unzigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -((value & 1).cast_signed())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn patch_bytes(base: &[u8], next: &[u8]) -> usize {
        let patch = diff(base, next, usize::MAX).unwrap();
        assert_eq!(apply(base, &patch).unwrap(), next);
        patch.len()
    }

    /// 100 fields of 7 to 8 bytes, about the compact struct of the study.
    fn fields() -> Vec<u8> {
        rmp_serde::to_vec(&(0..100_u64).map(|n| n * 0x1234_5678_9abc).collect::<Vec<_>>()).unwrap()
    }

    fn map(keys: impl Iterator<Item = u32>) -> Vec<u8> {
        let map: BTreeMap<String, (u64, String)> = keys
            .map(|n| {
                (format!("key-{n:06}"), (u64::from(n) << 33, format!("value number {n} of many")))
            })
            .collect();
        rmp_serde::to_vec(&map).unwrap()
    }

    #[test]
    fn one_field_of_a_hundred_costs_16_bytes_at_most() {
        let base = fields();
        let mut next = base.clone();
        let at = next.len() / 2;
        next[at] ^= 0x55;
        assert!(base.len() > 700);
        assert!(patch_bytes(&base, &next) <= 16);
    }

    #[test]
    fn an_insert_in_the_middle_of_a_large_map_costs_little_more_than_itself() {
        let base = map((0..2000).step_by(2));
        assert!(base.len() > 40_000, "{}", base.len());
        let next = map((0..2000).step_by(2).chain([1001]));
        let inserted = next.len() - base.len();
        assert!(patch_bytes(&base, &next) <= inserted + 24);
        assert!(patch_bytes(&next, &base) <= 24, "the removal");
    }

    #[test]
    fn many_inserts_and_a_rotation_are_found_by_the_index() {
        let base = map((0..2000).step_by(2));
        let next = map((0..2000).filter(|n| n % 2 == 0 || n % 97 == 0));
        assert!(patch_bytes(&base, &next) < (next.len() - base.len()) * 2);
        let mut rotated = base.clone();
        rotated.rotate_left(base.len() / 3);
        let rotated = patch_bytes(&base, &rotated);
        assert!(rotated < 256, "{rotated}");
    }

    #[test]
    fn scattered_bytes_of_a_blob_cost_few_bytes_each() {
        let base: Vec<u8> = (0..65_536_u32).map(|n| ((n * n) >> 3).to_le_bytes()[0]).collect();
        let mut next = base.clone();
        for at in (4_000..65_536).step_by(8_000) {
            next[at] ^= 1;
        }
        assert!(patch_bytes(&base, &next) <= 8 * 8 + 16);
    }

    #[test]
    fn the_cheaper_change_is_chosen() {
        let base = fields();
        let same = Bytes::from(base.clone());
        assert_eq!(change(Some(&base), &same), Change::None);
        assert_eq!(change(None, &same), Change::Put(same.clone()));
        let other = Bytes::from(base.iter().map(|byte| byte ^ 0xff).collect::<Vec<_>>());
        assert_eq!(change(Some(&base), &other), Change::Put(other.clone()));
        let mut next = base.clone();
        next[400] ^= 1;
        let next = Bytes::from(next);
        let delta = change(Some(&base), &next);
        assert!(matches!(&delta, Change::Delta { patch, .. } if patch.len() < next.len() / 2));
        assert_eq!(apply_change(Some(&same), &delta), Ok(Some(next)));
        let small = Bytes::from_static(b"tiny");
        assert_eq!(change(Some(b"tinx"), &small), Change::Put(small.clone()));
    }

    #[test]
    fn a_wrong_base_is_refused() {
        let base = fields();
        let mut next = base.clone();
        next[400] ^= 1;
        let delta = change(Some(&base), &next.clone().into());
        let other = Bytes::from(next);
        assert!(matches!(apply_change(Some(&other), &delta), Err(ApplyError::OtherBase { .. })));
        assert_eq!(apply_change(None, &delta), Err(ApplyError::NoBase));
    }

    #[test]
    fn a_patch_with_another_result_is_refused() {
        let base = Bytes::from(fields());
        let mut next = base.to_vec();
        next[400] ^= 1;
        let Change::Delta { base_hash, next_hash, patch } = change(Some(&base), &next.into())
        else {
            panic!("a delta was expected")
        };
        let wrong = Change::Delta { base_hash, next_hash: next_hash ^ 1, patch };
        assert!(matches!(apply_change(Some(&base), &wrong), Err(ApplyError::OtherResult { .. })));
    }

    #[test]
    fn a_claim_is_not_believed() {
        let mut bomb = Vec::new();
        put_varint(&mut bomb, u64::from(u32::MAX));
        assert!(apply(b"base", &bomb).is_err());
        let mut bomb = Vec::new();
        put_varint(&mut bomb, limits::STATE_BYTES_MAX as u64);
        assert!(apply(b"base", &bomb).is_err());
        assert_eq!(
            apply(b"base", &[4, 9, 1]),
            Err(ApplyError::Malformed { reason: "a copy lies outside the base" })
        );
    }

    proptest! {
        #[test]
        fn any_pair_round_trips(base: Vec<u8>, next: Vec<u8>) {
            let patch = diff(&base, &next, usize::MAX).unwrap();
            prop_assert_eq!(apply(&base, &patch).unwrap(), next);
        }

        #[test]
        fn mutations_round_trip_and_stay_within_their_bound(
            base in prop::collection::vec(0..4_u8, 0..600),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0..40_usize, prop::collection::vec(0..4_u8, 0..40)), 0..6),
            bytes_max in 0..600_usize,
        ) {
            let mut next = base.clone();
            for (at, cut, put) in edits {
                let from = at.index(next.len() + 1);
                let upto = (from + cut).min(next.len());
                next.splice(from..upto, put);
            }
            if let Some(patch) = diff(&base, &next, bytes_max) {
                prop_assert!(patch.len() <= bytes_max);
                prop_assert_eq!(apply(&base, &patch).unwrap(), next.clone());
            }
            let (base, next) = (Bytes::from(base), Bytes::from(next));
            let change = change(Some(&base), &next);
            prop_assert_eq!(apply_change(Some(&base), &change).unwrap(), Some(next));
        }

        #[test]
        fn hostile_patches_are_refused_or_stay_within_what_they_say(base: Vec<u8>, patch: Vec<u8>) {
            if let Ok(next) = apply(&base, &patch) {
                let said = take_varint(&mut &patch[..]).unwrap();
                prop_assert_eq!(next.len() as u64, said);
            }
        }

        #[test]
        fn another_base_is_refused(base: Vec<u8>, other: Vec<u8>, flip: prop::sample::Index) {
            prop_assume!(base != other && !base.is_empty());
            let mut next = base.repeat(8);
            let at = flip.index(next.len());
            let base = Bytes::from(base.repeat(8));
            next[at] ^= 1;
            if let delta @ Change::Delta { .. } = change(Some(&base), &next.into()) {
                let other = Bytes::from(other);
                let refused = matches!(apply_change(Some(&other), &delta), Err(ApplyError::OtherBase { .. }));
                prop_assert!(refused || other == base);
            }
        }
    }
}
