//! Whole answers, bad input, overload, lists.

use std::fs;

use serde_json::{Value, json};
use shimmy_runtime::engine::EngineOptions;
use shimmy_runtime::engine::testing::TestExecutor;
use shimmy_runtime::models::Discovered;

use super::client::{get, open, post};
use super::harness::{Brake, MAX_BODY, MODEL, TestServer, VOCAB, endless, spelling, tokens, wait_for, write_model};
use crate::routes::ollama::details::Summaries;

const TEXT: &str = "Grüße, 世界! 🌍";

fn chat(content: &str) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": content}]})
}

#[test]
fn a_chat_gets_its_answer_with_counts() {
    let server = TestServer::start(spelling(TEXT));
    let mut request = chat("hi");
    request["user"] = "me".into();
    request["seed"] = 7.into();
    let reply = post(server.address, "/v1/chat/completions", &request);
    assert_eq!(reply.status, 200, "{}", reply.body);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-shimmy-ignored"), Some("user"));
    let answer = reply.json();
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], MODEL);
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(answer["created"].as_u64().unwrap() > 1_700_000_000);
    assert_eq!(
        answer["choices"],
        json!([{"index": 0, "message": {"role": "assistant", "content": TEXT, "refusal": null},
                "logprobs": null, "finish_reason": "stop"}])
    );
    // The template is `<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n` in a vocabulary of bytes.
    let prompt = 1 + "user\nhi".len() + 1 + 1 + 1 + "assistant\n".len();
    let completion = TEXT.len() + 1;
    assert_eq!(answer["usage"]["prompt_tokens"], prompt);
    assert_eq!(answer["usage"]["completion_tokens"], completion);
    assert_eq!(answer["usage"]["total_tokens"], prompt + completion);
    assert!(answer["usage"]["prompt_tokens_details"]["cached_tokens"].is_u64());
    assert_eq!(answer["seed"], 7);
    assert_eq!(answer["timings"]["predicted_n"], completion);
    assert!(answer["timings"]["prompt_ms"].as_f64().unwrap() >= 0.0);
}

#[test]
fn a_request_without_a_model_gets_the_one_of_the_start() {
    let server = TestServer::start(spelling("ok"));
    let mut request = chat("hi");
    request.as_object_mut().unwrap().remove("model");
    let answer = post(server.address, "/v1/chat/completions", &request).json();
    assert_eq!(
        (answer["model"].as_str(), answer["choices"][0]["message"]["content"].as_str()),
        (Some(MODEL), Some("ok"))
    );
    // The file's spelling of the name is the same model.
    let reply = post(server.address, "/v1/completions", &json!({"model": "Tiny_Test", "prompt": "x"}));
    assert_eq!(reply.json()["model"], MODEL);
}

#[test]
fn the_budget_and_the_stop_strings_hold() {
    let server = TestServer::start(spelling(TEXT));
    let mut request = chat("hi");
    request["max_tokens"] = 3.into();
    let answer = post(server.address, "/v1/chat/completions", &request).json();
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(
        (answer["usage"]["completion_tokens"].as_u64(), &answer["choices"][0]["message"]["content"]),
        (Some(3), &json!("Gr\u{fffd}"))
    );
    let mut request = chat("hi");
    request["stop"] = json!(["never", "世"]);
    let answer = post(server.address, "/v1/chat/completions", &request).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "Grüße, ");
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
}

#[test]
fn template_variables_reach_the_template() {
    let server = TestServer::start(spelling("ok"));
    let quiet = post(server.address, "/v1/chat/completions", &chat("hi")).json();
    let mut request = chat("hi");
    request["chat_template_kwargs"] = json!({"loud": true});
    let loud = post(server.address, "/v1/chat/completions", &request).json();
    let count = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert_eq!(count(&loud), count(&quiet) + 4);
}

#[test]
fn a_completion_takes_text_or_tokens() {
    let server = TestServer::start(spelling("abc"));
    for prompt in [json!("xyz"), json!(["xyz"]), json!(tokens("xyz")), json!([tokens("xyz")])] {
        let reply = post(server.address, "/v1/completions", &json!({"model": MODEL, "prompt": prompt}));
        let answer = reply.json();
        assert_eq!(answer["object"], "text_completion");
        assert_eq!(answer["choices"][0]["text"], "abc");
        assert_eq!(answer["usage"]["prompt_tokens"], 3);
        assert!(answer["id"].as_str().unwrap().starts_with("cmpl-"));
    }
    let reply = post(server.address, "/v1/completions", &json!({"model": MODEL, "prompt": [1, 258]}));
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("prompt")));
}

