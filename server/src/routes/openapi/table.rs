//! All endpoints as the document lists them. A test compares it with what is registered.

use std::borrow::Cow;

use utoipa::openapi::path::HttpMethod::{self, Delete, Get, Head, Post};
use utoipa::openapi::schema::{ObjectBuilder, Schema, Type};
use utoipa::openapi::{RefOr, Required};
use utoipa::{PartialSchema, ToSchema};

use super::schemas::answers;
use super::schemas::{anthropic, native, ollama, openai};
use crate::error::Protocol;
use crate::routes::health::Health;
use crate::routes::native::ready::Ready;
use crate::routes::openai::{embeddings, rerank};

/// What a good answer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Good {
    /// What [`Endpoint::answer`], [`Endpoint::events`] and [`Endpoint::lines`] describe, whichever was asked for.
    Described,
    /// Texts of these types.
    Texts(&'static [&'static str]),
    /// A WebSocket.
    Upgrade,
    /// None: the status says all.
    Nothing,
    /// There is no good answer: the endpoint is there to say why not.
    Refusal,
}

/// A body, or an event of one, that is described.
#[derive(Clone)]
pub(super) struct Described {
    pub(super) name: fn() -> Cow<'static, str>,
    pub(super) schema: fn() -> RefOr<Schema>,
    pub(super) others: fn(&mut Vec<(String, RefOr<Schema>)>),
    /// Whether a request must have one.
    pub(super) required: Required,
}

/// Something a request may say outside of its path and body.
#[derive(Clone, Copy)]
pub(super) struct Parameter {
    pub(super) place: Place,
    pub(super) name: &'static str,
    pub(super) description: &'static str,
    pub(super) schema: fn() -> RefOr<Schema>,
}

/// Where it says so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    Query,
    Header,
}

/// A method of a resource.
pub(super) struct Endpoint {
    pub(super) method: HttpMethod,
    pub(super) path: &'static str,
    pub(super) protocol: Option<Protocol>,
    pub(super) summary: &'static str,
    pub(super) parameters: &'static [Parameter],
    pub(super) request: Option<Described>,
    pub(super) good: Good,
    /// As JSON.
    pub(super) answer: Option<Described>,
    /// The data of each server-sent event.
    pub(super) events: Option<Described>,
    /// Each line of JSON.
    pub(super) lines: Option<Described>,
    /// Beside 200 and those that every endpoint has.
    pub(super) statuses: &'static [u16],
}

fn described<T: ToSchema>() -> Described {
    let (name, schema, others) = (T::name, <T as PartialSchema>::schema, <T as ToSchema>::schemas);
    Described { name, schema, others, required: Required::True }
}

impl Endpoint {
    fn new(method: HttpMethod, path: &'static str, protocol: Option<Protocol>, summary: &'static str) -> Self {
        Self {
            method,
            path,
            protocol,
            summary,
            parameters: &[],
            request: None,
            good: Good::Described,
            answer: None,
            events: None,
            lines: None,
            statuses: ALWAYS,
        }
    }

    fn takes<T: ToSchema>(self) -> Self {
        Self { request: Some(described::<T>()), ..self }
    }

    /// A body that may be missing.
    fn may_take<T: ToSchema>(self) -> Self {
        Self { request: Some(Described { required: Required::False, ..described::<T>() }), ..self }
    }

    fn asked_with(self, parameters: &'static [Parameter]) -> Self {
        Self { parameters, ..self }
    }

    fn gives<T: ToSchema>(self) -> Self {
        Self { answer: Some(described::<T>()), ..self }
    }

    fn streams<T: ToSchema>(self) -> Self {
        Self { events: Some(described::<T>()), ..self }
    }

    fn streams_lines<T: ToSchema>(self) -> Self {
        Self { lines: Some(described::<T>()), ..self }
    }

    fn is(self, good: Good) -> Self {
        Self { good, ..self }
    }

    fn or(self, statuses: &'static [u16]) -> Self {
        Self { statuses, ..self }
    }
}

/// What computing can end with.
const COMPUTED: &[u16] = &[404, 408, 413, 429, 500, 503, 504];
/// What reads a body and needs a model.
const READ: &[u16] = &[404, 408, 413, 500, 503];
const FOUND: &[u16] = &[404, 500];
const LISTED: &[u16] = &[500];
const ALWAYS: &[u16] = &[];

fn boolean() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Boolean).into()
}

fn text() -> RefOr<Schema> {
    String::schema()
}

fn number() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0)).into()
}

