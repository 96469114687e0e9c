//! The order that the lists give, against the order in time.
//!
//! The longest list says which append was the first, the second and so on. Every answer says how
//! long the list was. So most calls have a place in one line: the nth append, then all that show n
//! values, then the next append. They can take effect in this order if none was answered before
//! one that stands earlier in the line was invoked. One walk along the line sees that, and finds
//! the two calls that contradict each other.
//!
//! Open is what no list shows: where an append stands whose answer says only "done", or who
//! appended what an answer counted. Such calls come behind all that the longest list has room for,
//! and the walk saw that none was answered too early for that. So the search looks at them alone,
//! from that length; its state is the length.

use std::collections::{HashMap, HashSet};

use super::calls::{Answer, Call};
use super::search::Span;
use super::story::{Broken, Rule};
use super::{Entity, Id, Op, Shown, value_at};

/// Where a call stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Appends, as the nth.
    Appends(u64),
    /// Shows a list of n.
    Shows(u64),
    /// Appends behind the longest list, if it has an effect; with a condition, behind this length.
    Behind(Option<u64>),
}

/// What the longest list leaves to search.
#[derive(Debug)]
pub(super) struct Tail {
    /// Calls, by their indices.
    calls: Vec<(usize, Place)>,
    /// The length of the longest list.
    pub(super) longest: u64,
}

impl Tail {
    /// When each call can take effect.
    pub(super) fn spans(&self, calls: &[Call]) -> Vec<Span> {
        let span = |&(index, place): &(usize, Place)| Span {
            invoked: calls[index].invoked,
            answered: calls[index].answered(),
            reads: matches!(place, Place::Shows(_)),
        };
        self.calls.iter().map(span).collect()
    }

    /// The length after a call of the tail, if the call can take effect at this length.
    pub(super) fn next(&self, length: u64, index: usize) -> Option<u64> {
        match self.calls.get(index)?.1 {
            Place::Appends(nth) => (nth - 1 == length).then_some(nth),
            Place::Shows(shown) => (shown == length).then_some(length),
            Place::Behind(condition) => {
                condition.is_none_or(|asked| asked == length).then(|| length + 1)
            }
        }
    }

    /// The index of a call of the tail among all.
    pub(super) fn among_all(&self, index: usize) -> usize {
        self.calls[index].0
    }
}

/// Finds the place of every call. Returns what is left to search, if anything is.
pub(super) fn trace(entity: &Entity, calls: &[Call]) -> Result<Option<Tail>, Broken> {
    let executed: HashSet<u64> = calls.iter().filter_map(|call| call.op.value()).collect();
    if let Some(by) = entity.shown_by {
        list_is_possible(entity, &executed, &entity.longest, by)?;
    }
    let nth = |(index, value): (usize, &u64)| (*value, index as u64 + 1);
    let positions: HashMap<u64, u64> = entity.longest.iter().enumerate().map(nth).collect();
    let mut places = Vec::with_capacity(calls.len());
    for call in calls {
        if let Some(Answer { shown: Shown::Other(list), to, .. }) = &call.answer {
            list_is_possible(entity, &executed, list, *to)?;
            return Err(fork(entity, list, call));
        }
        let placed = place(entity, &positions, call);
        places.push(placed.map_err(|(rule, detail)| Broken {
            rule,
            detail,
            ids: call.ids().chain(entity.shown_by).collect(),
        })?);
    }
    let longest = entity.longest.len() as u64;
    let end = walk(calls, &places, longest)?;
    for (call, place) in calls.iter().zip(&places) {
        if let (Place::Behind(_), Some(answered), Some(end)) = (place, call.answered(), end)
            && answered < calls[end].invoked
        {
            let detail = format!(
                "{} was answered at {answered}; {}, invoked at {}, came before it",
                call.name(),
                calls[end].name(),
                calls[end].invoked,
            );
            return Err(Broken::between(Rule::Lost, detail, call, &calls[end]));
        }
    }
    if !is_open(calls, &places, longest)? {
        return Ok(None);
    }
    let behind = |&(_, place): &(usize, Place)| match place {
        Place::Appends(length) | Place::Shows(length) => length > longest,
        Place::Behind(_) => true,
    };
    let calls = places.into_iter().enumerate().filter(behind).collect();
    Ok(Some(Tail { calls, longest }))
}

/// Every value was appended by somebody, once, and by none who was told that nothing happened.
fn list_is_possible(
    entity: &Entity,
    executed: &HashSet<u64>,
    list: &[u64],
    by: Id,
) -> Result<(), Broken> {
    let mut seen = HashMap::new();
    for (index, &value) in list.iter().enumerate() {
        let place = index + 1;
        let Some(&first) = entity.values.get(&value) else {
            let detail = format!("{by} shows {value}, which nobody appended");
            return Err(Broken { rule: Rule::Phantom, detail, ids: vec![by] });
        };
        let ids = vec![first, by];
        if let Some(before) = seen.insert(value, place) {
            let detail = format!("{by} shows {value} at {before} and at {place}");
            return Err(Broken { rule: Rule::Duplicate, detail, ids });
        }
        if !executed.contains(&value) {
            let detail = format!("{by} shows {value}, and {first} was not executed");
            return Err(Broken { rule: Rule::NotExecuted, detail, ids });
        }
    }
    Ok(())
}

