//! TQ1_0: `w = d · (q − 1)`, ternary, 256 weights in 54 bytes. The scale stands for eight groups of 32.
//!
//! A byte b holds the digits of the fraction b / 256 in base 3: digit n is the whole part of 3 · frac(3ⁿ · b / 256).

use super::{Block, GroupKind, QuantType, codebook::scale_for, fit, float::f16_le};

/// Five digits a byte: digit n of bytes 0..32 are elements `32·n ..`, of bytes 32..48 elements `160 + 16·n ..`; four digits of
/// the bytes of `qh` are elements `240 + 4·n ..`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockTq1_0 {
    qs: [u8; 48],
    qh: [u8; 4],
    d: [u8; 2],
}

/// 3ⁿ.
const POWERS: [u8; 5] = [1, 3, 9, 27, 81];

/// Digit n.
#[inline(always)]
fn digit(byte: u8, n: usize) -> u8 {
    ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as u8
}

/// The byte whose digits these are, first digit highest: the least fraction of 256 that isn't below theirs of 243.
fn byte_of(digits: [u8; 5]) -> u8 {
    let number = digits.iter().fold(0u32, |number, &digit| number * 3 + u32::from(digit));
    (number * 256).div_ceil(243) as u8
}

/// Scale and codes of 256 ternary values.
pub(super) fn ternary(x: &[f32]) -> ([u8; 2], [u8; 256]) {
    let (d, value) = fit::to_half(scale_for(x, &[-1.0, 0.0, 1.0]));
    (d, std::array::from_fn(|i| fit::code(x[i], fit::inverse(value), 1.0, 2)))
}

impl Block for BlockTq1_0 {
    const TYPE: QuantType = QuantType::TQ1_0;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(1);
    const MAX_CODE: u8 = 2;

    fn quantize(x: &[f32]) -> Self {
        let (d, codes) = ternary(x);
        let qs = std::array::from_fn(|i| {
            let (first, step) = if i < 32 { (i, 32) } else { (160 + i - 32, 16) };
            byte_of(std::array::from_fn(|n| codes[first + n * step]))
        });
        let qh = std::array::from_fn(|i| byte_of([codes[240 + i], codes[244 + i], codes[248 + i], codes[252 + i], 0]));
        Self { qs, qh, d }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for n in 0..5 {
            for i in 0..32 {
                codes[32 * n + i] = digit(self.qs[i], n);
            }
            for i in 0..16 {
                codes[160 + 16 * n + i] = digit(self.qs[32 + i], n);
            }
        }
        for n in 0..4 {
            for i in 0..4 {
                codes[240 + 4 * n + i] = digit(self.qh[i], n);
            }
        }
        scales[..8].fill(f16_le(self.d));
    }
}
