//! Architectures: a file's metadata becomes a [`ModelConfig`](crate::config::ModelConfig), and that and the tensor
//! names become a [`Plan`](crate::plan::Plan).
//!
//! | module | what lives there |
//! |---|---|
//! | [`registry`] | one record an architecture: names, metadata it reads, tensor names; `load` |
//! | `llama`, `mistral`, `qwen2`, `qwen3`, `gemma3` … | one family each: what of it differs from the common reading |
//! | `decoder` | the plan builder that all llama-like decoders share |
//! | `names` | tensor names of the two formats |
//! | `gguf`, `hf` | typed reading of the two kinds of metadata, and what every family reads alike |

mod decoder;
mod ernie4_5;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod gguf;
mod granite;
mod hf;
mod hf_rope;
mod hunyuan;
mod llama;
mod mistral;
mod names;
mod olmo2;
mod qwen2;
mod qwen3;
pub mod registry;
mod seed_oss;
mod smollm3;
#[cfg(test)]
mod tests;

pub use registry::{load, supported};
