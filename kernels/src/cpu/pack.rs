//! Panels: [`ROW_TILE`] rows of weights side by side, so that a register holds the same four codes (or one f32) of many rows.
//!
//! A panel is `[units][ROW_TILE]` of 32 bits: unit `u` of a row is codes `4·u ..+ 4`, or element `u` in f32. Unpacking is the
//! formats' own scalar code, compiled for each ISA; only the transpose is written for one.

use super::matrix::ROW_TILE;
use crate::quant::{Block, GroupKind};

/// Elements of a row that are unpacked at a time: a block of the largest formats.
pub(super) const STRIP: usize = 256;

/// Units of [`CodePanel::strip`]: for each row two blocks' worth of codes and two registers of scales, which is what the AVX-512
/// code wants; the code here needs `STRIP` bytes.
pub(super) const STRIP_UNITS: usize = ROW_TILE * (2 * STRIP / 4 + 32);

/// Where a panel of codes goes: some elements of `ROW_TILE` rows.
pub(super) struct CodePanel<'a> {
    /// `[elements / 4][ROW_TILE]`, four codes each.
    pub(super) codes: &'a mut [u32],
    /// `[elements / GROUP][ROW_TILE]`
    pub(super) scales: &'a mut [f32],
    /// As `scales`, for formats with minima.
    pub(super) mins: &'a mut [f32],
    /// `STRIP_UNITS` to work in.
    pub(super) strip: &'a mut [u32],
}

impl CodePanel<'_> {
    /// Makes the rows behind `num_rows` zero.
    pub(super) fn clear_if_partial(&mut self, num_rows: usize) {
        if num_rows < ROW_TILE {
            self.strip.fill(0);
            self.scales.fill(0.0);
            self.mins.fill(0.0);
        }
    }
}

/// Turns rows of units into a panel.
pub(super) trait Transpose {
    /// `rows` is `[ROW_TILE][stride]`; its first `num_units` columns become `panel`, `[num_units][ROW_TILE]`. Whole groups of 16
    /// columns are read, so `stride` covers `num_units` rounded up.
    ///
    /// # Panics
    /// If the slices are too short.
    ///
    /// # Safety
    /// The CPU must have the implementation's features.
    unsafe fn transpose(rows: &[u32], stride: usize, num_units: usize, panel: &mut [u32]);
}

/// What [`Transpose::transpose`] asserts.
#[inline(always)]
pub(super) fn assert_transpose(rows: &[u32], stride: usize, num_units: usize, panel: &[u32]) {
    assert!(
        stride >= num_units.next_multiple_of(16)
            && rows.len() >= ROW_TILE * stride
            && panel.len() >= num_units * ROW_TILE,
        "transpose: {} units in rows of {stride}, {} to {}",
        num_units,
        rows.len(),
        panel.len(),
    );
}

/// Packs elements `from ..+ num_elements` (whole blocks) of up to `ROW_TILE` rows of blocks; rows that there are not become
/// zero. To be inlined into a function compiled for an ISA.
///
/// # Safety
/// As [`Transpose::transpose`].
#[inline(always)]
pub(super) unsafe fn pack_codes<B: Block, T: Transpose>(
    rows: &[B],
    blocks_per_row: usize,
    from: usize,
    num_elements: usize,
    panel: &mut CodePanel,
) {
    panel.clear_if_partial(rows.len() / blocks_per_row);
    let (mut scales, mut mins) = ([0.0; 16], [0.0; 16]);
    for strip in (0..num_elements).step_by(STRIP) {
        let elements = STRIP.min(num_elements - strip);
        let codes: &mut [u8] = bytemuck::cast_slice_mut(panel.strip);
        for (r, blocks) in rows.chunks_exact(blocks_per_row).enumerate() {
            let first = (from + strip) / B::LEN;
            let blocks = &blocks[first..first + elements / B::LEN];
            for (b, (block, codes)) in blocks.iter().zip(codes[r * STRIP..].chunks_exact_mut(B::LEN)).enumerate() {
                block.unpack(codes, &mut scales, &mut mins);
                let group = (strip + b * B::LEN) / B::GROUP;
                for i in 0..B::LEN / B::GROUP {
                    panel.scales[(group + i) * ROW_TILE + r] = scales[i];
                    if matches!(B::KIND, GroupKind::Min) {
                        panel.mins[(group + i) * ROW_TILE + r] = mins[i];
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { T::transpose(panel.strip, STRIP / 4, elements / 4, &mut panel.codes[strip / 4 * ROW_TILE..]) };
    }
}
