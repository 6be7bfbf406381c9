//! Ollama's protocol, `/api/…`: streams are lines of JSON, and on unless a request says otherwise; times are nanoseconds.
//!
//! | module | what lives there |
//! |---|---|
//! | [`generate`] | `POST /api/chat` and `/api/generate`: answers, loading and unloading |
//! | [`embed`] | `POST /api/embed` and `/api/embeddings` |
//! | [`options`] | the `options` of a request, `keep_alive` |
//! | [`lines`] | what is sent back |
//! | [`models`] | `GET /api/tags`, `/api/ps`, `/api/version`, `POST /api/show` |
//! | [`details`] | what a model's file says of itself, kept so that a list needn't open every file each time |

pub mod details;
pub mod embed;
pub mod generate;
pub mod lines;
pub mod models;
pub mod options;

use actix_web::http::Method;
use actix_web::{HttpResponse, web};

use crate::routes::resource;

/// Registers the resources.
pub fn config(cfg: &mut web::ServiceConfig) {
    cfg.service(resource("/api/chat", Method::POST, web::route().to(generate::chat)))
        .service(resource("/api/generate", Method::POST, web::route().to(generate::generate)))
        .service(resource("/api/embed", Method::POST, web::route().to(embed::new)))
        .service(resource("/api/embeddings", Method::POST, web::route().to(embed::old)))
        .service(resource("/api/tags", Method::GET, web::route().to(models::tags)))
        .service(resource("/api/ps", Method::GET, web::route().to(models::ps)))
        .service(resource("/api/version", Method::GET, web::route().to(models::version)))
        .service(resource("/api/show", Method::POST, web::route().to(models::show)));
}

/// By this answer at `/` clients find out whether a server is there.
pub fn hello() -> HttpResponse {
    HttpResponse::Ok().content_type("text/plain; charset=utf-8").body("Ollama is running")
}
