//! All endpoints as the document lists them. A test compares it with what is registered.

use utoipa::openapi::path::HttpMethod::{self, Delete, Get, Head, Post};
use utoipa::openapi::schema::Schema;
use utoipa::openapi::{RefOr, Required};
use utoipa::{PartialSchema, ToSchema};

use super::schemas::{anthropic, native, ollama, openai};
use crate::error::Protocol;
use crate::routes::openai::models::{List, Model};

/// What a response's body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Body {
    Json,
    /// JSON, or server-sent events if the request says `stream`.
    JsonOrEvents,
    /// JSON, or lines of it unless the request says otherwise.
    JsonOrLines,
    Text,
    Html,
    /// A WebSocket.
    Upgrade,
    /// None: the status says all.
    Nothing,
    /// There is no good answer: the endpoint is there to say why not.
    Refusal,
}

/// A body that is described.
#[derive(Clone)]
pub(super) struct Described {
    pub(super) name: fn() -> std::borrow::Cow<'static, str>,
    pub(super) schema: fn() -> RefOr<Schema>,
    pub(super) others: fn(&mut Vec<(String, RefOr<Schema>)>),
    /// Whether a request must have one.
    pub(super) required: Required,
}

/// A method of a resource.
pub(super) struct Endpoint {
    pub(super) method: HttpMethod,
    pub(super) path: &'static str,
    pub(super) protocol: Option<Protocol>,
    pub(super) summary: &'static str,
    pub(super) request: Option<Described>,
    pub(super) body: Body,
    /// What a good answer looks like.
    pub(super) answer: Option<Described>,
    /// Beside 200 and those that every endpoint has.
    pub(super) statuses: &'static [u16],
}

fn json<T: ToSchema>() -> Option<Described> {
    let (name, schema, others) = (T::name, <T as PartialSchema>::schema, <T as ToSchema>::schemas);
    Some(Described { name, schema, others, required: Required::True })
}

/// A body that may be missing.
fn json_or_nothing<T: ToSchema>() -> Option<Described> {
    json::<T>().map(|request| Described { required: Required::False, ..request })
}

/// What computing can end with.
const COMPUTED: &[u16] = &[404, 408, 413, 429, 500, 503, 504];
/// What reads a body and needs a model.
const READ: &[u16] = &[404, 408, 413, 500, 503];
const FOUND: &[u16] = &[404, 500];
const ALWAYS: &[u16] = &[];

