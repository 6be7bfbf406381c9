//! IQ3_XXS: `w = d · (s + ½) / 2 · ±level`, 256 weights in 98 bytes, 4-bit scales for 32. Codes here are `±level + 128`.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, Parity, even_signs, half_step_scales, put_signed, refit, scale_for, signs_of, u32_at},
    fit,
    float::f16_le,
    grids::{self, expand_4},
    iq2_xxs::put_values,
};

/// What the digits of the codebook stand for.
const LEVELS: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
/// Points of the codebook as codes.
pub(crate) static POINTS: [u32; 256] = expand_4(&grids::IQ3_XXS, [132, 140, 148, 156, 164, 172, 180, 190]);
static BOOK: Book<256, 4> = Book::new(&grids::IQ3_XXS, 3, &LEVELS);

/// `qs[i]` is the point of elements `4·i ..+ 4`; a (little-endian) word of `signs` for a group of 32 holds four times seven signs, and
/// the scale on top.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq3Xxs {
    d: [u8; 2],
    qs: [u8; 64],
    signs: [[u8; 4]; 8],
}

impl Block for BlockIq3Xxs {
    const TYPE: QuantType = QuantType::IQ3_XXS;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 190;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 8] = std::array::from_fn(|g| {
            let magnitudes: [f32; 32] = std::array::from_fn(|i| x[32 * g + i].abs());
            scale_for(&magnitudes, &LEVELS)
        });
        let (numbers, unit) = half_step_scales(&wanted, 15);
        let (mut qs, mut words, mut values) = ([0; 64], [[0; 4]; 8], [0.0; 256]);
        for g in 0..8 {
            let scale = f32::from(numbers[g]) + 0.5;
            let mut word = u32::from(numbers[g]) << 28;
            for l in 0..4 {
                let at = 32 * g + 8 * l;
                let (signs, magnitudes) = signs_of(&x[at..at + 8], Parity::Even);
                word |= (signs & 127) << (7 * l);
                for (half, magnitudes) in magnitudes.as_chunks::<4>().0.iter().enumerate() {
                    let (point, _) = BOOK.nearest(&magnitudes.map(|x| x * fit::inverse(unit * scale)));
                    let at = at + 4 * half;
                    qs[at / 4] = point as u8;
                    put_values(&mut values[at..at + 4], POINTS[point].to_le_bytes(), signs >> (4 * half), scale);
                }
            }
            words[g] = word.to_le_bytes();
        }
        Self { d: fit::to_half(refit(x, &values) * 2.0).0, qs, signs: words }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        let d = f16_le(self.d);
        for (g, (codes, scale)) in codes[..256].as_chunks_mut::<32>().0.iter_mut().zip(scales).enumerate() {
            let word = u32_at(&self.signs[g], 0);
            *scale = d * ((word >> 28) as f32 + 0.5) * 0.5;
            for l in 0..4 {
                let signs = even_signs(word >> (7 * l) & 127);
                for half in 0..2 {
                    let point = POINTS[usize::from(self.qs[8 * g + 2 * l + half])].to_le_bytes();
                    put_signed(&mut codes[8 * l + 4 * half..], point, signs >> (4 * half), 0);
                }
            }
        }
    }
}
