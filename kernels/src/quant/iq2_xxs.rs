//! IQ2_XXS: `w = d · (s + ½) / 4 · ±level`, 256 weights in 66 bytes. Codes here are `±level + 128`.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, Parity, even_signs, half_step_scales, put_signed, refit, scale_for, signs_of, u32_at},
    fit,
    float::f16_le,
    grids::{self, expand_8},
};

/// What the digits of the IQ2 codebooks stand for.
pub(super) const LEVELS: [f32; 3] = [8.0, 25.0, 43.0];
/// The same as codes of positive elements.
pub(crate) const CODES: [u8; 3] = [136, 153, 171];
/// Points of the codebook as codes.
pub(crate) static POINTS: [u64; 256] = expand_8(&grids::IQ2_XXS, CODES);
static BOOK: Book<256, 8> = Book::new(&grids::IQ2_XXS, 2, &LEVELS);

/// Eight bytes a group of 32: four indices of points, then (little-endian) four times seven signs and a 4-bit scale on top.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq2Xxs {
    d: [u8; 2],
    qs: [[u8; 8]; 8],
}

impl Block for BlockIq2Xxs {
    const TYPE: QuantType = QuantType::IQ2_XXS;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 171;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 8] = std::array::from_fn(|g| {
            let magnitudes: [f32; 32] = std::array::from_fn(|i| x[32 * g + i].abs());
            scale_for(&magnitudes, &LEVELS)
        });
        let (numbers, unit) = half_step_scales(&wanted, 15);
        let (mut qs, mut values) = ([[0; 8]; 8], [0.0; 256]);
        for (g, qs) in qs.iter_mut().enumerate() {
            let scale = f32::from(numbers[g]) + 0.5;
            let mut high = u32::from(numbers[g]) << 28;
            let (points, last) = qs.split_at_mut(4);
            for (l, to) in points.iter_mut().enumerate() {
                let at = 32 * g + 8 * l;
                let (signs, magnitudes) = signs_of(&x[at..at + 8], Parity::Even);
                let (point, _) = BOOK.nearest(&magnitudes.map(|x| x * fit::inverse(unit * scale)));
                *to = point as u8;
                high |= (signs & 127) << (7 * l);
                put_values(&mut values[at..at + 8], POINTS[point].to_le_bytes(), signs, scale);
            }
            last.copy_from_slice(&high.to_le_bytes());
        }
        Self { d: fit::to_half(refit(x, &values) * 4.0).0, qs }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let d = f16_le(self.d);
        for ((codes, scale), qs) in codes[..256].as_chunks_mut::<32>().0.iter_mut().zip(scales).zip(&self.qs) {
            let high = u32_at(qs, 4);
            *scale = d * ((high >> 28) as f32 + 0.5) * 0.25;
            for l in 0..4 {
                let point = POINTS[usize::from(qs[l])].to_le_bytes();
                put_signed(&mut codes[8 * l..], point, even_signs(high >> (7 * l) & 127), 0);
            }
        }
    }
}

/// Values of a point of codes around 128 with a scale, for the choice of the block's scale.
pub(super) fn put_values<const D: usize>(values: &mut [f32], point: [u8; D], signs: u32, scale: f32) {
    for (j, (value, code)) in values.iter_mut().zip(point).enumerate() {
        let level = scale * (f32::from(code) - 128.0);
        *value = if signs >> j & 1 == 0 { level } else { -level };
    }
}
