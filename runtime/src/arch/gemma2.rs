//! Gemma 2 (Gemma team 2024): sandwich norms, local and global layers in turn, soft caps on scores and logits.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{ModelConfig, NormPlacement};
use crate::error::Result;
use crate::plan::{Act, RopeStyle};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma2",
    gguf: Some(GgufRecord {
        names: &["gemma2"],
        required: &[],
        optional: &[
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "attn_logit_softcapping",
            "final_logit_softcapping",
        ],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["gemma2"],
        required: &[],
        optional: &["attention_bias", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"],
        config: from_hf,
        tensors: &names::HF_SANDWICH,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults {
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_context: 8192,
    act: ("hidden_activation", Act::GeluTanh),
    tied: true,
    ..LLAMA_DEFAULTS
};

/// Of so many layers the last is global.
const PATTERN: usize = 2;
/// Window of the local layers, where the file doesn't say.
const WINDOW: usize = 4096;
/// Soft caps of scores and logits, where the file doesn't say.
const SOFTCAPS: (f32, f32) = (50.0, 30.0);

fn common(config: &mut ModelConfig, windows: impl IntoIterator<Item = Option<usize>>) {
    config.norm_placement = NormPlacement::Sandwich;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.window = window;
    }
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("gemma2", RopeStyle::Neox)?;
    let num_layers = config.num_layers();
    let window = keys.usize("attention.sliding_window")?.unwrap_or(WINDOW);
    let local = keys.local_layers(num_layers, PATTERN)?;
    common(&mut config, local.into_iter().map(|local| (local && window != 0).then_some(window)));
    config.act = Act::GeluTanh;
    let cap =
        |name, default| -> Result<Option<f32>> { Ok(keys.f32(name)?.or(Some(default)).filter(|&cap| cap != 0.0)) };
    config.attention_softcap = cap("attn_logit_softcapping", SOFTCAPS.0)?;
    config.logit_softcap = cap("final_logit_softcapping", SOFTCAPS.1)?;
    // The converter drops query_pre_attn_scalar, which differs from the head dimension only in the 27B model, known by its
    // 46 layers.
    if keys.f32("attention.scale")?.is_none() && num_layers == 46 {
        config.attention_scale = 1.0 / ((config.hidden_size / config.num_heads) as f32).sqrt();
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("gemma2", &DEFAULTS)?;
    let window = keys.window(Some(WINDOW))?;
    let sliding = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(PATTERN);
    let windows = keys.windows(config.num_layers(), window, sliding)?;
    common(&mut config, windows);
    config.norm.offset = 1.0;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.attention_scale = 1.0 / keys.config.f32("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    // `null` means none; a file without the key has the class's default.
    let cap = |key: &str, default| {
        if keys.config.map.contains_key(key) { keys.config.f32(key) } else { Ok(Some(default)) }
    };
    config.attention_softcap = cap("attn_logit_softcapping", SOFTCAPS.0)?;
    config.logit_softcap = cap("final_logit_softcapping", SOFTCAPS.1)?;
    Ok(config)
}
