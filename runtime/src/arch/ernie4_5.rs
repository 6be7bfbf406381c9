//! ERNIE 4.5 (Baidu 2025), dense: llama that rotates adjacent pairs in every format.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "ernie4_5",
    gguf: Some(GgufRecord {
        names: &["ernie4_5"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["ernie4_5"],
        required: &[],
        optional: &["use_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults {
    num_kv_heads: Some(2),
    head_dim: Some(128),
    max_context: 131_072,
    rms_norm_eps: 1e-5,
    tied: true,
    theta: 500_000.0,
    ..LLAMA_DEFAULTS
};

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    keys.decoder("ernie4_5", RopeStyle::Interleaved)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("ernie4_5", &DEFAULTS)?;
    for rope in &mut config.ropes {
        rope.spec.style = RopeStyle::Interleaved;
    }
    config.qkv_bias = keys.bias("use_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = config.qkv_bias;
    Ok(config)
}