/// Every endpoint, in the order of the document.
pub(super) fn endpoints() -> Vec<Endpoint> {
    use Body::{Html, Json, JsonOrEvents, JsonOrLines, Nothing, Refusal, Text, Upgrade};
    let openai = Some(Protocol::OpenAi);
    let anthropic = Some(Protocol::Anthropic);
    let ollama = Some(Protocol::Ollama);
    let row = |method, path, protocol, summary, request, body, statuses| Endpoint {
        method,
        path,
        protocol,
        summary,
        request,
        body,
        answer: None,
        statuses,
    };
    vec![
        row(
            Post,
            "/v1/chat/completions",
            openai,
            "Answers a conversation",
            json::<openai::ChatRequest>(),
            JsonOrEvents,
            COMPUTED,
        ),
        row(
            Post,
            "/v1/completions",
            openai,
            "Goes on from a text",
            json::<openai::CompletionRequest>(),
            JsonOrEvents,
            COMPUTED,
        ),
        row(
            Post,
            "/v1/responses",
            openai,
            "Answers, and keeps the conversation",
            json::<openai::ResponsesRequest>(),
            JsonOrEvents,
            COMPUTED,
        ),
        row(Get, "/v1/responses/{id}", openai, "A response that was kept", None, Json, FOUND),
        row(Delete, "/v1/responses/{id}", openai, "Forgets a response", None, Json, FOUND),
        row(Get, "/v1/responses/{id}/input_items", openai, "What it answered", None, Json, FOUND),
        row(
            Post,
            "/v1/responses/{id}/cancel",
            openai,
            "Cancels one that runs in the background: there are none yet",
            None,
            Refusal,
            FOUND,
        ),
        row(Post, "/v1/embeddings", openai, "Vectors of texts", json::<openai::EmbeddingsRequest>(), Json, COMPUTED),
        row(
            Post,
            "/v1/rerank",
            openai,
            "Puts texts in the order of their nearness to a query",
            json::<openai::RerankRequest>(),
            Json,
            COMPUTED,
        ),
        row(Post, "/rerank", openai, "The same", json::<openai::RerankRequest>(), Json, COMPUTED),
        Endpoint {
            answer: json::<List>(),
            ..row(Get, "/v1/models", openai, "Models found on the server's machine", None, Json, &[500])
        },
        Endpoint { answer: json::<Model>(), ..row(Get, "/v1/models/{id}", openai, "One of them", None, Json, FOUND) },
        row(
            Post,
            "/v1/messages",
            anthropic,
            "Answers a conversation",
            json::<anthropic::MessagesRequest>(),
            JsonOrEvents,
            COMPUTED,
        ),
        row(
            Post,
            "/v1/messages/count_tokens",
            anthropic,
            "Counts a conversation's tokens",
            json::<anthropic::CountTokensRequest>(),
            Json,
            READ,
        ),
        row(Get, "/", ollama, "That a server is here; for browsers the chat page", None, Text, ALWAYS),
        row(Head, "/", ollama, "That a server is here", None, Nothing, ALWAYS),
        row(Get, "/api/version", ollama, "The version of Ollama whose protocol is spoken", None, Json, ALWAYS),
        row(Get, "/api/tags", ollama, "Models found on the server's machine", None, Json, &[500]),
        row(Get, "/api/ps", ollama, "Models in memory", None, Json, &[500]),
        row(Post, "/api/show", ollama, "What a model's file says of itself", json::<ollama::ShowRequest>(), Json, READ),
        row(
            Post,
            "/api/chat",
            ollama,
            "Answers a conversation",
            json::<ollama::OllamaChatRequest>(),
            JsonOrLines,
            COMPUTED,
        ),
        row(
            Post,
            "/api/generate",
            ollama,
            "Answers a prompt; with sampling parameters at the top level, in Shimmy's own shape",
            json::<ollama::OllamaGenerateRequest>(),
            JsonOrLines,
            COMPUTED,
        ),
        row(Post, "/api/embed", ollama, "Vectors of texts", json::<ollama::EmbedRequest>(), Json, COMPUTED),
        row(
            Post,
            "/api/embeddings",
            ollama,
            "The vector of a text, in the old form",
            json::<ollama::OldEmbeddingsRequest>(),
            Json,
            COMPUTED,
        ),
        row(Post, "/api/pull", ollama, "Refused: files are used where they lie", None, Refusal, ALWAYS),
        row(Post, "/api/push", ollama, "Refused: files are used where they lie", None, Refusal, ALWAYS),
        row(Post, "/api/create", ollama, "Refused: files are used where they lie", None, Refusal, ALWAYS),
        row(Post, "/api/copy", ollama, "Refused: files are used where they lie", None, Refusal, ALWAYS),
        row(Delete, "/api/delete", ollama, "Refused: files are used where they lie", None, Refusal, ALWAYS),
        row(Get, "/health", None, "Whether the process is well", None, Json, &[503]),
        row(Get, "/ready", None, "Whether it can answer now", None, Json, &[503]),
        row(Get, "/metrics", None, "Counts and times, in Prometheus' text format", None, Text, ALWAYS),
        row(Get, "/diag", None, "What a bug report needs", None, Json, ALWAYS),
        row(Get, "/v1/capabilities", None, "What this build supports", None, Json, ALWAYS),
        row(Get, "/openapi.json", None, "This document", None, Json, ALWAYS),
        row(Get, "/docs", None, "This document, for people", None, Html, ALWAYS),
        row(Get, "/api/models", None, "Models and what they are doing", None, Json, &[500]),
        row(Post, "/api/models/discover", None, "Looks for new models", None, Json, &[500]),
        row(
            Post,
            "/api/models/{name}/load",
            None,
            "Loads a model",
            json_or_nothing::<ollama::LoadRequest>(),
            Json,
            READ,
        ),
        row(Post, "/api/models/{name}/unload", None, "Unloads a model", None, Json, &[404, 409, 500]),
        row(Get, "/api/models/{name}/status", None, "What a model is doing", None, Json, FOUND),
        row(Post, "/tokenize", None, "A text's tokens", json::<native::TokenizeRequest>(), Json, READ),
        row(Post, "/detokenize", None, "The text of tokens", json::<native::DetokenizeRequest>(), Json, READ),
        row(
            Post,
            "/apply-template",
            None,
            "The prompt that a conversation becomes",
            json::<native::ApplyTemplateRequest>(),
            Json,
            READ,
        ),
        row(Get, "/ws/generate", None, "Answers over a WebSocket", None, Upgrade, &[503]),
    ]
}
