//! Matmul of many rows of 8-bit activations: the loops around an ISA's tile, the same for every ISA and type.
//!
//! Outside in: slabs of activation rows; blocks of columns (rows of weights); chunks of K, for which the block's weights are
//! unpacked to bytes that stay in the second cache; blocks of activation rows, whose part stays in the first; tiles. Sums of a
//! block of columns stay in a strip, lanes first, until its last chunk, and only then are transposed into the output. The order
//! of additions for an element of the output depends on K only.

use std::ops::Range;

use super::{
    ahead::Ahead,
    matrix::{ACT_GROUP, ActRows, Carve, MatrixRef, SUM_GROUP, Scratch},
    pack::PACK_ROWS,
    scalar::unreachable_float,
    tile::Tile,
};
use crate::quant::{Block, with_block};

/// Rows of activations that share one unpacking of the weights; a multiple of [`PACK_ROWS`].
pub(super) const SLAB_ROWS: usize = 512;
/// Most elements of K in a chunk: a block of activations with scales takes 32 KiB then.
const CHUNK: usize = 768;
/// Most columns that are unpacked together.
const BLOCK_COLS: usize = 240;
/// Columns of a block are a multiple of this, which the rows of weights of every tile divide.
pub(super) const COL_STEP: usize = 12;
/// Added to the stride of codes, so that the rows of a tile lie in different sets of the first cache.
const PAD: usize = 64;
/// What [`matmul`] takes from scratch at most: codes, scales, minima, strip and start values.
pub(super) const SCRATCH_BYTES: usize = {
    let groups = CHUNK / SUM_GROUP;
    let weights = BLOCK_COLS * (CHUNK + PAD + 2 * 4 * groups);
    weights + SLAB_ROWS * BLOCK_COLS * 4 + groups * PACK_ROWS * 4
};

const _: () = assert!(SLAB_ROWS.is_multiple_of(PACK_ROWS) && BLOCK_COLS.is_multiple_of(COL_STEP));

/// Rows of weights, unpacked.
pub(super) struct Unpacked<'a> {
    /// `[BLOCK_COLS][code_stride]`
    pub(super) codes: &'a mut [u8],
    pub(super) code_stride: usize,
    /// `[BLOCK_COLS][scale_stride]`
    pub(super) scales: &'a mut [f32],
    /// As `scales`, for formats with minima.
    pub(super) mins: &'a mut [f32],
    pub(super) scale_stride: usize,
}

/// Which blocks to unpack: `num_blocks` from `first_block` on, of each row of `blocks`, `[rows][blocks_per_row]`.
pub(super) struct Source<'a, B> {
    pub(super) blocks: &'a [B],
    pub(super) blocks_per_row: usize,
    pub(super) first_block: usize,
    pub(super) num_blocks: usize,
}

impl<'a, B: Block> Source<'a, B> {
    /// Elements `elements`, whole blocks, of rows `rows` of the weights.
    pub(super) fn new(w: &MatrixRef<'a>, rows: &Range<usize>, elements: Range<usize>) -> Self {
        let blocks_per_row = w.cols() / B::LEN;
        let blocks = &bytemuck::cast_slice(w.data())[rows.start * blocks_per_row..rows.end * blocks_per_row];
        Self { blocks, blocks_per_row, first_block: elements.start / B::LEN, num_blocks: elements.len() / B::LEN }
    }

    /// The same as blocks of another type.
    ///
    /// # Panics
    /// If their size is another: callers know that the types are the same.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn cast<F: Block>(&self) -> Source<'a, F> {
        Source {
            blocks: bytemuck::cast_slice(self.blocks),
            blocks_per_row: self.blocks_per_row,
            first_block: self.first_block,
            num_blocks: self.num_blocks,
        }
    }

    /// The blocks of each row.
    pub(super) fn rows(&self) -> impl Iterator<Item = &'a [B]> {
        let range = self.first_block..self.first_block + self.num_blocks;
        self.blocks.chunks_exact(self.blocks_per_row).map(move |row| &row[range.clone()])
    }
}

