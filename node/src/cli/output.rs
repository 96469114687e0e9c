//! Where words go: data to standard output, trouble to standard error, a code to the shell.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::process::ExitCode;

use comfy_table::{Table, presets};
use serde::Serialize;

use super::ColorChoice;
use crate::backend::LaunchError;
use crate::explain;

/// Standard output and standard error of one command.
#[derive(Debug)]
pub(super) struct Output {
    /// Escape sequences may be written to standard output.
    color: bool,
    /// And to standard error.
    pub(super) color_err: bool,
    /// A program reads: documents only, trouble included.
    json: bool,
    /// What this program is called.
    program: String,
}

/// Why a command did not succeed.
#[derive(Debug, Clone)]
pub(super) struct Trouble {
    exit: u8,
    /// The error code, when there is one.
    code: Option<String>,
    text: String,
    facts: Vec<(String, String)>,
    help: Vec<String>,
}

impl Output {
    pub(super) fn new(choice: ColorChoice, json: bool, program: &str) -> Self {
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let color = |terminal: bool| match choice {
            ColorChoice::Always => true,
            ColorChoice::Never => false,
            ColorChoice::Auto if set("NO_COLOR") => false,
            ColorChoice::Auto if set("CLICOLOR_FORCE") => true,
            ColorChoice::Auto => terminal && !dumb,
        };
        Self {
            color: color(io::stdout().is_terminal()),
            color_err: color(io::stderr().is_terminal()),
            json,
            program: program.to_owned(),
        }
    }

    /// What this program is called: what is to be typed begins with it.
    pub(super) fn program(&self) -> &str {
        &self.program
    }

    /// Writes data.
    pub(super) fn data(&self, text: &str) -> Result<(), Trouble> {
        self.read_on(text).map(drop)
    }

    /// Writes data that more may follow: `false` when nobody reads any more.
    #[expect(clippy::unused_self, reason = "all words of a command go through its output")]
    pub(super) fn read_on(&self, text: &str) -> Result<bool, Trouble> {
        let mut out = io::stdout().lock();
        let end = if text.ends_with('\n') { "" } else { "\n" };
        match write!(out, "{text}{end}").and_then(|()| out.flush()) {
            Ok(()) => Ok(true),
            // the reader has seen enough: `mainstay shards ls | head`
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(Trouble::failed(format!("standard output: {error}"))),
        }
    }

    /// Writes a document as JSON.
    pub(super) fn json(&self, value: &impl Serialize) -> Result<(), Trouble> {
        self.data(&serde_json::to_string_pretty(value).expect("a document encodes"))
    }

    /// Writes a note, unless a program reads.
    pub(super) fn note(&self, text: &str) {
        if !self.json {
            tell(text);
        }
    }

    /// A word that is good news, in green where there is colour.
    pub(super) fn good(&self, word: &str) -> String {
        self.paint(word, "32")
    }

    /// A word that is bad news, in red where there is colour.
    pub(super) fn bad(&self, word: &str) -> String {
        self.paint(word, "31")
    }

    fn paint(&self, word: &str, color: &str) -> String {
        if self.color { format!("\x1b[{color}m{word}\x1b[0m") } else { word.to_owned() }
    }

    /// Tells the trouble, and gives the exit code.
    pub(super) fn finish(&self, result: Result<(), Trouble>) -> ExitCode {
        match result {
            Ok(()) => ExitCode::SUCCESS,
            Err(trouble) => {
                let trouble = trouble.told_by(&self.program);
                if !trouble.text.is_empty() {
                    let json = self.json.then(|| trouble.document().to_string());
                    let text =
                        json.unwrap_or_else(|| trouble.render(self.color_err, &self.program));
                    tell(text.trim_end());
                }
                ExitCode::from(trouble.exit)
            }
        }
    }
}

fn tell(text: &str) {
    // nobody reads it when standard error is closed
    drop(writeln!(io::stderr(), "{text}"));
}

/// A table with this head.
pub(super) fn table(head: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(head.iter().map(|name| name.to_uppercase()));
    table
}

/// A table as text, without spaces at the ends of lines.
pub(super) fn lines(table: &Table) -> String {
    let text = table.to_string();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    lines.join("\n")
}

/// A count of bytes for people: `5.0 MiB`.
#[expect(clippy::cast_precision_loss, reason = "two digits for people")]
pub(super) fn humanised(bytes: u64) -> String {
    let units = [(1_u64 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match units.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / *unit as f64),
        None => format!("{bytes} B"),
    }
}

