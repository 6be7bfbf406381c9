//! What answers look like, for the document. Most are written field by field where they are made; these structs describe
//! them and are never filled. A test asks for each of them and finds nothing missing and nothing that isn't described.
//!
//! | module | whose |
//! |---|---|
//! | [`openai`] | chat, completions, lists of models |
//! | [`responses`] | responses and their events |
//! | [`anthropic`] | messages and their events |
//! | [`ollama`] | `/api/…` |
//! | [`native`] | Shimmy's own |
//! | [`reports`] | `/diag` and `/v1/capabilities` |

pub(in crate::routes::openapi) mod anthropic;
pub(in crate::routes::openapi) mod native;
pub(in crate::routes::openapi) mod ollama;
pub(in crate::routes::openapi) mod openai;
pub(in crate::routes::openapi) mod reports;
pub(in crate::routes::openapi) mod responses;
