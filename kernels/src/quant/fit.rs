//! Choice of scales for the quantisers: simple, deterministic, good to a fraction of a percent of the best.

use super::float::{f16_bytes, f16_le};

/// Value of the largest magnitude, with its sign. A NaN is never the largest.
pub(crate) fn extreme(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |best: f32, &v| if v.abs() > best.abs() { v } else { best })
}

/// 1/x, and 0 for 0: a block of zeros has codes of zero.
pub(crate) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { x.recip() }
}

/// Rounds to a half and gives its bytes and the value that a reader will see.
pub(crate) fn to_half(x: f32) -> ([u8; 2], f32) {
    let bytes = f16_bytes(x);
    (bytes, f16_le(bytes))
}

/// Nearest code to `x / scale + offset` in `0..=max`. (`as` saturates, and NaN becomes 0.)
pub(crate) fn code(x: f32, inverse_scale: f32, offset: f32, max: u8) -> u8 {
    ((x * inverse_scale + offset).round() as u8).min(max)
}

/// `(scale, min)` with `x ≈ scale · code − min`, `min ≥ 0` and codes up to `max`: range first, then a few rounds of least
/// squares on the codes that the last round gave.
pub(crate) fn affine(x: &[f32], max: u8) -> (f32, f32) {
    let low = x.iter().copied().fold(0.0, f32::min);
    let high = x.iter().copied().fold(low, f32::max);
    let (mut scale, mut min) = ((high - low) / f32::from(max), -low);
    let mut best = (scale, min, f32::INFINITY);
    for _ in 0..4 {
        let (mut sum_q, mut sum_qq, mut sum_x, mut sum_qx, mut error) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for &v in x {
            let q = f32::from(code(v + min, inverse(scale), 0.0, max));
            error += (scale * q - min - v).powi(2);
            (sum_q, sum_qq, sum_x, sum_qx) = (sum_q + q, sum_qq + q * q, sum_x + v, sum_qx + q * v);
        }
        if error < best.2 {
            best = (scale, min, error);
        }
        let n = x.len() as f32;
        let determinant = n * sum_qq - sum_q * sum_q;
        if determinant <= 0.0 || determinant.is_nan() {
            break;
        }
        scale = (n * sum_qx - sum_q * sum_x) / determinant;
        min = -(sum_x - scale * sum_q) / n;
        if min < 0.0 {
            (min, scale) = (0.0, sum_qx * inverse(sum_qq));
        }
        if scale <= 0.0 || scale.is_nan() {
            break;
        }
    }
    (best.0, best.1)
}

/// Packs eight 6-bit scales and eight 6-bit minima as Q4_K and Q5_K hold them.
pub(crate) fn pack_scales_6(scales: &[u8; 8], mins: &[u8; 8]) -> [u8; 12] {
    let mut out = [0; 12];
    for i in 0..4 {
        out[i] = scales[i] | (scales[i + 4] >> 4) << 6;
        out[i + 4] = mins[i] | (mins[i + 4] >> 4) << 6;
        out[i + 8] = (scales[i + 4] & 15) | (mins[i + 4] & 15) << 4;
    }
    out
}

/// The reverse of [`pack_scales_6`]: `(scales, mins)`.
#[inline]
pub(crate) fn unpack_scales_6(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for i in 0..4 {
        scales[i] = packed[i] & 63;
        mins[i] = packed[i + 4] & 63;
        scales[i + 4] = (packed[i + 8] & 15) | (packed[i] >> 6) << 4;
        mins[i + 4] = (packed[i + 8] >> 4) | (packed[i + 4] >> 6) << 4;
    }
    (scales, mins)
}

/// Scales, minima and codes of 256 values with 8 groups of 32, as Q4_K and Q5_K want them.
pub(crate) struct SuperBlock {
    /// Scale of the scales and of the minima.
    pub(crate) d: [u8; 2],
    pub(crate) dmin: [u8; 2],
    pub(crate) scales: [u8; 12],
    pub(crate) codes: [u8; 256],
}

/// Fits a super block with codes up to `max`.
pub(crate) fn super_block(x: &[f32], max: u8) -> SuperBlock {
    let fits: Vec<_> = x.chunks_exact(32).map(|group| affine(group, max)).collect();
    let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max) / 63.0;
    let ((d, d_value), (dmin, dmin_value)) = (to_half(largest(|fit| fit.0)), to_half(largest(|fit| fit.1)));
    let (mut scales, mut mins, mut codes) = ([0; 8], [0; 8], [0; 256]);
    for (group, &(scale, min)) in fits.iter().enumerate() {
        scales[group] = code(scale, inverse(d_value), 0.0, 63);
        mins[group] = code(min, inverse(dmin_value), 0.0, 63);
        let (scale, min) = (d_value * f32::from(scales[group]), dmin_value * f32::from(mins[group]));
        for i in group * 32..group * 32 + 32 {
            codes[i] = code(x[i] + min, inverse(scale), 0.0, max);
        }
    }
    SuperBlock { d, dmin, scales: pack_scales_6(&scales, &mins), codes }
}
