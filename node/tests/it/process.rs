//! `run` as a process: banner, signals, ports, refusals. The process is this test program itself,
//! started again to run [`child`].

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use mainstay_node::backend::LaunchError;

use crate::fake::Launcher;

const ARGS: &str = "NODE_TEST_ARGS";
const REFUSE: &str = "NODE_TEST_REFUSE";
const NAME: &str = "NODE_TEST_NAME";
const FAIL: &str = "NODE_TEST_FAIL";

#[test]
#[ignore = "is a process that the other tests start"]
fn child() {
    let Ok(args) = std::env::var(ARGS) else { return };
    let refusal = std::env::var_os(REFUSE).map(|_| LaunchError {
        code: "MS-1203",
        text: "the data belongs to another cluster".to_owned(),
        facts: vec![("data dir", "/d".to_owned())],
        help: vec!["mainstay run --join A_MEMBER_OF_THE_OLD_ONE".to_owned()],
    });
    let ends = std::env::var_os(FAIL).map(|_| {
        let text = "consensus stopped: the log is gone".to_owned();
        Err(LaunchError { code: "MS-1107", text, facts: Vec::new(), help: Vec::new() })
    });
    let name = std::env::var(NAME).unwrap_or_else(|_| "mainstay".to_owned());
    let args = std::iter::once(name.as_str()).chain(args.split(' '));
    let code = mainstay_node::cli::main_from(args, Launcher { refusal, ends });
    std::process::exit(i32::from(code != std::process::ExitCode::SUCCESS));
}

