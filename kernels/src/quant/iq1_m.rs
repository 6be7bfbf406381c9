//! IQ1_M: `w = d · (2·s + 1) · (t ± ⅛)`, t ternary, 256 weights in 56 bytes, 3-bit scales for 16, a shift for 8. Codes here are
//! `8·t ± 1 + 9`, so the scale is an eighth.

use super::{
    Block, GroupKind, QuantType,
    codebook::{half_step_scales, refit, scale_for, u16_at},
    fit,
    float::f16_le,
    iq1_s::{POINTS, nearest, put_values},
};

/// For elements `8·i ..+ 8` the index is `qs[i]` and, on top, three bits from bit `4·(i % 2)` on of `qh[i / 2]`; the bit above is set
/// for the shift down. `scales` are four words: four 3-bit scales each, and a quarter of d (f16) on top, lowest first.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq1M {
    qs: [u8; 32],
    qh: [u8; 16],
    scales: [u8; 8],
}

impl Block for BlockIq1M {
    const TYPE: QuantType = QuantType::IQ1_M;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(9);
    const MAX_CODE: u8 = 18;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 16] = std::array::from_fn(|g| scale_for(&x[16 * g..16 * g + 16], &[-8.0, 0.0, 8.0]));
        let (numbers, unit) = half_step_scales(&wanted, 7);
        let (mut qs, mut qh, mut values) = ([0; 32], [0; 16], [0.0; 256]);
        for i in 0..32 {
            let scale = f32::from(numbers[i / 2]) + 0.5;
            let inverse = fit::inverse(unit * scale);
            let wanted = std::array::from_fn(|j| x[8 * i + j] * inverse);
            let found = [0, 1].map(|is_up| nearest(&wanted, is_up));
            let is_up = usize::from(found[1].1 <= found[0].1);
            let point = found[is_up].0;
            qs[i] = point as u8;
            qh[i / 2] |= ((point >> 8) as u8 | u8::from(is_up == 0) << 3) << (4 * (i % 2));
            put_values(&mut values[8 * i..8 * i + 8], point, is_up, scale);
        }
        // The scale is d · (2·s + 1) / 8 = d / 4 · (s + ½).
        let d = u16::from_le_bytes(fit::to_half(refit(x, &values) * 4.0).0);
        let mut scales = [0; 8];
        for (i, bytes) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
            let part = |j: usize| u16::from(numbers[4 * i + j]) << (3 * j);
            *bytes = (part(0) | part(1) | part(2) | part(3) | (d >> (4 * i) & 15) << 12).to_le_bytes();
        }
        Self { qs, qh, scales }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (i, codes) in codes[..256].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let high = self.qh[i / 2] >> (4 * (i % 2));
            let shift = if high & 8 == 0 { 0x0202_0202_0202_0202 } else { 0 };
            let point = usize::from(self.qs[i]) | usize::from(high & 7) << 8;
            *codes = (POINTS[point] + shift).to_le_bytes();
        }
        let words: [u32; 4] = std::array::from_fn(|i| u16_at(&self.scales, 2 * i));
        let d = (0..4).fold(0, |d, i| d | (words[i] >> 12) << (4 * i)) as u16;
        let d = f16_le(d.to_le_bytes()) * 0.125;
        for (g, scale) in scales[..16].iter_mut().enumerate() {
            *scale = d * (2 * (words[g / 4] >> (3 * (g % 4)) & 7) + 1) as f32;
        }
    }
}
