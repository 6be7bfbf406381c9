//! A draft model on the command line and behind the server, with the default model as its own draft.

use serde_json::{Value, json};

use crate::binary::{Server, run};
use crate::support;

const QUESTION: &str = "Complete the sentence: The capital of France is";

#[test]
fn a_draft_model_changes_no_answer_and_is_counted() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let args = ["generate", model, "-p", QUESTION, "-t", "0", "-n", "24", "--json"];
    let plain: Value = serde_json::from_str(&run(args).stdout).unwrap();
    let ended = run([&args[..], &["--draft-model", model, "--draft-tokens", "4"]].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let drafted: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!(plain["text"], drafted["text"]);
    assert_eq!(plain["timings"].get("draft_n"), None);
    let count = |name: &str| drafted["timings"][name].as_u64().unwrap();
    // What a draft costs isn't known before it is tried.
    assert!(count("draft_n") > 0 && count("draft_n_accepted") <= count("draft_n"), "{drafted}");
}

#[test]
fn another_vocabulary_is_refused_with_the_difference() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let (token, other) = (b"<jupyter_script>", b"<jupyter_zcript>");
    let mut bytes = std::fs::read(&model).unwrap();
    let place = bytes.windows(token.len()).position(|window| window == token).unwrap();
    bytes[place..place + other.len()].copy_from_slice(other);
    let folder = tempfile::tempdir().unwrap();
    let draft = folder.path().join("other.gguf");
    std::fs::write(&draft, bytes).unwrap();
    let (model, draft) = (model.to_str().unwrap(), draft.to_str().unwrap());
    for args in [
        vec!["generate", model, "-p", "x", "--draft-model", draft],
        vec!["serve", "--port", "0", "--model", model, "--draft-model", draft],
    ] {
        let ended = run(&args);
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        for part in ["draft-model", "other", "jupyter_zcript", "jupyter_script", "same family"] {
            assert!(ended.stderr.contains(part), "{part}: {}", ended.stderr);
        }
    }
}

#[test]
fn arguments_that_make_no_sense_together_are_2() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    for (args, says) in [
        (vec!["generate", model, "-p", "x", "--speculate", "draft"], "--draft-model"),
        (vec!["generate", model, "-p", "x", "--draft-tokens", "4"], "--draft-model"),
        (vec!["generate", model, "-p", "x", "--draft-model", "/nowhere.gguf"], "nowhere"),
        (vec!["serve", "--port", "0", "--draft-model", model], "--model"),
    ] {
        let ended = run(&args);
        assert_eq!(ended.code, Some(2), "{args:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(says), "{}", ended.stderr);
    }
}

#[test]
fn a_server_without_a_draft_model_says_so() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let server = Server::start(&model);
    let request = json!({"messages": [{"role": "user", "content": "x"}], "max_tokens": 2, "speculate": "draft"});
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let mut response = agent.post(format!("{}/v1/chat/completions", server.url)).send_json(&request).unwrap();
    let error: Value = response.body_mut().read_json().unwrap();
    assert_eq!((response.status().as_u16(), &error["error"]["param"]), (400, &json!("speculate")), "{error}");
    let mut response = agent.get(format!("{}/metrics", server.url)).call().unwrap();
    let metrics = response.body_mut().read_to_string().unwrap();
    for method in ["draft", "ngram"] {
        let line = format!("method=\"{method}\"");
        let counted = |line: &&str| line.starts_with("vllm:spec_decode_num_") && line.ends_with(" 0");
        assert_eq!(metrics.lines().filter(|l| l.contains(&line)).filter(counted).count(), 3, "{metrics}");
    }
}
