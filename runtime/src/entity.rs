//! What a user defines: the traits that the macros write, and the table of methods they fill.

pub mod host;
