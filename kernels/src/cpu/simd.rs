//! Sixteen f32 lanes, three ways: an array, two AVX2 registers, one AVX-512 register.
//!
//! Code that isn't a matmul (norms, activations, softmax, attention) is written once over [`Lanes`] and entered
//! through a `#[target_feature]` function per instruction set (see `vector.rs`). A value that implements [`Lanes`] is
//! the proof that the CPU has its features: the x86 ones are made only after detection.

use half::f16;

/// Lanes in a vector.
pub(crate) const LANES: usize = 16;

/// Sixteen f32 lanes. Methods are `inline(always)` so that they take on the features of the function they are
/// inlined into.
pub(crate) trait Lanes: Copy {
    /// The vector.
    type V: Copy;

    /// Queries whose sums an attention kernel keeps in registers: 1 to 4, 6, 8 or 12.
    const QUERIES: usize = 4;
    /// Whether it keeps two vectors of sums for each of them.
    const WIDE: bool = false;

    fn splat(self, x: f32) -> Self::V;
    fn load(self, from: &[f32; LANES]) -> Self::V;
    fn load_f16(self, from: &[f16; LANES]) -> Self::V;
    /// Widens integers.
    #[inline(always)]
    fn load_i8(self, from: &[i8; LANES]) -> Self::V {
        self.load(&from.map(f32::from))
    }
    /// The low halves of the bytes less 8, then the high ones less 8.
    #[inline(always)]
    fn load_nibbles(self, from: &[u8; LANES]) -> [Self::V; 2] {
        [from.map(|b| f32::from(b & 15) - 8.0), from.map(|b| f32::from(b >> 4) - 8.0)].map(|half| self.load(&half))
    }
    /// Asks for the bytes to be brought near.
    #[inline(always)]
    fn prefetch(self, _bytes: &[u8]) {}
    fn store(self, v: Self::V, to: &mut [f32; LANES]);
    fn add(self, a: Self::V, b: Self::V) -> Self::V;
    fn sub(self, a: Self::V, b: Self::V) -> Self::V;
    fn mul(self, a: Self::V, b: Self::V) -> Self::V;
    fn div(self, a: Self::V, b: Self::V) -> Self::V;
    /// `a · b + c`.
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    fn max(self, a: Self::V, b: Self::V) -> Self::V;
    fn min(self, a: Self::V, b: Self::V) -> Self::V;
    /// To the nearest integer.
    fn round(self, v: Self::V) -> Self::V;
    /// `2^v` for integral `v` in `-126..=127`.
    fn exp2_int(self, v: Self::V) -> Self::V;
    /// `v` where `x >= bound`, else 0.
    fn keep_if_ge(self, v: Self::V, x: Self::V, bound: Self::V) -> Self::V;
    /// Sum of the lanes.
    fn sum(self, v: Self::V) -> f32;
    /// Largest lane.
    fn max_lane(self, v: Self::V) -> f32;
    /// Whether any lane of `a` is above that of `b`.
    #[inline(always)]
    fn any_above(self, a: Self::V, b: Self::V) -> bool {
        let (a, b) = (bits(self, a), bits(self, b));
        a.into_iter().zip(b).any(|(a, b)| f32::from_bits(a) > f32::from_bits(b))
    }

    // What follows sees the bits of a lane as an integer.

    /// The larger of `a`, not negative, and the magnitude of `b`, where NaN > infinity > all numbers.
    #[inline(always)]
    fn larger_magnitude(self, a: Self::V, b: Self::V) -> Self::V {
        let (a, b) = (bits(self, a), bits(self, b));
        self.load(&std::array::from_fn(|i| f32::from_bits(a[i].max(b[i] & 0x7fff_ffff))))
    }
    /// Without the two lowest bits.
    #[inline(always)]
    fn clear_low_bits(self, v: Self::V) -> Self::V {
        self.load(&bits(self, v).map(|v| f32::from_bits(v & !3)))
    }
    /// Their sum, modulo 2^32.
    #[inline(always)]
    fn add_bits(self, a: Self::V, b: Self::V) -> Self::V {
        let (a, b) = (bits(self, a), bits(self, b));
        self.load(&std::array::from_fn(|i| f32::from_bits(a[i].wrapping_add(b[i]))))
    }
    /// The lowest byte of each of four vectors, side by side.
    #[inline(always)]
    fn store_low_bytes(self, v: [Self::V; 4], to: &mut [[i8; 4]; LANES]) {
        let v = [bits(self, v[0]), bits(self, v[1]), bits(self, v[2]), bits(self, v[3])];
        for (lane, to) in to.iter_mut().enumerate() {
            *to = [v[0][lane] as i8, v[1][lane] as i8, v[2][lane] as i8, v[3][lane] as i8];
        }
    }
    /// The lower half of each of two vectors, side by side.
    #[inline(always)]
    fn store_low_halves(self, v: [Self::V; 2], to: &mut [[i16; 2]; LANES]) {
        let v = [bits(self, v[0]), bits(self, v[1])];
        for (lane, to) in to.iter_mut().enumerate() {
            *to = [v[0][lane] as i16, v[1][lane] as i16];
        }
    }
}

