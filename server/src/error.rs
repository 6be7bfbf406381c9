//! The one error type of the service, its HTTP status and each protocol's shape of it.

use actix_web::http::{StatusCode, header};
use actix_web::{HttpResponse, ResponseError};
use serde::Serialize;
use serde_json::json;
use shimmy_runtime::Error;

/// Seconds after which a refused client may come back, where nobody knows better.
const RETRY_AFTER: u64 = 1;

/// What kind of failure a client is told about: OpenAI's `type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The request is wrong.
    InvalidRequestError,
    /// Who asks isn't known.
    AuthenticationError,
    /// Who asks may not.
    PermissionError,
    /// There is no such thing.
    NotFoundError,
    /// Too much at once.
    RateLimitError,
    /// Not now.
    Unavailable,
    /// Our fault.
    ServerError,
}

/// Whose shape a client reads errors in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Protocol {
    /// `{"error": {"message", "type", "param", "code"}}`; ours too.
    #[default]
    OpenAi,
    /// `{"type": "error", "error": {"type", "message"}}`.
    Anthropic,
    /// `{"error": "message"}`.
    Ollama,
}

impl Protocol {
    /// By the path of a request.
    pub fn of(path: &str) -> Self {
        let under = |root: &str| path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if under("/v1/messages") {
            Self::Anthropic
        } else if under("/api") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }
}

/// An error on its way to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiError {
    /// HTTP status.
    pub status: StatusCode,
    /// OpenAI's `type`.
    pub kind: Kind,
    /// For people: what was found and what to do.
    pub message: String,
    /// The request's field.
    pub param: Option<String>,
    /// For programs.
    pub code: Option<&'static str>,
    /// Seconds to wait before the next try.
    pub retry_after: Option<u64>,
    /// In whose shape.
    pub protocol: Protocol,
}

#[derive(Serialize)]
struct Body<'a> {
    error: Detail<'a>,
}

#[derive(Serialize)]
struct Detail<'a> {
    message: &'a str,
    r#type: Kind,
    param: Option<&'a str>,
    code: Option<&'a str>,
}

impl ApiError {
    /// 400.
    pub fn bad_request(message: impl Into<String>) -> Self {
        let (status, kind) = (StatusCode::BAD_REQUEST, Kind::InvalidRequestError);
        Self {
            status,
            kind,
            message: message.into(),
            param: None,
            code: None,
            retry_after: None,
            protocol: Protocol::default(),
        }
    }

    /// 400 about a field.
    pub fn param(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..Self::bad_request(message) }
    }

    /// 400: a field that would change the answer, and that this server can't honour.
    pub fn unsupported(param: impl Into<String>, instead: &str) -> Self {
        let param = param.into();
        let message = format!("`{param}` is not supported: {instead}");
        Self { code: Some("unsupported_parameter"), ..Self::param(param, message) }
    }

    /// 401.
    pub fn unauthorized(message: impl Into<String>, code: &'static str) -> Self {
        let (status, kind) = (StatusCode::UNAUTHORIZED, Kind::AuthenticationError);
        Self { status, kind, code: Some(code), ..Self::bad_request(message) }
    }

    /// 403.
    pub fn forbidden(message: impl Into<String>, code: &'static str) -> Self {
        let (status, kind) = (StatusCode::FORBIDDEN, Kind::PermissionError);
        Self { status, kind, code: Some(code), ..Self::bad_request(message) }
    }

    /// 429 of a client's own limits.
    pub fn rate_limited(message: impl Into<String>, retry_after: u64) -> Self {
        let (status, kind) = (StatusCode::TOO_MANY_REQUESTS, Kind::RateLimitError);
        let (code, retry_after) = (Some("rate_limit_exceeded"), Some(retry_after));
        Self { status, kind, code, retry_after, ..Self::bad_request(message) }
    }

    /// 404.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: StatusCode::NOT_FOUND, kind: Kind::NotFoundError, ..Self::bad_request(message) }
    }

    /// 503, with `Retry-After`.
    pub fn unavailable(message: impl Into<String>, code: &'static str) -> Self {
        let (status, kind) = (StatusCode::SERVICE_UNAVAILABLE, Kind::Unavailable);
        Self { status, kind, code: Some(code), retry_after: Some(RETRY_AFTER), ..Self::bad_request(message) }
    }

    /// 500.
    pub fn server(message: impl Into<String>) -> Self {
        let (status, kind) = (StatusCode::INTERNAL_SERVER_ERROR, Kind::ServerError);
        Self { status, kind, ..Self::bad_request(message) }
    }

    /// For counts: the code, else the type.
    pub fn reason(&self) -> &'static str {
        self.code.unwrap_or(match self.kind {
            Kind::InvalidRequestError => "invalid_request_error",
            Kind::AuthenticationError => "authentication_error",
            Kind::PermissionError => "permission_error",
            Kind::NotFoundError => "not_found_error",
            Kind::RateLimitError => "rate_limit_error",
            Kind::Unavailable => "unavailable",
            Kind::ServerError => "server_error",
        })
    }

    /// The same for clients of this protocol.
    #[must_use]
    pub fn speaking(self, protocol: Protocol) -> Self {
        Self { protocol, ..self }
    }

    /// The JSON that goes over the wire, in a response and in an event of a stream alike.
    pub fn to_json(&self) -> Vec<u8> {
        let Self { kind, message, param, code, .. } = self;
        // Strings and enums always serialise.
        match self.protocol {
            Protocol::OpenAi => {
                let detail = Detail { message, r#type: *kind, param: param.as_deref(), code: *code };
                serde_json::to_vec(&Body { error: detail })
            }
            Protocol::Anthropic => {
                let error = json!({"type": self.anthropic_type(), "message": message});
                serde_json::to_vec(&json!({"type": "error", "error": error}))
            }
            Protocol::Ollama => serde_json::to_vec(&json!({"error": message})),
        }
        .unwrap_or_default()
    }

    /// Anthropic's `type`, which follows the status.
    fn anthropic_type(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            504 => "timeout_error",
            500.. => "api_error",
            _ => "invalid_request_error",
        }
    }
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.message)
    }
}

