//! Llama (Touvron et al. 2023) and the many models that are published under its name: SmolLM2, TinyLlama, Yi, and in
//! GGUF also Mistral.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "llama",
    gguf: Some(GgufRecord {
        names: &["llama"],
        required: &[],
        optional: &["attention.sliding_window"],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["llama"],
        required: &[],
        optional: &["attention_bias", "mlp_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

/// The converter permutes the rows of q and k into adjacent pairs, and puts Llama 3's scaling into a tensor.
fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("llama", RopeStyle::Interleaved)?;
    for rope in &mut config.ropes {
        rope.factors = Some("rope_freqs.weight");
    }
    let window = keys.window()?;
    for layer in &mut config.layers {
        layer.window = window;
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("llama", &LLAMA_DEFAULTS)?;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = keys.bias("mlp_bias")?;
    Ok(config)
}
