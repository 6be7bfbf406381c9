//! Q5_1: `w = d · q + m`, 32 weights in 24 bytes.

use super::{
    Block, GroupKind, QuantType, fit,
    float::f16_le,
    q5_0::{pack_5, unpack_5},
};

/// d, m: f16; qh: fifth bits, element i at bit i; low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5_1 {
    d: [u8; 2],
    m: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

impl Block for BlockQ5_1 {
    const TYPE: QuantType = QuantType::Q5_1;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Min;
    const MAX_CODE: u8 = 31;

    fn quantize(x: &[f32]) -> Self {
        let low = x.iter().copied().fold(f32::INFINITY, f32::min);
        let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let ((d, scale), (m, min)) = (fit::to_half((high - low) / 31.0), fit::to_half(low));
        let (qh, qs) = pack_5(std::array::from_fn(|i| fit::code(x[i] - min, fit::inverse(scale), 0.0, 31)));
        Self { d, m, qh, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        unpack_5(self.qh, &self.qs, codes);
        (scales[0], mins[0]) = (f16_le(self.d), f16_le(self.m));
    }
}