/// Columns of lanes are a multiple of this, which [`COL_STEP`] and the columns of a tile of AMX divide.
pub(super) const LANE_STEP: usize = 96;

const _: () = assert!(LANE_STEP.is_multiple_of(COL_STEP) && LANE_STEP.is_multiple_of(32));

/// What an ISA brings.
pub(super) trait GemmIsa {
    /// 32-bit lanes of a register.
    const LANES: usize;
    /// Rows of weights in a tile of one register of activation rows, and of two; 0 where there is no such tile. They divide
    /// [`COL_STEP`].
    const TILE_COLS: [usize; 2];
    /// Rows of weights in a tile of half a register of activation rows, where that takes less time than a whole one; else 0.
    const HALF_COLS: usize = 0;

    /// Unpacks each row of `from` to a row of `to`.
    ///
    /// # Safety
    /// The CPU must have the ISA.
    unsafe fn unpack<B: Block>(from: &Source<B>, to: &mut Unpacked);

    /// See [`super::tile::prepare_aux`].
    ///
    /// # Safety
    /// As there, and the CPU must have the ISA.
    unsafe fn prepare_aux<B: Block>(sums: *const i16, d: *const f32, num_groups: usize, aux: *mut i32);

    /// See [`super::pack::transpose`].
    ///
    /// # Safety
    /// As there, and the CPU must have the ISA.
    unsafe fn transpose(
        rows: *const u32,
        stride: usize,
        num_rows: usize,
        num_units: usize,
        to: *mut u32,
        to_stride: usize,
    );

    /// Asks for the cache line at `address`, which need not be valid.
    fn prefetch(address: *const u8);

    /// Computes a tile of that many activation rows.
    ///
    /// # Safety
    /// The CPU must have the ISA, and tiles of that size; the tile's pointers must be valid for its shapes.
    unsafe fn tile<B: Block>(tile: &Tile, rows: TileRows);
}

/// How many rows of activations a tile has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TileRows {
    /// Half a register.
    Half,
    /// A register.
    One,
    /// Two registers.
    Two,
}

impl TileRows {
    /// The tile that is fastest for `num_rows` rows, which it may not take all.
    fn for_rows<I: GemmIsa>(num_rows: usize) -> Self {
        let half = if I::HALF_COLS > 0 { I::LANES / 2 } else { 0 };
        if num_rows <= half {
            Self::Half
        } else if I::TILE_COLS[1] > 0 && num_rows > I::LANES + half {
            Self::Two
        } else {
            Self::One
        }
    }

    /// Rows of activations and of weights.
    const fn shape<I: GemmIsa>(self) -> (usize, usize) {
        match self {
            Self::Half => (I::LANES / 2, I::HALF_COLS),
            Self::One => (I::LANES, I::TILE_COLS[0]),
            Self::Two => (2 * I::LANES, I::TILE_COLS[1]),
        }
    }
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
    // SAFETY: the caller's promises, passed on.
    unsafe { multiply::<I>(w, rows, acts, Output::Rows { out, stride }, scratch) }
}

/// See `CpuKernels::matmul_q8_lanes`.
///
/// # Safety
/// The CPU must have the ISA; `out` must be valid for writes of what that function writes.
pub(super) unsafe fn matmul_lanes<I: GemmIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    scratch: &mut Scratch,
) {
    let num_cols = rows.len().next_multiple_of(LANE_STEP);
    // SAFETY: the caller's promises, passed on.
    unsafe { multiply::<I>(w, rows, acts, Output::Lanes { out, num_cols }, scratch) }
}

/// # Safety
/// The CPU must have the ISA; the output must be valid for writes of all rows.
unsafe fn multiply<I: GemmIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    output: Output,
    scratch: &mut Scratch,
) {
    for slab in (0..acts.num_rows).step_by(SLAB_ROWS) {
        let (acts, output) = (acts.rows(slab..acts.num_rows.min(slab + SLAB_ROWS)), output.skip_rows(slab));
        with_block!(
            w.dtype(),
            // SAFETY: the caller's promises, passed on; the slab's part of the output.
            |B| unsafe { typed::<B, I>(w, rows.clone(), &acts, &output, scratch) },
            unreachable_float(w.dtype())
        );
    }
}

