//! The 8-bit GEMM: what `cpu/gemm.rs` and `cpu/tile.rs` want of an ISA.
//!
//! `vpmaddubsw` gives sums of two products in 16 bits. As many of them as can't overflow are added before they are widened:
//! `STEPS · 2 · MAX_CODE · 127 < 2^15` gives 8 steps for 4-bit codes, 4 for 5 bits, 2 for 6. 8-bit codes would saturate at once:
//! they are made signed, and give their sign to x, for 2 · 128 · 127 = 32512.

use core::arch::x86_64::*;

use super::{Avx2, formats::Format};
use crate::{
    cpu::{
        gemm::{GemmIsa, Source, TileRows, Unpacked},
        matrix::{ACT_GROUP, SUM_GROUP},
        pack::PACK_ROWS,
        scalar::unreachable_float,
        tile::{self, Tile, TileLanes},
    },
    quant::{Block, GroupKind, with_block},
};

/// Steps of 8-bit codes, which are signed.
const SIGNED: usize = 1;

/// Steps that codes up to `max` allow.
const fn steps(max: u8) -> usize {
    let mut steps = 8;
    while steps > SIGNED && steps * 2 * max as usize * 127 > i16::MAX as usize {
        steps /= 2;
    }
    steps
}
const _: () = assert!(steps(15) == 8 && steps(31) == 4 && steps(63) == 2 && steps(64) == 2 && steps(65) == SIGNED);

/// Calls `$function::<GROUP, MIN, MAX, ..>` for a type's group, kind and largest code, rounded up to one that [`steps`] tells apart.
macro_rules! by_kind {
    ($block:ident, $function:ident [$($more:tt)*] ($($arg:expr),*)) => {
        match ($block::KIND, $block::GROUP) {
            (GroupKind::Offset(_), ACT_GROUP) => by_kind!(@max $block, $function [ACT_GROUP, false] [$($more)*] ($($arg),*)),
            (GroupKind::Offset(_), _) => by_kind!(@max $block, $function [SUM_GROUP, false] [$($more)*] ($($arg),*)),
            (GroupKind::Min, ACT_GROUP) => by_kind!(@max $block, $function [ACT_GROUP, true] [$($more)*] ($($arg),*)),
            (GroupKind::Min, _) => by_kind!(@max $block, $function [SUM_GROUP, true] [$($more)*] ($($arg),*)),
        }
    };
    (@max $block:ident, $function:ident [$group:ident, $min:literal] [$($more:tt)*] ($($arg:expr),*)) => {
        match steps($block::MAX_CODE) {
            8 => $function::<$group, $min, 15, $($more)*>($($arg),*),
            4 => $function::<$group, $min, 31, $($more)*>($($arg),*),
            2 => $function::<$group, $min, 63, $($more)*>($($arg),*),
            _ => $function::<$group, $min, 255, $($more)*>($($arg),*),
        }
    };
}

impl GemmIsa for Avx2 {
    const LANES: usize = 8;
    const TILE_COLS: [usize; 2] = [4, 2];

    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked) {
        // SAFETY: the caller's promises, passed on.
        unsafe { unpack(from, Lanes::bias(B::MAX_CODE), to) }
    }

    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32) {
        let bias = i32::from(Lanes::bias(B::MAX_CODE));
        let offset = match B::KIND {
            GroupKind::Offset(offset) => i32::from(offset) - bias,
            GroupKind::Min => 0,
        };
        debug_assert!(B::KIND != GroupKind::Min || bias == 0, "minima are for small codes");
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(_), ACT_GROUP) => aux_of::<ACT_GROUP, false>(offset, sums, d, num_groups, aux),
                (GroupKind::Offset(_), _) => aux_of::<SUM_GROUP, false>(offset, sums, d, num_groups, aux),
                (GroupKind::Min, ACT_GROUP) => aux_of::<ACT_GROUP, true>(offset, sums, d, num_groups, aux),
                (GroupKind::Min, _) => aux_of::<SUM_GROUP, true>(offset, sums, d, num_groups, aux),
            }
        }
    }

    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    ) {
        // SAFETY: the caller's promises, passed on.
        unsafe { transpose(rows, stride, num_rows, num_units, to, to_stride) }
    }

    #[inline(always)]
    fn prefetch(address: *const u8) {
        // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
    }

    unsafe fn tile<B: Block>(tile: &Tile, rows: TileRows) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match rows {
                // There are no halves here.
                TileRows::Half | TileRows::One => by_kind!(B, compute[1, 4](tile)),
                TileRows::Two => by_kind!(B, compute[2, 2](tile)),
            }
        }
    }
}

