//! The shipped recording and alert rules: accepted by Prometheus, and each with a page to read.

use std::process::Command;

use crate::source::{file, files, root};

const FOLDER: &str = "deploy/observability";

/// Runs promtool in the rules' folder; `None`, said aloud, where it is not installed.
fn promtool(arguments: &[&str]) -> Option<(bool, String)> {
    let run = Command::new("promtool").args(arguments).current_dir(root().join(FOLDER)).output();
    let Ok(output) = run else {
        crate::skipped("promtool not found");
        return None;
    };
    let text = [output.stdout, output.stderr].concat();
    Some((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

#[test]
fn prometheus_accepts_the_rules() {
    let Some((ok, said)) = promtool(&["check", "rules", "recording.rules.yml", "alerts.rules.yml"])
    else {
        return;
    };
    assert!(ok, "{said}");
}

#[test]
fn prometheus_accepts_the_scrape_configuration() {
    let Some((ok, said)) = promtool(&["check", "config", "prometheus.yml"]) else { return };
    assert!(ok, "{said}");
}

#[test]
fn alerts_fire_when_they_should_and_only_then() {
    let Some((ok, said)) = promtool(&["test", "rules", "tests.yml"]) else { return };
    assert!(ok, "{said}");
}

#[test]
fn every_alert_has_a_severity_and_a_runbook_and_every_runbook_an_alert() {
    let rules = file(&format!("{FOLDER}/alerts.rules.yml")).unwrap();
    let blocks: Vec<&str> = rules.split("- alert: ").skip(1).collect();
    assert!(blocks.len() > 10, "only {} alerts were found", blocks.len());
    let mut named = Vec::new();
    for block in blocks {
        let name = block.lines().next().unwrap().trim();
        assert!(
            block.contains("{severity: page") || block.contains("{severity: ticket"),
            "{name} has no severity"
        );
        assert!(block.contains("summary:"), "{name} has no summary");
        let page = format!("docs/runbooks/{name}.md");
        assert!(block.contains(&format!("runbook: {page}")), "{name} does not name {page}");
        named.push(page);
    }
    for page in files("docs/runbooks", &[".md"]) {
        assert!(named.contains(&page.path), "{} is about no alert", page.path);
        let name = page.path.rsplit('/').next().unwrap().trim_end_matches(".md");
        assert!(page.text.starts_with(&format!("# {name}\n")), "{}: wrong title", page.path);
    }
    for page in named {
        assert!(file(&page).is_some(), "{page} is missing");
    }
}
