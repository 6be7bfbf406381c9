//! Rotary position embeddings: frequencies and their scalings (linear, dynamic NTK, YaRN, Llama 3), as numbers.
//!
//! Every executor takes its tables from here, so that all of them rotate by the same f32 angles: frequencies and
//! angles are computed in f32 like the reference implementation does, since a long context multiplies any difference.

use shimmy_kernels::quant::QuantType;

use crate::error::{Error, Result};
use crate::plan::op::{Weight, WeightId};

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

/// YaRN's temperature on the attention scores as a factor on cos and sin: `0.1 · mscale · ln(scale) + 1`.
pub fn yarn_mscale(scale: f32, mscale: f32) -> f32 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}

/// The dimension whose wavelength makes `rotations` turns in `context` positions (YaRN, equation 17's inverse).
fn yarn_dimension(rotations: f64, dim: usize, base: f64, context: usize) -> f64 {
    dim as f64 * (context as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
}

/// `cos[i]` and `sin[i]` of the angle `position · inv_freq[i]`, times `factor`. All slices are `rotary_dim / 2` long.
pub fn fill_cos_sin(inv_freq: &[f32], factor: f32, position: usize, cos: &mut [f32], sin: &mut [f32]) {
    let position = position as f32;
    for ((&freq, cos), sin) in inv_freq.iter().zip(cos).zip(sin) {
        let (s, c) = (position * freq).sin_cos();
        *cos = c * factor;
        *sin = s * factor;
    }
}

impl RopeSpec {
    /// The angular frequencies, `rotary_dim / 2` of them, for a sequence with `num_tokens` known tokens. Only
    /// [`RopeScaling::Dynamic`] depends on `num_tokens`; `weights` are the plan's.
    ///
    /// # Errors
    /// [`Error::TensorShape`] when the tensor of factors doesn't fit.
    pub fn inv_freq(&self, num_tokens: usize, weights: &[Weight]) -> Result<Vec<f32>> {
        let dim = self.rotary_dim;
        let plain =
            |base: f32| (0..dim / 2).map(|i| 1.0 / base.powf((2 * i) as f32 / dim as f32)).collect::<Vec<f32>>();
        Ok(match self.scaling {
            RopeScaling::None => plain(self.base),
            RopeScaling::Linear { factor } => plain(self.base).into_iter().map(|freq| freq / factor).collect(),
            RopeScaling::Dynamic { factor, original_context } => {
                let known = num_tokens.max(original_context) as f32;
                let growth = factor * known / original_context as f32 - (factor - 1.0);
                plain(self.base * growth.powf(dim as f32 / (dim as f32 - 2.0)))
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                let bound = |beta: f32| yarn_dimension(f64::from(beta), dim, f64::from(self.base), original_context);
                let (mut low, mut high) = (bound(beta_fast), bound(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim as f64 - 1.0));
                if low == high {
                    // The ramp becomes a step; the reference avoids the division by zero with the same amount.
                    high += 0.001;
                }
                let ramp = |i: usize| (((i as f64 - low) / (high - low)) as f32).clamp(0.0, 1.0);
                let blend = |(i, freq): (usize, f32)| (freq / factor) * ramp(i) + freq * (1.0 - ramp(i));
                plain(self.base).into_iter().enumerate().map(blend).collect()
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                let context = original_context as f32;
                let blend = |freq: f32| {
                    let wavelength = 2.0 * std::f32::consts::PI / freq;
                    if wavelength < context / high_freq_factor {
                        freq
                    } else if wavelength > context / low_freq_factor {
                        freq / factor
                    } else {
                        let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * freq / factor + smooth * freq
                    }
                };
                plain(self.base).into_iter().map(blend).collect()
            }
            RopeScaling::Factors { weight } => {
                let weight = &weights[weight.0];
                let view = &weight.view;
                if view.dtype != QuantType::F32 || view.shape != [dim / 2] {
                    return Err(Error::TensorShape {
                        name: weight.name.clone(),
                        expected: vec![dim / 2],
                        got: view.shape.clone(),
                    });
                }
                let factors = view.data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]));
                plain(self.base).into_iter().zip(factors).map(|(freq, factor)| freq / factor).collect()
            }
        })
    }

    /// Factor on cos and sin: 1 except for YaRN.
    pub fn attention_factor(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { factor, attention_factor, .. } => {
                attention_factor.unwrap_or_else(|| yarn_mscale(factor, 1.0))
            }
            RopeScaling::None
            | RopeScaling::Linear { .. }
            | RopeScaling::Dynamic { .. }
            | RopeScaling::Llama3 { .. }
            | RopeScaling::Factors { .. } => 1.0,
        }
    }

    /// Refuses numbers that make no rotation of a head of `head_dim` elements.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] that names the quantity.
    pub fn validate(&self, head_dim: usize) -> Result<()> {
        let bad =
            |what: &str, expected: String, got: String| Err(Error::BadMetadata { key: what.into(), expected, got });
        if self.rotary_dim == 0 || !self.rotary_dim.is_multiple_of(2) || self.rotary_dim > head_dim {
            let expected = format!("an even number from 2 to the head's {head_dim} elements");
            return bad("rotary dimension", expected, self.rotary_dim.to_string());
        }
        if !(self.base > 1.0 && self.base.is_finite()) {
            return bad("rope base", "a number above 1".into(), self.base.to_string());
        }
        let (factor, context) = match self.scaling {
            RopeScaling::None | RopeScaling::Factors { .. } => (1.0, 1),
            RopeScaling::Linear { factor } => (factor, 1),
            RopeScaling::Dynamic { factor, original_context } => {
                if self.rotary_dim == 2 {
                    let expected = "more than 2 for dynamic rope scaling".into();
                    return bad("rotary dimension", expected, "2".into());
                }
                (factor, original_context)
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, attention_factor, .. } => {
                for (what, value) in [
                    ("yarn beta_fast", beta_fast),
                    ("yarn beta_slow", beta_slow),
                    ("yarn attention factor", attention_factor.unwrap_or(1.0)),
                ] {
                    if !(value > 0.0 && value.is_finite()) {
                        return bad(what, "a positive number".into(), value.to_string());
                    }
                }
                (factor, original_context)
            }
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
                if !(low_freq_factor > 0.0 && high_freq_factor > low_freq_factor && high_freq_factor.is_finite()) {
                    let got = format!("{low_freq_factor} and {high_freq_factor}");
                    return bad("llama3 rope frequency factors", "0 < low < high".into(), got);
                }
                (factor, original_context)
            }
        };
        if !(factor > 0.0 && factor.is_finite()) {
            return bad("rope scaling factor", "a positive number".into(), factor.to_string());
        }
        if context == 0 {
            return bad("original context of the rope scaling", "at least 1".into(), "0".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(rotary_dim: usize, base: f32, scaling: RopeScaling) -> RopeSpec {
        RopeSpec { rotary_dim, style: RopeStyle::Neox, base, scaling }
    }

    fn close(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let difference = (got - want).abs();
            assert!(difference <= 1e-6 * want.abs(), "frequency {i}: {got} instead of {want}");
        }
    }

    #[test]
    fn plain_frequencies_are_powers_of_the_base() {
        let got = spec(8, 10000.0, RopeScaling::None).inv_freq(0, &[]).unwrap();
        close(&got, &[1.0, 0.1, 0.01, 0.001]);
    }

    #[test]
    fn linear_divides_every_frequency() {
        let got = spec(4, 10000.0, RopeScaling::Linear { factor: 4.0 }).inv_freq(0, &[]).unwrap();
        close(&got, &[0.25, 0.0025]);
    }

    #[test]
    fn dynamic_changes_only_beyond_the_trained_context() {
        let plain = spec(8, 10000.0, RopeScaling::None);
        let dynamic = spec(8, 10000.0, RopeScaling::Dynamic { factor: 2.0, original_context: 40 });
        for known in [1, 39, 40] {
            assert_eq!(dynamic.inv_freq(known, &[]).unwrap(), plain.inv_freq(known, &[]).unwrap());
        }
        // growth = 2 · 80 / 40 − 1 = 3 and base = 10⁴ · 3^(8/6).
        let base = 1e4_f32 * 3.0_f32.powf(8.0 / 6.0);
        let want: Vec<f32> = (0..4).map(|i| base.powf(-(i as f32) / 4.0)).collect();
        close(&dynamic.inv_freq(80, &[]).unwrap(), &want);
    }

    #[test]
    fn yarn_leaves_fast_dimensions_and_interpolates_slow_ones() {
        let scaling = RopeScaling::Yarn {
            factor: 4.0,
            original_context: 32768,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: None,
            truncate: true,
        };
        let yarn = spec(128, 1e6, scaling);
        let plain = spec(128, 1e6, RopeScaling::None).inv_freq(0, &[]).unwrap();
        let got = yarn.inv_freq(0, &[]).unwrap();
        // floor(128 · ln(32768 / 64π) / 2 ln 10⁶) = 23 and ceil(128 · ln(32768 / 2π) / 2 ln 10⁶) = 40.
        close(&got[..24], &plain[..24]);
        close(&got[40..], &plain[40..].iter().map(|freq| freq / 4.0).collect::<Vec<_>>());
        assert!(got[30] < plain[30] && got[30] > plain[30] / 4.0);
        assert!((yarn.attention_factor() - (0.1 * 4.0_f32.ln() + 1.0)).abs() < 1e-7);
    }

    #[test]
    fn llama3_keeps_short_wavelengths_and_divides_long_ones() {
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_context: 8192 };
        let plain = spec(128, 5e5, RopeScaling::None).inv_freq(0, &[]).unwrap();
        let got = spec(128, 5e5, scaling).inv_freq(0, &[]).unwrap();
        for (got, plain) in got.iter().zip(&plain) {
            let wavelength = 2.0 * std::f32::consts::PI / plain;
            if wavelength < 2048.0 {
                assert_eq!(got, plain);
            } else if wavelength > 8192.0 {
                assert_eq!(*got, plain / 8.0);
            } else {
                assert!(got < plain && *got > plain / 8.0);
            }
        }
    }

    #[test]
    fn cos_and_sin_carry_the_factor() {
        let (mut cos, mut sin) = ([0.0; 2], [0.0; 2]);
        fill_cos_sin(&[1.0, 0.5], 2.0, 3, &mut cos, &mut sin);
        close(&cos, &[2.0 * 3.0_f32.cos(), 2.0 * 1.5_f32.cos()]);
        close(&sin, &[2.0 * 3.0_f32.sin(), 2.0 * 1.5_f32.sin()]);
    }

    #[test]
    fn nonsense_is_refused() {
        for (what, spec) in [
            ("odd", spec(7, 1e4, RopeScaling::None)),
            ("wide", spec(16, 1e4, RopeScaling::None)),
            ("base", spec(8, f32::NAN, RopeScaling::None)),
            ("factor", spec(8, 1e4, RopeScaling::Linear { factor: 0.0 })),
            ("context", spec(8, 1e4, RopeScaling::Dynamic { factor: 2.0, original_context: 0 })),
        ] {
            assert!(matches!(spec.validate(8), Err(Error::BadMetadata { .. })), "{what}");
        }
        spec(8, 1e4, RopeScaling::None).validate(8).unwrap();
    }
}
