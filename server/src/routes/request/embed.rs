//! Texts to vectors: what the resources of all protocols do that need embeddings.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use actix_web::web;
use serde_json::{Value, json};
use shimmy_runtime::Error;
use shimmy_runtime::engine::{Class, EmbedRequest, Numerics, PendingEmbedding, Pooling, PromptCache};
use shimmy_runtime::models::{KeepAlive, LoadedModel};

use super::begin::{enter, model_for};
use super::fields::{Fields, kind_of};
use crate::access::client::Client;
use crate::app::AppState;
use crate::error::ApiError;

/// Texts of one request that are with the engine at a time. More gain nothing, and places in the queue are for all.
const IN_FLIGHT: usize = 32;

/// A text whose embedding is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// As it is; the model's vocabulary adds its special tokens.
    Text(String),
    /// Exactly these.
    Tokens(Vec<u32>),
}

/// What happens to a text that is longer than the context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TooLong {
    /// An error with both counts.
    #[default]
    Refuse,
    /// Its beginning is embedded, of at most so many tokens.
    Cut(usize),
}

/// How a request wants its embeddings.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct EmbedOptions {
    /// `None`: as the model says.
    pub pooling: Option<Pooling>,
    /// Elements of a vector: the first so many, brought back to length 1.
    pub dimensions: Option<usize>,
    /// Whether rounding may depend on what else is computed.
    pub numerics: Numerics,
    /// Whether computed prompts are used and kept, where pooling allows it.
    pub prompt_cache: PromptCache,
    /// Lower goes first.
    pub priority: i32,
    /// For all texts together.
    pub deadline: Option<Duration>,
    /// For how long the model stays afterwards; `None`: as the server says.
    pub keep_alive: Option<KeepAlive>,
    /// Texts longer than the context.
    pub too_long: TooLong,
}

impl EmbedOptions {
    /// Takes what OpenAI's shape and ours share.
    ///
    /// # Errors
    /// 400 that names the field.
    pub fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        fields.refuse("truncate_prompt_tokens", &[], "a text is never cut here; send a shorter one")?;
        fields.refuse("normalize", &[json!(true)], "embeddings always have the length 1")?;
        fields.refuse("add_special_tokens", &[json!(true)], "send token ids instead")?;
        Ok(Self {
            pooling: take_pooling(fields)?,
            numerics: match fields.take("deterministic")?.unwrap_or(false) {
                true => Numerics::Invariant,
                false => Numerics::Fast,
            },
            prompt_cache: match fields.take("cache_prompt")?.unwrap_or(true) {
                true => PromptCache::Use,
                false => PromptCache::Skip,
            },
            priority: fields.take("priority")?.unwrap_or(0),
            deadline: take_deadline(fields)?,
            ..Self::default()
        })
    }
}

/// Takes `deadline_ms`: milliseconds from the request's arrival at the engine.
///
/// # Errors
/// 400 that names the field.
pub fn take_deadline(fields: &mut Fields) -> Result<Option<Duration>, ApiError> {
    match fields.take::<u64>("deadline_ms")? {
        Some(0) => Err(ApiError::param("deadline_ms", "`deadline_ms` must be at least 1; leave it out for none")),
        deadline => Ok(deadline.map(Duration::from_millis)),
    }
}

fn take_pooling(fields: &mut Fields) -> Result<Option<Pooling>, ApiError> {
    match fields.take::<String>("pooling")?.as_deref() {
        None => Ok(None),
        Some("mean") => Ok(Some(Pooling::Mean)),
        Some("last") => Ok(Some(Pooling::Last)),
        Some(other) => {
            let message = format!("`pooling` must be \"mean\" or \"last\", got \"{other}\"");
            Err(ApiError::param("pooling", message))
        }
    }
}

/// Takes `dimensions`. How many there are at most depends on the model.
///
/// # Errors
/// 400 that names the field.
pub fn take_dimensions(fields: &mut Fields) -> Result<Option<usize>, ApiError> {
    match fields.take::<i64>("dimensions")? {
        None => Ok(None),
        Some(wanted) => usize::try_from(wanted)
            .ok()
            .filter(|&wanted| wanted > 0)
            .map(Some)
            .ok_or_else(|| ApiError::param("dimensions", format!("`dimensions` must be at least 1, got {wanted}"))),
    }
}

