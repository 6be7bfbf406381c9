//! Commands that run the default model.

use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;

use crate::binary::{Server, finish, read_all, run, shimmy, signal, wait};
use crate::support;

/// The model is sure of its answer: no rounding changes it.
const QUESTION: &str = "Complete the sentence: The capital of France is";

#[test]
fn generate_answers_sensibly_and_the_same_each_time() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let args = ["generate", model, "-p", QUESTION, "-t", "0", "-n", "24", "--json"];
    let ended = run(args);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
    let text = answer["text"].as_str().unwrap();
    assert!(text.contains("Paris"), "{text}");
    assert!(answer["usage"]["completion_tokens"].as_u64().unwrap() <= 24);
    // The same from stdin, streamed, with the times on stderr.
    let mut child = shimmy()
        .args(["generate", model, "-t", "0", "-n", "24", "-v"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(QUESTION.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), format!("{text}\n"));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("tokens/s"), "{stderr}");
}

#[test]
fn raw_completion_needs_no_template() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let ended = run(["generate", model, "--raw", "-p", "One, two, three, four,", "-t", "0", "-n", "8"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("five"), "{}", ended.stdout);
}

#[test]
fn a_prompt_beyond_the_context_is_refused() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let long = "word ".repeat(200);
    let ended = run(["generate", model, "-p", &long, "--ctx", "64", "-n", "5"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(2), ""));
    assert!(ended.stderr.contains("64"), "{}", ended.stderr);
    let empty = run(["generate", model, "-p", ""]);
    assert_eq!(empty.code, Some(2));
    assert!(empty.stderr.contains("empty"), "{}", empty.stderr);
}

#[test]
fn ctrl_c_ends_with_130() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let mut child = shimmy()
        .arg("generate")
        .arg(&model)
        .args(["--raw", "-p", "Once upon a time", "-n", "4000"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0; 1];
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut first).unwrap();
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child), Some(130));
}

