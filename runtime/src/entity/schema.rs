//! JSON schemas that say exactly what is accepted.
//!
//! `schemars` leaves the bounds of 32, 64 and 128 bit integers to `format`, which is a hint; a
//! caller that believes the schema would be refused by the decoder. [`Bounds`] writes them out.

use schemars::generate::{SchemaGenerator, SchemaSettings};
use schemars::transform::{Transform, transform_subschemas};
use schemars::{JsonSchema, Schema};
use serde_json::{Number, Value, json};

/// A generator for OpenAPI 3.1: draft 2020-12, definitions below `/components/schemas`, numbers
/// with their bounds. Take the definitions with `take_definitions(true)`.
pub fn generator() -> SchemaGenerator {
    SchemaSettings::draft2020_12()
        .with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
        .with_transform(Bounds)
        .into_generator()
}

/// Writes the bounds that a number's `format` means, where there are none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Bounds;

impl Transform for Bounds {
    fn transform(&mut self, schema: &mut Schema) {
        transform_subschemas(self, schema);
        let format = schema.get("format").and_then(Value::as_str);
        let Some((minimum, maximum)) = format.and_then(bounds) else { return };
        if let Some(schema) = schema.as_object_mut() {
            schema.entry("minimum").or_insert(minimum);
            schema.entry("maximum").or_insert(maximum);
        }
    }
}

/// The schema of a method's arguments: an object that admits no other members.
pub(super) fn arguments<M: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = M::json_schema(generator);
    Bounds.transform(&mut schema);
    if schema.get("type") == Some(&json!("object")) {
        schema.insert("additionalProperties".to_owned(), json!(false));
    }
    schema
}

/// The schema of a value or error, by reference if it has a name.
pub(super) fn of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    Bounds.transform(&mut schema);
    schema
}

/// JSON integers beyond 64 bits are floats to the parser, so wider types end there too.
fn bounds(format: &str) -> Option<(Value, Value)> {
    Some(match format {
        "int8" => (json!(i8::MIN), json!(i8::MAX)),
        "int16" => (json!(i16::MIN), json!(i16::MAX)),
        "int32" => (json!(i32::MIN), json!(i32::MAX)),
        "int64" | "int" => (json!(i64::MIN), json!(i64::MAX)),
        "int128" => (json!(i64::MIN), json!(u64::MAX)),
        "uint8" => (json!(0), json!(u8::MAX)),
        "uint16" => (json!(0), json!(u16::MAX)),
        "uint32" => (json!(0), json!(u32::MAX)),
        "uint64" | "uint" | "uint128" => (json!(0), json!(u64::MAX)),
        "float" => {
            let bound = |float: f32| Number::from_f64(float.into()).map(Value::Number);
            (bound(f32::MIN)?, bound(f32::MAX)?)
        }
        _ => return None,
    })
}
