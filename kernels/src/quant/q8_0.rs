//! Q8_0: `w = d · q`, q signed, 32 weights in 34 bytes. Codes here are `q + 128`.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// d: f16; qs: i8 as bytes.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ8_0 {
    d: [u8; 2],
    qs: [u8; 32],
}

impl Block for BlockQ8_0 {
    const TYPE: QuantType = QuantType::Q8_0;
    const LEN: usize = 32;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 255;

    fn quantize(x: &[f32]) -> Self {
        let (d, value) = fit::to_half(fit::extreme(x).abs() / 127.0);
        // The half may be smaller than the exact scale: keep codes symmetric.
        let code = |x| fit::code(x, fit::inverse(value), 128.0, 255).max(1) ^ 0x80;
        Self { d, qs: std::array::from_fn(|i| code(x[i])) }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (code, q) in codes[..32].iter_mut().zip(&self.qs) {
            *code = q ^ 0x80;
        }
        scales[0] = f16_le(self.d);
    }
}
