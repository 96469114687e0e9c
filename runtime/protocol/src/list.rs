//! Doubly linked lists through one pool of nodes: O(1) everywhere, no allocation once warm.
//!
//! ```text
//!   Pool<T>   [ a | b | - | c | d ]        nodes, reused; grows to the peak and stays
//!   List      head -> c <-> a <- tail      12 bytes; a node is on one list at most
//! ```
//! Mailboxes, ready entities and held replies are all lists through pools, so that an idle entity
//! costs two integers and not a buffer. Ids are given out in a fixed order, so that equal histories
//! give equal ids.

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
    /// `None` while the node is free; `next` then leads to the next free one.
    value: Option<T>,
}

/// The nodes.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    nodes: Vec<Node<T>>,
    free: u32,
    len: u32,
}

impl<T> Pool<T> {
    pub(crate) const fn new() -> Self {
        Self { nodes: Vec::new(), free: NONE, len: 0 }
    }

    pub(crate) const fn len(&self) -> u32 {
        self.len
    }

    /// Puts a value into a node that is on no list.
    pub(crate) fn insert(&mut self, value: T) -> u32 {
        self.len += 1;
        let node = Node { prev: LOOSE, next: NONE, value: Some(value) };
        if self.free == NONE {
            let id = u32::try_from(self.nodes.len()).expect("fewer than 2^32 nodes are in use");
            assert!(id < LOOSE, "a pool is full");
            self.nodes.push(node);
            return id;
        }
        let id = self.free;
        self.free = self.nodes[id as usize].next;
        self.nodes[id as usize] = node;
        id
    }

    /// Takes the value of a node that is on no list, and frees the node.
    pub(crate) fn remove(&mut self, id: u32) -> T {
        let node = &mut self.nodes[id as usize];
        assert!(node.prev == LOOSE, "a node leaves its list before it leaves the pool");
        let value = node.value.take().expect("a node is removed once");
        node.next = self.free;
        self.free = id;
        self.len -= 1;
        value
    }

    pub(crate) fn get(&self, id: u32) -> Option<&T> {
        self.nodes.get(id as usize)?.value.as_ref()
    }

    pub(crate) fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        self.nodes.get_mut(id as usize)?.value.as_mut()
    }

    pub(crate) fn push_back(&mut self, list: &mut List, id: u32) {
        let tail = list.tail;
        let node = &mut self.nodes[id as usize];
        debug_assert!(node.value.is_some() && node.prev == LOOSE, "a node is on one list at most");
        node.prev = tail;
        node.next = NONE;
        if tail == NONE {
            list.head = id;
        } else {
            self.nodes[tail as usize].next = id;
        }
        list.tail = id;
        list.len += 1;
    }

    /// Takes a node off the list that it is on, which must be this one.
    pub(crate) fn unlink(&mut self, list: &mut List, id: u32) {
        let node = &mut self.nodes[id as usize];
        assert!(node.prev != LOOSE && node.value.is_some(), "only a listed node is taken off");
        let (prev, next) = (node.prev, node.next);
        node.prev = LOOSE;
        node.next = NONE;
        if prev == NONE {
            debug_assert!(list.head == id, "the node is on another list");
            list.head = next;
        } else {
            self.nodes[prev as usize].next = next;
        }
        if next == NONE {
            debug_assert!(list.tail == id, "the node is on another list");
            list.tail = prev;
        } else {
            self.nodes[next as usize].prev = prev;
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
        (0..).zip(&self.nodes).filter_map(|(id, node)| Some((id, node.value.as_ref()?)))
    }

    /// The ids of a list, first to last.
    #[cfg(test)]
    fn ids(&self, list: &List) -> impl Iterator<Item = u32> {
        std::iter::successors(list.front(), |&id| {
            Some(self.nodes[id as usize].next).filter(|&next| next != NONE)
        })
    }

    /// All values, by id; the lists through this pool end with it.
    pub(crate) fn into_values(self) -> impl Iterator<Item = T> {
        self.nodes.into_iter().filter_map(|node| node.value)
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
