//! The README cannot lie: its program is the example, its commands are run, its answers compared.
//!
//! Every fenced block has a language that says what is done with it:
//!
//! | language | what is done |
//! |---|---|
//! | `rust` | it is the text of `examples/src/bin/counter.rs` from its first `use` on |
//! | `console` | `$ make ...` names a target; `$ cargo run ...` starts the counter once; `$ curl ...` is run, and must print the lines that follow it |
//! | `text` | nothing: a picture |

use std::process::Command;

use super::{Running, start};

const README: &str = include_str!("../../../README.md");
const MAKEFILE: &str = include_str!("../../../Makefile");
const COUNTER: &str = include_str!("../../src/bin/counter.rs");
/// The address that the README uses; the tests use a free port.
const PRINTED: &str = "localhost:8080";

#[tokio::test]
async fn every_block_of_the_readme_holds() {
    let blocks = blocks(README);
    assert!(blocks.len() >= 3, "only {} blocks", blocks.len());
    let node = start(env!("CARGO_BIN_EXE_counter")).await;
    let mut curls = 0;
    for (language, text) in blocks {
        match language.as_str() {
            "rust" => {
                let program = &COUNTER[COUNTER.find("use ").unwrap()..];
                assert_eq!(text, program, "the README's program is not the example");
            }
            "console" => curls += console(&node, &text),
            "text" => {}
            other => panic!("say in readme.rs what is done with a block of {other:?}"),
        }
    }
    assert!(curls >= 2, "the README calls nothing");
}

/// Runs the commands of a block; how many were calls.
fn console(node: &Running, block: &str) -> usize {
    let mut curls = 0;
    for step in block.split("$ ").skip(1) {
        let (command, printed) = step.split_once('\n').unwrap_or((step, ""));
        let command = command.split(" #").next().unwrap().trim();
        if let Some(target) = command.strip_prefix("make ") {
            let target = target.split(' ').next().unwrap();
            assert!(MAKEFILE.contains(&format!("\n{target}: ##")), "make {target} is no target");
        } else if command.starts_with("curl ") {
            curl(node, command, printed.trim());
            curls += 1;
        } else {
            assert_eq!(command, "cargo run --bin counter -- run --dev");
        }
    }
    curls
}

fn curl(node: &Running, command: &str, printed: &str) {
    let at = node.cluster.nodes[0].addresses().http;
    let command = command.replace(PRINTED, &at.to_string());
    let run = Command::new("sh").args(["-c", &command]).output().unwrap();
    if run.status.code() == Some(127) {
        skipped("curl not found");
        return;
    }
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert_eq!(said.trim(), printed, "{command}");
}

#[expect(clippy::print_stdout, reason = "a skipped test is never silent")]
fn skipped(why: &str) {
    println!("skipped: {why}");
}

/// The fenced blocks: language and text.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    for block in text.split("\n```").skip(1).step_by(2) {
        let (language, text) = block.split_once('\n').unwrap();
        blocks.push((language.to_owned(), format!("{text}\n")));
    }
    blocks
}
