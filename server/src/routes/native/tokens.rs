//! `POST /tokenize`, `/detokenize` and `/apply-template`: what stands between a text and what a model reads. The fields are
//! those that clients of llama.cpp's and vLLM's servers send.

use actix_web::http::Method;
use actix_web::{HttpRequest, HttpResponse, web};
use serde_json::{Map, Value, json};
use shimmy_runtime::models::LoadedModel;
use shimmy_runtime::text::{AddSpecial, GenerationPrompt, ParseSpecial, Tokenizer};

use crate::app::AppState;
use crate::error::ApiError;
use crate::routes::openai::chat::take_template_kwargs;
use crate::routes::openai::messages;
use crate::routes::request::begin::{add_ignored, check_loaded, model_for};
use crate::routes::request::fields::Fields;
use crate::routes::{read_body, resource};

/// Names of the text in a request, and whether it then gets the special tokens that begin a text unless the request says:
/// `content` as llama.cpp's server has it, `prompt` as vLLM's.
const TEXTS: [(&str, AddSpecial); 3] =
    [("content", AddSpecial::No), ("prompt", AddSpecial::Yes), ("text", AddSpecial::Yes)];

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/tokenize", Method::POST, web::route().to(tokenize)))
        .service(resource("/detokenize", Method::POST, web::route().to(detokenize)))
        .service(resource("/apply-template", Method::POST, web::route().to(apply_template)));
}

/// Takes a body apart and works on it with its model. All but the reading may take long (a text of megabytes, a template
/// that counts to its limit, a model that isn't loaded yet), so it happens off the async threads.
async fn answer<T: 'static>(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
    parse: fn(&mut Fields) -> Result<T, ApiError>,
    work: fn(T, &LoadedModel) -> Result<Value, ApiError>,
) -> Result<HttpResponse, ApiError> {
    let body = read_body(&request, payload, state.limits.max_body_bytes).await?;
    check_loaded(&state)?;
    let done = web::block(move || {
        let mut fields = Fields::parse(&body)?;
        let name = fields.take::<String>("model")?;
        let task = parse(&mut fields)?;
        let ignored = fields.ignored();
        let model = model_for(&state, name.as_deref())?;
        Ok::<_, ApiError>((work(task, &model)?.to_string(), ignored))
    });
    let (json, ignored) = done.await.map_err(|_| ApiError::server("this text failed; the log says why"))??;
    let mut response = HttpResponse::Ok();
    add_ignored(&mut response, ignored);
    Ok(response.content_type("application/json").body(json))
}

/// What tokens are wanted of.
enum Source {
    Text(String, AddSpecial),
    Conversation(Conversation),
}

struct Conversation {
    messages: Value,
    variables: Map<String, Value>,
    prompt: GenerationPrompt,
}

impl Conversation {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let messages = fields.take::<Value>("messages")?;
        let messages = messages.ok_or_else(|| ApiError::param("messages", "`messages` is missing"))?;
        fields.refuse("tools", &[json!([])], "this server can't call tools yet")?;
        fields.refuse("continue_final_message", &[json!(false)], "an answer always starts a new message")?;
        fields.refuse("chat_template", &[json!("")], "the model's own template is used")?;
        let prompt = match fields.take("add_generation_prompt")?.unwrap_or(true) {
            true => GenerationPrompt::Yes,
            false => GenerationPrompt::No,
        };
        Ok(Self { messages: messages::for_template(&messages)?, variables: take_template_kwargs(fields)?, prompt })
    }

    fn render(&self, model: &LoadedModel) -> Result<String, ApiError> {
        let Self { messages, variables, prompt } = self;
        let template = model.template.as_ref().ok_or_else(|| {
            ApiError::param("messages", format!("`{}` has no chat template; send a text instead", model.name))
        })?;
        Ok(template.render(messages, None, *prompt, variables)?)
    }
}

struct Tokenize {
    source: Source,
    parse_special: ParseSpecial,
    with_pieces: bool,
    with_strings: bool,
}

