//! A list as it should be, used by clients whose requests and replies are slow or get lost.
//!
//! What a client does is a [`Step`] of small numbers, so that a history that fails shrinks.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{ENTITY, Line, Op, Outcome, Reply};

/// What a client does next.
#[derive(Debug, Clone)]
pub(super) struct Step {
    client: u32,
    does: Does,
    form: Form,
    fate: Fate,
    /// Ticks until the client asks, until the list hears of it, and until the client hears back.
    think: u64,
    there: u64,
    back: u64,
}

#[derive(Debug, Clone, Copy)]
enum Does {
    Append {
        keyed: bool,
    },
    AppendIf {
        length: u64,
        keyed: bool,
    },
    Read,
    /// Tries the last key of this client again.
    Again,
}

/// What replies show.
#[derive(Debug, Clone, Copy)]
enum Form {
    List,
    Length,
    Done,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    ReplyLost,
    RequestLost,
    /// The client gives up; the list hears of it so much later.
    Late(u64),
    Refused,
}

prop_compose! {
    /// Any step, of a client below `clients`.
    pub(super) fn step(clients: u32)(
        client in 0..clients,
        does in prop_oneof![
            4 => any::<bool>().prop_map(|keyed| Does::Append { keyed }),
            2 => (0..5_u64, any::<bool>())
                .prop_map(|(length, keyed)| Does::AppendIf { length, keyed }),
            3 => Just(Does::Read),
            2 => Just(Does::Again),
        ],
        form in prop_oneof![Just(Form::List), Just(Form::Length), Just(Form::Done)],
        fate in prop_oneof![
            8 => Just(Fate::Answered),
            1 => Just(Fate::ReplyLost),
            1 => Just(Fate::RequestLost),
            1 => (1..30_u64).prop_map(Fate::Late),
            1 => Just(Fate::Refused),
        ],
        think in 0..4_u64,
        there in 0..5_u64,
        back in 0..5_u64,
    ) -> Step {
        Step { client, does, form, fate, think, there, back }
    }
}

/// A try on its way: when the list hears of it, and what its reply shows.
struct Try {
    heard: Option<u64>,
    form: Form,
    line: Line,
}

/// What the clients see. With `read_at_end`, one more reads when all is over.
pub(super) fn run(steps: &[Step], read_at_end: bool) -> Vec<Line> {
    let mut tries = on_their_way(steps);
    if read_at_end {
        let end = |t: &Try| t.heard.max(t.line.ended.as_ref().map(|(at, _)| *at));
        let at = tries.iter().filter_map(end).max().unwrap_or(0) + 1;
        let ended = Some((at, Outcome::Returned(Reply::List(vec![]))));
        let line = Line { client: 99, entity: ENTITY.into(), op: Op::Read, invoked: at, ended };
        tries.push(Try { heard: Some(at), form: Form::List, line });
    }
    let mut order: Vec<(u64, usize)> = Vec::new();
    order.extend(tries.iter().enumerate().filter_map(|(index, t)| Some((t.heard?, index))));
    order.sort_unstable();
    let mut object = Object::default();
    for (_, index) in order {
        let Try { line, form, .. } = &mut tries[index];
        let said = object.hear(line.op);
        if let Some((_, Outcome::Returned(reply))) = &mut line.ended {
            *reply = match (form, said) {
                (_, Said::Refused(length)) => Reply::Refused(length),
                (Form::Length, Said::Shows(list)) => Reply::Length(list.len() as u64),
                (Form::Done, Said::Shows(_)) if line.op != Op::Read => Reply::Done,
                (_, Said::Shows(list)) => Reply::List(list),
            };
        }
    }
    tries.into_iter().map(|t| t.line).collect()
}

fn on_their_way(steps: &[Step]) -> Vec<Try> {
    let mut clocks: BTreeMap<u32, u64> = BTreeMap::new();
    let mut last: BTreeMap<u32, (Op, Form)> = BTreeMap::new();
    let mut tries = Vec::new();
    for (index, step) in (0_u64..).zip(steps) {
        let key = |keyed: bool| keyed.then_some(index);
        let value = 100 + index;
        let (op, form) = match (step.does, last.get(&step.client)) {
            (Does::Append { keyed }, _) => (Op::Append { value, key: key(keyed) }, step.form),
            (Does::AppendIf { length, keyed }, _) => {
                (Op::AppendIf { length, value, key: key(keyed) }, step.form)
            }
            (Does::Read, _) => (Op::Read, step.form),
            (Does::Again, Some(&again)) => again,
            (Does::Again, None) => (Op::Append { value, key: key(true) }, step.form),
        };
        if op.key().is_some() {
            last.insert(step.client, (op, form));
        }
        let clock = clocks.entry(step.client).or_default();
        let invoked = *clock + step.think;
        let heard = invoked + step.there;
        let over = heard + step.back;
        *clock = over;
        let reply = Outcome::Returned(Reply::Done);
        let (heard, outcome) = match step.fate {
            Fate::Answered => (Some(heard), reply),
            Fate::ReplyLost => (Some(heard), Outcome::Unknown),
            Fate::RequestLost => (None, Outcome::Unknown),
            Fate::Late(late) => (Some(over + late), Outcome::Unknown),
            Fate::Refused => (None, Outcome::NotExecuted),
        };
        let ended = Some((over, outcome));
        let line = Line { client: step.client, entity: ENTITY.into(), op, invoked, ended };
        tries.push(Try { heard, form, line });
    }
    tries
}

/// What the list says to a call.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Said {
    Shows(Vec<u64>),
    Refused(u64),
}

impl Said {
    /// Whether a reply can be this.
    pub(super) fn fits(&self, reply: &Reply) -> bool {
        match (self, reply) {
            (Self::Shows(list), Reply::List(shown)) => list == shown,
            (Self::Shows(list), Reply::Length(length)) => list.len() as u64 == *length,
            (Self::Shows(_), Reply::Done) => true,
            (Self::Refused(length), Reply::Refused(shown)) => length == shown,
            (Self::Shows(_), Reply::Refused(_)) | (Self::Refused(_), _) => false,
        }
    }
}

/// The list, and what it said under each key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct Object {
    list: Vec<u64>,
    keys: BTreeMap<u64, Said>,
}

impl Object {
    pub(super) fn hear(&mut self, op: Op) -> Said {
        if let Some(said) = op.key().and_then(|key| self.keys.get(&key)) {
            return said.clone();
        }
        let length = self.list.len() as u64;
        let said = match op {
            Op::AppendIf { length: asked, .. } if asked != length => Said::Refused(length),
            Op::Append { .. } | Op::AppendIf { .. } | Op::Read => {
                self.list.extend(op.value());
                Said::Shows(self.list.clone())
            }
        };
        self.keys.extend(op.key().map(|key| (key, said.clone())));
        said
    }
}
