//! Activations packed for the large GEMM: lanes are rows, so the same four elements of [`PACK_ROWS`] rows lie side by side.

use super::{
    CpuKernels,
    lines::Lines,
    matrix::{ACT_GROUP, ActRows, SUM_GROUP},
};
use crate::error::{Error, Result};

/// Rows of a block.
pub const PACK_ROWS: usize = 32;

/// Quantised rows in blocks of [`PACK_ROWS`]; lanes of the last that have no row may hold anything. Which lanes a register takes is the ISA's affair.
#[derive(Debug, Clone, Copy)]
pub struct PackedActs<'a> {
    /// `[blocks][k / 4][PACK_ROWS][4]`
    pub q: &'a [i8],
    /// `[blocks][k / 32][PACK_ROWS]`
    pub d: &'a [f32],
    /// `[blocks][k / 32][PACK_ROWS][2]`: the two sums of a group side by side.
    pub sums: &'a [i16],
}

/// Rows rounded to bf16, packed likewise: neighbours in K are a pair, the first in the lower half. Lanes that have no row may hold anything.
#[derive(Debug, Clone, Copy)]
pub struct RoundedActs<'a> {
    /// M.
    pub num_rows: usize,
    /// K, a multiple of 32.
    pub k: usize,
    /// `[blocks][k / 2][PACK_ROWS]`
    pub pairs: &'a [u32],
}

impl RoundedActs<'_> {
    /// Pairs of that many rows.
    pub fn len(num_rows: usize, k: usize) -> usize {
        num_rows.next_multiple_of(PACK_ROWS) * (k / 2)
    }

    /// Rows `range`, which starts at a block.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Self {
        assert!(range.start.is_multiple_of(PACK_ROWS), "rounded rows {range:?} start inside a block");
        let pairs = &self.pairs[Self::len(range.start, self.k)..Self::len(range.end, self.k)];
        Self { num_rows: range.len(), pairs, ..*self }
    }
}

/// Rounded activations that own their memory: what a caller without an arena of its own uses.
#[derive(Debug, Clone, Default)]
pub struct RoundedBuffer {
    pairs: Lines<u32>,
}

impl RoundedBuffer {
    /// Rounds `x`, `[num_rows, k]`, into this buffer's memory.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` is not whole rows, [`Error::RowLength`] if `k` is not a multiple of 32.
    ///
    /// # Panics
    /// If the kernels don't round ([`CpuKernels::rounds_many`]).
    pub fn round(&mut self, kernels: &CpuKernels, x: &[f32], k: usize) -> Result<RoundedActs<'_>> {
        if k == 0 || !k.is_multiple_of(ACT_GROUP) {
            return Err(Error::RowLength { what: "activations", dtype: "bf16", block: ACT_GROUP, got: k });
        }
        let num_rows = x.len() / k;
        if num_rows * k != x.len() {
            return Err(Error::Length { what: "activations", expected: num_rows * k, got: x.len() });
        }
        self.pairs.resize(RoundedActs::len(num_rows, k));
        for (x, to) in x.chunks(PACK_ROWS * k).zip(self.pairs.chunks_exact_mut(PACK_ROWS * (k / 2))) {
            // SAFETY: a whole block, borrowed mutably.
            unsafe { kernels.round_acts(x, k, x.len() / k, k, 0, to.as_mut_ptr()) };
        }
        Ok(RoundedActs { num_rows, k, pairs: &self.pairs })
    }
}

/// A block of [`PackedActs`] to be written, or the first of some.
#[derive(Debug, Clone, Copy)]
pub struct PackedBlock {
    /// `[k / 4][PACK_ROWS][4]`
    pub q: *mut i8,
    /// `[k / 32][PACK_ROWS]`
    pub d: *mut f32,
    /// `[k / 32][PACK_ROWS][2]`
    pub sums: *mut i16,
}

impl<'a> PackedActs<'a> {
    /// Lengths of `q`, `d` and `sums` for that many rows.
    pub fn lengths(num_rows: usize, k: usize) -> [usize; 3] {
        let rows = num_rows.next_multiple_of(PACK_ROWS);
        [rows * k, rows * (k / ACT_GROUP), rows * (k / SUM_GROUP)]
    }

    /// The lengths of these.
    pub(super) fn own_lengths(&self) -> [usize; 3] {
        [self.q.len(), self.d.len(), self.sums.len()]
    }

    /// Blocks of rows `range`; `None` if it starts inside a block.
    pub(super) fn rows(&self, range: std::ops::Range<usize>, k: usize) -> Option<Self> {
        let first = Self::lengths(range.start, k);
        let end = Self::lengths(range.end, k);
        range.start.is_multiple_of(PACK_ROWS).then(|| Self {
            q: &self.q[first[0]..end[0]],
            d: &self.d[first[1]..end[1]],
            sums: &self.sums[first[2]..end[2]],
        })
    }
}