/// A text, or an array of texts, in which none may be empty.
///
/// # Errors
/// 400 that names the field, and which of its elements.
pub fn take_texts(fields: &mut Fields, name: &'static str) -> Result<Option<Vec<String>>, ApiError> {
    match fields.take::<Value>(name)? {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(vec![text])),
        Some(Value::Array(texts)) => {
            let text = |(index, text): (usize, Value)| match text {
                Value::String(text) => Ok(text),
                other => {
                    let at = format!("{name}[{index}]");
                    Err(ApiError::param(at.clone(), format!("`{at}` must be a string, not {}", kind_of(&other))))
                }
            };
            texts.into_iter().enumerate().map(text).collect::<Result<_, _>>().map(Some)
        }
        Some(other) => {
            let found = kind_of(&other);
            Err(ApiError::param(name, format!("`{name}` must be a string or an array of strings, not {found}")))
        }
    }
}

/// The vectors of a request.
pub struct Vectors {
    /// Whose.
    pub model: Arc<LoadedModel>,
    /// In the order of the texts.
    pub vectors: Vec<Vec<f32>>,
    /// Of all texts.
    pub prompt_tokens: usize,
    /// Until the texts were tokens: with a model that was loaded for them, mostly that.
    pub load_time: Duration,
}

/// Finds the model, makes tokens of the texts and has them computed. Dropping the future cancels what isn't done. `name`
/// tells what a text is called in errors.
///
/// # Errors
/// 503 while starting or shutting down, 429 over the client's limits, 404 for an unknown model, 400 for texts that are empty
/// or too long, and what the engine refuses.
pub async fn embed(
    state: web::Data<AppState>,
    client: Client,
    model: Option<String>,
    inputs: Vec<Input>,
    options: EmbedOptions,
    name: impl Fn(usize) -> String + Send + 'static,
) -> Result<Vectors, ApiError> {
    let start = Instant::now();
    client.check_priority(options.priority)?;
    let _running = enter(&state, &client)?;
    let started = web::block(move || {
        let model = model_for(&state, model.as_deref())?;
        if let Some(keep_alive) = options.keep_alive {
            state.models.keep(&model.name, keep_alive);
        }
        let pooling = model.pooling.choose(options.pooling)?;
        let size = model.config.hidden_size;
        if let Some(wanted) = options.dimensions.filter(|&wanted| wanted > size) {
            let message = format!("`dimensions` is {wanted}, but an embedding of `{}` has {size}", model.name);
            return Err(ApiError::param("dimensions", message));
        }
        let text = |(index, input): (usize, Input)| tokens(&model, input, options.too_long, &name(index));
        let texts = inputs.into_iter().enumerate().map(text).collect::<Result<Vec<_>, ApiError>>()?;
        Ok::<_, ApiError>((model, pooling, texts))
    });
    let (model, pooling, texts) =
        started.await.map_err(|_| ApiError::server("the request could not be started; the log says why"))??;
    let load_time = start.elapsed();
    let submitted = Instant::now();
    let prompt_tokens = texts.iter().map(Vec::len).sum();
    client.charge_prompt(&model.name, prompt_tokens);
    let mut vectors = Vec::with_capacity(texts.len());
    let mut pending: VecDeque<PendingEmbedding> = VecDeque::new();
    for tokens in texts {
        if pending.len() == IN_FLIGHT {
            vectors.extend(next(&mut pending).await?);
        }
        let class = Class { priority: options.priority, client: client.number() };
        let deadline = left(options.deadline, submitted)?;
        let EmbedOptions { numerics, prompt_cache, .. } = options;
        let request = EmbedRequest { tokens, pooling, prompt_cache, numerics, class, deadline };
        loop {
            match model.engine.embed(request.clone()) {
                Ok(embedding) => {
                    pending.push_back(embedding);
                    break;
                }
                // With texts in the queue, this request has had its turn: it goes on as they end.
                Err(Error::Overloaded { .. }) if !pending.is_empty() => vectors.extend(next(&mut pending).await?),
                Err(error) => return Err(error.into()),
            }
        }
    }
    while !pending.is_empty() {
        vectors.extend(next(&mut pending).await?);
    }
    if let Some(dimensions) = options.dimensions {
        vectors.iter_mut().try_for_each(|vector| shorten(vector, dimensions))?;
    }
    Ok(Vectors { model, vectors, prompt_tokens, load_time })
}

