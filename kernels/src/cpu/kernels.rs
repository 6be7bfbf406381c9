//! The function table, and the wrappers that check shapes before they call through it.

use std::{ops::Range, sync::OnceLock};

use super::{
    DECODE_ROWS, Numerics,
    gemm::{LANE_STEP, Output},
    isa::{Isa, detected_features},
    matrix::{ACT_GROUP, ActRows, FloatActs, MatrixRef, SUM_GROUP, Scratch},
    pack::{PACK_ROWS, RoundedActs},
    scalar,
    vector::VectorKernels,
};
use crate::{
    error::{Error, Result},
    quant::{QuantType, dequantize_blocks, float, with_block},
};

/// The kernels of one [`Isa`]. A value proves that the CPU has it: the only ways to get one check that.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::type_complexity, reason = "function pointers, each named by its field")]
pub struct CpuKernels {
    pub(super) isa: Isa,
    /// See [`CpuKernels::few_rows`].
    pub(super) few_rows: usize,
    #[expect(clippy::type_complexity, reason = "one field, named by the function that it holds")]
    pub(super) quantize_act_row: unsafe fn(&[f32], &mut [i8], &mut [f32], &mut [i16]),
    pub(super) matmul_q8: unsafe fn(&MatrixRef, Range<usize>, &ActRows, *mut f32, usize, &mut Scratch),
    /// Results with rows in lanes; `None` where the kernel of many rows has none.
    pub(super) matmul_q8_lanes: Option<unsafe fn(&MatrixRef, Range<usize>, &ActRows, *mut f32, &mut Scratch)>,
    pub(super) matmul_f32: unsafe fn(&MatrixRef, Range<usize>, &FloatActs, *mut f32, usize, &mut Scratch),
    /// Many rows on bf16 and f16 weights, with activations, and those of f16, rounded to bf16.
    pub(super) matmul_bf16: Option<unsafe fn(&MatrixRef, Range<usize>, &FloatActs, *mut f32, usize, &mut Scratch)>,
    /// Many rows on quantised weights, both rounded to bf16; `None` where integers are faster.
    pub(super) rounded: Option<Rounding>,
    pub(super) dequantize_row: unsafe fn(QuantType, &[u8], &mut [f32]),
    /// See `pack::transpose`.
    pub(super) transpose: unsafe fn(*const u32, usize, usize, usize, *mut u32, usize),
}

/// See [`CpuKernels::rounds_many`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Rounding {
    pub(super) matmul: unsafe fn(&MatrixRef, Range<usize>, &RoundedActs, Output, &mut Scratch),
    /// Rows from their address and stride, their number and length.
    pub(super) round_acts: unsafe fn(*const f32, usize, usize, usize, *mut u32),
    pub(super) round_lanes: unsafe fn(&[[f32; PACK_ROWS]; ACT_GROUP], &mut [[u32; PACK_ROWS]; ACT_GROUP / 2]),
}

