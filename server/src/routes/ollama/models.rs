//! `GET /api/tags`, `GET /api/ps`, `GET /api/version`, `POST /api/show`.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Map, Value, json};
use shimmy_runtime::loader::{Metadata, ModelFile};
use shimmy_runtime::models::{Discovered, Life, LoadedModel};
use shimmy_runtime::text::{ChatTemplate, Tokenizer};

use super::details::details;
use crate::app::AppState;
use crate::error::{ApiError, Protocol};
use crate::routes::read_body;
use crate::routes::request::begin::add_ignored;
use crate::routes::request::fields::Fields;

/// Clients ask for a version to find out what they may use. This is the one of Ollama whose shapes are spoken here;
/// `GET /health` tells Shimmy's own.
const VERSION: &str = "0.12.6";
/// What `expires_at` says of a model that stays: Ollama's clients want a date.
const FOREVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// `GET /api/version`.
pub async fn version() -> HttpResponse {
    HttpResponse::Ok().json(json!({"version": VERSION}))
}

/// `GET /api/tags`.
///
/// # Errors
/// 500 when the list can't be made.
pub async fn tags(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    // The first list walks the disk and opens the files.
    let listed = web::block(move || {
        let models = state.models.list().into_iter();
        let tags: Vec<Value> = models.map(|(model, _)| entry(&state, &model)).collect();
        tags
    });
    let models = listed.await.map_err(|_| failed("listing"))?;
    Ok(HttpResponse::Ok().json(json!({"models": models})))
}

/// What `tags` and `ps` say of a model alike.
fn entry(state: &AppState, model: &Discovered) -> Value {
    json!({
        "name": model.name, "model": model.name,
        "modified_at": model.modified.map(date),
        "size": model.bytes,
        "digest": model.digest(),
        "details": details(state.summaries.of(model).as_ref()),
    })
}

/// `GET /api/ps`.
///
/// # Errors
/// 500 when the list can't be made.
pub async fn ps(state: web::Data<AppState>) -> Result<HttpResponse, ApiError> {
    let listed = web::block(move || {
        let lives = state.models.lives().into_iter();
        let running: Vec<Value> = lives.filter_map(|life| running(&state, &life)).collect();
        running
    });
    let models = listed.await.map_err(|_| failed("listing"))?;
    Ok(HttpResponse::Ok().json(json!({"models": models})))
}

fn running(state: &AppState, life: &Life<LoadedModel>) -> Option<Value> {
    let model = state.models.find(&life.model.name).ok()?;
    let mut entry = entry(state, &model);
    entry["expires_at"] = date((Utc::now() + life.left.unwrap_or(FOREVER)).into()).into();
    entry["size_vram"] = 0.into();
    entry["context_length"] = life.model.engine.context_tokens().into();
    Some(entry)
}

fn date(time: std::time::SystemTime) -> String {
    DateTime::<Utc>::from(time).to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// `POST /api/show`.
///
/// # Errors
/// In Ollama's shape: 400 for a body that can't be read, 404 for an unknown model.
pub async fn show(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let shown = async {
        let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
        let mut fields = Fields::parse(&body)?;
        // `name` is what older clients call it.
        let name = match (fields.take::<String>("model")?, fields.take::<String>("name")?) {
            (Some(name), _) | (None, Some(name)) => name,
            (None, None) => return Err(ApiError::param("model", "`model` is missing")),
        };
        let verbose = fields.take::<bool>("verbose")?.unwrap_or(false);
        fields.refuse("system", &[json!("")], "a model is shown as it is")?;
        fields.refuse("template", &[json!("")], "a model is shown as it is")?;
        let mut response = HttpResponse::Ok();
        add_ignored(&mut response, fields.ignored());
        let card =
            web::block(move || card(&state, &name, verbose)).await.map_err(|_| failed("reading the model"))??;
        Ok(response.json(card))
    };
    shown.await.map_err(|error: ApiError| error.speaking(Protocol::Ollama))
}

/// Everything about a model.
fn card(state: &AppState, name: &str, verbose: bool) -> Result<Value, ApiError> {
    let model = state.models.find(name)?;
    let file = ModelFile::open(&model.path)?;
    let summary = state.summaries.of(&model);
    let mut info = match &file.metadata {
        // Arrays are the vocabulary, mostly.
        Metadata::Gguf(metadata) => metadata.to_json(if verbose { usize::MAX } else { 0 }),
        Metadata::Hf(metadata) => metadata.config.as_object().cloned().unwrap_or_default(),
    };
    if !verbose {
        info.values_mut().filter(|value| value.is_object() || value.is_array()).for_each(|value| *value = Value::Null);
    }
    if let Some(summary) = &summary {
        add_general(&mut info, summary);
    }
    let template = Tokenizer::for_model(&file)
        .ok()
        .and_then(|tokenizer| ChatTemplate::for_model(&file, &tokenizer).ok().flatten());
    let template = template.as_ref().map(|template| template.source().to_owned()).unwrap_or_default();
    Ok(json!({
        "modelfile": format!("FROM {}\n", model.name),
        "parameters": "",
        "template": template,
        "details": details(summary.as_ref()),
        "model_info": info,
        "capabilities": state.summaries.ollama_capabilities(&model),
        "modified_at": model.modified.map(date),
    }))
}

/// The names that clients look for, whatever the format.
fn add_general(info: &mut Map<String, Value>, summary: &shimmy_runtime::models::Summary) {
    info.insert("general.parameter_count".into(), summary.parameters.into());
    let Some(architecture) = &summary.architecture else { return };
    info.insert("general.architecture".into(), architecture.as_str().into());
    if let Some(context) = summary.context {
        info.insert(format!("{architecture}.context_length"), context.into());
    }
}

fn failed(what: &str) -> ApiError {
    ApiError::server(format!("{what} failed; the log says why")).speaking(Protocol::Ollama)
}
