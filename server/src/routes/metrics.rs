//! `GET /metrics`: Prometheus' text format, with vLLM's names where it has the same metric, so that its dashboards and the
//! gateways that read them work here too.

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use prometheus::proto::{self, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{TEXT_FORMAT, TextEncoder};
use shimmy_runtime::engine::{EngineStats, FinishReason, Histogram, Metrics};
use shimmy_runtime::models::LoadedModel;

use crate::app::AppState;
use crate::counters::Counters;
use crate::error::ApiError;
use crate::process;

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(super::resource("/metrics", Method::GET, web::route().to(metrics)));
}

async fn metrics(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let mut families = Families::default();
    for model in state.models.loaded() {
        add_model(&mut families, &model);
    }
    add_service(&mut families, &state.counters);
    if let Some(tracer) = &state.tracer {
        let (exported, dropped) = tracer.counts().read();
        for (outcome, count) in [("exported", exported), ("dropped", dropped)] {
            let help = "Spans that the collector took, and spans that were dropped.";
            families.counter("shimmy_otlp_spans_total", help, &[("outcome", outcome)], count);
        }
    }
    let text = TextEncoder::new().encode_to_string(&families.0);
    let text = text.map_err(|error| ApiError::server(format!("the metrics can't be written: {error}")))?;
    Ok(HttpResponse::Ok().content_type(TEXT_FORMAT).body(text))
}

/// Metric families in the order of their first sample.
#[derive(Default)]
struct Families(Vec<MetricFamily>);

impl Families {
    fn add(
        &mut self,
        kind: MetricType,
        name: &str,
        help: &str,
        labels: &[(&str, &str)],
        fill: impl FnOnce(&mut Metric),
    ) {
        let label = |&(name, value): &(&str, &str)| {
            let mut pair = LabelPair::default();
            pair.set_name(name.to_owned());
            pair.set_value(value.to_owned());
            pair
        };
        let mut metric = Metric::from_label(labels.iter().map(label).collect());
        fill(&mut metric);
        if let Some(family) = self.0.iter_mut().find(|family| family.name() == name) {
            family.mut_metric().push(metric);
            return;
        }
        let mut family = MetricFamily::default();
        family.set_name(name.to_owned());
        family.set_help(help.to_owned());
        family.set_field_type(kind);
        family.set_metric(vec![metric]);
        self.0.push(family);
    }

    fn gauge(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: f64) {
        self.add(MetricType::GAUGE, name, help, labels, |metric| {
            let mut gauge = proto::Gauge::default();
            gauge.set_value(value);
            metric.set_gauge(gauge);
        });
    }

    fn counter(&mut self, name: &str, help: &str, labels: &[(&str, &str)], value: u64) {
        self.add(MetricType::COUNTER, name, help, labels, |metric| {
            let mut counter = proto::Counter::default();
            counter.set_value(value as f64);
            metric.set_counter(counter);
        });
    }

    fn histogram(&mut self, name: &str, help: &str, labels: &[(&str, &str)], histogram: &Histogram) {
        let read = histogram.read();
        let bucket = |&(bound, count): &(f64, u64)| {
            let mut bucket = proto::Bucket::default();
            bucket.set_upper_bound(bound);
            bucket.set_cumulative_count(count);
            bucket
        };
        self.add(MetricType::HISTOGRAM, name, help, labels, |metric| {
            let mut histogram = proto::Histogram::default();
            histogram.set_bucket(read.buckets.iter().map(bucket).collect());
            histogram.set_sample_count(read.count);
            histogram.set_sample_sum(read.sum);
            metric.set_histogram(histogram);
        });
    }
}

