//! `/metrics`: valid text, the promised names, and counts that are those of known requests.

use std::collections::BTreeMap;

use serde_json::json;

use super::client::{get, open, post};
use super::harness::{MODEL, TestServer, endless, spelling, wait_for};

/// Samples by name and labels as written.
struct Exposition {
    samples: BTreeMap<String, f64>,
    types: BTreeMap<String, String>,
}

/// Reads the text format strictly: each sample after its family's one `# TYPE`, no sample twice, labels quoted.
fn parse(text: &str) -> Exposition {
    let (mut samples, mut types) = (BTreeMap::new(), BTreeMap::new());
    let mut family = String::new();
    assert!(text.ends_with('\n'));
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert!(types.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {line}");
            name.clone_into(&mut family);
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap();
        let name = series.split('{').next().unwrap();
        let suffix = name.strip_prefix(family.as_str()).unwrap_or_else(|| panic!("{line} after {family}"));
        let suffixes: &[&str] = if types[&family] == "histogram" { &["_bucket", "_sum", "_count"] } else { &[""] };
        assert!(suffixes.contains(&suffix), "{line}");
        assert!(name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':'), "{line}");
        if let Some(labels) = series.strip_prefix(name).and_then(|rest| rest.strip_prefix('{')) {
            for label in labels.strip_suffix('}').unwrap().split("\",") {
                let (key, value) = label.split_once("=\"").unwrap();
                assert!(key.chars().all(|c| c.is_ascii_lowercase() || c == '_') && !value.is_empty(), "{line}");
            }
        }
        let value: f64 = value.parse().unwrap();
        assert!(value.is_finite() && value >= 0.0, "{line}");
        assert!(samples.insert(series.to_owned(), value).is_none(), "twice: {line}");
    }
    Exposition { samples, types }
}

impl Exposition {
    /// The sample of the one model.
    fn model(&self, name: &str) -> f64 {
        self.of(name, "")
    }

    /// The one with a further label, written out.
    fn of(&self, name: &str, label: &str) -> f64 {
        let series = if label.is_empty() {
            format!("{name}{{model_name=\"{MODEL}\"}}")
        } else {
            format!("{name}{{model_name=\"{MODEL}\",{label}}}")
        };
        *self.samples.get(&series).unwrap_or_else(|| panic!("no {series} in {:?}", self.samples.keys()))
    }

    fn responses(&self, status: u16, reason: &str) -> f64 {
        let series = format!("shimmy_http_responses_total{{status=\"{status}\",reason=\"{reason}\"}}");
        self.samples.get(&series).copied().unwrap_or(0.0)
    }
}

fn scrape(server: &TestServer) -> Exposition {
    let reply = get(server.address, "/metrics");
    assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/plain; version=0.0.4")));
    parse(&reply.body)
}

