//! Reads a settings file: TOML, with the line of every value.

use toml::de::{DeTable, DeValue};

use super::Problem;
use super::fields::{self, Field};
use super::value::Raw;

/// A setting that a file gives: which, its value, its line.
pub type Entry = (&'static Field, Raw, usize);

/// The settings in `text`, and everything in it that is no setting.
pub fn parse(name: &str, text: &str) -> (Vec<Entry>, Vec<Problem>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut reading = Reading { name, text, entries: Vec::new(), problems: Vec::new() };
    for error in errors {
        let line = error.span().map_or(1, |span| reading.line(span.start));
        let text = format!("not TOML: {}", error.message());
        reading.complain("MS-1001", line, text, None);
    }
    if reading.problems.is_empty() {
        reading.walk("", table.get_ref());
    }
    reading.entries.sort_by_key(|(_, _, line)| *line);
    (reading.entries, reading.problems)
}

struct Reading<'t> {
    name: &'t str,
    text: &'t str,
    entries: Vec<Entry>,
    problems: Vec<Problem>,
}

impl Reading<'_> {
    fn walk(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let key_text: &str = key.get_ref();
            let path = if prefix.is_empty() {
                key_text.to_owned()
            } else {
                format!("{prefix}.{key_text}")
            };
            let line = self.line(key.span().start);
            if let Some(field) = fields::find(&path) {
                self.entries.push((field, raw(value.get_ref()), line));
            } else if fields::is_table(&path) {
                match value.get_ref() {
                    DeValue::Table(inner) => self.walk(&path, inner),
                    other => {
                        let text = format!("{path}: expected a table, found {}", other.type_str());
                        self.complain("MS-1001", line, text, None);
                    }
                }
            } else {
                self.unknown(&path, value.get_ref(), line);
            }
        }
    }

    fn unknown(&mut self, path: &str, value: &DeValue<'_>, line: usize) {
        let (what, near) = match value {
            DeValue::Table(_) => ("table", fields::nearest_table(path)),
            _ => ("key", fields::nearest(path)),
        };
        let help = near.map(|near| format!("did you mean `{near}`?"));
        self.complain("MS-1002", line, format!("unknown {what} `{path}`"), help);
    }

    fn complain(&mut self, code: &'static str, line: usize, text: String, help: Option<String>) {
        self.problems.push(Problem { code, at: format!("{}:{line}", self.name), text, help });
    }

    fn line(&self, at: usize) -> usize {
        1 + self.text.char_indices().take_while(|(place, _)| *place < at).filter(newline).count()
    }
}

fn newline((_, char): &(usize, char)) -> bool {
    *char == '\n'
}

fn raw(value: &DeValue<'_>) -> Raw {
    match value {
        DeValue::String(text) => Raw::Text(text.clone().into_owned()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Raw::Other("an integer that is too large"), Raw::Number),
        DeValue::Boolean(flag) => Raw::Flag(*flag),
        DeValue::Array(items) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.get_ref().as_str().map(str::to_owned)).collect();
            texts.map_or(Raw::Other("a list of other things"), Raw::List)
        }
        DeValue::Float(_) => Raw::Other("a fraction"),
        DeValue::Datetime(_) => Raw::Other("a date"),
        DeValue::Table(_) => Raw::Other("a table"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_with_their_lines() {
        let (entries, problems) =
            parse("f", "# head\nnode = \"n1\"\n\n[cluster]\njoin = [\"a:1\", \"b:2\"]\n");
        assert_eq!(problems, []);
        let seen: Vec<(&str, usize)> =
            entries.iter().map(|(field, _, line)| (field.path, *line)).collect();
        assert_eq!(seen, [("node", 2), ("cluster.join", 5)]);
        assert_eq!(entries[1].1, Raw::List(vec!["a:1".to_owned(), "b:2".to_owned()]));
    }

    #[test]
    fn broken_toml_is_reported_with_its_line() {
        let (_, problems) = parse("f", "node = \"n1\"\nzone = = 2\n");
        assert_eq!(problems[0].at, "f:2");
        assert!(problems[0].text.starts_with("not TOML: "), "{problems:?}");
    }

    #[test]
    fn a_value_where_a_table_is_due_is_told_apart() {
        let (_, problems) = parse("f", "limits = 5\n");
        assert_eq!(problems[0].text, "limits: expected a table, found integer");
        let (entries, problems) = parse("f", "[zone]\nx = 1\n");
        assert_eq!(problems, []);
        assert_eq!(entries[0].1, Raw::Other("a table"));
    }
}
