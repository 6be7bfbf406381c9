//! What chat and plain completions share: find the model and start the generation.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpRequest, HttpResponseBuilder, web};
use shimmy_runtime::engine::{GenerateRequest, GenerationGroup};
use shimmy_runtime::models::LoadedModel;

use crate::app::{AppState, Phase};
use crate::drain::Running;
use crate::error::ApiError;

/// Generations that were accepted.
pub struct Begun {
    /// Who answers.
    pub model: Arc<LoadedModel>,
    /// The events of all answers; dropping it cancels them.
    pub group: GenerationGroup,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Holds a shutdown up.
    pub running: Running,
}

/// Finds (and, the first time, loads) the model, lets `build` make the engine's request and submits it. Loading,
/// templates and tokenising may take long, so all of it happens off the async threads.
///
/// # Errors
/// 503 while starting or shutting down, 404 for an unknown model, and what `build` or the engine refuse.
pub async fn begin(
    state: web::Data<AppState>,
    client: u64,
    name: Option<String>,
    num_answers: NonZeroUsize,
    build: impl FnOnce(&LoadedModel) -> Result<GenerateRequest, ApiError> + Send + 'static,
) -> Result<Begun, ApiError> {
    let running = enter(&state)?;
    let started = web::block(move || {
        let model = model_for(&state, name.as_deref())?;
        let mut request = build(&model)?;
        request.class.client = client;
        let prompt_tokens = request.prompt.len();
        let group = model.engine.submit_group(request, num_answers)?;
        Ok::<_, ApiError>((model, group, prompt_tokens))
    });
    let (model, group, prompt_tokens) =
        started.await.map_err(|_| ApiError::server("the request could not be started; the log says why"))??;
    Ok(Begun { model, group, prompt_tokens, running })
}

/// Starts work that a shutdown waits for.
///
/// # Errors
/// 503 while starting or shutting down.
pub fn enter(state: &AppState) -> Result<Running, ApiError> {
    let running = state.gate.enter()?;
    if state.phase() == Phase::Loading {
        return Err(ApiError::unavailable(
            "the model is still loading; GET /health tells when it is ready",
            "model_loading",
        ));
    }
    Ok(running)
}

/// The model of this name, else the one of the start; loaded, if it isn't yet. Blocks.
///
/// # Errors
/// 400 without a name and a model of the start, 404 for an unknown one, and what keeps it from being loaded.
pub fn model_for(state: &AppState, name: Option<&str>) -> Result<Arc<LoadedModel>, ApiError> {
    let name = match (name, state.models.default_model()) {
        (Some(name), _) => name,
        (None, Some(model)) => model.name.as_str(),
        (None, None) => {
            let message = "`model` is missing; GET /v1/models lists what there is";
            return Err(ApiError::param("model", message));
        }
    };
    state.models.get(name).map_err(|error| ApiError::from(&*error))
}

/// Who asks, for taking turns: the key that a client sends, and its address. Nobody has checked the key; who makes up new
/// ones takes more turns.
pub fn client_of(request: &HttpRequest) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.peer_addr().map(|address| address.ip()).hash(&mut hasher);
    for name in ["authorization", "x-api-key"] {
        request.headers().get(name).map(HeaderValue::as_bytes).hash(&mut hasher);
    }
    hasher.finish()
}

/// Names the request's fields that had no effect.
pub fn add_ignored(response: &mut HttpResponseBuilder, ignored: Option<String>) {
    if let Some(value) = ignored.and_then(|names| HeaderValue::from_str(&names).ok()) {
        response.insert_header(("x-shimmy-ignored", value));
    }
}
