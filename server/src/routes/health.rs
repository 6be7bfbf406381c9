//! `GET /health`: whether this process can answer now.

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{AppState, Phase};

/// Whether the process is well.
#[derive(Serialize, ToSchema)]
pub(in crate::routes) struct Health {
    /// `ok`, `loading` or `shutting down`.
    status: &'static str,
    version: &'static str,
    /// Generations that run.
    running: usize,
    /// The one of the start, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(nullable = false)]
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
