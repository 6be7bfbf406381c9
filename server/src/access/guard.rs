//! What stands before all handlers: the name that the server is called by, the page that asks, the key, and afterwards
//! what is left of the client's limits.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::{HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, web};

use super::client::Client;
use super::quota::{Quota, Reading};
use crate::app::AppState;
use crate::error::{ApiError, Protocol};

/// What needs no key: whether the server is there, what can be asked, and the page, which asks its reader for a key.
const OPEN: [&str; 5] = ["/", "/health", "/ready", "/docs", "/openapi.json"];
const OPEN_FOLDER: &str = "/ui/";

/// On connections through a Unix socket, which no page of a browser can open.
#[derive(Debug, Clone, Copy)]
pub struct ThroughUnixSocket;

/// Lets a request pass, with the [`Client`] that it is from, or answers in its stead.
///
/// # Errors
/// Those of the handler.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let client = match check(&request) {
        Ok(client) => client,
        Err(error) => {
            let error = error.speaking(Protocol::of(request.path()));
            return Ok(request.error_response(error).map_into_right_body());
        }
    };
    request.extensions_mut().insert(client.clone());
    let mut response = next.call(request).await?;
    if let Some(quota) = client.quota() {
        add_limits(response.headers_mut(), quota);
    }
    Ok(response.map_into_left_body())
}

fn check(request: &ServiceRequest) -> Result<Client, ApiError> {
    let state = request.app_data::<web::Data<AppState>>().ok_or_else(|| ApiError::server("there are no rules"))?;
    let access = &state.access;
    let host =
        text(request.headers(), &HOST)?.or_else(|| request.uri().authority().map(|authority| authority.as_str()));
    let is_local = request.conn_data::<ThroughUnixSocket>().is_some();
    if let Some(host) = host
        && !is_local
        && !access.hosts.allows(host)
    {
        let message =
            format!("this server isn't called `{}`; if it is, start it with --allow-host {0}", host.escape_debug());
        return Err(ApiError::forbidden(message, "host_not_allowed"));
    }
    if let Some(origin) = text(request.headers(), &ORIGIN)?
        && !access.origins.allows(origin, host)
    {
        let message =
            format!("pages of {} may not use this server; --allow-origin {0} allows them", origin.escape_debug());
        return Err(ApiError::forbidden(message, "origin_not_allowed"));
    }
    match access.client(request.request()) {
        Err(_) if is_open(request.path()) => {
            let address = request.peer_addr().map(|address| address.ip());
            Ok(Client::by_address(address, None, None))
        }
        found => found,
    }
}

/// A header's value; none that is no text is let through as if it weren't there.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<Option<&'a str>, ApiError> {
    let value = headers.get(name).map(HeaderValue::to_str).transpose();
    value.map_err(|_| ApiError::bad_request(format!("the header `{name}` must be visible ASCII")))
}

fn is_open(path: &str) -> bool {
    OPEN.contains(&path) || path.starts_with(OPEN_FOLDER)
}

/// As OpenAI's clients read them.
fn add_limits(headers: &mut HeaderMap, quota: &Quota) {
    let (requests, tokens) = quota.read();
    for (what, reading) in [("requests", requests), ("tokens", tokens)] {
        let Some(Reading { limit, remaining, full_in }) = reading else { continue };
        let reset = format!("{}s", full_in.as_secs_f64().ceil());
        for (name, value) in [("limit", limit.to_string()), ("remaining", remaining.to_string()), ("reset", reset)] {
            let name = HeaderName::try_from(format!("x-ratelimit-{name}-{what}"));
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                headers.insert(name, value);
            }
        }
    }
}
