//! Rotary parameters of a Hugging Face configuration, in both key styles: `rope_theta` with `rope_scaling` as published
//! checkpoints have them, and `rope_parameters` of transformers 5, flat or nested by layer type.

use serde_json::Map;

use crate::arch::hf::{HfKeys, Object};
use crate::error::{Error, Result};
use crate::plan::rope::yarn_mscale;
use crate::plan::{RopeScaling, RopeSpec, RopeStyle};

/// Everything that any rope type reads; another key may change the maths.
const KNOWN: &[&str] = &[
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "factor",
    "finetuned",
    "high_freq_factor",
    "long_factor",
    "low_freq_factor",
    "mscale",
    "mscale_all_dim",
    "original_max_position_embeddings",
    "partial_rotary_factor",
    "rope_theta",
    "rope_type",
    "short_factor",
    "truncate",
    "type",
];

/// What a family brings to its rotary table.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RopeDefaults {
    /// Base where the file has none.
    pub(crate) theta: f32,
    /// Elements of a head.
    pub(crate) head_dim: usize,
    /// Pairing.
    pub(crate) style: RopeStyle,
}

impl HfKeys<'_> {
    /// The rotary table of a model that has one.
    pub(crate) fn rope(&self, defaults: RopeDefaults) -> Result<RopeSpec> {
        let empty = Map::new();
        // transformers takes `rope_scaling` first: it is only written by the older style.
        let params = if let Some(map) = self.config.object("rope_scaling")? {
            Object { map, path: "rope_scaling." }
        } else if let Some(map) = self.config.object("rope_parameters")? {
            if let Some(key) = ["full_attention", "sliding_attention"].iter().find(|&&key| map.contains_key(key)) {
                return Err(Error::Unsupported(format!(
                    "`rope_parameters.{key}`: this architecture has one rotary table for all layers"
                )));
            }
            Object { map, path: "rope_parameters." }
        } else {
            Object { map: &empty, path: "rope_parameters." }
        };
        let theta = self.config.f32("rope_theta")?.unwrap_or(defaults.theta);
        let original = self.config.usize("original_max_position_embeddings")?;
        self.rope_from(params, original, RopeDefaults { theta, ..defaults })
    }

    /// A rotary table from one object of parameters. `original` overrules the object's own trained context.
    pub(crate) fn rope_from(
        &self,
        params: Object<'_>,
        original: Option<usize>,
        defaults: RopeDefaults,
    ) -> Result<RopeSpec> {
        for (key, value) in params.map {
            if !KNOWN.contains(&key.as_str()) && !value.is_null() {
                return Err(Error::Unsupported(format!("`{}{key}` = {value}", params.path)));
            }
        }
        let require = |key: &str| params.f32(key)?.ok_or_else(|| params.missing(key));
        let context = || -> Result<usize> {
            let key = "max_position_embeddings";
            self.config.usize(key)?.ok_or_else(|| self.config.missing(key))
        };
        let original_context = || -> Result<usize> {
            match original.or(params.usize("original_max_position_embeddings")?) {
                Some(tokens) => Ok(tokens),
                None => context(),
            }
        };
        let kind = params.str("rope_type")?.or(params.str("type")?).unwrap_or("default");
        let scaling = match kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: require("factor")? },
            "dynamic" => RopeScaling::Dynamic { factor: require("factor")?, original_context: context()? },
            "yarn" => {
                let original_context = original_context()?;
                let factor = match params.f32("factor")? {
                    Some(factor) => factor,
                    None => context()? as f32 / original_context as f32,
                };
                let attention_factor = match params.f32("attention_factor")? {
                    Some(factor) => Some(factor),
                    None => match (params.f32("mscale")?, params.f32("mscale_all_dim")?) {
                        (Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
                            Some(yarn_mscale(factor, mscale) / yarn_mscale(factor, all))
                        }
                        _ => None,
                    },
                };
                RopeScaling::Yarn {
                    factor,
                    original_context,
                    beta_fast: params.f32("beta_fast")?.filter(|&beta| beta != 0.0).unwrap_or(32.0),
                    beta_slow: params.f32("beta_slow")?.filter(|&beta| beta != 0.0).unwrap_or(1.0),
                    attention_factor,
                    truncate: params.bool("truncate")?.unwrap_or(true),
                }
            }
            "llama3" => RopeScaling::Llama3 {
                factor: require("factor")?,
                low_freq_factor: require("low_freq_factor")?,
                high_freq_factor: require("high_freq_factor")?,
                original_context: original_context()?,
            },
            other => {
                return Err(Error::Unsupported(format!(
                    "rope type `{other}` in `{}rope_type` (known: default, linear, dynamic, yarn, llama3)",
                    params.path
                )));
            }
        };
        // The reference implementations of these families rotate heads whole and don't look at the key.
        let partial = match params.f32("partial_rotary_factor")? {
            Some(factor) => Some(factor),
            None => self.config.f32("partial_rotary_factor")?,
        };
        if let Some(factor) = partial.filter(|&factor| factor != 1.0) {
            if scaling != RopeScaling::None {
                return Err(Error::Unsupported(format!("partial_rotary_factor = {factor} with rope type `{kind}`")));
            }
            tracing::warn!("partial_rotary_factor = {factor} has no effect in this architecture: heads rotate whole");
        }
        let base = params.f32("rope_theta")?.unwrap_or(defaults.theta);
        Ok(RopeSpec { rotary_dim: defaults.head_dim, style: defaults.style, base, scaling })
    }
}
