//! Gemma 3's text decoder (Gemma team 2025): sandwich norms, q/k norms, five local layers to one global one with a rotary
//! table each, GELU, scaled embeddings. Multimodal files (`gemma3` with a `text_config`) run their text part.

use serde_json::Map;

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, Object};
use crate::arch::hf_rope::RopeDefaults;
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{LayerConfig, ModelConfig, NormPlacement, QkNorm, RopeConfig};
use crate::error::{Error, Result};
use crate::plan::{Act, RopeScaling, RopeSpec, RopeStyle};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "gemma3",
    gguf: Some(GgufRecord {
        names: &["gemma3"],
        required: &["rope.freq_base"],
        optional: &[
            "attention.key_length_swa",
            "attention.sliding_window",
            "attention.sliding_window_pattern",
            "attention.value_length_swa",
            "final_logit_softcapping",
            "rope.dimension_count_swa",
            "rope.freq_base_swa",
        ],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["gemma3_text", "gemma3"],
        required: &[],
        optional: &[
            "attention_bias",
            "attn_logit_softcapping",
            "final_logit_softcapping",
            "query_pre_attn_scalar",
            "rope_local_base_freq",
        ],
        config: from_hf,
        tensors: &names::HF_SANDWICH,
    }),
};

/// Multimodal checkpoints leave out whatever equals the class's defaults.
const DEFAULTS: HfDefaults = HfDefaults {
    vocab_size: Some(262_208),
    num_heads: Some(8),
    num_kv_heads: Some(4),
    head_dim: Some(256),
    max_context: 131_072,
    rms_norm_eps: 1e-6,
    act: ("hidden_activation", Act::GeluTanh),
    tied: true,
    theta: 1e6,
};

/// Of so many layers the last is global, where the file doesn't say.
const PATTERN: usize = 6;
/// Rotary base of the local layers, where the file doesn't say.
const LOCAL_THETA: f32 = 10000.0;
/// Index of the global and the local rotary table.
const GLOBAL: usize = 0;
const LOCAL: usize = 1;

fn common(config: &mut ModelConfig, windows: &[Option<usize>], local: RopeSpec) {
    config.norm_placement = NormPlacement::Sandwich;
    config.qk_norm = QkNorm::Head;
    config.embedding_scale = (config.hidden_size as f32).sqrt();
    config.ropes.push(RopeConfig { spec: local, factors: None });
    config.layers = windows
        .iter()
        .map(|&window| LayerConfig { window, rope: Some(if window.is_some() { LOCAL } else { GLOBAL }) })
        .collect();
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("gemma3", RopeStyle::Neox)?;
    for (name, whole) in [
        ("attention.key_length_swa", config.head_dim),
        ("attention.value_length_swa", config.v_head_dim),
        ("rope.dimension_count_swa", config.ropes[GLOBAL].spec.rotary_dim),
    ] {
        if let Some(local) = keys.usize(name)?
            && local != whole
        {
            return keys.bad(name, &format!("{whole}, as in global layers"), local);
        }
    }
    let num_layers = config.num_layers();
    let window = keys.window()?;
    let local = keys.local_layers(num_layers, PATTERN)?;
    let windows: Vec<_> = local.iter().map(|&local| if local { window } else { None }).collect();
    let spec = RopeSpec {
        base: keys.f32("rope.freq_base_swa")?.unwrap_or(LOCAL_THETA),
        scaling: RopeScaling::None,
        ..config.ropes[GLOBAL].spec.clone()
    };
    common(&mut config, &windows, spec);
    config.act = Act::GeluTanh;
    config.logit_softcap = keys.f32("final_logit_softcapping")?.filter(|&cap| cap != 0.0);
    // The converter adds the 1 to the norms. It drops query_pre_attn_scalar, which differs from the head dimension only in
    // the 27B model, known by its 62 layers.
    if keys.f32("attention.scale")?.is_none() && num_layers == 62 {
        config.attention_scale = 1.0 / ((config.hidden_size / config.num_heads) as f32).sqrt();
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let head_dim = keys.head_dim(&DEFAULTS)?;
    let (global, local) = ropes(keys, head_dim)?;
    let mut config = keys.decoder_with_rope("gemma3", &DEFAULTS, global)?;
    let window = keys.window(Some(4096))?;
    let period = keys.config.usize("sliding_window_pattern")?.unwrap_or(PATTERN);
    if period == 0 {
        return keys.config.bad("sliding_window_pattern", "at least 1", 0);
    }
    let windows =
        keys.windows(config.num_layers(), window, |layer| window.is_some() && !(layer + 1).is_multiple_of(period))?;
    common(&mut config, &windows, local);
    config.norm.offset = 1.0;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    config.attention_scale = 1.0 / keys.config.f32("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt();
    config.logit_softcap = keys.config.f32("final_logit_softcapping")?;
    if let Some(cap) = keys.config.f32("attn_logit_softcapping")? {
        tracing::warn!("attn_logit_softcapping = {cap} has no effect in gemma3: its reference doesn't apply it");
    }
    Ok(config)
}

/// The global and the local rotary table.
fn ropes(keys: &HfKeys<'_>, head_dim: usize) -> Result<(RopeSpec, RopeSpec)> {
    let config = &keys.config;
    let empty = Map::new();
    let of = |key: &'static str, path: &'static str| -> Result<Object<'_>> {
        let Some(nested) = config.object("rope_parameters")? else { return Ok(Object { map: &empty, path }) };
        if !nested.contains_key("full_attention") && !nested.contains_key("sliding_attention") {
            return Err(Error::BadMetadata {
                key: "rope_parameters".into(),
                expected: "parameters for `full_attention` and `sliding_attention`".into(),
                got: format!("the keys {:?}", nested.keys().collect::<Vec<_>>()),
            });
        }
        let nested = Object { map: nested, path: "rope_parameters." };
        Ok(Object { map: nested.object(key)?.unwrap_or(&empty), path })
    };
    let defaults = |theta| RopeDefaults { theta, head_dim, style: RopeStyle::Neox };
    let global = match config.object("rope_scaling")? {
        Some(map) => Object { map, path: "rope_scaling." },
        None => of("full_attention", "rope_parameters.full_attention.")?,
    };
    let global = keys.rope_from(global, None, defaults(config.f32("rope_theta")?.unwrap_or(DEFAULTS.theta)))?;
    let local = of("sliding_attention", "rope_parameters.sliding_attention.")?;
    let theta = config.f32("rope_local_base_freq")?.unwrap_or(LOCAL_THETA);
    let local = keys.rope_from(local, None, defaults(theta))?;
    Ok((global, local))
}
