//! The handshake of `GET /ws/generate`.

use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;

use actix_web::error::PayloadError;
use actix_web::http::header::{CONNECTION, HeaderValue, UPGRADE};
use actix_web::http::{Method, StatusCode};
use actix_web::web::Bytes;
use actix_web::{FromRequest, HttpRequest, HttpResponse, ResponseError, dev, web};
use futures_core::Stream;

use super::conversation::Conversation;
use super::guard::Guard;
use super::limits::max_message_bytes;
use crate::access::handshake::{PROTOCOL, offers_only_a_key};
use crate::app::{AppState, Phase};
use crate::error::ApiError;
use crate::routes::request::begin::client_of;
use crate::routes::resource;

type BoxedPayloadStream = Pin<Box<dyn Stream<Item = Result<Bytes, PayloadError>>>>;

/// Registers the resource.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/ws/generate", Method::GET, web::route().to(connect)));
}

async fn connect(
    state: web::Data<AppState>,
    request: HttpRequest,
    payload: web::Payload,
) -> Result<HttpResponse, ApiError> {
    if state.phase() == Phase::Draining {
        return Err(ApiError::unavailable("the server is shutting down", "shutting_down"));
    }
    if offers_only_a_key(request.headers()) {
        let message = "offer the protocol `shimmy` beside the key: a key is never answered, and browsers give up on a socket \
                       that answers none of the protocols that they offered";
        return Err(ApiError { code: Some("protocol_missing"), ..ApiError::bad_request(message) });
    }
    let most = max_message_bytes(state.limits.max_body_bytes);
    let broken = Rc::new(Cell::new(None));
    let guard = Guard::new(payload.into_inner(), most, Rc::clone(&broken));
    let guard: BoxedPayloadStream = Box::pin(guard);
    let mut guarded = dev::Payload::Stream { payload: guard };
    let failed = |_| ApiError::server("the connection can't be read");
    let payload = web::Payload::from_request(&request, &mut guarded).await.map_err(failed)?;
    let Ok((response, session, stream)) = actix_ws::handle_with_protocols(&request, payload, &[PROTOCOL]) else {
        return Ok(expects_a_websocket());
    };
    let stream = stream.max_frame_size(most).aggregate_continuations().max_continuation_size(most);
    let conversation = Conversation::new(state, client_of(&request)?, session, broken);
    actix_web::rt::spawn(conversation.run(stream));
    Ok(response)
}

/// 426 for those who speak plain HTTP, or another version of the protocol.
fn expects_a_websocket() -> HttpResponse {
    let message = "this is a WebSocket: connect to ws://HOST:PORT/ws/generate with version 13 of the protocol, and send a \
                   request as a text message";
    let error = ApiError {
        status: StatusCode::UPGRADE_REQUIRED,
        code: Some("websocket_expected"),
        ..ApiError::bad_request(message)
    };
    let mut response = error.error_response();
    response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
    response
}
