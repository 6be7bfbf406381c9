//! What chat and plain completions share: find the model and start the generation.

use std::sync::Arc;

use actix_web::http::header::HeaderValue;
use actix_web::{HttpResponseBuilder, web};
use shimmy_runtime::engine::{GenerateRequest, Generation};
use shimmy_runtime::models::LoadedModel;

use crate::app::{AppState, Phase};
use crate::drain::Running;
use crate::error::ApiError;

/// A generation that was accepted.
pub struct Begun {
    /// Who answers.
    pub model: Arc<LoadedModel>,
    /// Its events; dropping it cancels.
    pub generation: Generation,
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
    name: Option<String>,
    build: impl FnOnce(&LoadedModel) -> Result<GenerateRequest, ApiError> + Send + 'static,
) -> Result<Begun, ApiError> {
    let running = state.gate.enter()?;
    if state.phase() == Phase::Loading {
        return Err(ApiError::unavailable(
            "the model is still loading; GET /health tells when it is ready",
            "model_loading",
        ));
    }
    let started = web::block(move || {
        let name = match (&name, state.models.default_model()) {
            (Some(name), _) => name.as_str(),
            (None, Some(model)) => model.name.as_str(),
            (None, None) => {
                let message = "`model` is missing; GET /v1/models lists what there is";
                return Err(ApiError::param("model", message));
            }
        };
        let model = state.models.get(name).map_err(|error| ApiError::from(&*error))?;
        let request = build(&model)?;
        let generation = model.engine.submit(request)?;
        Ok((model, generation))
    });
    let (model, generation) =
        started.await.map_err(|_| ApiError::server("the request could not be started; the log says why"))??;
    Ok(Begun { model, generation, running })
}

/// Names the request's fields that had no effect.
pub fn add_ignored(response: &mut HttpResponseBuilder, ignored: Option<String>) {
    if let Some(value) = ignored.and_then(|names| HeaderValue::from_str(&names).ok()) {
        response.insert_header(("x-shimmy-ignored", value));
    }
}