impl CpuKernels {
    /// Packs the rows of `acts` from `first_lane` of a block on. Other lanes are left alone: results of lanes without a row go nowhere.
    ///
    /// # Panics
    /// If `acts` are more rows than the block has from `first_lane` on, or other lengths don't fit.
    ///
    /// # Safety
    /// `to` must be valid for writes in those lanes, and nobody else may touch them meanwhile.
    pub unsafe fn pack_acts(&self, acts: &ActRows, first_lane: usize, to: PackedBlock) {
        let (k, num_rows) = (acts.k, acts.num_rows);
        assert!(acts.is_consistent() && first_lane + num_rows <= PACK_ROWS, "pack_acts: {num_rows} from {first_lane}");
        let groups = k / ACT_GROUP;
        let parts: [(*const u32, usize, *mut u32); 3] = [
            (acts.q.as_ptr().cast(), k / 4, to.q.cast()),
            (acts.d.as_ptr().cast(), groups, to.d.cast()),
            (acts.sums.as_ptr().cast(), groups, to.sums.cast()),
        ];
        for (from, units, to) in parts {
            // SAFETY: the CPU has the ISA (type's invariant); rows of `acts` have K / 4 units, K / 32 scales and as many pairs of sums
            // (just asserted), and the block is the caller's promise. Units are read and written at any alignment.
            unsafe { (self.transpose)(from, units, num_rows, units, to.add(first_lane), PACK_ROWS) };
        }
    }

    /// Packs f32 rows from `first_lane` of a block on: `x` is `[num_rows, stride]`, of whose rows `k` elements are taken, and `to`
    /// `[k][PACK_ROWS]`. Other lanes are left alone.
    ///
    /// # Panics
    /// If there are more rows than the block has from `first_lane` on, or `x` doesn't hold them.
    ///
    /// # Safety
    /// `to` must be valid for writes in those lanes, and nobody else may touch them meanwhile.
    pub unsafe fn pack_floats(
        &self,
        x: &[f32],
        stride: usize,
        num_rows: usize,
        k: usize,
        first_lane: usize,
        to: *mut f32,
    ) {
        assert_lanes("pack_floats", x, stride, num_rows, k, first_lane);
        // SAFETY: the CPU has the ISA (type's invariant); `x` holds the rows (just asserted), and the lanes are the caller's promise.
        unsafe {
            (self.transpose)(x.as_ptr().cast(), stride, num_rows, k, to.cast::<u32>().add(first_lane), PACK_ROWS)
        };
    }

    /// Rounds rows to bf16 and packs them from `first_lane` of a block on: `x` is `[num_rows, stride]`, of whose rows `k` elements are
    /// taken, and `to` `[k / 2][PACK_ROWS]` of [`RoundedActs`]. Other lanes are left alone.
    ///
    /// # Panics
    /// If there are more rows than the block has from `first_lane` on, `x` doesn't hold them, `k` is no multiple of 32, or there is no
    /// such kernel ([`Self::rounds_many`]).
    ///
    /// # Safety
    /// `to` must be valid for writes in those lanes, and nobody else may touch them meanwhile.
    pub unsafe fn round_acts(
        &self,
        x: &[f32],
        stride: usize,
        num_rows: usize,
        k: usize,
        first_lane: usize,
        to: *mut u32,
    ) {
        assert!(k.is_multiple_of(ACT_GROUP), "round_acts: rows of {k}");
        assert_lanes("round_acts", x, stride, num_rows, k, first_lane);
        // SAFETY: the CPU has the ISA (type's invariant); `x` holds the rows (just asserted), and the lanes are the caller's promise.
        unsafe { (self.rounding().round_acts)(x.as_ptr(), stride, num_rows, k, to.add(first_lane)) }
    }

    /// [`Self::round_acts`] for a group of columns whose rows are lanes.
    ///
    /// # Panics
    /// If there is no such kernel ([`Self::rounds_many`]).
    pub fn round_lanes(&self, x: &[[f32; PACK_ROWS]; ACT_GROUP], to: &mut [[u32; PACK_ROWS]; ACT_GROUP / 2]) {
        // SAFETY: the CPU has the ISA (type's invariant).
        unsafe { (self.rounding().round_lanes)(x, to) }
    }
}

/// That `x` holds `num_rows` rows of `k` elements, and a block so many lanes from `first_lane` on.
fn assert_lanes(what: &str, x: &[f32], stride: usize, num_rows: usize, k: usize, first_lane: usize) {
    assert!(
        num_rows > 0 && first_lane + num_rows <= PACK_ROWS && (num_rows - 1) * stride + k <= x.len(),
        "{what}: {num_rows} rows of {k}, every {stride} of {}, from {first_lane}",
        x.len()
    );
}

/// `to[u · to_stride + r] = rows[r · stride + u]` for `r < num_rows` and `u < num_units`: what every ISA does faster.
///
/// # Safety
/// Both pointers must be valid for those elements, at any alignment; they must not overlap.
pub(super) unsafe fn transpose(
    rows: *const u32,
    stride: usize,
    num_rows: usize,
    num_units: usize,
    to: *mut u32,
    to_stride: usize,
) {
    for u in 0..num_units {
        for r in 0..num_rows {
            // SAFETY: inside the caller's shapes.
            unsafe { to.add(u * to_stride + r).write_unaligned(rows.add(r * stride + u).read_unaligned()) };
        }
    }
}
