//! What a read promises that may be answered by a standby: nothing older than its token.
//!
//! Such a read is not linearizable and no part of a history: others may have seen more before it.
//! But a client that hands in the version of what it wrote, or of what it saw, sees at least that.

use std::collections::HashMap;

/// An append of which somebody was told the version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Write {
    /// The version of the entity just after it.
    pub version: u64,
    /// The value.
    pub value: u64,
}

/// A read shows too little, or in another order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Older {
    /// A value is missing.
    #[error("{} of version {} is missing in a read of at least version {least}", .write.value, .write.version)]
    Missing {
        /// What is missing.
        write: Write,
        /// What the read shows at least: the token, or what it shows itself.
        least: u64,
    },
    /// A value stands before one of an older version.
    #[error("{} of version {} stands before {} of version {}", .new.value, .new.version, .old.value, .old.version)]
    Swapped {
        /// The older one.
        old: Write,
        /// The newer one, which stands first.
        new: Write,
    },
}

/// Whether a read that carried `token` shows all writes up to that version, and all up to the
/// newest that it shows, in order of their versions. `writes` are in any order; those that nobody
/// was told a version of are left out.
///
/// # Errors
/// What it lacks, or what stands in the wrong order.
pub fn never_older_than(token: u64, writes: &[Write], shown: &[u64]) -> Result<(), Older> {
    let places: HashMap<u64, usize> =
        shown.iter().enumerate().map(|(place, &value)| (value, place)).collect();
    let newest = writes.iter().filter(|write| places.contains_key(&write.value));
    let least = newest.map(|write| write.version).max().unwrap_or(0).max(token);
    let mut line = Vec::new();
    for &write in writes.iter().filter(|write| write.version <= least) {
        let &place = places.get(&write.value).ok_or(Older::Missing { write, least })?;
        line.push((write.version, place, write));
    }
    line.sort_unstable();
    for pair in line.windows(2) {
        if let [(_, first, old), (_, second, new)] = *pair
            && first > second
        {
            return Err(Older::Swapped { old, new });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITES: [Write; 3] = [
        Write { version: 9, value: 30 },
        Write { version: 2, value: 10 },
        Write { version: 5, value: 20 },
    ];

    #[test]
    fn a_read_shows_all_up_to_its_token_and_may_show_more() {
        for (token, shown) in [
            (0, &[][..]),
            (2, &[10]),
            (4, &[10]),
            (5, &[10, 20]),
            (2, &[10, 20]),
            (5, &[10, 77, 20]),
            (100, &[10, 20, 30]),
        ] {
            assert_eq!(never_older_than(token, &WRITES, shown), Ok(()), "{token} {shown:?}");
        }
    }

    #[test]
    fn a_read_that_lacks_something_is_older_than_its_token() {
        let missing = |index: usize, least| Err(Older::Missing { write: WRITES[index], least });
        assert_eq!(never_older_than(2, &WRITES, &[]), missing(1, 2));
        assert_eq!(never_older_than(5, &WRITES, &[10]), missing(2, 5));
        assert_eq!(never_older_than(6, &WRITES, &[10]), missing(2, 6));
        // Not even what it shows itself is complete.
        assert_eq!(never_older_than(2, &WRITES, &[10, 30]), missing(2, 9));
    }

    #[test]
    fn a_read_shows_older_before_newer() {
        let swapped = Err(Older::Swapped { old: WRITES[1], new: WRITES[2] });
        assert_eq!(never_older_than(2, &WRITES, &[20, 10]), swapped);
    }
}
