//! Embeddings in OpenAI's and Ollama's shapes: vectors of known hidden states, counts, limits, clients that go away.

use serde_json::{Value, json};
use shimmy_runtime::engine::EngineOptions;
use shimmy_runtime::engine::testing::{HIDDEN, TestExecutor, hash_hidden};

use super::client::{Reply, get, open, post, send};
use super::harness::{MODEL, TestServer, VOCAB, tokens, wait_for};

fn executor() -> TestExecutor {
    TestExecutor::hashing(TestExecutor::LIMITS, VOCAB)
}

/// The embedding of these tokens, cut to so many elements.
fn reference(tokens: &[u32], last_only: bool, dimensions: usize) -> Vec<f32> {
    let first = if last_only { tokens.len() } else { 1 };
    let mut sum = vec![0.0; HIDDEN];
    for end in first..=tokens.len() {
        sum.iter_mut().zip(hash_hidden(&tokens[..end])).for_each(|(sum, x)| *sum += f64::from(x));
    }
    sum.truncate(dimensions);
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.iter().map(|x| (x / length) as f32).collect()
}

fn vector(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn assert_near(got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len());
    let furthest = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(furthest < 1e-6, "{got:?} instead of {expected:?}");
}

fn embed(server: &TestServer, extra: Value) -> Reply {
    let mut request = json!({"model": MODEL});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    post(server.address, "/v1/embeddings", &request)
}

/// The vectors of a good answer.
fn vectors(reply: &Reply) -> Vec<Vec<f32>> {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let list = reply.json();
    assert_eq!((&list["object"], &list["model"]), (&json!("list"), &json!(MODEL)));
    let entry = |(index, entry): (usize, &Value)| {
        assert_eq!((&entry["object"], &entry["index"]), (&json!("embedding"), &json!(index)));
        vector(&entry["embedding"])
    };
    list["data"].as_array().unwrap().iter().enumerate().map(entry).collect()
}

#[test]
fn every_form_of_input_gives_its_vector() {
    let server = TestServer::start(executor());
    let (a, b) = (tokens("alpha"), tokens("Grüße"));
    for (input, texts) in [
        (json!("alpha"), vec![&a]),
        (json!(["alpha", "Grüße"]), vec![&a, &b]),
        (json!(a), vec![&a]),
        (json!([b, a]), vec![&b, &a]),
    ] {
        let reply = embed(&server, json!({"input": input, "user": "me"}));
        assert_eq!(reply.header("x-shimmy-ignored"), Some("user"));
        let count: usize = texts.iter().map(|text| text.len()).sum();
        assert_eq!(reply.json()["usage"], json!({"prompt_tokens": count, "total_tokens": count}));
        let got = vectors(&reply);
        assert_eq!(got.len(), texts.len());
        for (got, text) in got.iter().zip(&texts) {
            assert_near(got, &reference(text, false, HIDDEN));
        }
    }
    let last = vectors(&embed(&server, json!({"input": "alpha", "pooling": "last"})));
    assert_near(&last[0], &reference(&a, true, HIDDEN));
    let short = vectors(&embed(&server, json!({"input": "alpha", "dimensions": 3})));
    assert_near(&short[0], &reference(&a, false, 3));
}

