//! IQ4_NL: `w = d · LEVELS[q]`, 32 weights in 18 bytes. Codes here are levels + 128.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// The uneven levels that 4-bit indices stand for, plus 128 (part of the format's definition).
pub(crate) const LEVELS: [u8; 16] = [1, 24, 45, 63, 79, 93, 106, 118, 129, 141, 153, 166, 181, 197, 217, 241];

/// d: f16; low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Nl {
    d: [u8; 2],
    qs: [u8; 16],
}

/// Index of the level nearest to x / scale.
pub(super) fn nearest(x: f32, inverse_scale: f32) -> u8 {
    let wanted = x * inverse_scale + 128.0;
    let distance = |index: &u8| (f32::from(LEVELS[usize::from(*index)]) - wanted).abs();
    (0..16).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0)
}

/// A scale for 32 values: the extreme at the far level, then one round of least squares.
pub(super) fn scale_of(x: &[f32]) -> f32 {
    let first = fit::extreme(x) / -127.0;
    let (mut xx, mut x_level) = (0.0, 0.0);
    for &x in x {
        let level = f32::from(LEVELS[usize::from(nearest(x, fit::inverse(first)))]) - 128.0;
        (xx, x_level) = (xx + level * level, x_level + level * x);
    }
    x_level * fit::inverse(xx)
}

/// Nibbles to levels.
#[inline(always)]
pub(super) fn unpack_levels(qs: &[u8], codes: &mut [u8]) {
    let (low, high) = codes[..32].split_at_mut(16);
    for i in 0..16 {
        low[i] = LEVELS[usize::from(qs[i] & 15)];
        high[i] = LEVELS[usize::from(qs[i] >> 4)];
    }
}

impl Block for BlockIq4Nl {
    const TYPE: QuantType = QuantType::IQ4_NL;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 241;

    fn quantize(x: &[f32]) -> Self {
        let (d, value) = fit::to_half(scale_of(x));
        let code = |x| nearest(x, fit::inverse(value));
        Self { d, qs: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4) }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        unpack_levels(&self.qs, codes);
        scales[0] = f16_le(self.d);
    }
}
