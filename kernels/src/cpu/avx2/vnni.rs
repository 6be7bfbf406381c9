//! AVX-VNNI: `vpdpbusd` on 256-bit registers, for CPUs without AVX-512. It is all that differs from AVX2, so tests on CPUs without
//! it replace that one instruction.

use core::arch::x86_64::*;
use std::marker::PhantomData;

use super::{
    decode::{self, DecodeJob},
    dot::{Dot, hot_function, unsigned_by_signed},
    formats::Format,
    gemm::{Lanes, transpose, unpack},
};
use crate::{
    cpu::{
        gemm::{GemmIsa, Source, TileRows, Unpacked},
        matrix::{ACT_GROUP, SUM_GROUP},
        tile::{self, Tile, TileLanes, dots_by_4, lanes_of},
    },
    quant::{Block, GroupKind},
};

/// The instruction, and functions compiled for it.
pub(super) trait Instruction: Copy + 'static {
    /// `acc[lane] + Σ codes[4·lane + j] · x[4·lane + j]`, j in 0..4, with unsigned codes and signed x, modulo 2^32.
    ///
    /// # Safety
    /// The CPU must have this implementation's features.
    unsafe fn dot(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i;

    /// [`tile::compute`].
    ///
    /// # Safety
    /// As there; the CPU must have this implementation's features.
    unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile);

    /// [`tile::prepare_aux`].
    ///
    /// # Safety
    /// As there; the CPU must have this implementation's features.
    unsafe fn gemm_aux<const GROUP: usize, const MIN: bool>(
        offset: i32,
        sums: *const i16,
        d: *const f32,
        num_groups: usize,
        aux: *mut i32,
    );
}

macro_rules! compiled_for {
    ($name:ident, $features:literal) => {
        impl Dot for $name {
            type Gemm = Gemm<Self>;

            #[inline(always)]
            unsafe fn dot<F: Format>(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
                // SAFETY: the caller's promise.
                unsafe {
                    let (codes, x) = unsigned_by_signed::<F>(codes, x);
                    <Self as Instruction>::dot(acc, codes, x)
                }
            }

            hot_function!($features);
        }
    };
    (@gemm $features:literal) => {
        #[target_feature(enable = $features)]
        unsafe fn gemm_tile<const GROUP: usize, const MIN: bool, const R: usize, const N: usize>(tile: &Tile) {
            // SAFETY: the caller's promises, passed on. Codes may be any byte.
            unsafe { tile::compute::<VnniLanes<Self>, GROUP, MIN, 255, R, N>(tile) }
        }

        #[target_feature(enable = $features)]
        unsafe fn gemm_aux<const GROUP: usize, const MIN: bool>(
            offset: i32,
            sums: *const i16,
            d: *const f32,
            num_groups: usize,
            aux: *mut i32,
        ) {
            // SAFETY: the caller's promises, passed on.
            unsafe { tile::prepare_aux::<VnniLanes<Self>, GROUP, MIN>(offset, sums, d, num_groups, aux) }
        }
    };
}

/// `vpdpbusd` in its VEX encoding.
#[derive(Debug, Clone, Copy)]
pub(super) struct Vnni;

impl Instruction for Vnni {
    #[inline(always)]
    unsafe fn dot(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller has AVX-VNNI.
        unsafe { _mm256_dpbusd_avx_epi32(acc, codes, x) }
    }

    compiled_for!(@gemm "avx2,fma,f16c,avxvnni");
}
compiled_for!(Vnni, "avx2,fma,f16c,avxvnni");

/// What `vpdpbusd` is documented to do, on CPUs without it.
#[cfg(test)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Emulated;

#[cfg(test)]
impl Instruction for Emulated {
    #[inline(always)]
    unsafe fn dot(acc: __m256i, codes: __m256i, x: __m256i) -> __m256i {
        // SAFETY: the caller has AVX2. Even and odd bytes as 16-bit integers, whose products `vpmaddwd` adds exactly.
        unsafe {
            let even = _mm256_and_si256(codes, _mm256_set1_epi16(0xff));
            let odd = _mm256_srli_epi16::<8>(codes);
            let x_even = _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(x));
            let x_odd = _mm256_srai_epi16::<8>(x);
            let sum = _mm256_add_epi32(_mm256_madd_epi16(even, x_even), _mm256_madd_epi16(odd, x_odd));
            _mm256_add_epi32(acc, sum)
        }
    }

    compiled_for!(@gemm "avx2,fma,f16c");
}
#[cfg(test)]
compiled_for!(Emulated, "avx2,fma,f16c");

/// The 8-bit GEMM: tiles of 3 rows of weights × two registers of activation rows, or 6 × 1, which take 15 of 16 registers.
pub(super) struct Gemm<I>(PhantomData<I>);

/// Calls `I::$function::<GROUP, MIN, ..>` for a type's group and kind.
macro_rules! by_kind {
    ($block:ident, $function:ident, [$($more:tt)*] ($($arg:expr),*)) => {
        match ($block::KIND, $block::GROUP) {
            (GroupKind::Offset(_), ACT_GROUP) => I::$function::<ACT_GROUP, false, $($more)*>($($arg),*),
            (GroupKind::Offset(_), _) => I::$function::<SUM_GROUP, false, $($more)*>($($arg),*),
            (GroupKind::Min, ACT_GROUP) => I::$function::<ACT_GROUP, true, $($more)*>($($arg),*),
            (GroupKind::Min, _) => I::$function::<SUM_GROUP, true, $($more)*>($($arg),*),
        }
    };
}

impl<I: Instruction> GemmIsa for Gemm<I> {
    const LANES: usize = 8;
    const TILE_COLS: [usize; 2] = [6, 3];

    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked) {
        // SAFETY: the caller's promises, passed on.
        unsafe { unpack(from, 0, to) }
    }

    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32) {
        let offset = match B::KIND {
            GroupKind::Offset(offset) => i32::from(offset),
            GroupKind::Min => 0,
        };
        // SAFETY: the caller's promises, passed on.
        unsafe { by_kind!(B, gemm_aux, [](offset, sums, d, num_groups, aux)) }
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
        super::Avx2::prefetch(address);
    }

    unsafe fn tile<B: Block>(tile: &Tile, rows: TileRows) {
        // SAFETY: the caller's promises, passed on.
        unsafe {
            match rows {
                // There are no halves here.
                TileRows::Half | TileRows::One => by_kind!(B, gemm_tile, [1, 6](tile)),
                TileRows::Two => by_kind!(B, gemm_tile, [2, 3](tile)),
            }
        }
    }
}

/// Eight lanes.
struct VnniLanes<I>(PhantomData<I>);

impl<I: Instruction> TileLanes for VnniLanes<I> {
    lanes_of!(Lanes);

    fn bias(_: u8) -> u8 {
        0
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [__m256i; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[__m256i; R]; N] {
        // SAFETY: the caller's promises, passed on.
        unsafe { dots_by_4::<Self, GROUP, R, N>(start, codes, stride, q, |acc, w, x| I::dot(acc, w, x)) }
    }
}
