//! Transpose of 32-bit units.

use core::arch::x86_64::*;

use super::Avx512;
use crate::cpu::{
    matrix::ROW_TILE,
    pack::{Transpose, assert_transpose},
};

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
