//! Quantisation of activations: bit for bit what the scalar code gives.

use core::arch::aarch64::*;

use crate::cpu::matrix::scale_of;

/// See `CpuKernels::quantize_act_row`. Magnitudes are compared as integers, where NaN > infinity > all numbers.
///
/// # Safety
/// The CPU must have NEON; lengths must fit together.
#[target_feature(enable = "neon")]
pub(super) unsafe fn quantize_act_row(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    let groups = x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).zip(d).zip(sums.as_chunks_mut::<2>().0);
    for (((x, q), d), sums) in groups {
        let (mut parts, mut largest) = ([vdupq_n_f32(0.0); 8], vdupq_n_u32(0));
        for (i, part) in parts.iter_mut().enumerate() {
            // SAFETY: four of 32 floats.
            *part = unsafe { vld1q_f32(x.as_ptr().add(4 * i)) };
            largest = vmaxq_u32(largest, vreinterpretq_u32_f32(vabsq_f32(*part)));
        }
        let largest = f32::from_bits(vmaxvq_u32(largest));
        let inverse = 127.0 / largest;
        if !inverse.is_normal() {
            *d = if largest.is_finite() { 0.0 } else { largest };
            q.fill(0);
            sums.fill(0);
            continue;
        }
        *d = scale_of(largest);
        for (half, sum) in sums.iter_mut().enumerate() {
            // Products are in −127..=127 up to one rounding; the conversion rounds to nearest even.
            let int = |i: usize| vmovn_s32(vcvtnq_s32_f32(vmulq_n_f32(parts[4 * half + i], inverse)));
            let (low, high) = (vcombine_s16(int(0), int(1)), vcombine_s16(int(2), int(3)));
            // Sixteen numbers of at most 127.
            *sum = vaddvq_s16(vaddq_s16(low, high));
            // SAFETY: 16 of 32 bytes.
            unsafe { vst1q_s8(q.as_mut_ptr().add(16 * half), vcombine_s8(vmovn_s16(low), vmovn_s16(high))) };
        }
    }
}