fn fork(entity: &Entity, list: &[u64], call: &Call) -> Broken {
    let same = list.iter().zip(&entity.longest).take_while(|(one, two)| one == two).count();
    let at = |list: &[u64]| list.get(same).copied().unwrap_or_default();
    let detail =
        format!("one list has {} at {}, another has {}", at(list), same + 1, at(&entity.longest));
    let ids = call.ids().chain(entity.shown_by).collect();
    Broken { rule: Rule::Fork, detail, ids }
}

/// Where a call stands, by its answer and the longest list.
fn place(
    entity: &Entity,
    positions: &HashMap<u64, u64>,
    call: &Call,
) -> Result<Place, (Rule, String)> {
    let shown = call.answer.as_ref().map(|answer| &answer.shown);
    let condition = match call.op {
        Op::AppendIf { length, .. } => Some(length),
        Op::Append { .. } | Op::Read => None,
    };
    let listed = call.op.value().and_then(|value| positions.get(&value)).copied();
    if let Some(Shown::Refused(seen)) = shown {
        if condition == Some(*seen) {
            let detail = format!("{} was refused at the length that it asks for", call.name());
            return Err((Rule::Condition, detail));
        }
        return match listed {
            Some(nth) => {
                Err((Rule::Condition, format!("{} was refused and is number {nth}", call.name())))
            }
            None => Ok(Place::Shows(*seen)),
        };
    }
    let claimed = match shown {
        Some(Shown::First(length) | Shown::Length(length)) => Some(*length),
        _ => None,
    };
    let Some(value) = call.op.value() else {
        return Ok(Place::Shows(claimed.unwrap_or_default()));
    };
    if let Some(nth) = claimed {
        match listed {
            Some(listed) if listed != nth => {
                let detail = format!("the answer counts {nth}, the list has {value} at {listed}");
                return Err((Rule::OwnAnswer, detail));
            }
            None if nth == 0 => {
                return Err((Rule::OwnAnswer, format!("{value} is appended to no place")));
            }
            None if matches!(shown, Some(Shown::First(_))) => {
                return Err((Rule::OwnAnswer, format!("the answer does not show {value}")));
            }
            None if value_at(&entity.longest, nth).is_some() => {
                let detail = format!("{value} was answered as number {nth} and is in no list");
                return Err((Rule::Lost, detail));
            }
            Some(_) | None => {}
        }
    }
    match (listed.or(claimed), condition) {
        (Some(nth), Some(length)) if nth - 1 != length => {
            let detail = format!("{value} was to be appended behind {length} and is number {nth}");
            Err((Rule::Condition, detail))
        }
        (Some(nth), _) => Ok(Place::Appends(nth)),
        (None, condition) => Ok(Place::Behind(condition)),
    }
}

/// Walks along the line. Returns the call that was invoked last among those that the longest list
/// has room for.
fn walk(calls: &[Call], places: &[Place], longest: u64) -> Result<Option<usize>, Broken> {
    let mut line: Vec<(u64, bool, u64, usize)> = Vec::with_capacity(calls.len());
    for (index, (call, place)) in calls.iter().zip(places).enumerate() {
        match *place {
            Place::Appends(nth) => line.push((nth, false, call.invoked, index)),
            Place::Shows(length) => line.push((length, true, call.invoked, index)),
            Place::Behind(_) => {}
        }
    }
    line.sort_unstable();
    let mut latest: Option<usize> = None;
    let mut end = None;
    let mut appended = None;
    for (length, shows, invoked, index) in line {
        let call = &calls[index];
        if !shows
            && let Some((last, other)) = appended.replace((length, index))
            && last == length
        {
            let detail = format!("two appends were answered as number {length}");
            return Err(Broken::between(Rule::SamePlace, detail, call, &calls[other]));
        }
        if latest.is_none_or(|latest| calls[latest].invoked < invoked) {
            latest = Some(index);
        }
        let before = &calls[latest.unwrap_or(index)];
        if let Some(answered) = call.answered().filter(|&answered| answered < before.invoked) {
            let (first, then) = (before.name(), call.name());
            let detail = format!(
                "by what was seen, {first} came before {then}, but {then} was answered at \
                 {answered} and {first} invoked at {}",
                before.invoked,
            );
            return Err(Broken::between(Rule::RealTime, detail, call, before));
        }
        if length <= longest {
            end = latest;
        }
    }
    Ok(end)
}

/// Whether orders are to be searched: a place that no call claims, or an append without a place
/// where the place matters.
fn is_open(calls: &[Call], places: &[Place], longest: u64) -> Result<bool, Broken> {
    let (mut greatest, mut claimed, mut behind) = (longest, 0, 0);
    let (mut answered, mut conditional, mut counts) = (false, false, None);
    for (call, place) in calls.iter().zip(places) {
        match *place {
            Place::Behind(condition) => {
                behind += 1;
                answered |= call.answer.is_some();
                conditional |= call.answer.is_some() && condition.is_some();
            }
            Place::Appends(length) | Place::Shows(length) => {
                let appends = matches!(place, Place::Appends(_));
                claimed += u64::from(appends && length > longest);
                if length > greatest {
                    (greatest, counts) = (length, Some(call));
                }
            }
        }
    }
    let unclaimed = greatest - longest - claimed;
    if let Some(call) = counts
        && unclaimed > behind
    {
        let most = longest + claimed + behind;
        let detail = format!("{} counts {greatest} values, there are {most}", call.name());
        return Err(Broken { rule: Rule::TooLong, detail, ids: call.ids().collect() });
    }
    Ok(unclaimed > 0 || conditional || (answered && greatest > longest))
}
