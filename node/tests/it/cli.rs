//! The command line, as a process, against a fake node.

use std::process::Output;
use std::time::Duration;

use mainstay::protocol::control::Event;
use serde_json::Value;

use crate::fake::{Served, name, serve};

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs the binary with these arguments.
async fn run(endpoint: &str, args: &[&str]) -> Ran {
    let mut command = tokio::process::Command::new(env!("CARGO_BIN_EXE_mainstay"));
    command.args(args).env("MAINSTAY_ENDPOINT", endpoint).env("NO_COLOR", "1");
    let folder = tempfile::tempdir().unwrap();
    let Output { status, stdout, stderr } =
        command.current_dir(folder.path()).output().await.unwrap();
    Ran {
        code: status.code().unwrap(),
        out: String::from_utf8(stdout).unwrap(),
        err: String::from_utf8(stderr).unwrap(),
    }
}

async fn ask(served: &Served, args: &[&str]) -> Ran {
    run(&served.admin_url(""), args).await
}

async fn offline(args: &[&str]) -> Ran {
    run("http://127.0.0.1:1", args).await
}

#[tokio::test]
async fn no_arguments_print_help() {
    let ran = offline(&[]).await;
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains("  mainstay status --endpoint"), "{}", ran.out);
    assert!(ran.out.contains("Exit codes:"), "{}", ran.out);
    assert_eq!(offline(&["--help"]).await.code, 0);
    let wrong = offline(&["explode"]).await;
    assert_eq!((wrong.code, wrong.out.as_str()), (2, ""));
}

#[tokio::test]
async fn a_program_without_entities_is_no_node() {
    let ran = offline(&["run", "--dev"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (2, ""));
    assert!(ran.err.contains("hosts no entity"), "{}", ran.err);
}

#[tokio::test]
async fn status_is_one_screen_or_one_document() {
    let served = serve().await;
    let ran = ask(&served, &["status"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.starts_with("healthy\n"), "{}", ran.out);
    assert!(ran.out.contains("shards   3: 0 unavailable"), "{}", ran.out);
    let json: Value = serde_json::from_str(&ask(&served, &["status", "--json"]).await.out).unwrap();
    assert_eq!(json["schema"], "mainstay.status/v1");
    assert_eq!(ask(&served, &["status", "--check"]).await.code, 0);
    served.node.state.lock().unwrap().shards[0].primary = None;
    let ran = ask(&served, &["status", "--check"]).await;
    assert_eq!(ran.code, 7);
    assert!(ran.out.starts_with("NOT HEALTHY\n"), "{}", ran.out);
}

#[tokio::test]
async fn nobody_there_is_exit_code_5() {
    let ran = offline(&["status"]).await;
    assert_eq!(ran.code, 5);
    assert!(ran.err.contains("error[MS-1301]: http://127.0.0.1:1 does not answer"), "{}", ran.err);
    assert_eq!(ran.out, "");
}

#[tokio::test]
async fn an_address_that_is_not_an_admin_address_is_called_that() {
    use tokio::io::AsyncWriteExt as _;
    let served = serve().await;
    let api = run(&served.api.to_string(), &["status"]).await;
    let peers = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = peers.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = peers.accept().await {
            stream.write_all(b"MAINSTAY\x01\x00\x00").await.unwrap();
        }
    });
    for ran in [api, run(&address.to_string(), &["status"]).await] {
        assert_eq!(ran.code, 5, "{}", ran.err);
        assert!(ran.err.contains("is not an admin address (9070 by default)"), "{}", ran.err);
    }
}

#[tokio::test]
async fn with_json_a_failure_is_one_object_on_standard_error() {
    let served = serve().await;
    for (args, code, exit) in [
        (&["status", "--json", "--endpoint", "127.0.0.1:1"][..], Some("MS-1301"), 5),
        (&["entities", "get", "counter/nobody", "--json"], None, 3),
        (&["remove", "n1", "--yes", "--json"], Some("MS-2302"), 4),
        (&["drain", "n2", "--wait", "--timeout", "2s", "--json"], None, 5),
        (&["explain", "MS-9999", "--json"], None, 3),
        (&["metrics", "dump", "--json"], None, 2),
        (&["status", "--json", "--colour"], None, 2),
    ] {
        let ran = ask(&served, args).await;
        let error: Value = serde_json::from_str(&ran.err).unwrap_or_else(|error| {
            panic!("{args:?}: {error}: {}", ran.err);
        });
        assert_eq!(error["schema"], "mainstay.error/v1");
        assert_eq!((error["code"].as_str(), &error["exit"]), (code, &exit.into()), "{args:?}");
        assert_eq!(ran.code, exit, "{args:?}");
        assert!(!error["text"].as_str().unwrap().is_empty() && error["facts"].is_array());
    }
}

