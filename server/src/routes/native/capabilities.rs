//! `GET /v1/capabilities`: what this build can do, from the tables that do it.

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use serde_json::{Value, json};
use shimmy_kernels::cpu::CpuKernels;
use shimmy_kernels::cpu::kv::KvType;
use shimmy_kernels::quant::QuantType;
use shimmy_runtime::arch::supported;

use crate::app::AppState;
use crate::routes::openai::sampling::{
    CONSTRAINTS, MAX_ANSWERS, MAX_BIASES, MAX_STOPS, OTHER_PARAMETERS, OTHER_SAMPLERS,
};
use crate::routes::request::generation::RANGES;
use crate::routes::{endpoints, resource};

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/capabilities", Method::GET, web::route().to(capabilities)));
}

async fn capabilities(state: web::Data<AppState>) -> HttpResponse {
    let limits = state.limits;
    let weight_types = QuantType::all().iter().filter(|dtype| dtype.has_kernels()).map(|dtype| dtype.name());
    let ranges = RANGES.iter().map(|range| {
        // JSON has no infinity.
        let max = range.max.is_finite().then_some(range.max);
        json!({"name": range.name, "min": range.min, "max": max})
    });
    let others = OTHER_PARAMETERS.iter().map(|name| json!({"name": name}));
    // The files of the page are for the page.
    let endpoints = endpoints().into_iter().filter(|(path, _)| !path.starts_with("/ui/"));
    let endpoints = endpoints.map(|(path, methods)| json!({"path": readable(&path), "methods": methods}));
    HttpResponse::Ok().json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "formats": ["gguf", "safetensors"],
        "architectures": supported().collect::<Vec<_>>(),
        "weight_types": weight_types.collect::<Vec<_>>(),
        "kv_types": KvType::ALL.map(KvType::name),
        "devices": [{"kind": "cpu", "isa": CpuKernels::detect().isa().name()}],
        "sampling": {
            "parameters": ranges.chain(others).collect::<Vec<_>>(),
            "refused": OTHER_SAMPLERS.iter().map(|(name, _)| *name).chain(CONSTRAINTS).collect::<Vec<_>>(),
        },
        "endpoints": endpoints.collect::<Vec<Value>>(),
        "limits": {
            "max_body_bytes": limits.max_body_bytes,
            "max_answers": MAX_ANSWERS,
            "max_stop_strings": MAX_STOPS,
            "max_logit_biases": MAX_BIASES,
            "websocket": limits.sockets.to_json(limits.max_body_bytes),
        },
    }))
}

/// A resource's pattern without its regular expressions: `/v1/models/{id:.+}` is `/v1/models/{id}`.
pub(crate) fn readable(pattern: &str) -> String {
    let mut path = String::with_capacity(pattern.len());
    let mut is_expression = false;
    for c in pattern.chars() {
        match c {
            ':' if path.contains('{') => is_expression = true,
            '}' => {
                is_expression = false;
                path.push('}');
            }
            c if !is_expression => path.push(c),
            _ => {}
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::readable;

    #[test]
    fn patterns_become_paths() {
        assert_eq!(readable("/v1/models/{id:.+}"), "/v1/models/{id}");
        assert_eq!(readable("/api/models/{name:.+}/load"), "/api/models/{name}/load");
        assert_eq!(readable("/health"), "/health");
    }
}
