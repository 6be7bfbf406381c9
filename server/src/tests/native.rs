//! Shimmy's own endpoints.

use serde_json::{Value, json};
use shimmy_runtime::engine::EngineOptions;

use super::client::{get, open, post};
use super::harness::{Brake, MODEL, TestServer, VOCAB, endless, spelling, tokens, wait_for};
use crate::app::Phase;

#[test]
fn readiness_names_what_is_loading() {
    let server = TestServer::start_loading(endless(), EngineOptions::default());
    let ready = || get(server.address, "/ready");
    let reply = ready();
    assert_eq!((reply.status, reply.header("retry-after")), (503, Some("1")));
    assert_eq!(reply.json(), json!({"status": "loading", "loading": [MODEL]}));
    server.state.set_ready();
    let reply = ready();
    assert_eq!((reply.status, reply.json()), (200, json!({"status": "ready", "loading": []})));
    let body = json!({"prompt": "x", "stream": true}).to_string();
    let mut running = open(server.address, "POST", "/v1/completions", body.as_bytes());
    assert!(running.chunk().is_some());
    server.begin_shutdown();
    wait_for("it drains", || server.state.phase() == Phase::Draining);
    let reply = ready();
    assert_eq!((reply.status, &reply.json()["status"]), (503, &json!("shutting down")));
    drop(running);
    server.join();
}

#[test]
fn a_report_tells_what_runs_where_and_nothing_private() {
    let server = TestServer::start(spelling("a secret answer"));
    let before = get(server.address, "/diag").json();
    assert_eq!((&before["models"], &before["status"]), (&json!([]), &json!("ready")));
    let prompt = json!({"prompt": "a private prompt", "max_tokens": 3});
    assert_eq!(post(server.address, "/v1/completions", &prompt).status, 200);
    wait_for("the answer has ended", || server.stats().running == 0);
    let reply = get(server.address, "/diag");
    let report = reply.json();
    let model = &report["models"][0];
    assert_eq!((&model["name"], &model["architecture"]), (&json!(MODEL), &json!("llama")));
    assert_eq!((&model["context_tokens"], &model["requests"]["completed"]), (&json!(2048), &json!(1)));
    assert_eq!((&model["tokens"]["generated"], &model["kv"]["types"]), (&json!(3), &json!("f16")));
    assert!(model["threads"].as_u64() > Some(0) && model["kv"]["blocks"].as_u64() > Some(0), "{model}");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    for name in ["cpu", "memory", "build", "limits", "connections", "cuda"] {
        assert!(!report[name].is_null(), "{name} in {report}");
    }
    assert!(report["uptime_seconds"].as_f64() > Some(0.0));
    let folder = server.model().path.parent().unwrap().display().to_string();
    for private in ["secret", "private", &folder] {
        assert!(!reply.body.contains(private), "{private} in {}", reply.body);
    }
}

#[test]
fn capabilities_are_those_of_the_code() {
    let server = TestServer::start(spelling("x"));
    let told = get(server.address, "/v1/capabilities").json();
    let has = |list: &str, entry: &str| told[list].as_array().unwrap().iter().any(|known| known == entry);
    assert!(has("architectures", "llama") && has("weight_types", "Q4_K") && has("kv_types", "q8_0"), "{told}");
    let endpoints = told["endpoints"].as_array().unwrap();
    let paths: Vec<&str> = endpoints.iter().map(|endpoint| endpoint["path"].as_str().unwrap()).collect();
    for path in ["/v1/chat/completions", "/v1/messages", "/api/chat", "/tokenize", "/ws/generate", "/v1/models/{id}"] {
        assert!(paths.contains(&path), "{path} in {paths:?}");
    }
    // Each of them is there: whatever it says to an empty request, it isn't "no such path".
    for endpoint in endpoints {
        let path = endpoint["path"].as_str().unwrap().replace("{id}", "nobody").replace("{name}", "nobody");
        for method in endpoint["methods"].as_array().unwrap() {
            let reply = open(server.address, method.as_str().unwrap(), &path, b"").finish();
            assert!(reply.status < 500 && reply.status != 405, "{method} {path}: {}", reply.status);
            assert!(!reply.body.contains("unknown_url") && !reply.body.contains("see the README"), "{method} {path}");
        }
    }
}

