//! Attention whose products are those of bf16 pairs: queries, keys, weights and values are rounded to 8 significant bits on their
//! way, scores, maxima and sums stay f32. Twice the multiplications an instruction, for steps of many queries.
//!
//! Keys pair neighbours in the head, values neighbours in the text: a lane holds both, and one instruction multiplies and adds them.

use std::ops::Range;

use half::f16;

use super::attention::{KV_BLOCK, Products, TileArgs};
use super::kv::{KvType, widen_keys, widen_values};
use super::simd::{LANES, Lanes};

/// What multiplies pairs. A value that implements it is the proof that the CPU can.
pub(super) trait PairMath<L: Lanes>: Copy {
    /// Each lane's two numbers rounded to nearest, `low` in the lower half.
    fn pairs(self, l: L, low: L::V, high: L::V) -> L::V;

    /// 32 numbers in their order: lane i holds numbers 2i and 2i + 1.
    fn neighbours(self, l: L, first: L::V, second: L::V) -> L::V;

    /// `acc` and both products, in f32.
    fn multiply(self, l: L, x: L::V, y: L::V, acc: L::V) -> L::V;
}

/// [`Products`] of pairs.
#[derive(Clone, Copy)]
pub(super) struct Rounded<M>(pub(super) M);

/// Whether a tile can be computed so: whole pairs and vectors, and a cache that doesn't promise more than 16 bits.
pub(super) fn takes(args: &TileArgs<'_>) -> bool {
    args.k_dim.is_multiple_of(2) && args.v_dim.is_multiple_of(LANES) && ![args.kv.k, args.kv.v].contains(&KvType::F32)
}

impl<L: Lanes, M: PairMath<L>> Products<L> for Rounded<M> {
    const PER_LANE: usize = 2;

    #[inline(always)]
    fn pack_query(self, l: L, query: &[f32], factor: f32, width: usize, packed: &mut [f32]) {
        let factor = l.splat(factor);
        for (part, packed) in query.chunks(2 * LANES).zip(packed.chunks_mut(LANES * width)) {
            let mut padded = [[0.0; LANES]; 2];
            padded.as_flattened_mut()[..part.len()].copy_from_slice(part);
            let [first, second] = [l.mul(l.load(&padded[0]), factor), l.mul(l.load(&padded[1]), factor)];
            l.store(self.0.neighbours(l, first, second), &mut padded[0]);
            for (column, pair) in packed.chunks_mut(width).zip(&padded[0][..part.len() / 2]) {
                column[0] = *pair;
            }
        }
    }

    #[inline(always)]
    fn keys(self, l: L, kv: KvType, block: &[u8], k_dim: usize, to: &mut [f32]) {
        if kv == KvType::F16 {
            return pair_f16(l, self.0, bytemuck::cast_slice(block), KV_BLOCK, to);
        }
        widen_keys(l, kv, block, k_dim, to);
        pair_rows(l, self.0, to, k_dim / 2, KV_BLOCK);
    }

    #[inline(always)]
    fn values(self, l: L, kv: KvType, block: &[u8], v_dim: usize, used: &Range<usize>, to: &mut [f32]) {
        // The neighbour of a token that is seen may be anything: its weight is 0, which must not meet a NaN.
        let all_finite = used.start.is_multiple_of(2) && used.end.is_multiple_of(2);
        if kv == KvType::F16 && all_finite {
            let block = bytemuck::cast_slice::<u8, f16>(block);
            let (from, to) = (&block[used.start * v_dim..used.end * v_dim], &mut to[used.start / 2 * v_dim..]);
            return pair_f16(l, self.0, from, v_dim, to);
        }
        widen_values(l, kv, block, v_dim, to);
        to[..used.start * v_dim].fill(0.0);
        to[used.end * v_dim..KV_BLOCK * v_dim].fill(0.0);
        pair_rows(l, self.0, to, KV_BLOCK / 2, v_dim);
    }

    #[inline(always)]
    fn multiply(self, l: L, x: L::V, y: L::V, acc: L::V) -> L::V {
        self.0.multiply(l, x, y, acc)
    }

    #[inline(always)]
    fn pack_weights(self, l: L, weights: [L::V; 2], to: &mut [f32; KV_BLOCK]) {
        l.store(self.0.neighbours(l, weights[0], weights[1]), &mut to.as_chunks_mut::<LANES>().0[0]);
    }
}

/// Rows `2i` and `2i + 1` become row `i` of pairs, where they lie: a row is written after it was read.
#[inline(always)]
fn pair_rows<L: Lanes, M: PairMath<L>>(l: L, math: M, rows: &mut [f32], num_pairs: usize, width: usize) {
    let rows = rows[..2 * num_pairs * width].as_chunks_mut::<LANES>().0;
    let width = width / LANES;
    for pair in 0..num_pairs {
        for column in 0..width {
            let low = l.load(&rows[2 * pair * width + column]);
            let high = l.load(&rows[(2 * pair + 1) * width + column]);
            l.store(math.pairs(l, low, high), &mut rows[pair * width + column]);
        }
    }
}

