//! What the demo prints: one line per fact, or one JSON object per event.
//!
//! Only on a terminal is a line ever overwritten or coloured; a file or a pipe gets plain lines.

use std::io::{IsTerminal, Write};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use serde_json::{Value, json};

/// Where everything is printed.
#[derive(Debug)]
pub struct Output {
    json: bool,
    terminal: bool,
    colour: bool,
    started_at: Instant,
    /// The live line is on the screen and has to be wiped before the next one.
    live: Mutex<bool>,
}

/// How a line is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it is.
    Plain,
    /// It went well.
    Good,
    /// It went wrong, or was made to.
    Bad,
}

/// One line of the table.
#[derive(Debug, Clone)]
pub struct Row {
    /// Seconds under load.
    pub seconds: f64,
    /// Settled calls per second.
    pub rate: f64,
    /// Median of the time from the first attempt to the outcome, in milliseconds.
    pub p50_ms: f64,
    /// The same for 99 of 100.
    pub p99_ms: f64,
    /// Share of calls that were answered where they came in, if the nodes tell.
    pub local: Option<f64>,
    /// Shards of each node; `None` for a node that does not answer.
    pub shards: Vec<Option<u64>>,
    /// Attempts that had to be repeated, since the last line.
    pub repeated: u64,
    /// Calls that are being repeated now.
    pub waiting: u64,
}

impl Output {
    /// Prints text or JSON to the standard output.
    pub fn new(json: bool) -> Self {
        let terminal = std::io::stdout().is_terminal() && !json;
        let colour = terminal && std::env::var_os("NO_COLOR").is_none();
        Self { json, terminal, colour, started_at: Instant::now(), live: Mutex::new(false) }
    }

    /// Whether somebody watches, so that a line may be overwritten.
    pub fn is_terminal(&self) -> bool {
        self.terminal
    }

    /// One fact: `> nodes     n1 ready in 0.21 s`.
    pub fn fact(&self, event: &str, label: &str, text: &str, data: Value) {
        self.event(event, data, &format!("> {label:<9} {text}"), Mood::Plain);
    }

    /// One more line of the fact above.
    pub fn more(&self, text: &str) {
        if !self.json {
            self.line(&format!("            {text}"), Mood::Plain);
        }
    }

    /// Something that happens in the middle of the table; `text` begins with its moment.
    pub fn incident(&self, event: &str, mood: Mood, text: &str, data: Value) {
        self.event(event, data, text, mood);
    }

    /// The head of the table.
    pub fn head(&self, nodes: &[String]) {
        if self.json {
            return;
        }
        let names = columns(nodes.iter().map(String::as_str));
        self.line("", Mood::Plain);
        self.line(
            &format!("     t     calls/s       p50       p99   local{names}  repeated  waiting"),
            Mood::Plain,
        );
    }

    /// A line of the table that stays.
    pub fn row(&self, row: &Row) {
        self.event("row", row.json(), &row.text(), Mood::Plain);
    }

    /// A line of the table that the next one overwrites; only on a terminal.
    pub fn live(&self, row: &Row) {
        if self.terminal {
            let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
            *live = true;
            write(&format!("\r\x1b[2K{}", row.text()));
        }
    }

    fn event(&self, event: &str, data: Value, text: &str, mood: Mood) {
        if self.json {
            let mut object =
                json!({ "event": event, "at": self.started_at.elapsed().as_secs_f64() });
            if let (Value::Object(object), Value::Object(data)) = (&mut object, data) {
                object.extend(data);
            }
            write(&format!("{object}\n"));
        } else {
            self.line(text, mood);
        }
    }

    fn line(&self, text: &str, mood: Mood) {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let wipe = if std::mem::take(&mut *live) { "\r\x1b[2K" } else { "" };
        let (on, off) = match mood {
            Mood::Good if self.colour => ("\x1b[32m", "\x1b[0m"),
            Mood::Bad if self.colour => ("\x1b[31m", "\x1b[0m"),
            Mood::Plain | Mood::Good | Mood::Bad => ("", ""),
        };
        write(&format!("{wipe}{on}{text}{off}\n"));
    }
}

/// A reader that has gone away ends nothing: the audit still counts.
fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).ok();
}

/// One column of five per node.
fn columns<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    texts.fold(String::new(), |row, text| row + &format!("{text:>5}"))
}

impl Row {
    fn text(&self) -> String {
        let local = self.local.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let shards = self.shards.iter().map(|n| n.map_or("-".to_owned(), |n| n.to_string()));
        let shards = columns(shards.collect::<Vec<_>>().iter().map(String::as_str));
        format!(
            "{:>6.1} s {:>9.0} {:>9} {:>9} {local:>7}{shards} {:>9} {:>8}",
            self.seconds,
            self.rate,
            millis(self.p50_ms),
            millis(self.p99_ms),
            self.repeated,
            self.waiting,
        )
    }

    fn json(&self) -> Value {
        json!({
            "seconds": self.seconds,
            "calls_per_second": self.rate,
            "p50_ms": self.p50_ms,
            "p99_ms": self.p99_ms,
            "local_share": self.local,
            "shards": self.shards,
            "repeated": self.repeated,
            "waiting": self.waiting,
        })
    }
}

/// A span in milliseconds, with as many digits as say something.
pub fn millis(ms: f64) -> String {
    if ms < 10.0 { format!("{ms:.2} ms") } else { format!("{ms:.0} ms") }
}

/// A number with a comma every three digits.
pub fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_by_three() {
        let texts = [0, 999, 1_000, 1_612_884].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,612,884"]);
    }

    #[test]
    fn a_row_is_as_wide_as_its_head() {
        let row = Row {
            seconds: 5.0,
            rate: 41_200.0,
            p50_ms: 0.31,
            p99_ms: 21.0,
            local: Some(0.968),
            shards: vec![Some(22), None, Some(21)],
            repeated: 0,
            waiting: 0,
        };
        assert_eq!(
            row.text(),
            "   5.0 s     41200   0.31 ms     21 ms  96.8 %   22    -   21         0        0"
        );
    }
}
