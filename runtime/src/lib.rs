//! The inference engine of Shimmy: a model file becomes a plan, an executor runs the plan, the engine feeds the
//! executor with steps and turns logits into text. Nothing here knows HTTP.
//!
//! ```text
//! bytes ─loader→ ModelFile ─arch→ Plan ─exec→ logits ─sample→ token ─text→ text
//!                                        ↑ engine: one thread a model, batches of mixed lengths
//! ```

pub mod arch;
pub mod config;
pub mod engine;
pub mod error;
pub mod exec;
pub mod kv;
pub mod loader;
pub mod measure;
pub mod models;
pub mod plan;
pub mod sample;
pub mod sched;
pub mod text;

pub use error::{Error, Result};
