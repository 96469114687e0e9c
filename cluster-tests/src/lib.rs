//! How the project is tested beyond its own unit tests: simulators, histories of what clients saw,
//! and node processes that are started, killed and questioned.

pub mod chaos;
#[cfg(feature = "sim")]
pub mod cluster_sim;
#[cfg(feature = "sim")]
pub mod exhaustive;
pub mod failover;
pub mod history;
pub mod processes;
#[cfg(feature = "sim")]
pub mod sim;
pub mod testnode;