#[test]
fn logprobs_have_each_protocols_shape() {
    let server = TestServer::start(spelling("ab"));
    let mut request = chat("hi");
    request["logprobs"] = true.into();
    request["top_logprobs"] = 2.into();
    let answer = post(server.address, "/v1/chat/completions", &request).json();
    let content = answer["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(content[0]["token"], "a");
    assert_eq!(content[0]["bytes"], json!([97]));
    assert!(content[0]["logprob"].as_f64().unwrap() <= 0.0);
    assert_eq!(content[1]["token"], "b");
    let top = content[0]["top_logprobs"].as_array().unwrap();
    assert_eq!((top.len(), &top[0]["token"]), (2, &json!("a")));
    let request = json!({"model": MODEL, "prompt": "x", "logprobs": 1});
    let answer = post(server.address, "/v1/completions", &request).json();
    let logprobs = &answer["choices"][0]["logprobs"];
    assert_eq!(logprobs["tokens"].as_array().unwrap()[..2], [json!("a"), json!("b")]);
    assert_eq!(logprobs["text_offset"].as_array().unwrap()[..2], [json!(0), json!(1)]);
    assert!(logprobs["top_logprobs"][0]["a"].is_number());
    assert_eq!(logprobs["token_logprobs"].as_array().unwrap().len(), logprobs["tokens"].as_array().unwrap().len());
}

#[test]
fn bad_requests_say_what_is_wrong() {
    let server = TestServer::start(spelling("x"));
    let error = |method: &str, path: &str, body: &[u8]| {
        let reply = open(server.address, method, path, body).finish();
        assert_eq!(reply.header("content-type"), Some("application/json"), "{path} {}", reply.body);
        let error = reply.json()["error"].clone();
        assert!(!error["message"].as_str().unwrap().is_empty());
        (reply.status, error["type"].as_str().unwrap().to_owned(), error["param"].clone(), error["code"].clone())
    };
    let invalid = |param: Value, code: Value| (400, "invalid_request_error".to_owned(), param, code);
    let path = "/v1/chat/completions";
    assert_eq!(error("POST", path, b"{oops"), invalid(Value::Null, json!("invalid_json")));
    assert_eq!(error("POST", path, b""), invalid(Value::Null, json!("invalid_json")));
    assert_eq!(error("POST", path, b"{}"), invalid(json!("messages"), Value::Null));
    let mut request = chat("hi");
    request["tools"] = json!([{"type": "function"}]);
    let body = request.to_string();
    assert_eq!(error("POST", path, body.as_bytes()), invalid(json!("tools"), json!("unsupported_parameter")));
    let mut request = chat("hi");
    request["logit_bias"] = json!({"99999": 1});
    let body = request.to_string();
    assert_eq!(error("POST", path, body.as_bytes()), invalid(json!("logit_bias"), Value::Null));
    let large = vec![b' '; MAX_BODY + 1];
    assert_eq!(error("POST", path, &large).0, 413);
    assert_eq!(error("GET", path, b"").0, 405);
    assert_eq!(error("DELETE", "/health", b"").0, 405);
    assert_eq!(error("GET", "/v2/nothing", b"").0, 404);
    let reply = open(server.address, "GET", path, b"").finish();
    assert_eq!(reply.header("allow"), Some("POST"));
}

#[test]
fn the_context_is_never_cut_in_silence() {
    let server = TestServer::start(spelling("x"));
    let context = server.model().engine.context_tokens();
    let request = json!({"model": MODEL, "prompt": "x".repeat(context), "max_tokens": 5});
    let reply = post(server.address, "/v1/completions", &request);
    let error = reply.json()["error"].clone();
    assert_eq!((reply.status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    let message = error["message"].as_str().unwrap();
    assert!(message.contains(&context.to_string()) && message.contains(" 5 "), "{message}");
}

#[test]
fn models_are_listed_and_found() {
    let server = TestServer::start(spelling("x"));
    let list = get(server.address, "/v1/models").json();
    assert_eq!(list["object"], "list");
    assert_eq!((&list["data"][0]["id"], &list["data"][0]["loaded"]), (&json!(MODEL), &json!(false)));
    post(server.address, "/v1/chat/completions", &chat("hi"));
    let model = get(server.address, &format!("/v1/models/{MODEL}")).json();
    assert_eq!((&model["object"], &model["loaded"]), (&json!("model"), &json!(true)));
    let all = json!(["completion", "chat", "embeddings"]);
    assert_eq!((&model["capabilities"], &list["data"][0]["capabilities"]), (&all, &all));
    let reply = get(server.address, "/v1/models/tiny-tset");
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (404, Some("model_not_found")));
    assert!(reply.json()["error"]["message"].as_str().unwrap().contains(MODEL));
    let reply = post(
        server.address,
        "/v1/chat/completions",
        &json!({"model": "gpt-4o", "messages": [{"role": "user", "content": "x"}]}),
    );
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (404, Some("model")));
}

#[test]
fn what_a_model_can_do_follows_from_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let of_changed = |name: &str, file: &str, from: &str, to: &str| {
        let path = folder.path().join(name);
        write_model(&path);
        let text = fs::read_to_string(path.join(file)).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path.join(file), text.replace(from, to)).unwrap();
        let (model, summaries) = (Discovered::at(&path).unwrap(), Summaries::default());
        let told = summaries.capabilities(&model);
        assert_eq!(summaries.capabilities(&model), told, "what is remembered is the same");
        assert_eq!(summaries.ollama_capabilities(&model).len(), if told.is_empty() { 0 } else { 2 });
        told
    };
    let mute = of_changed("mute", "tokenizer_config.json", "\"chat_template\"", "\"no_template\"");
    assert_eq!(mute, ["completion", "embeddings"]);
    let strange = of_changed("strange", "config.json", "\"llama\"", "\"strange\"");
    assert_eq!(strange, [""; 0], "there is a template, but nobody can load it");
    let broken = of_changed("broken", "config.json", "{", "");
    assert_eq!(broken, [""; 0]);
}

