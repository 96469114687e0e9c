//! How many cases a property is tried with: its own number, unless `make fuzz` asks for more.

use proptest::prelude::ProptestConfig;

/// `cases`, or what `PROPTEST_CASES` says when it is set.
#[expect(clippy::disallowed_methods, reason = "a test asks how thorough it shall be")]
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    match std::env::var_os("PROPTEST_CASES") {
        Some(_) => ProptestConfig::default(), // has read it
        None => ProptestConfig::with_cases(cases),
    }
}
