//! The kinds of values that settings have, and how each is read and written.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use mainstay::protocol::id::NodeId;

use super::LogFormat;

/// A value as a layer gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Raw {
    /// Text of a layer that knows only text: environment and flags.
    Untyped(String),
    /// Text of a layer that has other types too.
    Text(String),
    /// A whole number.
    Number(i64),
    /// True or false.
    Flag(bool),
    /// A list of texts.
    List(Vec<String>),
    /// No value: only as an answer, for settings that may be absent.
    Absent,
    /// Something that no setting is, in words: "a table".
    Other(&'static str),
}

impl Raw {
    /// What it is, in words.
    fn what(&self) -> &'static str {
        match self {
            Self::Untyped(_) | Self::Text(_) => "text",
            Self::Number(_) => "an integer",
            Self::Flag(_) => "a boolean",
            Self::List(_) => "a list",
            Self::Absent => "nothing",
            Self::Other(what) => what,
        }
    }
}

impl fmt::Display for Raw {
    /// As it stands in a TOML file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Untyped(text) | Self::Text(text) => write!(f, "{text:?}"),
            Self::Number(number) => write!(f, "{number}"),
            Self::Flag(flag) => write!(f, "{flag}"),
            Self::List(list) => write!(f, "{list:?}"),
            Self::Absent => f.write_str("(none)"),
            Self::Other(what) => f.write_str(what),
        }
    }
}

/// What a setting is, for the JSON schema and for error texts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Text, perhaps absent.
    Text,
    /// A whole number.
    Number,
    /// True or false.
    Flag,
    /// A span of time.
    Span,
    /// Bytes.
    Size,
    /// A list of texts.
    List,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A type that settings have.
pub trait Value {
    /// What it is.
    fn kind(&self) -> Kind;
    /// Takes the value of a layer, if it is one.
    ///
    /// # Errors
    /// What was expected and what was found. The value is as before.
    fn read(&mut self, raw: &Raw) -> Result<(), String>;
    /// The value as it stands in a file.
    fn show(&self) -> Raw;
}

fn text_of<'r>(raw: &'r Raw, expected: &str) -> Result<&'r str, String> {
    match raw {
        Raw::Untyped(text) | Raw::Text(text) => Ok(text),
        Raw::Number(_) | Raw::Flag(_) | Raw::List(_) | Raw::Absent | Raw::Other(_) => {
            Err(format!("expected {expected}, found {}", raw.what()))
        }
    }
}

/// The number in `raw`, when it lies in `range`.
///
/// # Errors
/// What was expected and what was found.
fn number_of(raw: &Raw, range: &RangeInclusive<i64>) -> Result<i64, String> {
    let number = match raw {
        Raw::Number(number) => Some(*number),
        Raw::Untyped(text) => text.trim().parse().ok(),
        Raw::Text(_) | Raw::Flag(_) | Raw::List(_) | Raw::Absent | Raw::Other(_) => None,
    };
    match number {
        Some(number) if range.contains(&number) => Ok(number),
        Some(number) => Err(format!(
            "expected an integer of {} to {}, found {number}",
            range.start(),
            range.end()
        )),
        None => Err(match raw {
            Raw::Untyped(text) => format!("expected an integer, found {text:?}"),
            _ => format!("expected an integer, found {}", raw.what()),
        }),
    }
}

macro_rules! numbers {
    ($($number:ty),*) => {$(
        impl Value for $number {
            fn kind(&self) -> Kind {
                Kind::Number
            }

            fn read(&mut self, raw: &Raw) -> Result<(), String> {
                let number = number_of(raw, &(0..=i64::from(Self::MAX)))?;
                *self = Self::try_from(number).expect("the range was checked");
                Ok(())
            }

            fn show(&self) -> Raw {
                Raw::Number(i64::from(*self))
            }
        }
    )*};
}

numbers!(u8, u16, u32);

/// A `u64` among the settings is always a number of bytes.
impl Value for u64 {
    fn kind(&self) -> Kind {
        Kind::Size
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        let expected = "a size such as \"64MiB\"";
        let text = text_of(raw, expected)?;
        let size: ByteSize =
            text.trim().parse().map_err(|_| format!("expected {expected}, found {text:?}"))?;
        *self = size.as_u64();
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::Text(size_text(*self))
    }
}

