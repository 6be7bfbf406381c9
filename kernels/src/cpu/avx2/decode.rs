//! Few rows of activations: weights are read once, in the layout of the file, `R` rows at a time against `M` activations. The
//! order of additions depends neither on `R` nor on `M`, so a row's result is the same in every batch.

use core::arch::x86_64::*;
use std::ops::Range;

use super::{
    act::prepare_starts,
    dot::Dot,
    formats::{Format, offset},
};
use crate::{
    cpu::{
        ahead::ReadOnce,
        matrix::{ACT_GROUP, ActRows, MatrixRef, SUM_GROUP, Scratch},
        scalar::unreachable_float,
    },
    quant::{GroupKind, with_block},
};

/// One matmul.
pub(super) struct DecodeJob {
    w: *const u8,
    read_once: ReadOnce,
    row_bytes: usize,
    k: usize,
    /// i8 `[M, K]`
    q: *const i8,
    /// `[M, K / 32]`
    d: *const f32,
    /// d · Σ q for each group of the weights, for formats with minima: `[M, K / GROUP]`.
    sums: *const f32,
    /// Start values of the dot products for formats with an offset: `[M, K / 4]`.
    starts: *const i32,
    out: *mut f32,
    out_stride: usize,
}

/// Rows `row ..+ R` against all `M` rows of activations.
///
/// # Safety
/// The job's pointers must be valid for its shapes; `R` rows from `row` on must exist; the CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn tile<F: Format, D: Dot, const R: usize, const M: usize>(job: &DecodeJob, row: usize) {
    let (block_len, block_bytes) = (F::LEN, size_of::<F>());
    let has_mins = matches!(F::KIND, GroupKind::Min);
    let groups = job.k / ACT_GROUP;
    // SAFETY: blocks of rows row..row + R; groups and elements below K of row m.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); M]; R];
        let mut acc_mins = [[0.0f32; M]; R];
        let (mut scales, mut mins) = ([[0.0; 16]; R], [[0.0; 16]; R]);
        for block in 0..job.k / block_len {
            let mut at = [job.w; R];
            for r in 0..R {
                at[r] = job.w.add((row + r) * job.row_bytes + block * block_bytes);
                // Volatile: known before the loop, it would make two of it.
                let read_once = (&raw const job.read_once).read_volatile();
                read_once.ask_all(at[r].wrapping_add(R * job.row_bytes), block_bytes);
                F::scales(at[r], &mut scales[r], &mut mins[r]);
            }
            for i in 0..block_len / 32 {
                let group = block * (block_len / 32) + i;
                let mut codes = [_mm256_setzero_si256(); R];
                for r in 0..R {
                    codes[r] = F::codes(at[r], i);
                }
                for m in 0..M {
                    let x = _mm256_loadu_si256(job.q.add(m * job.k + group * 32).cast());
                    let d = *job.d.add(m * groups + group);
                    for r in 0..R {
                        let start = if offset::<F>().is_some() {
                            _mm256_loadu_si256(job.starts.add(m * job.k / 4 + group * 8).cast())
                        } else {
                            _mm256_setzero_si256()
                        };
                        let dots = D::dot::<F>(start, codes[r], x);
                        let scale = if F::GROUP == SUM_GROUP {
                            let (low, high) = (scales[r][2 * i] * d, scales[r][2 * i + 1] * d);
                            _mm256_set_m128(_mm_set1_ps(high), _mm_set1_ps(low))
                        } else {
                            _mm256_set1_ps(scales[r][i] * d)
                        };
                        acc[r][m] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(dots), scale, acc[r][m]);
                        if has_mins {
                            let parts = 32 / F::GROUP;
                            let sums = job.sums.add((m * groups + group) * parts);
                            for part in 0..parts {
                                acc_mins[r][m] += mins[r][i * parts + part] * *sums.add(part);
                            }
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                *job.out.add(m * job.out_stride + row + r) = sum(acc[r][m]) + acc_mins[r][m];
            }
        }
    }
}

/// Sum over the lanes.
#[inline(always)]
pub(super) unsafe fn sum(x: __m256) -> f32 {
    // SAFETY: value-only.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
    }
}

/// At most [`crate::cpu::DECODE_ROWS`] rows of activations.
///
/// # Safety
/// As `CpuKernels::matmul_q8`; the CPU must have the features of `D`.
pub(super) unsafe fn matmul<D: Dot>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    // SAFETY: the caller's promises, passed on.
    unsafe {
        with_block!(w.dtype(), |B| typed::<B, D>(w, rows, acts, out, stride, scratch), unreachable_float(w.dtype()))
    }
}

unsafe fn typed<F: Format, D: Dot>(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &ActRows,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    let mut carve = scratch.carve();
    let has_mins = matches!(F::KIND, GroupKind::Min);
    let per_group = F::GROUP / SUM_GROUP;
    let sums = carve.take::<f32>(if has_mins { acts.sums.len() / per_group } else { 0 });
    for (group, (sum, parts)) in sums.iter_mut().zip(acts.sums.chunks_exact(per_group)).enumerate() {
        let total: i32 = parts.iter().map(|&part| i32::from(part)).sum();
        *sum = acts.d[group * F::GROUP / ACT_GROUP] * total as f32;
    }
    let starts = carve.take::<i32>(offset::<F>().map_or(0, |_| acts.q.len() / 4));
    if let Some(offset) = offset::<F>() {
        // SAFETY: the CPU is the caller's promise.
        unsafe { prepare_starts(offset, acts.q, starts) };
    }
    let job = DecodeJob {
        w: w.data().as_ptr(),
        read_once: ReadOnce::detect(),
        row_bytes: w.row_bytes(),
        k: acts.k,
        q: acts.q.as_ptr(),
        d: acts.d.as_ptr(),
        sums: sums.as_ptr(),
        starts: starts.as_ptr(),
        out,
        out_stride: stride,
    };
    // SAFETY: slices above have the job's shapes; rows are inside the matrix and `out` is the caller's promise.
    unsafe {
        match acts.num_rows {
            0 => {}
            1 => tiles::<F, D, 4, 1>(&job, rows),
            2 => tiles::<F, D, 2, 2>(&job, rows),
            3 => tiles::<F, D, 2, 3>(&job, rows),
            4 => tiles::<F, D, 2, 4>(&job, rows),
            5 => tiles::<F, D, 1, 5>(&job, rows),
            6 => tiles::<F, D, 1, 6>(&job, rows),
            7 => tiles::<F, D, 1, 7>(&job, rows),
            _ => tiles::<F, D, 1, 8>(&job, rows),
        }
    }
}

unsafe fn tiles<F: Format, D: Dot, const R: usize, const M: usize>(job: &DecodeJob, rows: Range<usize>) {
    let mut row = rows.start;
    // SAFETY: the caller's job; rows stay inside its range.
    unsafe {
        while row + R <= rows.end {
            D::decode_tile::<F, R, M>(job, row);
            row += R;
        }
        while row < rows.end {
            D::decode_tile::<F, 1, M>(job, row);
            row += 1;
        }
    }
}
