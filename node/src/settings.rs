//! The settings of a node: defaults < file < `MAINSTAY_*` environment < flags, each with its origin.
//!
//! One table ([`fields::FIELDS`]) drives everything: reading, "did you mean", the origin of each
//! value, the sample file, the JSON schema. All problems of all layers are reported at once.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use mainstay::config::Config;

pub mod check;
pub mod fields;
pub mod file;
pub mod schema;
pub mod value;

use fields::Field;
use value::Raw;

/// All settings: the runtime's, and those of what stands around it.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// The runtime's.
    pub runtime: Config,
    /// The API for callers.
    pub http: Http,
    /// The listener for operators.
    pub admin: Admin,
    /// The log.
    pub log: Log,
    /// How the node ends.
    pub stop: Stop,
}

/// The API for callers.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where it listens.
    pub listen: String,
    /// Where others reach it, when that differs.
    pub advertise: Option<String>,
    /// Connections, at most; more wait in the kernel's queue.
    pub connections: u32,
    /// Bytes of a body, at most. No more than a payload between nodes may have.
    pub body_bytes: u64,
    /// How long the head of a request may take to arrive, idle time between requests included.
    pub header_timeout: Duration,
    /// How long a body may take to arrive.
    pub body_timeout: Duration,
    /// How long a reader may take nothing while something is written to it.
    pub stall_timeout: Duration,
}

/// The listener for operators.
#[derive(Debug, Clone)]
pub struct Admin {
    /// Where it listens.
    pub listen: String,
    /// Connections, at most, event streams included.
    pub connections: u32,
}

/// The log.
#[derive(Debug, Clone)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// What is logged, in the syntax of `tracing`'s filters.
    pub filter: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// `compact` on a terminal, `json` elsewhere.
    Auto,
    /// Several lines per event, for reading.
    Pretty,
    /// One line per event, for reading.
    Compact,
    /// One JSON object per line.
    Json,
}

/// How the node ends.
#[derive(Debug, Clone)]
pub struct Stop {
    /// On SIGTERM, hand the shards over before ending.
    pub drain: bool,
    /// How long handing over, and then the requests under way, may take.
    pub timeout: Duration,
}

impl Default for Http {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:8080".to_owned(),
            advertise: None,
            connections: 1024,
            body_bytes: 1 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(10),
        }
    }
}

impl Default for Admin {
    fn default() -> Self {
        Self { listen: "127.0.0.1:9070".to_owned(), connections: 64 }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::Auto, filter: "info,openraft=off".to_owned() }
    }
}

impl Default for Stop {
    fn default() -> Self {
        Self { drain: false, timeout: Duration::from_secs(30) }
    }
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody said anything.
    Default,
    /// A line of the file.
    File {
        /// The file, as named.
        file: String,
        /// The line, from 1.
        line: usize,
    },
    /// A variable of the environment.
    Env(String),
    /// A flag of the command line.
    Flag(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { file, line } => write!(f, "{file}:{line}"),
            Self::Env(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
        }
    }
}

/// One thing that is wrong with the settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `MS-1001` or `MS-1002`.
    pub code: &'static str,
    /// Where it stands.
    pub at: String,
    /// What is wrong.
    pub text: String,
    /// What was probably meant.
    pub help: Option<String>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.at, self.text)?;
        match &self.help {
            Some(help) => write!(f, " ({help})"),
            None => Ok(()),
        }
    }
}

/// Everything that is wrong with the settings. The node did not start.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{} in the settings", count(.0.len()))]
pub struct Invalid(pub Vec<Problem>);

fn count(problems: usize) -> String {
    if problems == 1 { "1 problem".to_owned() } else { format!("{problems} problems") }
}

/// Settings, and how they came about.
#[derive(Debug, Clone)]
pub struct Loaded {
    /// The values.
    pub settings: Settings,
    /// Where each value comes from, by its path.
    pub origins: BTreeMap<&'static str, Origin>,
    /// The file that was read.
    pub file: Option<PathBuf>,
    /// What is odd but no reason not to start.
    pub warnings: Vec<String>,
    /// Started for trying out: default ports that are taken are replaced by free ones.
    pub dev: bool,
}

impl Loaded {
    /// Where the value at `path` comes from.
    pub fn origin(&self, path: &str) -> &Origin {
        self.origins.get(path).unwrap_or(&Origin::Default)
    }
}

/// Where settings are looked for.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file; without one, `mainstay.toml` in the working directory if it exists.
    pub file: Option<PathBuf>,
    /// The environment, as name and value.
    pub env: Vec<(String, String)>,
    /// Flags: path, name of the flag, value.
    pub flags: Vec<(&'static str, String, Raw)>,
    /// `--dev` was said: without members to join, the node forms a cluster alone.
    pub dev: bool,
}