#[test]
fn texts_become_tokens_and_back() {
    let server = TestServer::start(spelling("x"));
    let tokenize = |body: Value| post(server.address, "/tokenize", &body);
    for name in ["content", "prompt", "text"] {
        let answer = tokenize(json!({"model": MODEL, name: "hi é"})).json();
        assert_eq!((&answer["tokens"], &answer["count"]), (&json!(tokens("hi é")), &json!(5)));
        assert_eq!((&answer["max_model_len"], &answer["model"]), (&json!(2048), &json!(MODEL)));
    }
    let pieces = tokenize(json!({"content": "aé<|im_end|>", "with_pieces": true, "return_token_strs": true})).json();
    assert_eq!(
        pieces["tokens"],
        json!([{"id": 97, "piece": "a"}, {"id": 0xc3, "piece": [0xc3]}, {"id": 0xa9, "piece": [0xa9]},
               {"id": 257, "piece": "<|im_end|>"}])
    );
    assert_eq!(pieces["token_strs"], json!(["a", "Ã", "©", "<|im_end|>"]));
    let plain = tokenize(json!({"content": "<|im_end|>", "parse_special": false})).json();
    assert_eq!(plain["count"], "<|im_end|>".len());
    let empty = tokenize(json!({"content": ""})).json();
    assert_eq!((&empty["tokens"], &empty["count"]), (&json!([]), &json!(0)));

    let messages = json!([{"role": "user", "content": "hi"}]);
    let chat = tokenize(json!({"messages": messages})).json();
    let rendered = post(server.address, "/apply-template", &json!({"messages": messages})).json();
    assert_eq!(rendered["prompt"], "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n");
    assert_eq!(chat["count"], 1 + "user\nhi".len() + 1 + 1 + 1 + "assistant\n".len());
    let back = |extra: Value| {
        let mut body = json!({"tokens": chat["tokens"]});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        post(server.address, "/detokenize", &body).json()["content"].clone()
    };
    assert_eq!(back(json!({})), rendered["prompt"]);
    assert_eq!(back(json!({"skip_special_tokens": true})), "user\nhi\nassistant\n");
    assert_eq!(post(server.address, "/detokenize", &json!({"tokens": []})).json()["content"], "");
}

#[test]
fn templates_get_their_variables() {
    let server = TestServer::start(spelling("x"));
    let messages = json!([{"role": "user", "content": "hi"}]);
    let body = json!({"messages": messages, "add_generation_prompt": false, "chat_template_kwargs": {"loud": true}});
    let reply = post(server.address, "/apply-template", &body);
    assert_eq!(reply.json()["prompt"], "<|im_start|>user\nhi<|im_end|>\nLOUD");
    assert_eq!(post(server.address, "/tokenize", &body).json()["count"], 1 + "user\nhi".len() + 1 + 1 + "LOUD".len());
}

#[test]
fn mistakes_about_tokens_are_named() {
    let server = TestServer::start(spelling("x"));
    let user = json!([{"role": "user", "content": "x"}]);
    let beyond = u32::try_from(VOCAB).unwrap();
    for (path, body, param) in [
        ("/tokenize", json!({}), "content"),
        ("/tokenize", json!({"content": 3}), "content"),
        ("/tokenize", json!({"content": "x", "prompt": "y"}), "content"),
        ("/tokenize", json!({"content": "x", "messages": user}), "content"),
        ("/tokenize", json!({"content": "x", "add_special": 1}), "add_special"),
        ("/tokenize", json!({"content": "x", "add_special": true, "add_special_tokens": false}), "add_special"),
        ("/tokenize", json!({"messages": user, "add_special": true}), "add_special"),
        ("/tokenize", json!({"messages": user, "parse_special": false}), "parse_special"),
        ("/tokenize", json!({"messages": "x"}), "messages"),
        ("/tokenize", json!({"content": "x", "model": "nobody"}), "model"),
        ("/detokenize", json!({}), "tokens"),
        ("/detokenize", json!({"tokens": [97, beyond]}), "tokens"),
        ("/detokenize", json!({"tokens": [-1]}), "tokens"),
        ("/detokenize", json!({"tokens": [4294967296_u64]}), "tokens"),
        ("/detokenize", json!({"tokens": "hi"}), "tokens"),
        ("/apply-template", json!({}), "messages"),
        ("/apply-template", json!({"messages": [{"role": "king", "content": "x"}]}), "messages[0].role"),
        ("/apply-template", json!({"messages": user, "tools": [{}]}), "tools"),
        ("/apply-template", json!({"messages": user, "chat_template_kwargs": {"messages": 1}}), "chat_template_kwargs"),
    ] {
        let reply = post(server.address, path, &body);
        let error = &reply.json()["error"];
        let expected = if param == "model" { 404 } else { 400 };
        assert_eq!((reply.status, &error["param"]), (expected, &json!(param)), "{path} {body}: {error}");
    }
    let ignored = post(server.address, "/tokenize", &json!({"content": "x", "zz": 1}));
    assert_eq!((ignored.status, ignored.header("x-shimmy-ignored")), (200, Some("zz")));
    let loading = TestServer::start_loading(spelling("x"), EngineOptions::default());
    let reply = post(loading.address, "/tokenize", &json!({"content": "x"}));
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (503, &json!("model_loading")));
}

