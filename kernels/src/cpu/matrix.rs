//! What goes into a matmul: weights as they lie in a file, quantised activations, and memory to work in.

use super::Numerics;
use super::lines::{Line, Lines};
use super::pack::{PACK_ROWS, PackedActs, PackedBlock};
use crate::{
    error::{Error, Result},
    quant::QuantType,
};

/// Partition N in multiples of it: what a kernel works on at a time, with some room for choice.
pub const ROW_TILE: usize = 32;

/// Elements that share a scale in [`ActRows`]: K must be a multiple of it.
pub const ACT_GROUP: usize = 32;

/// Elements of one sum in [`ActRows`].
pub const SUM_GROUP: usize = 16;

/// A weight matrix `[rows, cols]`, row-major, in a type that has kernels. `rows` is the N of the matmul, `cols` its K.
#[derive(Debug, Clone, Copy)]
pub struct MatrixRef<'a> {
    dtype: QuantType,
    rows: usize,
    cols: usize,
    row_bytes: usize,
    data: &'a [u8],
}

impl<'a> MatrixRef<'a> {
    /// Checks that `data` is exactly `rows` rows of `cols` elements.
    ///
    /// # Errors
    /// [`Error::NoKernel`]; [`Error::RowLength`] if a row is not a whole number of blocks; [`Error::Length`] for another size.
    pub fn new(dtype: QuantType, rows: usize, cols: usize, data: &'a [u8]) -> Result<Self> {
        if !dtype.has_kernels() {
            return Err(dtype.no_kernel());
        }
        let row_bytes = dtype.checked_row_bytes("matrix", cols)?;
        let expected = row_bytes.saturating_mul(rows);
        if data.len() != expected {
            return Err(Error::Length { what: "matrix: bytes", expected, got: data.len() });
        }
        Ok(Self { dtype, rows, cols, row_bytes, data })
    }

    /// Element type.
    pub fn dtype(&self) -> QuantType {
        self.dtype
    }

    /// N.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// K.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Bytes of a row.
    pub fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// All bytes.
    pub fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Bytes of row `row`.
    pub fn row(&self, row: usize) -> &'a [u8] {
        &self.data[row * self.row_bytes..(row + 1) * self.row_bytes]
    }
}

/// Activations in 8 bits, as `CpuKernels::quantize_act_row` makes them: `x ≈ d · q`, with one `d` of at most 22
/// significant bits for 32 elements and `q` in −127..=127. A group that holds an infinity or a NaN has `q` = 0 and such a `d`, so that the result is NaN too.
#[derive(Debug, Clone, Copy)]
pub struct ActRows<'a> {
    /// M.
    pub num_rows: usize,
    /// K, a multiple of 32.
    pub k: usize,
    /// `[num_rows, k]`
    pub q: &'a [i8],
    /// `[num_rows, k / 32]`
    pub d: &'a [f32],
    /// Sums of `q` over 16 elements each, exact: `[num_rows, k / 16]`. Integers, because weights with an offset need them as
    /// such; 16, because that is the smallest group of any weight type.
    pub sums: &'a [i16],
    /// The same rows packed: the kernels of many rows take them from here. Any number can be packed; more than
    /// [`super::DECODE_ROWS`] must.
    pub packed: Option<PackedActs<'a>>,
}

impl<'a> ActRows<'a> {
    /// Rows `range` of these; packed too if they were and the range starts at a block.
    pub fn rows(&self, range: std::ops::Range<usize>) -> Self {
        let part = |width: usize| range.start * width..range.end * width;
        Self {
            num_rows: range.len(),
            k: self.k,
            q: &self.q[part(self.k)],
            d: &self.d[part(self.k / ACT_GROUP)],
            sums: &self.sums[part(self.k / SUM_GROUP)],
            packed: self.packed.and_then(|packed| packed.rows(range.clone(), self.k)),
        }
    }