/// Rows `2i` and `2i + 1` of `from`, `width` long, become row `i` of pairs in `to`.
#[inline(always)]
fn pair_f16<L: Lanes, M: PairMath<L>>(l: L, math: M, from: &[f16], width: usize, to: &mut [f32]) {
    for (rows, to) in from.chunks_exact(2 * width).zip(to.chunks_exact_mut(width)) {
        let (low, high) = rows.split_at(width);
        let halves = low.as_chunks::<LANES>().0.iter().zip(high.as_chunks::<LANES>().0);
        for ((low, high), to) in halves.zip(to.as_chunks_mut::<LANES>().0) {
            l.store(math.pairs(l, l.load_f16(low), l.load_f16(high)), to);
        }
    }
}

/// `vdpbf16ps` and its conversions.
#[cfg(target_arch = "x86_64")]
pub(super) use x86::Avx512Bf16;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use core::arch::x86_64::*;
    use std::mem::transmute;

    use super::PairMath;
    use crate::cpu::simd::Avx512Lanes;

    /// The instructions of AVX-512 BF16. Made only after detection.
    #[derive(Clone, Copy)]
    pub(in crate::cpu) struct Avx512Bf16(());

    impl Avx512Bf16 {
        pub(in crate::cpu) fn detect() -> Option<Self> {
            is_x86_feature_detected!("avx512bf16").then_some(Self(()))
        }
    }

    impl PairMath<Avx512Lanes> for Avx512Bf16 {
        #[inline(always)]
        fn pairs(self, _: Avx512Lanes, low: __m512, high: __m512) -> __m512 {
            /// Numbers i and 16 + i side by side.
            const ZIP: [u16; 32] = {
                let mut zip = [0; 32];
                let mut i = 0;
                while i < 32 {
                    zip[i] = (i / 2 + i % 2 * 16) as u16;
                    i += 1;
                }
                zip
            };
            // SAFETY: both values prove the features; vectors of bf16 are bits of any content; the array is a vector's.
            unsafe {
                let both = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low));
                _mm512_castsi512_ps(_mm512_permutexvar_epi16(_mm512_loadu_si512(ZIP.as_ptr().cast()), both))
            }
        }

        #[inline(always)]
        fn neighbours(self, _: Avx512Lanes, first: __m512, second: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe { transmute::<__m512bh, __m512>(_mm512_cvtne2ps_pbh(second, first)) }
        }

        #[inline(always)]
        fn multiply(self, _: Avx512Lanes, x: __m512, y: __m512, acc: __m512) -> __m512 {
            // SAFETY: as above.
            unsafe {
                let [x, y] = [transmute::<__m512, __m512bh>(x), transmute::<__m512, __m512bh>(y)];
                _mm512_dpbf16_ps(acc, x, y)
            }
        }
    }
}

/// What those instructions do, on any lanes: so that all but them is tested everywhere.
#[cfg(test)]
#[derive(Clone, Copy)]
pub(super) struct Emulated;

#[cfg(test)]
impl<L: Lanes> PairMath<L> for Emulated {
    fn pairs(self, l: L, low: L::V, high: L::V) -> L::V {
        let [low, high] = [low, high].map(|v| lanes(l, v).map(half::bf16::from_f32));
        l.load(&std::array::from_fn(|i| pair(low[i], high[i])))
    }

    fn neighbours(self, l: L, first: L::V, second: L::V) -> L::V {
        let numbers = [lanes(l, first), lanes(l, second)].as_flattened().to_vec();
        l.load(&std::array::from_fn(|i| {
            pair(half::bf16::from_f32(numbers[2 * i]), half::bf16::from_f32(numbers[2 * i + 1]))
        }))
    }

    fn multiply(self, l: L, x: L::V, y: L::V, acc: L::V) -> L::V {
        let [x, y, acc] = [lanes(l, x), lanes(l, y), lanes(l, acc)];
        let halves = |x: f32| [x.to_bits() << 16, x.to_bits() & 0xffff_0000].map(f32::from_bits);
        l.load(&std::array::from_fn(|i| {
            let ([a, b], [c, d]) = (halves(x[i]), halves(y[i]));
            a.mul_add(c, b.mul_add(d, acc[i]))
        }))
    }
}

#[cfg(test)]
fn lanes<L: Lanes>(l: L, v: L::V) -> [f32; LANES] {
    let mut lanes = [0.0; LANES];
    l.store(v, &mut lanes);
    lanes
}

#[cfg(test)]
fn pair(low: half::bf16, high: half::bf16) -> f32 {
    f32::from_bits(u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16)
}
