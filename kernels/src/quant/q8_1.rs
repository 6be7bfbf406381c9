//! Q8_1: `w = d · q`, q signed, 32 weights in 36 bytes. Codes here are `q + 128`. Made for activations: `s` is for dot products.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; s: d · Σ q as f16; qs: i8 as bytes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ8_1 {
    d: [u8; 2],
    s: [u8; 2],
    qs: [u8; 32],
}

impl Block for BlockQ8_1 {
    const TYPE: QuantType = QuantType::Q8_1;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 255;

    fn quantize(x: &[f32]) -> Self {
        let (d, value) = fit::to_half(fit::extreme(x).abs() / 127.0);
        // The half may be smaller than the exact scale: keep codes symmetric.
        let code = |x| fit::code(x, fit::inverse(value), 128.0, 255).max(1) ^ 0x80;
        let qs: [u8; 32] = std::array::from_fn(|i| code(x[i]));
        let sum: i32 = qs.iter().map(|&q| i32::from(q as i8)).sum();
        Self { d, s: fit::to_half(value * sum as f32).0, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (code, q) in codes[..32].iter_mut().zip(&self.qs) {
            *code = q ^ 0x80;
        }
        scales[0] = f16_le(self.d);
    }
}
