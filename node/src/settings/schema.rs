//! The sample file and the JSON schema, both written from the table of settings.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};

use super::Settings;
use super::fields::{self, FIELDS, Field};
use super::value::{Kind, Raw};

/// What the values of the sample file are.
pub const DEFAULTS: &str = "each at its default";

/// A file that sets every setting to what it is in `settings`, with its meaning beside it. `what`
/// says which values these are.
pub fn sample(settings: &Settings, what: &str) -> String {
    let mut out = format!(
        "# The settings of a Mainstay node, {what}. Later layers win: this file, then\n\
         # MAINSTAY_* variables (MAINSTAY_LIMITS__REQUESTS=9000), then flags.\n\
         # Durations are \"250ms\", \"5m\"; sizes are \"64MiB\".\n",
    );
    for table in fields::tables() {
        if table.is_empty() {
            out.push('\n');
        } else {
            writeln!(out, "\n[{table}]").expect("writing to text does not fail");
        }
        for field in FIELDS.iter().filter(|field| field.table() == table) {
            let line = match field.show(settings) {
                Raw::Absent => format!("# {} = \"\"", field.key()),
                value => format!("{} = {value}", field.key()),
            };
            writeln!(out, "# {}\n{line}", field.doc).expect("writing to text does not fail");
        }
    }
    out
}

/// A JSON schema of the file, for editors.
pub fn json_schema() -> Json {
    let mut tables: Map<String, Json> = Map::new();
    let mut top: Map<String, Json> = Map::new();
    for field in FIELDS.iter() {
        if field.table().is_empty() {
            top.insert(field.key().to_owned(), of_field(field));
            continue;
        }
        let table = tables.entry(field.table()).or_insert_with(
            || json!({"type": "object", "additionalProperties": false, "properties": {}}),
        );
        table["properties"][field.key()] = of_field(field);
    }
    top.append(&mut tables);
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "mainstay.toml",
        "type": "object",
        "additionalProperties": false,
        "properties": top,
    })
}

fn of_field(field: &Field) -> Json {
    let mut schema = match field.kind {
        Kind::Text => json!({"type": "string"}),
        Kind::Number => json!({"type": "integer", "minimum": 0}),
        Kind::Flag => json!({"type": "boolean"}),
        Kind::Span => json!({"type": "string", "examples": ["250ms", "5m"]}),
        Kind::Size => json!({"type": "string", "examples": ["64MiB"]}),
        Kind::List => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Choice(words) => json!({"type": "string", "enum": words}),
    };
    schema["description"] = json!(field.doc);
    if let Some((least, greatest)) = field.range {
        schema["minimum"] = json!(least);
        schema["maximum"] = json!(greatest);
    }
    match field.show(&Settings::default()) {
        Raw::Untyped(text) | Raw::Text(text) => schema["default"] = json!(text),
        Raw::Number(number) => schema["default"] = json!(number),
        Raw::Flag(flag) => schema["default"] = json!(flag),
        Raw::List(list) => schema["default"] = json!(list),
        Raw::Absent | Raw::Other(_) => {}
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::super::{Origin, Sources, load};
    use super::*;

    #[test]
    fn the_sample_file_is_the_defaults() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml");
        let text = std::fs::read_to_string(path).unwrap();
        assert_eq!(
            text,
            sample(&Settings::default(), DEFAULTS),
            "write it anew: mainstay config show --defaults > node/config.toml"
        );
        let loaded = load(&Sources { file: Some(path.into()), ..Sources::default() }).unwrap();
        for field in FIELDS.iter() {
            assert_eq!(field.show(&loaded.settings), field.show(&Settings::default()));
            let optional = field.show(&Settings::default()) == Raw::Absent;
            assert_eq!(loaded.origin(field.path) == &Origin::Default, optional, "{}", field.path);
        }
    }

    #[test]
    fn the_schema_knows_every_setting_and_no_other() {
        let schema = json_schema();
        for field in FIELDS.iter() {
            let pointer = match field.table() {
                "" => format!("/properties/{}", field.key()),
                table => format!("/properties/{table}/properties/{}", field.key()),
            };
            assert_eq!(schema.pointer(&pointer).unwrap()["description"], field.doc);
        }
        assert_eq!(schema["additionalProperties"], false);
    }
}