/// Where results go.
pub(super) enum Output {
    /// `[rows][stride]`
    Rows { out: *mut f32, stride: usize },
    /// `[blocks][num_cols][PACK_ROWS]`, where `num_cols` is a multiple of [`LANE_STEP`]: as the tiles give them.
    Lanes { out: *mut f32, num_cols: usize },
}

impl Output {
    /// Of the rows from `row` on, which begins a block.
    pub(super) fn skip_rows(&self, row: usize) -> Self {
        match *self {
            Self::Rows { out, stride } => Self::Rows { out: out.wrapping_add(row * stride), stride },
            Self::Lanes { out, num_cols } => Self::Lanes { out: out.wrapping_add(row * num_cols), num_cols },
        }
    }

    /// Where the sums of a block of columns are until they are complete, `len` of them; null where they are the output.
    pub(super) fn strip(&self, len: usize, carve: &mut Carve<'_>) -> *mut f32 {
        match self {
            Self::Rows { .. } => carve.take(len).as_mut_ptr(),
            Self::Lanes { .. } => std::ptr::null_mut(),
        }
    }

    /// The sums of the block of columns that begins `first` behind the first column, and columns from block to block of rows.
    pub(super) fn sums(&self, strip: *mut f32, first: usize, block_cols: usize) -> (*mut f32, usize) {
        match *self {
            Self::Rows { .. } => (strip, block_cols),
            Self::Lanes { out, num_cols } => (out.wrapping_add(first * PACK_ROWS), num_cols),
        }
    }

    /// Transposes complete sums, `[blocks][sums_cols][PACK_ROWS]`, into columns `cols` of as many rows; not where they are the output.
    ///
    /// # Safety
    /// The strip must hold them, and the caller owns those elements of the output; the CPU must have what `transpose` needs.
    pub(super) unsafe fn store(
        &self,
        sums: *const f32,
        sums_cols: usize,
        cols: &Range<usize>,
        num_rows: usize,
        transpose: unsafe fn(*const u32, usize, usize, usize, *mut u32, usize),
    ) {
        let Self::Rows { out, stride } = *self else { return };
        for row in (0..num_rows).step_by(PACK_ROWS) {
            // SAFETY: the strip's rows are columns of the output, `cols` of them; the caller owns those elements of `out`.
            unsafe {
                let (sums, out) = (sums.add(row * sums_cols).cast(), out.add(row * stride + cols.start).cast());
                transpose(sums, PACK_ROWS, cols.len(), PACK_ROWS.min(num_rows - row), out, stride);
            }
        }
    }
}

/// `len` in equal parts of whole steps, none above `most` (which the step divides).
pub(super) fn equal_parts(len: usize, most: usize, step: usize) -> usize {
    len.div_ceil(len.div_ceil(most)).next_multiple_of(step)
}