#[test]
fn until_it_is_ready_it_says_so() {
    let server = TestServer::start_loading(spelling("ok"), EngineOptions::default());
    let health = get(server.address, "/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (503, Some("loading")));
    let reply = post(server.address, "/v1/chat/completions", &chat("hi"));
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    server.state.set_ready();
    let health = get(server.address, "/health");
    assert_eq!((health.status, health.json()["status"].as_str()), (200, Some("ok")));
    assert_eq!(post(server.address, "/v1/chat/completions", &chat("hi")).status, 200);
}

#[test]
fn a_full_queue_is_429_with_a_time() {
    let (executor, brake) = Brake::spelling("ok");
    let options = EngineOptions { queue: 1, max_running: 1, ..EngineOptions::default() };
    let server = TestServer::start_with(executor, options);
    let address = server.address;
    let ask = move || post(address, "/v1/chat/completions", &chat("hi"));
    let first = std::thread::spawn(ask);
    brake.wait_reached();
    let second = std::thread::spawn(ask);
    wait_for("the second request waits", || server.stats().queued == 1);
    let third = ask();
    assert_eq!((third.status, third.json()["error"]["type"].as_str()), (429, Some("rate_limit_error")));
    assert!(third.header("retry-after").unwrap().parse::<u32>().unwrap() >= 1);
    brake.release();
    for waiting in [first, second] {
        assert_eq!(waiting.join().unwrap().json()["choices"][0]["message"]["content"], "ok");
    }
}

#[test]
fn lists_answer_while_generations_run() {
    let server = TestServer::start(endless());
    let address = server.address;
    let streams: Vec<_> = (0..16)
        .map(|_| {
            let mut request = chat("hi");
            request["stream"] = true.into();
            request["max_tokens"] = 200.into();
            std::thread::spawn(move || post(address, "/v1/chat/completions", &request))
        })
        .collect();
    wait_for("they run", || server.stats().running >= 8);
    assert_eq!(get(address, "/health").json()["status"], "ok");
    assert_eq!(get(address, "/v1/models").status, 200);
    for stream in streams {
        assert_eq!(stream.join().unwrap().events().last(), Some(&"[DONE]"));
    }
}

#[test]
fn usage_counts_cached_tokens_and_says_why_not_more() {
    let executor = TestExecutor::continuing(|_| u32::from(b'a'), VOCAB, TestExecutor::LIMITS);
    let server = TestServer::start(executor);
    let ask = |prompt: &str, cache: bool| {
        let request = json!({"model": MODEL, "prompt": prompt, "max_tokens": 2, "cache_prompt": cache});
        let answer = post(server.address, "/v1/completions", &request).json();
        let cached = &answer["usage"]["prompt_tokens_details"]["cached_tokens"];
        assert_eq!(&answer["timings"]["cache_n"], cached);
        (cached.as_u64(), answer["timings"]["cache_miss"].as_str().map(str::to_owned))
    };
    let (long, short) = ("x".repeat(100), "x".repeat(20));
    let miss = |why: &str| Some(why.to_owned());
    assert_eq!(ask(&long, true), (Some(0), miss("no_match")));
    assert_eq!(ask(&long, true), (Some(96), None));
    assert_eq!(ask(&long, false), (Some(0), miss("disabled")));
    assert_eq!(ask(&short, true), (Some(0), miss("too_short")));
}

/// Goes on with the tokens in their order, from whatever was drawn first.
fn counting() -> TestExecutor {
    TestExecutor::continuing(|tokens| tokens[tokens.len() - 1] + 1, VOCAB, TestExecutor::LIMITS)
}

#[test]
fn several_answers_come_as_choices() {
    let server = TestServer::start(counting());
    let request = json!({"model": MODEL, "prompt": "x".repeat(40), "max_tokens": 3, "n": 3, "seed": 5});
    let answer = post(server.address, "/v1/completions", &request).json();
    let choices = answer["choices"].as_array().unwrap();
    let indices: Vec<_> = choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert!(choices.iter().all(|choice| choice["text"] == "yz{" && choice["finish_reason"] == "length"));
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(40), &json!(9)));
    assert_eq!((&answer["seed"], &answer["timings"]["predicted_n"]), (&json!(5), &json!(9)));
    let mut request = chat("hi");
    request["n"] = 2.into();
    request["max_tokens"] = 2.into();
    let answer = post(server.address, "/v1/chat/completions", &request).json();
    assert_eq!(answer["choices"].as_array().unwrap().len(), 2);
    assert_eq!(answer["choices"][1]["message"]["role"], "assistant");
    request["n"] = 100.into();
    let reply = post(server.address, "/v1/chat/completions", &request);
    assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some("n")));
}