fn add_model(families: &mut Families, model: &LoadedModel) {
    let labels = [("model_name", model.name.as_str())];
    let (stats, metrics) = (model.engine.stats(), model.engine.metrics());
    let EngineStats { total_blocks, free_blocks, total_window_blocks, free_window_blocks, .. } = stats;
    let share = |total: usize, free: usize| (total - free) as f64 / total.max(1) as f64;
    let used = share(total_blocks, free_blocks).max(share(total_window_blocks, free_window_blocks));
    for (name, help, value) in [
        ("vllm:num_requests_running", "Generations that own KV blocks.", stats.running as f64),
        ("vllm:num_requests_waiting", "Requests that wait for their first step.", stats.queued as f64),
        ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, of the fuller pool; 1 is all.", used),
        ("vllm:gpu_cache_usage_perc", "The older name of kv_cache_usage_perc, whatever the device.", used),
        ("shimmy_kv_blocks", "KV blocks.", total_blocks as f64),
        ("shimmy_draft_blocks", "KV blocks of the draft model in use.", stats.draft_blocks as f64),
        ("shimmy_cached_blocks", "KV blocks that nobody uses and that hold a prefix.", stats.cached_blocks as f64),
        ("shimmy_window_kv_blocks", "KV blocks of layers with a window.", total_window_blocks as f64),
        (
            "shimmy_cached_window_blocks",
            "KV blocks of layers with a window that nobody uses and that hold the end of a prefix.",
            stats.cached_window_blocks as f64,
        ),
    ] {
        families.gauge(name, help, &labels, value);
    }
    for (name, help, value) in [
        (
            "vllm:prompt_tokens_total",
            "Prompt tokens of generations that came to their first token.",
            stats.prompt_tokens,
        ),
        ("vllm:generation_tokens_total", "Tokens generated.", stats.generated_tokens),
        (
            "vllm:num_preemptions_total",
            "Generations that lost their KV blocks and were computed again.",
            stats.preemptions,
        ),
        (
            "vllm:prefix_cache_queries_total",
            "Prompt tokens that were looked up in the prefix cache.",
            stats.prefix_queries,
        ),
        ("vllm:prefix_cache_hits_total", "Prompt tokens that were found there.", stats.prefix_hits),
        (
            "shimmy_recalled_tokens_total",
            "Of those, what an earlier life of the model had computed.",
            stats.recalled_tokens,
        ),
        ("shimmy_embeddings_total", "Embeddings computed.", stats.embeddings),
        (
            "shimmy_fetched_rows_total",
            "Rows of logits that came whole from a GPU, as their sampling needed all of them.",
            stats.fetched_rows,
        ),
        ("shimmy_steps_total", "Steps of the engine.", stats.steps),
        ("shimmy_requests_cancelled_total", "Generations whose client went away.", stats.cancelled),
        ("shimmy_requests_failed_total", "Generations that failed.", stats.failed),
        (
            "shimmy_slow_readers_total",
            "Generations cut off because their client left too much unread.",
            metrics.slow_readers(),
        ),
    ] {
        families.counter(name, help, &labels, value);
    }
    for (method, guesses) in [("ngram", stats.ngram), ("draft", stats.draft)] {
        let labels = [labels[0], ("method", method)];
        let name = |what: &str| format!("vllm:spec_decode_num_{what}_total");
        let help = "Steps of a generation with guesses.";
        families.counter(&name("drafts"), help, &labels, guesses.steps);
        let help = "Guessed tokens that were computed with the one before them.";
        families.counter(&name("draft_tokens"), help, &labels, guesses.computed);
        families.counter(&name("accepted_tokens"), "Guesses that were right.", &labels, guesses.accepted);
    }
    let endings = [
        ("stop", metrics.finished(FinishReason::Stop)),
        ("length", metrics.finished(FinishReason::Length)),
        ("abort", stats.cancelled),
    ];
    for (reason, count) in endings {
        let labels = [labels[0], ("finished_reason", reason)];
        families.counter("vllm:request_success_total", "Generations that ended without a failure.", &labels, count);
    }
    add_distributions(families, &labels, metrics);
}

fn add_distributions(families: &mut Families, labels: &[(&str, &str)], metrics: &Metrics) {
    for (name, help, histogram) in [
        ("vllm:time_to_first_token_seconds", "From submission to the first token.", &metrics.time_to_first_token),
        ("vllm:inter_token_latency_seconds", "Between two tokens of a generation.", &metrics.inter_token),
        ("vllm:e2e_request_latency_seconds", "From submission to the end.", &metrics.end_to_end),
        ("vllm:request_queue_time_seconds", "From submission to the first step.", &metrics.queue),
        ("vllm:request_prefill_time_seconds", "From the first step to the first token.", &metrics.prefill),
        ("vllm:request_decode_time_seconds", "From the first token to the last.", &metrics.decode),
        ("vllm:request_prompt_tokens", "Prompt tokens of a generation.", &metrics.prompt_tokens),
        ("vllm:request_generation_tokens", "Tokens that a generation gave.", &metrics.generated_tokens),
        ("vllm:iteration_tokens_total", "Tokens in a step.", &metrics.step_tokens),
        ("shimmy_step_sequences", "Generations in a step.", &metrics.step_sequences),
        ("shimmy_step_seconds", "Time that the executor took for a step.", &metrics.step),
    ] {
        families.histogram(name, help, labels, histogram);
    }
}

fn add_service(families: &mut Families, counters: &Counters) {
    let open = counters.open_connections() as f64;
    families.gauge("shimmy_open_connections", "Open connections.", &[], open);
    families.counter("shimmy_connections_total", "Connections ever opened.", &[], counters.connections());
    for (outcome, count) in counters.responses() {
        let status = outcome.status.to_string();
        let labels = [("status", status.as_str()), ("reason", outcome.reason.unwrap_or("none"))];
        let help = "Responses by HTTP status and, of errors, their code.";
        families.counter("shimmy_http_responses_total", help, &labels, count);
    }
    let process = [
        ("process_resident_memory_bytes", "Resident memory.", process::resident_bytes()),
        ("process_open_fds", "Open file descriptors.", process::open_files()),
    ];
    for (name, help, value) in process {
        if let Some(value) = value {
            families.gauge(name, help, &[], value as f64);
        }
    }
}
