//! Q4_K: `w = d · scale · q − dmin · min`, 256 weights in 144 bytes, 6-bit scales and minima for 32.

use super::{Block, GroupKind, QuantType, fit, float::f16_le};

/// Byte `32·p + i` of `qs` holds element `64·p + i` in its low nibble and `64·p + 32 + i` in its high one.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ4K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qs: [u8; 128],
}

/// Eight scales and minima of a Q4_K or Q5_K block.
#[inline(always)]
pub(super) fn scales_and_mins(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12], scales: &mut [f32], mins: &mut [f32]) {
    let (d, dmin) = (f16_le(d), f16_le(dmin));
    let (s, m) = fit::unpack_scales_6(packed);
    for i in 0..8 {
        scales[i] = d * f32::from(s[i]);
        mins[i] = -(dmin * f32::from(m[i]));
    }
}

impl Block for BlockQ4K {
    const TYPE: QuantType = QuantType::Q4_K;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Min;
    const MAX_CODE: u8 = 15;

    fn quantize(x: &[f32]) -> Self {
        let fit::SuperBlock { d, dmin, scales, codes } = fit::super_block(x, 15);
        let qs = std::array::from_fn(|i| {
            let element = i / 32 * 64 + i % 32;
            codes[element] | codes[element + 32] << 4
        });
        Self { d, dmin, scales, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        for (codes, qs) in codes[..256].as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0) {
            for i in 0..32 {
                codes[i] = qs[i] & 15;
                codes[i + 32] = qs[i] >> 4;
            }
        }
        scales_and_mins(self.d, self.dmin, &self.scales, scales, mins);
    }
}