async fn next(pending: &mut VecDeque<PendingEmbedding>) -> Result<Option<Vec<f32>>, ApiError> {
    match pending.pop_front() {
        Some(embedding) => Ok(Some(embedding.collect().await?.vector)),
        None => Ok(None),
    }
}

/// What is left of the time for all texts.
fn left(deadline: Option<Duration>, submitted: Instant) -> Result<Option<Duration>, ApiError> {
    let Some(deadline) = deadline else { return Ok(None) };
    let left = deadline.saturating_sub(submitted.elapsed());
    if left.is_zero() {
        let deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX);
        return Err(Error::DeadlineExceeded { deadline_ms, completion_tokens: 0 }.into());
    }
    Ok(Some(left))
}

/// The tokens of a text that fits the context.
fn tokens(model: &LoadedModel, input: Input, too_long: TooLong, name: &str) -> Result<Vec<u32>, ApiError> {
    let wrong = |message: String| ApiError::param(name, message);
    let mut tokens = match input {
        Input::Text(text) => model.encode_text(&text)?,
        Input::Tokens(tokens) => {
            let size = model.tokenizer.vocab_size();
            if let Some(id) = tokens.iter().find(|id| **id as usize >= size) {
                return Err(wrong(format!("`{name}`: there is no token {id}; the vocabulary has {size}")));
            }
            tokens
        }
    };
    if tokens.is_empty() {
        return Err(wrong(format!("`{name}` is empty")));
    }
    let context = model.engine.context_tokens();
    if let TooLong::Cut(most) = too_long
        && tokens.len() > most.min(context)
    {
        // The token that the vocabulary ends every text with stays.
        let end = tokens.last().copied().filter(|&last| model.tokenizer.is_control(last));
        tokens.truncate(most.min(context));
        if let (Some(end), Some(last)) = (end, tokens.last_mut()) {
            *last = end;
        }
    }
    if tokens.len() > context {
        let message =
            format!("`{name}` has {} tokens, but the context of `{}` holds {context}", tokens.len(), model.name);
        return Err(ApiError { code: Some("context_length_exceeded"), ..wrong(message) });
    }
    Ok(tokens)
}

/// The first elements of a vector, with the length 1.
fn shorten(vector: &mut Vec<f32>, dimensions: usize) -> Result<(), ApiError> {
    vector.truncate(dimensions);
    let length = vector.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
    if length == 0.0 {
        let message = format!("the first {dimensions} elements of an embedding are 0; ask for more `dimensions`");
        return Err(ApiError::param("dimensions", message));
    }
    vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorter_vectors_have_the_length_one_too() {
        let mut vector = vec![0.3, 0.4, 0.8];
        shorten(&mut vector, 2).unwrap();
        assert!((vector[0] - 0.6).abs() < 1e-6 && (vector[1] - 0.8).abs() < 1e-6 && vector.len() == 2, "{vector:?}");
        assert_eq!(shorten(&mut vec![0.0, 1.0], 1).unwrap_err().param.as_deref(), Some("dimensions"));
    }

    #[test]
    fn fields_are_checked_by_name() {
        let take = |value: Value| EmbedOptions::take(&mut Fields::parse(value.to_string().as_bytes()).unwrap());
        let options =
            take(json!({"pooling": "last", "deterministic": true, "priority": -3, "deadline_ms": 5})).unwrap();
        assert_eq!(
            (options.pooling, options.numerics, options.priority),
            (Some(Pooling::Last), Numerics::Invariant, -3)
        );
        assert_eq!(options.deadline, Some(Duration::from_millis(5)));
        for (value, param) in [
            (json!({"pooling": "cls"}), "pooling"),
            (json!({"truncate_prompt_tokens": 5}), "truncate_prompt_tokens"),
            (json!({"normalize": false}), "normalize"),
            (json!({"deadline_ms": 0}), "deadline_ms"),
        ] {
            assert_eq!(take(value).unwrap_err().param.as_deref(), Some(param));
        }
    }
}
