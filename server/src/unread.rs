//! Bodies that are answered before they were read. The HTTP library reads the rest of a chunked body that its handler let go
//! of for as long as it comes, without a clock: a client could hold its connection so for ever. While somebody still has the
//! body, it gives up on it a moment after the answer and closes the connection, as it does with bodies of known length.

use std::cell::RefCell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_web::body::MessageBody;
use actix_web::dev::{Payload, ServiceRequest, ServiceResponse};
use actix_web::error::PayloadError;
use actix_web::middleware::Next;
use actix_web::web::Bytes;
use actix_web::{Error, HttpMessage};
use futures_core::Stream;

/// The library closes the connection a second after the answer.
const HOLD: Duration = Duration::from_secs(3);

struct Body {
    payload: Payload,
    has_ended: bool,
}

/// Holds bodies until they have been answered.
///
/// # Errors
/// Those of what comes after it.
pub async fn hold(
    mut request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let body = Hold::on(&mut request);
    let response = next.call(request).await?;
    if let Some(body) = body {
        body.let_go();
    }
    Ok(response)
}

/// A second hold on a request's body.
struct Hold(Rc<RefCell<Body>>);

impl Hold {
    /// Holds the body of a request that is chunked.
    fn on(request: &mut ServiceRequest) -> Option<Self> {
        // An encoding that can't be read is the handler's to refuse, or was refused already.
        if !request.chunked().unwrap_or(false) {
            return None;
        }
        let body = Rc::new(RefCell::new(Body { payload: request.take_payload(), has_ended: false }));
        request.set_payload(Payload::Stream { payload: Box::pin(Shared(Rc::clone(&body))) });
        Some(Self(body))
    }

    /// The answer is on its way. Is the body read or broken, nothing is held.
    fn let_go(self) {
        if !self.0.borrow().has_ended {
            actix_web::rt::spawn(async move {
                tokio::time::sleep(HOLD).await;
                drop(self);
            });
        }
    }
}

/// The handler's hold.
struct Shared(Rc<RefCell<Body>>);

impl Stream for Shared {
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let mut body = self.0.borrow_mut();
        let next = Pin::new(&mut body.payload).poll_next(context);
        body.has_ended |= matches!(next, Poll::Ready(None | Some(Err(_))));
        next
    }
}
