//! A request's body: read within limits of size and time, and of what all bodies that are on their way take together.

use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes, BytesMut};
use actix_web::{HttpMessage, HttpRequest};
use futures_core::Stream;
use tokio::time::{Instant, timeout_at};

use crate::access_log::{AccessLog, LoggedBody};
use crate::app::AppState;
use crate::error::ApiError;

/// Reserved for a body before any of it has come, whatever length was announced.
const FIRST_BODY_BYTES: usize = 64 << 10;
/// A body that comes this fast has all the time that it needs.
const LEAST_BODY_BYTES_PER_SECOND: f64 = 32.0 * 1024.0;

/// Bytes of all bodies that are on their way. A body may be slow: without a bound on all of them, a thousand clients that
/// each stop before the end of theirs would fill the memory.
#[derive(Debug, Default)]
pub struct Bodies(AtomicUsize);

/// What one of them has of it; given back when dropped.
struct Share<'a> {
    all: &'a Bodies,
    bytes: usize,
}

impl Share<'_> {
    fn grow(&mut self, bytes: usize, limit: usize) -> Result<(), ApiError> {
        let before = self.all.0.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        if before.saturating_add(bytes) > limit {
            let message = "the bodies of all requests take too much memory at once; send this one again in a moment";
            return Err(ApiError::unavailable(message, "too_many_bodies"));
        }
        Ok(())
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        self.all.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// Reads a request's body.
///
/// # Errors
/// 413 when it is larger than `limit` bytes, 400 when it breaks off, 408 when it takes longer than [`Limits::body`] allows, 503
/// when all bodies together take too much memory.
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
    let state = request.app_data::<web::Data<AppState>>().ok_or_else(|| ApiError::server("there are no limits"))?;
    let limits = state.limits;
    let mut share = Share { all: &state.bodies, bytes: 0 };
    let start = Instant::now();
    let mut body = BytesMut::with_capacity(length.unwrap_or(0).min(FIRST_BODY_BYTES));
    loop {
        let chunk = std::future::poll_fn(|cx| Pin::new(&mut payload).poll_next(cx));
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
        share.grow(chunk.len(), limits.all_bodies_bytes.max(limit))?;
        body.extend_from_slice(&chunk);
    }
    let body = body.freeze();
    if state.access_log.as_ref().is_some_and(AccessLog::wants_bodies) {
        request.extensions_mut().insert(LoggedBody(body.clone()));
    }
    Ok(body)
}