fn limit() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(1)).maximum(Some(100)).into()
}

fn order() -> RefOr<Schema> {
    ObjectBuilder::new().schema_type(Type::String).enum_values(Some(["asc", "desc"])).into()
}

const fn query(name: &'static str, schema: fn() -> RefOr<Schema>, description: &'static str) -> Parameter {
    Parameter { place: Place::Query, name, description, schema }
}

/// Of `GET /v1/responses/{id}`.
const SHOWN: &[Parameter] = &[
    query(
        "stream",
        boolean,
        "Events from the first one on, of a response that was made with `background` and `stream`",
    ),
    query("starting_after", number, "Only the events after the one with this `sequence_number`; needs `stream`"),
];
/// Of a response's input items.
const PAGED: &[Parameter] = &[
    query("limit", limit, "Most items of the answer; 20 if it isn't given"),
    query("order", order, "`asc`, or `desc` (latest first) if it isn't given"),
    query("after", text, "The `id` of an item: only those after it"),
];
/// Of the lists of models.
const MODELS: &[Parameter] = &[Parameter {
    place: Place::Header,
    name: "anthropic-version",
    description: "Whatever it is: the answer has Anthropic's shape",
    schema: text,
}];

/// Every endpoint, in the order of the document.
pub(super) fn endpoints() -> Vec<Endpoint> {
    let mut all = of_openai();
    all.extend(of_anthropic());
    all.extend(of_ollama());
    all.extend(our_own());
    all
}

fn of_openai() -> Vec<Endpoint> {
    use answers::{openai as give, responses};
    let at = |method, path, summary| Endpoint::new(method, path, Some(Protocol::OpenAi), summary);
    let rerank = |row: Endpoint| row.takes::<openai::RerankRequest>().gives::<rerank::Ranking<'static>>().or(COMPUTED);
    vec![
        at(Post, "/v1/chat/completions", "Answers a conversation")
            .takes::<openai::ChatRequest>()
            .gives::<give::ChatAnswer>()
            .streams::<give::ChatEvent>()
            .or(COMPUTED),
        at(Post, "/v1/completions", "Goes on from a text")
            .takes::<openai::CompletionRequest>()
            .gives::<give::CompletionAnswer>()
            .streams::<give::CompletionEvent>()
            .or(COMPUTED),
        at(Post, "/v1/responses", "Answers, and keeps the conversation; in the background if asked for")
            .takes::<openai::ResponsesRequest>()
            .gives::<responses::Response>()
            .streams::<responses::ResponseEvent>()
            .or(COMPUTED),
        at(Get, "/v1/responses/{id}", "A response that was kept, or still runs in the background")
            .asked_with(SHOWN)
            .gives::<responses::Response>()
            .streams::<responses::ResponseEvent>()
            .or(FOUND),
        at(Delete, "/v1/responses/{id}", "Forgets a response").gives::<responses::DeletedResponse>().or(FOUND),
        at(Get, "/v1/responses/{id}/input_items", "What it answered")
            .asked_with(PAGED)
            .gives::<responses::InputItems>()
            .or(FOUND),
        at(Post, "/v1/responses/{id}/cancel", "Cancels one that runs in the background")
            .gives::<responses::Response>()
            .or(FOUND),
        at(Post, "/v1/embeddings", "Vectors of texts")
            .takes::<openai::EmbeddingsRequest>()
            .gives::<embeddings::List<'static>>()
            .or(COMPUTED),
        rerank(at(Post, "/v1/rerank", "Puts texts in the order of their nearness to a query")),
        rerank(at(Post, "/rerank", "The same")),
        at(Get, "/v1/models", "Models found on the server's machine")
            .asked_with(MODELS)
            .gives::<give::ModelsAnswer>()
            .or(LISTED),
        at(Get, "/v1/models/{id}", "One of them").asked_with(MODELS).gives::<give::ModelAnswer>().or(FOUND),
    ]
}

fn of_anthropic() -> Vec<Endpoint> {
    use answers::anthropic as give;
    let at = |method, path, summary| Endpoint::new(method, path, Some(Protocol::Anthropic), summary);
    vec![
        at(Post, "/v1/messages", "Answers a conversation")
            .takes::<anthropic::MessagesRequest>()
            .gives::<give::MessageAnswer>()
            .streams::<give::MessageEvent>()
            .or(COMPUTED),
        at(Post, "/v1/messages/count_tokens", "Counts a conversation's tokens")
            .takes::<anthropic::CountTokensRequest>()
            .gives::<give::TokenCount>()
            .or(READ),
    ]
}

