//! Q6_K: `w = d · scale · (q − 32)`, 256 weights in 210 bytes, signed 8-bit scales for 16.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// In each half of 128 elements, with `i` in 0..32: elements `i` and `32 + i` are the low nibbles of `ql[i]` and `ql[32 + i]`,
/// `64 + i` and `96 + i` their high ones; their upper two bits are bits 0, 2, 4 and 6 of `qh[i]`, in that order.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ6K {
    ql: [u8; 128],
    qh: [u8; 64],
    scales: [u8; 16],
    d: [u8; 2],
}

impl Block for BlockQ6K {
    const TYPE: QuantType = QuantType::Q6_K;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(32);
    const MAX_CODE: u8 = 63;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 16] = std::array::from_fn(|group| fit::extreme(&x[group * 16..group * 16 + 16]) / -32.0);
        let (d, value) = fit::to_half(fit::extreme(&wanted) / -128.0);
        let scales: [i8; 16] = wanted.map(|scale| (scale * fit::inverse(value)).round() as i8);
        let codes: [u8; 256] =
            std::array::from_fn(|i| fit::code(x[i], fit::inverse(value * f32::from(scales[i / 16])), 32.0, 63));
        let ql = std::array::from_fn(|i| {
            let element = i / 64 * 128 + i % 64;
            (codes[element] & 15) | codes[element + 64] << 4
        });
        let qh = std::array::from_fn(|i| {
            let element = i / 32 * 128 + i % 32;
            (0..4).fold(0, |bits, part| bits | (codes[element + 32 * part] >> 4) << (2 * part))
        });
        Self { ql, qh, scales: scales.map(|scale| scale as u8), d }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let halves = self.ql.as_chunks::<64>().0.iter().zip(self.qh.as_chunks::<32>().0);
        for (codes, (ql, qh)) in codes[..256].as_chunks_mut::<128>().0.iter_mut().zip(halves) {
            for i in 0..32 {
                codes[i] = (ql[i] & 15) | (qh[i] & 3) << 4;
                codes[i + 32] = (ql[i + 32] & 15) | (qh[i] >> 2 & 3) << 4;
                codes[i + 64] = (ql[i] >> 4) | (qh[i] >> 4 & 3) << 4;
                codes[i + 96] = (ql[i + 32] >> 4) | (qh[i] >> 6) << 4;
            }
        }
        let d = f16_le(self.d);
        for (scale, &q) in scales[..16].iter_mut().zip(&self.scales) {
            *scale = d * f32::from(q as i8);
        }
    }
}
