//! Files that take no more: the node hears of the first one, whoever found out.
//!
//! A database that an operation of the disk failed under refuses everything until it is opened
//! anew, so a node that went on would hold shards that it can neither load nor save. It ends
//! instead, and takes no commands meanwhile.

use std::sync::OnceLock;

use super::error::StorageError;
use super::journal::{News, Notify};
use crate::chain::chain;

/// Whether a file of this node stopped, and who is told.
pub(super) struct Stop {
    first: OnceLock<StorageError>,
    notify: Notify,
}

impl Stop {
    pub(super) fn new(notify: Notify) -> Self {
        Self { first: OnceLock::new(), notify }
    }

    /// A file takes no more. The first one is told; the others are its consequences, or do not
    /// matter beside it.
    pub(super) fn set(&self, error: &StorageError) {
        if self.first.set(error.clone()).is_ok() {
            tracing::error!(code = error.code(), error = chain(error), "a file takes no more");
            (self.notify)(News::Stopped(error.clone()));
        }
    }

    /// Why the first file stopped, if one did.
    pub(super) fn first(&self) -> Option<&StorageError> {
        self.first.get()
    }

    /// Passes a result on, and heeds what it says of its file.
    pub(super) fn heed<T>(&self, result: Result<T, StorageError>) -> Result<T, StorageError> {
        if let Err(error) = &result
            && error.stops_its_file()
        {
            self.set(error);
        }
        result
    }
}
