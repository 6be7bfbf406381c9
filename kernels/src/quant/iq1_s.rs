//! IQ1_S: `w = d · (2·s + 1) · (t ± ⅛)`, t ternary, 256 weights in 50 bytes, 3-bit scales for 32. Codes here are `8·t ± 1 + 9`, so
//! the scale is an eighth.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, half_step_scales, refit, scale_for, u16_at},
    fit,
    float::f16_le,
    grids::{self, expand_8},
};

/// Points of the codebook as codes with the shift down; the shift up is 2 more.
pub(crate) static POINTS: [u64; 2048] = expand_8(&grids::IQ1, [0, 8, 16]);
static BOOK: Book<2048, 8> = Book::new(&grids::IQ1, 2, &[-1.0, 0.0, 1.0]);

/// Eight indices are `qs[i]` and, on top, three bits from bit `3·(i % 4)` on of word `i / 4` of `qh`; the word has the scale in bits 12
/// to 14, and bit 15 set for the shift down.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq1S {
    d: [u8; 2],
    qs: [u8; 32],
    qh: [u8; 16],
}

/// The point nearest to `x`, in eighths of the shifted lattice, and what it costs.
pub(super) fn nearest(x: &[f32; 8], is_up: usize) -> (usize, f32) {
    let shift = if is_up == 1 { 1.0 } else { -1.0 };
    let ternary = x.map(|x| (x - shift) / 8.0);
    let (point, cost) = BOOK.nearest(&ternary);
    // In squared eighths, less what doesn't depend on the shift.
    (point, cost * 128.0 + ternary.iter().map(|t| t * t).sum::<f32>() * 64.0)
}

/// Values of a point with a scale, for the choice of the block's scale.
pub(super) fn put_values(values: &mut [f32], point: usize, is_up: usize, scale: f32) {
    for (value, code) in values.iter_mut().zip(POINTS[point].to_le_bytes()) {
        *value = scale * (f32::from(code) + 2.0 * is_up as f32 - 9.0);
    }
}

impl Block for BlockIq1S {
    const TYPE: QuantType = QuantType::IQ1_S;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(9);
    const MAX_CODE: u8 = 18;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 8] = std::array::from_fn(|g| scale_for(&x[32 * g..32 * g + 32], &[-8.0, 0.0, 8.0]));
        let (numbers, unit) = half_step_scales(&wanted, 7);
        let (mut qs, mut qh, mut values) = ([0; 32], [0; 16], [0.0; 256]);
        for g in 0..8 {
            let scale = f32::from(numbers[g]) + 0.5;
            let inverse = fit::inverse(unit * scale);
            let found = [0, 1].map(|is_up| {
                let parts: [(usize, f32); 4] =
                    std::array::from_fn(|l| nearest(&std::array::from_fn(|i| x[32 * g + 8 * l + i] * inverse), is_up));
                (parts.map(|part| part.0), parts.iter().map(|part| part.1).sum::<f32>())
            });
            let is_up = usize::from(found[1].1 <= found[0].1);
            let mut word = u16::from(numbers[g]) << 12 | u16::from(is_up == 0) << 15;
            for (l, point) in found[is_up].0.into_iter().enumerate() {
                qs[4 * g + l] = point as u8;
                word |= ((point >> 8) as u16) << (3 * l);
                put_values(&mut values[32 * g + 8 * l..32 * g + 8 * l + 8], point, is_up, scale);
            }
            qh[2 * g..2 * g + 2].copy_from_slice(&word.to_le_bytes());
        }
        // The scale is d · (2·s + 1) / 8 = d / 4 · (s + ½).
        Self { d: fit::to_half(refit(x, &values) * 4.0).0, qs, qh }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let d = f16_le(self.d) * 0.125;
        for (g, (codes, scale)) in codes[..256].as_chunks_mut::<32>().0.iter_mut().zip(scales).enumerate() {
            let word = u16_at(&self.qh, 2 * g);
            *scale = d * (2 * (word >> 12 & 7) + 1) as f32;
            let shift = if word & 0x8000 == 0 { 0x0202_0202_0202_0202 } else { 0 };
            for (l, codes) in codes.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let point = usize::from(self.qs[4 * g + l]) | (word as usize >> (3 * l) & 7) << 8;
                *codes = (POINTS[point] + shift).to_le_bytes();
            }
        }
    }
}
