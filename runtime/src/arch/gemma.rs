//! Gemma (Gemma team 2024): GELU, scaled embeddings, norms whose checkpoints store `w − 1`.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::{Act, RopeStyle};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma",
    gguf: Some(GgufRecord {
        names: &["gemma"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["gemma"],
        required: &[],
        optional: &["attention_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults {
    num_kv_heads: Some(16),
    head_dim: Some(256),
    max_context: 8192,
    act: ("hidden_act", Act::GeluTanh),
    tied: true,
    ..LLAMA_DEFAULTS
};

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("gemma", RopeStyle::Neox)?;
    config.act = Act::GeluTanh;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("gemma", &DEFAULTS)?;
    // The first checkpoints say `gelu` and mean the approximation, which is what they were trained with.
    if config.act == Act::Gelu {
        config.act = Act::GeluTanh;
    }
    config.norm.offset = 1.0;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    Ok(config)
}
