//! Q4_0: `w = d · (q − 8)`, 32 weights in 18 bytes.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; low nibbles are elements 0..16, high nibbles 16..32.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ4_0 {
    d: [u8; 2],
    qs: [u8; 16],
}

impl Block for BlockQ4_0 {
    const TYPE: QuantType = QuantType::Q4_0;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(8);
    const MAX_CODE: u8 = 15;

    fn quantize(x: &[f32]) -> Self {
        let (d, value) = fit::to_half(fit::extreme(x) / -8.0);
        let code = |x| fit::code(x, fit::inverse(value), 8.0, 15);
        Self { d, qs: std::array::from_fn(|i| code(x[i]) | code(x[i + 16]) << 4) }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let (low, high) = codes[..32].split_at_mut(16);
        for i in 0..16 {
            low[i] = self.qs[i] & 15;
            high[i] = self.qs[i] >> 4;
        }
        scales[0] = f16_le(self.d);
    }
}
