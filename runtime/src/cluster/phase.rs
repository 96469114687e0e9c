//! What a node is doing, from its start to its end.
//!
//! ```text
//!   Joining ---> Member ---> Left -----+
//!      |            |                  +---> Stopping
//!      +------------+------> Failed ---+
//! ```

use std::sync::Arc;

use tokio::sync::watch;

use super::StartError;

/// What a node is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// It has recovered its data and looks for its cluster.
    Joining,
    /// It is a member.
    Member,
    /// It is no member any more: it handed everything over, or was removed.
    Left,
    /// It ends, in order.
    Stopping,
    /// It cannot go on; the error says why.
    Failed(Arc<StartError>),
}

impl Phase {
    /// It serves no more, and will not again.
    pub(super) const fn is_over(&self) -> bool {
        match self {
            Self::Joining | Self::Member => false,
            Self::Left | Self::Stopping | Self::Failed(_) => true,
        }
    }
}

/// Goes on to the next phase, unless the node serves no more: what comes then is its end.
pub(super) fn enter(phase: &watch::Sender<Phase>, next: Phase) {
    phase.send_if_modified(|phase| {
        let goes_on = !phase.is_over();
        if goes_on {
            *phase = next;
        }
        goes_on
    });
}

/// The node cannot go on.
pub(super) fn fail(phase: &watch::Sender<Phase>, error: impl Into<StartError>) {
    enter(phase, Phase::Failed(Arc::new(error.into())));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A node whose journal failed while it joined was a member afterwards, and served nothing.
    #[test]
    fn a_node_that_failed_or_left_comes_to_its_end_and_nowhere_else() {
        let failed = Phase::Failed(Arc::new(StartError::Consensus("gone".to_owned())));
        for over in [failed, Phase::Left, Phase::Stopping] {
            let (phase, _) = watch::channel(Phase::Joining);
            enter(&phase, over.clone());
            enter(&phase, Phase::Member);
            fail(&phase, StartError::Thread("late".to_owned()));
            enter(&phase, Phase::Left);
            assert_eq!(*phase.borrow(), over);
        }
    }
}
