//! Mistral (Jiang et al. 2023): llama with a sliding window on every layer. Its GGUF files say `llama`.

use crate::arch::hf::{HfDefaults, HfKeys};
use crate::arch::hf_rope::{Partial, RopeDefaults};
use crate::arch::names;
use crate::arch::registry::{Architecture, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;
use crate::plan::{Act, RopeStyle};

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "mistral",
    gguf: None,
    hf: Some(HfRecord {
        model_types: &["mistral"],
        required: &[],
        optional: &[],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults {
    vocab_size: None,
    num_heads: None,
    num_kv_heads: Some(8),
    head_dim: None,
    max_context: 131_072,
    rms_norm_eps: 1e-6,
    act: ("hidden_act", Act::Silu),
    tied: false,
};

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let head_dim = keys.head_dim(&DEFAULTS)?;
    let rope = RopeDefaults { theta: 10000.0, head_dim, partial: Partial::Ignored, style: RopeStyle::Neox };
    let mut config = keys.decoder("mistral", &DEFAULTS, keys.rope(rope)?)?;
    // `null` means none; a file without the key has the class's default.
    let window =
        if keys.config.map.contains_key("sliding_window") { keys.config.usize("sliding_window")? } else { Some(4096) };
    for layer in &mut config.layers {
        layer.window = window;
    }
    Ok(config)
}