/// As [`GemmIsa::unpack`], with the unpacking of decode; `bias` is subtracted from the codes.
///
/// # Safety
/// The CPU must have AVX2, FMA and F16C.
pub(super) unsafe fn unpack<B: Block>(from: &Source<B>, bias: u8, to: &mut Unpacked) {
    // SAFETY: the caller's promises, passed on. F is B.
    unsafe {
        with_block!(B::TYPE, |F| unpack_format::<F>(&from.cast(), bias, to), unreachable_float(B::TYPE));
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn unpack_format<F: Format>(from: &Source<F>, bias: u8, to: &mut Unpacked) {
    let num_groups = F::LEN / F::GROUP;
    assert!(to.code_stride >= from.num_blocks * F::LEN && to.scale_stride >= from.num_blocks * num_groups);
    // Signed codes have their offset subtracted.
    let offset = match F::KIND {
        GroupKind::Offset(offset) if F::SIGNED => offset,
        _ => 0,
    };
    let shift = _mm256_set1_epi8(offset.wrapping_sub(bias) as i8);
    let (mut block_scales, mut block_mins) = ([0.0; 16], [0.0; 16]);
    let rows = to.codes.chunks_exact_mut(to.code_stride).zip(to.scales.chunks_exact_mut(to.scale_stride));
    for ((blocks, (codes, scales)), mins) in from.rows().zip(rows).zip(to.mins.chunks_exact_mut(to.scale_stride)) {
        for (i, block) in blocks.iter().enumerate() {
            let block = (&raw const *block).cast::<u8>();
            let groups = i * num_groups..(i + 1) * num_groups;
            // SAFETY: a block, and room for its codes (asserted).
            unsafe {
                F::scales(block, &mut block_scales, &mut block_mins);
                for part in 0..F::LEN / 32 {
                    let to = codes.as_mut_ptr().add(i * F::LEN + part * 32);
                    _mm256_storeu_si256(to.cast(), _mm256_add_epi8(F::codes(block, part), shift));
                }
            }
            scales[groups.clone()].copy_from_slice(&block_scales[..num_groups]);
            if matches!(F::KIND, GroupKind::Min) {
                mins[groups].copy_from_slice(&block_mins[..num_groups]);
            }
        }
    }
}

/// [`tile::prepare_aux`], compiled for AVX2.
#[target_feature(enable = "avx2,fma")]
unsafe fn aux_of<const GROUP: usize, const MIN: bool>(
    offset: i32,
    sums: *const i16,
    d: *const f32,
    num_groups: usize,
    aux: *mut i32,
) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::prepare_aux::<Lanes, GROUP, MIN>(offset, sums, d, num_groups, aux) }
}

/// [`tile::compute`], compiled for AVX2.
#[target_feature(enable = "avx2,fma")]
unsafe fn compute<const GROUP: usize, const MIN: bool, const MAX: u8, const R: usize, const N: usize>(tile: &Tile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute::<Lanes, GROUP, MIN, MAX, R, N>(tile) }
}

/// Eight lanes.
pub(in crate::cpu) struct Lanes;

impl TileLanes for Lanes {
    const LANES: usize = 8;
    type Int = __m256i;
    type Float = __m256;

    fn bias(max: u8) -> u8 {
        if steps(max) == SIGNED { 128 } else { 0 }
    }

