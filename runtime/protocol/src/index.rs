//! From a hash to the place of a record in a store of its own: 8 bytes a record, no order to leak.
//!
//! Open addressing with linear probing; a removal shifts its followers back, so that no markers
//! pile up (Knuth, volume 3, 6.4, algorithm R). The caller compares keys; nothing iterates.

/// Hashes keys for an index: `kind` and `text`, seeded.
pub(crate) fn hash(seed: u64, kind: u32, text: &str) -> u64 {
    xxhash_rust::xxh3::xxh3_64_with_seed(text.as_bytes(), seed ^ u64::from(kind))
}

/// `hash` zero is an empty place.
#[derive(Debug, Clone, Copy, Default)]
struct Place {
    hash: u32,
    id: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    /// A power of two, or none yet.
    places: Vec<Place>,
    len: usize,
}

impl Index {
    /// The id that was inserted with this hash and for which `same` holds.
    pub(crate) fn find(&self, hash: u64, mut same: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.places.is_empty() {
            return None;
        }
        let hash = short(hash);
        let mut at = self.home(hash);
        loop {
            let place = self.places[at];
            if place.hash == 0 {
                return None;
            }
            if place.hash == hash && same(place.id) {
                return Some(place.id);
            }
            at = self.after(at);
        }
    }

    /// Adds an id. The caller has made sure that its key is not in here.
    pub(crate) fn insert(&mut self, hash: u64, id: u32) {
        if (self.len + 1) * 4 > self.places.len() * 3 {
            self.grow();
        }
        self.len += 1;
        self.put(Place { hash: short(hash), id });
    }

    /// Takes out an id that was inserted with this hash.
    pub(crate) fn remove(&mut self, hash: u64, id: u32) {
        assert!(!self.places.is_empty(), "only what was inserted is removed");
        let hash = short(hash);
        let mut hole = self.home(hash);
        while self.places[hole].id != id || self.places[hole].hash != hash {
            assert!(self.places[hole].hash != 0, "only what was inserted is removed");
            hole = self.after(hole);
        }
        self.len -= 1;
        let mut at = hole;
        loop {
            at = self.after(at);
            let place = self.places[at];
            if place.hash == 0 {
                self.places[hole] = Place::default();
                return;
            }
            // A follower may move back to the hole unless its home lies after the hole.
            let mask = self.places.len() - 1;
            let from_home = at.wrapping_sub(self.home(place.hash)) & mask;
            let from_hole = at.wrapping_sub(hole) & mask;
            if from_home >= from_hole {
                self.places[hole] = place;
                hole = at;
            }
        }
    }

    fn grow(&mut self) {
        let places = std::mem::take(&mut self.places);
        self.places = vec![Place::default(); (places.len() * 2).max(8)];
        for place in places.into_iter().filter(|place| place.hash != 0) {
            self.put(place);
        }
    }

    fn put(&mut self, place: Place) {
        let mut at = self.home(place.hash);
        while self.places[at].hash != 0 {
            at = self.after(at);
        }
        self.places[at] = place;
    }

    fn home(&self, hash: u32) -> usize {
        hash as usize & (self.places.len() - 1)
    }

    fn after(&self, at: usize) -> usize {
        (at + 1) & (self.places.len() - 1)
    }
}

/// 32 bits of a hash, never zero.
fn short(hash: u64) -> u32 {
    u32::try_from(hash >> 32).expect("32 bits are left").max(1)
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
                prop_assert_eq!(index.len, model.len());
                for id in 0..40 {
                    let found = index.find(hash_of(id), |found| found == id);
                    prop_assert_eq!(found.is_some(), model.contains(&id));
                }
            }
        }
    }
}
