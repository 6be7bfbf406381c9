//! OpenAI's protocol.
//!
//! | module | what lives there |
//! |---|---|
//! | [`chat`] | `POST /v1/chat/completions` |
//! | [`completions`] | `POST /v1/completions` |
//! | [`responses`] | `/v1/responses` |
//! | [`embeddings`] | `POST /v1/embeddings` |
//! | [`rerank`] | `POST /v1/rerank` |
//! | [`models`] | `GET /v1/models`, `GET /v1/models/{id}` |
//! | [`messages`], [`sampling`] | a request's body, taken apart and checked |
//! | [`types`], [`stream`] | what is sent back |

pub mod chat;
pub mod completions;
pub mod embeddings;
pub mod messages;
pub mod models;
pub mod rerank;
pub mod responses;
pub mod sampling;
pub mod stream;
pub mod types;

use actix_web::web;

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.configure(chat::config)
        .configure(completions::config)
        .configure(responses::config)
        .configure(embeddings::config)
        .configure(rerank::config)
        .configure(models::config);
}
