//! Every command of the README is run: what a reader copies works.
//!
//! Shell blocks are fenced with `sh`. The block that starts the server is started and stays until all others have
//! run; in the others the README's port becomes the server's. The test command can't run inside itself: it must be
//! the one that `.ci/run` runs.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;

use crate::binary::{signal, wait};
use crate::support;

const START: &str = "scripts/quickstart";
const TEST: &str = "cargo test --release --workspace";
const ADDRESS: &str = "127.0.0.1:11435";

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

/// The contents of the fenced blocks marked `sh`.
fn shell_blocks(readme: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut lines = readme.lines();
    while let Some(line) = lines.next() {
        if line.trim() == "```sh" {
            let block: Vec<&str> = lines.by_ref().take_while(|line| line.trim() != "```").collect();
            blocks.push(block.join("\n"));
        }
    }
    blocks
}

/// Ends the server whatever happens.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        if self.0.try_wait().is_ok_and(|status| status.is_none()) {
            signal(&self.0, Signal::TERM);
            let _ = self.0.wait();
        }
    }
}

#[test]
fn every_command_of_the_readme_works() {
    if support::fetch_model("smollm2").is_none() {
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        return support::skip("curl is not installed");
    }
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    let mut blocks = shell_blocks(&readme);
    for block in [START, TEST] {
        let at = blocks.iter().position(|known| known == block);
        blocks.remove(at.unwrap_or_else(|| panic!("the README has no block `{block}`")));
    }
    assert!(blocks.len() >= 3, "only {} examples left", blocks.len());

    let ci = std::fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.lines().any(|line| line.trim() == TEST), ".ci/run doesn't run `{TEST}`");

    let (mut server, url) = start();
    for block in &blocks {
        run(block, &url);
    }
    signal(&server.0, Signal::TERM);
    assert_eq!(wait(&mut server.0), Some(0), "the server's end");
}

/// Runs the first command and reads its output until the server has answered.
fn start() -> (Running, String) {
    let child =
        Command::new("bash").args(["-c", &format!("exec {START}")]).current_dir(root()).stdout(Stdio::piped()).spawn();
    let mut server = Running(child.unwrap());
    let (mut url, mut said) = (None, String::new());
    let mut lines = BufReader::new(server.0.stdout.take().unwrap()).lines();
    while let Some(line) = lines.next().transpose().unwrap() {
        said += &format!("{line}\n");
        if let Some(found) = line.strip_prefix("listening on ") {
            url = Some(found.to_owned());
        }
        if line.starts_with("The server keeps running") {
            break;
        }
    }
    // Whatever it says later must not fill the pipe.
    std::thread::spawn(move || lines.for_each(drop));
    assert!(said.contains("Paris"), "{said}");
    (server, url.unwrap_or_else(|| panic!("no address in\n{said}")))
}

fn run(block: &str, url: &str) {
    let address = url.strip_prefix("http://").unwrap();
    let script = block.replace(ADDRESS, address);
    let output = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(root())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (stdout, stderr) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "$ {block}\n{stdout}\n{stderr}");
    assert!(!stdout.trim().is_empty(), "$ {block}\nsaid nothing\n{stderr}");
    // A response says that it has none.
    assert!(!stdout.replace("\"error\":null", "").contains("\"error\""), "$ {block}\n{stdout}");
}

#[test]
fn shell_blocks_are_found() {
    assert_eq!(shell_blocks("a\n```sh\nx\ny\n```\n```rust\nz\n```\n```sh\nq\n```"), ["x\ny", "q"]);
}
