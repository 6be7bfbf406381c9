//! Q1_0: `w = ±d`, 128 weights in 18 bytes. Codes here are 0 and 2; the scale stands for four groups of 32.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; qs: element i at bit `i % 8` of byte `i / 8`, set for +d.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ1_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl Block for BlockQ1_0 {
    const TYPE: QuantType = QuantType::Q1_0;
    const LEN: usize = 128;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(1);
    const MAX_CODE: u8 = 2;

    fn quantize(x: &[f32]) -> Self {
        // The mean magnitude is the least-squares scale.
        let d = x.iter().map(|x| x.abs()).sum::<f32>() / 128.0;
        let qs = std::array::from_fn(|i| (0..8).fold(0, |byte, bit| byte | u8::from(x[8 * i + bit] >= 0.0) << bit));
        Self { d: fit::to_half(d).0, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (codes, byte) in codes[..128].as_chunks_mut::<8>().0.iter_mut().zip(self.qs) {
            for (bit, code) in codes.iter_mut().enumerate() {
                *code = (byte >> bit & 1) * 2;
            }
        }
        scales[..4].fill(f16_le(self.d));
    }
}
