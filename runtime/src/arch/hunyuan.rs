//! Hunyuan (Tencent 2025), dense: norms on the heads of q and k after their rotation, and a rotary base that grows with a
//! fixed `alpha`.

use serde_json::Value;

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS, Object};
use crate::arch::hf_rope::RopeDefaults;
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{ModelConfig, QkNorm};
use crate::error::Result;
use crate::plan::{RopeSpec, RopeStyle};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "hunyuan_v1_dense",
    gguf: Some(GgufRecord {
        names: &["hunyuan-dense"],
        required: &[],
        optional: &[],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["hunyuan_v1_dense"],
        required: &[],
        optional: &["attention_bias"],
        config: from_hf,
        tensors: &names::HF_HUNYUAN,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults { rms_norm_eps: 1e-5, ..LLAMA_DEFAULTS };

/// The converter has multiplied `alpha` into the base.
fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("hunyuan_v1_dense", RopeStyle::Neox)?;
    config.qk_norm = QkNorm::HeadAfterRope;
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder_with_rope("hunyuan_v1_dense", &DEFAULTS, rope(keys)?)?;
    config.qk_norm = QkNorm::HeadAfterRope;
    config.qkv_bias = keys.bias("attention_bias")?;
    config.attention_output_bias = config.qkv_bias;
    Ok(config)
}

/// Checkpoints call the scaling `dynamic`, but `alpha` fixes the frequencies: the base is `theta · alpha^(d / (d − 2))`.
fn rope(keys: &HfKeys<'_>) -> Result<RopeSpec> {
    let head_dim = keys.head_dim(&DEFAULTS)?;
    let theta = keys.config.f32("rope_theta")?.unwrap_or(DEFAULTS.theta);
    let defaults = RopeDefaults { theta, head_dim, style: RopeStyle::Neox };
    let (map, path) = match keys.config.object("rope_scaling")? {
        Some(map) => (Some(map), "rope_scaling."),
        None => (keys.config.object("rope_parameters")?, "rope_parameters."),
    };
    let Some(map) = map else { return keys.rope(defaults) };
    let params = Object { map, path };
    let kind = params.str("rope_type")?.or(params.str("type")?);
    let alpha = params.f32("alpha")?.filter(|&alpha| alpha != 0.0);
    let (Some("dynamic"), Some(alpha)) = (kind, alpha) else { return keys.rope(defaults) };
    let mut plain = map.clone();
    plain.remove("alpha");
    plain.remove("type");
    plain.insert("rope_type".into(), Value::from("default"));
    let mut spec = keys.rope_from(Object { map: &plain, path }, None, defaults)?;
    let dim = spec.rotary_dim as f32;
    spec.base *= alpha.powf(dim / (dim - 2.0));
    Ok(spec)
}