/// The lanes' bits.
#[inline(always)]
fn bits<L: Lanes>(l: L, v: L::V) -> [u32; LANES] {
    let mut lanes = [0.0; LANES];
    l.store(v, &mut lanes);
    lanes.map(f32::to_bits)
}

/// Plain Rust: the reference, and what runs where nothing better is known.
#[derive(Clone, Copy)]
pub(crate) struct ScalarLanes;

macro_rules! scalar_binary {
    ($($name:ident: $f:expr;)*) => {
        $(#[inline(always)]
        fn $name(self, a: [f32; LANES], b: [f32; LANES]) -> [f32; LANES] {
            std::array::from_fn(|i| ($f)(a[i], b[i]))
        })*
    };
}

impl Lanes for ScalarLanes {
    type V = [f32; LANES];

    #[inline(always)]
    fn splat(self, x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    fn load(self, from: &[f32; LANES]) -> Self::V {
        *from
    }
    #[inline(always)]
    fn load_f16(self, from: &[f16; LANES]) -> Self::V {
        from.map(f16::to_f32)
    }
    #[inline(always)]
    fn store(self, v: Self::V, to: &mut [f32; LANES]) {
        *to = v;
    }
    scalar_binary! {
        add: |x: f32, y: f32| x + y;
        sub: |x: f32, y: f32| x - y;
        mul: |x: f32, y: f32| x * y;
        div: |x: f32, y: f32| x / y;
        max: f32::max;
        min: f32::min;
    }
    #[inline(always)]
    fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    fn round(self, v: Self::V) -> Self::V {
        v.map(f32::round_ties_even)
    }
    #[inline(always)]
    fn exp2_int(self, v: Self::V) -> Self::V {
        v.map(|x| f32::from_bits(((x as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    fn keep_if_ge(self, v: Self::V, x: Self::V, bound: Self::V) -> Self::V {
        std::array::from_fn(|i| if x[i] >= bound[i] { v[i] } else { 0.0 })
    }
    #[inline(always)]
    fn sum(self, v: Self::V) -> f32 {
        // Pairwise, the order of the vector reductions.
        let mut v = v;
        let mut n = LANES / 2;
        while n > 0 {
            for i in 0..n {
                v[i] += v[i + n];
            }
            n /= 2;
        }
        v[0]
    }
    #[inline(always)]
    fn max_lane(self, v: Self::V) -> f32 {
        v.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2Lanes, Avx512Lanes};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use half::f16;

    use super::{LANES, Lanes};

    /// Proof that the CPU has AVX2, FMA and F16C.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2Lanes(());

    /// Proof that the CPU has AVX-512 F, BW, DQ and VL.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512Lanes(());

    impl Avx2Lanes {
        pub(crate) fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c"))
                .then_some(Self(()))
        }
    }

    impl Avx512Lanes {
        pub(crate) fn detect() -> Option<Self> {
            (is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl"))
            .then_some(Self(()))
        }
    }

    // SAFETY for every block of the two impls: the intrinsics need CPU features, and `self` exists only if `detect`
    // saw them; loads and stores go through references to arrays of exactly the accessed length, unaligned forms.
    macro_rules! avx2_binary {
        ($($name:ident: $f:ident;)*) => {
            $(#[inline(always)]
            fn $name(self, a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: `self` proves the features; see above.
                unsafe { [$f(a[0], b[0]), $f(a[1], b[1])] }
            })*
        };
    }

    /// Brings the bytes to the second-level cache: the first is full of what is being worked on.
    #[inline(always)]
    fn prefetch(bytes: &[u8]) {
        for line in bytes.chunks(64) {
            // SAFETY: a prefetch of any address is harmless; SSE is part of x86-64.
            unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
        }
    }

    impl Lanes for Avx2Lanes {
        type V = [__m256; 2];

        // Twelve registers of sums, two of keys, one query: all 16 but one.
        const QUERIES: usize = 6;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> Self::V {
            // SAFETY: `self` proves the features; both halves lie in the array.
            unsafe { [_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from.as_ptr().add(8))] }
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> Self::V {
            let p = from.as_ptr().cast::<__m128i>();
            // SAFETY: `self` proves the features; both halves lie in the array.
            unsafe { [_mm256_cvtph_ps(_mm_loadu_si128(p)), _mm256_cvtph_ps(_mm_loadu_si128(p.add(1)))] }
        }
        #[inline(always)]
        fn load_i8(self, from: &[i8; LANES]) -> Self::V {
            // SAFETY: `self` proves the features; the array holds the 16 bytes.
            unsafe {
                let bytes = _mm_loadu_si128(from.as_ptr().cast());
                [
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
                    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(bytes))),
                ]
            }
        }
        #[inline(always)]
        fn load_nibbles(self, from: &[u8; LANES]) -> [Self::V; 2] {
            // SAFETY: `self` proves the features; the array holds the 16 bytes.
            unsafe {
                let bytes = _mm_loadu_si128(from.as_ptr().cast());
                let (mask, eight) = (_mm_set1_epi8(15), _mm_set1_epi8(8));
                let low = _mm_sub_epi8(_mm_and_si128(bytes, mask), eight);
                let high = _mm_sub_epi8(_mm_and_si128(_mm_srli_epi16::<4>(bytes), mask), eight);
                // Written out: a closure would not take on the CPU features of the function around it.
                [
                    [
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(low)),
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(low))),
                    ],
                    [
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(high)),
                        _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128::<8>(high))),
                    ],
                ]
            }
        }
        #[inline(always)]
        fn prefetch(self, bytes: &[u8]) {
            prefetch(bytes);
        }
        #[inline(always)]
        fn store(self, v: Self::V, to: &mut [f32; LANES]) {
            // SAFETY: `self` proves the features; both halves lie in the array.
            unsafe {
                _mm256_storeu_ps(to.as_mut_ptr(), v[0]);
                _mm256_storeu_ps(to.as_mut_ptr().add(8), v[1]);
            }
        }
        avx2_binary! {
            add: _mm256_add_ps;
            sub: _mm256_sub_ps;
            mul: _mm256_mul_ps;
            div: _mm256_div_ps;
            max: _mm256_max_ps;
            min: _mm256_min_ps;
        }
        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        fn round(self, v: Self::V) -> Self::V {
            const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
            // SAFETY: `self` proves the features; see above.
            unsafe { [_mm256_round_ps::<NEAREST>(v[0]), _mm256_round_ps::<NEAREST>(v[1])] }
        }
        #[inline(always)]
        fn exp2_int(self, v: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                v.map(|x| {
                    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(x), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
                })
            }
        }
        #[inline(always)]
        fn keep_if_ge(self, v: Self::V, x: Self::V, bound: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                [
                    _mm256_and_ps(v[0], _mm256_cmp_ps::<_CMP_GE_OQ>(x[0], bound[0])),
                    _mm256_and_ps(v[1], _mm256_cmp_ps::<_CMP_GE_OQ>(x[1], bound[1])),
                ]
            }
        }
        #[inline(always)]
        fn sum(self, v: Self::V) -> f32 {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let v = _mm256_add_ps(v[0], v[1]);
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        fn max_lane(self, v: Self::V) -> f32 {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let v = _mm256_max_ps(v[0], v[1]);
                let v = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_max_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_max_ss(v, _mm_movehdup_ps(v)))
            }
        }
        #[inline(always)]
        fn any_above(self, a: Self::V, b: Self::V) -> bool {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let low = _mm256_cmp_ps::<_CMP_GT_OQ>(a[0], b[0]);
                _mm256_movemask_ps(_mm256_or_ps(low, _mm256_cmp_ps::<_CMP_GT_OQ>(a[1], b[1]))) != 0
            }
        }
        #[inline(always)]
        fn larger_magnitude(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
                let [low, high] = [_mm256_and_ps(b[0], magnitude), _mm256_and_ps(b[1], magnitude)];
                [
                    _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a[0]), _mm256_castps_si256(low))),
                    _mm256_castsi256_ps(_mm256_max_epi32(_mm256_castps_si256(a[1]), _mm256_castps_si256(high))),
                ]
            }
        }
        #[inline(always)]
        fn clear_low_bits(self, v: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let kept = _mm256_castsi256_ps(_mm256_set1_epi32(!3));
                [_mm256_and_ps(v[0], kept), _mm256_and_ps(v[1], kept)]
            }
        }
        #[inline(always)]
        fn add_bits(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                [
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a[0]), _mm256_castps_si256(b[0]))),
                    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a[1]), _mm256_castps_si256(b[1]))),
                ]
            }
        }
        #[inline(always)]
        #[allow(clippy::needless_range_loop, reason = "the same half of every register")]
        fn store_low_bytes(self, v: [Self::V; 4], to: &mut [[i8; 4]; LANES]) {
            for half in 0..2 {
                // SAFETY: `self` proves the features; each half of the array is 32 bytes.
                unsafe {
                    let byte = _mm256_set1_epi32(0xff);
                    let [a, b] = [_mm256_castps_si256(v[0][half]), _mm256_castps_si256(v[1][half])];
                    let [c, d] = [_mm256_castps_si256(v[2][half]), _mm256_castps_si256(v[3][half])];
                    let low =
                        _mm256_or_si256(_mm256_and_si256(a, byte), _mm256_slli_epi32::<8>(_mm256_and_si256(b, byte)));
                    let high =
                        _mm256_or_si256(_mm256_slli_epi32::<16>(_mm256_and_si256(c, byte)), _mm256_slli_epi32::<24>(d));
                    _mm256_storeu_si256(to.as_mut_ptr().add(8 * half).cast(), _mm256_or_si256(low, high));
                }
            }
        }
        #[inline(always)]
        #[allow(clippy::needless_range_loop, reason = "the same half of every register")]
        fn store_low_halves(self, v: [Self::V; 2], to: &mut [[i16; 2]; LANES]) {
            for half in 0..2 {
                // SAFETY: `self` proves the features; each half of the array is 32 bytes.
                unsafe {
                    let low = _mm256_castps_si256(v[0][half]);
                    let high = _mm256_slli_epi32::<16>(_mm256_castps_si256(v[1][half]));
                    let both = _mm256_blend_epi16::<0b1010_1010>(low, high);
                    _mm256_storeu_si256(to.as_mut_ptr().add(8 * half).cast(), both);
                }
            }
        }
    }

    macro_rules! avx512_binary {
        ($($name:ident: $f:ident;)*) => {
            $(#[inline(always)]
            fn $name(self, a: Self::V, b: Self::V) -> Self::V {
                // SAFETY: `self` proves the features; see above.
                unsafe { $f(a, b) }
            })*
        };
    }

    impl Lanes for Avx512Lanes {
        type V = __m512;

        // 24 registers of sums, two of keys, one query: 27 of 32. Eight queries would do for the adders' latency; twelve
        // load less beside each multiplication.
        const QUERIES: usize = 12;
        const WIDE: bool = true;

        #[inline(always)]
        fn splat(self, x: f32) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        fn load(self, from: &[f32; LANES]) -> Self::V {
            // SAFETY: `self` proves the features; the array holds the 16 elements.
            unsafe { _mm512_loadu_ps(from.as_ptr()) }
        }
        #[inline(always)]
        fn load_f16(self, from: &[f16; LANES]) -> Self::V {
            // SAFETY: `self` proves the features; the array holds the 16 elements.
            unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.as_ptr().cast())) }
        }
        #[inline(always)]
        fn load_i8(self, from: &[i8; LANES]) -> Self::V {
            // SAFETY: `self` proves the features; the array holds the 16 bytes.
            unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.as_ptr().cast()))) }
        }
        #[inline(always)]
        fn load_nibbles(self, from: &[u8; LANES]) -> [Self::V; 2] {
            // SAFETY: `self` proves the features; the array holds the 16 bytes.
            unsafe {
                let bytes = _mm_loadu_si128(from.as_ptr().cast());
                let mask = _mm_set1_epi8(15);
                [_mm_and_si128(bytes, mask), _mm_and_si128(_mm_srli_epi16::<4>(bytes), mask)].map(|codes| {
                    let codes = _mm_sub_epi8(codes, _mm_set1_epi8(8));
                    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes))
                })
            }
        }
        #[inline(always)]
        fn prefetch(self, bytes: &[u8]) {
            prefetch(bytes);
        }
        #[inline(always)]
        fn store(self, v: Self::V, to: &mut [f32; LANES]) {
            // SAFETY: `self` proves the features; the array holds the 16 elements.
            unsafe { _mm512_storeu_ps(to.as_mut_ptr(), v) }
        }
        avx512_binary! {
            add: _mm512_add_ps;
            sub: _mm512_sub_ps;
            mul: _mm512_mul_ps;
            div: _mm512_div_ps;
            max: _mm512_max_ps;
            min: _mm512_min_ps;
        }
        #[inline(always)]
        fn fma(self, a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        fn round(self, v: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v) }
        }
        #[inline(always)]
        fn exp2_int(self, v: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let biased = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        fn keep_if_ge(self, v: Self::V, x: Self::V, bound: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_maskz_mov_ps(_mm512_cmp_ps_mask::<_CMP_GE_OQ>(x, bound), v) }
        }
        #[inline(always)]
        fn sum(self, v: Self::V) -> f32 {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_reduce_add_ps(v) }
        }
        #[inline(always)]
        fn max_lane(self, v: Self::V) -> f32 {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_reduce_max_ps(v) }
        }
        #[inline(always)]
        fn any_above(self, a: Self::V, b: Self::V) -> bool {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) != 0 }
        }
        #[inline(always)]
        fn larger_magnitude(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe {
                let magnitude = _mm512_and_si512(_mm512_castps_si512(b), _mm512_set1_epi32(0x7fff_ffff));
                _mm512_castsi512_ps(_mm512_max_epi32(_mm512_castps_si512(a), magnitude))
            }
        }
        #[inline(always)]
        fn clear_low_bits(self, v: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(!3))) }
        }
        #[inline(always)]
        fn add_bits(self, a: Self::V, b: Self::V) -> Self::V {
            // SAFETY: `self` proves the features; see above.
            unsafe { _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(a), _mm512_castps_si512(b))) }
        }
        #[inline(always)]
        fn store_low_bytes(self, v: [Self::V; 4], to: &mut [[i8; 4]; LANES]) {
            /// Bits of the second operand where the first has ones, else of the third.
            const SELECT: i32 = 0xca;
            // SAFETY: `self` proves the features; the array is 64 bytes.
            unsafe {
                let (byte, half) = (_mm512_set1_epi32(0xff), _mm512_set1_epi32(0xffff));
                let [a, b] = [_mm512_castps_si512(v[0]), _mm512_castps_si512(v[1])];
                let [c, d] = [_mm512_castps_si512(v[2]), _mm512_castps_si512(v[3])];
                let low = _mm512_ternarylogic_epi32::<SELECT>(byte, a, _mm512_slli_epi32::<8>(b));
                let high = _mm512_ternarylogic_epi32::<SELECT>(byte, c, _mm512_slli_epi32::<8>(d));
                let all = _mm512_ternarylogic_epi32::<SELECT>(half, low, _mm512_slli_epi32::<16>(high));
                _mm512_storeu_si512(to.as_mut_ptr().cast(), all);
            }
        }
        #[inline(always)]
        fn store_low_halves(self, v: [Self::V; 2], to: &mut [[i16; 2]; LANES]) {
            // SAFETY: `self` proves the features; the array is 64 bytes.
            unsafe {
                let high = _mm512_slli_epi32::<16>(_mm512_castps_si512(v[1]));
                let both = _mm512_mask_blend_epi16(0xaaaa_aaaa, _mm512_castps_si512(v[0]), high);
                _mm512_storeu_si512(to.as_mut_ptr().cast(), both);
            }
        }
    }
}
