//! Rotary position embeddings: frequencies and their scalings (linear, dynamic NTK, YaRN, Llama 3), as numbers.

use crate::plan::op::WeightId;

/// Which elements of a head form a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// `(x[i], x[i + rotary_dim / 2])`: GPT-NeoX and everything in Hugging Face's layout.
    Neox,
    /// `(x[2i], x[2i + 1])`: the original; llama-architecture GGUF files.
    Interleaved,
}

/// How the frequencies change for contexts beyond the trained one.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Positions divided by `factor`.
    Linear {
        /// At least 1.
        factor: f32,
    },
    /// Dynamic NTK: the base grows with the number of known tokens beyond `original_context`.
    Dynamic {
        /// At least 1.
        factor: f32,
        /// Trained positions.
        original_context: usize,
    },
    /// YaRN (Peng et al. 2023).
    Yarn {
        /// At least 1.
        factor: f32,
        /// Trained positions.
        original_context: usize,
        /// Rotations above which a dimension is left alone (32).
        beta_fast: f32,
        /// Rotations below which a dimension is interpolated (1).
        beta_slow: f32,
        /// Factor on cos and sin; `None`: `0.1 · ln(factor) + 1`.
        attention_factor: Option<f32>,
        /// Whether the ramp's ends are rounded to whole dimensions.
        truncate: bool,
    },
    /// Llama 3.1: wavelengths between the two bounds are blended.
    Llama3 {
        /// At least 1.
        factor: f32,
        /// Lower bound in rotations.
        low_freq_factor: f32,
        /// Upper bound in rotations.
        high_freq_factor: f32,
        /// Trained positions.
        original_context: usize,
    },
    /// Each frequency divided by an entry of an f32 tensor of the file (`rope_freqs.weight` of GGUF).
    Factors {
        /// `[rotary_dim / 2]`.
        weight: WeightId,
    },
}

/// One rotary table.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeSpec {
    /// Elements of a head that rotate; even.
    pub rotary_dim: usize,
    /// Pairing.
    pub style: RopeStyle,
    /// Theta.
    pub base: f32,
    /// Scaling.
    pub scaling: RopeScaling,
}
