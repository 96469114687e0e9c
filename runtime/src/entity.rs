//! What a user defines: the traits that the macros write, and the table of methods they fill.
//!
//! ```text
//!   #[state]   impl State for Account                 version, migration
//!   #[entity]  impl Entity for Account                kind, options, grouping, table of methods
//!              struct AccountDeposit { cents }        one message type per method
//!              impl Command<Account> for AccountDeposit, HandleCommand<AccountDeposit> for Account
//!              struct AccountRef                      one call builder per method
//! ```
//!
//! Everything here is public and can be written by hand; the macros write nothing else. The
//! receiver is the contract: `&mut self` is a command, `&self` is a query, and the compiler proves
//! that a query changes nothing.

pub mod codec;
pub mod state;
pub mod message;
pub mod context;
pub mod host;
mod json;
pub mod schema;
pub mod kind;
pub mod error;
pub mod reference;
pub mod registry;

pub use context::Cx;
pub use error::CallError;
pub use host::KindOptions;
pub use kind::{Methods, TypedKind};
pub use mainstay_protocol::id::Key;
pub use message::{AppError, Command, HandleAsync, HandleCommand, HandleQuery, Never, Query, Wire};
pub use reference::{CommandCall, Done, QueryCall, Ref};
pub use registry::{Registry, RegistryError};
pub use state::{Migrate, State};

/// An entity: a state with a name, and methods that are called one at a time.
///
/// ```
/// use mainstay::entity::{Cx, Entity, Methods, Never, Ref};
/// use mainstay::entity::{Command, HandleCommand, HandleQuery, Query};
/// use mainstay::{data, state};
///
/// #[state(version = 1)]
/// struct Counter { value: i64 }
///
/// #[data]
/// struct Add { by: i64 }
///
/// impl Command<Counter> for Add {
///     const NAME: &'static str = "add";
///     type Value = i64;
///     type Error = Never;
/// }
///
/// impl HandleCommand<Add> for Counter {
///     fn handle(&mut self, _cx: &mut Cx<'_>, add: Add) -> Result<i64, Never> {
///         self.value += add.by;
///         Ok(self.value)
///     }
/// }
///
/// impl Entity for Counter {
///     const KIND: &'static str = "counter";
///     type Ref = Ref<Self>;
///     fn methods() -> Methods<Self> { Methods::new().command::<Add>() }
/// }
/// ```
///
/// The same with `#[entity(name = "counter")] impl Counter { #[command] fn add(..) }` also gives a
/// `CounterRef` with a method per method.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an entity",
    note = "put `#[entity(name = \"..\")]` on its impl block"
)]
pub trait Entity: State + Default {
    /// The kind's name, as in URLs and, hashed, on disk: renaming it strands what is stored.
    const KIND: &'static str;

    /// The first paragraph of its documentation.
    const DOC: &'static str = "";

    /// The typed reference that callers get: [`Ref<Self>`], or a wrapper with a method per method.
    type Ref: From<Ref<Self>>;

    /// What the kind asks of its host.
    fn options() -> KindOptions {
        KindOptions::default()
    }

    /// The affinity of a key. Entities with equal affinity, of whatever kind, share a shard.
    ///
    /// It must not panic and never change: stored state is found by it.
    fn affinity(key: &Key) -> &str {
        key.as_str()
    }

    /// The table of methods.
    fn methods() -> Methods<Self>;
}
