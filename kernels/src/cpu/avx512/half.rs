//! Tiles of half a register, 8 rows of activations: for CPUs that take two cycles for 512 bits, which Zen 4 does, half the work.

use core::arch::x86_64::*;

use crate::cpu::{
    avx2::gemm::Lanes,
    matrix::ACT_GROUP,
    tile::{self, Tile, TileLanes, dots_by_4, lanes_of},
};

/// Rows of weights in a tile: with as many sums and the registers that are loaded that is 26 of 32.
pub(super) const COLS: usize = 12;

/// A tile of [`COLS`] rows of weights in groups of `GROUP`.
///
/// # Safety
/// The tile's pointers must be valid for that shape; the CPU must have AVX-512 F, BW, VL, DQ and VNNI.
pub(super) unsafe fn compute<const GROUP: usize, const MIN: bool>(tile: &Tile) {
    // SAFETY: the caller's promises, passed on; halves of the tile.
    unsafe {
        if GROUP < ACT_GROUP {
            // Scaled sums of a group need registers too.
            compute_cols::<GROUP, MIN, { COLS / 2 }>(tile);
            compute_cols::<GROUP, MIN, { COLS / 2 }>(&tile.columns(COLS / 2));
        } else {
            compute_cols::<GROUP, MIN, COLS>(tile);
        }
    }
}

/// [`tile::compute`], compiled for these lanes.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
unsafe fn compute_cols<const GROUP: usize, const MIN: bool, const N: usize>(tile: &Tile) {
    // SAFETY: the caller's promises, passed on.
    unsafe { tile::compute::<HalfLanes, GROUP, MIN, 255, 1, N>(tile) }
}

/// Eight lanes, with 32 registers.
struct HalfLanes;

impl TileLanes for HalfLanes {
    lanes_of!(Lanes);

    const CONVERTS: bool = true;

    fn bias(_: u8) -> u8 {
        0
    }

    #[inline(always)]
    unsafe fn convert(x: __m256i) -> __m256 {
        // SAFETY: value-only.
        unsafe { _mm256_cvtepi32_ps(x) }
    }

    #[inline(always)]
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [__m256i; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[__m256i; R]; N] {
        // SAFETY: the caller's promises, passed on; the CPU has VNNI.
        unsafe { dots_by_4::<Self, GROUP, R, N>(start, codes, stride, q, |acc, w, x| _mm256_dpbusd_epi32(acc, w, x)) }
    }
}