#[test]
fn known_requests_give_known_counts() {
    let server = TestServer::start(spelling("hello"));
    for max_tokens in [3, 3, 100] {
        let request = json!({"model": MODEL, "prompt": "x".repeat(10), "max_tokens": max_tokens});
        assert_eq!(post(server.address, "/v1/completions", &request).status, 200);
    }
    assert_eq!(post(server.address, "/v1/completions", &json!({"model": MODEL})).status, 400);
    assert_eq!(post(server.address, "/v1/completions", &json!({"model": "nobody", "prompt": "x"})).status, 404);
    // Published after the step that sent the last event.
    wait_for("the last step is counted", || server.stats().completed == 3);
    let metrics = scrape(&server);
    // Twice three tokens, once five and the one that ends the answer.
    for (name, value) in [
        ("vllm:num_requests_running", 0.0),
        ("vllm:num_requests_waiting", 0.0),
        ("vllm:kv_cache_usage_perc", 0.0),
        ("vllm:gpu_cache_usage_perc", 0.0),
        ("vllm:prompt_tokens_total", 30.0),
        ("vllm:generation_tokens_total", 12.0),
        ("vllm:num_preemptions_total", 0.0),
        ("vllm:time_to_first_token_seconds_count", 3.0),
        ("vllm:inter_token_latency_seconds_count", 9.0),
        ("vllm:e2e_request_latency_seconds_count", 3.0),
        ("vllm:request_queue_time_seconds_count", 3.0),
        ("vllm:request_prefill_time_seconds_count", 3.0),
        ("vllm:request_decode_time_seconds_count", 3.0),
        ("vllm:request_prompt_tokens_sum", 30.0),
        ("vllm:request_generation_tokens_sum", 12.0),
        ("vllm:iteration_tokens_total_sum", 39.0),
        ("shimmy_step_sequences_sum", 12.0),
        ("shimmy_steps_total", 12.0),
        ("shimmy_requests_failed_total", 0.0),
        ("shimmy_slow_readers_total", 0.0),
    ] {
        assert_eq!(metrics.model(name), value, "{name}");
    }
    for (reason, count) in [("stop", 1.0), ("length", 2.0), ("abort", 0.0)] {
        let label = format!("finished_reason=\"{reason}\"");
        assert_eq!(metrics.of("vllm:request_success_total", &label), count, "{reason}");
    }
    assert_eq!(metrics.of("vllm:request_prompt_tokens_bucket", "le=\"8\""), 0.0);
    assert_eq!(metrics.of("vllm:request_prompt_tokens_bucket", "le=\"16\""), 3.0);
    assert_eq!(metrics.of("vllm:request_prompt_tokens_bucket", "le=\"+Inf\""), 3.0);
    assert_eq!(metrics.responses(200, "none"), 3.0);
    assert_eq!(metrics.responses(400, "invalid_request_error"), 1.0);
    assert_eq!(metrics.responses(404, "model_not_found"), 1.0);
    assert!(metrics.samples["shimmy_open_connections"] >= 1.0, "the scrape's own");
    assert_eq!(metrics.samples["shimmy_connections_total"], 6.0);
    assert!(metrics.samples["process_resident_memory_bytes"] > 0.0);
    assert_eq!(metrics.types["vllm:generation_tokens_total"], "counter");
}

#[test]
fn prefix_hits_are_counted_in_tokens() {
    let server = TestServer::start(endless());
    let ask = |cache: bool| {
        let request = json!({"model": MODEL, "prompt": "x".repeat(70), "max_tokens": 2, "cache_prompt": cache});
        assert_eq!(post(server.address, "/v1/completions", &request).status, 200);
    };
    [true, true, false].into_iter().for_each(ask);
    wait_for("the last step is counted", || server.stats().completed == 3);
    let metrics = scrape(&server);
    assert_eq!(metrics.model("vllm:prefix_cache_queries_total"), 140.0);
    assert_eq!(metrics.model("vllm:prefix_cache_hits_total"), 64.0);
    assert_eq!(metrics.model("shimmy_cached_blocks"), 2.0);
}

#[test]
fn running_requests_and_those_that_go_away_are_seen() {
    let server = TestServer::start(endless());
    let request = json!({"model": MODEL, "prompt": "x".repeat(70), "max_tokens": 1500, "stream": true}).to_string();
    let mut client = open(server.address, "POST", "/v1/completions", request.as_bytes());
    for _ in 0..3 {
        client.chunk().unwrap();
    }
    let metrics = scrape(&server);
    assert_eq!(metrics.model("vllm:num_requests_running"), 1.0);
    assert!(metrics.model("vllm:kv_cache_usage_perc") >= 3.0 / 128.0);
    assert_eq!(metrics.samples["shimmy_open_connections"], 2.0);
    drop(client);
    wait_for("it is cancelled", || server.stats().cancelled == 1);
    let metrics = scrape(&server);
    assert_eq!(metrics.of("vllm:request_success_total", "finished_reason=\"abort\""), 1.0);
    assert_eq!(metrics.model("vllm:num_requests_running"), 0.0);
    assert_eq!(metrics.model("shimmy_requests_cancelled_total"), 1.0);
}

#[test]
fn without_a_loaded_model_there_is_the_service_alone() {
    let server = TestServer::start(spelling("x"));
    let metrics = scrape(&server);
    assert!(metrics.samples.keys().all(|name| !name.starts_with("vllm:")));
    assert_eq!(metrics.samples["shimmy_connections_total"], 1.0);
}
