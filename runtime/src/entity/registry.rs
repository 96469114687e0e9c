//! The kinds that a program hosts or calls, by name and by id.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use mainstay_protocol::control::{Grouping, GroupingDigest};
use mainstay_protocol::id::{Key, KindId, NameError, check_name};

use super::host::{KindHost, KindInfo};
use super::{Entity, TypedKind};

/// Names that mean something else in URLs: `/v1/{kind}/..` beside `/v1/calls/..`.
pub const RESERVED_NAMES: [&str; 8] =
    ["admin", "calls", "cluster", "events", "jobs", "mainstay", "system", "workflows"];

/// The kinds of a program. Collects what is wrong with them; [`build`](Self::build) reports it.
#[derive(Default)]
pub struct Registry {
    kinds: BTreeMap<KindId, Arc<dyn KindHost>>,
    problems: Vec<Problem>,
}

/// Everything that is wrong with the kinds of a program. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryError {
    /// In order of registration, at least one.
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a kind. All are mistakes in the program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Its name is no valid name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its name means something else in URLs.
    #[error("kind {kind:?} has a reserved name")]
    Reserved {
        /// The kind.
        kind: String,
    },
    /// The name is taken, or another name has the same id. Rename the one that holds no data.
    #[error("kind {kind:?} has the id of kind {other:?}")]
    Kind {
        /// The later one.
        kind: String,
        /// The earlier one.
        other: String,
    },
    /// The name is taken, or another name of the kind has the same id.
    #[error("method {method:?} of kind {kind:?} has the id of method {other:?}")]
    Method {
        /// The kind.
        kind: String,
        /// The later one.
        method: String,
        /// The earlier one.
        other: String,
    },
    /// An option that must be above zero is zero.
    #[error("option {option} of kind {kind:?} is zero")]
    Option {
        /// The kind.
        kind: String,
        /// The option.
        option: &'static str,
    },
}

impl Registry {
    /// No kinds.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a kind.
    #[must_use]
    pub fn entity<E: Entity>(self) -> Self {
        self.host(TypedKind::<E>::shared())
    }

    /// Adds a kind that is hosted in a way of its own.
    #[must_use]
    pub fn host(mut self, kind: Arc<dyn KindHost>) -> Self {
        let info = kind.info();
        check(info, &mut self.problems);
        if let Some(other) = self.kinds.get(&info.id) {
            let (kind, other) = (info.name.to_owned(), other.info().name.to_owned());
            self.problems.push(Problem::Kind { kind, other });
        } else {
            self.kinds.insert(info.id, kind);
        }
        self
    }

    /// The registry, as all rooms share it.
    ///
    /// # Errors
    /// [`RegistryError`] with all that is wrong with the kinds.
    pub fn build(self) -> Result<Arc<Self>, RegistryError> {
        if self.problems.is_empty() {
            return Ok(Arc::new(self));
        }
        Err(RegistryError { problems: self.problems })
    }

    /// The kind of this id.
    pub fn kind(&self, id: KindId) -> Option<&Arc<dyn KindHost>> {
        self.kinds.get(&id)
    }

    /// The kind of this name.
    pub fn kind_by_name(&self, name: &str) -> Option<&Arc<dyn KindHost>> {
        self.kind(KindId::of(name)).filter(|kind| kind.info().name == name)
    }

    /// All kinds, by name.
    pub fn kinds(&self) -> Vec<&Arc<dyn KindHost>> {
        let mut kinds: Vec<_> = self.kinds.values().collect();
        kinds.sort_by_key(|kind| kind.info().name);
        kinds
    }

    /// How each kind groups its keys. A node whose grouping differs from the cluster's may not
    /// join: it would look for stored entities in the wrong shards.
    ///
    /// # Panics
    /// When a kind's own grouping does: it must give an affinity to every valid key.
    pub fn grouping(&self) -> Grouping {
        let golden: Vec<_> = GOLDEN_KEYS
            .iter()
            .map(|key| Key::new(key).expect("golden keys are valid keys"))
            .collect();
        let digest = |kind: &dyn KindHost| {
            let affinities = golden.iter().map(|key| kind.affinity(key));
            GroupingDigest::of(DURABILITY_CLASS, affinities)
        };
        self.kinds.values().map(|kind| (kind.info().name.to_owned(), digest(&**kind))).collect()
    }
}

/// The class of every shard: acknowledged when the entry is on disk.
const DURABILITY_CLASS: &str = "standard";

/// Keys of the shapes that people group by. Part of the stored format: never changed, since the
/// digests in every cluster's state are made of them.
const GOLDEN_KEYS: [&str; 16] = [
    "a",
    "alice",
    "acme/42",
    "acme/43",
    "acme/eu/42",
    "/acme/42",
    "acme:42",
    "acme#42",
    "acme.42",
    "acme-42",
    "acme_42",
    "acme 42",
    "user@example.org",
    "42",
    "00f1e2d3c4b5a69788796a5b4c3d2e1f",
    "z\u{e9}ro/\u{4e00}",
];

fn check(info: &KindInfo, problems: &mut Vec<Problem>) {
    let kind = || info.name.to_owned();
    if let Err(error) = check_name("kind", info.name) {
        problems.push(error.into());
    }
    if RESERVED_NAMES.contains(&info.name) {
        problems.push(Problem::Reserved { kind: kind() });
    }
    for (at, method) in info.methods.iter().enumerate() {
        if let Err(error) = check_name("method", method.name) {
            problems.push(error.into());
        }
        if let Some(other) = info.methods[..at].iter().find(|other| other.id == method.id) {
            let (method, other) = (method.name.to_owned(), other.name.to_owned());
            problems.push(Problem::Method { kind: kind(), method, other });
        }
    }
    let options = &info.options;
    let zero = [
        ("mailbox", options.mailbox == 0),
        ("turn", options.turn.is_zero()),
        ("idle", options.idle.is_zero()),
    ];
    for (option, _) in zero.into_iter().filter(|(_, zero)| *zero) {
        problems.push(Problem::Option { kind: kind(), option });
    }
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.kinds().iter().map(|kind| kind.info().name).collect();
        f.debug_struct("Registry").field("kinds", &names).field("problems", &self.problems).finish()
    }
}

impl fmt::Display for RegistryError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.problems.iter().enumerate() {
            let separator = if at == 0 { "" } else { "; " };
            write!(f, "{separator}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RegistryError {}
