//! Q2_K: `w = d · scale · q − dmin · min`, 256 weights in 84 bytes, 4-bit scales and minima for 16.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// Low nibble of `scales[g]`: scale of group g; high nibble: its minimum. In each half of 128 elements, bits `2·p` and
/// `2·p + 1` of byte i (of 32) are element `32·p + i`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ2K {
    scales: [u8; 16],
    qs: [u8; 64],
    d: [u8; 2],
    dmin: [u8; 2],
}

/// Two low bits of 256 codes, as Q2_K and Q3_K hold them.
pub(super) fn pack_2(codes: &[u8; 256]) -> [u8; 64] {
    std::array::from_fn(|i| {
        let first = i / 32 * 128 + i % 32;
        (0..4).fold(0, |bits, part| bits | (codes[first + 32 * part] & 3) << (2 * part))
    })
}

/// The reverse of [`pack_2`].
#[inline(always)]
pub(super) fn unpack_2(qs: &[u8; 64], codes: &mut [u8]) {
    for (codes, qs) in codes[..256].as_chunks_mut::<128>().0.iter_mut().zip(qs.as_chunks::<32>().0) {
        for (part, codes) in codes.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            for (code, q) in codes.iter_mut().zip(qs) {
                *code = q >> (2 * part) & 3;
            }
        }
    }
}

impl Block for BlockQ2K {
    const TYPE: QuantType = QuantType::Q2_K;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Min;
    const MAX_CODE: u8 = 3;

    fn quantize(x: &[f32]) -> Self {
        let fits: [(f32, f32); 16] = std::array::from_fn(|group| fit::affine(&x[group * 16..group * 16 + 16], 3));
        let largest = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max) / 15.0;
        let ((d, d_value), (dmin, dmin_value)) =
            (fit::to_half(largest(|fit| fit.0)), fit::to_half(largest(|fit| fit.1)));
        let scales = fits.map(|(scale, min)| {
            let (scale, min) =
                (fit::code(scale, fit::inverse(d_value), 0.0, 15), fit::code(min, fit::inverse(dmin_value), 0.0, 15));
            scale | min << 4
        });
        let codes: [u8; 256] = std::array::from_fn(|i| {
            let packed = scales[i / 16];
            let (scale, min) = (d_value * f32::from(packed & 15), dmin_value * f32::from(packed >> 4));
            fit::code(x[i] + min, fit::inverse(scale), 0.0, 3)
        });
        Self { scales, qs: pack_2(&codes), d, dmin }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        unpack_2(&self.qs, codes);
        let (d, dmin) = (f16_le(self.d), f16_le(self.dmin));
        for (i, &packed) in self.scales.iter().enumerate() {
            scales[i] = d * f32::from(packed & 15);
            mins[i] = -(dmin * f32::from(packed >> 4));
        }
    }
}
