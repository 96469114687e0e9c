//! What a node tells about itself, in the form that Prometheus takes.

use std::io::Write;
use std::process::{Command, Stdio};

use mainstay::metrics::{CATALOGUE, Type};

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

#[tokio::test]
async fn every_series_is_in_the_catalogue_with_its_type() {
    let cluster = start(&plan(1)).await;
    cluster.answer(0, &set("a", 1)).await.value().unwrap();
    let (_, page) = cluster.admin(0, "/metrics").await.unwrap();
    for line in page.lines() {
        let Some(rest) = line.strip_prefix("# TYPE ") else { continue };
        let (name, kind) = rest.split_once(' ').unwrap();
        let Some(metric) = CATALOGUE.iter().find(|metric| metric.name == name) else { continue };
        let word = match metric.is {
            Type::Counter => "counter",
            Type::Gauge => "gauge",
            Type::Histogram(_) => "histogram",
        };
        assert_eq!(kind, word, "{name}");
    }
}