    /// Whether the slices have the lengths that the shape asks for.
    pub(crate) fn is_consistent(&self) -> bool {
        self.k.is_multiple_of(ACT_GROUP)
            && self.num_rows.checked_mul(self.k) == Some(self.q.len())
            && self.d.len() == self.num_rows * (self.k / ACT_GROUP)
            && self.sums.len() == self.num_rows * (self.k / SUM_GROUP)
            && self.packed.is_none_or(|packed| packed.own_lengths() == PackedActs::lengths(self.num_rows, self.k))
    }
}

/// Rows of f32 activations.
#[derive(Debug, Clone, Copy)]
pub struct FloatActs<'a> {
    /// `[num_rows, stride]`; the last row may end at its K.
    pub x: &'a [f32],
    /// Elements from row to row.
    pub stride: usize,
    /// Rows.
    pub num_rows: usize,
    /// What a row's result may depend on.
    pub numerics: Numerics,
    /// The same rows packed, as [`super::CpuKernels::pack_floats`] does: the kernel of many rows then need not do it again for
    /// every block of columns. `[blocks][k][PACK_ROWS]`
    pub packed: Option<&'a [f32]>,
}

impl FloatActs<'_> {
    /// Whether `x` holds rows of `k` elements.
    pub(crate) fn is_consistent(&self, k: usize) -> bool {
        self.num_rows == 0
            || ((self.num_rows - 1).checked_mul(self.stride).and_then(|last| last.checked_add(k)))
                .is_some_and(|needed| needed <= self.x.len() && (self.num_rows == 1 || self.stride >= k))
                && self.packed.is_none_or(|packed| packed.len() == self.num_rows.next_multiple_of(PACK_ROWS) * k)
    }

    /// Whether the f32 kernel of that many rows takes them packed, if it can get them so.
    pub fn takes_packed(num_rows: usize, numerics: Numerics) -> bool {
        num_rows > super::float::DOT_ROWS || numerics == Numerics::Invariant
    }

    /// Whether there are more than `few` rows, or kernels must be those of more.
    pub(crate) fn are_many(&self, few: usize) -> bool {
        self.num_rows > few || self.numerics == Numerics::Invariant
    }
}

/// Quantised activations that own their memory: what a caller without an arena of its own uses.
#[derive(Debug, Clone, Default)]
pub struct ActBuffer {
    num_rows: usize,
    k: usize,
    q: Vec<i8>,
    d: Vec<f32>,
    sums: Vec<i16>,
    packed_q: Lines<i8>,
    packed_d: Lines<f32>,
    packed_sums: Lines<i16>,
}

