//! How the project is tested beyond its own unit tests: the simulator, and node processes that are
//! started, killed and questioned.

#[cfg(feature = "sim")]
pub mod cluster_sim;
pub mod processes;
#[cfg(feature = "sim")]
pub mod sim;
pub mod testnode;
