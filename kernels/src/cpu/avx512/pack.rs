//! Panels of codes and scales, made with the same unpacking as decode, and the transpose of 32-bit units.

use core::arch::x86_64::*;

use super::{
    Avx512,
    formats::{Format, Mins},
};
use crate::cpu::{
    matrix::ROW_TILE,
    pack::{CodePanel, Transpose, assert_transpose},
};

/// As [`crate::cpu::pack::pack_codes`], for rows of `blocks_per_row` blocks at `rows`: a chunk of each row becomes codes in row order
/// and registers of scales and minima, then all three are transposed.
///
/// # Safety
/// `num_rows` (1 to [`ROW_TILE`]) rows must be readable; the CPU must have AVX-512 F, BW, VL and DQ, and F16C.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn pack_chunks<F: Format>(
    rows: *const u8,
    num_rows: usize,
    blocks_per_row: usize,
    from: usize,
    num_elements: usize,
    panel: &mut CodePanel,
) {
    const STRIDE: usize = 128;
    let chunk_elements = F::CODES * 64;
    const { assert!(F::CODES * 16 <= STRIDE && ROW_TILE * (STRIDE + 32) <= crate::cpu::pack::STRIP_UNITS) };
    panel.clear_if_partial(num_rows);
    for chunk in (0..num_elements).step_by(chunk_elements) {
        let elements = chunk_elements.min(num_elements - chunk);
        let (codes, rest) = panel.strip.split_at_mut(ROW_TILE * STRIDE);
        let (scales, mins) = rest.split_at_mut(ROW_TILE * 16);
        for r in 0..num_rows {
            // SAFETY: blocks from + chunk ..+ elements of row r; a row of `codes` has room for a chunk, one of `scales` and `mins` for
            // a register.
            unsafe {
                let block = rows.add((r * blocks_per_row + (from + chunk) / F::LEN) * F::BYTES);
                let (d, m) = F::scales(block, elements / F::LEN);
                _mm512_storeu_ps(scales[r * 16..r * 16 + 16].as_mut_ptr().cast(), d);
                if F::MINS == Mins::Apart {
                    _mm512_storeu_ps(mins[r * 16..r * 16 + 16].as_mut_ptr().cast(), m);
                }
                let out = codes[r * STRIDE..(r + 1) * STRIDE].as_mut_ptr();
                for i in 0..elements / 64 {
                    _mm512_storeu_si512(out.add(16 * i).cast(), F::codes(block, i));
                }
                if elements % 64 != 0 {
                    let last = F::half(block.add((elements / F::LEN - 1) * F::BYTES));
                    _mm512_storeu_si512(out.add(elements / 64 * 16).cast(), last);
                }
            }
        }
        // SAFETY: same features.
        unsafe {
            Avx512::transpose(codes, STRIDE, elements / 4, &mut panel.codes[chunk / 4 * ROW_TILE..]);
            let (at, groups) = (chunk / F::GROUP * ROW_TILE, elements / F::GROUP);
            Avx512::transpose(scales, 16, groups, bytemuck::cast_slice_mut(&mut panel.scales[at..]));
            if F::MINS == Mins::Apart {
                Avx512::transpose(mins, 16, groups, bytemuck::cast_slice_mut(&mut panel.mins[at..]));
            }
        }
        if F::MINS == Mins::Upper {
            // Lanes 8.. of the scales are minima, without their sign.
            for r in 0..num_rows {
                for group in 0..8 {
                    let min = f32::from_bits(scales[r * 16 + 8 + group]);
                    panel.mins[(chunk / F::GROUP + group) * ROW_TILE + r] = -min;
                }
            }
        }
    }
}

impl Transpose for Avx512 {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn transpose(rows: &[u32], stride: usize, num_units: usize, panel: &mut [u32]) {
        assert_transpose(rows, stride, num_units, panel);
        for unit in (0..num_units).step_by(16) {
            for half in 0..ROW_TILE / 16 {
                // SAFETY: 16 units from `unit` on in 16 rows (asserted); as many rows of the panel as there are units.
                unsafe {
                    let mut square = [_mm512_setzero_si512(); 16];
                    for (r, line) in square.iter_mut().enumerate() {
                        *line = _mm512_loadu_si512(rows.as_ptr().add((half * 16 + r) * stride + unit).cast());
                    }
                    transpose_16(&mut square);
                    for (u, &line) in square.iter().enumerate().take(num_units - unit) {
                        _mm512_storeu_si512(panel.as_mut_ptr().add((unit + u) * ROW_TILE + half * 16).cast(), line);
                    }
                }
            }
        }
    }
}

/// Transposes 16 × 16 units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
fn transpose_16(x: &mut [__m512i; 16]) {
    // 2 × 2 and 4 × 4 squares inside each quarter of 128 bits, then the quarters.
    for i in (0..16).step_by(4) {
        let (a, b) = (_mm512_unpacklo_epi32(x[i], x[i + 1]), _mm512_unpackhi_epi32(x[i], x[i + 1]));
        let (c, d) = (_mm512_unpacklo_epi32(x[i + 2], x[i + 3]), _mm512_unpackhi_epi32(x[i + 2], x[i + 3]));
        x[i] = _mm512_unpacklo_epi64(a, c);
        x[i + 1] = _mm512_unpackhi_epi64(a, c);
        x[i + 2] = _mm512_unpacklo_epi64(b, d);
        x[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    for i in 0..4 {
        let a = _mm512_shuffle_i32x4::<0x88>(x[i], x[i + 4]);
        let b = _mm512_shuffle_i32x4::<0xdd>(x[i], x[i + 4]);
        let c = _mm512_shuffle_i32x4::<0x88>(x[i + 8], x[i + 12]);
        let d = _mm512_shuffle_i32x4::<0xdd>(x[i + 8], x[i + 12]);
        x[i] = _mm512_shuffle_i32x4::<0x88>(a, c);
        x[i + 4] = _mm512_shuffle_i32x4::<0x88>(b, d);
        x[i + 8] = _mm512_shuffle_i32x4::<0xdd>(a, c);
        x[i + 12] = _mm512_shuffle_i32x4::<0xdd>(b, d);
    }
}