fn of_ollama() -> Vec<Endpoint> {
    use answers::ollama as give;
    let at = |method, path, summary| Endpoint::new(method, path, Some(Protocol::Ollama), summary);
    let in_place = "Refused: files are used where they lie";
    let refused = |method, path| at(method, path, in_place).is(Good::Refusal);
    vec![
        at(Get, "/", "That a server is here; for browsers the chat page").is(Good::Texts(&["text/plain", "text/html"])),
        at(Head, "/", "That a server is here").is(Good::Nothing),
        at(Get, "/api/version", "The version of Ollama whose protocol is spoken").gives::<give::Version>(),
        at(Get, "/api/tags", "Models found on the server's machine").gives::<give::Tags>().or(LISTED),
        at(Get, "/api/ps", "Models in memory").gives::<give::Running>().or(LISTED),
        at(Post, "/api/show", "What a model's file says of itself")
            .takes::<ollama::ShowRequest>()
            .gives::<give::ModelCard>()
            .or(READ),
        at(Post, "/api/chat", "Answers a conversation")
            .takes::<ollama::OllamaChatRequest>()
            .gives::<give::OllamaChatAnswer>()
            .streams_lines::<give::ChatLine>()
            .or(COMPUTED),
        at(
            Post,
            "/api/generate",
            "Answers a prompt; with sampling parameters at the top level, in Shimmy's own shape, which streams \
             server-sent events",
        )
        .takes::<ollama::OllamaGenerateRequest>()
        .gives::<give::GenerateAnswer>()
        .streams_lines::<give::GenerateLine>()
        .streams::<answers::native::GenerationFrame>()
        .or(COMPUTED),
        at(Post, "/api/embed", "Vectors of texts")
            .takes::<ollama::EmbedRequest>()
            .gives::<give::EmbedAnswer>()
            .or(COMPUTED),
        at(Post, "/api/embeddings", "The vector of a text, in the old form")
            .takes::<ollama::OldEmbeddingsRequest>()
            .gives::<give::OldEmbeddingsAnswer>()
            .or(COMPUTED),
        refused(Post, "/api/pull"),
        refused(Post, "/api/push"),
        refused(Post, "/api/create"),
        refused(Post, "/api/copy"),
        refused(Delete, "/api/delete"),
    ]
}

fn our_own() -> Vec<Endpoint> {
    use answers::{native as give, reports};
    let at = |method, path, summary| Endpoint::new(method, path, None, summary);
    vec![
        at(Get, "/health", "Whether the process is well").gives::<Health>().or(&[503]),
        at(Get, "/ready", "Whether it can answer now").gives::<Ready>().or(&[503]),
        at(Get, "/metrics", "Counts and times, in Prometheus' text format").is(Good::Texts(&["text/plain"])),
        at(Get, "/diag", "What a bug report needs").gives::<reports::Diagnosis>().or(LISTED),
        at(Get, "/v1/capabilities", "What this build supports").gives::<reports::Capabilities>(),
        at(Get, "/openapi.json", "This document").gives::<give::Document>(),
        at(Get, "/docs", "This document, for people").is(Good::Texts(&["text/html"])),
        at(Get, "/api/models", "Models and what they are doing").gives::<give::Models>().or(LISTED),
        at(Post, "/api/models/discover", "Looks for new models").gives::<give::DiscoveredModels>().or(LISTED),
        at(Post, "/api/models/{name}/load", "Loads a model")
            .may_take::<ollama::LoadRequest>()
            .gives::<give::LoadedState>()
            .or(READ),
        at(Post, "/api/models/{name}/unload", "Unloads a model").gives::<give::Unloaded>().or(&[404, 409, 500]),
        at(Get, "/api/models/{name}/status", "What a model is doing").gives::<give::ModelState>().or(FOUND),
        at(Post, "/tokenize", "A text's tokens").takes::<native::TokenizeRequest>().gives::<give::Tokens>().or(READ),
        at(Post, "/detokenize", "The text of tokens")
            .takes::<native::DetokenizeRequest>()
            .gives::<give::Detokenized>()
            .or(READ),
        at(Post, "/apply-template", "The prompt that a conversation becomes")
            .takes::<native::ApplyTemplateRequest>()
            .gives::<give::AppliedTemplate>()
            .or(READ),
        at(Get, "/ws/generate", "Answers over a WebSocket").is(Good::Upgrade).or(&[503]),
    ]
}
