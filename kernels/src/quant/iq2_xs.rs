//! IQ2_XS: `w = d · (s + ½) / 4 · ±level`, 256 weights in 74 bytes, 4-bit scales for 16. Codes here are `±level + 128`.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, Parity, even_signs, half_step_scales, put_signed, refit, scale_for, signs_of, u16_at},
    fit,
    float::f16_le,
    grids::{self, expand_8},
    iq2_xxs::{CODES, LEVELS, put_values},
};

/// Points of the codebook as codes.
pub(crate) static POINTS: [u64; 512] = expand_8(&grids::IQ2_XS, CODES);
static BOOK: Book<512, 8> = Book::new(&grids::IQ2_XS, 2, &LEVELS);

/// Two bytes of `qs` for 8 elements: nine bits of the point's index, seven signs above. Nibbles of `scales`: groups 2·i and 2·i + 1.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq2Xs {
    d: [u8; 2],
    qs: [u8; 64],
    scales: [u8; 8],
}

/// Scales for 16 of `x`, in numbers of 4 bits, and their unit.
pub(super) fn scales_of_16(x: &[f32]) -> ([u8; 16], f32) {
    let wanted: [f32; 16] = std::array::from_fn(|g| {
        let magnitudes: [f32; 16] = std::array::from_fn(|i| x[16 * g + i].abs());
        scale_for(&magnitudes, &LEVELS)
    });
    half_step_scales(&wanted, 15)
}

/// Scales from nibbles.
#[inline(always)]
pub(super) fn unpack_scales(d: f32, nibbles: &[u8; 8], scales: &mut [f32]) {
    for (pair, nibbles) in scales[..16].as_chunks_mut::<2>().0.iter_mut().zip(nibbles) {
        *pair = [nibbles & 15, nibbles >> 4].map(|number| d * (f32::from(number) + 0.5) * 0.25);
    }
}

impl Block for BlockIq2Xs {
    const TYPE: QuantType = QuantType::IQ2_XS;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 171;

    fn quantize(x: &[f32]) -> Self {
        let (numbers, unit) = scales_of_16(x);
        let (mut qs, mut values) = ([0; 64], [0.0; 256]);
        for i in 0..32 {
            let scale = f32::from(numbers[i / 2]) + 0.5;
            let (signs, magnitudes) = signs_of(&x[8 * i..8 * i + 8], Parity::Even);
            let (point, _) = BOOK.nearest(&magnitudes.map(|x| x * fit::inverse(unit * scale)));
            qs[2 * i..2 * i + 2].copy_from_slice(&(point as u16 | (signs as u16 & 127) << 9).to_le_bytes());
            put_values(&mut values[8 * i..8 * i + 8], POINTS[point].to_le_bytes(), signs, scale);
        }
        let scales = std::array::from_fn(|i| numbers[2 * i] | numbers[2 * i + 1] << 4);
        Self { d: fit::to_half(refit(x, &values) * 4.0).0, qs, scales }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (i, codes) in codes[..256].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let word = u16_at(&self.qs, 2 * i);
            put_signed(codes, POINTS[word as usize & 511].to_le_bytes(), even_signs(word >> 9), 0);
        }
        unpack_scales(f16_le(self.d), &self.scales, scales);
    }
}
