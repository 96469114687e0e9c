//! What a node tells about itself, in the form that Prometheus takes.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use mainstay::metrics::{CATALOGUE, Metric, Type};

use super::{append, plan, set, start};

#[tokio::test]
async fn prometheus_accepts_the_metrics_page() {
    let cluster = start(&plan(1)).await;
    for key in 0..20 {
        cluster.answer(0, &set(&format!("r-{key}"), key)).await.value().unwrap();
    }
    let (status, page) = cluster.admin(0, "/metrics").await.unwrap();
    assert_eq!(status, 200);
    let checker = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut checker) = checker else {
        crate::skipped("promtool not found");
        return;
    };
    checker.stdin.take().unwrap().write_all(page.as_bytes()).unwrap();
    let output = checker.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
async fn no_entity_key_becomes_a_label() {
    let cluster = start(&plan(1)).await;
    for key in 0..300 {
        cluster.answer(0, &append(&format!("telltale-{key}"), key)).await.value().unwrap();
    }
    let (_, page) = cluster.admin(0, "/metrics").await.unwrap();
    assert!(!page.contains("telltale"), "an entity key is in the metrics");
    let series = page.lines().filter(|line| !line.starts_with('#')).count();
    assert!(series < 10_000, "{series} series");
}

/// A rule over `increase` does not see the first failure of a series that begins with it.
#[tokio::test]
async fn what_pages_somebody_is_counted_from_zero() {
    let cluster = start(&plan(1)).await;
    let (_, page) = cluster.admin(0, "/metrics").await.unwrap();
    for operation in ["read", "write", "fsync", "statvfs"] {
        let line = format!("mainstay_storage_errors_total{{operation=\"{operation}\"}} 0\n");
        assert!(page.contains(&line), "no {line}");
    }
    for place in ["wal", "snapshot"] {
        let line = format!("mainstay_checksum_failures_total{{where=\"{place}\"}} 0\n");
        assert!(page.contains(&line), "no {line}");
    }
    for outcome in ["replaced", "left", "extra", "outvoted"] {
        let line = format!("mainstay_drift_rows_total{{outcome=\"{outcome}\"}} 0\n");
        assert!(page.contains(&line), "no {line}");
    }
    let line = "mainstay_drift_checks_total{result=\"mismatch\"} 0\n";
    assert!(page.contains(line), "no {line}");
}

#[tokio::test]
async fn every_series_is_in_the_catalogue_with_its_type_and_labels() {
    let cluster = start(&plan(1)).await;
    cluster.answer(0, &set("a", 1)).await.value().unwrap();
    let (_, page) = cluster.admin(0, "/metrics").await.unwrap();
    let mut seen = 0;
    let mut family = None;
    for line in page.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            family = in_the_catalogue(name);
            if let Some(metric) = family {
                assert_eq!(kind, word_of(metric.is), "{name}");
            }
        } else if let Some(metric) = family.filter(|_| !line.starts_with('#') && !line.is_empty()) {
            assert!(line.starts_with(metric.name), "{line} is under {}", metric.name);
            let expected: BTreeSet<&str> = metric.labels.iter().copied().collect();
            assert_eq!(labels_of(line), expected, "{line}");
            seen += 1;
        }
    }
    assert!(seen > 50, "only {seen} samples were compared");
}

/// The catalogue's row; nothing for what the process says of itself, which is not ours.
fn in_the_catalogue(name: &str) -> Option<&'static Metric> {
    let found = CATALOGUE.iter().find(|metric| metric.name == name);
    assert!(found.is_some() || !name.starts_with("mainstay_"), "{name} is not in the catalogue");
    found
}

fn word_of(is: Type) -> &'static str {
    match is {
        Type::Counter => "counter",
        Type::Gauge => "gauge",
        Type::Histogram(_) => "histogram",
    }
}

/// The names of a sample's labels, without those that its type brings along.
fn labels_of(line: &str) -> BTreeSet<&str> {
    let Some((_, rest)) = line.split_once('{') else { return BTreeSet::new() };
    let (labels, _) = rest.rsplit_once('}').unwrap();
    let mut pieces = labels.split('"');
    let mut names = BTreeSet::new();
    // a name before each value; a value holds no quote, since labels are words and names
    while let (Some(before), Some(_value)) = (pieces.next(), pieces.next()) {
        let name = before.trim_start_matches(',').trim().trim_end_matches('=');
        if !["le", "quantile"].contains(&name) {
            names.insert(name);
        }
    }
    names
}
