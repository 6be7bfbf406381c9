//! The 8-bit GEMM: what `cpu/gemm.rs` and `cpu/tile.rs` want of an ISA.
//!
//! Twelve chains of dot products hide their latency: 6 rows of weights × 2 registers of 16 activation rows, or 12 × 1. With as
//! many f32 sums and the registers that are loaded that is 31 of 32.

use core::arch::x86_64::*;
use std::marker::PhantomData;

use super::{
    dot::Dot,
    formats::{Format, Mins},
    half,
};
use crate::{
    cpu::{
        gemm::{GemmIsa, Source, TileRows, Unpacked},
        matrix::{ACT_GROUP, SUM_GROUP},
        scalar::unreachable_float,
        tile::{self, Tile, TileLanes},
    },
    quant::{Block, GroupKind, with_block},
};

/// The GEMM with one of the dot products.
pub(super) struct Gemm<D>(PhantomData<D>);

impl<D: Dot> GemmIsa for Gemm<D> {
    const LANES: usize = 16;
    const TILE_COLS: [usize; 2] = [12, 6];
    const HALF_COLS: usize = if D::CONVERTS { half::COLS } else { 0 };

    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked) {
        // SAFETY: the caller's promises, passed on. F is B.
        unsafe {
            with_block!(B::TYPE, |F| unpack::<F>(&from.cast(), to), unreachable_float(B::TYPE));
        }
    }

    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(offset), ACT_GROUP) => {
                    D::prepare_aux::<ACT_GROUP, false>(offset.into(), sums, d, num_groups, aux);
                }
                (GroupKind::Offset(offset), _) => {
                    D::prepare_aux::<SUM_GROUP, false>(offset.into(), sums, d, num_groups, aux);
                }
                (GroupKind::Min, ACT_GROUP) => D::prepare_aux::<ACT_GROUP, true>(0, sums, d, num_groups, aux),
                (GroupKind::Min, _) => D::prepare_aux::<SUM_GROUP, true>(0, sums, d, num_groups, aux),
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
        prefetch(address);
    }

    unsafe fn tile<B: Block>(tile: &Tile, rows: TileRows) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match (B::KIND, B::GROUP) {
                (GroupKind::Offset(_), ACT_GROUP) => by_rows::<D, ACT_GROUP, false>(tile, rows),
                (GroupKind::Offset(_), _) => by_rows::<D, SUM_GROUP, false>(tile, rows),
                (GroupKind::Min, ACT_GROUP) => by_rows::<D, ACT_GROUP, true>(tile, rows),
                (GroupKind::Min, _) => by_rows::<D, SUM_GROUP, true>(tile, rows),
            }
        }
    }
}

/// See [`GemmIsa::prefetch`].
#[inline(always)]
pub(super) fn prefetch(address: *const u8) {
    // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
    unsafe { _mm_prefetch::<_MM_HINT_T1>(address.cast()) }
}

unsafe fn by_rows<D: Dot, const GROUP: usize, const MIN: bool>(tile: &Tile, rows: TileRows) {
    // Where two groups share a scale of activations, their scaled sums need registers too: tiles of half as many columns.
    let shares_scales = D::CONVERTS && GROUP < ACT_GROUP;
    // SAFETY: the caller's promises, passed on; halves of the tile.
    unsafe {
        match rows {
            // Only with CONVERTS, and so with VNNI.
            TileRows::Half => half::compute::<GROUP, MIN>(tile),
            TileRows::One if shares_scales => {
                D::gemm_tile::<GROUP, MIN, 1, 6>(tile);
                D::gemm_tile::<GROUP, MIN, 1, 6>(&tile.columns(6));
            }
            TileRows::One => D::gemm_tile::<GROUP, MIN, 1, 12>(tile),
            TileRows::Two if shares_scales => {
                D::gemm_tile::<GROUP, MIN, 2, 3>(tile);
                D::gemm_tile::<GROUP, MIN, 2, 3>(&tile.columns(3));
            }
            TileRows::Two => D::gemm_tile::<GROUP, MIN, 2, 6>(tile),
        }
    }
}

/// As [`GemmIsa::unpack`], with the unpacking of decode.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx2,fma,f16c")]
unsafe fn unpack<F: Format>(from: &Source<F>, to: &mut Unpacked) {
    let num_groups = from.num_blocks * F::LEN / F::GROUP;
    assert!(to.code_stride >= from.num_blocks * F::LEN && to.scale_stride >= num_groups);
    let rows = to.codes.chunks_exact_mut(to.code_stride).zip(to.scales.chunks_exact_mut(to.scale_stride));
    for ((blocks, (codes, scales)), mins) in from.rows().zip(rows).zip(to.mins.chunks_exact_mut(to.scale_stride)) {
        for first in (0..blocks.len()).step_by(F::CHUNK_BLOCKS) {
            let count = F::CHUNK_BLOCKS.min(blocks.len() - first);
            let (group, groups) = (first * F::LEN / F::GROUP, count * F::LEN / F::GROUP);
            let mask = ((1u32 << groups) - 1) as u16;
            // SAFETY: `count` blocks from `first` on, at most 16 groups of them; codes and scales of the row have room (asserted), and
            // half a register of codes is masked off where the number of blocks is odd.
            unsafe {
                let block = blocks.as_ptr().add(first).cast::<u8>();
                let (scale, min) = F::scales(block, count);
                _mm512_mask_storeu_ps(scales.as_mut_ptr().add(group), mask, scale);
                match F::MINS {
                    Mins::None => {}
                    Mins::Apart => _mm512_mask_storeu_ps(mins.as_mut_ptr().add(group), mask, min),
                    // Minima are in the upper half, without their sign.
                    Mins::Upper => {
                        let upper = _mm512_extractf32x8_ps::<1>(scale);
                        _mm256_storeu_ps(mins.as_mut_ptr().add(group), _mm256_xor_ps(upper, _mm256_set1_ps(-0.0)));
                    }
                }
                let codes = codes.as_mut_ptr().add(first * F::LEN);
                for i in 0..count * F::LEN / 64 {
                    _mm512_storeu_si512(codes.add(64 * i).cast(), F::codes(block, i));
                }
                if !(count * F::LEN).is_multiple_of(64) {
                    let last = F::half(block.add((count - 1) * F::BYTES));
                    _mm256_storeu_si256(codes.add((count - 1) * F::LEN).cast(), _mm512_castsi512_si256(last));
                }
            }
        }
    }
}

