//! Spans of time in attributes: `"200ms"`, `"15m"`.

use std::time::Duration;

use darling::FromMeta;
use proc_macro2::TokenStream;
use quote::{ToTokens, quote};
use syn::Lit;

/// A span of time above zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TimeSpan(Duration);

impl TimeSpan {
    fn parse(text: &str) -> Option<Self> {
        let digits = text.find(|c: char| !c.is_ascii_digit())?;
        let (number, unit) = text.split_at(digits);
        let millis = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        let millis = number.parse::<u64>().ok()?.checked_mul(millis)?;
        (millis > 0).then(|| Self(Duration::from_millis(millis)))
    }
}

impl FromMeta for TimeSpan {
    fn from_value(value: &Lit) -> darling::Result<Self> {
        let parsed = match value {
            Lit::Str(text) => Self::parse(&text.value()),
            _ => None,
        };
        let text =
            "a span of time is a text of a number above zero and ms, s, m, h or d: \"200ms\"";
        parsed.ok_or_else(|| darling::Error::custom(text).with_span(value))
    }
}

impl ToTokens for TimeSpan {
    fn to_tokens(&self, tokens: &mut TokenStream) {
        let (seconds, nanos) = (self.0.as_secs(), self.0.subsec_nanos());
        tokens.extend(quote!(::core::time::Duration::new(#seconds, #nanos)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_a_number_and_a_unit() {
        let millis = |text| TimeSpan::parse(text).map(|span| span.0.as_millis());
        assert_eq!(millis("200ms"), Some(200));
        assert_eq!(millis("15m"), Some(900_000));
        assert_eq!(millis("2d"), Some(172_800_000));
        for bad in [
            "",
            "5",
            "s",
            "0s",
            "-1s",
            "1.5s",
            "1 s",
            "1w",
            "99999999999999999999s",
            "9999999999999999d",
        ] {
            assert_eq!(millis(bad), None, "{bad}");
        }
    }
}
