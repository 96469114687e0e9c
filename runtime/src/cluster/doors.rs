//! What comes in from other processes, and who takes it.

use std::sync::Arc;

use bytes::Bytes;
use mainstay_protocol::message::Caller;
use mainstay_protocol::replication::audit::Question;
use mainstay_protocol::snapshot::Reason;

use super::Lane;
use super::start::{Control, Node};
use super::threads::SystemThread;
use crate::chain::chain;
use crate::handoff::Mover;
use crate::lane::Adopt;
use crate::replication::auditing::answers::Audited;
use crate::replication::copying::{CopyIn, pages};
use crate::replication::{Arriving, Replication};
use crate::transport::listener::{House, Listener, Recipients};
use crate::transport::{control, snapshots};

/// What accepted connections are passed on to.
pub(super) struct Doors<'a> {
    pub(super) ingress: &'a tokio::runtime::Runtime,
    pub(super) system: &'a SystemThread,
    pub(super) lanes: &'a [Lane],
    pub(super) control: &'a Control,
    pub(super) moving: &'a Mover,
    pub(super) replication: &'a Replication,
}

impl Doors<'_> {
    /// Begins to take connections.
    pub(super) fn open(&self, node: &Node, listener: Listener) {
        let house = House {
            identity: Arc::clone(&node.identity),
            config: node.transport.clone(),
            lanes: node.lanes,
            intake: node.intake.clone(),
            recipients: self.recipients(),
        };
        drop(self.ingress.spawn(listener.run(house)));
    }

    fn recipients(&self) -> Recipients {
        let lanes: Vec<_> = self.lanes.iter().map(|lane| lane.addr.clone()).collect();
        let service = self.control.plane.service();
        let handler: control::ControlHandler = Arc::new(move |from, body| {
            let service = service.clone();
            Box::pin(async move { service.handle(body, &from).await })
        });
        let (on_control, on_ingress) = (self.system.handle.clone(), self.ingress.handle().clone());
        let (moving, arriving) = (self.moving.clone(), self.replication.arriving());
        let audited = self.replication.audited();
        let copies: snapshots::SnapshotHandler = Arc::new(move |from, message| {
            let takers = (moving.clone(), arriving.clone(), audited.clone());
            Box::pin(receive(takers, (from, message)))
        });
        Recipients {
            requests: Arc::new(move |accepted| {
                let lane = usize::from(accepted.lane());
                if let Some(lane) = lanes.get(lane) {
                    // One message per connection; the number of connections is bounded.
                    drop(lane.try_send(Adopt(accepted)));
                }
            }),
            control: Arc::new(move |accepted| {
                drop(on_control.spawn(control::serve(accepted, Arc::clone(&handler))));
            }),
            snapshots: Arc::new(move |accepted| {
                drop(on_ingress.spawn(snapshots::serve(accepted, Arc::clone(&copies))));
            }),
            replication: Arc::new(self.replication.acceptor()),
        }
    }
}

/// A message of a copy of a shard, which moves here or is copied to a standby; or a question of an
/// audit.
async fn receive(
    (moving, arriving, audited): (Mover, CopyIn<Arriving>, Audited),
    (from, message): (Caller, Bytes),
) -> Result<Bytes, String> {
    if let Some(question) = Question::decode(&message) {
        return audited.answer(from, question).await;
    }
    let (from, message) = pages::read(from, &message).map_err(|error| chain(&error))?;
    match message.head.reason {
        Reason::Move { .. } => moving.take(from, message).await,
        Reason::Standby { .. } => arriving.take(from, message).await,
    }
}
