//! The demo audits itself, cleans up, and bears company.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use super::TURN;

fn demo(seed: u64) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.args(["--fast", "--json", "--seed", &seed.to_string()]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn events(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn check(output: &Output) {
    let events = events(output);
    let text: Vec<String> = events.iter().map(Value::to_string).collect();
    assert!(output.status.success(), "{}\n{}", output.status, text.join("\n"));
    let find = |name: &str| {
        let event = events.iter().find(|event| event["event"] == name);
        event.unwrap_or_else(|| panic!("no event {name} in\n{}", text.join("\n")))
    };
    for name in ["kill", "restart", "drain", "drained", "result"] {
        find(name);
    }
    let copies = find("copies");
    assert!(copies["sent_bytes_per_change_and_copy"].as_f64().unwrap() > 20.0, "{copies}");
    assert!(copies["failover"]["serve"]["shards"].as_f64().unwrap() >= 1.0, "{copies}");
    let audit = find("audit");
    assert_eq!(audit["present"], audit["acknowledged"]);
    assert_eq!(audit["duplicates"], 0);
    assert!(audit["acknowledged"].as_u64().unwrap() > 500, "{audit}");
    let folder = PathBuf::from(find("data")["folder"].as_str().unwrap());
    assert!(!folder.exists(), "{} was left behind", folder.display());
}

#[test]
fn two_demos_at_once_lose_nothing() {
    let _turn = TURN.blocking_lock();
    let first = demo(1).spawn().unwrap();
    let second = demo(2).spawn().unwrap();
    check(&first.wait_with_output().unwrap());
    check(&second.wait_with_output().unwrap());
}

#[test]
fn a_demo_that_is_killed_leaves_no_process_behind() {
    use std::io::{BufRead, BufReader};

    let _turn = TURN.blocking_lock();
    let mut demo = demo(3).spawn().unwrap();
    let lines = BufReader::new(demo.stdout.take().unwrap()).lines();
    let folder = lines
        .map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap())
        .find(|event| event["event"] == "data")
        .map(|event| event["folder"].as_str().unwrap().to_owned())
        .unwrap();
    demo.kill().unwrap();
    demo.wait().unwrap();
    let began = std::time::Instant::now();
    while processes_that_name(&folder) > 0 {
        assert!(began.elapsed().as_secs() < 10, "a node outlived the demo");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn an_interrupted_demo_audits_what_was_done_and_cleans_up() {
    use std::io::{BufRead, BufReader};

    let _turn = TURN.blocking_lock();
    let mut demo = demo(4).spawn().unwrap();
    let mut folder = String::new();
    let mut audited = false;
    for line in BufReader::new(demo.stdout.take().unwrap()).lines() {
        let event: Value = serde_json::from_str(&line.unwrap()).unwrap();
        match event["event"].as_str().unwrap() {
            "data" => event["folder"].as_str().unwrap().clone_into(&mut folder),
            "row" if !audited => {
                let pid = demo.id();
                Command::new("sh").args(["-c", &format!("kill -INT {pid}")]).status().unwrap();
            }
            "audit" => {
                assert_eq!(event["present"], event["acknowledged"], "{event}");
                audited = true;
            }
            _ => {}
        }
    }
    let status = demo.wait().unwrap();
    assert!(audited, "no audit before the end ({status})");
    assert_eq!(status.code(), Some(130));
    assert!(!PathBuf::from(&folder).exists(), "{folder} was left behind");
    assert_eq!(processes_that_name(&folder), 0);
}

/// Processes with this text in their arguments.
fn processes_that_name(text: &str) -> usize {
    let processes = std::fs::read_dir("/proc").unwrap().filter_map(Result::ok);
    let arguments =
        processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    arguments.filter(|arguments| String::from_utf8_lossy(arguments).contains(text)).count()
}
