//! From a hash to the place of a record in a store of its own: about 9 bytes a record.
//!
//! A `hashbrown::HashTable` of short hashes and ids. The caller compares keys; nothing iterates, so
//! that no order leaks.

use hashbrown::HashTable;

/// Hashes keys for an index: `kind` and `text`, seeded.
pub(crate) fn hash(seed: u64, kind: u32, text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), seed ^ u64::from(kind))
}

#[derive(Debug, Clone, Copy)]
struct Place {
    hash: u32,
    id: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Index(HashTable<Place>);

impl Index {
    /// The id that was inserted with this hash and for which `same` holds.
    pub(crate) fn find(&self, hash: u64, mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        let hash = short(hash);
        let found = |place: &Place| place.hash == hash && same(place.id);
        self.0.find(spread(hash), found).map(|place| place.id)
    }

    /// Adds an id. The caller has made sure that its key is not in here.
    pub(crate) fn insert(&mut self, hash: u64, id: u32) {
        let hash = short(hash);
        self.0.insert_unique(spread(hash), Place { hash, id }, |place| spread(place.hash));
    }

    /// Takes out an id that was inserted with this hash.
    pub(crate) fn remove(&mut self, hash: u64, id: u32) {
        let found = self.0.find_entry(spread(short(hash)), |place| place.id == id);
        found.expect("only what was inserted is removed").remove();
    }
}

/// The half of a hash that is kept.
fn short(hash: u64) -> u32 {
    u32::try_from(hash >> 32).expect("32 bits are left")
}

/// The table looks at the lowest and at the highest bits: both depend on every kept one.
const fn spread(hash: u32) -> u64 {
    (hash as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(32)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Few distinct hashes, so that runs collide, wrap and shift.
        #[test]
        fn an_index_finds_what_is_in_it_and_nothing_else(ops in prop::collection::vec((any::<bool>(), 0..40u32), 0..400)) {
            let hash_of = |id: u32| u64::from(id % 7) << 32 | (u64::from(id % 3) << 61);
            let mut index = Index::default();
            let mut model = BTreeSet::new();
            for (insert, id) in ops {
                if insert && model.insert(id) {
                    index.insert(hash_of(id), id);
                } else if !insert && model.remove(&id) {
                    index.remove(hash_of(id), id);
                }
                prop_assert_eq!(index.0.len(), model.len());
                for id in 0..40 {
                    let found = index.find(hash_of(id), |found| found == id);
                    prop_assert_eq!(found.is_some(), model.contains(&id));
                }
            }
        }
    }
}
