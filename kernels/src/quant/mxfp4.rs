//! MXFP4 (OCP microscaling): `w = 2^(e − 127) · e2m1(q)`, 32 weights in 17 bytes. Codes here are twice the e2m1 value, plus 12.

use super::{Block, GroupKind, QuantType, fit};

/// Twice the values of e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6 and their negatives), plus 12.
pub(crate) const LEVELS: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// e: the biased exponent (e8m0); low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockMxfp4 {
    e: u8,
    qs: [u8; 16],
}

/// Nibble of the level nearest to x / scale, in units of half.
pub(super) fn nearest(x: f32, inverse_scale: f32) -> u8 {
    let wanted = (x * inverse_scale).abs() + 12.0;
    let distance = |index: &u8| (f32::from(LEVELS[usize::from(*index)]) - wanted).abs();
    let index = (0..8).min_by(|a, b| distance(a).total_cmp(&distance(b))).unwrap_or(0);
    if x < 0.0 { index | 8 } else { index }
}

/// 2^(e − 128): half the scale, for doubled values. The least two are subnormal; 255, which OCP calls NaN, is 2^127 as in ggml.
#[inline(always)]
fn half_scale(e: u8) -> f32 {
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// Nibbles to codes.
#[inline(always)]
pub(super) fn unpack_levels<const N: usize>(qs: &[u8; N], codes: &mut [u8]) {
    let (low, high) = codes[..2 * N].split_at_mut(N);
    for i in 0..N {
        low[i] = LEVELS[usize::from(qs[i] & 15)];
        high[i] = LEVELS[usize::from(qs[i] >> 4)];
    }
}

impl Block for BlockMxfp4 {
    const TYPE: QuantType = QuantType::MXFP4;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(12);
    const MAX_CODE: u8 = 24;

    fn quantize(x: &[f32]) -> Self {
        // The power of two that puts the extreme between 4 and 8 times itself, or the next, where 6 is not cut off.
        let biased = (fit::extreme(x).abs().to_bits() >> 23) as u8;
        let candidates = [biased.saturating_sub(2), biased.saturating_sub(1)].map(|e| {
            let scale = half_scale(e);
            let code = |x| nearest(x, scale.recip());
            let qs = std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4);
            let value = |nibble: u8| scale * (f32::from(LEVELS[usize::from(nibble)]) - 12.0);
            let error: f32 =
                (0..16).map(|i| (value(qs[i] & 15) - x[i]).powi(2) + (value(qs[i] >> 4) - x[i + 16]).powi(2)).sum();
            (Self { e, qs }, error)
        });
        if candidates[1].1 < candidates[0].1 { candidates[1].0 } else { candidates[0].0 }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        unpack_levels(&self.qs, codes);
        scales[0] = half_scale(self.e);
    }
}
