//! Q4_1: `w = d · q + m`, 32 weights in 20 bytes.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d, m: f16; low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ4_1 {
    d: [u8; 2],
    m: [u8; 2],
    qs: [u8; 16],
}

impl Block for BlockQ4_1 {
    const TYPE: QuantType = QuantType::Q4_1;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Min;
    const MAX_CODE: u8 = 15;

    fn quantize(x: &[f32]) -> Self {
        let low = x.iter().copied().fold(f32::INFINITY, f32::min);
        let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let ((d, scale), (m, min)) = (fit::to_half((high - low) / 15.0), fit::to_half(low));
        let code = |x: f32| fit::code(x - min, fit::inverse(scale), 0.0, 15);
        Self { d, m, qs: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4) }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let (low, high) = codes[..32].split_at_mut(16);
        for i in 0..16 {
            low[i] = self.qs[i] & 15;
            high[i] = self.qs[i] >> 4;
        }
        (scales[0], mins[0]) = (f16_le(self.d), f16_le(self.m));
    }
}
