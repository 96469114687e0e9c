//! What the macros' output names. Not for use by hand, and without any promise.

use std::marker::PhantomData;

pub use {schemars, serde};

/// Finds out whether a return type is a `Result` in disguise: the inherent constant, which exists
/// for `Result` only, comes before the trait's.
#[derive(Debug)]
pub struct Probe<T>(PhantomData<T>);

/// The constant of every type that is no `Result`.
pub trait Plain {
    /// It is none.
    const IS_RESULT: bool = false;
}

impl<T> Plain for Probe<T> {}

impl<T, E> Probe<Result<T, E>> {
    /// It is one.
    pub const IS_RESULT: bool = true;
}
