//! `GET /ready`: whether a request would be answered now. `GET /health` says the same with other words, for those who know it.

use actix_web::http::Method;
use actix_web::http::header::RETRY_AFTER;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use utoipa::ToSchema;

use crate::app::{AppState, Phase};
use crate::routes::resource;

/// Seconds after which it is worth asking again.
const RETRY_SECONDS: u64 = 1;

/// Whether a request would be answered now.
#[derive(Serialize, ToSchema)]
pub(in crate::routes) struct Ready {
    /// `ready`, `loading` or `shutting down`.
    status: &'static str,
    /// Models that are on their way into memory. While the server is ready these are for requests that named them.
    loading: Vec<String>,
}

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/ready", Method::GET, web::route().to(ready)));
}

async fn ready(state: web::Data<AppState>) -> HttpResponse {
    let mut loading = state.models.loading();
    match state.phase() {
        Phase::Ready => HttpResponse::Ok().json(Ready { status: "ready", loading }),
        Phase::Loading => {
            // Its load may not have begun yet.
            if let (true, Some(model)) = (loading.is_empty(), state.models.default_model()) {
                loading.push(model.name.clone());
            }
            let answer = Ready { status: "loading", loading };
            HttpResponse::ServiceUnavailable().insert_header((RETRY_AFTER, RETRY_SECONDS)).json(answer)
        }
        Phase::Draining => {
            let answer = Ready { status: "shutting down", loading };
            HttpResponse::ServiceUnavailable().insert_header((RETRY_AFTER, RETRY_SECONDS)).json(answer)
        }
    }
}
