//! IQ3_S: `w = d · (2·s + 1) · ±level`, 256 weights in 110 bytes, 4-bit scales for 32. Codes here are `±level + 15`.

use super::{
    Block, GroupKind, QuantType,
    codebook::{Book, Parity, half_step_scales, put_signed, refit, scale_for, signs_of},
    fit,
    float::f16_le,
    grids::{self, expand_4},
};

/// What the digits of the codebook stand for.
const LEVELS: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
/// Points of the codebook as codes.
pub(crate) static POINTS: [u32; 512] = expand_4(&grids::IQ3_S, [16, 18, 20, 22, 24, 26, 28, 30]);
static BOOK: Book<512, 4> = Book::new(&grids::IQ3_S, 3, &LEVELS);

/// For elements `4·i ..+ 4` the index is `qs[i]` and, on top, bit `i % 8` of `qh[i / 8]`; sign of element i at bit `i % 8` of
/// `signs[i / 8]`. Nibbles of `scales`: groups 2·i and 2·i + 1.
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct BlockIq3S {
    d: [u8; 2],
    qs: [u8; 64],
    qh: [u8; 8],
    signs: [u8; 32],
    scales: [u8; 4],
}

impl Block for BlockIq3S {
    const TYPE: QuantType = QuantType::IQ3_S;
    const LEN: usize = 256;
    const GROUP: usize = 32;
    const KIND: GroupKind = GroupKind::Offset(15);
    const MAX_CODE: u8 = 30;

    fn quantize(x: &[f32]) -> Self {
        let wanted: [f32; 8] = std::array::from_fn(|g| {
            let magnitudes: [f32; 32] = std::array::from_fn(|i| x[32 * g + i].abs());
            scale_for(&magnitudes, &LEVELS)
        });
        let (numbers, unit) = half_step_scales(&wanted, 15);
        let (mut qs, mut qh, mut signs, mut values) = ([0; 64], [0; 8], [0; 32], [0.0; 256]);
        for i in 0..64 {
            let scale = f32::from(numbers[i / 8]) + 0.5;
            let x = &x[4 * i..4 * i + 4];
            let wanted = std::array::from_fn(|j| x[j].abs() * fit::inverse(unit * scale));
            let (point, _) = BOOK.nearest(&wanted);
            qs[i] = point as u8;
            qh[i / 8] |= ((point >> 8) as u8) << (i % 8);
            for (j, code) in POINTS[point].to_le_bytes().into_iter().enumerate() {
                let level = scale * (f32::from(code) - 15.0);
                values[4 * i + j] = if x[j] < 0.0 { -level } else { level };
            }
        }
        for (signs, x) in signs.iter_mut().zip(x.as_chunks::<8>().0) {
            *signs = signs_of(x, Parity::Any).0 as u8;
        }
        let scales = std::array::from_fn(|i| numbers[2 * i] | numbers[2 * i + 1] << 4);
        Self { d: fit::to_half(refit(x, &values) * 0.5).0, qs, qh, signs, scales }
    }

    #[inline(always)]
    fn unpack(&self, codes: &mut [u8], scales: &mut [f32], _: &mut [f32]) {
        for (i, codes) in codes[..256].as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let point = usize::from(self.qs[i]) | usize::from(self.qh[i / 8] >> (i % 8) & 1) << 8;
            let signs = self.signs[i / 2] >> (4 * (i % 2));
            put_signed(codes, POINTS[point].to_le_bytes(), u32::from(signs), 30);
        }
        let d = f16_le(self.d);
        for (pair, nibbles) in scales[..8].as_chunks_mut::<2>().0.iter_mut().zip(self.scales) {
            *pair = [nibbles & 15, nibbles >> 4].map(|number| d * (2.0 * f32::from(number) + 1.0));
        }
    }
}
