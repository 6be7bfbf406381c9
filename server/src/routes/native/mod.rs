//! Shimmy's own endpoints, which belong to no other protocol.
//!
//! | module | resource |
//! |---|---|
//! | [`ready`] | `GET /ready` |
//! | [`diag`] | `GET /diag` |
//! | [`capabilities`] | `GET /v1/capabilities` |
//! | [`tokens`] | `POST /tokenize`, `/detokenize`, `/apply-template` |
//! | [`models`] | `GET /api/models`, `POST /api/models/discover`, `/api/models/{name}/load`, `/unload`, `GET …/status` |
//! | [`generate`] | a generation in Shimmy's own shape: `POST /api/generate`, and each request of a socket |
//! | [`socket`] | `GET /ws/generate` |

pub mod capabilities;
pub mod diag;
pub mod generate;
pub mod models;
pub mod ready;
pub mod socket;
pub mod tokens;

use actix_web::web;

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.configure(ready::config)
        .configure(diag::config)
        .configure(capabilities::config)
        .configure(tokens::config)
        .configure(models::config)
        .configure(socket::config);
}
