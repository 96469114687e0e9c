//! Who calls whom, how often, and what of it leaves the node: exact, per pair of kinds.
//!
//! What to group together is read from here: the pair with the most remote bytes first.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::kinds::{KindTable, Place};

/// The account of all pairs of kinds.
#[derive(Debug)]
pub(super) struct Locality {
    names: Vec<&'static str>,
    // row (from + 1) * kinds + to; row 0 is for callers that are no entities
    rows: Vec<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    local_calls: AtomicU64,
    local_bytes: AtomicU64,
    remote_calls: AtomicU64,
    remote_bytes: AtomicU64,
}

/// Calls from one kind to another. Bytes are those of arguments and values.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LocalityRow {
    /// The calling kind; `None` for callers that are no entities.
    pub from: Option<&'static str>,
    /// The called kind.
    pub to: &'static str,
    /// Calls that stayed in this process.
    pub local_calls: u64,
    /// Their bytes.
    pub local_bytes: u64,
    /// Calls to other nodes.
    pub remote_calls: u64,
    /// Their bytes.
    pub remote_bytes: u64,
}

impl Locality {
    pub(super) fn new(kinds: &KindTable) -> Self {
        let names: Vec<_> = kinds.names().collect();
        let mut rows = Vec::new();
        rows.resize_with((names.len() + 1) * names.len(), Counts::default);
        Self { names, rows }
    }

    /// Counts one call between kinds, by their indices.
    pub(super) fn count(&self, from: Option<usize>, to: usize, place: Place, bytes: u64) {
        let row = &self.rows[from.map_or(0, |from| from + 1) * self.names.len() + to];
        let (calls, sum) = match place {
            Place::Local => (&row.local_calls, &row.local_bytes),
            Place::Remote => (&row.remote_calls, &row.remote_bytes),
            Place::None => return,
        };
        calls.fetch_add(1, Ordering::Relaxed);
        sum.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The pairs with the most remote bytes.
    pub(super) fn top(&self, count: usize) -> Vec<LocalityRow> {
        let kinds = self.names.len();
        let mut rows: Vec<_> = self
            .rows
            .iter()
            .enumerate()
            .map(|(at, counts)| LocalityRow {
                from: (at / kinds).checked_sub(1).map(|from| self.names[from]),
                to: self.names[at % kinds],
                local_calls: counts.local_calls.load(Ordering::Relaxed),
                local_bytes: counts.local_bytes.load(Ordering::Relaxed),
                remote_calls: counts.remote_calls.load(Ordering::Relaxed),
                remote_bytes: counts.remote_bytes.load(Ordering::Relaxed),
            })
            .filter(|row| row.local_calls + row.remote_calls > 0)
            .collect();
        let cost = |row: &LocalityRow| (row.remote_bytes, row.remote_calls, row.local_calls);
        rows.sort_by_key(|row| std::cmp::Reverse(cost(row)));
        rows.truncate(count);
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pair_that_costs_most_remote_bytes_is_first() {
        let kinds = KindTable::default()
            .with("account", Box::new(|key| key.as_str()))
            .with("order", Box::new(|key| key.as_str()));
        let locality = Locality::new(&kinds);
        let at = |name| kinds.names().position(|known| known == name).unwrap();
        let (account, order) = (at("account"), at("order"));
        locality.count(None, account, Place::Local, 10);
        locality.count(Some(order), account, Place::Remote, 100);
        locality.count(Some(order), account, Place::Remote, 50);
        locality.count(Some(order), account, Place::Local, 7);
        locality.count(Some(account), order, Place::None, 9);
        let top = locality.top(10);
        assert_eq!(
            top[0],
            LocalityRow {
                from: Some("order"),
                to: "account",
                local_calls: 1,
                local_bytes: 7,
                remote_calls: 2,
                remote_bytes: 150,
            }
        );
        assert_eq!((top.len(), top[1].from, top[1].local_bytes), (2, None, 10));
        assert_eq!(locality.top(1).len(), 1);
    }
}