impl Tokenize {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let wrong = |message: &str| Err(ApiError::param("content", message));
        let mut texts = Vec::new();
        for (name, add_special) in TEXTS {
            if let Some(text) = fields.take::<String>(name)? {
                texts.push((text, add_special));
            }
        }
        // llama.cpp's name, and vLLM's.
        let special = match (fields.take::<bool>("add_special")?, fields.take::<bool>("add_special_tokens")?) {
            (Some(one), Some(other)) if one != other => {
                let message = "`add_special` and `add_special_tokens` are the same and differ; send one of them";
                return Err(ApiError::param("add_special", message));
            }
            (one, other) => one.or(other).map(|add| if add { AddSpecial::Yes } else { AddSpecial::No }),
        };
        let source = match (texts.pop(), texts.len(), fields.has("messages")) {
            (Some((text, default)), 0, false) => Source::Text(text, special.unwrap_or(default)),
            (None, _, true) if special == Some(AddSpecial::Yes) => {
                let message = "`add_special`: the template writes the special tokens of a conversation itself";
                return Err(ApiError::param("add_special", message));
            }
            (None, _, true) => Source::Conversation(Conversation::take(fields)?),
            (None, _, false) => {
                return wrong("`content` is missing: the text (`prompt` and `text` too), or `messages`");
            }
            _ => return wrong("one of `content`, `prompt`, `text` and `messages` is enough"),
        };
        let parse_special = match fields.take("parse_special")?.unwrap_or(true) {
            true => ParseSpecial::Yes,
            false if matches!(source, Source::Conversation(_)) => {
                let message = "`parse_special`: a conversation's special tokens are always taken as such";
                return Err(ApiError::param("parse_special", message));
            }
            false => ParseSpecial::No,
        };
        let with_pieces = fields.take("with_pieces")?.unwrap_or(false);
        let with_strings = fields.take("return_token_strs")?.unwrap_or(false);
        Ok(Self { source, parse_special, with_pieces, with_strings })
    }

    fn run(self, model: &LoadedModel) -> Result<Value, ApiError> {
        let tokenizer = &model.tokenizer;
        let ids = match &self.source {
            Source::Text(text, add_special) => tokenizer.encode(text, *add_special, self.parse_special)?,
            Source::Conversation(conversation) => {
                tokenizer.encode(&conversation.render(model)?, AddSpecial::No, ParseSpecial::Yes)?
            }
        };
        let count = ids.len();
        let strings: Option<Value> = self.with_strings.then(|| {
            let text = |id: &u32| tokenizer.token_text(*id).map(|text| text.into_owned());
            ids.iter().map(text).collect()
        });
        let tokens: Value = match self.with_pieces {
            true => ids.iter().map(|id| json!({"id": id, "piece": piece(tokenizer, *id)})).collect(),
            false => ids.into(),
        };
        let mut answer = json!({
            "model": model.name, "count": count, "max_model_len": model.engine.context_tokens(), "tokens": tokens,
        });
        if let Some(strings) = strings {
            answer["token_strs"] = strings;
        }
        Ok(answer)
    }
}

/// What a token stands for: its text, or its bytes where they are a part of a character.
fn piece(tokenizer: &Tokenizer, id: u32) -> Value {
    if tokenizer.is_control(id) {
        return tokenizer.token_text(id).map(|text| text.into_owned()).into();
    }
    let bytes = tokenizer.token_bytes(id);
    match std::str::from_utf8(&bytes) {
        Ok(text) => text.into(),
        Err(_) => bytes.to_vec().into(),
    }
}

async fn tokenize(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    answer(state, request, payload, Tokenize::take, Tokenize::run).await
}

/// Tokens, and whether those that are structure are written out.
struct Detokenize {
    tokens: Vec<u32>,
    skip_special: bool,
}

impl Detokenize {
    fn take(fields: &mut Fields) -> Result<Self, ApiError> {
        let tokens = fields.take("tokens")?.ok_or_else(|| ApiError::param("tokens", "`tokens` is missing"))?;
        Ok(Self { tokens, skip_special: fields.take("skip_special_tokens")?.unwrap_or(false) })
    }

    fn run(self, model: &LoadedModel) -> Result<Value, ApiError> {
        let size = model.tokenizer.vocab_size();
        if let Some(id) = self.tokens.iter().find(|id| model.tokenizer.token_text(**id).is_none()) {
            let message = format!("`tokens`: there is no token {id}; the vocabulary of `{}` has {size}", model.name);
            return Err(ApiError::param("tokens", message));
        }
        let content = match self.skip_special {
            true => model.tokenizer.decode(&self.tokens),
            false => model.tokenizer.decode_with_special(&self.tokens),
        };
        Ok(json!({"model": model.name, "content": content}))
    }
}

async fn detokenize(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    answer(state, request, payload, Detokenize::take, Detokenize::run).await
}

async fn apply_template(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    let run = |conversation: Conversation, model: &LoadedModel| {
        Ok(json!({"model": model.name, "prompt": conversation.render(model)?}))
    };
    answer(state, request, payload, Conversation::take, run).await
}