#[test]
fn these_answer_while_a_step_takes_for_ever() {
    let (executor, brake) = Brake::spelling("ok");
    let server = TestServer::start(executor);
    let address = server.address;
    let body = json!({"prompt": "x"});
    let running = std::thread::spawn(move || post(address, "/v1/completions", &body));
    brake.wait_reached();
    for path in ["/health", "/ready", "/diag", "/metrics", "/v1/models", "/v1/capabilities", "/api/models", "/api/ps"] {
        assert_eq!(get(address, path).status, 200, "{path}");
    }
    assert_eq!(get(address, &format!("/api/models/{MODEL}/status")).json()["status"], "loaded");
    assert_eq!(post(address, "/tokenize", &json!({"content": "hi"})).json()["count"], 2);
    brake.release();
    assert_eq!(running.join().unwrap().status, 200);
}

#[test]
fn models_are_listed_loaded_and_unloaded_by_their_names() {
    let server = TestServer::start_each(vec![spelling("x"), spelling("y")]);
    let address = server.address;
    let at = |what: &str| format!("/api/models/{MODEL}/{what}");
    let listed = || get(address, "/api/models").json()["models"][0].clone();
    let model = listed();
    assert_eq!(
        (&model["name"], &model["status"], &model["source"]),
        (&json!(MODEL), &json!("unloaded"), &json!("file"))
    );
    assert_eq!((&model["model_type"], &model["format"]), (&json!("llama"), &json!("safetensors")));
    assert_eq!(get(address, &at("status")).json(), json!({"name": MODEL, "status": "unloaded"}));
    let loaded = post(address, &at("load"), &json!({"keep_alive": -1})).json();
    assert_eq!((&loaded["status"], &loaded["context_tokens"]), (&json!("loaded"), &json!(2048)));
    assert_eq!((&listed()["status"], &loaded["unloads_after_seconds"]), (&json!("loaded"), &Value::Null));
    let status = get(address, &at("status")).json();
    assert_eq!((&status["status"], &status["running"]), (&json!("loaded"), &json!(0)));
    // Again, without a body: it is there.
    assert_eq!(open(address, "POST", &at("load"), b"").finish().json()["status"], "loaded");
    let unloaded = open(address, "POST", &at("unload"), b"").finish();
    assert_eq!(unloaded.json(), json!({"name": MODEL, "status": "unloaded", "was_loaded": true}));
    assert_eq!(open(address, "POST", &at("unload"), b"").finish().json()["was_loaded"], false);
    // By another writing of its name; with a keep-alive of nothing it goes by itself.
    let loaded = post(address, "/api/models/Tiny_Test/load", &json!({"keep_alive": 0})).json();
    assert_eq!(loaded["name"], MODEL);
    wait_for("it goes", || get(address, &at("status")).json()["status"] == "unloaded");
    let found = open(address, "POST", "/api/models/discover", b"").finish().json();
    assert_eq!((&found["discovered"], &found["models"][0]["name"]), (&json!(1), &json!(MODEL)));
    assert_eq!(post(address, &at("load"), &json!({"keep_alive": "soon"})).status, 400);
    assert_eq!(get(address, &at("load")).status, 405);
}

#[test]
fn a_name_in_a_path_is_only_a_name() {
    let server = TestServer::start(spelling("x"));
    let near = get(server.address, "/api/models/tiny-tset/status");
    assert_eq!(near.status, 404);
    assert!(near.json()["error"].as_str().unwrap().contains(MODEL), "{}", near.body);
    for name in [
        "..%2f..%2fetc%2fpasswd",
        "../../etc/passwd",
        "%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "org/model:tag",
        "org%2Fmodel%3Atag",
        "%00",
        "%ff",
        "%",
        "a%20b",
        ".",
        "x/load",
    ] {
        for (method, what) in [("GET", "status"), ("POST", "load"), ("POST", "unload")] {
            let reply = open(server.address, method, &format!("/api/models/{name}/{what}"), b"").finish();
            assert!([400, 404].contains(&reply.status), "{name}: {} {}", reply.status, reply.body);
            let body = if reply.body.is_empty() { json!({"error": ""}) } else { reply.json() };
            assert!(body["error"].is_string() || body["error"]["message"].is_string(), "{name}: {body}");
            assert!(!reply.body.contains("root:"), "{name}");
        }
    }
    assert!(server.state.models.loaded().is_empty());
}

#[test]
fn nothing_is_fetched_copied_or_deleted() {
    let server = TestServer::start(spelling("x"));
    let path = server.model().path.clone();
    for (method, path) in [
        ("POST", "/api/pull"),
        ("POST", "/api/push"),
        ("POST", "/api/create"),
        ("POST", "/api/copy"),
        ("DELETE", "/api/delete"),
    ] {
        let reply = open(server.address, method, path, json!({"model": MODEL}).to_string().as_bytes()).finish();
        assert_eq!(reply.status, 400, "{path}");
        let error = reply.json()["error"].as_str().unwrap().to_owned();
        assert!(error.contains("in place") && error.contains(path), "{error}");
    }
    assert!(path.exists());
}
