//! Q8_K: `w = d · q`, q signed, 256 weights in 292 bytes. Codes here are `q + 128`. Made for activations: `sums` are for dot products.

use super::{Block, GroupKind, QuantType, fit};

/// d: f32; qs: i8 as bytes; sums: i16, of 16 q each.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockQ8K {
    d: [u8; 4],
    qs: [u8; 256],
    sums: [[u8; 2]; 16],
}

impl Block for BlockQ8K {
    const TYPE: QuantType = QuantType::Q8_K;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 255;

    fn quantize(x: &[f32]) -> Self {
        let d = fit::extreme(x).abs() / 127.0;
        let qs: [u8; 256] = std::array::from_fn(|i| fit::code(x[i], fit::inverse(d), 128.0, 255).max(1) ^ 0x80);
        let sum = |group: usize| qs[group * 16..group * 16 + 16].iter().map(|&q| i16::from(q as i8)).sum::<i16>();
        Self { d: d.to_le_bytes(), qs, sums: std::array::from_fn(|group| sum(group).to_le_bytes()) }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (code, q) in codes[..256].iter_mut().zip(&self.qs) {
            *code = q ^ 0x80;
        }
        scales[..8].fill(f32::from_le_bytes(self.d));
    }
}
