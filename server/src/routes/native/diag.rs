//! `GET /diag`: what a report of a bug needs. No prompts, no keys, no paths: it can be shown to anybody.

use std::sync::OnceLock;

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};
use shimmy_kernels::{cpu, cuda};
use shimmy_runtime::engine::EngineStats;
use shimmy_runtime::kv::BLOCK_TOKENS;
use shimmy_runtime::models::{Life, LoadedModel};

use crate::app::{AppState, Phase};
use crate::error::ApiError;
use crate::process::{self, meminfo, proc_field};
use crate::routes::resource;

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/diag", Method::GET, web::route().to(diag)));
}

async fn diag(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    // The CUDA driver and the list of open files take their time.
    let report = web::block(move || report(&state)).await;
    Ok(HttpResponse::Ok().json(report.map_err(|_| ApiError::server("the report failed; the log says why"))?))
}

fn report(state: &AppState) -> Value {
    // Initialising the driver takes a while, and what there is doesn't change.
    static CUDA: OnceLock<String> = OnceLock::new();
    let phase = match state.phase() {
        Phase::Loading => "loading",
        Phase::Ready => "ready",
        Phase::Draining => "shutting down",
    };
    let limits = state.limits;
    let mut models: Vec<Value> = state.models.lives().iter().map(model).collect();
    models.sort_by_cached_key(|model| model["name"].to_string());
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "build": {
            "cuda": cfg!(feature = "cuda"),
            "debug_assertions": cfg!(debug_assertions),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
        },
        "uptime_seconds": state.started.elapsed().as_secs_f64(),
        "status": phase,
        "cpu": {
            "name": proc_field("/proc/cpuinfo", "model name"),
            "features": cpu::CpuKernels::features(),
            "isa": cpu::CpuKernels::detect().isa().name(),
            "available_threads": std::thread::available_parallelism().ok().map(usize::from),
            "default_workers": cpu::topology::default_workers(),
        },
        "cuda": CUDA.get_or_init(|| cuda::probe().to_string()),
        "memory": {
            "total_bytes": meminfo("MemTotal"),
            "available_bytes": meminfo("MemAvailable"),
            "resident_bytes": process::resident_bytes(),
            "peak_resident_bytes": process::peak_resident_bytes(),
        },
        "open_files": process::open_files(),
        "connections": {"open": state.counters.open_connections(), "total": state.counters.connections()},
        "generations": state.gate.running(),
        "responses": state.counters.responses().iter().map(|(outcome, count)| {
            json!({"status": outcome.status, "reason": outcome.reason, "count": count})
        }).collect::<Vec<_>>(),
        "limits": {
            "max_body_bytes": limits.max_body_bytes,
            "stall_seconds": limits.stall.as_secs_f64(),
            "head_seconds": limits.head.as_secs_f64(),
            "body_seconds": limits.body.as_secs_f64(),
            "websocket": limits.sockets.to_json(limits.max_body_bytes),
        },
        "loading": state.models.loading(),
        "models": models,
    })
}

fn model(life: &Life<LoadedModel>) -> Value {
    let model = &life.model;
    let stats = model.engine.stats();
    let limits = model.engine.limits();
    let EngineStats { total_blocks, free_blocks, total_window_blocks, free_window_blocks, .. } = stats;
    json!({
        "name": model.name,
        "architecture": model.config.architecture,
        "executor": model.executor,
        "placement": model.placement,
        "threads": model.threads,
        "context_tokens": model.engine.context_tokens(),
        "max_step_tokens": limits.max_step_tokens,
        "load_seconds": model.load_time.as_secs_f64(),
        "unloads_after_seconds": life.left.map(|left| left.as_secs_f64()),
        "chat_template": model.template.is_some(),
        "draft_model": model.draft.as_ref().map(|draft| draft.name.as_str()),
        "kv": {
            "types": model.kv_types.to_string(),
            "bytes_when_full": model.kv_bytes,
            "block_tokens": BLOCK_TOKENS,
            "blocks": total_blocks,
            "used_blocks": total_blocks - free_blocks,
            "cached_blocks": stats.cached_blocks,
            "window_blocks": total_window_blocks,
            "used_window_blocks": total_window_blocks - free_window_blocks,
        },
        "requests": {
            "running": stats.running,
            "waiting": stats.queued,
            "completed": stats.completed,
            "cancelled": stats.cancelled,
            "failed": stats.failed,
            "preemptions": stats.preemptions,
        },
        "tokens": {
            "prompt": stats.prompt_tokens,
            "generated": stats.generated_tokens,
            "prefix_queries": stats.prefix_queries,
            "prefix_hits": stats.prefix_hits,
        },
        "steps": stats.steps,
        "failure": model.engine.stop_reason(),
    })
}