#[test]
fn base64_holds_the_same_numbers() {
    use base64::Engine;
    let server = TestServer::start(executor());
    let reply = embed(&server, json!({"input": "alpha", "encoding_format": "base64", "deterministic": true}));
    let list = reply.json();
    let text = list["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let numbers: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
    assert_eq!(bytes.len(), 4 * HIDDEN);
    assert_near(&numbers, &reference(&tokens("alpha"), false, HIDDEN));
}

#[test]
fn more_texts_than_the_queue_holds_are_embedded_in_order() {
    let server = TestServer::start_with(executor(), EngineOptions { queue: 4, max_running: 2, ..Default::default() });
    let texts: Vec<String> = (0..300).map(|index| format!("text {index}")).collect();
    let got = vectors(&embed(&server, json!({"input": texts})));
    assert_eq!(got.len(), texts.len());
    for (got, text) in got.iter().zip(&texts) {
        assert_near(got, &reference(&tokens(text), false, HIDDEN));
    }
    let stats = server.stats();
    assert_eq!((stats.embeddings, stats.completed, stats.free_blocks), (300, 300, stats.total_blocks));
    let metrics = get(server.address, "/metrics").body;
    assert!(metrics.contains(&format!("shimmy_embeddings_total{{model_name=\"{MODEL}\"}} 300")), "{metrics}");
}

#[test]
fn mistakes_are_named_and_nothing_is_cut() {
    let server = TestServer::start(executor());
    let context = server.model().engine.context_tokens();
    let long = "x".repeat(context + 1);
    for (extra, param, code) in [
        (json!({"input": ""}), "input", None),
        (json!({"input": ["a", ""]}), "input[1]", None),
        (json!({"input": [VOCAB]}), "input", None),
        (json!({"input": [[1], [VOCAB]]}), "input[1]", None),
        (json!({"input": "x", "dimensions": HIDDEN + 1}), "dimensions", None),
        (json!({"input": long}), "input", Some("context_length_exceeded")),
        (json!({"input": ["a", long]}), "input[1]", Some("context_length_exceeded")),
        (json!({"input": "x", "encoding_format": "int8"}), "encoding_format", None),
    ] {
        let reply = embed(&server, extra);
        let error = &reply.json()["error"];
        assert_eq!(
            (reply.status, error["param"].as_str(), error["code"].as_str()),
            (400, Some(param), code),
            "{error}"
        );
        if code.is_some() {
            let message = error["message"].as_str().unwrap();
            let counts = [context + 1, context].map(|count| message.contains(&count.to_string()));
            assert_eq!(counts, [true, true], "{message}");
        }
    }
    // All of the context is not too much.
    let full = vectors(&embed(&server, json!({"input": long[1..]})));
    assert_near(&full[0], &reference(&tokens(&long[1..]), false, HIDDEN));
    assert_eq!(embed(&server, json!({"input": "x", "model": "nobody"})).status, 404);
    assert_eq!(get(server.address, "/v1/embeddings").status, 405);
    let stats = server.stats();
    assert_eq!((stats.embeddings, stats.free_blocks), (1, stats.total_blocks));
}

#[test]
fn a_client_that_goes_away_ends_its_embeddings() {
    let slow = executor().with_hook(|_, _| {
        std::thread::sleep(std::time::Duration::from_millis(2));
        Ok(())
    });
    let server = TestServer::start_with(slow, EngineOptions { max_running: 2, ..Default::default() });
    let texts = vec!["y".repeat(20); 400];
    let mut client = std::net::TcpStream::connect(server.address).unwrap();
    send(&mut client, "POST", "/v1/embeddings", json!({"model": MODEL, "input": texts}).to_string().as_bytes());
    wait_for("it runs", || server.state.models.ready(MODEL).is_some() && server.stats().embeddings > 2);
    drop(client);
    let is_idle = || server.stats().running + server.stats().queued == 0;
    wait_for("nothing runs or waits", || server.state.gate.running() == 0 && is_idle());
    wait_for("it is counted", || server.stats().cancelled > 0);
    let stats = server.stats();
    assert!(stats.embeddings < 400, "{stats:?}");
    assert_eq!(stats.free_blocks, stats.total_blocks);
}

#[test]
fn a_broken_model_and_a_shutdown_are_errors() {
    let broken = executor().with_hook(|_, _| Err(shimmy_runtime::Error::Unsupported("a broken device".into())));
    let server = TestServer::start(broken);
    let reply = embed(&server, json!({"input": ["a", "b"]}));
    assert_eq!(reply.status, 500);
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains("a broken device"), "{}", reply.body);
    let server = TestServer::start_loading(executor(), EngineOptions::default());
    assert_eq!(embed(&server, json!({"input": "a"})).status, 503);
}

#[test]
fn ollama_embeds_one_or_many_and_cuts_if_it_may() {
    let server = TestServer::start(executor());
    let context = server.model().engine.context_tokens();
    let ask = |extra: Value| {
        let mut request = json!({"model": MODEL});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        post(server.address, "/api/embed", &request)
    };
    let reply = ask(json!({"input": ["alpha", "beta"], "dimensions": 4, "options": {"temperature": 1}}));
    assert_eq!(reply.header("x-shimmy-ignored"), Some("options.temperature"));
    let answer = reply.json();
    assert_eq!((&answer["model"], &answer["prompt_eval_count"]), (&json!(MODEL), &json!(9)));
    assert!(answer["total_duration"].as_u64().unwrap() >= answer["load_duration"].as_u64().unwrap(), "{answer}");
    assert_near(&vector(&answer["embeddings"][0]), &reference(&tokens("alpha"), false, 4));
    assert_near(&vector(&answer["embeddings"][1]), &reference(&tokens("beta"), false, 4));
    // Too long: cut unless that is forbidden, also at a context that the request names.
    let long = "z".repeat(context + 10);
    let cut = |length: usize| reference(&tokens(&long[..length]), false, HIDDEN);
    assert_near(&vector(&ask(json!({"input": long})).json()["embeddings"][0]), &cut(context));
    let answer = ask(json!({"input": long, "options": {"num_ctx": 50}})).json();
    assert_near(&vector(&answer["embeddings"][0]), &cut(50));
    assert_eq!(answer["prompt_eval_count"], 50);
    let refused = ask(json!({"input": long, "truncate": false}));
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains(&context.to_string()), "{}", refused.body);
    // Nothing to embed: the model is loaded.
    assert_eq!(ask(json!({"input": ""})).json()["embeddings"], json!([]));
    assert_eq!(ask(json!({"input": [], "model": "nobody"})).status, 404);
    let old = post(server.address, "/api/embeddings", &json!({"model": MODEL, "prompt": "alpha"})).json();
    assert_near(&vector(&old["embedding"]), &reference(&tokens("alpha"), false, HIDDEN));
    assert_eq!(old.as_object().unwrap().len(), 1);
}

#[test]
fn embeddings_and_answers_run_side_by_side() {
    let server = TestServer::start(super::harness::endless());
    let request = json!({"model": MODEL, "stream": true, "messages": [{"role": "user", "content": "hi"}]});
    let mut stream = open(server.address, "POST", "/v1/chat/completions", request.to_string().as_bytes());
    assert!(stream.chunk().is_some());
    let got = vectors(&embed(&server, json!({"input": "alpha"})));
    assert_near(&got[0], &reference(&tokens("alpha"), false, HIDDEN));
    assert!(stream.chunk().is_some(), "the answer goes on");
}
