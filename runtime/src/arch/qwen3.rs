//! Qwen3 (Yang et al. 2025), dense: norms on the heads of q and k, no biases, explicit head dimension. Also the
//! embedding models made from it, whose tensors have no `model.` in front.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::arch::{names, qwen2};
use crate::config::{ModelConfig, QkNorm};
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen3",
    gguf: Some(GgufRecord {
        names: &["qwen3"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["qwen3"],
        required: &[],
        optional: &["attention_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults =
    HfDefaults { num_kv_heads: Some(32), head_dim: Some(128), max_context: 32768, ..LLAMA_DEFAULTS };

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("qwen3", RopeStyle::Neox)?;
    config.qk_norm = QkNorm::Head;
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("qwen3", &DEFAULTS)?;
    config.qk_norm = QkNorm::Head;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    qwen2::set_windows(keys, &mut config)?;
    Ok(config)
}