/// The file that is read when none is named.
pub const FILE_DEFAULT: &str = "mainstay.toml";
/// Variables that begin with `MAINSTAY_` and are no settings.
const OTHER_VARIABLES: [&str; 2] = ["MAINSTAY_CONFIG", "MAINSTAY_ENDPOINT"];

/// Reads all layers and checks the result.
///
/// # Errors
/// [`Invalid`] with every problem of every layer.
///
/// # Panics
/// When a flag is given for a path that is no setting.
pub fn load(sources: &Sources) -> Result<Loaded, Invalid> {
    let mut building = Building {
        loaded: Loaded {
            settings: Settings::default(),
            origins: BTreeMap::new(),
            file: None,
            warnings: Vec::new(),
            dev: sources.dev,
        },
        problems: Vec::new(),
    };
    building.read_file(sources.file.as_deref());
    building.read_env(&sources.env);
    for (path, flag, raw) in &sources.flags {
        let field = fields::find(path).expect("flags name fields of the table");
        building.set(field, raw, Origin::Flag(flag.clone()));
    }
    building.apply_dev();
    check::relations(&building.loaded, &mut building.problems);
    if building.problems.is_empty() {
        return Ok(building.loaded);
    }
    Err(Invalid(building.problems))
}

struct Building {
    loaded: Loaded,
    problems: Vec<Problem>,
}

impl Building {
    fn read_file(&mut self, file: Option<&Path>) {
        let path = match file {
            Some(path) => path,
            None if Path::new(FILE_DEFAULT).is_file() => Path::new(FILE_DEFAULT),
            None => return,
        };
        let name = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                let text = format!("cannot be read: {error}");
                self.problems.push(Problem { code: "MS-1001", at: name, text, help: None });
                return;
            }
        };
        let (entries, problems) = file::parse(&name, &text);
        self.problems.extend(problems);
        for (field, raw, line) in entries {
            self.set(field, &raw, Origin::File { file: name.clone(), line });
        }
        self.loaded.file = Some(path.to_owned());
    }

    fn read_env(&mut self, env: &[(String, String)]) {
        for (name, value) in env {
            let Some(rest) = name.strip_prefix("MAINSTAY_") else { continue };
            if OTHER_VARIABLES.contains(&name.as_str()) {
                continue;
            }
            let path = match rest {
                "LOG" => "log.filter".to_owned(),
                _ => rest.to_ascii_lowercase().replace("__", "."),
            };
            let Some(field) = fields::find(&path) else {
                self.unknown_variable(name, &path);
                continue;
            };
            self.set(field, &Raw::Untyped(value.clone()), Origin::Env(name.clone()));
        }
    }

    /// One that is nearly a setting was meant to be it: starting without it would be wrong. Others may
    /// be of somebody else, as the `MAINSTAY_PORT_7000_TCP` of Kubernetes.
    fn unknown_variable(&mut self, name: &str, path: &str) {
        match fields::misspelt(path) {
            Some(near) => self.problems.push(Problem {
                code: "MS-1002",
                at: format!("environment {name}"),
                text: "is not a setting".to_owned(),
                help: Some(format!("did you mean `{}`?", variable(near))),
            }),
            None => self.loaded.warnings.push(format!("{name} is not a setting")),
        }
    }

    /// `--dev` fills in what nobody said.
    fn apply_dev(&mut self) {
        let loaded = &mut self.loaded;
        let cluster = &mut loaded.settings.runtime.cluster;
        if loaded.dev && cluster.join.is_empty() && cluster.expect == 0 {
            cluster.form_alone = true;
            loaded.origins.insert("cluster.form_alone", Origin::Flag("--dev".to_owned()));
        }
    }

    fn set(&mut self, field: &Field, raw: &Raw, origin: Origin) {
        match field.set(&mut self.loaded.settings, raw) {
            Ok(()) => {
                self.loaded.origins.insert(field.path, origin);
            }
            Err(text) => self.problems.push(Problem {
                code: "MS-1001",
                at: origin.to_string(),
                text: format!("{}: {text}", field.path),
                help: None,
            }),
        }
    }
}

