//! Q2_0: `w = d · (q − 1)`, 64 weights in 18 bytes. The scale stands for two groups of 32.
//!
//! As in ggml since the type got its number; a fork's files give the same number to blocks of 128, which these kernels can't tell apart.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; qs: element i at bits `2·(i % 4)` of byte `i / 4`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ2_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl Block for BlockQ2_0 {
    const TYPE: QuantType = QuantType::Q2_0;
    const LEN: usize = 64;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(1);
    const MAX_CODE: u8 = 3;

    fn quantize(x: &[f32]) -> Self {
        const LEVELS: [f32; 4] = [-1.0, 0.0, 1.0, 2.0];
        // The levels are lopsided: either sign of the scale may be the better one.
        let negated: Vec<f32> = x.iter().map(|x| -x).collect();
        let (up, down) = (super::codebook::scale_for(x, &LEVELS), super::codebook::scale_for(&negated, &LEVELS));
        let candidates = [up, -down].map(|scale| {
            let (d, value) = fit::to_half(scale);
            let codes: [u8; 64] = std::array::from_fn(|i| fit::code(x[i], fit::inverse(value), 1.0, 3));
            let error: f32 = x.iter().zip(codes).map(|(x, code)| (x - value * (f32::from(code) - 1.0)).powi(2)).sum();
            (d, codes, error)
        });
        let (d, codes, _) = if candidates[1].2 < candidates[0].2 { candidates[1] } else { candidates[0] };
        let qs = std::array::from_fn(|i| (0..4).fold(0, |byte, part| byte | codes[4 * i + part] << (2 * part)));
        Self { d, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (codes, byte) in codes[..64].as_chunks_mut::<4>().0.iter_mut().zip(self.qs) {
            for (part, code) in codes.iter_mut().enumerate() {
                *code = byte >> (2 * part) & 3;
            }
        }
        scales[..2].fill(f16_le(self.d));
    }
}
