//! What must hold, one file each; all are asked after every step.
//!
//! | file | says |
//! |---|---|
//! | `no_acked_loss` | a value that a caller was given is in the log of every later primary, once |
//! | `each_key_once` | the commands under one idempotency key take effect once at most |
//! | `no_dirty_read` | whatever a reply shows is committed when it leaves |
//! | `real_time_order` | a reply shows all that earlier replies showed |
//! | `own_answer` | a caller hears of its own call, not of another one |
//! | `refusals_change_nothing` | what a refused or panicked turn did is in no state |
//! | `not_executed` | a call that "did not run" did not |
//! | `expired_never_runs` | no turn begins at or after its deadline |
//! | `mailbox_bound` | no mailbox holds more than its bound |
//! | `one_turn_each` | an entity has one turn at a time |
//! | `watermark` | the watermark never runs backwards, nor ahead of any member's disk |
//! | `log_order` | entries follow each other; log time never runs backwards |
//! | `quarantine` | an input panics three times at most in an epoch |
//! | `answered_once` | every call ends, once |
//! | `nothing_evicted` | a dedup record is never forgotten before its time |
//! | `versions` | a version names one state; a command under a condition meets that one alone |

use mainstay_protocol::message::{Failure, Success};
use mainstay_protocol::shard::primary::Primary;

use super::clients::{Clients, Habits};
use super::cluster::Cluster;
use super::model::{self, States};
use super::scene::Caller;
use super::trace::Event;

mod answered_once;
mod each_key_once;
mod expired_never_runs;
mod log_order;
mod mailbox_bound;
mod no_acked_loss;
mod no_dirty_read;
mod not_executed;
mod nothing_evicted;
mod one_turn_each;
mod own_answer;
mod quarantine;
mod real_time_order;
mod refusals_change_nothing;
mod versions;
mod watermark;

/// An invariant that did not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// Its file.
    pub invariant: &'static str,
    /// What was seen.
    pub detail: String,
}

/// Everything that an invariant may look at. No member and no client sees all this.
#[derive(Debug)]
pub struct View<'w> {
    /// The machine, while there is one.
    pub primary: Option<&'w Primary<Caller>>,
    /// The journals.
    pub cluster: &'w Cluster,
    /// What every member has on disk, applied.
    pub durable: &'w States,
    /// What the primary's journal has, applied: set at promotions and at the end.
    pub held: Option<&'w States>,
    /// The calls made so far.
    pub clients: &'w Clients,
}

impl View<'_> {
    /// The habits of this seed.
    pub const fn habits(&self) -> &Habits {
        &self.clients.habits
    }
}

/// Something that must hold. Each remembers what it needs.
pub trait Invariant: std::fmt::Debug {
    /// The name of its file.
    fn name(&self) -> &'static str;

    /// An event happened.
    ///
    /// # Errors
    /// What does not hold.
    fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), String>;

    /// A step ended.
    ///
    /// # Errors
    /// What does not hold.
    fn after_step(&mut self, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }

    /// The run ended and everything is drained.
    ///
    /// # Errors
    /// What does not hold.
    fn at_end(&mut self, _view: &View<'_>) -> Result<(), String> {
        Ok(())
    }
}

/// All of them.
#[derive(Debug)]
pub struct Invariants {
    all: Vec<Box<dyn Invariant>>,
}

impl Default for Invariants {
    fn default() -> Self {
        Self {
            all: vec![
                Box::<no_acked_loss::NoAckedLoss>::default(),
                Box::<each_key_once::EachKeyOnce>::default(),
                Box::<no_dirty_read::NoDirtyRead>::default(),
                Box::<real_time_order::RealTimeOrder>::default(),
                Box::<own_answer::OwnAnswer>::default(),
                Box::<refusals_change_nothing::RefusalsChangeNothing>::default(),
                Box::<not_executed::NotExecuted>::default(),
                Box::<expired_never_runs::ExpiredNeverRuns>::default(),
                Box::<mailbox_bound::MailboxBound>::default(),
                Box::<one_turn_each::OneTurnEach>::default(),
                Box::<watermark::Watermark>::default(),
                Box::<log_order::LogOrder>::default(),
                Box::<quarantine::Quarantine>::default(),
                Box::<answered_once::AnsweredOnce>::default(),
                Box::<nothing_evicted::NothingEvicted>::default(),
                Box::<versions::Versions>::default(),
            ],
        }
    }
}

impl Invariants {
    /// The names of all.
    pub fn names(&self) -> Vec<&'static str> {
        self.all.iter().map(|invariant| invariant.name()).collect()
    }

    /// Asks this one alone from here on.
    pub fn keep(&mut self, name: &str) {
        self.all.retain(|invariant| invariant.name() == name);
    }

    /// Tells all of an event.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn observe(&mut self, event: &Event, view: &View<'_>) -> Result<(), Broken> {
        self.ask(|invariant| invariant.observe(event, view))
    }

    /// Asks all after a step.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn after_step(&mut self, view: &View<'_>) -> Result<(), Broken> {
        self.ask(|invariant| invariant.after_step(view))
    }

    /// Asks all at the end.
    ///
    /// # Errors
    /// The first that does not hold.
    pub fn at_end(&mut self, view: &View<'_>) -> Result<(), Broken> {
        self.ask(|invariant| invariant.at_end(view))
    }

    fn ask(
        &mut self,
        mut question: impl FnMut(&mut dyn Invariant) -> Result<(), String>,
    ) -> Result<(), Broken> {
        for invariant in &mut self.all {
            let name = invariant.name();
            question(invariant.as_mut()).map_err(|detail| Broken { invariant: name, detail })?;
        }
        Ok(())
    }
}

/// The list that a reply shows, and whether the reply is the repetition of an earlier one.
fn shown(result: &Result<Success, Failure>) -> Option<(Vec<u64>, bool)> {
    match result {
        Ok(success) => Some((model::decode(&success.value), success.replayed)),
        Err(Failure::App { error, replayed, .. }) => Some((model::decode(error), *replayed)),
        Err(_) => None,
    }
}
