//! To be written.
pub mod dirty;
pub mod port;
