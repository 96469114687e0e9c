//! How to use Mainstay: entities to read, each with a program of its own in `src/bin`, and the
//! demo that `make demo` runs.

pub mod bank;
pub mod chat;
pub mod devices;
pub mod demo;
