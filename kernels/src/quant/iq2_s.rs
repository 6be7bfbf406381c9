//! IQ2_S: `w = d · (s + ½) / 4 · ±level`, 256 weights in 82 bytes, 4-bit scales for 16. Codes here are `±level + 128`.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, Parity, put_signed, refit, signs_of},
    fit,
    float::f16_le,
    grids::{self, expand_8},
    iq2_xs::{scales_of_16, unpack_scales},
    iq2_xxs::{CODES, LEVELS, put_values},
};

/// Points of the codebook as codes.
pub(crate) static POINTS: [u64; 1024] = expand_8(&grids::IQ2_S, CODES);
static BOOK: Book<1024, 8> = Book::new(&grids::IQ2_S, 2, &LEVELS);

/// For elements `8·i ..+ 8`: the index is `qs[i]` and, on top, bits `2·(i % 4)` of `qh[i / 4]`; the signs are `signs[i]`. Nibbles of
/// `scales`: groups 2·i and 2·i + 1.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq2S {
    d: [u8; 2],
    qs: [u8; 32],
    signs: [u8; 32],
    qh: [u8; 8],
    scales: [u8; 8],
}

impl Block for BlockIq2S {
    const TYPE: QuantType = QuantType::IQ2_S;
    const LEN: usize = 256;
    const GROUP: usize = 16;
    const KIND: GroupKind = GroupKind::Offset(128);
    const MAX_CODE: u8 = 171;

    fn quantize(x: &[f32]) -> Self {
        let (numbers, unit) = scales_of_16(x);
        let (mut qs, mut signs, mut qh, mut values) = ([0; 32], [0; 32], [0; 8], [0.0; 256]);
        for i in 0..32 {
            let scale = f32::from(numbers[i / 2]) + 0.5;
            let (bits, magnitudes) = signs_of(&x[8 * i..8 * i + 8], Parity::Any);
            let (point, _) = BOOK.nearest(&magnitudes.map(|x| x * fit::inverse(unit * scale)));
            (qs[i], signs[i]) = (point as u8, bits as u8);
            qh[i / 4] |= ((point >> 8) as u8) << (2 * (i % 4));
            put_values(&mut values[8 * i..8 * i + 8], POINTS[point].to_le_bytes(), bits, scale);
        }
        let scales = std::array::from_fn(|i| numbers[2 * i] | numbers[2 * i + 1] << 4);
        Self { d: fit::to_half(refit(x, &values) * 4.0).0, qs, signs, qh, scales }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (i, codes) in codes[..256].as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let point = usize::from(self.qs[i]) | usize::from(self.qh[i / 4] >> (2 * (i % 4)) & 3) << 8;
            put_signed(codes, POINTS[point].to_le_bytes(), u32::from(self.signs[i]), 0);
        }
        unpack_scales(f16_le(self.d), &self.scales, scales);
    }
}
