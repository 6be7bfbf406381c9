//! Q5_K: `w = d · scale · q − dmin · min`, 256 weights in 176 bytes, 6-bit scales and minima for 32.

use super::{Block, GroupKind, QuantType, fit, q4_k::scales_and_mins};

/// `qs` as in Q4_K; bit `2·p` of `qh[i]` is the fifth bit of element `64·p + i`, bit `2·p + 1` that of `64·p + 32 + i`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ5K {
    d: [u8; 2],
    dmin: [u8; 2],
    scales: [u8; 12],
    qh: [u8; 32],
    qs: [u8; 128],
}

impl Block for BlockQ5K {
    const TYPE: QuantType = QuantType::Q5_K;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Min;
    const MAX_CODE: u8 = 31;

    fn quantize(x: &[f32]) -> Self {
        let fit::SuperBlock { d, dmin, scales, codes } = fit::super_block(x, 31);
        let qh = std::array::from_fn(|i| (0..8).fold(0, |bits, group| bits | (codes[group * 32 + i] >> 4) << group));
        let qs = std::array::from_fn(|i| {
            let element = i / 32 * 64 + i % 32;
            (codes[element] & 15) | codes[element + 32] << 4
        });
        Self { d, dmin, scales, qh, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], mins: &mut [f32]) {
        let pairs = codes[..256].as_chunks_mut::<64>().0.iter_mut().zip(self.qs.as_chunks::<32>().0);
        for (pair, (codes, qs)) in pairs.enumerate() {
            for i in 0..32 {
                codes[i] = (qs[i] & 15) | (self.qh[i] >> (2 * pair) & 1) << 4;
                codes[i + 32] = (qs[i] >> 4) | (self.qh[i] >> (2 * pair + 1) & 1) << 4;
            }
        }
        scales_and_mins(self.d, self.dmin, &self.scales, scales, mins);
    }
}
