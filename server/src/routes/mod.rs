//! Wire types of each protocol and their conversion to the engine's; no engine logic.
//!
//! | module | resource |
//! |---|---|
//! | [`anthropic`] | `/v1/messages` |
//! | [`health`] | `GET /health` |
//! | [`metrics`] | `GET /metrics` |
//! | [`native`] | Shimmy's own: `/ready`, `/diag`, `/v1/capabilities`, `/tokenize`, `/api/models`, `/ws/generate`, … |
//! | [`ollama`] | `/api/…` |
//! | [`openai`] | `/v1/chat/completions`, `/v1/completions`, `/v1/responses`, `/v1/embeddings`, `/v1/rerank`, `/v1/models` |
//! | [`openapi`] | `GET /openapi.json`, `GET /docs` |
//! | [`page`] | `/`, the chat page, and `/ui/…`, its files |
//! | [`request`] | what they share |

pub mod anthropic;
pub mod health;
pub mod metrics;
pub mod native;
pub mod ollama;
pub mod openai;
pub mod openapi;
pub mod page;
pub mod request;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web::{self, Bytes, BytesMut};
use actix_web::{HttpMessage, HttpRequest, HttpResponse, Resource, ResponseError, Route};
use tokio::time::{Instant, timeout_at};

use crate::access_log::{AccessLog, LoggedBody};
use crate::app::{AppState, Limits};
use crate::error::{ApiError, Kind, Protocol};

/// Reserved for a body before any of it has come, whatever length was announced.
const FIRST_BODY_BYTES: usize = 64 << 10;
/// A body that comes this fast has all the time that it needs.
const LEAST_BODY_BYTES_PER_SECOND: f64 = 32.0 * 1024.0;

/// The paths that [`resource`] has made something of, and the methods of each.
static ENDPOINTS: Mutex<BTreeMap<String, BTreeSet<String>>> = Mutex::new(BTreeMap::new());

/// What this build answers, by path.
pub(crate) fn endpoints() -> BTreeMap<String, BTreeSet<String>> {
    ENDPOINTS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// A resource with one method; every other one gets 405 in JSON.
pub(crate) fn resource(path: &str, method: Method, route: Route) -> Resource {
    resource_of(path, [(method, route)])
}

/// A resource with some methods; every other one gets 405 in JSON.
pub(crate) fn resource_of<const N: usize>(path: &str, routes: [(Method, Route); N]) -> Resource {
    let methods: Vec<&str> = routes.iter().map(|(method, _)| method.as_str()).collect();
    let allow = HeaderValue::from_str(&methods.join(", ")).ok();
    let mut endpoints = ENDPOINTS.lock().unwrap_or_else(PoisonError::into_inner);
    endpoints.entry(path.to_owned()).or_default().extend(methods.iter().map(|&method| method.to_owned()));
    drop(endpoints);
    let mut resource = web::resource(path);
    for (method, route) in routes {
        resource = resource.route(route.method(method));
    }
    resource.default_service(web::to(move |request: HttpRequest| {
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
/// 413 when it is larger than `limit` bytes, 400 when it breaks off, 408 when it takes longer than [`Limits::body`] allows.
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
    let limits = request.app_data::<web::Data<AppState>>().map_or_else(Limits::default, |state| state.limits);
    let start = Instant::now();
    let mut body = BytesMut::with_capacity(length.unwrap_or(0).min(FIRST_BODY_BYTES));
    loop {
        let chunk = std::future::poll_fn(|cx| {
            use futures_core::Stream;
            std::pin::Pin::new(&mut payload).poll_next(cx)
        });
        let allowed = limits.body + Duration::from_secs_f64(body.len() as f64 / LEAST_BODY_BYTES_PER_SECOND);
        let chunk = timeout_at(start + allowed, chunk).await.map_err(|_| ApiError {
            status: StatusCode::REQUEST_TIMEOUT,
            code: Some("body_timeout"),
            ..ApiError::bad_request(format!("only {} bytes of the body came in {allowed:?}", body.len()))
        })?;
        let Some(chunk) = chunk else { break };
        let chunk = chunk.map_err(|error| ApiError::bad_request(format!("the body could not be read: {error}")))?;
        if body.len() + chunk.len() > limit {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    let body = body.freeze();
    let log = request.app_data::<web::Data<AppState>>().and_then(|state| state.access_log.as_ref());
    if log.is_some_and(AccessLog::wants_bodies) {
        request.extensions_mut().insert(LoggedBody(body.clone()));
    }
    Ok(body)
}
