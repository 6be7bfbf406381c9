//! The Responses API: `/v1/responses`, an answer that the server can keep, so that the next request need not repeat what was said.
//!
//! | module | what lives there |
//! |---|---|
//! | [`create`] | `POST /v1/responses` |
//! | [`background`] | responses that run on without their client |
//! | [`kept`] | `/v1/responses/{id}`: show, delete, list its input, cancel |
//! | [`request`], [`items`] | a request's body and its conversation, checked |
//! | [`object`] | a response as JSON |
//! | [`events`] | a streamed response |
//! | [`store`] | kept responses, bounded in number, bytes and age |

pub mod background;
pub mod create;
pub mod events;
pub mod items;
pub mod kept;
pub mod object;
pub mod request;
pub mod store;

use actix_web::http::Method;
use actix_web::web;

use crate::routes::{resource, resource_of};

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/v1/responses", Method::POST, web::route().to(create::create)))
        .service(resource_of(
            "/v1/responses/{id}",
            [(Method::GET, web::route().to(kept::show)), (Method::DELETE, web::route().to(kept::delete))],
        ))
        .service(resource("/v1/responses/{id}/input_items", Method::GET, web::route().to(kept::input_items)))
        .service(resource("/v1/responses/{id}/cancel", Method::POST, web::route().to(kept::cancel)));
}
