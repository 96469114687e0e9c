//! An error and its sources, in one line of a log.

use std::error::Error;

/// The text of an error, then those of its sources.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text.push_str(": ");
        text.push_str(&error.to_string());
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("the outer one")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn every_source_is_told_once() {
        let inner = std::io::Error::other("the inner one");
        assert_eq!(chain(&Outer(inner)), "the outer one: the inner one");
    }
}
