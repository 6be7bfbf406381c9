//! OLMo 2 (Ai2 2024): norms on the outputs of attention and MLP instead of their inputs, and over whole rows of q and k.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{ModelConfig, NormPlacement, QkNorm};
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "olmo2",
    gguf: Some(GgufRecord {
        names: &["olmo2"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["olmo2"],
        required: &[],
        optional: &["attention_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults { rms_norm_eps: 1e-5, ..LLAMA_DEFAULTS };

fn common(mut config: ModelConfig) -> ModelConfig {
    config.norm_placement = NormPlacement::Post;
    config.qk_norm = QkNorm::Row;
    config
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    keys.decoder("olmo2", RopeStyle::Neox).map(common)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = common(keys.decoder("olmo2", &DEFAULTS)?);
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    Ok(config)
}
