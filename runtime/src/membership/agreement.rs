//! The control plane as the membership needs it; the control room, which stands above, implements it.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use mainstay_protocol::control::{Applied, ClusterState, Command, ProposeRefused};
use mainstay_protocol::id::{ClusterId, DiskId};
use mainstay_protocol::membership::Candidate;
use tokio::sync::watch;

/// What [`Agreement`]'s methods return.
pub type AgreementFuture<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// The control plane, as the membership needs it.
pub trait Agreement: Send + Sync + 'static {
    /// The agreed state, as far as it is applied here.
    fn state(&self) -> watch::Receiver<Arc<ClusterState>>;
    /// Proposes a command, through whoever leads.
    fn propose(&self, command: Command) -> AgreementFuture<Result<Applied, ProposeRefused>>;
    /// Whether anybody leads, as far as is known here.
    fn has_leader(&self) -> bool;
    /// The cluster that this node once decided to form.
    fn founding(&self) -> AgreementFuture<Result<Option<ClusterId>, String>>;
    /// Writes down that this node forms `cluster`, and makes it the only voter of it.
    fn found(&self, cluster: ClusterId) -> AgreementFuture<Result<(), String>>;
    /// Keeps the cluster's id for ever, durably, and takes part in consensus from here on.
    fn keep(&self, cluster: ClusterId) -> AgreementFuture<Result<(), String>>;
    /// Learns where a node of this cluster is.
    fn learn(&self, candidate: &Candidate);
    /// Waits until a disk has no vote in consensus any more, at most so long.
    fn await_unseated(&self, disk: DiskId, patience: Duration) -> AgreementFuture<()>;
}
