//! What chat and plain completions share: find the model and start the generation.

use std::num::NonZeroUsize;
use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpResponseBuilder, web};
use shimmy_runtime::engine::GenerateRequest;
use shimmy_runtime::models::LoadedModel;

pub use crate::access::client::client_of;
use crate::access::client::{Answers, Client};
use crate::app::{AppState, Phase};
use crate::drain::Running;
use crate::error::ApiError;

/// Generations that were accepted.
pub struct Begun {
    /// Who answers.
    pub model: Arc<LoadedModel>,
    /// The events of all answers; dropping it cancels them.
    pub group: Answers,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Holds a shutdown up.
    pub running: Running,
}

/// Finds (and, the first time, loads) the model, lets `build` make the engine's request and submits it. Loading,
/// templates and tokenising may take long, so all of it happens off the async threads.
///
/// # Errors
/// 503 while starting or shutting down, 429 over the client's limits, 404 for an unknown model, and what `build` or the
/// engine refuse.
pub async fn begin(
    state: web::Data<AppState>,
    client: Client,
    name: Option<String>,
    num_answers: NonZeroUsize,
    build: impl FnOnce(&LoadedModel) -> Result<GenerateRequest, ApiError> + Send + 'static,
) -> Result<Begun, ApiError> {
    let running = enter(&state, &client)?;
    begin_entered(state, client, running, name, num_answers, build).await
}

/// The same for a request that has [`enter`]ed.
///
/// # Errors
/// Those of [`begin`] but 503 and the client's limits.
pub async fn begin_entered(
    state: web::Data<AppState>,
    client: Client,
    running: Running,
    name: Option<String>,
    num_answers: NonZeroUsize,
    build: impl FnOnce(&LoadedModel) -> Result<GenerateRequest, ApiError> + Send + 'static,
) -> Result<Begun, ApiError> {
    let started = web::block(move || {
        let model = model_for(&state, name.as_deref())?;
        let mut request = build(&model)?;
        client.check_priority(request.class.priority)?;
        request.class.client = client.number();
        let prompt_tokens = request.prompt.len();
        let group = Answers::new(model.engine.submit_group(request, num_answers)?, client.clone());
        client.charge_prompt(&model.name, prompt_tokens);
        Ok::<_, ApiError>((model, group, prompt_tokens))
    });
    let (model, group, prompt_tokens) =
        started.await.map_err(|_| ApiError::server("the request could not be started; the log says why"))??;
    Ok(Begun { model, group, prompt_tokens, running })
}

/// Starts work that a shutdown waits for, if the client's limits have room.
///
/// # Errors
/// 503 while starting or shutting down, 429 over the limits.
pub fn enter(state: &AppState, client: &Client) -> Result<Running, ApiError> {
    let running = state.gate.enter()?;
    check_loaded(state)?;
    client.admit()?;
    Ok(running)
}

/// Refuses what would only wait for the model of the start.
///
/// # Errors
/// 503 while that one is loaded.
pub fn check_loaded(state: &AppState) -> Result<(), ApiError> {
    match state.phase() {
        Phase::Loading => {
            let message = "the model is still loading; GET /health tells when it is ready";
            Err(ApiError::unavailable(message, "model_loading"))
        }
        Phase::Ready | Phase::Draining => Ok(()),
    }
}

/// The model of this name, else the one of the start; loaded, if it isn't yet. Blocks.
///
/// # Errors
/// 400 without a name and a model of the start, 404 for an unknown one, and what keeps it from being loaded.
pub fn model_for(state: &AppState, name: Option<&str>) -> Result<Arc<LoadedModel>, ApiError> {
    state.models.get(name_for(state, name)?).map_err(|error| ApiError::from(&*error))
}

/// The full name of the model that [`model_for`] would give, and whether it is in memory. It may look at the disk, which
/// blocks.
///
/// # Errors
/// 400 and 404 of [`model_for`].
pub fn look_up(state: &AppState, name: Option<&str>) -> Result<(String, bool), ApiError> {
    let model = state.models.find(name_for(state, name)?)?;
    let is_loaded = state.models.ready(&model.name).is_some();
    Ok((model.name, is_loaded))
}

fn name_for<'a>(state: &'a AppState, name: Option<&'a str>) -> Result<&'a str, ApiError> {
    match (name, state.models.default_model()) {
        (Some(name), _) => Ok(name),
        (None, Some(model)) => Ok(model.name.as_str()),
        (None, None) => {
            let message = "`model` is missing; GET /v1/models lists what there is";
            Err(ApiError::param("model", message))
        }
    }
}

/// Names the request's fields that had no effect.
pub fn add_ignored(response: &mut HttpResponseBuilder, ignored: Option<String>) {
    if let Some(value) = ignored.and_then(|names| HeaderValue::from_str(&names).ok()) {
        response.insert_header(("x-shimmy-ignored", value));
    }
}
