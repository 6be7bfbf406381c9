//! TQ2_0: `w = d · (q − 1)`, ternary, 256 weights in 66 bytes. The scale stands for eight groups of 32.

use super::{Block, GroupKind, QuantType, float::f16_le, tq1_0::ternary};

/// Bits `2·part` of byte `32·half + i` are element `128·half + 32·part + i`.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockTq2_0 {
    qs: [u8; 64],
    d: [u8; 2],
}

impl Block for BlockTq2_0 {
    const TYPE: QuantType = QuantType::TQ2_0;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(1);
    // No quantiser writes 3, but a file may hold it.
    const MAX_CODE: u8 = 3;

    fn quantize(x: &[f32]) -> Self {
        let (d, codes) = ternary(x);
        let qs = std::array::from_fn(|i| {
            let element = i / 32 * 128 + i % 32;
            (0..4).fold(0, |byte, part| byte | codes[element + 32 * part] << (2 * part))
        });
        Self { qs, d }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (codes, qs) in codes[..256].as_chunks_mut::<128>().0.iter_mut().zip(self.qs.as_chunks::<32>().0) {
            for part in 0..4 {
                for i in 0..32 {
                    codes[32 * part + i] = qs[i] >> (2 * part) & 3;
                }
            }
        }
        scales[..8].fill(f16_le(self.d));
    }
}