impl CpuKernels {
    /// The best kernels for this CPU. Detection runs once a process.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<CpuKernels> = OnceLock::new();
        *DETECTED.get_or_init(|| Self::for_isa(Isa::detect()).unwrap_or(scalar::KERNELS))
    }

    /// These, without rounding activations to bf16: what the exact mode uses.
    pub fn without_bf16(self) -> Self {
        Self { matmul_bf16: None, rounded: None, ..self }
    }

    /// What these kernels have beside them for everything that isn't a matmul; it rounds to bf16 only where they do.
    pub fn vectors(&self) -> VectorKernels {
        let vectors = VectorKernels::for_isa(self.isa);
        if self.matmul_bf16.is_some() { vectors } else { vectors.without_bf16() }
    }

    /// The kernels of this level; `None` if the CPU lacks it.
    pub fn for_isa(isa: Isa) -> Option<Self> {
        if !isa.is_available() {
            return None;
        }
        match isa {
            Isa::Scalar => Some(scalar::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => Some(super::avx2::KERNELS),
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => Some(super::avx2::VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => Some(super::avx512::BASE),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => Some(super::avx512::VNNI),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Some(super::avx512::BF16),
            #[cfg(target_arch = "x86_64")]
            Isa::Amx => Some(super::avx512::AMX),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => Some(super::neon::BASE),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonDotprod => Some(super::neon::DOTPROD),
            #[cfg(target_arch = "aarch64")]
            Isa::NeonI8mm => Some(super::neon::I8MM),
            // Levels of other kinds of CPUs, which aren't available here.
            _ => None,
        }
    }

    /// Which kernels these are.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// With how many rows of activations, at most [`DECODE_ROWS`], a matmul is fastest on weights as they lie in the file. More rows want
    /// to be packed.
    pub fn few_rows(&self) -> usize {
        self.few_rows
    }

    /// Names of the features of this CPU that matter to inference.
    pub fn features() -> Vec<&'static str> {
        detected_features()
    }

    /// Whether [`Self::matmul_q8`] takes weights of this type: the block types do, floats don't.
    pub fn matmul_q8_supported(dtype: QuantType) -> bool {
        dtype.has_kernels() && !dtype.is_float()
    }

    /// Quantises one row of K activations, in groups of 32: `q[K]`, `d[K / 32]` and `sums[K / 16]` as in [`ActRows`].
    ///
    /// # Panics
    /// If the lengths don't fit together.
    #[inline]
    pub fn quantize_act_row(&self, x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
        assert!(
            x.len().is_multiple_of(ACT_GROUP)
                && q.len() == x.len()
                && d.len() == x.len() / ACT_GROUP
                && sums.len() == x.len() / SUM_GROUP,
            "quantize_act_row: lengths {} {} {} {}",
            x.len(),
            q.len(),
            d.len(),
            sums.len(),
        );
        // SAFETY: the CPU has the ISA (type's invariant); lengths fit together (just asserted).
        unsafe { (self.quantize_act_row)(x, q, d, sums) }
    }

    /// `out[m, n] = acts[m, :] · w[n, :]` for every row m of `acts` and every n in `rows`, with integer dot products.
    /// `out` is `[M, out_stride]`. A row's result doesn't depend on `rows`, and not on the other rows of `acts`, but on whether they
    /// are packed.
    ///
    /// # Panics
    /// If the shapes don't fit together, the type is a float, `scratch` was made for a smaller K, or there are more than
    /// [`super::DECODE_ROWS`] rows that aren't packed.
    ///
    /// # Safety
    /// `out[m · out_stride + n]` must be valid for writes for all those m and n, and nobody else may touch them meanwhile.
    #[inline]
    pub unsafe fn matmul_q8(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &ActRows,
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        assert_q8_shapes(w, &rows, acts, scratch);
        // SAFETY: the CPU has the ISA (type's invariant); shapes fit (just asserted); `out` is the caller's promise.
        unsafe { (self.matmul_q8)(w, rows, acts, out, out_stride, scratch) }
    }

    /// Whether there is a [`Self::matmul_q8_lanes`].
    pub fn has_lanes(&self) -> bool {
        self.matmul_q8_lanes.is_some()
    }

    /// Columns from block to block in what [`Self::matmul_q8_lanes`] gives for so many rows of weights.
    pub const fn lane_cols(num_rows: usize) -> usize {
        num_rows.next_multiple_of(LANE_STEP)
    }

    /// As [`Self::matmul_q8`] on packed rows, bit for bit, with the results as they come: rows of activations are lanes. `out` is
    /// `[blocks][lane_cols][PACK_ROWS]`, its columns those of `rows` and some of no meaning; lanes without a row have none either.
    ///
    /// # Panics
    /// If the shapes don't fit together, the type is a float, `scratch` was made for a smaller K, rows aren't packed, or there is no
    /// such kernel ([`Self::has_lanes`]).
    #[expect(clippy::expect_used, reason = "documented; callers ask once, before they plan to call this")]
    pub fn matmul_q8_lanes(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &ActRows,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let matmul = self.matmul_q8_lanes.expect("matmul_q8_lanes: no such kernel");
        assert_q8_shapes(w, &rows, acts, scratch);
        let needed = acts.num_rows.next_multiple_of(PACK_ROWS) * Self::lane_cols(rows.len());
        assert!(
            acts.packed.is_some() && out.len() >= needed,
            "matmul_q8_lanes: rows {rows:?}, {} rows of acts, packed: {}, out of {}",
            acts.num_rows,
            acts.packed.is_some(),
            out.len(),
        );
        // SAFETY: the CPU has the ISA (type's invariant); shapes fit, and `out` holds all blocks (just asserted).
        unsafe { matmul(w, rows, acts, out.as_mut_ptr(), scratch) }
    }

    /// Whether many rows of activations for quantised weights are to be rounded to bf16, with [`Self::round_acts`] and
    /// [`Self::matmul_on_rounded`], rather than quantised: where AMX multiplies bf16. Both factors then keep 8 significant bits.
    pub fn rounds_many(&self) -> bool {
        self.rounded.is_some()
    }

    /// As [`Self::matmul_q8`] with weights and activations rounded to bf16 and sums in f32. A row's result depends on nothing else.
    ///
    /// # Panics
    /// If the shapes don't fit together, the type is a float, or there is no such kernel ([`Self::rounds_many`]).
    ///
    /// # Safety
    /// As [`Self::matmul_q8`].
    pub unsafe fn matmul_on_rounded(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &RoundedActs,
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        let rounding = self.rounding();
        assert_rounded_shapes(w, &rows, acts);
        // SAFETY: the CPU has the ISA (type's invariant); shapes fit (just asserted); `out` is the caller's promise.
        unsafe { (rounding.matmul)(w, rows, acts, Output::Rows { out, stride: out_stride }, scratch) }
    }

    /// As [`Self::matmul_on_rounded`], bit for bit, with results as [`Self::matmul_q8_lanes`] has them.
    ///
    /// # Panics
    /// As there, and if `out` is too short.
    pub fn matmul_on_rounded_lanes(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &RoundedActs,
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let rounding = self.rounding();
        assert_rounded_shapes(w, &rows, acts);
        let num_cols = Self::lane_cols(rows.len());
        let needed = acts.num_rows.next_multiple_of(PACK_ROWS) * num_cols;
        assert!(out.len() >= needed, "matmul_on_rounded_lanes: out {}, not {needed}", out.len());
        // SAFETY: the CPU has the ISA (type's invariant); shapes fit, and `out` holds all blocks (just asserted).
        unsafe { (rounding.matmul)(w, rows, acts, Output::Lanes { out: out.as_mut_ptr(), num_cols }, scratch) }
    }

    #[expect(clippy::expect_used, reason = "documented; callers ask once, before they plan to call this")]
    pub(super) fn rounding(&self) -> &Rounding {
        self.rounded.as_ref().expect("no kernel rounds activations here")
    }

    /// As [`Self::matmul_q8`] with f32 activations and f32 arithmetic: what float weights use, and the exact mode of quantised ones.
    ///
    /// # Panics
    /// If the shapes don't fit together or `scratch` was made for a smaller K.
    ///
    /// # Safety
    /// As [`Self::matmul_q8`].
    #[inline]
    pub unsafe fn matmul_f32(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &FloatActs,
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        assert_f32_shapes(w, &rows, acts, scratch);
        // SAFETY: the CPU has the ISA (type's invariant); shapes fit (just asserted); `out` is the caller's promise.
        unsafe { (self.matmul_f32)(w, rows, acts, out, out_stride, scratch) }
    }

    /// As [`Self::matmul_f32`] for float weights where both factors may be rounded to bf16 (8 significant bits): with 16-bit weights
    /// and many rows that is done where the CPU multiplies bf16.
    ///
    /// # Panics
    /// As [`Self::matmul_f32`].
    ///
    /// # Safety
    /// As [`Self::matmul_q8`].
    #[inline]
    pub unsafe fn matmul_rounded(
        &self,
        w: &MatrixRef,
        rows: Range<usize>,
        acts: &FloatActs,
        out: *mut f32,
        out_stride: usize,
        scratch: &mut Scratch,
    ) {
        match self.matmul_bf16 {
            Some(matmul) if self.rounds(w.dtype(), w.cols()) && acts.are_many(DECODE_ROWS) => {
                assert_f32_shapes(w, &rows, acts, scratch);
                // SAFETY: the CPU has the ISA (type's invariant); shapes fit (just asserted), and K is whole units; `out` is the
                // caller's promise.
                unsafe { matmul(w, rows, acts, out, out_stride, scratch) }
            }
            // SAFETY: the caller's promise.
            _ => unsafe { self.matmul_f32(w, rows, acts, out, out_stride, scratch) },
        }
    }

    /// Whether [`Self::matmul_rounded`] rounds many rows of `k` activations for weights of this type. If not, it takes them packed.
    pub fn rounds(&self, dtype: QuantType, k: usize) -> bool {
        self.matmul_bf16.is_some() && matches!(dtype, QuantType::BF16 | QuantType::F16) && k.is_multiple_of(BF16_UNIT)
    }

    /// The whole matrix: `out`, `[M, N]`, from quantised activations.
    ///
    /// # Panics
    /// As [`Self::matmul_q8`], and if `out` is not `M · N` long.
    pub fn matmul_q8_all(&self, w: &MatrixRef, acts: &ActRows, out: &mut [f32], scratch: &mut Scratch) {
        assert_eq!(out.len(), acts.num_rows * w.rows(), "matmul_q8_all: out");
        // SAFETY: `out` is borrowed mutably and holds every (m, n) at stride N (just asserted).
        unsafe { self.matmul_q8(w, 0..w.rows(), acts, out.as_mut_ptr(), w.rows(), scratch) }
    }

    /// The whole matrix: `out`, `[M, N]`, from f32 activations `x`, `[M, K]`.
    ///
    /// # Panics
    /// As [`Self::matmul_f32`], and if `x` or `out` is not of that size.
    pub fn matmul_f32_all(&self, w: &MatrixRef, x: &[f32], num_rows: usize, out: &mut [f32], scratch: &mut Scratch) {
        assert_eq!(x.len(), num_rows * w.cols(), "matmul_f32_all: x");
        assert_eq!(out.len(), num_rows * w.rows(), "matmul_f32_all: out");
        let acts = FloatActs { x, stride: w.cols(), num_rows, numerics: Numerics::Fast, packed: None };
        // SAFETY: `out` is borrowed mutably and holds every (m, n) at stride N (just asserted).
        unsafe { self.matmul_f32(w, 0..w.rows(), &acts, out.as_mut_ptr(), w.rows(), scratch) }
    }

    /// Turns the bytes of `dst.len()` elements into f32.
    ///
    /// # Errors
    /// As [`QuantType::dequantize_row`].
    pub fn dequantize_row(&self, dtype: QuantType, src: &[u8], dst: &mut [f32]) -> Result<()> {
        if !dtype.has_kernels() {
            return Err(dtype.no_kernel());
        }
        let bytes = dtype.checked_row_bytes("dequantize_row", dst.len())?;
        if src.len() != bytes {
            return Err(Error::Length { what: "dequantize_row: bytes", expected: bytes, got: src.len() });
        }
        // SAFETY: the CPU has the ISA (type's invariant); lengths fit (just checked).
        unsafe { (self.dequantize_row)(dtype, src, dst) };
        Ok(())
    }
}