/// A size as it is written: in the largest unit that gives a whole number.
pub fn size_text(bytes: u64) -> String {
    let units = [(1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    let whole = units.iter().find(|(unit, _)| bytes >= *unit && bytes.is_multiple_of(*unit));
    match whole {
        Some((unit, name)) => format!("{}{name}", bytes / unit),
        None => format!("{bytes}B"),
    }
}

impl Value for Duration {
    fn kind(&self) -> Kind {
        Kind::Span
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        let expected = "a duration such as \"250ms\" or \"5m\"";
        let text = text_of(raw, expected)?;
        *self = humantime::parse_duration(text.trim())
            .map_err(|_| format!("expected {expected}, found {text:?}"))?;
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::Text(humantime::format_duration(*self).to_string().replace(' ', ""))
    }
}

impl Value for String {
    fn kind(&self) -> Kind {
        Kind::Text
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        text_of(raw, "text")?.clone_into(self);
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::Text(self.clone())
    }
}

impl Value for Option<String> {
    fn kind(&self) -> Kind {
        Kind::Text
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        let text = text_of(raw, "text")?;
        *self = (!text.is_empty()).then(|| text.to_owned());
        Ok(())
    }

    fn show(&self) -> Raw {
        self.clone().map_or(Raw::Absent, Raw::Text)
    }
}

impl Value for Option<NodeId> {
    fn kind(&self) -> Kind {
        Kind::Text
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        let name = NodeId::new(text_of(raw, "text")?).map_err(|error| error.to_string())?;
        *self = Some(name);
        Ok(())
    }

    fn show(&self) -> Raw {
        self.as_ref().map_or(Raw::Absent, |name| Raw::Text(name.to_string()))
    }
}

impl Value for PathBuf {
    fn kind(&self) -> Kind {
        Kind::Text
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        let text = text_of(raw, "a path")?;
        if text.is_empty() {
            return Err("expected a path, found nothing".to_owned());
        }
        *self = Self::from(text);
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::Text(self.display().to_string())
    }
}

impl Value for Vec<String> {
    fn kind(&self) -> Kind {
        Kind::List
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        *self = match raw {
            Raw::List(list) => list.clone(),
            Raw::Untyped(text) => text
                .split(',')
                .map(str::trim)
                .filter(|s| !s.is_empty())
                .map(str::to_owned)
                .collect(),
            Raw::Text(_) | Raw::Number(_) | Raw::Flag(_) | Raw::Absent | Raw::Other(_) => {
                return Err(format!("expected a list of texts, found {}", raw.what()));
            }
        };
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::List(self.clone())
    }
}

impl Value for bool {
    fn kind(&self) -> Kind {
        Kind::Flag
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        *self = match raw {
            Raw::Flag(flag) => *flag,
            Raw::Untyped(text) => text
                .trim()
                .parse()
                .map_err(|_| format!("expected true or false, found {text:?}"))?,
            Raw::Text(_) | Raw::Number(_) | Raw::List(_) | Raw::Absent | Raw::Other(_) => {
                return Err(format!("expected true or false, found {}", raw.what()));
            }
        };
        Ok(())
    }

    fn show(&self) -> Raw {
        Raw::Flag(*self)
    }
}

const LOG_FORMATS: &[&str] = &["auto", "pretty", "compact", "json"];

impl Value for LogFormat {
    fn kind(&self) -> Kind {
        Kind::Choice(LOG_FORMATS)
    }

    fn read(&mut self, raw: &Raw) -> Result<(), String> {
        *self = match text_of(raw, "text")? {
            "auto" => Self::Auto,
            "pretty" => Self::Pretty,
            "compact" => Self::Compact,
            "json" => Self::Json,
            other => return Err(format!("expected one of {LOG_FORMATS:?}, found {other:?}")),
        };
        Ok(())
    }

    fn show(&self) -> Raw {
        let word = match self {
            Self::Auto => "auto",
            Self::Pretty => "pretty",
            Self::Compact => "compact",
            Self::Json => "json",
        };
        Raw::Text(word.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<T: Value + Clone + PartialEq + fmt::Debug>(mut value: T, text: &str, expected: &T) {
        value.read(&Raw::Untyped(text.to_owned())).unwrap();
        assert_eq!(&value, expected);
        let mut back = value.clone();
        back.read(&value.show()).unwrap();
        assert_eq!(back, value, "what is shown reads back");
    }

    #[test]
    fn values_read_what_they_show() {
        check(0_u64, "64MiB", &(64 << 20));
        check(0_u64, "1500", &1500);
        check(0_u64, "1kB", &1000);
        check(Duration::ZERO, "250ms", &Duration::from_millis(250));
        check(Duration::ZERO, "1m 30s", &Duration::from_secs(90));
        check(0_u16, " 7 ", &7);
        check(Vec::new(), "a:1, b:2,", &vec!["a:1".to_owned(), "b:2".to_owned()]);
        check(false, "true", &true);
        check(LogFormat::Auto, "json", &LogFormat::Json);
        assert_eq!(size_text(64 << 20), "64MiB");
        assert_eq!(size_text((64 << 20) + 1), "67108865B");
        assert_eq!(size_text(0), "0B");
    }

    #[test]
    fn wrong_kinds_are_named() {
        let error = 0_u64.read(&Raw::Number(5)).unwrap_err();
        assert_eq!(error, "expected a size such as \"64MiB\", found an integer");
        let error = 0_u8.read(&Raw::Untyped("300".to_owned())).unwrap_err();
        assert_eq!(error, "expected an integer of 0 to 255, found 300");
        let error = 0_u8.read(&Raw::Text("3".to_owned())).unwrap_err();
        assert_eq!(error, "expected an integer, found text");
        assert!(None::<NodeId>.read(&Raw::Text("N 1".to_owned())).is_err());
    }
}