#[tokio::test]
async fn entities_are_called_listed_and_shown() {
    let served = serve().await;
    let ran = ask(&served, &["entities", "call", "counter/a/b c", "add", r#"{"by":2}"#]).await;
    assert_eq!((ran.code, ran.out.trim()), (0, "2"), "{}", ran.err);
    let ran = ask(&served, &["e", "ls", "counter"]).await;
    assert!(ran.out.contains("a/b c"), "{}", ran.out);
    let ran = ask(&served, &["entities", "get", "counter/a/b c", "--json"]).await;
    let entity: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!(entity["state"]["value"], 2);
    let nobody = ask(&served, &["entities", "get", "counter/nobody"]).await;
    assert_eq!((nobody.code, nobody.out.as_str()), (3, ""));
    assert!(nobody.err.contains("counter/nobody was never written"), "{}", nobody.err);
    assert_eq!(ask(&served, &["entities", "ls", "nothing"]).await.code, 3);
    assert_eq!(ask(&served, &["entities", "get", "counter"]).await.code, 2);
    let refused =
        ask(&served, &["entities", "call", "counter/a", "fail", r#"{"how":"app"}"#]).await;
    assert_eq!(refused.code, 1);
    assert!(refused.err.contains("error[MS-2201]: too poor"), "{}", refused.err);
    assert!(refused.err.contains(r#"{"Poor":5}"#), "{}", refused.err);
    let late = ask(&served, &["entities", "call", "counter/a", "fail", r#"{"how":"late"}"#]).await;
    assert_eq!(late.code, 5);
    assert_eq!(ask(&served, &["entities", "call", "counter/a", "add", "{}"]).await.code, 2);
    let kinds = ask(&served, &["entities", "kinds"]).await.out;
    assert!(kinds.contains("Adds, and returns the new value."), "{kinds}");
}

#[tokio::test]
async fn a_call_that_is_late_says_whether_it_may_have_run() {
    let served = serve().await;
    let call =
        ["entities", "call", "counter/a", "fail", r#"{"how":"never"}"#, "--timeout", "100ms"];
    let late = ask(&served, &call).await;
    assert_eq!(late.code, 5, "{}", late.err);
    assert!(late.err.contains("error[MS-2103]"), "{}", late.err);
    assert!(late.err.contains("  outcome  unknown\n"), "{}", late.err);
    // somebody who takes the call and says nothing
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap().to_string();
    let unanswered = run(&address, &call).await;
    assert_eq!(unanswered.code, 5, "{}", unanswered.err);
    assert!(unanswered.err.contains("error[MS-1301]"), "{}", unanswered.err);
    assert!(unanswered.err.contains("  outcome  unknown\n"), "{}", unanswered.err);
    let nobody = offline(&call).await;
    assert!(!nobody.err.contains("outcome"), "nothing was sent: {}", nobody.err);
}

#[tokio::test]
async fn an_entity_that_another_node_serves_is_not_called_missing() {
    let served = serve().await;
    let ran = ask(&served, &["entities", "get", "counter/elsewhere"]).await;
    assert_eq!((ran.code, ran.out.as_str()), (1, ""));
    assert!(ran.err.contains("counter/elsewhere is served by n2; n1, which was asked"));
    assert!(ran.err.contains("--endpoint"), "{}", ran.err);
    assert!(!ran.err.contains("entry 0") && !ran.err.contains("0 bytes"), "{}", ran.err);
    let ran = ask(&served, &["entities", "get", "counter/elsewhere", "--json"]).await;
    let entity: Value = serde_json::from_str(&ran.out).unwrap();
    assert_eq!((&entity["primary"], &entity["seq"]), (&"n2".into(), &Value::Null));
    assert_eq!(ask(&served, &["entities", "get", "counter/nowhere"]).await.code, 5);
}

#[tokio::test]
async fn members_are_drained_and_removed() {
    let served = serve().await;
    let ran = ask(&served, &["drain", "n2"]).await;
    assert!(ran.out.starts_with("n2 hands its shards over"), "{}", ran.out);
    assert!(ask(&served, &["nodes", "ls"]).await.out.contains("draining"));
    let still = ask(&served, &["drain", "n2", "--wait", "--timeout", "2s"]).await;
    assert_eq!(still.code, 5, "{}", still.out);
    assert!(still.err.contains("n2 serves no shard, but is still a member"), "{}", still.err);
    assert_eq!(ask(&served, &["undrain", "n2"]).await.code, 0);
    served.node.leaves.store(true, std::sync::atomic::Ordering::SeqCst);
    let ran = ask(&served, &["drain", "n2", "--wait"]).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert!(ran.out.contains("handed everything over and left the cluster"), "{}", ran.out);
    let late = ask(&served, &["undrain", "n2"]).await;
    assert_eq!(late.code, 3);
    assert!(late.err.contains("n2 is no member: it left the cluster"), "{}", late.err);
    assert_eq!(ask(&served, &["drain", "n9"]).await.code, 3);
    let unsaid = ask(&served, &["remove", "n1"]).await;
    assert_eq!(unsaid.code, 2);
    assert!(unsaid.err.contains("--yes"), "{}", unsaid.err);
    let refused = ask(&served, &["remove", "n1", "--yes"]).await;
    assert_eq!(refused.code, 4);
    assert!(refused.err.contains("error[MS-2302]"), "{}", refused.err);
    let own = ask(&served, &["drain", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&own.out).unwrap()["node"], "n1");
}

#[tokio::test]
async fn shards_events_and_locality_are_shown() {
    let served = serve().await;
    let ran = ask(&served, &["shards", "map"]).await;
    assert!(ran.out.starts_with("     0  ABA\n"), "{}", ran.out);
    let ran = ask(&served, &["shards", "ls", "--node", "n2"]).await;
    assert_eq!(ran.out.lines().count(), 2, "{}", ran.out);
    let ran = ask(&served, &["shards", "ls", "--limit", "1", "--json"]).await;
    assert_eq!(serde_json::from_str::<Value>(&ran.out).unwrap()["next"], 0);
    let ran = ask(&served, &["events"]).await;
    assert!(ran.out.contains("n1 #1 member_joined node=n1"), "{}", ran.out);
    let ran = ask(&served, &["locality"]).await;
    assert!(ran.out.contains("75.0 %"), "{}", ran.out);
    let dearest = ran.out.lines().nth(1).unwrap();
    assert!(dearest.contains("5.0 MiB"), "{}", ran.out);
}

#[tokio::test]
async fn events_are_followed_until_ctrl_c() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let served = serve().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["events", "--follow", "--endpoint", &served.admin_url("")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().contains("member_joined"));
    served.node.events.record(2, [Event::MemberDown { node: name("n2") }]);
    assert!(lines.next_line().await.unwrap().unwrap().contains("#2 member_down node=n2"));
    let pid = child.id().unwrap().to_string();
    let sent = tokio::process::Command::new("kill").args(["-INT", &pid]).status().await.unwrap();
    assert!(sent.success());
    assert_eq!(child.wait().await.unwrap().code(), Some(130));
}

#[tokio::test]
async fn events_that_nobody_reads_are_followed_no_more() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let served = serve().await;
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_mainstay"))
        .args(["events", "--follow", "--endpoint", &served.admin_url("")])
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.next_line().await.unwrap().unwrap().contains("member_joined"));
    drop(lines);
    served.node.events.record(2, [Event::MemberDown { node: name("n2") }]);
    let ended = tokio::time::timeout(Duration::from_secs(10), child.wait()).await;
    assert_eq!(ended.expect("it follows on").unwrap().code(), Some(0));
}

#[tokio::test]
async fn codes_are_explained() {
    let ran = offline(&["explain", "ms-2101"]).await;
    assert_eq!(ran.code, 0);
    assert!(ran.out.starts_with("# MS-2101: no room"), "{}", ran.out);
    assert_eq!(offline(&["explain", "MS-9999"]).await.code, 3);
    let all = offline(&["explain", "--list"]).await.out;
    assert_eq!(all.lines().count(), mainstay_node::explain::CODES.len());
}

#[tokio::test]
async fn settings_are_shown_and_checked() {
    let ran = offline(&["config", "show", "--defaults"]).await;
    assert_eq!(ran.out, include_str!("../../config.toml"));
    let ran = offline(&["config", "show", "--origin"]).await;
    assert!(ran.out.contains("limits.deadline_max"), "{}", ran.out);
    let set = ["config", "show", "--set", "limits.requests=77", "--http", "127.0.0.1:1"];
    let changed = offline(&set).await.out;
    assert!(changed.contains("requests = 77\n"), "{changed}");
    assert!(!changed.contains("each at its default"), "{changed}");
    let ran = offline(&[&set[..], &["--origin"]].concat()).await;
    assert!(ran.out.contains("flag --set limits.requests"), "{}", ran.out);
    assert!(ran.out.contains("flag --http"), "{}", ran.out);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("m.toml");
    std::fs::write(&file, "weight = 1\n").unwrap();
    let flagged = ["config", "check", file.to_str().unwrap(), "--log", "inf=o="];
    assert_eq!(offline(&flagged[..3]).await.code, 0);
    let ran = offline(&flagged).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("flag --log: log.filter"), "{}", ran.err);
    std::fs::write(&file, "wieght = 1\n[http]\nconnections = 0\n").unwrap();
    let ran = offline(&["config", "check", file.to_str().unwrap()]).await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("m.toml:1: unknown key `wieght` (did you mean `weight`?)"));
    assert!(ran.err.contains("m.toml:3: http.connections"), "{}", ran.err);
    let schema: Value = serde_json::from_str(&offline(&["config", "schema"]).await.out).unwrap();
    assert_eq!(schema["properties"]["weight"]["default"], 1);
}

#[tokio::test]
async fn completions_and_the_catalogue_are_printed() {
    assert!(offline(&["completions", "bash"]).await.out.contains("_mainstay"));
    let ran = offline(&["metrics", "catalog", "--json"]).await;
    let catalog: Value = serde_json::from_str(&ran.out).unwrap();
    assert!(catalog["metrics"].as_array().unwrap().len() > 10);
    assert!(offline(&["metrics", "catalog"]).await.out.contains("mainstay_http_requests_total"));
}