/// Elements that the K of a bf16 matmul is a multiple of.
pub(super) const BF16_UNIT: usize = 32;

/// What the matmuls on quantised activations rest on.
fn assert_q8_shapes(w: &MatrixRef, rows: &Range<usize>, acts: &ActRows, scratch: &Scratch) {
    assert!(
        CpuKernels::matmul_q8_supported(w.dtype())
            && acts.is_consistent()
            && acts.k == w.cols()
            && (acts.num_rows <= DECODE_ROWS || acts.packed.is_some())
            && rows.start <= rows.end
            && rows.end <= w.rows()
            && w.cols() <= scratch.max_k(),
        "matmul_q8: {} [{}, {}] rows {rows:?}, acts [{}, {}], scratch for {}",
        w.dtype(),
        w.rows(),
        w.cols(),
        acts.num_rows,
        acts.k,
        scratch.max_k(),
    );
}

/// What the matmuls on rounded activations rest on. They take a fixed part of the scratch.
fn assert_rounded_shapes(w: &MatrixRef, rows: &Range<usize>, acts: &RoundedActs) {
    assert!(
        CpuKernels::matmul_q8_supported(w.dtype())
            && acts.k == w.cols()
            && acts.k.is_multiple_of(ACT_GROUP)
            && acts.pairs.len() == RoundedActs::len(acts.num_rows, acts.k)
            && rows.start <= rows.end
            && rows.end <= w.rows(),
        "matmul_on_rounded: {} [{}, {}] rows {rows:?}, acts [{}, {}] of {} pairs",
        w.dtype(),
        w.rows(),
        w.cols(),
        acts.num_rows,
        acts.k,
        acts.pairs.len(),
    );
}

/// What the f32 matmuls rest on.
fn assert_f32_shapes(w: &MatrixRef, rows: &Range<usize>, acts: &FloatActs, scratch: &Scratch) {
    assert!(
        acts.is_consistent(w.cols()) && rows.start <= rows.end && rows.end <= w.rows() && w.cols() <= scratch.max_k(),
        "matmul_f32: {} [{}, {}] rows {rows:?}, x [{}, {}] of {} elements, scratch for {}",
        w.dtype(),
        w.rows(),
        w.cols(),
        acts.num_rows,
        acts.stride,
        acts.x.len(),
        scratch.max_k(),
    );
}

/// Dequantises a row whose type and lengths the caller has checked. Inlined into each ISA's function, where the compiler
/// vectorises it for that ISA.
#[inline(always)]
pub(super) fn dequantize_checked(dtype: QuantType, src: &[u8], dst: &mut [f32]) {
    with_block!(dtype, |B| dequantize_blocks::<B>(bytemuck::cast_slice(src), dst), {
        let result = float::to_f32(dtype, src, dst);
        debug_assert!(result.is_ok(), "{dtype} has no kernel");
    });
}
