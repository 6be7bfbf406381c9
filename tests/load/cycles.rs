//! A model that is loaded and unloaded again and again, while clients ask for it, leaves nothing behind.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::binary::Server;
use crate::gauges::{Gauges, counter};

/// Cycles before memory is compared: they fill what allocators and pools keep for the next.
const WARM_UP: usize = 20;
const CYCLES: usize = 100;
const CLIENTS: usize = 3;
/// The bound of the connections test, for the same reason.
const MOST_GROWTH_BYTES: u64 = 8 << 20;

fn post(url: &str, body: &Value) -> Value {
    let request = ureq::post(url).config().timeout_global(Some(Duration::from_secs(60))).build();
    let mut answer = request.send_json(body).unwrap_or_else(|error| panic!("{url}: {error}"));
    serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap()
}

#[test]
fn a_hundred_loads_leave_nothing_behind() {
    let Some(model) = crate::model() else { return };
    let server = Server::start_with(&model, &["--kv-tokens", "4096", "--threads", "2", "--queue", "64"]);
    let listed = ureq::get(format!("{}/v1/models", server.url)).call().unwrap().body_mut().read_to_string().unwrap();
    let listed: Value = serde_json::from_str(&listed).unwrap();
    let loaded = listed["data"].as_array().unwrap().iter().find(|model| model["loaded"] == true).unwrap();
    let base = format!("{}/api/models/{}", server.url, loaded["id"].as_str().unwrap());
    let cycles = |count: usize| {
        let over = Arc::new(AtomicBool::new(false));
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let (over, url) = (Arc::clone(&over), format!("{}/v1/completions", server.url));
                std::thread::spawn(move || {
                    let mut answers = 0;
                    while !over.load(Ordering::Relaxed) {
                        let body = json!({"prompt": [3 + number, 7, 11], "max_tokens": 20, "ignore_eos": true, "seed": answers});
                        let answer = post(&url, &body);
                        assert_eq!(answer["usage"]["completion_tokens"], 20, "{answer}");
                        answers += 1;
                    }
                    answers
                })
            })
            .collect();
        for _ in 0..count {
            post(&format!("{base}/unload"), &json!({}));
            assert_eq!(post(&format!("{base}/load"), &json!({}))["status"], "loaded");
        }
        over.store(true, Ordering::Relaxed);
        let answers: usize = clients.into_iter().map(|client| client.join().unwrap()).sum();
        assert!(answers > 0);
        post(&format!("{base}/load"), &json!({}));
        (answers, Gauges::at_rest(&server.url))
    };
    let (_, before) = cycles(WARM_UP);
    let (answers, after) = cycles(CYCLES);
    println!(
        "{CYCLES} cycles, {answers} answers: {} bytes before, {} after",
        before.resident_bytes, after.resident_bytes
    );
    assert!(after.files <= before.files, "{before:?} {after:?}");
    let most = (before.resident_bytes / 20 * 21).max(before.resident_bytes + MOST_GROWTH_BYTES);
    assert!(after.resident_bytes <= most, "{before:?} {after:?}");
    assert_eq!(counter(&server.url, "shimmy_requests_failed_total"), 0);
    assert_eq!(server.terminate(), Some(0));
}
