//! Tokens: where an entity stood, as a caller keeps it and hands it in again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::{Epoch, Seq, ShardId};

/// Where an entity stood when it replied: what a later read may ask to be included.
///
/// As text, three numbers: `688.3.17` is shard 688, epoch 3, place 17.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Token {
    /// The shard.
    pub shard: ShardId,
    /// The epoch that replied; of a standby, that of the newest entry that it has applied.
    pub epoch: Epoch,
    /// The entity's version: the place of the newest entry that changed it, 0 when none did. It
    /// names one state, and stays while the state does: through passivation, restarts, failovers
    /// and moves.
    pub seq: Seq,
}

/// A text that is no token. Hand in what a reply carried, as it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a token: three numbers with points between them")]
pub struct TokenError;

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.shard.0, self.epoch.0, self.seq.0)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut numbers = text.split('.');
        let shard = ShardId(number(numbers.next())?);
        let (epoch, seq) = (Epoch(number(numbers.next())?), Seq(number(numbers.next())?));
        let ends = numbers.next().is_none();
        if ends { Ok(Self { shard, epoch, seq }) } else { Err(TokenError) }
    }
}

/// A number as `Display` writes it: digits alone, and no zero before others.
fn number<N: FromStr + fmt::Display>(text: Option<&str>) -> Result<N, TokenError> {
    let text = text.ok_or(TokenError)?;
    let number: N = text.parse().map_err(|_| TokenError)?;
    if number.to_string() == text { Ok(number) } else { Err(TokenError) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_is_written() {
        for (shard, epoch, seq) in [(0, 0, 0), (688, 3, 17), (u32::MAX, u64::MAX, u64::MAX)] {
            let token = Token { shard: ShardId(shard), epoch: Epoch(epoch), seq: Seq(seq) };
            assert_eq!(token.to_string().parse(), Ok(token));
        }
    }

    #[test]
    fn what_is_no_token_is_refused() {
        for text in ["", "1", "1.2", "1.2.3.4", "1.2.", "1.2.x", "-1.2.3", "+1.2.3", "01.2.3"] {
            assert_eq!(text.parse::<Token>(), Err(TokenError), "{text}");
        }
        assert!("4294967296.1.1".parse::<Token>().is_err(), "a shard has 32 bits");
    }
}
