//! What people build on: LangChain, npm's clients, asynchronous Python, and curl.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::binary::Server;
use crate::{support, tools};

/// The versions that these tests were written with. npm's are the newest that run on Node 20.
const LANGCHAIN: [&str; 3] = ["langchain-openai==1.7.3", "langchain-core==1.7.2", "openai==3.54.0"];
const NPM: [&str; 3] = ["openai@6.49.0", "ai@6.0.326", "@ai-sdk/openai-compatible@2.0.92"];

/// Runs a script of `tests/cli/clients` in Python with LangChain and OpenAI's client.
fn run_python(script: &str) {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match tools::python("langchain", &LANGCHAIN) {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    let server = Server::start(&model);
    tools::run(python, &[tools::script(script).as_os_str(), server.url.as_ref()]);
    assert_eq!(server.terminate(), Some(0));
}

/// Runs a script of `tests/cli/clients` in Node with npm's packages.
fn run_node(script: &str) {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let folder = match tools::node("npm", &NPM) {
        Ok(folder) => folder,
        Err(why) => return support::skip(&why),
    };
    // Node looks for packages beside the script.
    let copy = folder.join(script);
    fs::copy(tools::script(script), &copy).unwrap();
    let server = Server::start(&model);
    tools::run("node", &[copy.as_os_str(), server.url.as_ref()]);
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn langchain_chats() {
    run_python("langchain_client.py");
}

#[test]
fn openais_asynchronous_client_chats() {
    run_python("async_client.py");
}

#[test]
fn openais_client_of_npm_chats() {
    run_node("openai_node.mjs");
}

#[test]
fn vercels_ai_sdk_chats() {
    run_node("ai_sdk.mjs");
}

#[test]
fn curl_sees_each_token_as_it_comes() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    if Command::new("curl").arg("--version").output().is_err() {
        return support::skip("no curl");
    }
    let server = Server::start(&model);
    let body = r#"{"messages": [{"role": "user", "content": "Tell me a story."}], "stream": true, "ignore_eos": true}"#;
    let mut curl = Command::new("curl")
        .args(["--silent", "--show-error", "--no-buffer", "--header", "content-type: application/json", "--data", body])
        .arg(format!("{}/v1/chat/completions", server.url))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(curl.stdout.take().unwrap()).lines();
    let mut texts = 0;
    while texts < 5 {
        let line = lines.next().expect("the stream goes on").unwrap();
        texts += usize::from(line.contains("\"content\""));
        assert!(line.is_empty() || line.starts_with("data: {"), "{line}");
    }
    // The answer fills the context, which is thousands of tokens: five that are here while it is being written came one
    // by one.
    let health: serde_json::Value =
        ureq::get(format!("{}/health", server.url)).call().unwrap().body_mut().read_json().unwrap();
    assert_eq!(health["running"], 1, "{health}");
    curl.kill().unwrap();
    curl.wait().unwrap();
    assert_eq!(server.terminate(), Some(0));
}