impl ActBuffer {
    /// Quantises `x`, `[num_rows, k]`, into this buffer's memory.
    ///
    /// # Errors
    /// [`Error::Length`] if `x` is not whole rows, [`Error::RowLength`] if `k` is not a multiple of 32.
    pub fn quantize(&mut self, kernels: &super::CpuKernels, x: &[f32], k: usize) -> Result<ActRows<'_>> {
        if k == 0 || !k.is_multiple_of(ACT_GROUP) {
            return Err(Error::RowLength { what: "activations", dtype: "q8", block: ACT_GROUP, got: k });
        }
        let num_rows = x.len() / k;
        if num_rows * k != x.len() {
            return Err(Error::Length { what: "activations", expected: num_rows * k, got: x.len() });
        }
        (self.num_rows, self.k) = (num_rows, k);
        self.q.resize(x.len(), 0);
        self.d.resize(x.len() / ACT_GROUP, 0.0);
        self.sums.resize(x.len() / SUM_GROUP, 0);
        let rows = x.chunks_exact(k).zip(self.q.chunks_exact_mut(k));
        let scales = self.d.chunks_exact_mut(k / ACT_GROUP).zip(self.sums.chunks_exact_mut(k / SUM_GROUP));
        for ((x, q), (d, sums)) in rows.zip(scales) {
            kernels.quantize_act_row(x, q, d, sums);
        }
        self.pack(kernels);
        Ok(self.rows())
    }

    /// Packs the rows, where a matmul will want that.
    fn pack(&mut self, kernels: &super::CpuKernels) {
        let (num_rows, k) = (self.num_rows, self.k);
        let packed_rows = if num_rows > kernels.few_rows() { num_rows } else { 0 };
        let [q_len, d_len, sums_len] = PackedActs::lengths(packed_rows, k);
        let (mut q, mut d) = (std::mem::take(&mut self.packed_q), std::mem::take(&mut self.packed_d));
        let mut sums = std::mem::take(&mut self.packed_sums);
        q.resize(q_len);
        d.resize(d_len);
        sums.resize(sums_len);
        let acts = self.rows();
        let blocks = q
            .chunks_exact_mut(PACK_ROWS * k)
            .zip(d.chunks_exact_mut(PACK_ROWS * (k / ACT_GROUP)))
            .zip(sums.chunks_exact_mut(PACK_ROWS * (k / SUM_GROUP)));
        for (first, ((q, d), sums)) in (0..packed_rows).step_by(PACK_ROWS).zip(blocks) {
            let rows = acts.rows(first..num_rows.min(first + PACK_ROWS));
            let to = PackedBlock { q: q.as_mut_ptr(), d: d.as_mut_ptr(), sums: sums.as_mut_ptr() };
            // SAFETY: a whole block each, borrowed mutably.
            unsafe { kernels.pack_acts(&rows, 0, to) };
        }
        (self.packed_q, self.packed_d, self.packed_sums) = (q, d, sums);
    }

    /// What was quantised last.
    pub fn rows(&self) -> ActRows<'_> {
        let packed = PackedActs { q: &self.packed_q, d: &self.packed_d, sums: &self.packed_sums };
        let packed = (!packed.q.is_empty()).then_some(packed);
        ActRows { num_rows: self.num_rows, k: self.k, q: &self.q, d: &self.d, sums: &self.sums, packed }
    }
}

/// The scale of a group whose largest magnitude is `largest`: a 127th of it with at most 22 significant bits, which is what makes
/// the arithmetic of the GEMM exact (`tile.rs`).
#[inline(always)]
pub(super) fn scale_of(largest: f32) -> f32 {
    f32::from_bits((largest / 127.0).to_bits() & !3)
}

/// One worker's memory for unpacked weights. Made once; kernels allocate nothing.
#[derive(Debug)]
pub struct Scratch {
    max_k: usize,
    lines: Vec<Line>,
}

impl Scratch {
    /// Enough for every matmul with `K ≤ max_k`.
    pub fn for_shapes(max_k: usize) -> Self {
        // The GEMMs work in fixed chunks of K. Dot products need up to four rows of f32, or for each of eight rows of activations a
        // start value for 4 elements and two factors for 16. A carved slice may lose a line.
        let dots = (4 * size_of::<f32>()).max(super::DECODE_ROWS * 2) * max_k.next_multiple_of(512);
        let gemms = super::gemm::SCRATCH_BYTES.max(super::float::SCRATCH_BYTES);
        #[cfg(target_arch = "x86_64")]
        let gemms = gemms.max(super::avx512::SCRATCH_BYTES);
        let bytes = gemms.max(dots) + 16 * size_of::<Line>();
        Self { max_k, lines: Line::zeroed::<u8>(bytes) }
    }

    /// The K that it was made for.
    pub fn max_k(&self) -> usize {
        self.max_k
    }

    /// Cuts slices off the front, each on a cache line of its own.
    pub(crate) fn carve(&mut self) -> Carve<'_> {
        Carve { rest: &mut self.lines }
    }
}

/// The part of a [`Scratch`] that isn't taken yet.
pub(crate) struct Carve<'a> {
    rest: &'a mut [Line],
}

impl<'a> Carve<'a> {
    /// `len` elements, of unspecified content.
    ///
    /// # Panics
    /// If the scratch was made for a smaller K: a mistake of the caller, like a slice index.
    pub(crate) fn take<T: bytemuck::Pod>(&mut self, len: usize) -> &'a mut [T] {
        let lines = Line::count::<T>(len);
        let (taken, rest) = std::mem::take(&mut self.rest).split_at_mut(lines);
        self.rest = rest;
        &mut bytemuck::cast_slice_mut(taken)[..len]
    }
}