impl Trouble {
    fn new(exit: u8, text: impl Into<String>) -> Self {
        Self { exit, code: None, text: text.into(), facts: Vec::new(), help: Vec::new() }
    }

    /// The operation failed.
    pub(super) fn failed(text: impl Into<String>) -> Self {
        Self::new(1, text)
    }

    /// It was asked for in a wrong way.
    pub(super) fn usage(text: impl Into<String>) -> Self {
        Self::new(2, text)
    }

    /// What was asked for does not exist.
    pub(super) fn not_found(text: impl Into<String>) -> Self {
        Self::new(3, text)
    }

    /// Nobody answers, or not in time.
    pub(super) fn unavailable(text: impl Into<String>) -> Self {
        Self::new(5, text)
    }

    /// The cluster is not healthy; said on standard output already.
    pub(super) fn unhealthy() -> Self {
        Self::new(7, "")
    }

    /// Ctrl-C.
    pub(super) fn interrupted() -> Self {
        Self::new(130, "interrupted")
    }

    /// With this exit code, as the refusal of a node tells.
    pub(super) fn exit(mut self, exit: u8) -> Self {
        self.exit = exit;
        self
    }

    /// With this error code.
    pub(super) fn code(mut self, code: impl Into<String>) -> Self {
        self.code = Some(code.into());
        self
    }

    /// With something to do.
    pub(super) fn help(mut self, help: impl Into<String>) -> Self {
        self.help.push(help.into());
        self
    }

    /// With something involved.
    pub(super) fn fact(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.facts.push((name.into(), value.into()));
        self
    }

    /// The same, with what is to be typed under the program's own name.
    fn told_by(mut self, program: &str) -> Self {
        let name = format!("{program} ");
        for help in &mut self.help {
            *help = help.replace("mainstay ", &name);
        }
        self
    }

    /// The same for programs, as one line.
    fn document(&self) -> serde_json::Value {
        let facts: Vec<_> = self
            .facts
            .iter()
            .map(|(name, value)| serde_json::json!({"name": name, "value": value}))
            .collect();
        serde_json::json!({
            "schema": "mainstay.error/v1",
            "code": self.code,
            "text": self.text,
            "facts": facts,
            "help": self.help,
            "exit": self.exit,
        })
    }

    /// The text for people:
    ///
    /// ```text
    /// error[MS-1203]: the data belongs to another cluster
    ///   data dir  /var/lib/mainstay
    ///   help      mainstay run --join ...
    ///   more      mainstay explain MS-1203
    /// ```
    fn render(&self, color: bool, program: &str) -> String {
        let label = self.code.as_ref().map_or("error".to_owned(), |code| format!("error[{code}]"));
        let label = if color { format!("\x1b[1;31m{label}\x1b[0m") } else { label };
        let mut rows: Vec<(&str, &str)> =
            self.facts.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        rows.extend(self.help.iter().map(|help| ("help", help.as_str())));
        let more = self.code.as_ref().map(|code| format!("{program} explain {code}"));
        rows.extend(more.as_ref().map(|more| ("more", more.as_str())));
        let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        let mut text = format!("{label}: {}\n", self.text);
        let mut before = "";
        for (name, value) in rows {
            let shown = if name == before { "" } else { name };
            writeln!(text, "  {shown:width$}  {value}").expect("text takes all");
            before = name;
        }
        text
    }
}

impl From<LaunchError> for Trouble {
    fn from(error: LaunchError) -> Self {
        let mut facts: Vec<(String, String)> =
            error.facts.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let mut help = error.help;
        if let Some(page) = explain::find(error.code) {
            let changed = page.section("Was anything changed");
            facts.extend(changed.map(|line| ("changed".to_owned(), line.to_owned())));
            help.extend(page.section("What to do").map(ToOwned::to_owned));
        }
        Self { exit: 1, code: Some(error.code.to_owned()), text: error.text, facts, help }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_written_for_people() {
        for (bytes, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 << 20, "5.0 MiB")]
        {
            assert_eq!(humanised(bytes), text);
        }
    }

    #[test]
    fn trouble_names_code_facts_and_help_under_the_name_of_the_program() {
        let trouble = Trouble::failed("the data belongs to another cluster")
            .code("MS-1203")
            .fact("data dir", "/d")
            .help("mainstay run --join n1:7000")
            .help("second");
        assert_eq!(
            trouble.told_by("bank").render(false, "bank"),
            "error[MS-1203]: the data belongs to another cluster\n  \
             data dir  /d\n  \
             help      bank run --join n1:7000\n            second\n  \
             more      bank explain MS-1203\n"
        );
    }
}
