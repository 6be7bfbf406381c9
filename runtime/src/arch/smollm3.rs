//! SmolLM3 (Hugging Face 2025): llama whose every fourth layer has no position embedding.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "smollm3",
    gguf: Some(GgufRecord {
        names: &["smollm3"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["smollm3"],
        required: &[],
        optional: &["attention_bias", "mlp_bias", "no_rope_layers"],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults =
    HfDefaults { num_kv_heads: Some(4), max_context: 32768, tied: true, theta: 2e6, ..LLAMA_DEFAULTS };

/// Of so many layers the last has no position embedding.
const INTERVAL: usize = 4;

/// The format has no key for the layers without rotation.
fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("smollm3", RopeStyle::Interleaved)?;
    for layer in config.layers.iter_mut().skip(INTERVAL - 1).step_by(INTERVAL) {
        layer.rope = None;
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("smollm3", &DEFAULTS)?;
    let num_layers = config.num_layers();
    let rotates = rotating_layers(keys, num_layers)?;
    let window = if keys.config.bool("use_sliding_window")?.unwrap_or(false) { keys.window(None)? } else { None };
    let windows = keys.windows(num_layers, window, |layer| window.is_some() && !rotates[layer])?;
    for ((layer, window), rotates) in config.layers.iter_mut().zip(windows).zip(rotates) {
        layer.window = window;
        layer.rope = rotates.then_some(0);
    }
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.mlp_bias = keys.bias("mlp_bias")?;
    Ok(config)
}

/// `no_rope_layers` has, against its name, 1 for the layers that rotate.
fn rotating_layers(keys: &HfKeys<'_>, num_layers: usize) -> Result<Vec<bool>> {
    let key = "no_rope_layers";
    let Some(value) = keys.config.get(key) else {
        let interval = keys.config.usize("no_rope_layer_interval")?.unwrap_or(INTERVAL);
        if interval == 0 {
            return keys.config.bad("no_rope_layer_interval", "at least 1", 0);
        }
        return Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(interval)).collect());
    };
    let flags = value.as_array().filter(|flags| flags.len() == num_layers);
    let flag = |value: &serde_json::Value| match value.as_u64() {
        Some(flag @ (0 | 1)) => Some(flag == 1),
        _ => value.as_bool(),
    };
    match flags.and_then(|flags| flags.iter().map(flag).collect::<Option<Vec<_>>>()) {
        Some(flags) => Ok(flags),
        None => keys.config.bad(key, &format!("{num_layers} flags"), value),
    }
}
