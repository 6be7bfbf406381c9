//! Ollama's protocol.

use serde_json::{Value, json};

use super::client::{Reply, get, open, post};
use super::harness::{MODEL, TestServer, endless, spelling, wait_for};

const TEXT: &str = "Grüße, 世界! 🌍";

fn lines(reply: &Reply) -> Vec<Value> {
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("application/x-ndjson")), "{}", reply.body);
    reply.body.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn chat(extra: Value) -> Value {
    let mut request = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}]});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

#[test]
fn chats_and_texts_stream_unless_told_otherwise() {
    let server = TestServer::start(spelling(TEXT));
    let generate = json!({"model": MODEL, "prompt": "hi"});
    for (path, request) in [("/api/chat", chat(json!({}))), ("/api/generate", generate)] {
        let text = |line: &Value| match path {
            "/api/chat" => line["message"]["content"].as_str().unwrap().to_owned(),
            _ => line["response"].as_str().unwrap().to_owned(),
        };
        let lines = lines(&post(server.address, path, &request));
        let (last, pieces) = lines.split_last().unwrap();
        assert_eq!(pieces.iter().map(text).collect::<String>(), TEXT);
        assert!(pieces.iter().all(|piece| piece["done"] == false && piece["model"] == MODEL));
        assert_eq!((&last["done"], &last["done_reason"], text(last)), (&json!(true), &json!("stop"), String::new()));
        assert_eq!(last["eval_count"], TEXT.len() + 1);
        // A prompt without a conversation goes through the template too.
        assert_eq!(last["prompt_eval_count"], 1 + "user\nhi".len() + 1 + 1 + 1 + "assistant\n".len());
        for name in ["total_duration", "load_duration", "prompt_eval_duration", "eval_duration"] {
            assert!(last[name].is_u64(), "{name}: {last}");
        }
        let created = last["created_at"].as_str().unwrap();
        assert!(created.ends_with('Z') && created.len() > 20, "{created}");

        let mut whole = request.clone();
        whole["stream"] = false.into();
        whole["options"] = json!({"num_predict": 3, "num_ctx": 4096});
        let reply = post(server.address, path, &whole);
        assert_eq!(reply.header("x-shimmy-ignored"), Some("options.num_ctx"));
        let answer = reply.json();
        assert_eq!((text(&answer).as_str(), &answer["done_reason"]), ("Gr\u{fffd}", &json!("length")));
        assert_eq!((&answer["done"], &answer["eval_count"]), (&json!(true), &json!(3)));
    }
    let raw = json!({"model": MODEL, "prompt": "hi", "raw": true, "stream": false});
    assert_eq!(post(server.address, "/api/generate", &raw).json()["prompt_eval_count"], 2);
}

#[test]
fn models_are_listed_shown_loaded_and_unloaded() {
    let server = TestServer::start_each(vec![spelling("x"), spelling("y")]);
    let tags = get(server.address, "/api/tags").json();
    let tag = &tags["models"][0];
    assert_eq!(
        (&tag["name"], &tag["model"], tag["digest"].as_str().unwrap().len()),
        (&json!(MODEL), &json!(MODEL), 64)
    );
    assert_eq!((&tag["details"]["format"], &tag["details"]["family"]), (&json!("safetensors"), &json!("llama")));
    let running = || get(server.address, "/api/ps").json()["models"].as_array().unwrap().clone();
    assert!(running().is_empty());
    let empty = json!({"model": MODEL, "messages": []});
    let loaded = post(server.address, "/api/chat", &empty).json();
    assert_eq!((&loaded["done_reason"], &loaded["message"]["content"]), (&json!("load"), &json!("")));
    let model = &running()[0];
    assert_eq!(
        (&model["name"], &model["context_length"], &model["size_vram"]),
        (&json!(MODEL), &json!(2048), &json!(0))
    );
    assert!(model["expires_at"].as_str().unwrap().starts_with("21"), "the one of the start stays: {model}");
    let shown = post(server.address, "/api/show", &json!({"model": MODEL})).json();
    assert_eq!((&shown["capabilities"], &shown["details"]), (&json!(["completion", "embedding"]), &tag["details"]));
    assert_eq!(
        (&shown["model_info"]["general.architecture"], &shown["model_info"]["llama.context_length"]),
        (&json!("llama"), &json!(2048))
    );
    assert!(shown["template"].as_str().unwrap().contains("add_generation_prompt"));
    let unload = json!({"model": MODEL, "keep_alive": 0});
    let unloaded = post(server.address, "/api/generate", &unload).json();
    assert_eq!((&unloaded["done_reason"], &unloaded["response"]), (&json!("unload"), &json!("")));
    assert!(running().is_empty());
    // It comes back when somebody asks, and goes when the time that was asked for is over.
    let request = chat(json!({"stream": false, "keep_alive": "1ms"}));
    assert_eq!(post(server.address, "/api/chat", &request).json()["message"]["content"], "y");
    wait_for("it is unloaded", || running().is_empty());
}

#[test]
fn it_tells_its_version() {
    let server = TestServer::start(spelling("x"));
    let version = get(server.address, "/api/version").json();
    assert!(version["version"].as_str().unwrap().split('.').all(|part| part.parse::<u32>().is_ok()), "{version}");
}

#[test]
fn errors_are_in_its_shape_whole_and_in_a_stream() {
    let server = TestServer::start(spelling("x"));
    for (path, body, status) in [
        ("/api/chat", chat(json!({"model": "nobody"})), 404),
        ("/api/chat", chat(json!({"tools": [{"type": "function"}]})), 400),
        ("/api/chat", chat(json!({"format": "json"})), 400),
        ("/api/chat", chat(json!({"temperature": 1})), 400),
        ("/api/generate", json!({"model": MODEL, "prompt": "x", "options": {"num_predict": 0}}), 400),
        ("/api/generate", json!({"prompt": "x".repeat(20_000)}), 413),
        ("/api/show", json!({}), 400),
        ("/api/show", json!({"model": "nobody"}), 404),
        ("/api/pull", json!({"model": "x"}), 400),
    ] {
        let reply = post(server.address, path, &body);
        let error = reply.json();
        assert_eq!(reply.status, status, "{path} {error}");
        assert!(error["error"].as_str().unwrap().len() > 10 && error.as_object().unwrap().len() == 1, "{error}");
    }
    let broken = spelling(TEXT).with_hook(|step, _| match step {
        5 => Err(shimmy_runtime::Error::Unsupported("a broken device".into())),
        _ => Ok(()),
    });
    let server = TestServer::start(broken);
    let lines = lines(&post(server.address, "/api/chat", &chat(json!({}))));
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("a broken device"), "{lines:?}");
}

#[test]
fn a_client_that_goes_away_ends_its_answer() {
    let server = TestServer::start(endless());
    let mut stream = open(server.address, "POST", "/api/chat", chat(json!({})).to_string().as_bytes());
    assert!(stream.chunk().is_some());
    drop(stream);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
}