    #[inline(always)]
    unsafe fn load_int(p: *const i32) -> __m256i {
        // SAFETY: the caller's register.
        unsafe { _mm256_loadu_si256(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_int(p: *mut i32, x: __m256i) {
        // SAFETY: the caller's register.
        unsafe { _mm256_storeu_si256(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m256i {
        // SAFETY: value-only.
        unsafe { _mm256_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn add_int(a: __m256i, b: __m256i) -> __m256i {
        // SAFETY: value-only.
        unsafe { _mm256_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn halves(x: __m256i) -> [__m256i; 2] {
        // SAFETY: value-only.
        unsafe { [_mm256_srai_epi32::<16>(_mm256_slli_epi32::<16>(x)), _mm256_srai_epi32::<16>(x)] }
    }

    #[inline(always)]
    unsafe fn mul_add_int(a: __m256i, b: __m256i, c: __m256i) -> __m256i {
        // SAFETY: value-only.
        unsafe { _mm256_add_epi32(_mm256_mullo_epi32(a, b), c) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        // SAFETY: the caller's register.
        unsafe { _mm256_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m256) {
        // SAFETY: the caller's register.
        unsafe { _mm256_storeu_ps(p, x) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        // SAFETY: value-only.
        unsafe { _mm256_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn from_bits(x: __m256i) -> __m256 {
        // SAFETY: value-only.
        unsafe { _mm256_castsi256_ps(x) }
    }

    #[inline(always)]
    unsafe fn to_bits(x: __m256) -> __m256i {
        // SAFETY: value-only.
        unsafe { _mm256_castps_si256(x) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        // SAFETY: value-only.
        unsafe { _mm256_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        // SAFETY: value-only.
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [__m256i; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[__m256i; R]; N] {
        let steps = const { steps(MAX) };
        let mut dots = [start; N];
        // SAFETY: `GROUP` codes of each of N rows, and as many elements of R registers of activation rows.
        unsafe {
            let ones = _mm256_set1_epi16(1);
            for first in (0..GROUP / 4).step_by(steps) {
                let mut pairs = [[_mm256_setzero_si256(); R]; N];
                // A group of 16 has four steps only.
                for step in first..(first + steps).min(GROUP / 4) {
                    let mut x = [_mm256_setzero_si256(); R];
                    for r in 0..R {
                        x[r] = _mm256_loadu_si256(q.add((step * PACK_ROWS + r * 8) * 4).cast());
                    }
                    for n in 0..N {
                        let w = _mm256_set1_epi32(codes.add(n * stride + step * 4).cast::<i32>().read_unaligned());
                        for r in 0..R {
                            let products = if steps == SIGNED {
                                _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x[r], w))
                            } else {
                                _mm256_maddubs_epi16(w, x[r])
                            };
                            pairs[n][r] = _mm256_add_epi16(pairs[n][r], products);
                        }
                    }
                }
                for n in 0..N {
                    for r in 0..R {
                        dots[n][r] = _mm256_add_epi32(dots[n][r], _mm256_madd_epi16(pairs[n][r], ones));
                    }
                }
            }
        }
        dots
    }
}

/// A mask of the first `count` of eight lanes.
#[inline(always)]
pub(super) unsafe fn lanes(count: usize) -> __m256i {
    // SAFETY: value-only.
    unsafe {
        let index = _mm256_set_epi32(7, 6, 5, 4, 3, 2, 1, 0);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(count.min(8) as i32), index)
    }
}

/// See [`GemmIsa::transpose`].
///
/// # Safety
/// As there; the CPU must have AVX2.
#[target_feature(enable = "avx2")]
pub(super) unsafe fn transpose(
    rows: *const u32,
    stride: usize,
    num_rows: usize,
    num_units: usize,
    to: *mut u32,
    to_stride: usize,
) {
    for unit in (0..num_units).step_by(8) {
        for row in (0..num_rows).step_by(8) {
            let (row_count, unit_count) = ((num_rows - row).min(8), (num_units - unit).min(8));
            // SAFETY: a square of the caller's shapes; lanes behind the last unit and the last row are masked off.
            unsafe {
                let (from, to) = (rows.add(row * stride + unit), to.add(unit * to_stride + row));
                let mut square = [_mm256_setzero_si256(); 8];
                // Loops of constant length leave the square in registers.
                if row_count == 8 && unit_count == 8 {
                    for r in 0..8 {
                        square[r] = _mm256_loadu_si256(from.add(r * stride).cast());
                    }
                    transpose_8(&mut square);
                    for u in 0..8 {
                        _mm256_storeu_si256(to.add(u * to_stride).cast(), square[u]);
                    }
                } else {
                    let (row_mask, unit_mask) = (lanes(row_count), lanes(unit_count));
                    for r in 0..row_count {
                        square[r] = _mm256_maskload_epi32(from.add(r * stride).cast(), unit_mask);
                    }
                    transpose_8(&mut square);
                    for u in 0..unit_count {
                        _mm256_maskstore_epi32(to.add(u * to_stride).cast(), row_mask, square[u]);
                    }
                }
            }
        }
    }
}

/// Transposes 8 × 8 units.
#[target_feature(enable = "avx2")]
#[inline]
fn transpose_8(x: &mut [__m256i; 8]) {
    // 2 × 2 and 4 × 4 squares inside each half of 128 bits, then the halves.
    for i in (0..8).step_by(4) {
        let (a, b) = (_mm256_unpacklo_epi32(x[i], x[i + 1]), _mm256_unpackhi_epi32(x[i], x[i + 1]));
        let (c, d) = (_mm256_unpacklo_epi32(x[i + 2], x[i + 3]), _mm256_unpackhi_epi32(x[i + 2], x[i + 3]));
        x[i] = _mm256_unpacklo_epi64(a, c);
        x[i + 1] = _mm256_unpackhi_epi64(a, c);
        x[i + 2] = _mm256_unpacklo_epi64(b, d);
        x[i + 3] = _mm256_unpackhi_epi64(b, d);
    }
    for i in 0..4 {
        let (low, high) = (x[i], x[i + 4]);
        x[i] = _mm256_permute2x128_si256::<0x20>(low, high);
        x[i + 4] = _mm256_permute2x128_si256::<0x31>(low, high);
    }
}
