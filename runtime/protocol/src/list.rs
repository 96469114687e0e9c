//! Doubly linked lists through one pool of nodes: O(1) everywhere, no allocation once warm.
//!
//! ```text
//!   Pool<T>   [ a | b | - | c | d ]        nodes, reused; grows to the peak and stays
//!   List      head -> c <-> a <- tail      12 bytes; a node is on one list at most
//! ```
//! Mailboxes, ready entities and held replies are all lists through pools, so that an idle entity
//! costs two integers and not a buffer. Ids are given out in a fixed order, so that equal histories
//! give equal ids.

use slab::Slab;

/// No node.
const NONE: u32 = u32::MAX;
/// In `prev` of a node that is on no list.
const LOOSE: u32 = u32::MAX - 1;

/// The ends and the length of one list. Its nodes are in the pool that it is used with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct List {
    head: u32,
    tail: u32,
    len: u32,
}

impl List {
    pub(crate) const fn new() -> Self {
        Self { head: NONE, tail: NONE, len: 0 }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(crate) const fn front(&self) -> Option<u32> {
        if self.head == NONE { None } else { Some(self.head) }
    }
}

#[derive(Debug)]
struct Node<T> {
    prev: u32,
    next: u32,
    value: T,
}

/// The nodes.
#[derive(Debug)]
pub(crate) struct Pool<T>(Slab<Node<T>>);

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self(Slab::new())
    }

    pub(crate) fn len(&self) -> u32 {
        u32::try_from(self.0.len()).expect("ids are 32 bits")
    }

    /// Puts a value into a node that is on no list.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        let id = self.0.insert(Node { prev: LOOSE, next: NONE, value });
        let id = u32::try_from(id).expect("fewer than 2^32 nodes are in use");
        assert!(id < LOOSE, "a pool is full");
        id
    }

    /// Takes the value of a node that is on no list, and frees the node.
    pub(crate) fn remove(&mut self, id: u32) -> T {
        let node = self.0.remove(id as usize);
        assert!(node.prev == LOOSE, "a node leaves its list before it leaves the pool");
        node.value
    }

    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        Some(&self.0.get(id as usize)?.value)
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        Some(&mut self.0.get_mut(id as usize)?.value)
    }

    fn node(&mut self, id: u32) -> &mut Node<T> {
        &mut self.0[id as usize]
    }

    pub(crate) fn push_back(&mut self, list: &mut List, id: u32) {
        let tail = list.tail;
        let node = self.node(id);
        debug_assert!(node.prev == LOOSE, "a node is on one list at most");
        node.prev = tail;
        node.next = NONE;
        if tail == NONE {
            list.head = id;
        } else {
            self.node(tail).next = id;
        }
        list.tail = id;
        list.len += 1;
    }

    /// Takes a node off the list that it is on, which must be this one.
    pub(crate) fn unlink(&mut self, list: &mut List, id: u32) {
        let node = self.node(id);
        assert!(node.prev != LOOSE, "only a listed node is taken off");
        let (prev, next) = (node.prev, node.next);
        node.prev = LOOSE;
        node.next = NONE;
        if prev == NONE {
            debug_assert!(list.head == id, "the node is on another list");
            list.head = next;
        } else {
            self.node(prev).next = next;
        }
        if next == NONE {
            debug_assert!(list.tail == id, "the node is on another list");
            list.tail = prev;
        } else {
            self.node(next).prev = prev;
        }
        list.len -= 1;
    }

    pub(crate) fn pop_front(&mut self, list: &mut List) -> Option<u32> {
        let id = list.front()?;
        self.unlink(list, id);
        Some(id)
    }

    /// Puts a value at the end of a list.
    pub(crate) fn append(&mut self, list: &mut List, value: T) -> u32 {
        let id = self.insert(value);
        self.push_back(list, id);
        id
    }

    /// Takes the first value of a list.
    pub(crate) fn take_front(&mut self, list: &mut List) -> Option<T> {
        let id = self.pop_front(list)?;
        Some(self.remove(id))
    }

    /// The ids and values in use, by id.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let id = |id| u32::try_from(id).expect("ids are 32 bits");
        self.0.iter().map(move |(at, node)| (id(at), &node.value))
    }

    /// The ids of a list, first to last.
    #[cfg(test)]
    fn ids(&self, list: &List) -> impl Iterator<Item = u32> {
        std::iter::successors(list.front(), |&id| {
            Some(self.0[id as usize].next).filter(|&next| next != NONE)
        })
    }

    /// All values, by id; the lists through this pool end with it.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.0.into_iter().map(|(_, node)| node.value)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn lists_behave_like_queues_of_their_own(ops in prop::collection::vec((0..4u8, 0..3usize, 0..8usize), 0..200)) {
            let mut pool = Pool::new();
            let mut lists = [List::new(); 3];
            let mut model: [VecDeque<(u32, u32)>; 3] = Default::default();
            let mut value = 0;
            for (op, at, place) in ops {
                match op {
                    0 | 1 => {
                        let id = pool.append(&mut lists[at], value);
                        model[at].push_back((id, value));
                        value += 1;
                    }
                    2 => {
                        let taken = pool.take_front(&mut lists[at]);
                        prop_assert_eq!(taken, model[at].pop_front().map(|(_, value)| value));
                    }
                    _ => {
                        if let Some((id, value)) = model[at].remove(place) {
                            pool.unlink(&mut lists[at], id);
                            prop_assert_eq!(pool.remove(id), value);
                        }
                    }
                }
                for (list, model) in lists.iter().zip(&model) {
                    prop_assert_eq!(list.len() as usize, model.len());
                    let ids: Vec<u32> = pool.ids(list).collect();
                    prop_assert_eq!(ids, model.iter().map(|&(id, _)| id).collect::<Vec<_>>());
                }
                prop_assert_eq!(pool.len(), lists.iter().map(List::len).sum::<u32>());
            }
        }
    }

    #[test]
    fn freed_nodes_are_used_again() {
        let mut pool = Pool::new();
        let first = pool.insert('a');
        assert_eq!(pool.remove(first), 'a');
        assert_eq!(pool.insert('b'), first);
        assert!(pool.get(first + 1).is_none());
    }
}
