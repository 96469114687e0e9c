//! Arguments from JSON: strict where the schema is strict, and with messages for people.
//!
//! JSON Schema calls `986.0` an integer, so integral floats are read as integers. Members that no
//! argument has, and members given twice, are refused rather than ignored.

use std::fmt;

use serde::de::{self, DeserializeOwned, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};
use serde_json::{Map, Number, Value};

/// The arguments in a JSON object; an empty text is an empty object.
///
/// # Errors
/// What is wrong and where.
pub(super) fn arguments<M: DeserializeOwned>(json: &[u8]) -> Result<M, String> {
    let json = if json.trim_ascii().is_empty() { b"{}" } else { json };
    let tree = serde_json::from_slice::<Tree>(json).map_err(|error| error.to_string())?;
    let Value::Object(members) = &tree.0 else {
        return Err(format!("the arguments are a JSON object, not {}", article(&tree.0)));
    };
    if let Some(names) = argument_names::<M>()
        && let Some(member) = members.keys().find(|member| !names.contains(&member.as_str()))
    {
        return Err(unknown(member, names));
    }
    serde_path_to_error::deserialize(tree.0).map_err(|error| {
        let path = error.path().to_string();
        let error = error.into_inner();
        if path == "." { error.to_string() } else { format!("`{path}`: {error}") }
    })
}

fn unknown(member: &str, names: &[&str]) -> String {
    if names.is_empty() {
        return format!("unknown argument `{member}`: the method has none");
    }
    let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
    format!("unknown argument `{member}`, the method has {}", names.join(", "))
}

fn article(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// The fields that a struct asks its decoder for; `None` for what is no struct.
fn argument_names<M: DeserializeOwned>() -> Option<&'static [&'static str]> {
    match M::deserialize(Asked) {
        Err(Answered::Fields(names)) => Some(names),
        Err(Answered::Other) | Ok(_) => None,
    }
}

/// A decoder that gives nothing and remembers what it was asked for.
struct Asked;

#[derive(Debug)]
enum Answered {
    Fields(&'static [&'static str]),
    Other,
}

impl fmt::Display for Answered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("nothing to decode")
    }
}

impl std::error::Error for Answered {}

impl de::Error for Answered {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self::Other
    }
}

impl<'de> Deserializer<'de> for Asked {
    type Error = Answered;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Answered> {
        Err(Answered::Other)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        _: V,
    ) -> Result<V::Value, Answered> {
        Err(Answered::Fields(fields))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option
        unit unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

/// A JSON value whose integral floats became integers and whose objects name each member once.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(TreeVisitor).map(Self)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(integer(value).unwrap_or_else(|| value.into()))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut array = Vec::new();
        while let Some(Tree(item)) = items.next_element()? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = members.next_key::<String>()? {
            if object.contains_key(&name) {
                return Err(de::Error::custom(format!("`{name}` is given twice")));
            }
            let Tree(value) = members.next_value()?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// The integer that a float is, if it is one and fits. Integers below the least of 64 bits are read
/// as floats, and the nearest one may be that least: it stands for what does not fit.
fn integer(value: f64) -> Option<Value> {
    const I64_END: f64 = 9_223_372_036_854_775_808.0;
    const U64_END: f64 = 18_446_744_073_709_551_616.0;
    if value.fract() != 0.0 {
        return None;
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to fit")]
    if -I64_END < value && value < I64_END {
        Some(Number::from(value as i64).into())
    } else if (I64_END..U64_END).contains(&value) {
        Some(Number::from(value as u64).into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Eq, Deserialize)]
    struct Reading {
        value: i64,
    }

    /// The integer below the least one was read as the least one: a float lies between them.
    #[test]
    fn an_integer_below_the_least_is_refused_and_not_rounded() {
        let read = |text: &str| arguments::<Reading>(format!(r#"{{"value":{text}}}"#).as_bytes());

        assert_eq!(read("-9223372036854775808"), Ok(Reading { value: i64::MIN }));
        assert_eq!(read("9223372036854775807"), Ok(Reading { value: i64::MAX }));
        for text in ["-9223372036854775809", "-9223372036854776000", "9223372036854775808"] {
            assert!(read(text).is_err(), "{text}");
        }
    }
}
