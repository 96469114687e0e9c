//! `MS-Freshness` and `MS-Token`: what a query asks of the state that it is shown, and where an
//! answer stands.

use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use mainstay::protocol::id::Token;
use mainstay::protocol::message::Mode;
use mainstay::protocol::replication::freshness::Freshness;

use super::header_text;
use super::problem::Problem;

const NAME: &str = "MS-Freshness";

/// What the header says, as a pattern for the description of the API.
pub(super) const PATTERN: &str = "^(strict|at-least=(0|[1-9][0-9]{0,8})\\.(0|[1-9][0-9]{0,18})\\.\
    (0|[1-9][0-9]{0,18})|max-staleness=[0-9]{1,9}(ms|s))$";
/// Digits of a span: more are no span that anybody means.
const SPAN_DIGITS_MAX: usize = 9;

/// What a query's headers ask for.
pub(super) fn of(headers: &HeaderMap, mode: Mode) -> Result<Option<Freshness>, Problem> {
    let Some(text) = header_text(headers, "ms-freshness")? else { return Ok(None) };
    if mode == Mode::Command {
        return Err(Problem::bad_header(NAME, "is for queries"));
    }
    if headers.get_all("ms-freshness").iter().count() > 1 {
        return Err(Problem::bad_header(NAME, "is there more than once"));
    }
    let read = match text.split_once('=') {
        None if text == "strict" => Some(Freshness::Strict),
        Some(("at-least", token)) => token.parse().ok().map(Freshness::AtLeast),
        Some(("max-staleness", span)) => read_span(span).map(Freshness::MaxStaleness),
        _ => None,
    };
    let known = "is neither strict, nor at-least= and a token, nor max-staleness= and ms or s";
    read.map(Some).ok_or_else(|| Problem::bad_header(NAME, known))
}

/// `250ms`, `2s`.
fn read_span(text: &str) -> Option<Duration> {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let plain = (1..=SPAN_DIGITS_MAX).contains(&digits.len())
        && digits.bytes().all(|byte| byte.is_ascii_digit());
    let number = digits.parse().ok().filter(|_| plain)?;
    match &text[digits.len()..] {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        _ => None,
    }
}

/// Where the entity stood, for a query that is to include it.
pub(super) fn token_header(token: Token) -> Option<(HeaderName, HeaderValue)> {
    let value = HeaderValue::from_str(&token.to_string()).ok()?;
    Some((HeaderName::from_static("ms-token"), value))
}

#[cfg(test)]
mod tests {
    use mainstay::protocol::id::{Epoch, Seq, ShardId};

    use super::*;

    fn read(text: &str, mode: Mode) -> Result<Option<Freshness>, u16> {
        let mut headers = HeaderMap::new();
        headers.insert("ms-freshness", HeaderValue::from_str(text).unwrap());
        of(&headers, mode).map_err(|problem| problem.status().as_u16())
    }

    #[test]
    fn a_query_says_how_fresh_its_state_is_to_be() {
        let token = Token { shard: ShardId(688), epoch: Epoch(3), seq: Seq(17) };
        let staleness = |millis| Freshness::MaxStaleness(Duration::from_millis(millis));
        for (text, freshness) in [
            ("strict", Freshness::Strict),
            ("at-least=688.3.17", Freshness::AtLeast(token)),
            ("max-staleness=250ms", staleness(250)),
            ("max-staleness=2s", staleness(2_000)),
            ("max-staleness=0ms", staleness(0)),
        ] {
            assert_eq!(read(text, Mode::Query), Ok(Some(freshness)), "{text}");
        }
        assert_eq!(token_header(token).unwrap().1, "688.3.17");
    }

    #[test]
    fn what_says_something_else_is_refused() {
        for text in [
            "",
            "linearizable",
            "strict=1",
            "at-least",
            "at-least=",
            "at-least=1.2",
            "max-staleness",
            "max-staleness=5",
            "max-staleness=ms",
            "max-staleness=-1s",
            "max-staleness=+1s",
            "max-staleness=1h",
            "max-staleness=99999999999999999999s",
        ] {
            assert_eq!(read(text, Mode::Query), Err(400), "{text:?}");
        }
        assert_eq!(read("strict", Mode::Command), Err(400), "a command shows what it did");
    }

    /// The first one counted, and the query was shown less than the second one asks for.
    #[test]
    fn two_wishes_are_refused() {
        let mut headers = HeaderMap::new();
        headers.append("ms-freshness", HeaderValue::from_static("max-staleness=9s"));
        headers.append("ms-freshness", HeaderValue::from_static("strict"));
        assert!(of(&headers, Mode::Query).is_err());
    }
}
