//! Matmul of many rows of 8-bit activations: the loops around an ISA's tile, the same for every ISA and type.
//!
//! Outside in: slabs of activation rows; chunks of K, so that a panel of weights stays in the first cache and the slab's part of
//! the activations in the second; panels of [`ROW_TILE`] rows of weights, unpacked once a slab; tiles of a few rows of
//! activations. The order of additions for an element of the output depends on K only.

use std::ops::Range;

use super::{
    matrix::{ACT_GROUP, ActRows, MatrixRef, ROW_TILE, SUM_GROUP, Scratch},
    pack::{CodePanel, STRIP_UNITS},
    scalar::unreachable_float,
};
use crate::quant::{Block, GroupKind, with_block};

/// Rows of activations that share one unpacking of the weights.
const SLAB_ROWS: usize = 512;
/// Most elements of K in a chunk: a panel is 24 KiB then.
const CHUNK: usize = 768;
/// With up to this many rows of activations a panel is used so few times that reading long pieces of the rows matters more than
/// where it lies: chunks are of [`LONG_CHUNK`] then.
const FEW_ROWS: usize = 64;
/// See [`FEW_ROWS`].
const LONG_CHUNK: usize = 2048;
/// What [`matmul`] takes from scratch at most: start values, codes, scales, minima and the strip.
pub(super) const SCRATCH_BYTES: usize = {
    let (starts, long) = (SLAB_ROWS * CHUNK / SUM_GROUP * 4, FEW_ROWS * LONG_CHUNK / SUM_GROUP * 4);
    let panel = LONG_CHUNK * ROW_TILE + 2 * LONG_CHUNK / SUM_GROUP * ROW_TILE * 4 + STRIP_UNITS * 4;
    panel + if starts > long { starts } else { long }
};
/// Bytes that a prefetch brings.
const LINE: usize = 64;

/// One tile: a few rows of activations against a panel. Pointers are at the chunk's first element; strides in elements.
pub(super) struct GemmTile {
    /// `[num_groups · 8][ROW_TILE]`, four codes each.
    pub(super) codes: *const u32,
    /// `[num_groups · 32 / GROUP][ROW_TILE]`
    pub(super) scales: *const f32,
    /// As `scales`, for formats with minima.
    pub(super) mins: *const f32,
    /// Groups of 32 in the chunk.
    pub(super) num_groups: usize,
    /// i8 `[rows, q_stride]`
    pub(super) q: *const i8,
    pub(super) q_stride: usize,
    /// `[rows, d_stride]`
    pub(super) d: *const f32,
    pub(super) d_stride: usize,
    /// For each group of weights the bits of −offset · Σ x as i32 or, for formats with minima, of d · Σ x as f32: `[rows, aux_stride]`.
    pub(super) aux: *const i32,
    pub(super) aux_stride: usize,
    /// `[rows, out_stride]`
    pub(super) out: *mut f32,
    pub(super) out_stride: usize,
    /// Valid rows of weights in the panel.
    pub(super) num_cols: usize,
    /// Whether to add to what `out` holds.
    pub(super) accumulate: bool,
}

/// What an ISA brings.
pub(super) trait GemmIsa {
    /// Most rows of activations in a tile.
    const TILE_ROWS: usize;

    /// [`super::pack::pack_codes`], compiled for the ISA.
    ///
    /// # Safety
    /// The CPU must have the ISA.
    unsafe fn pack<B: Block>(
        rows: &[B],
        blocks_per_row: usize,
        from: usize,
        num_elements: usize,
        panel: &mut CodePanel,
    );

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(address: *const u8);

    /// Computes a tile of `tile_rows` rows, 1 to [`Self::TILE_ROWS`].
    ///
    /// # Safety
    /// The CPU must have the ISA; the tile's pointers must be valid for its shapes, `out` for writes in `num_cols` columns.
    unsafe fn tile<B: Block>(tile: &GemmTile, tile_rows: usize);
}

/// See `CpuKernels::matmul_q8`.
///
/// # Safety
/// As there; the CPU must have the ISA.
pub(super) unsafe fn matmul<I: GemmIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    for slab in (0..acts.num_rows).step_by(SLAB_ROWS) {
        let acts = acts.rows(slab..acts.num_rows.min(slab + SLAB_ROWS));
        with_block!(
            w.dtype(),
            // SAFETY: the caller's promises, passed on; the slab's part of `out`.
            |B| unsafe { typed::<B, I>(w, rows.clone(), &acts, out.add(slab * stride), stride, scratch) },
            unreachable_float(w.dtype())
        );
    }
}

