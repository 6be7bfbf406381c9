//! Quantisation of activations: bit for bit what the scalar code gives.

use core::arch::x86_64::*;

use crate::cpu::matrix::scale_of;

/// See `CpuKernels::quantize_act_row`. Magnitudes are compared as integers, where NaN > infinity > all numbers.
///
/// # Safety
/// The CPU must have AVX-512 F, BW, VL and DQ; lengths must fit together.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
pub(super) unsafe fn quantize_act_row(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    let groups = x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).zip(d).zip(sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in groups {
        // SAFETY: 32 floats in; 32 bytes out.
        unsafe {
            let (a, b) = (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(16)));
            let magnitude = _mm512_set1_epi32(0x7fff_ffff);
            let bits = _mm512_max_epi32(
                _mm512_and_si512(_mm512_castps_si512(a), magnitude),
                _mm512_and_si512(_mm512_castps_si512(b), magnitude),
            );
            let largest = f32::from_bits(_mm512_reduce_max_epi32(bits) as u32);
            let inverse = 127.0 / largest;
            let is_usable = inverse.is_normal();
            *d = if is_usable {
                scale_of(largest)
            } else if largest.is_finite() {
                0.0
            } else {
                largest
            };
            // Products are in −127..=127 up to one rounding; the conversion rounds to nearest even. A masked-off group is zero.
            let mask = if is_usable { !0 } else { 0 };
            let inverse = _mm512_set1_ps(inverse);
            let a = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(a, inverse));
            let b = _mm512_maskz_cvtps_epi32(mask, _mm512_mul_ps(b, inverse));
            _mm_storeu_si128(q.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(a));
            _mm_storeu_si128(q.as_mut_ptr().add(16).cast(), _mm512_cvtepi32_epi8(b));
            *sums = [_mm512_reduce_add_epi32(a) as i16, _mm512_reduce_add_epi32(b) as i16];
        }
    }
}
