//! `GET /v1/models` and `GET /v1/models/{id}`, in Anthropic's shape for those who send `anthropic-version`.

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, SecondsFormat};
use serde::Serialize;
use serde_json::{Value, json};
use shimmy_runtime::models::Discovered;
use utoipa::ToSchema;

use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::request::report::unix_seconds;
use crate::routes::resource;

/// Models on the server's machine.
#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
pub(in crate::routes) struct List {
    /// `list`.
    object: &'static str,
    data: Vec<Model>,
}

/// A model on the server's machine.
#[derive(Serialize, ToSchema)]
pub(in crate::routes) struct Model {
    /// What requests call it.
    id: String,
    /// `model`.
    object: &'static str,
    /// When the file was last changed.
    created: u64,
    /// `local`.
    owned_by: &'static str,
    /// Whether the next request finds it in memory.
    loaded: bool,
    /// What it can be asked for, going by its file: `completion`, `chat` (it has a chat template), `embeddings`; nothing if it
    /// can't be loaded.
    capabilities: Vec<&'static str>,
}

impl Model {
    fn new(state: &AppState, model: Discovered, loaded: bool) -> Self {
        let capabilities = state.summaries.capabilities(&model);
        let created = model.modified.map_or(0, unix_seconds);
        Self { id: model.name, object: "model", created, owned_by: "local", loaded, capabilities }
    }
}

impl Model {
    fn in_anthropics_shape(&self) -> Value {
        let created = DateTime::from_timestamp(i64::try_from(self.created).unwrap_or(0), 0).unwrap_or_default();
        let created = created.to_rfc3339_opts(SecondsFormat::Secs, true);
        json!({"type": "model", "id": self.id, "display_name": self.id, "created_at": created})
    }
}

fn wants_anthropics_shape(request: &HttpRequest) -> bool {
    request.headers().contains_key("anthropic-version")
}

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/models", Method::GET, web::route().to(list)));
    // Names may hold slashes (`org/model`).
    cfg.service(resource("/v1/models/{id:.+}", Method::GET, web::route().to(get)));
}

async fn list(state: web::Data<AppState>, request: HttpRequest) -> Result<HttpResponse, ApiError> {
    // The first list walks the disk and reads the files.
    let listed = web::block(move || {
        let models = state.models.list().into_iter();
        models.map(|(model, loaded)| Model::new(&state, model, loaded)).collect::<Vec<Model>>()
    });
    let data = listed.await.map_err(|_| ApiError::server("listing failed"))?;
    if wants_anthropics_shape(&request) {
        let id = |model: Option<&Model>| model.map(|model| model.id.clone());
        let ends = (id(data.first()), id(data.last()));
        let data: Vec<Value> = data.iter().map(Model::in_anthropics_shape).collect();
        let list = json!({"data": data, "has_more": false, "first_id": ends.0, "last_id": ends.1});
        return Ok(HttpResponse::Ok().json(list));
    }
    Ok(HttpResponse::Ok().json(List { object: "list", data }))
}

async fn get(
    state: web::Data<AppState>,
    request: HttpRequest,
    id: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let found = web::block(move || {
        let model = state.models.find(&id)?;
        let loaded = state.models.ready(&model.name).is_some();
        Ok::<_, ApiError>(Model::new(&state, model, loaded))
    });
    let model = found.await.map_err(|_| ApiError::server("listing failed"))??;
    Ok(match wants_anthropics_shape(&request) {
        true => HttpResponse::Ok().json(model.in_anthropics_shape()),
        false => HttpResponse::Ok().json(model),
    })
}
