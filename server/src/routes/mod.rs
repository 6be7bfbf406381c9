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
//! | [`request`], [`body`] | what they share |

pub mod anthropic;
pub mod body;
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

use actix_web::http::header::{ALLOW, HeaderValue};
use actix_web::http::{Method, StatusCode};
use actix_web::web;
use actix_web::{HttpRequest, HttpResponse, Resource, ResponseError, Route};

pub(crate) use self::body::read_body;
use crate::error::{ApiError, Kind, Protocol};

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
