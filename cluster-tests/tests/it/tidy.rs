//! The house keeps its own rules: who may know whom, sizes, headers, and documents that are true.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use mainstay::metrics::{CATALOGUE, Metric, Type};

use crate::source::{Source, file, files, identifiers, inner_paths, literals, module_of, root};

/// The rooms of `runtime/src`, lowest first, with their layers. A room may use itself and every
/// room that stands before it. The longest name that fits decides.
const ROOMS: &[(u32, &[&str])] = &[
    (1, &["config", "clock", "chain", "metrics", "journey", "events", "call", "ingress", "entity"]),
    (1, &["client", "prelude", "__private"]),
    (2, &["storage", "transport"]),
    (4, &["shard", "lane"]),
    (5, &["membership"]),
    (6, &["control"]),
    (7, &["replication", "handoff", "router"]),
    (8, &["client::remote"]),
    (9, &["workflow", "queue"]),
    (10, &["cluster"]),
];

/// A lane is the thread of its shards and what they share: each may name the other.
const ONE_ROOM: u32 = 4;

/// The words that only some files may know, and those files.
const SECRETS: &[(&str, &str, &[&str])] = &[
    ("openraft", "runtime/src", &["runtime/src/control/consensus"]),
    ("redb", "runtime/src", &["runtime/src/storage"]),
    ("hashring", "runtime/protocol/src", &["runtime/protocol/src/ring.rs"]),
];

const FILE_LINES_MAX: usize = 500;
const HEADER_LINES_MAX: usize = 25;
/// Of a head with two pictures.
const HEADER_LINES_MAX_PICTURES: usize = 45;

