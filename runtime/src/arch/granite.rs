//! Granite 3 (IBM 2024), dense: llama with four multipliers.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "granite",
    gguf: Some(GgufRecord {
        names: &["granite"],
        required: &["logit_scale"],
        optional: &["embedding_scale", "residual_scale"],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["granite"],
        required: &[],
        optional: &[
            "attention_bias",
            "attention_multiplier",
            "embedding_multiplier",
            "logits_scaling",
            "mlp_bias",
            "residual_multiplier",
        ],
        config: from_hf,
        tensors: &names::HF,
    }),
};

/// Logits are divided by `logit_scale`; in the format 0 means "not set".
fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("granite", RopeStyle::Interleaved)?;
    let scale = |name| -> Result<f32> { Ok(keys.f32(name)?.filter(|&scale| scale != 0.0).unwrap_or(1.0)) };
    config.embedding_scale = scale("embedding_scale")?;
    config.residual_scale = scale("residual_scale")?;
    config.logit_scale = 1.0 / scale("logit_scale")?;
    for rope in &mut config.ropes {
        rope.factors = Some("rope_freqs.weight");
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("granite", &LLAMA_DEFAULTS)?;
    let multiplier = |key: &str| -> Result<f32> { Ok(keys.config.f32(key)?.unwrap_or(1.0)) };
    config.embedding_scale = multiplier("embedding_multiplier")?;
    config.attention_scale = multiplier("attention_multiplier")?;
    config.residual_scale = multiplier("residual_multiplier")?;
    config.logit_scale = 1.0 / multiplier("logits_scaling")?;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = keys.bias("mlp_bias")?;
    Ok(config)
}