impl std::error::Error for ApiError {}

impl ResponseError for ApiError {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            response.insert_header((header::RETRY_AFTER, seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.insert_header((header::WWW_AUTHENTICATE, "Bearer"));
        }
        response.content_type("application/json").body(self.to_json())
    }
}

impl From<&Error> for ApiError {
    fn from(error: &Error) -> Self {
        let message = error.to_string();
        match error {
            Error::ModelNotFound { nearest, .. } => {
                let next = if nearest.is_empty() { "; GET /v1/models lists what there is" } else { "" };
                Self {
                    param: Some("model".into()),
                    code: Some("model_not_found"),
                    ..Self::not_found(format!("{message}{next}"))
                }
            }
            Error::ContextLength { .. } => {
                let param = Some("messages".into());
                Self { param, code: Some("context_length_exceeded"), ..Self::bad_request(message) }
            }
            Error::InvalidRequest { param, .. } => Self::param(*param, message),
            Error::Template(_) => Self::param("messages", message),
            Error::Tokenizer(_) => Self::bad_request(message),
            Error::Overloaded { retry_after_ms } => Self {
                status: StatusCode::TOO_MANY_REQUESTS,
                kind: Kind::RateLimitError,
                code: Some("queue_full"),
                retry_after: Some(retry_after_ms.div_ceil(1000).max(1)),
                ..Self::bad_request(message)
            },
            Error::SlowReader(_) => Self { code: Some("slow_reader"), ..Self::bad_request(message) },
            // The server's files, not the client's request.
            Error::Io { .. }
            | Error::Format { .. }
            | Error::Unsupported(_)
            | Error::MissingMetadata { .. }
            | Error::BadMetadata { .. }
            | Error::MissingTensor { .. }
            | Error::TensorShape { .. }
            | Error::Candle(_)
            | Error::Kernel(_) => Self::server(message),
            Error::DeadlineExceeded { .. } => Self {
                status: StatusCode::GATEWAY_TIMEOUT,
                retry_after: None,
                ..Self::unavailable(message, "deadline_exceeded")
            },
            Error::OutOfMemory(_) => Self::unavailable(message, "out_of_memory"),
            Error::EngineStopped(_) | Error::BadLogits(_) | Error::BadEmbedding(_) => Self::server(message),
        }
    }
}

impl From<Error> for ApiError {
    fn from(error: Error) -> Self {
        Self::from(&error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_openais() {
        let json: serde_json::Value =
            serde_json::from_slice(&ApiError::unsupported("tools", "this build can't call tools").to_json()).unwrap();
        assert_eq!(
            json,
            serde_json::json!({"error": {
                "message": "`tools` is not supported: this build can't call tools",
                "type": "invalid_request_error", "param": "tools", "code": "unsupported_parameter",
            }})
        );
    }

    #[test]
    fn other_protocols_have_their_own_shapes() {
        let error = ApiError::unavailable("come back later", "model_loading");
        let json = |protocol| {
            serde_json::from_slice::<serde_json::Value>(&error.clone().speaking(protocol).to_json()).unwrap()
        };
        assert_eq!(
            json(Protocol::Anthropic),
            json!({"type": "error", "error": {"type": "overloaded_error", "message": "come back later"}})
        );
        assert_eq!(json(Protocol::Ollama), json!({"error": "come back later"}));
        for (path, protocol) in [
            ("/v1/messages", Protocol::Anthropic),
            ("/v1/messages/count_tokens", Protocol::Anthropic),
            ("/v1/messagesx", Protocol::OpenAi),
            ("/api/chat", Protocol::Ollama),
            ("/apiary", Protocol::OpenAi),
            ("/v1/models", Protocol::OpenAi),
        ] {
            assert_eq!(Protocol::of(path), protocol, "{path}");
        }
    }

    #[test]
    fn a_full_context_names_both_counts() {
        let error = Error::ContextLength { prompt_tokens: 3000, max_tokens: 100, context_tokens: 2048 };
        let error = ApiError::from(error);
        assert_eq!((error.status.as_u16(), error.code), (400, Some("context_length_exceeded")));
        assert!(error.message.contains("3000") && error.message.contains("2048"), "{}", error.message);
    }

    #[test]
    fn an_unknown_model_is_404_with_the_nearest() {
        let error = ApiError::from(Error::ModelNotFound { name: "smol".into(), nearest: vec!["smollm2".into()] });
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (404, Some("model")));
        assert!(error.message.contains("smollm2"));
    }
}