#[test]
fn chat_takes_piped_lines_and_commands() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let mut child = shimmy()
        .arg("chat")
        .arg(&model)
        .args(["-t", "0", "-n", "24"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = format!(
        "/help\n\n{QUESTION}\n/nonsense\n/reset\n/system You answer in one word.\n{QUESTION}\n/exit\nnever read\n"
    );
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let stderr = child.stderr.take().unwrap();
    let stderr = std::thread::spawn(move || read_all(stderr));
    let stdout = read_all(child.stdout.take().unwrap());
    assert_eq!(wait(&mut child), Some(0));
    let stderr = stderr.join().unwrap();
    assert_eq!(stdout.matches("Paris").count().min(2), 2, "{stdout}");
    assert!(stderr.contains("/reset") && stderr.contains("there is no command /nonsense"), "{stderr}");
}

#[test]
fn a_conversation_is_remembered_until_it_is_reset() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let mut child = shimmy()
        .arg("chat")
        .arg(&model)
        .args(["-t", "0", "-n", "24", "-v"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = format!("{QUESTION}\n{QUESTION}\n/reset\n{QUESTION}\n");
    child.stdin.take().unwrap().write_all(lines.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let stderr = String::from_utf8(output.stderr).unwrap();
    // `… | prompt 37 tokens (… | answer 9 tokens in …`
    let count = |line: &str, what: &str| -> usize {
        let (_, rest) = line.split_once(what).unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    let turns: Vec<(usize, usize)> = stderr
        .lines()
        .filter(|line| line.starts_with("load "))
        .map(|line| (count(line, "| prompt "), count(line, "| answer ")))
        .collect();
    let [(first, answer), (second, _), (third, _)] = turns[..] else { panic!("{stderr}") };
    // The second prompt holds the first one, its answer and the question again.
    assert!(second > first + answer, "{turns:?}");
    assert_eq!(third, first);
}

#[test]
fn inspect_and_probe_know_the_model() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let start = std::time::Instant::now();
    let json: Value = serde_json::from_str(&run(["inspect", model, "--json"]).stdout).unwrap();
    println!("inspect of the header took {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(json["summary"]["dtype"], "Q4_1");
    assert_eq!(json["summary"]["chat_template"], true);
    // Long arrays are shortened: the vocabulary isn't printed whole.
    assert!(json.to_string().len() < 100_000);
    let plan = run(["inspect", model, "--plan"]);
    assert_eq!(plan.code, Some(0), "{}", plan.stderr);
    assert!(plan.stdout.contains("Q4_1"), "{}", plan.stdout);
    let probe = finish(shimmy().args(["probe", model, "--json"]));
    let probe: Value = serde_json::from_str(&probe.stdout).unwrap();
    assert_eq!(probe["model"]["architecture"], "llama");
    assert_eq!(probe["model"]["executor"], "cpu");
}

#[test]
fn the_fast_executor_stays_close_to_the_reference() {
    for name in ["smollm2", "gemma3-270m"] {
        let Some(model) = support::fetch_model(name) else { return };
        let ended = run(["verify", model.to_str().unwrap(), "--greedy", "24", "--json"]);
        assert_eq!(ended.code, Some(0), "{name}: {}{}", ended.stdout, ended.stderr);
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(report["text"], "text", "{name}: its own tokenizer is used");
        let rows = report["rows"].as_array().unwrap();
        assert_eq!(rows.len(), 4, "{name}: prefill and decode, as asked and exact");
        for row in rows {
            let executor = row["executor"].as_str().unwrap();
            let kl = row["mean_kl"].as_f64().unwrap();
            // NaN must fail.
            assert!(kl < 0.01, "{name}, {executor}: mean KL {kl}");
            if executor.contains("exact") {
                assert!(kl < 1e-6, "{name}, {executor}: mean KL {kl}");
                assert_eq!(row["greedy_tokens_equal"], 24, "{name}, {executor}");
            }
        }
        assert_eq!(rows[0]["positions"], 200, "{name}");
    }
}

#[test]
fn a_base_model_completes_sensibly() {
    let Some(model) = support::fetch_model("gemma3-270m") else { return };
    let model = model.to_str().unwrap();
    // This file holds the base model, without a chat template: that is said, and raw completion works.
    let refused = run(["generate", model, "-p", "Hello"]);
    assert_eq!(refused.code, Some(2));
    assert!(refused.stderr.contains("--raw"), "{}", refused.stderr);
    let ended = run(["generate", model, "--raw", "-p", "One, two, three, four,", "-t", "0", "-n", "8"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stdout.contains("five"), "{}", ended.stdout);
}

#[test]
fn bench_measures_and_says_so_in_json() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let ended = run(["bench", model, "--prompt", "64", "--generate", "8", "--repeat", "2", "--json"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let result: Value = serde_json::from_str(&ended.stdout).unwrap();
    for kind in ["prefill_tokens_per_s", "decode_tokens_per_s"] {
        let values = result[kind].as_array().unwrap();
        assert_eq!(values.len(), 2, "{kind}");
        assert!(values.iter().all(|value| value.as_f64().unwrap() > 0.0), "{kind}");
    }
    let together = ["--prompt", "0", "--generate", "4", "--depth", "40", "--parallel", "3", "--repeat", "1", "--json"];
    let ended = run(["bench", model].into_iter().chain(together));
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let three: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert!(three["decode_tokens_per_s"][0].as_f64().unwrap() > 0.0);
    // Three rows a step read the weights once, and take three times the arithmetic.
    assert_eq!(three["cost"]["decode_weight_bytes"], result["cost"]["decode_weight_bytes"]);
    let adds = |of: &Value| of["cost"]["decode_multiply_adds"]["int8"].as_u64().unwrap();
    assert_eq!(adds(&three), 3 * adds(&result));
    assert_eq!(run(["bench"]).code, Some(2));
    assert_eq!(run(["bench", model, "--ctx", "64", "--prompt", "100"]).code, Some(2));
}

#[test]
fn bench_puts_a_server_under_load_its_own_or_a_running_one() {
    let Some(path) = support::fetch_model("smollm2") else { return };
    let model = path.to_str().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("new").display().to_string();
    let load = ["--serve-load", "--prompt-tokens", "9-17", "--output-tokens", "5", "--requests", "4", "--out", &out];
    let ended = run(["bench", model, "--concurrency", "1,3"].into_iter().chain(load));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    assert!(ended.stdout.contains("| 1 clients | 4 | 0 |") && ended.stdout.contains("| 3 clients | 4 | 0 |"));
    let read = |name: &str| std::fs::read_to_string(folder.path().join("new").join(name)).unwrap();
    assert_eq!(read("load.md"), ended.stdout);
    assert!(read("load.svg").starts_with("<svg "));
    let report: Value = serde_json::from_str(&read("load.json")).unwrap();
    for level in report["levels"].as_array().unwrap() {
        assert_eq!((&level["prompt_counts"], &level["output_counts"]), (&"exact".into(), &"exact".into()), "{level}");
        assert!(level["generated_tokens_per_s"].as_f64().unwrap() > 0.0);
    }
    let server = Server::start(&path);
    let args = ["--url", &server.url, "--rate", "50", "--api", "chat", "--json"];
    let ended = run(["bench"].into_iter().chain(load).chain(args));
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    let report: Value = serde_json::from_str(&ended.stdout).unwrap();
    let level = &report["levels"][0];
    assert_eq!((level["answered"].as_u64(), &level["output_counts"]), (Some(4), &"exact".into()), "{level}");
    let nobody = run(["bench", "--serve-load", "--url", "http://127.0.0.1:1", "--requests", "2", "--warmup", "0"]);
    assert_eq!(nobody.code, Some(1));
    assert!(nobody.stdout.contains("2 × connect"), "{}", nobody.stdout);
    assert_eq!(run(["bench", "--serve-load"]).code, Some(2));
    assert_eq!(run(["bench", "--serve-load", "--url", "box"]).code, Some(2));
}
