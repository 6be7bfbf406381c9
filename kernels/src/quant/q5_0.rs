//! Q5_0: `w = d · (q − 16)`, 32 weights in 22 bytes.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; qh: fifth bits, element i at bit i; low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5_0 {
    d: [u8; 2],
    qh: [u8; 4],
    qs: [u8; 16],
}

/// Fifth bits and nibbles of 32 codes.
pub(super) fn pack_5(codes: [u8; 32]) -> ([u8; 4], [u8; 16]) {
    let high = codes.iter().enumerate().fold(0, |bits, (i, &code)| bits | u32::from(code >> 4) << i);
    (high.to_le_bytes(), std::array::from_fn(|i| (codes[i] & 15) | (codes[i + 16] & 15) << 4))
}

/// The reverse of [`pack_5`].
#[inline(always)]
pub(super) fn unpack_5(qh: [u8; 4], qs: &[u8; 16], codes: &mut [u8]) {
    let bits = u32::from_le_bytes(qh);
    let (low, high) = codes[..32].split_at_mut(16);
    for i in 0..16 {
        low[i] = (qs[i] & 15) | ((bits >> i & 1) << 4) as u8;
        high[i] = (qs[i] >> 4) | ((bits >> (i + 16) & 1) << 4) as u8;
    }
}

impl Block for BlockQ5_0 {
    const TYPE: QuantType = QuantType::Q5_0;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(16);
    const MAX_CODE: u8 = 31;

    fn quantize(x: &[f32]) -> Self {
        let (d, value) = fit::to_half(fit::extreme(x) / -16.0);
        let (qh, qs) = pack_5(std::array::from_fn(|i| fit::code(x[i], fit::inverse(value), 16.0, 31)));
        Self { d, qh, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        unpack_5(self.qh, &self.qs, codes);
        scales[0] = f16_le(self.d);
    }
}
