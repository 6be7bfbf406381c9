//! Sixteen f32 lanes in four NEON registers.

use core::arch::aarch64::*;

use half::f16;

use crate::cpu::simd::{LANES, Lanes};

/// Proof that the CPU has NEON, which all 64-bit ARM CPUs do that Rust's standard library runs on.
#[derive(Clone, Copy)]
pub(crate) struct NeonLanes(());

impl NeonLanes {
    pub(crate) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

// SAFETY for every block of the impl: the intrinsics need NEON, and `self` exists only if `detect` saw it; loads and stores
// go through references to arrays of exactly the accessed length, and have no alignment beyond the element's.
macro_rules! binary {
    ($($name:ident: $f:ident;)*) => {
        $(#[inline(always)]
        fn $name(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: `self` proves the feature; see above.
            unsafe { [$f(a[0], b[0]), $f(a[1], b[1]), $f(a[2], b[2]), $f(a[3], b[3])] }
        })*
    };
}

impl Lanes for NeonLanes {
    type V = [float32x4_t; 4];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        // SAFETY: `self` proves the feature; see above.
        unsafe { [vdupq_n_f32(x); 4] }
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        // SAFETY: `self` proves the feature; the array holds the 16 elements.
        unsafe { std::array::from_fn(|i| vld1q_f32(from.as_ptr().add(4 * i))) }
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        // SAFETY: `self` proves the feature; the array holds the 16 elements.
        unsafe {
            let halves =
                |i: usize| vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from.as_ptr().cast::<u16>().add(4 * i))));
            [halves(0), halves(1), halves(2), halves(3)]
        }
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        // SAFETY: `self` proves the feature; the array holds the 16 elements.
        unsafe {
            for i in 0..4 {
                vst1q_f32(to.as_mut_ptr().add(4 * i), v[i]);
            }
        }
    }
    binary! {
        add: vaddq_f32;
        sub: vsubq_f32;
        mul: vmulq_f32;
        div: vdivq_f32;
        max: vmaxnmq_f32;
        min: vminnmq_f32;
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        // SAFETY: `self` proves the feature; see above.
        unsafe { std::array::from_fn(|i| vfmaq_f32(c[i], a[i], b[i])) }
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        // SAFETY: `self` proves the feature; see above.
        unsafe { v.map(|x| vrndnq_f32(x)) }
    }
    #[inline(always)]
    fn exp2_int(self, v: Self::V) -> Self::V {
        // SAFETY: `self` proves the feature; see above.
        unsafe { v.map(|x| vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(vcvtnq_s32_f32(x), vdupq_n_s32(127))))) }
    }
    #[inline(always)]
    fn keep_if_ge(self, v: Self::V, x: Self::V, bound: Self::V) -> Self::V {
        // SAFETY: `self` proves the feature; see above.
        unsafe {
            std::array::from_fn(|i| {
                vreinterpretq_f32_u32(vandq_u32(vreinterpretq_u32_f32(v[i]), vcgeq_f32(x[i], bound[i])))
            })
        }
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // SAFETY: `self` proves the feature; see above.
        unsafe { vaddvq_f32(vaddq_f32(vaddq_f32(v[0], v[1]), vaddq_f32(v[2], v[3]))) }
    }
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        // SAFETY: `self` proves the feature; see above.
        unsafe { vmaxnmvq_f32(vmaxnmq_f32(vmaxnmq_f32(v[0], v[1]), vmaxnmq_f32(v[2], v[3]))) }
    }
}
