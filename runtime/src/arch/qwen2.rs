//! Qwen2 and Qwen2.5 (Yang et al. 2024): llama with biases on q, k and v.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{Bias, ModelConfig};
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "qwen2",
    gguf: Some(GgufRecord {
        names: &["qwen2"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["qwen2"],
        required: &[],
        optional: &["use_qkv_bias"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults { num_kv_heads: Some(32), max_context: 32768, ..LLAMA_DEFAULTS };

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("qwen2", RopeStyle::Neox)?;
    config.qkv_bias = Bias::Required;
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("qwen2", &DEFAULTS)?;
    config.qkv_bias = Bias::Required;
    set_windows(keys, &mut config)?;
    Ok(config)
}

/// Qwen's windows: off unless `use_sliding_window`, then on the layers that `layer_types` names, or without that list on
/// the layers from `max_window_layers` on.
pub(crate) fn set_windows(keys: &HfKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let on = keys.config.bool("use_sliding_window")?.unwrap_or(false);
    let window = if on { keys.window(Some(4096))? } else { None };
    let first = keys.config.usize("max_window_layers")?.unwrap_or(28);
    let windows = keys.windows(config.num_layers(), window, |layer| window.is_some() && layer >= first)?;
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.window = window;
    }
    Ok(())
}
