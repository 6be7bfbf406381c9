//! `GET /v1/models` and `GET /v1/models/{id}`.

use actix_web::http::Method;
use actix_web::{HttpResponse, web};
use serde::Serialize;
use shimmy_runtime::models::Discovered;

use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::report::unix_seconds;
use crate::routes::resource;

#[derive(Serialize)]
struct List {
    object: &'static str,
    data: Vec<Model>,
}

#[derive(Serialize)]
struct Model {
    id: String,
    object: &'static str,
    /// When the file was last changed.
    created: u64,
    owned_by: &'static str,
    /// Whether the next request finds it in memory.
    loaded: bool,
}

impl Model {
    fn new(model: Discovered, loaded: bool) -> Self {
        let created = model.modified.map_or(0, unix_seconds);
        Self { id: model.name, object: "model", created, owned_by: "local", loaded }
    }
}

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/models", Method::GET, web::route().to(list)));
    // Names may hold slashes (`org/model`).
    cfg.service(resource("/v1/models/{id:.+}", Method::GET, web::route().to(get)));
}

async fn list(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    // The first list walks the disk.
    let models = web::block(move || state.models.list()).await.map_err(|_| ApiError::server("listing failed"))?;
    let data = models.into_iter().map(|(model, loaded)| Model::new(model, loaded)).collect();
    Ok(HttpResponse::Ok().json(List { object: "list", data }))
}

async fn get(state: web::Data<AppState>, id: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let found = web::block(move || {
        let model = state.models.find(&id)?;
        let loaded = state.models.ready(&model.name).is_some();
        Ok::<_, ApiError>(Model::new(model, loaded))
    });
    Ok(HttpResponse::Ok().json(found.await.map_err(|_| ApiError::server("listing failed"))??))
}
