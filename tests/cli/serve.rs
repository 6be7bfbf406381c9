//! The real server with the default model.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::process::Stdio;

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::binary::{Server, finish, run, shimmy, signal, wait};
use crate::support;

fn post(url: &str, body: &Value) -> Value {
    ureq::post(url).send_json(body).unwrap().body_mut().read_json().unwrap()
}

#[test]
fn it_starts_answers_and_ends() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    // Once for the page cache.
    drop(Server::start(&model));
    let server = Server::start(&model);
    println!("start to the first healthy answer: {:?}", server.start_time);
    let request = json!({
        "messages": [{"role": "user", "content": "Complete the sentence: The capital of France is"}], "temperature": 0, "max_tokens": 24,
    });
    let answer = post(&format!("{}/v1/chat/completions", server.url), &request);
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(text.contains("Paris"), "{text}");
    // Again, from a warm cache and beside another generation: the same.
    let url = format!("{}/v1/chat/completions", server.url);
    let other = json!({"messages": [{"role": "user", "content": "Tell me a story."}], "seed": 1, "max_tokens": 60});
    std::thread::scope(|scope| {
        let beside = scope.spawn(|| post(&url, &other));
        assert_eq!(post(&url, &request)["choices"][0]["message"]["content"], text);
        assert!(beside.join().unwrap()["usage"]["completion_tokens"].as_u64().unwrap() > 1);
    });
    assert_eq!(server.terminate(), Some(0));
}

#[test]
fn sigterm_lets_a_running_answer_finish() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let mut server = Server::start(&model);
    let request = json!({
        "messages": [{"role": "user", "content": "Count from one to one hundred."}],
        "stream": true, "temperature": 0, "max_tokens": 150, "ignore_eos": true,
    });
    let mut response = ureq::post(format!("{}/v1/chat/completions", server.url)).send_json(&request).unwrap();
    let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
    let mut texts = 0;
    let mut last = String::new();
    while let Some(line) = lines.next().transpose().unwrap() {
        if line.is_empty() {
            continue;
        }
        texts += 1;
        if texts == 5 {
            signal(&server.child, Signal::TERM);
        }
        last = line;
    }
    assert_eq!(last, "data: [DONE]");
    assert!(texts > 100, "{texts}");
    assert_eq!(wait(&mut server.child), Some(0));
}

#[test]
fn without_a_model_it_serves_what_it_finds() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let home = tempfile::tempdir().unwrap();
    let mut child = shimmy()
        .args(["serve", "--port", "0"])
        .env("SHIMMY_MODEL_PATHS", model.parent().unwrap())
        .env("HOME", home.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening on ").unwrap().to_owned();
    let list: Value = ureq::get(format!("{url}/v1/models")).call().unwrap().body_mut().read_json().unwrap();
    let name =
        list["data"].as_array().unwrap().iter().filter_map(|m| m["id"].as_str()).find(|id| id.starts_with("smollm2"));
    let name = name.unwrap_or_else(|| panic!("{list}"));
    let request = json!({"model": name, "prompt": "One, two, three, four,", "temperature": 0, "max_tokens": 6});
    let answer = post(&format!("{url}/v1/completions"), &request);
    assert!(answer["choices"][0]["text"].as_str().unwrap().contains("five"), "{answer}");
    signal(&child, Signal::INT);
    assert_eq!(wait(&mut child), Some(0));
}

#[test]
fn computed_prompts_outlive_a_server_that_is_killed() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("prompts").display().to_string();
    let more = ["--kv-cache-dir", &cache, "--kv-cache-size", "200MB"];
    let question = "Here is a long list of words. ".to_owned() + &"apple, pear, plum, ".repeat(40) + "What are they?";
    let request = json!({"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 40});
    let ask = |server: &Server| {
        let answer = post(&format!("{}/v1/chat/completions", server.url), &request);
        let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
        (answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned(), cached)
    };
    // Ended in order, killed, and killed before it asked for anything.
    let first = Server::start_with(&model, &more);
    let (text, cached) = ask(&first);
    assert_eq!(cached, 0);
    assert_eq!(first.terminate(), Some(0));
    for _ in 0..2 {
        let next = Server::start_with(&model, &more);
        let (again, cached) = ask(&next);
        assert_eq!(again, text);
        assert!(cached >= 224, "{cached}");
        // Dropped: killed.
    }
    // Who doesn't name the folder, or names one that can't be, hears so.
    assert_eq!(ask(&Server::start(&model)).1, 0);
    let file = folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let ended = run(["serve", "--port", "0", "--kv-cache-dir", &file.display().to_string()]);
    assert!(ended.code == Some(2) && ended.stderr.contains("--kv-cache-dir"), "{ended:?}");
}

#[test]
fn traces_reach_a_collector_to_the_last_span() {
    for (url, why) in [("https://localhost:4318", "plain HTTP only"), ("localhost:4318", "http://localhost:4318")] {
        let ended = run(["serve", "--port", "0", "--otlp-endpoint", url]);
        assert!(ended.code == Some(2) && ended.stderr.contains(why) && ended.stdout.is_empty(), "{}", ended.stderr);
    }
    let mut grpc = shimmy();
    grpc.args(["serve", "--port", "0", "--otlp-endpoint", "http://localhost:4317"]);
    let ended = finish(grpc.env("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"));
    assert!(ended.code == Some(2) && ended.stderr.contains("4318"), "{}", ended.stderr);
    let Some(model) = support::fetch_model("smollm2") else { return };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let collector = std::thread::spawn(move || {
        let mut reader = BufReader::new(listener.accept().unwrap().0);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            reader.read_line(&mut head).unwrap();
        }
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        reader.read_exact(&mut body).unwrap();
        reader.into_inner().write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").unwrap();
        (head, serde_json::from_slice::<Value>(&body).unwrap())
    });
    let mut command = shimmy();
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", url).env("OTEL_SERVICE_NAME", "ours");
    let server = Server::start_from(command, &model, &[]);
    post(&format!("{}/v1/completions", server.url), &json!({"prompt": "Once", "max_tokens": 2}));
    // The end comes before the batch is full or old.
    assert_eq!(server.terminate(), Some(0));
    let (head, body) = collector.join().unwrap();
    assert!(head.starts_with("POST /v1/traces "), "{head}");
    let resource = &body["resourceSpans"][0];
    assert_eq!(resource["resource"]["attributes"][0]["value"]["stringValue"], "ours");
    let spans = resource["scopeSpans"][0]["spans"].as_array().unwrap();
    let names: Vec<&str> = spans.iter().map(|span| span["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["POST /v1/completions", "decode", "prefill", "queue"]);
}