unsafe fn typed<B: Block, I: GemmIsa>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    output: &Output,
    scratch: &mut Scratch,
) {
    const {
        assert!(
            COL_STEP.is_multiple_of(I::TILE_COLS[0]) && (I::HALF_COLS == 0 || COL_STEP.is_multiple_of(I::HALF_COLS))
        )
    };
    let Some(packed) = acts.packed.filter(|_| !rows.is_empty() && acts.k > 0) else { return };
    let chunk = equal_parts(acts.k, CHUNK, B::LEN.max(ACT_GROUP));
    let block_cols = equal_parts(rows.len(), BLOCK_COLS, COL_STEP);
    let (code_stride, scale_stride) = (chunk + PAD, chunk / B::GROUP);
    let num_blocks = acts.num_rows.div_ceil(PACK_ROWS);
    let mut carve = scratch.carve();
    let mut unpacked = Unpacked {
        codes: carve.take(block_cols * code_stride),
        code_stride,
        scales: carve.take(block_cols * scale_stride),
        mins: carve.take(block_cols * scale_stride),
        scale_stride,
    };
    let strip = output.strip(num_blocks * block_cols * PACK_ROWS, &mut carve);
    let aux = carve.take::<i32>(chunk / SUM_GROUP * PACK_ROWS);
    for first in rows.clone().step_by(block_cols) {
        let cols = first..rows.end.min(first + block_cols);
        let (sums, sums_cols) = output.sums(strip, first - rows.start, block_cols);
        for from in (0..acts.k).step_by(chunk) {
            let elements = chunk.min(acts.k - from);
            let source = Source::<B>::new(w, &cols, from..from + elements);
            // SAFETY: the CPU is the caller's promise.
            unsafe { I::unpack::<B>(&source, &mut unpacked) };
            let tiles_cols = cols.len().next_multiple_of(COL_STEP);
            let num_tiles = num_blocks * tiles_cols / I::TILE_COLS[1].max(I::TILE_COLS[0]);
            let mut ahead = Ahead::new(w, &cols, block_cols, from..from + chunk, num_tiles);
            for block in 0..num_blocks {
                let num_rows = PACK_ROWS.min(acts.num_rows - block * PACK_ROWS);
                // SAFETY: the block's activations from element `from` on; `aux` holds a chunk's groups.
                unsafe {
                    let at = (block * acts.k + from) * PACK_ROWS;
                    let (q, d) = (packed.q.as_ptr().add(at), packed.d.as_ptr().add(at / ACT_GROUP));
                    let act_sums = packed.sums.as_ptr().add(at / SUM_GROUP);
                    I::prepare_aux::<B>(act_sums, d, elements / ACT_GROUP, aux.as_mut_ptr());
                    let part = Part {
                        weights: &unpacked,
                        num_cols: tiles_cols,
                        num_groups: elements / ACT_GROUP,
                        num_rows,
                        q,
                        d,
                        aux: aux.as_ptr(),
                        sums: sums.add(block * sums_cols * PACK_ROWS),
                        accumulate: from > 0,
                    };
                    tiles::<B, I>(&part, &mut ahead);
                }
            }
        }
        // SAFETY: the strip holds these columns of all rows; the output and the CPU are the caller's promises.
        unsafe { output.store(sums, sums_cols, &cols, acts.num_rows, I::transpose) };
    }
}

/// A chunk of a block of columns and of a block of activation rows.
struct Part<'a> {
    weights: &'a Unpacked<'a>,
    /// A multiple of [`COL_STEP`].
    num_cols: usize,
    num_groups: usize,
    num_rows: usize,
    q: *const i8,
    d: *const f32,
    aux: *const i32,
    /// `[num_cols][PACK_ROWS]`
    sums: *mut f32,
    accumulate: bool,
}

/// # Safety
/// Pointers must be valid for the shapes; the CPU must have the ISA.
unsafe fn tiles<B: Block, I: GemmIsa>(part: &Part, ahead: &mut Ahead) {
    let mut lane = 0;
    while lane < part.num_rows {
        let tile_rows = TileRows::for_rows::<I>(part.num_rows - lane);
        let (lanes, cols) = tile_rows.shape::<I>();
        for col in (0..part.num_cols).step_by(cols) {
            ahead.ask(I::prefetch);
            // SAFETY: columns col ..+ cols of the unpacked weights, lanes of the block from `lane` on.
            unsafe {
                let weights = part.weights;
                let tile = Tile {
                    codes: weights.codes.as_ptr().add(col * weights.code_stride),
                    code_stride: weights.code_stride,
                    scales: weights.scales.as_ptr().add(col * weights.scale_stride),
                    mins: weights.mins.as_ptr().add(col * weights.scale_stride),
                    scale_stride: weights.scale_stride,
                    num_groups: part.num_groups,
                    q: part.q.add(lane * 4),
                    d: part.d.add(lane),
                    aux: part.aux.add(lane),
                    sums: part.sums.add(col * PACK_ROWS + lane),
                    accumulate: part.accumulate,
                };
                I::tile::<B>(&tile, tile_rows);
            }
        }
        lane += lanes;
    }
}
