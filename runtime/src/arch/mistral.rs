//! Mistral (Jiang et al. 2023): llama with a sliding window on every layer. Its GGUF files say `llama`.

use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, HfRecord};
use crate::config::ModelConfig;
use crate::error::Result;

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

const DEFAULTS: HfDefaults = HfDefaults { num_kv_heads: Some(8), max_context: 131_072, ..LLAMA_DEFAULTS };

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("mistral", &DEFAULTS)?;
    let window = keys.window(Some(4096))?;
    for layer in &mut config.layers {
        layer.window = window;
    }
    Ok(config)
}
