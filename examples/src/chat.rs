//! Chat rooms that remember their last messages, and no more than that.

use std::collections::VecDeque;
use std::fmt;

use mainstay::prelude::*;

/// Messages that a room remembers.
pub const KEPT: usize = 100;
/// Bytes of one message.
pub const TEXT_BYTES_MAX: usize = 2_000;
/// Bytes of the name of who wrote it.
pub const AUTHOR_BYTES_MAX: usize = 100;

/// A room: its last messages, oldest first.
#[state(version = 1)]
pub struct Room {
    last_id: u64,
    messages: VecDeque<Message>,
}

/// One message.
#[data]
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Counts from 1 in each room.
    pub id: u64,
    /// Who wrote it.
    pub author: String,
    /// What.
    pub text: String,
    /// When: milliseconds since the Unix epoch, in log time.
    pub at_ms: u64,
}

/// Why a room refuses a message. It was not said.
#[data]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChatError {
    /// There is nothing in it.
    Empty,
    /// It is longer than [`TEXT_BYTES_MAX`].
    TooLong,
    /// Its author's name is longer than [`AUTHOR_BYTES_MAX`].
    AuthorTooLong,
}

impl fmt::Display for ChatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("the message is empty"),
            Self::TooLong => write!(f, "the message is longer than {TEXT_BYTES_MAX} bytes"),
            Self::AuthorTooLong => {
                write!(f, "the author's name is longer than {AUTHOR_BYTES_MAX} bytes")
            }
        }
    }
}

#[entity(name = "room")]
impl Room {
    /// Says something; returns the message's id.
    #[command]
    fn say(&mut self, cx: &mut Cx<'_>, author: String, text: String) -> Result<u64, ChatError> {
        if text.trim().is_empty() {
            return Err(ChatError::Empty);
        }
        if text.len() > TEXT_BYTES_MAX {
            return Err(ChatError::TooLong);
        }
        if author.len() > AUTHOR_BYTES_MAX {
            return Err(ChatError::AuthorTooLong);
        }
        self.last_id += 1;
        if self.messages.len() == KEPT {
            self.messages.pop_front();
        }
        let message = Message { id: self.last_id, author, text, at_ms: cx.now().0 };
        self.messages.push_back(message);
        Ok(self.last_id)
    }

    /// The remembered messages that follow the one with this id; 0 for all.
    #[query]
    fn since(&self, id: u64) -> Vec<Message> {
        self.messages.iter().filter(|message| message.id > id).cloned().collect()
    }
}
