//! To be written.
pub mod inbox;