#[test]
fn several_answers_stream_side_by_side() {
    let server = TestServer::start(counting());
    let mut request = chat("hi");
    request["n"] = 3.into();
    request["max_tokens"] = 4.into();
    request["stream"] = true.into();
    request["stream_options"] = json!({"include_usage": true});
    let reply = post(server.address, "/v1/chat/completions", &request);
    let mut events = reply.events();
    assert_eq!(events.pop(), Some("[DONE]"));
    let chunks: Vec<Value> = events.iter().map(|event| serde_json::from_str(event).unwrap()).collect();
    let (usage, chunks) = chunks.split_last().unwrap();
    assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    for index in 0..3 {
        let of_choice: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == index).collect();
        assert_eq!(of_choice[0]["delta"]["role"], "assistant");
        let text: String = of_choice.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(text, "\u{b}\u{c}\r\u{e}", "after the line break of the template");
        assert_eq!(of_choice.last().unwrap()["finish_reason"], "length");
    }
}

#[test]
fn a_deadline_is_an_error_with_its_code() {
    let server = TestServer::start(endless());
    let request = json!({"model": MODEL, "prompt": "x", "max_tokens": 1500, "deadline_ms": 30});
    let reply = post(server.address, "/v1/completions", &request);
    assert_eq!((reply.status, reply.json()["error"]["code"].as_str()), (504, Some("deadline_exceeded")));
    let mut request = request;
    request["stream"] = true.into();
    let reply = post(server.address, "/v1/completions", &request);
    assert!(reply.events().iter().any(|event| event.contains("deadline_exceeded")), "{}", reply.body);
}

#[test]
fn a_model_that_panicked_is_loaded_again_for_the_next_request() {
    let broken = spelling("hello").with_hook(|step, _| if step == 3 { panic!("a broken device") } else { Ok(()) });
    let server = TestServer::start_each(vec![broken, spelling("well")]);
    let mut request = chat("hi");
    request["stream"] = true.into();
    let reply = post(server.address, "/v1/chat/completions", &request);
    let error = reply.events().into_iter().find(|event| event.contains("\"error\"")).unwrap().to_owned();
    assert!(error.contains("a broken device") && error.contains("server_error"), "{error}");
    let answer = post(server.address, "/v1/chat/completions", &chat("hi")).json();
    assert_eq!(answer["choices"][0]["message"]["content"], "well");
}
