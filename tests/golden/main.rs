//! Tests against the goldens folder: tiny models with exact outputs, real vocabularies, real chat templates.
//! They walk the folders that are there, never a list of names.

mod models;
#[path = "../support/mod.rs"]
mod support;
mod templates;
mod vocab;
