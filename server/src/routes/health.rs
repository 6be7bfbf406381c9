//! `GET /health`: whether this process can answer now.

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use serde::Serialize;

use crate::app::{AppState, Phase};

#[derive(Serialize)]
struct Health {
    status: &'static str,
    version: &'static str,
    running: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
}

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(super::resource("/health", Method::GET, web::route().to(health)));
}

async fn health(state: web::Data<AppState>) -> HttpResponse {
    let (mut response, status) = match state.phase() {
        Phase::Ready => (HttpResponse::Ok(), "ok"),
        Phase::Loading => (HttpResponse::ServiceUnavailable(), "loading"),
        Phase::Draining => (HttpResponse::ServiceUnavailable(), "shutting down"),
    };
    response.json(Health {
        status,
        version: env!("CARGO_PKG_VERSION"),
        running: state.gate.running(),
        model: state.models.default_model().map(|model| model.name.clone()),
    })
}
