//! IQ4_XS: `w = d · scale · LEVELS[q]`, 256 weights in 136 bytes, signed 6-bit scales for 32. Codes here are levels + 128.

use super::{
    Block, GroupKind, QuantType, fit,
    float::f16_le,
    iq4_nl::{nearest, scale_of, unpack_levels},
};

/// Scales (plus 32): low four bits of scale g in nibble g of `scales_l`, high two at bit `2·g` of `scales_h`. Bytes `16·g ..+ 16` of
/// `qs` are group g: low nibbles its first 16 elements, high nibbles the rest.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq4Xs {
    d: [u8; 2],
    scales_h: [u8; 2],
    scales_l: [u8; 4],
    qs: [u8; 128],
}

impl Block for BlockIq4Xs {
    const TYPE: QuantType = QuantType::IQ4_XS;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 241;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 8] = std::array::from_fn(|group| scale_of(&x[group * 32..group * 32 + 32]));
        let (d, value) = fit::to_half(fit::extreme(&wanted) / -32.0);
        let six: [u8; 8] = wanted.map(|scale| fit::code(scale, fit::inverse(value), 32.0, 63));
        let (mut high, mut scales_l) = (0u16, [0; 4]);
        for (g, &six) in six.iter().enumerate() {
            scales_l[g / 2] |= (six & 15) << (g % 2 * 4);
            high |= u16::from(six >> 4) << (2 * g);
        }
        let qs = std::array::from_fn(|i| {
            let (group, element) = (i / 16, i / 16 * 32 + i % 16);
            let inverse = fit::inverse(value * (f32::from(six[group]) - 32.0));
            nearest(x[element], inverse) | nearest(x[element + 16], inverse) << 4
        });
        Self { d, scales_h: high.to_le_bytes(), scales_l, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (codes, qs) in codes[..256].as_chunks_mut::<32>().0.iter_mut().zip(self.qs.as_chunks::<16>().0) {
            unpack_levels(qs, codes);
        }
        let (d, high) = (f16_le(self.d), u16::from_le_bytes(self.scales_h));
        for (g, scale) in scales[..8].iter_mut().enumerate() {
            let six = (self.scales_l[g / 2] >> (g % 2 * 4) & 15) | ((high >> (2 * g) & 3) << 4) as u8;
            *scale = d * (f32::from(six) - 32.0);
        }
    }
}
