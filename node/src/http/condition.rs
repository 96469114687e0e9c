//! `If-Match` and `ETag`: the version at which alone a command may run, and the one that a reply
//! shows.

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};
use mainstay::protocol::id::{Seq, Token};
use mainstay::protocol::message::Mode;

use super::header_text;
use super::problem::Problem;

const NAME: &str = "If-Match";
/// Conditions that others know. What is not compared must not be taken for compared.
const UNKNOWN: [&str; 2] = ["If-None-Match", "If-Unmodified-Since"];

/// The version that a caller makes a command depend on: `"3"`, or `3`.
///
/// # Errors
/// A problem when the header is there and names no single version, or the call is a query; or a
/// command comes with another condition.
pub(super) fn of(headers: &HeaderMap, mode: Mode) -> Result<Option<Seq>, Problem> {
    if let Some(name) = UNKNOWN.into_iter().find(|name| headers.contains_key(*name))
        && mode == Mode::Command
    {
        let what = "is no condition that is compared: If-Match is, and \"0\" is never written";
        return Err(Problem::bad_header(name, what));
    }
    let Some(text) = header_text(headers, "if-match")? else { return Ok(None) };
    if mode == Mode::Query {
        let what = "is for commands: a query's answer says its version, compare that";
        return Err(Problem::bad_header(NAME, what));
    }
    if headers.get_all(header::IF_MATCH).iter().count() > 1 {
        return Err(Problem::bad_header(NAME, "is there more than once"));
    }
    let what = match text {
        "*" => "names no version: \"0\" is that of an entity never written, a reply says others",
        text if text.starts_with("W/") => "is a weak tag: a version is compared exactly",
        text => match version(text) {
            Some(version) => return Ok(Some(version)),
            None => "is not one version as a reply's ETag says it, such as \"3\"",
        },
    };
    Err(Problem::bad_header(NAME, what))
}

fn version(text: &str) -> Option<Seq> {
    let quoted = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    let digits = quoted.unwrap_or(text);
    let version = digits.parse::<u64>().ok()?;
    // One way to write a version, as with every tag: no sign, no zeros in front.
    (version.to_string() == digits).then_some(Seq(version))
}

/// The headers of a reply that say where its entity stood.
pub(super) fn headers(token: Token) -> [(HeaderName, HeaderValue); 3] {
    let tag = HeaderValue::try_from(format!("\"{}\"", token.seq.0)).expect("quotes and digits");
    [
        (header::ETAG, tag),
        (HeaderName::from_static("ms-version"), HeaderValue::from(token.seq.0)),
        (HeaderName::from_static("ms-epoch"), HeaderValue::from(token.epoch.0)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Creating what must not exist is `If-None-Match: *` elsewhere. It was ignored, and the command
    /// ran whatever there was.
    #[test]
    fn a_command_with_a_condition_that_is_not_compared_is_refused() {
        for (name, value) in [
            ("if-none-match", "*"),
            ("if-none-match", "\"3\""),
            ("if-unmodified-since", "Sat, 21 Nov 2026 10:00:00 GMT"),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(name, HeaderValue::from_static(value));
            let refused = of(&headers, Mode::Command).map_err(|problem| problem.status().as_u16());
            assert_eq!(refused, Err(400), "{name}: {value}");
            assert_eq!(of(&headers, Mode::Query).ok(), Some(None), "it protects nothing there");
        }
    }

    #[test]
    fn a_version_is_read_as_it_is_told_and_in_no_other_way() {
        for (text, expected) in [
            ("\"3\"", Some(3)),
            ("3", Some(3)),
            ("\"0\"", Some(0)),
            ("\"18446744073709551615\"", Some(u64::MAX)),
            ("\"18446744073709551616\"", None),
            ("\"03\"", None),
            ("+3", None),
            ("-1", None),
            ("\"3", None),
            ("3\"", None),
            ("\"\"", None),
            ("\"", None),
            ("", None),
            ("\"3\", \"4\"", None),
        ] {
            assert_eq!(version(text), expected.map(Seq), "{text}");
        }
    }
}
