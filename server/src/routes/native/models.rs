//! `GET /api/models`, `POST /api/models/discover`, and of one model `load`, `unload` and `status`. A name in a path is looked
//! up among the models that were found and never reaches the file system.

use std::time::Instant;

use actix_web::http::{Method, StatusCode};
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Value, json};
use shimmy_runtime::models::{Discovered, KeepAlive};

use crate::app::AppState;
use crate::drain::Running;
use crate::error::{ApiError, Protocol};
use crate::routes::ollama::details::parameter_size;
use crate::routes::ollama::options::take_keep_alive;
use crate::routes::request::begin::add_ignored;
use crate::routes::request::fields::Fields;
use crate::routes::request::report::unix_seconds;
use crate::routes::{read_body, resource};

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    // Names may hold slashes (`org/model`) and colons (`name:tag`).
    cfg.service(resource("/api/models", Method::GET, web::route().to(list)))
        .service(resource("/api/models/discover", Method::POST, web::route().to(discover)))
        .service(resource("/api/models/{name:.+}/load", Method::POST, web::route().to(load)))
        .service(resource("/api/models/{name:.+}/unload", Method::POST, web::route().to(unload)))
        .service(resource("/api/models/{name:.+}/status", Method::GET, web::route().to(status)));
    // Ollama's clients ask for these.
    for path in ["/api/pull", "/api/push", "/api/create", "/api/copy"] {
        cfg.service(resource(path, Method::POST, web::route().to(in_place)));
    }
    cfg.service(resource("/api/delete", Method::DELETE, web::route().to(in_place)));
}

/// Does `work` off the async threads.
async fn block<T: Send + 'static>(work: impl FnOnce() -> Result<T, ApiError> + Send + 'static) -> Result<T, ApiError> {
    let done = web::block(work).await;
    done.map_err(|_| ApiError::server("this failed; the log says why")).flatten().map_err(in_its_shape)
}

fn in_its_shape(error: ApiError) -> ApiError {
    error.speaking(Protocol::Ollama)
}

async fn list(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let entries = block(move || Ok(entries(&state, state.models.list()))).await?;
    Ok(HttpResponse::Ok().json(json!({"models": entries})))
}

async fn discover(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let entries = block(move || Ok(entries(&state, state.models.rescan()))).await?;
    Ok(HttpResponse::Ok().json(json!({"discovered": entries.len(), "models": entries})))
}

fn entries(state: &AppState, models: Vec<(Discovered, bool)>) -> Vec<Value> {
    let loading = state.models.loading();
    let entry = |(model, is_loaded): (Discovered, bool)| {
        let summary = state.summaries.of(&model);
        let summary = summary.as_ref();
        let status = match (is_loaded, loading.contains(&model.name)) {
            (true, _) => "loaded",
            (false, true) => "loading",
            (false, false) => "unloaded",
        };
        json!({
            "name": model.name,
            "aliases": model.aliases,
            "size_bytes": model.bytes,
            "source": model.origin,
            "modified": model.modified.map(unix_seconds),
            "format": summary.map(|summary| summary.format),
            "model_type": summary.and_then(|summary| summary.architecture.as_deref()),
            "parameter_count": summary.map(|summary| parameter_size(summary.parameters)),
            "weight_type": summary.and_then(|summary| summary.dtype.as_deref()),
            "context_tokens": summary.and_then(|summary| summary.context),
            "chat_template": summary.map(|summary| summary.chat_template),
            "status": status,
        })
    };
    models.into_iter().map(entry).collect()
}

/// What is known of a model, whose name is an exact one.
fn state_of(state: &AppState, name: &str) -> Value {
    if let Some(life) = state.models.lives().into_iter().find(|life| life.model.name == name)
        && life.model.engine.stop_reason().is_none()
    {
        let stats = life.model.engine.stats();
        return json!({
            "name": name, "status": "loaded", "running": stats.running, "waiting": stats.queued,
            "context_tokens": life.model.engine.context_tokens(),
            "kv_blocks": stats.total_blocks, "used_kv_blocks": stats.total_blocks - stats.free_blocks,
            "unloads_after_seconds": life.left.map(|left| left.as_secs_f64()),
        });
    }
    let is_loading = state.models.loading().iter().any(|loading| loading == name);
    json!({"name": name, "status": if is_loading { "loading" } else { "unloaded" }})
}

async fn status(state: web::Data<AppState>, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let known = block(move || {
        let model = state.models.find(&name)?;
        Ok(state_of(&state, &model.name))
    });
    Ok(HttpResponse::Ok().json(known.await?))
}

async fn load(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    name: web::Path<String>,
) -> Result<HttpResponse, ApiError> {
    let read = async {
        let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
        keep_alive(&body)
    };
    let (keep_alive, ignored) = read.await.map_err(in_its_shape)?;
    // A load holds a shutdown up.
    let running: Running = state.gate.enter().map_err(in_its_shape)?;
    let loaded = block(move || {
        let _running = running;
        let start = Instant::now();
        let model = state.models.get(&name).map_err(|error| ApiError::from(&*error))?;
        if let Some(keep_alive) = keep_alive {
            state.models.keep(&model.name, keep_alive);
        }
        let mut known = state_of(&state, &model.name);
        known["took_ms"] = (start.elapsed().as_secs_f64() * 1e3).into();
        Ok(known)
    });
    let known = loaded.await?;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(response.json(known))
}

/// `keep_alive` of a body, which may be missing, and the fields without an effect.
fn keep_alive(body: &[u8]) -> Result<(Option<KeepAlive>, Option<String>), ApiError> {
    if body.is_empty() {
        return Ok((None, None));
    }
    let mut fields = Fields::parse(body)?;
    Ok((take_keep_alive(&mut fields)?, fields.ignored()))
}

async fn unload(state: web::Data<AppState>, name: web::Path<String>) -> Result<HttpResponse, ApiError> {
    let unloaded = block(move || {
        let model = state.models.find(&name)?;
        let was_loaded = state.models.unload(&model.name);
        if !was_loaded && state.models.loading().contains(&model.name) {
            return Err(ApiError {
                status: StatusCode::CONFLICT,
                code: Some("model_loading"),
                ..ApiError::bad_request(format!("`{}` is being loaded; unload it when it is there", model.name))
            });
        }
        Ok(json!({"name": model.name, "status": "unloaded", "was_loaded": was_loaded}))
    });
    Ok(HttpResponse::Ok().json(unloaded.await?))
}

/// Models are the user's files: nothing here fetches, copies or deletes one.
async fn in_place(request: HttpRequest) -> Result<HttpResponse, ApiError> {
    let message = format!(
        "{} is not supported: this server uses model files in place and never fetches, copies or deletes one; \
         put files into a folder that is searched and POST /api/models/discover, or remove them there",
        request.path()
    );
    Err(ApiError { code: Some("unsupported"), ..ApiError::bad_request(message) }.speaking(Protocol::Ollama))
}
