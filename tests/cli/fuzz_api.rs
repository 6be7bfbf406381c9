//! What schemathesis makes of the OpenAPI document: thousands of requests, good and bad, against the real server.

use std::fs::{self, File};

use serde_json::Value;

use crate::binary::{Server, shimmy};
use crate::{support, tools};

/// What the driver was written with, and what makes its requests.
const FUZZER: [&str; 2] = ["schemathesis==4.32.5", "hypothesis==6.170.15"];

#[test]
fn whatever_is_asked_the_answer_is_documented() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let python = match tools::python("schemathesis", &FUZZER) {
        Ok(python) => python,
        Err(why) => return support::skip(&why),
    };
    let folder = tempfile::tempdir().unwrap();
    let (home, report) = (folder.path().join("home"), folder.path().join("report"));
    fs::create_dir(&home).unwrap();
    fs::create_dir(&report).unwrap();
    let log = folder.path().join("log");
    let mut command = shimmy();
    // The fuzzer loads what is listed: not what else lies on this machine.
    command.env("HOME", &home).env_remove("XDG_CACHE_HOME").env_remove("HF_HOME").env_remove("HF_HUB_CACHE");
    command.stderr(File::create(&log).unwrap());
    // A small context, so that no answer is long.
    let server = Server::start_from(command, &model, &["--ctx", "256"]);
    let health =
        || -> Value { ureq::get(format!("{}/health", server.url)).call().unwrap().body_mut().read_json().unwrap() };
    let name = health()["model"].as_str().unwrap().to_owned();
    let args = [server.url.as_ref(), name.as_ref(), report.as_os_str(), "2000".as_ref()];
    tools::run(python, &[&[tools::script("fuzz_api.py").as_os_str()][..], &args].concat());
    assert_eq!(health()["status"], "ok");
    // A fuzzed answer's last moments may come after its last byte.
    let ended = (0..1000).any(|_| {
        std::thread::sleep(std::time::Duration::from_millis(10));
        health()["running"] == 0
    });
    assert!(ended, "{}", health());
    assert_eq!(server.terminate(), Some(0));
    let log = fs::read_to_string(log).unwrap();
    assert!(!log.contains("panicked"), "{log}");
}
