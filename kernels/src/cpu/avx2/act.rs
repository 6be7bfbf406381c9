//! Quantisation of activations, bit for bit what the scalar code gives, and what dot products of offset codes start with.

use core::arch::x86_64::*;

use crate::cpu::matrix::scale_of;

/// See `CpuKernels::quantize_act_row`. Magnitudes are compared as integers, where NaN > infinity > all numbers.
///
/// # Safety
/// The CPU must have AVX2; lengths must fit together.
#[target_feature(enable = "avx2,fma,f16c")]
pub(super) unsafe fn quantize_act_row(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    let groups = x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).zip(d).zip(sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in groups {
        let magnitude = _mm256_set1_epi32(0x7fff_ffff);
        let (mut parts, mut largest) = ([_mm256_setzero_ps(); 4], _mm256_setzero_si256());
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: eight of 32 floats.
            *part = unsafe { _mm256_loadu_ps(x.as_ptr().add(8 * i)) };
            largest = _mm256_max_epi32(largest, _mm256_and_si256(_mm256_castps_si256(*part), magnitude));
        }
        let four = _mm_max_epi32(_mm256_castsi256_si128(largest), _mm256_extracti128_si256::<1>(largest));
        let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
        let one = _mm_max_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two));
        let largest = f32::from_bits(_mm_cvtsi128_si32(one) as u32);
        let inverse = 127.0 / largest;
        let is_usable = inverse.is_normal();
        *d = if is_usable {
            scale_of(largest)
        } else if largest.is_finite() {
            0.0
        } else {
            largest
        };
        // Products are in −127..=127 up to one rounding; the conversion rounds to nearest even. A group that isn't usable is zero.
        let mask = _mm256_set1_epi32(if is_usable { -1 } else { 0 });
        let inverse = _mm256_set1_ps(inverse);
        let mut ints = [_mm256_setzero_si256(); 4];
        for (int, part) in ints.iter_mut().zip(parts) {
            *int = _mm256_and_si256(_mm256_cvtps_epi32(_mm256_mul_ps(part, inverse)), mask);
        }
        // Packing works on halves of 128 bits: the last permutation puts groups of four back into order.
        let words = [_mm256_packs_epi32(ints[0], ints[1]), _mm256_packs_epi32(ints[2], ints[3])];
        let bytes = _mm256_packs_epi16(words[0], words[1]);
        let bytes = _mm256_permutevar8x32_epi32(bytes, _mm256_set_epi32(7, 3, 6, 2, 5, 1, 4, 0));
        // SAFETY: 32 bytes.
        unsafe { _mm256_storeu_si256(q.as_mut_ptr().cast(), bytes) };
        *sums = [sum(_mm256_add_epi32(ints[0], ints[1])) as i16, sum(_mm256_add_epi32(ints[2], ints[3])) as i16];
    }
}

/// Sum over the lanes.
#[target_feature(enable = "avx2")]
#[inline]
fn sum(x: __m256i) -> i32 {
    let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
    let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
    _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<0b10_11_00_01>(two)))
}

/// `starts[i] = −offset · Σ q[4i ..+ 4]`, offset at most 128. `vpmaddubsw` doesn't saturate: 2 · 128 · 127 = 32512 < 2^15.
///
/// # Safety
/// The CPU must have AVX2.
#[target_feature(enable = "avx2")]
pub(in crate::cpu) unsafe fn prepare_starts(offset: u8, q: &[i8], starts: &mut [i32]) {
    let offsets = _mm256_set1_epi8(offset as i8);
    for (q, starts) in q.as_chunks::<32>().0.iter().zip(starts.as_chunks_mut::<8>().0) {
        // SAFETY: 32 bytes in, 8 integers out.
        unsafe {
            let x = _mm256_loadu_si256(q.as_ptr().cast());
            let pairs = _mm256_maddubs_epi16(offsets, x);
            // A factor of −1 negates and adds neighbours in one step.
            let fours = _mm256_madd_epi16(pairs, _mm256_set1_epi16(-1));
            _mm256_storeu_si256(starts.as_mut_ptr().cast(), fours);
        }
    }
}
