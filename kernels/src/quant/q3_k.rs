//! Q3_K: `w = d · scale · (q − 4)`, 256 weights in 110 bytes, signed 6-bit scales for 16.

use super::{
    Block, GroupKind, QuantType, fit,
    float::f16_le,
    q2_k::{pack_2, unpack_2},
};

/// `qs`: low two bits of the codes, as in Q2_K. Bit g of `hmask[i]` is the third bit of element `32·g + i`. Scales (plus 32): low
/// four bits of scale g in byte `g % 8` (low nibble for g < 8), high two in byte `8 + g % 4` at bit `2 · (g / 4)`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ3K {
    hmask: [u8; 32],
    qs: [u8; 64],
    scales: [u8; 12],
    d: [u8; 2],
}

impl Block for BlockQ3K {
    const TYPE: QuantType = QuantType::Q3_K;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(4);
    const MAX_CODE: u8 = 7;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 16] = std::array::from_fn(|group| fit::extreme(&x[group * 16..group * 16 + 16]) / -4.0);
        let (d, value) = fit::to_half(fit::extreme(&wanted) / -32.0);
        let six: [u8; 16] = wanted.map(|scale| fit::code(scale, fit::inverse(value), 32.0, 63));
        let codes: [u8; 256] = std::array::from_fn(|i| {
            let scale = value * (f32::from(six[i / 16]) - 32.0);
            fit::code(x[i], fit::inverse(scale), 4.0, 7)
        });
        let mut scales = [0; 12];
        for (g, six) in six.iter().enumerate() {
            scales[g % 8] |= (six & 15) << (g / 8 * 4);
            scales[8 + g % 4] |= (six >> 4) << (g / 4 * 2);
        }
        let hmask = std::array::from_fn(|i| (0..8).fold(0, |bits, g| bits | (codes[32 * g + i] >> 2) << g));
        Self { hmask, qs: pack_2(&codes), scales, d }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        unpack_2(&self.qs, codes);
        for (g, codes) in codes[..256].as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, mask) in codes.iter_mut().zip(&self.hmask) {
                *code |= (mask >> g & 1) << 2;
            }
        }
        let d = f16_le(self.d);
        for (g, scale) in scales[..16].iter_mut().enumerate() {
            let six = (self.scales[g % 8] >> (g / 8 * 4) & 15) | (self.scales[8 + g % 4] >> (g / 4 * 2) & 3) << 4;
            *scale = d * (f32::from(six) - 32.0);
        }
    }
}