#[test]
fn every_room_looks_down() {
    let mut wrong = Vec::new();
    for source in files("runtime/src", &[".rs"]) {
        let module = module_of(source.path.strip_prefix("runtime/src/").unwrap());
        if module.is_empty() {
            continue; // lib.rs names every room: that is its work
        }
        let from = room(&module)
            .unwrap_or_else(|| panic!("{}: give its room a place in tidy.rs", source.path));
        for path in inner_paths(&source.text, &module, "mainstay") {
            // a path that starts with no room is an item that lib.rs re-exports
            let Some(to) = room(&path) else { continue };
            let one = from.layer == to.layer && to.layer == ONE_ROOM;
            if to.place > from.place && !one && !within(&path, &module) {
                wrong.push(format!(
                    "{}: {} (layer {}) looks up to {} in {} (layer {})",
                    source.path,
                    from.name,
                    from.layer,
                    path.join("::"),
                    to.name,
                    to.layer,
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

/// A room and its place in the table.
struct Room {
    name: &'static str,
    layer: u32,
    place: usize,
}

/// The room of a module or path: the longest name in the table that it starts with.
fn room(path: &[String]) -> Option<Room> {
    let fits = |name: &str| {
        let words: Vec<&str> = name.split("::").collect();
        path.len() >= words.len() && words.iter().zip(path).all(|(word, part)| word == part)
    };
    let rooms = ROOMS.iter().flat_map(|(layer, names)| names.iter().map(|name| (*name, *layer)));
    rooms
        .enumerate()
        .map(|(place, (name, layer))| Room { name, layer, place })
        .filter(|room| fits(room.name))
        .max_by_key(|room| room.name.len())
}

/// Whether a path stays in the module that names it: a parent re-exports its children.
fn within(path: &[String], module: &[String]) -> bool {
    path.starts_with(module)
}

#[test]
fn the_rules_depend_on_nothing_that_can_act() {
    let manifest: toml::Table = file("runtime/protocol/Cargo.toml").unwrap().parse().unwrap();
    let dependencies: BTreeSet<&str> =
        manifest["dependencies"].as_table().unwrap().keys().map(String::as_str).collect();
    let allowed = BTreeSet::from([
        "bytes",
        "hashring",
        "hashbrown",
        "serde",
        "thiserror",
        "xxhash-rust",
        "slab",
        "rmp-serde",
    ]);
    let foreign: Vec<_> = dependencies.difference(&allowed).collect();
    assert!(foreign.is_empty(), "mainstay-protocol must not depend on {foreign:?}");
}

#[test]
fn libraries_are_known_only_to_their_rooms() {
    for (word, folder, knowers) in SECRETS {
        for source in files(folder, &[".rs"]) {
            let may = knowers.iter().any(|knower| source.path.starts_with(knower));
            let knows = || identifiers(&source.text).iter().any(|ident| ident == word);
            assert!(may || !knows(), "{} names {word}; only {knowers:?} may", source.path);
        }
    }
}

#[test]
fn every_file_says_what_it_is() {
    for source in rust_files() {
        let header: Vec<&str> =
            source.text.lines().take_while(|line| line.starts_with("//!")).collect();
        assert!(!header.is_empty(), "{} does not open with //!", source.path);
        let pictures = header.iter().filter(|line| line.contains("```text")).count();
        let lines_max = if pictures < 2 { HEADER_LINES_MAX } else { HEADER_LINES_MAX_PICTURES };
        assert!(
            header.len() <= lines_max,
            "{}: {} lines of header, at most {lines_max}",
            source.path,
            header.len()
        );
        let first = source.text.lines().next().unwrap_or_default();
        assert!(first.len() > 20, "{}: the first line must say what the file is", source.path);
    }
}

#[test]
fn no_file_is_a_monster() {
    for source in rust_files() {
        let lines = source.text.lines().count();
        assert!(
            lines <= FILE_LINES_MAX,
            "{}: {lines} lines, more than {FILE_LINES_MAX}: one room or two?",
            source.path
        );
    }
}

#[test]
fn sources_are_ascii() {
    for source in rust_files() {
        for (number, line) in source.text.lines().enumerate() {
            assert!(line.is_ascii(), "{}:{}: {line}", source.path, number + 1);
        }
    }
}

#[test]
fn documents_keep_their_length() {
    for (path, lines_max) in [
        ("README.md", 150),
        ("ARCHITECTURE.md", 300),
        ("CONTRIBUTING.md", 150),
        ("docs/README.md", 40),
    ] {
        let lines = file(path).unwrap_or_else(|| panic!("{path} is missing")).lines().count();
        assert!(lines <= lines_max, "{path}: {lines} lines, at most {lines_max}");
    }
    for source in files("docs/decisions", &[".md"]) {
        assert!(source.text.lines().count() <= 60, "{}: a decision has a page", source.path);
    }
}

#[test]
fn documents_link_to_files_that_exist() {
    for source in files("", &[".md"]) {
        let folder = source.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for link in links(&source.text) {
            let target = root().join(folder).join(&link);
            assert!(target.exists(), "{}: link to {link}, which does not exist", source.path);
        }
    }
}

#[test]
fn the_map_of_the_code_names_places_that_exist() {
    let map = file("ARCHITECTURE.md").unwrap();
    // What is between two fences is a picture.
    let prose = map.split("```").step_by(2);
    let named: Vec<&str> = prose
        .flat_map(|text| text.split('`').skip(1).step_by(2))
        .filter(|word| word.contains('/') || word.split('.').next_back() == Some("rs"))
        .filter(|word| word.chars().all(|c| c.is_ascii_alphanumeric() || "/._-*".contains(c)))
        .collect();
    assert!(named.len() > 30, "only {} paths were found", named.len());
    for path in named {
        assert!(exists(path), "ARCHITECTURE.md: {path} does not exist from the root");
    }
}

#[test]
fn what_survives_what_names_a_test_that_exists_for_each_fault() {
    let page = file("docs/replication.md").unwrap();
    let (_, table) = page.split_once("shown by |").unwrap();
    let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
    let sources = rust_files();
    for row in rows {
        let words = row.split('`').skip(1).step_by(2);
        let named: Vec<_> = words.filter_map(|word| word.rsplit_once("::")).collect();
        assert!(!named.is_empty(), "no test says so: {row}");
        for (path, name) in named {
            let text = format!("fn {name}(");
            let mut rooms = path.split("::").filter(|room| *room != "tests");
            let is_there = sources.iter().any(|source| {
                source.text.contains(&text) && rooms.clone().all(|room| source.path.contains(room))
            });
            assert!(is_there && rooms.next().is_some(), "{path}::{name} is no test");
        }
    }
}

/// Whether something has this path from the root; a `*` at its end stands for any end.
fn exists(path: &str) -> bool {
    let Some(start) = path.strip_suffix('*') else { return root().join(path).exists() };
    let (folder, start) = start.rsplit_once('/').unwrap_or(("", start));
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return false };
    entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with(start))
}

/// The relative targets of `[text](target)`.
fn links(text: &str) -> Vec<String> {
    text.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default().to_owned())
        .filter(|target| !target.is_empty() && !target.contains(':'))
        .collect()
}

#[test]
fn nothing_names_this_machine() {
    let home = std::env::var("HOME").unwrap_or_default();
    let here = root().to_str().unwrap().to_owned();
    let places: Vec<String> = [home, here]
        .into_iter()
        .filter(|place| place.len() > 1)
        .map(|place| format!("{}/", place.trim_end_matches('/')))
        .collect();
    let endings = [".rs", ".md", ".toml", ".yml", ".json", "Makefile", "run", "tests"];
    for source in files("", &endings) {
        for place in &places {
            let named = source.text.match_indices(place.as_str()).any(|(at, _)| {
                let before = source.text[..at].chars().next_back();
                !before.is_some_and(|c| c.is_alphanumeric() || "_.$}/-".contains(c))
            });
            assert!(!named, "{} names a path of this machine: {place}", source.path);
        }
    }
}

#[test]
fn make_help_knows_every_target() {
    let makefile = file("Makefile").unwrap();
    let phony = makefile.lines().find_map(|line| line.strip_prefix(".PHONY: ")).unwrap();
    for target in phony.split(' ').filter(|target| *target != "default") {
        let listed = makefile
            .lines()
            .any(|line| line.starts_with(&format!("{target}:")) && line.contains(" ## "));
        assert!(listed, "Makefile: target {target} has no help text");
    }
}

#[test]
fn the_metrics_page_is_the_catalogue() {
    let mut page = String::from(METRICS_HEAD);
    for metric in CATALOGUE {
        let kind = match metric.is {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram(_) => "histogram",
        };
        let labels =
            if metric.labels.is_empty() { "-".to_owned() } else { metric.labels.join(", ") };
        let Metric { name, unit, help, .. } = metric;
        writeln!(page, "| `{name}` | {kind} | {labels} | {unit} | {help} |").unwrap();
    }
    if std::env::var_os("MAINSTAY_UPDATE").is_some() {
        fs::write(root().join("docs/metrics.md"), &page).unwrap();
    }
    let written = file("docs/metrics.md").unwrap_or_default();
    assert!(written == page, "docs/metrics.md is not the catalogue's; `make fix` writes it anew");
}

const METRICS_HEAD: &str = "\
# Metrics

Served by every node at `/metrics` of its admin port. Generated from the catalogue in `runtime/src/metrics.rs`; rules and alerts over them are in `deploy/observability`.

Labels come from closed sets: kinds, methods, peers, outcomes. No key of an entity, no address and no id of a request is ever a label. Spans are in seconds, sizes in bytes.

| metric | type | labels | unit | what it says |
|---|---|---|---|---|
";

#[test]
fn every_metric_that_is_used_is_in_the_catalogue() {
    let mut used = metric_names(&files("runtime/src", &[".rs"]));
    used.extend(metric_names(&files("node/src", &[".rs"])));
    let stray: Vec<_> = used.into_iter().filter(|name| !in_catalogue(name)).collect();
    assert!(stray.is_empty(), "not in the catalogue of runtime/src/metrics.rs: {stray:?}");
}

fn in_catalogue(name: &str) -> bool {
    CATALOGUE.iter().any(|metric| metric.name == name)
}

#[test]
fn every_rule_and_alert_is_about_metrics_that_exist() {
    for source in files("deploy/observability", &["rules.yml"]) {
        for name in words(&source.text).filter(|word| word.starts_with("mainstay_")) {
            let suffix =
                ["_bucket", "_count", "_sum"].iter().find_map(|end| name.strip_suffix(end));
            let known = in_catalogue(name) || suffix.is_some_and(in_catalogue);
            // `cluster:mainstay_calls:rate5m` is a rule's own name.
            let recorded = source.text.contains(&format!(":{name}:"));
            assert!(known || recorded, "{}: {name} is in no catalogue", source.path);
        }
    }
}

fn metric_names(sources: &[Source]) -> BTreeSet<String> {
    let plain = |text: &String| {
        text.strip_prefix("mainstay_").is_some_and(|rest| {
            !rest.is_empty()
                && rest.chars().all(|c| c.is_ascii_lowercase() || "_0123456789".contains(c))
        })
    };
    let crates = ["mainstay_node", "mainstay_protocol", "mainstay_macros"];
    sources
        .iter()
        .flat_map(|source| literals(&source.text))
        .filter(plain)
        .filter(|name| !crates.contains(&name.as_str()))
        .collect()
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
}

#[test]
fn every_error_code_is_explained_and_every_explanation_has_a_code() {
    let mut used: BTreeMap<String, String> = BTreeMap::new();
    for folder in ["runtime/src", "node/src"] {
        for source in files(folder, &[".rs"]) {
            if source.path == "node/src/explain.rs" {
                continue; // the table itself
            }
            for literal in literals(&source.text) {
                if is_code(&literal) {
                    used.entry(literal).or_insert_with(|| source.path.clone());
                }
            }
        }
    }
    assert!(!used.is_empty(), "no error code is used");
    let explained: BTreeSet<String> = files("node/src", &[".md"])
        .iter()
        .filter_map(|source| {
            source.path.rsplit('/').next().unwrap().strip_suffix(".md").map(str::to_owned)
        })
        .filter(|name| is_code(name))
        .collect();
    for (code, path) in &used {
        assert!(explained.contains(code), "{path}: {code} has no explanation");
    }
    for code in &explained {
        assert!(used.contains_key(code), "{code} is explained but never given");
    }
}

/// `MS-2101`.
fn is_code(text: &str) -> bool {
    text.strip_prefix("MS-")
        .is_some_and(|digits| digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()))
}

/// All sources, except those that tests show to the compiler.
fn rust_files() -> Vec<Source> {
    let mut sources = files("", &[".rs"]);
    sources.retain(|source| !source.path.contains("/compile_fail/"));
    sources
}