/// The variable of the setting at `path`.
pub fn variable(path: &str) -> String {
    match path {
        "log.filter" => "MAINSTAY_LOG".to_owned(),
        _ => format!("MAINSTAY_{}", path.to_ascii_uppercase().replace('.', "__")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(text: &str) -> (tempfile::TempDir, Sources) {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mainstay.toml");
        std::fs::write(&file, text).unwrap();
        (folder, Sources { file: Some(file), ..Sources::default() })
    }

    fn env(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn later_layers_win_and_are_named() {
        let (_folder, mut sources) =
            with_file("weight = 2\n[limits]\nrequests = 10\nrequest_bytes = \"2MiB\"\n");
        sources.env = env(&[("MAINSTAY_LIMITS__REQUESTS", "11"), ("MAINSTAY_WEIGHT", "3")]);
        sources.flags = vec![("weight", "--weight".to_owned(), Raw::Untyped("4".to_owned()))];
        let loaded = load(&sources).unwrap();
        assert_eq!(loaded.settings.runtime.weight, 4);
        assert_eq!(loaded.settings.runtime.limits.requests, 11);
        assert_eq!(loaded.settings.runtime.limits.request_bytes, 2 << 20);
        assert_eq!(loaded.origin("weight").to_string(), "flag --weight");
        assert_eq!(
            loaded.origin("limits.requests").to_string(),
            "environment MAINSTAY_LIMITS__REQUESTS"
        );
        assert!(matches!(loaded.origin("limits.request_bytes"), Origin::File { line: 4, .. }));
        assert_eq!(loaded.origin("zone"), &Origin::Default);
    }

    #[test]
    fn all_problems_are_reported_at_once_with_their_places() {
        let (_folder, mut sources) = with_file(
            "wieght = 2\nzone = 5\n[limits]\nrequest_bytes = \"many\"\n[limit]\nx = 1\n\
             [detection]\nheartbeat = \"1s\"\nsuspect_after = \"500ms\"\n",
        );
        sources.env = env(&[("MAINSTAY_CLUSTER__VOTERS", "2"), ("MAINSTAY_LANES__COUNT", "-1")]);
        let problems = load(&sources).unwrap_err().0;
        let text: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let all = text.join("\n");
        assert!(all.contains("mainstay.toml:1: unknown key `wieght` (did you mean `weight`?)"));
        assert!(all.contains("mainstay.toml:2: zone: expected text, found an integer"), "{all}");
        assert!(all.contains("mainstay.toml:4: limits.request_bytes"), "{all}");
        assert!(all.contains("mainstay.toml:5: unknown table `limit` (did you mean `limits`?)"));
        assert!(all.contains("environment MAINSTAY_LANES__COUNT: lanes.count"), "{all}");
        assert!(all.contains("environment MAINSTAY_CLUSTER__VOTERS: cluster.voters"), "{all}");
        assert!(all.contains("detection.suspect_after"), "{all}");
        assert_eq!(problems.len(), 7, "{all}");
    }

    #[test]
    fn unknown_variables_are_warned_of_and_misspelt_ones_refused() {
        let others = [
            ("MAINSTAY_PORT_7000_TCP", "x"),
            ("MAINSTAY_SERVICE_HOST", "x"),
            ("MAINSTAY_ENDPOINT", "http://x"),
            ("OTHER", "y"),
        ];
        let loaded = load(&Sources { env: env(&others), ..Sources::default() }).unwrap();
        assert_eq!(loaded.warnings.len(), 2, "{:?}", loaded.warnings);
        for (name, meant) in [
            ("MAINSTAY_LIMITS__REQUEST", "MAINSTAY_LIMITS__REQUESTS"),
            ("MAINSTAY_CLUSTER_SHARDS", "MAINSTAY_CLUSTER__SHARDS"),
            ("MAINSTAY_DATADIR", "MAINSTAY_DATA_DIR"),
        ] {
            let sources = Sources { env: env(&[(name, "5")]), ..Sources::default() };
            let problems = load(&sources).unwrap_err().0;
            assert_eq!((problems.len(), problems[0].code), (1, "MS-1002"), "{name}");
            let text = problems[0].to_string();
            assert!(text.contains(&format!("did you mean `{meant}`?")), "{text}");
        }
    }

    #[test]
    fn the_log_filter_has_its_short_variable() {
        let sources =
            Sources { env: env(&[("MAINSTAY_LOG", "debug,redb=warn")]), ..Sources::default() };
        assert_eq!(load(&sources).unwrap().settings.log.filter, "debug,redb=warn");
        assert_eq!(variable("log.filter"), "MAINSTAY_LOG");
    }

    #[test]
    fn a_file_that_is_named_must_exist() {
        let sources = Sources { file: Some("/no/such/file.toml".into()), ..Sources::default() };
        let problems = load(&sources).unwrap_err().0;
        assert!(problems[0].text.starts_with("cannot be read"), "{problems:?}");
    }
}
