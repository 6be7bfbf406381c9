//! Seed-OSS (ByteDance 2025): llama with biases on q, k and v and an explicit head dimension.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{Bias, ModelConfig};
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "seed_oss",
    gguf: Some(GgufRecord {
        names: &["seed_oss"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF_SEED_OSS,
    }),
    hf: Some(HfRecord {
        model_types: &["seed_oss"],
        required: &[],
        optional: &["attention_bias", "attention_out_bias", "mlp_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults =
    HfDefaults { num_kv_heads: Some(8), head_dim: Some(128), max_context: 524_288, ..LLAMA_DEFAULTS };

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    keys.decoder("seed_oss", RopeStyle::Neox)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("seed_oss", &DEFAULTS)?;
    let has_bias = keys.config.bool("attention_bias")?.unwrap_or(true);
    config.qkv_bias = if has_bias { Bias::Required } else { Bias::None };
    config.attention_output_bias = keys.bias("attention_out_bias")?;
    config.mlp_bias = keys.bias("mlp_bias")?;
    Ok(config)
}
