//! The watermark never runs backwards within an epoch, and never ahead of any member's disk.

use mainstay_protocol::id::{Epoch, Seq};

use super::{Event, Invariant, View};

#[derive(Debug, Default)]
pub(super) struct Watermark {
    last: (Epoch, Seq),
}

impl Invariant for Watermark {
    fn name(&self) -> &'static str {
        "watermark"
    }

    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String> {
        let &Event::Watermark(epoch, watermark) = event else {
            return Ok(());
        };
        if (epoch, watermark) < self.last {
            return Err(format!("{epoch:?} {watermark:?} after {:?}", self.last));
        }
        self.last = (epoch, watermark);
        let durable = view.cluster.durable() as u64;
        if watermark.0 > durable {
            return Err(format!("{watermark:?}, but a member has only {durable} on disk"));
        }
        Ok(())
    }
}
