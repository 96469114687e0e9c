//! The messages that an entity handles: one type per method, its fields the arguments.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Cx, Entity};

/// What can travel: arguments, values, errors. `#[data]` makes it of a struct or enum.
pub trait Wire: Serialize + DeserializeOwned + JsonSchema + Send + 'static {}

impl<T: Serialize + DeserializeOwned + JsonSchema + Send + 'static> Wire for T {}

/// An entity's own error: it travels, and has a text for people.
pub trait AppError: Wire + fmt::Debug + fmt::Display {}

impl<T: Wire + fmt::Debug + fmt::Display> AppError for T {}

/// The arguments of a command of `E`: it may change the state, is logged and deduplicated.
#[diagnostic::on_unimplemented(
    message = "`{E}` has no command `{Self}`",
    label = "not a command of `{E}`"
)]
pub trait Command<E: Entity>: Wire {
    /// The method's name.
    const NAME: &'static str;
    /// The first paragraph of its documentation.
    const DOC: &'static str = "";
    /// How long a caller waits unless it says otherwise.
    const DEADLINE: Option<Duration> = None;
    /// What it gives.
    type Value: Wire;
    /// How it refuses; [`Never`] if it does not.
    type Error: AppError;
}

/// The arguments of a query of `E`: it cannot change the state.
#[diagnostic::on_unimplemented(
    message = "`{E}` has no query `{Self}`",
    label = "not a query of `{E}`"
)]
pub trait Query<E: Entity>: Wire {
    /// The method's name.
    const NAME: &'static str;
    /// The first paragraph of its documentation.
    const DOC: &'static str = "";
    /// How long a caller waits unless it says otherwise.
    const DEADLINE: Option<Duration> = None;
    /// What it gives.
    type Value: Wire;
    /// How it refuses; [`Never`] if it does not.
    type Error: AppError;
}

/// Handles a command in one go: inline in the lane, or on a pool thread if the table says
/// [`blocking`](super::Methods::blocking).
pub trait HandleCommand<M: Command<Self>>: Entity {
    /// Runs one turn.
    ///
    /// # Errors
    /// The entity's own refusal: the state is taken back to what it was before.
    fn handle(&mut self, cx: &mut Cx<'_>, message: M) -> Result<M::Value, M::Error>;
}

/// Handles a command that waits for others. The entity's mailbox waits with it; its neighbours
/// do not.
pub trait HandleAsync<M: Command<Self>>: Entity {
    /// Runs one turn.
    ///
    /// # Errors
    /// The entity's own refusal: the state is taken back to what it was before.
    fn handle(
        &mut self,
        cx: &mut Cx<'_>,
        message: M,
    ) -> impl Future<Output = Result<M::Value, M::Error>>;
}

/// Handles a query.
pub trait HandleQuery<M: Query<Self>>: Entity {
    /// Answers.
    ///
    /// # Errors
    /// The entity's own refusal.
    fn handle(&self, cx: &Cx<'_>, message: M) -> Result<M::Value, M::Error>;
}

/// The error of a method that cannot refuse. It has no values; its JSON schema is `false`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Never {}

impl fmt::Display for Never {
    fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {}
    }
}

impl std::error::Error for Never {}

impl JsonSchema for Never {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Never".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        false.into()
    }
}
