//! The state of an entity as bytes: `u16 schema version (little endian) | named MessagePack`.
//!
//! A build reads its own version and every older one for which there is a chain of [`Migrate`];
//! a newer one is refused and stays as it is on disk.

use mainstay_protocol::limits::STATE_BYTES_MAX;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::codec;
use super::host::StateError;

/// What an entity keeps. Written by `#[state(version = N)]`.
///
/// Equal states must encode to equal bytes on every node, so fields are ordered collections, and
/// nothing in it changes behind `&self`. The macro refuses the usual suspects by name.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not a state",
    note = "put `#[state(version = 1)]` on the struct"
)]
pub trait State: Serialize + DeserializeOwned + Send + 'static {
    /// The version of its schema, from 1. Raise it when old bytes no longer decode.
    const VERSION: u16;

    /// Reads a body of an older version. Written by `#[state(version = N, from = Old)]` as
    /// `migrate::<Old, Self>(version, body)`.
    ///
    /// # Errors
    /// [`StateError::Malformed`] when nothing leads from that version to this one.
    fn upgrade(version: u16, _body: &[u8]) -> Result<Self, StateError> {
        Err(no_way::<Self>(version))
    }
}

/// Makes a state of an older one. Must give the same result on every node.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be made of the older `{Old}`",
    note = "write `impl Migrate<{Old}> for {Self}`"
)]
pub trait Migrate<Old: State>: State {
    /// The new state.
    fn migrate(old: Old) -> Self;
}

/// Reads a body of `Old`, or of what `Old` was made of, and brings it up to `New`.
///
/// # Errors
/// [`StateError::Malformed`] when the body does not decode or no chain leads from its version.
pub fn migrate<Old: State, New: Migrate<Old>>(
    version: u16,
    body: &[u8],
) -> Result<New, StateError> {
    if version > Old::VERSION {
        return Err(no_way::<New>(version));
    }
    read::<Old>(version, body).map(New::migrate)
}

/// Appends the bytes of a state to `out`.
///
/// # Errors
/// [`StateError::Unencodable`], and `out` is as before.
pub fn encode<S: State>(state: &S, out: &mut Vec<u8>) -> Result<(), StateError> {
    let start = out.len();
    out.extend_from_slice(&S::VERSION.to_le_bytes());
    codec::encode(state, STATE_BYTES_MAX - VERSION_BYTES, out).map_err(|error| {
        out.truncate(start);
        StateError::Unencodable { reason: error.to_string() }
    })
}

/// The state of these bytes.
///
/// # Errors
/// [`StateError::Newer`] when a newer build wrote them, [`StateError::Malformed`] when they are
/// no state of this kind.
pub fn decode<S: State>(bytes: &[u8]) -> Result<S, StateError> {
    let Some((version, body)) = bytes.split_first_chunk::<VERSION_BYTES>() else {
        return Err(StateError::Malformed { reason: "no schema version".to_owned() });
    };
    let found = u16::from_le_bytes(*version);
    if found > S::VERSION {
        return Err(StateError::Newer { found, known: S::VERSION });
    }
    read(found, body)
}

const VERSION_BYTES: usize = 2;

fn read<S: State>(version: u16, body: &[u8]) -> Result<S, StateError> {
    if version != S::VERSION {
        return S::upgrade(version, body);
    }
    codec::decode(body, STATE_BYTES_MAX)
        .map_err(|error| StateError::Malformed { reason: error.to_string() })
}

fn no_way<S: State>(version: u16) -> StateError {
    let reason = format!("no migration leads from version {version} to version {}", S::VERSION);
    StateError::Malformed { reason }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct V1 {
        cents: i64,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct V3 {
        amount: String,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct V4 {
        amounts: Vec<String>,
    }

    impl State for V1 {
        const VERSION: u16 = 1;
    }

    impl State for V3 {
        const VERSION: u16 = 3;
        fn upgrade(version: u16, body: &[u8]) -> Result<Self, StateError> {
            migrate::<V1, Self>(version, body)
        }
    }

    impl State for V4 {
        const VERSION: u16 = 4;
        fn upgrade(version: u16, body: &[u8]) -> Result<Self, StateError> {
            migrate::<V3, Self>(version, body)
        }
    }

    impl Migrate<V1> for V3 {
        fn migrate(old: V1) -> Self {
            Self { amount: old.cents.to_string() }
        }
    }

    impl Migrate<V3> for V4 {
        fn migrate(old: V3) -> Self {
            Self { amounts: vec![old.amount] }
        }
    }

    fn bytes<S: State>(state: &S) -> Vec<u8> {
        let mut out = Vec::new();
        encode(state, &mut out).unwrap();
        out
    }

    #[test]
    fn an_old_state_walks_the_whole_chain() {
        let v4: V4 = decode(&bytes(&V1 { cents: 7 })).unwrap();
        assert_eq!(v4, V4 { amounts: vec!["7".to_owned()] });
    }

    #[test]
    fn the_bytes_are_pinned() {
        assert_eq!(bytes(&V1 { cents: 7 }), b"\x01\x00\x81\xa5cents\x07");
    }

    #[test]
    fn a_newer_state_is_told_apart_from_garbage() {
        let newer = bytes(&V4 { amounts: Vec::new() });
        assert_eq!(decode::<V3>(&newer).unwrap_err(), StateError::Newer { found: 4, known: 3 });
        assert!(matches!(decode::<V3>(b"\x03"), Err(StateError::Malformed { .. })));
        assert!(matches!(decode::<V3>(b"\x03\x00\xc1"), Err(StateError::Malformed { .. })));
    }

    #[test]
    fn a_version_between_the_links_is_refused() {
        let error = decode::<V4>(b"\x02\x00\x80").unwrap_err().to_string();
        assert!(error.contains("no migration leads from version 2"), "{error}");
        let error = decode::<V1>(b"\x00\x00\x80").unwrap_err().to_string();
        assert!(error.contains("from version 0 to version 1"), "{error}");
    }

    #[test]
    fn a_state_that_is_too_large_changes_nothing() {
        let mut out = vec![1, 2];
        let large = V3 { amount: "x".repeat(STATE_BYTES_MAX) };
        assert!(matches!(encode(&large, &mut out), Err(StateError::Unencodable { .. })));
        assert_eq!(out, [1, 2]);
    }
}