/// K in equal chunks of whole blocks, none above the limit (which every block divides).
fn chunk_len<B: Block>(k: usize, num_rows: usize) -> usize {
    let limit = if num_rows <= FEW_ROWS { LONG_CHUNK } else { CHUNK };
    k.div_ceil(k.div_ceil(limit)).next_multiple_of(B::LEN.max(ACT_GROUP))
}

unsafe fn typed<B: Block, I: GemmIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    let chunk = chunk_len::<B>(acts.k.max(1), acts.num_rows);
    let groups = chunk / B::GROUP;
    let mut carve = scratch.carve();
    let aux = carve.take::<i32>(acts.num_rows * groups);
    let mut panel = CodePanel {
        codes: carve.take(chunk / 4 * ROW_TILE),
        scales: carve.take(groups * ROW_TILE),
        mins: carve.take(groups * ROW_TILE),
        strip: carve.take(STRIP_UNITS),
    };
    let blocks_per_row = acts.k / B::LEN;
    let blocks: &[B] = bytemuck::cast_slice(w.data());
    for from in (0..acts.k).step_by(chunk) {
        let elements = chunk.min(acts.k - from);
        let num_groups = elements / B::GROUP;
        prepare_aux::<B>(acts, from, num_groups, aux);
        for row in rows.clone().step_by(ROW_TILE) {
            let num_cols = ROW_TILE.min(rows.end - row);
            let panel_rows = &blocks[row * blocks_per_row..(row + num_cols) * blocks_per_row];
            // SAFETY: the CPU is the caller's promise.
            unsafe { I::pack::<B>(panel_rows, blocks_per_row, from, elements, &mut panel) };
            // The next panel's weights come while this one is used, some lines before each tile: 32 short pieces of memory
            // are more than the hardware's prefetchers follow.
            let next = (row + ROW_TILE).min(rows.end)..(row + 2 * ROW_TILE).min(rows.end);
            let mut next_lines = next.flat_map(|row| {
                let first = (row * blocks_per_row + from / B::LEN) * size_of::<B>();
                (first..first + elements / B::LEN * size_of::<B>()).step_by(LINE)
            });
            let num_tiles = acts.num_rows.div_ceil(I::TILE_ROWS);
            let lines_per_tile = (ROW_TILE * (elements / B::LEN * size_of::<B>()).div_ceil(LINE)).div_ceil(num_tiles);
            let mut m = 0;
            while m < acts.num_rows {
                // As even as possible: a tile of one or two rows could not hide the latency of its instructions.
                for line in next_lines.by_ref().take(lines_per_tile) {
                    I::prefetch(w.data().as_ptr().wrapping_add(line));
                }
                let left = acts.num_rows - m;
                let tile_rows = left.div_ceil(left.div_ceil(I::TILE_ROWS));
                let tile = GemmTile {
                    codes: panel.codes.as_ptr(),
                    scales: panel.scales.as_ptr(),
                    mins: panel.mins.as_ptr(),
                    num_groups: elements / ACT_GROUP,
                    q: acts.q[m * acts.k + from..].as_ptr(),
                    q_stride: acts.k,
                    d: acts.d[(m * acts.k + from) / ACT_GROUP..].as_ptr(),
                    d_stride: acts.k / ACT_GROUP,
                    aux: aux[m * num_groups..].as_ptr(),
                    aux_stride: num_groups,
                    // SAFETY: element (m, row) of the caller's `out`.
                    out: unsafe { out.add(m * stride + row) },
                    out_stride: stride,
                    num_cols,
                    accumulate: from > 0,
                };
                // SAFETY: pointers are into slices of the shapes that the fields state; `out` is the caller's promise.
                unsafe { I::tile::<B>(&tile, tile_rows) };
                m += tile_rows;
            }
        }
    }
}

/// See [`GemmTile::aux`]: `[num_rows, num_groups]` from element `from` on.
fn prepare_aux<B: Block>(acts: &ActRows, from: usize, num_groups: usize, aux: &mut [i32]) {
    let per_group = B::GROUP / SUM_GROUP;
    for (m, aux) in aux.chunks_exact_mut(num_groups).take(acts.num_rows).enumerate() {
        let sums = &acts.sums[(m * acts.k + from) / SUM_GROUP..][..num_groups * per_group];
        let d = &acts.d[(m * acts.k + from) / ACT_GROUP..];
        for (group, (aux, sums)) in aux.iter_mut().zip(sums.chunks_exact(per_group)).enumerate() {
            let sum: i32 = sums.iter().map(|&sum| i32::from(sum)).sum();
            *aux = match B::KIND {
                GroupKind::Offset(offset) => -i32::from(offset) * sum,
                GroupKind::Min => (d[group * B::GROUP / ACT_GROUP] * sum as f32).to_bits() as i32,
            };
        }
    }
}
