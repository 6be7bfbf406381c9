//! Wire types of each protocol and their conversion to the engine's; no engine logic.
//!
//! | module | resource |
//! |---|---|
//! | [`anthropic`] | `/v1/messages` |
//! | [`health`] | `GET /health` |
//! | [`metrics`] | `GET /metrics` |
//! | [`ollama`] | `/api/…` |
//! | [`openai`] | `/v1/chat/completions`, `/v1/completions`, `/v1/models` |
//! | [`page`] | `/`, the chat page, and `/ui/…`, its files |
//! | [`request`] | what they share |

pub mod anthropic;
pub mod health;
pub mod metrics;
pub mod ollama;
pub mod openai;
pub mod page;
pub mod request;

use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, BytesMut};
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError, Route};

use crate::error::{ApiError, Kind, Protocol};

/// A resource with one method; every other one gets 405 in JSON.
pub(crate) fn resource(path: &str, method: Method, route: Route) -> Resource {
    let allow = HeaderValue::from_str(method.as_str()).ok();
    web::resource(path).route(route.method(method)).default_service(web::to(move |request: HttpRequest| {
        let allow = allow.clone();
        async move {
            let found = request.method();
            let expected = allow.as_ref().and_then(|allow| allow.to_str().ok()).unwrap_or_default().to_owned();
            let message = format!("{} takes {expected}, not {found}", request.path());
            let error = ApiError {
                status: StatusCode::METHOD_NOT_ALLOWED,
                code: Some("method_not_allowed"),
                kind: Kind::InvalidRequestError,
                ..ApiError::bad_request(message)
            };
            let mut response = error.speaking(Protocol::of(request.path())).error_response();
            if let Some(allow) = allow {
                response.headers_mut().insert(ALLOW, allow);
            }
            response
        }
    }))
}

/// No such path.
pub(crate) async fn not_found(request: HttpRequest) -> HttpResponse {
    let message = format!("there is no {} here; see the README for what there is", request.path());
    ApiError { code: Some("unknown_url"), ..ApiError::not_found(message) }
        .speaking(Protocol::of(request.path()))
        .error_response()
}

/// Reads a request's body.
///
/// # Errors
/// 413 when it is larger than `limit` bytes, 400 when it breaks off.
pub(crate) async fn read_body(
    request: &HttpRequest,
    mut payload: web::Payload,
    limit: usize,
) -> Result<Bytes, ApiError> {
    let too_large = || ApiError {
        status: StatusCode::PAYLOAD_TOO_LARGE,
        code: Some("request_too_large"),
        ..ApiError::bad_request(format!("the body is larger than {limit} bytes"))
    };
    let length = request.headers().get("content-length").and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    if length.is_some_and(|length| length > limit) {
        return Err(too_large());
    }
    let mut body = BytesMut::with_capacity(length.unwrap_or(0).min(limit));
    while let Some(chunk) = std::future::poll_fn(|cx| {
        use futures_core::Stream;
        std::pin::Pin::new(&mut payload).poll_next(cx)
    })
    .await
    {
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
