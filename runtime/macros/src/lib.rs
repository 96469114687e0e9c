//! The attributes `#[state]`, `#[data]` and `#[entity]`.
//!
//! They write what a person would write against the public traits of `mainstay::entity`, nothing
//! else. What they refuse, they refuse with the reason and at the token that is wrong.

use proc_macro::TokenStream;
use proc_macro2::TokenStream as TokenStream2;

// -- shared --
mod docs;
mod forbidden;
mod span;
// -- one per attribute --
mod derives;
mod entity;

/// Makes a struct the state of an entity: serde in named form, a JSON schema, a schema version.
///
/// ```text
/// #[state(version = 2, from = AccountV1)]
/// pub struct Account {
///     owner: String,
///     #[serde(default)]
///     holds: BTreeMap<HoldId, i64>,
/// }
/// ```
///
/// * `version`: from 1; raise it when old bytes no longer decode. Fields can be added (with
///   `#[serde(default)]`, or as an `Option`) and removed without that.
/// * `from`: the state of an older version; wants `impl Migrate<AccountV1> for Account`.
/// * `default = "manual"`: you write `impl Default`; it is what a new entity starts as.
///
/// Refuses what would make copies of a state differ (`HashMap`, `HashSet`), what a query could
/// change behind `&self` (cells, locks, atomics) and what cannot move between threads (`Rc`).
#[proc_macro_attribute]
pub fn state(options: TokenStream, item: TokenStream) -> TokenStream {
    finish(derives::state(options.into(), item.into()))
}

/// Makes a struct or enum an argument, a reply, an error or a part of a state: serde, a JSON
/// schema, `Clone`, `Debug`, `PartialEq`.
///
/// Derives that the type already has stay as they are. Refuses what [`macro@state`] refuses.
#[proc_macro_attribute]
pub fn data(options: TokenStream, item: TokenStream) -> TokenStream {
    finish(derives::data(options.into(), item.into()))
}

/// Makes a state an entity: its methods with an attribute can be called from anywhere.
///
/// ```text
/// #[entity(name = "account", group_by = Self::tenant, mailbox = 64, idle = "15m", turn = "30s")]
/// impl Account {
///     #[command]                                   // &mut self: runs at the primary, is logged
///     fn deposit(&mut self, cents: u32) -> Result<i64, BankError> { .. }
///     #[command(deadline = "200ms")]               // its mailbox waits, its neighbours do not
///     async fn hold(&mut self, cx: &mut Cx<'_>, id: HoldId) -> Result<(), BankError> { .. }
///     #[command(blocking)]                         // runs on a pool thread
///     fn audit(&mut self) -> Report { .. }
///     #[query]                                     // &self: cannot change anything
///     fn balance(&self) -> i64 { .. }
///     fn tenant(key: &Key) -> &str { key.prefix('/') }   // a plain helper
/// }
/// ```
///
/// * `name`: the kind's name, stored with every entity.
/// * `group_by`: a function from key to affinity; entities with equal affinity share a shard.
/// * `mailbox`: messages that wait for one entity, at most (64).
/// * `turn`: how long an async or blocking turn may take (30 s).
/// * `idle`: how long an idle entity stays in memory (15 min).
///
/// Beside the impl block stands, for an entity `Account`: `AccountRef` with a method per method,
/// each of which gives a call to await; and a message type per method, `AccountDeposit { cents }`.
#[proc_macro_attribute]
pub fn entity(options: TokenStream, item: TokenStream) -> TokenStream {
    entity::entity(options.into(), &item.into()).into()
}

fn finish(result: syn::Result<TokenStream2>) -> TokenStream {
    result.unwrap_or_else(syn::Error::into_compile_error).into()
}
