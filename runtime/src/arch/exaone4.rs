//! EXAONE 4 (LG AI Research 2025): norms on outputs, q/k norms a head; where there are local layers, only those rotate.

use crate::arch::gguf::GgufKeys;
use crate::arch::hf::{HfDefaults, HfKeys, LLAMA_DEFAULTS};
use crate::arch::names;
use crate::arch::registry::{Architecture, GgufRecord, HfRecord};
use crate::config::{ModelConfig, NormPlacement, QkNorm};
use crate::error::Result;
use crate::plan::RopeStyle;

pub(crate) const ARCHITECTURE: Architecture = Architecture {
    name: "exaone4",
    gguf: Some(GgufRecord {
        names: &["exaone4"],
        required: &[],
        optional: &["attention.sliding_window", "attention.sliding_window_pattern"],
        config: from_gguf,
        tensors: &names::GGUF,
    }),
    hf: Some(HfRecord {
        model_types: &["exaone4"],
        required: &[],
        optional: &[],
        config: from_hf,
        tensors: &names::HF,
    }),
};

const DEFAULTS: HfDefaults = HfDefaults { num_kv_heads: Some(32), rms_norm_eps: 1e-5, ..LLAMA_DEFAULTS };

/// Of so many layers the last is global, where the file doesn't say.
const PATTERN: usize = 4;

fn common(config: &mut ModelConfig, windows: Vec<Option<usize>>, has_window: bool) {
    config.norm_placement = NormPlacement::Post;
    config.qk_norm = QkNorm::Head;
    for (layer, window) in config.layers.iter_mut().zip(windows) {
        layer.window = window;
        layer.rope = (!has_window || window.is_some()).then_some(0);
    }
}

fn from_gguf(keys: &GgufKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("exaone4", RopeStyle::Neox)?;
    let window = keys.window()?;
    let local = keys.local_layers(config.num_layers(), PATTERN)?;
    let windows = local.into_iter().map(|local| window.filter(|_| local)).collect();
    common(&mut config, windows, window.is_some());
    for rope in &mut config.ropes {
        rope.factors = Some("rope_freqs.weight");
    }
    Ok(config)
}

fn from_hf(keys: &HfKeys<'_>) -> Result<ModelConfig> {
    let mut config = keys.decoder("exaone4", &DEFAULTS)?;
    let window = keys.window(Some(4096))?;
    // Files with a list of layer types may have a pattern of letters here, which nothing needs then.
    let period = if keys.config.get("layer_types").is_some() {
        PATTERN
    } else {
        keys.config.usize("sliding_window_pattern")?.unwrap_or(PATTERN)
    };
    if window.is_some() && period == 0 {
        return keys.config.bad("sliding_window_pattern", "at least 1", 0);
    }
    let sliding = |layer: usize| window.is_some() && !(layer + 1).is_multiple_of(period);
    let windows = keys.windows(config.num_layers(), window, sliding)?;
    common(&mut config, windows, window.is_some());
    Ok(config)
}