fn command(args: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", "process::child", "--nocapture"])
        .env(ARGS, args)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

struct Node {
    child: Child,
    log: BufReader<std::process::ChildStderr>,
}

impl Node {
    fn start(args: &str) -> Self {
        let mut child = command(args).spawn().unwrap();
        let log = BufReader::new(child.stderr.take().unwrap());
        Self { child, log }
    }

    /// The first line that holds `text`.
    fn line(&mut self, text: &str) -> String {
        self.until(text).lines().last().unwrap().to_owned() + "\n"
    }

    /// All up to the first line that holds `text`.
    fn until(&mut self, text: &str) -> String {
        let mut all = String::new();
        loop {
            let mut line = String::new();
            assert!(self.log.read_line(&mut line).unwrap() > 0, "ended before {text:?}:\n{all}");
            all.push_str(&line);
            if line.contains(text) {
                return all;
            }
        }
    }

    fn signal(&self, name: &str) {
        let sent =
            Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status();
        assert!(sent.unwrap().success());
    }

    fn exit_code(&mut self) -> Option<i32> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(began.elapsed() < Duration::from_secs(10), "still runs");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // it has ended already in most tests
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Waits until the API has taken the head of a request.
fn until_inside(up: &serde_json::Value) {
    let admin = up["admin"].as_str().unwrap().strip_prefix("http://").unwrap();
    let began = Instant::now();
    loop {
        let mut stream = std::net::TcpStream::connect(admin).unwrap();
        let ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
        stream.write_all(ask).unwrap();
        let mut page = String::new();
        stream.read_to_string(&mut page).unwrap();
        if page.contains("mainstay_http_inflight_requests{listener=\"api\"} 1\n") {
            return;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "no request is inside:\n{page}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

const FREE: &str = "run --dev --http 127.0.0.1:0 --admin 127.0.0.1:0 --listen 127.0.0.1:0";

#[test]
fn a_node_tells_where_it_is_and_ends_well_on_sigterm() {
    let mut node = Node::start(&format!("{FREE} --log-format json"));
    let up: serde_json::Value = serde_json::from_str(&node.line("the node is up")).unwrap();
    assert_eq!(up["node"], "n1");
    assert_eq!(up["entities"], "counter");
    let api = up["api"].as_str().unwrap();
    assert!(api.starts_with("http://127.0.0.1:") && !api.contains(":0/"), "{api}");
    node.signal("TERM");
    node.line("stopped");
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_port_that_is_open_to_the_world_is_warned_of() {
    let args = "run --dev --http 0.0.0.0:0 --admin 0.0.0.0:0 --listen 127.0.0.1:0";
    let mut node = Node::start(&format!("{args} --log-format compact"));
    node.line("callers are not authenticated");
    node.line("operators are not authenticated");
    node.line("admin    ");
    node.signal("TERM");
    assert_eq!(node.exit_code(), Some(0));
    let mut closed = Node::start(&format!("{FREE} --log-format json"));
    let before = closed.until("the node is up");
    assert!(!before.contains("not authenticated"), "{before}");
    closed.signal("TERM");
    assert_eq!(closed.exit_code(), Some(0));
}

#[test]
fn a_program_speaks_of_itself_and_of_its_own_kinds() {
    let said = |args: &str| {
        let mut command = command(args);
        let output = command.env(NAME, "/opt/bank").stdout(Stdio::piped()).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let help = said("--help");
    assert!(help.contains("Usage: bank") && help.contains("  bank run --dev"), "{help}");
    assert!(!help.contains("counter") && !help.contains("mainstay run"), "{help}");
    let script = said("completions bash");
    assert!(script.contains("_bank()") && script.contains("-F _bank"), "{script}");
    assert!(said("drain --help").contains("bank drain n3 --wait"));
    let unknown = command("explain MS-9999").env(NAME, "/opt/bank").output().unwrap();
    let trouble = String::from_utf8(unknown.stderr).unwrap();
    assert!(trouble.contains("help  bank explain --list"), "{trouble}");
}

#[test]
fn the_banner_has_five_lines() {
    let mut node = Node::start(&format!("{FREE} --log-format compact"));
    let first = node.line("mainstay 0");
    assert!(first.contains("node n1") && first.contains("dev mode"), "{first}");
    for begins in ["  api ", "  admin ", "  peers ", "  entities "] {
        let line = node.line(begins.trim());
        assert!(line.starts_with(begins), "{line}");
    }
    node.signal("INT");
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_port_in_use_is_told_before_anything_happens() {
    let held = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap();
    let args = format!("run --http {address} --admin 127.0.0.1:0 --listen 127.0.0.1:0");
    let Output { status, stderr, .. } = command(&args).output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("error[MS-1101]: {address} is in use")), "{text}");
    assert!(text.contains("mainstay explain MS-1101"), "{text}");
}

#[test]
fn a_refusal_to_start_is_told_with_its_facts() {
    let Output { status, stderr, .. } = command(FREE).env(REFUSE, "1").output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("error[MS-1203]: the data belongs to another cluster\n"), "{text}");
    assert!(text.contains("\n  data dir  /d\n  changed   Nothing.\n"), "{text}");
    assert!(
        text.contains("A_MEMBER_OF_THE_OLD_ONE\n            To rejoin the old cluster"),
        "{text}"
    );
    assert_eq!(text.matches("mainstay explain MS-1203").count(), 1, "{text}");
}

#[test]
fn a_node_that_cannot_go_on_says_why_and_ends_in_order() {
    let args = format!("{FREE} --log-format json");
    let Output { status, stderr, .. } = command(&args).env(FAIL, "1").output().unwrap();
    let text = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{text}");
    let position = |part: &str| text.find(part).unwrap_or_else(|| panic!("no {part:?} in {text}"));
    assert!(position("the node is up") < position("the node cannot go on"), "{text}");
    assert!(position("the node cannot go on") < position("\"stopped\""), "{text}");
    assert!(text.contains("error[MS-1107]: consensus stopped: the log is gone\n"), "{text}");
}

#[test]
fn a_request_under_way_ends_before_the_node_does() {
    let mut node = Node::start(&format!("{FREE} --log-format json"));
    let up: serde_json::Value = serde_json::from_str(&node.line("the node is up")).unwrap();
    let api = up["api"].as_str().unwrap().strip_prefix("http://").unwrap();
    let mut stream = std::net::TcpStream::connect(api.strip_suffix("/v1").unwrap()).unwrap();
    let head = "POST /v1/counter/a/add HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    until_inside(&up);
    node.signal("TERM");
    node.line("stopping");
    stream.write_all(b"{\"by\":1}").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_node_that_is_told_to_drains_before_it_ends() {
    let mut node = Node::start(&format!("{FREE} --log-format json --set stop.drain=true"));
    node.line("the node is up");
    node.signal("TERM");
    node.line("all shards are handed over");
    assert_eq!(node.exit_code(), Some(0));
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut node = Node::start(&format!("{FREE} --log-format json"));
    let up: serde_json::Value = serde_json::from_str(&node.line("the node is up")).unwrap();
    let api = up["api"].as_str().unwrap().strip_prefix("http://").unwrap();
    // a request that is never finished holds an orderly end up
    let mut stream = std::net::TcpStream::connect(api.strip_suffix("/v1").unwrap()).unwrap();
    let head = "POST /v1/counter/a/add HTTP/1.1\r\nhost: x\r\ncontent-length: 8\r\n\r\n";
    stream.write_all(head.as_bytes()).unwrap();
    until_inside(&up);
    node.signal("TERM");
    node.line("stopping");
    node.signal("TERM");
    assert_eq!(node.exit_code(), Some(130));
}