/// `acc + a · b` in the register of `acc`. Left to itself the compiler of 2026-11 adds up in the register of `a` and then copies all sums
/// of the tile back, which takes the ports that the dot products need.
#[target_feature(enable = "avx512f")]
#[inline]
fn add_product(mut acc: __m512, a: __m512, b: __m512) -> __m512 {
    // SAFETY: one instruction on registers.
    unsafe {
        core::arch::asm!(
            "vfmadd231ps {acc}, {a}, {b}",
            acc = inout(zmm_reg) acc,
            a = in(zmm_reg) a,
            b = in(zmm_reg) b,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

/// Sixteen lanes.
pub(super) struct Lanes<D>(PhantomData<D>);

impl<D: Dot> TileLanes for Lanes<D> {
    const LANES: usize = 16;
    const CONVERTS: bool = D::CONVERTS;
    type Int = __m512i;
    type Float = __m512;

    fn bias(_: u8) -> u8 {
        0
    }

    #[inline(always)]
    unsafe fn load_int(p: *const i32) -> __m512i {
        // SAFETY: the caller's register.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn store_int(p: *mut i32, x: __m512i) {
        // SAFETY: the caller's register.
        unsafe { _mm512_storeu_si512(p.cast(), x) }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> __m512i {
        // SAFETY: value-only.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn add_int(a: __m512i, b: __m512i) -> __m512i {
        // SAFETY: value-only.
        unsafe { _mm512_add_epi32(a, b) }
    }

    #[inline(always)]
    unsafe fn halves(x: __m512i) -> [__m512i; 2] {
        // SAFETY: value-only.
        unsafe { [_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(x)), _mm512_srai_epi32::<16>(x)] }
    }

    #[inline(always)]
    unsafe fn mul_add_int(a: __m512i, b: __m512i, c: __m512i) -> __m512i {
        // SAFETY: value-only.
        unsafe { _mm512_add_epi32(_mm512_mullo_epi32(a, b), c) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        // SAFETY: the caller's register.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, x: __m512) {
        // SAFETY: the caller's register.
        unsafe { _mm512_storeu_ps(p, x) }
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        // SAFETY: value-only.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn from_bits(x: __m512i) -> __m512 {
        // SAFETY: value-only.
        unsafe { _mm512_castsi512_ps(x) }
    }

    #[inline(always)]
    unsafe fn to_bits(x: __m512) -> __m512i {
        // SAFETY: value-only.
        unsafe { _mm512_castps_si512(x) }
    }

    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        // SAFETY: value-only.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        // SAFETY: value-only.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn convert(x: __m512i) -> __m512 {
        // SAFETY: value-only.
        unsafe { _mm512_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn add_product(acc: __m512, a: __m512, b: __m512) -> __m512 {
        // SAFETY: value-only.
        unsafe { add_product(acc, a, b) }
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [__m512i; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[__m512i; R]; N] {
        // SAFETY: `GROUP` codes of each of N rows, and as many elements of R registers of activation rows.
        unsafe { tile::dots_by_4::<Self, GROUP, R, N>(start, codes, stride, q, |acc, w, x| D::dot(acc, w, x)) }
    }
}

/// See [`GemmIsa::transpose`].
///
/// # Safety
/// As there; the CPU must have AVX-512 F.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) unsafe fn transpose(
    rows: *const u32,
    stride: usize,
    num_rows: usize,
    num_units: usize,
    to: *mut u32,
    to_stride: usize,
) {
    let mask = |len: usize| if len >= 16 { !0 } else { (1u16 << len) - 1 };
    for unit in (0..num_units).step_by(16) {
        for row in (0..num_rows).step_by(16) {
            let (row_count, unit_count) = ((num_rows - row).min(16), (num_units - unit).min(16));
            // SAFETY: a square of the caller's shapes; lanes behind the last unit and the last row are masked off.
            unsafe {
                let (from, to) = (rows.add(row * stride + unit), to.add(unit * to_stride + row));
                let mut square = [_mm512_setzero_si512(); 16];
                // Loops of constant length leave the square in registers.
                if row_count == 16 && unit_count == 16 {
                    for r in 0..16 {
                        square[r] = _mm512_loadu_si512(from.add(r * stride).cast());
                    }
                    transpose_16(&mut square);
                    for u in 0..16 {
                        _mm512_storeu_si512(to.add(u * to_stride).cast(), square[u]);
                    }
                } else {
                    for r in 0..row_count {
                        square[r] = _mm512_maskz_loadu_epi32(mask(unit_count), from.add(r * stride).cast());
                    }
                    transpose_16(&mut square);
                    for u in 0..unit_count {
                        _mm512_mask_storeu_epi32(to.add(u * to_stride).cast(), mask(row_count), square[u]);
                    }
                }
            }
        }
    }
}

/// Transposes 16 × 16 units.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
#[inline]
pub(super) fn transpose_16(x: &mut [__m512i; 16]) {
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
