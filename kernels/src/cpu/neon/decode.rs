//! Few rows of activations: weights are read once, in the layout of the file, `R` rows at a time against `M` activations.
//!
//! A block is unpacked by the format's own scalar code, which the compiler vectorises; what follows is the same for every
//! format. The order of additions depends neither on `R` nor on `M`, so a row's result is the same in every batch.

use core::arch::aarch64::*;
use std::ops::Range;

use super::dot::Dot;
use crate::{
    cpu::{
        matrix::{ACT_GROUP, ActRows, MatrixRef, SUM_GROUP},
        scalar::unreachable_float,
    },
    quant::{Block, GroupKind, with_block},
};

/// One matmul.
pub(super) struct DecodeJob<B> {
    /// `[N, K / LEN]`
    w: *const B,
    k: usize,
    /// i8 `[M, K]`
    q: *const i8,
    /// `[M, K / 32]`
    d: *const f32,
    /// Σ q, `[M, K / 16]`
    sums: *const i16,
    out: *mut f32,
    out_stride: usize,
}

/// What makes a format's codes signed; minima stay apart.
const fn bias<B: Block>() -> u8 {
    let bias = match B::KIND {
        GroupKind::Offset(offset) => offset,
        GroupKind::Min => 0,
    };
    assert!(bias <= 128 && B::MAX_CODE as i16 - bias as i16 <= 127, "codes without offset must be signed bytes");
    bias
}

/// Rows `row ..+ R` against all `M` rows of activations.
///
/// # Safety
/// The job's pointers must be valid for its shapes; `R` rows from `row` on must exist; the CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn tile<B: Block, D: Dot, const R: usize, const M: usize>(job: &DecodeJob<B>, row: usize) {
    let bias = const { bias::<B>() };
    let blocks_per_row = job.k / B::LEN;
    let (mut codes, mut scales, mut mins) = ([[0; 256]; R], [[0.0; 16]; R], [[0.0; 16]; R]);
    // SAFETY: blocks of rows row..row + R; elements, groups and sums below K of row m; codes of a block.
    unsafe {
        let mut acc = [[vdupq_n_f32(0.0); M]; R];
        let mut acc_mins = [[0.0; M]; R];
        for block in 0..blocks_per_row {
            for r in 0..R {
                let block = &*job.w.add((row + r) * blocks_per_row + block);
                block.unpack(&mut codes[r][..B::LEN], &mut scales[r], &mut mins[r]);
            }
            for group in 0..B::LEN / B::GROUP {
                let first = block * B::LEN + group * B::GROUP;
                let mut w = [[vdupq_n_s8(0); 2]; R];
                for r in 0..R {
                    for part in 0..B::GROUP / 16 {
                        let codes = vld1q_u8(codes[r].as_ptr().add(group * B::GROUP + part * 16));
                        w[r][part] = vreinterpretq_s8_u8(vsubq_u8(codes, vdupq_n_u8(bias)));
                    }
                }
                for m in 0..M {
                    let mut x = [vdupq_n_s8(0); 2];
                    for part in 0..B::GROUP / 16 {
                        x[part] = vld1q_s8(job.q.add(m * job.k + first + part * 16));
                    }
                    let d = *job.d.add((m * job.k + first) / ACT_GROUP);
                    let mut sum = 0;
                    if matches!(B::KIND, GroupKind::Min) {
                        for part in 0..B::GROUP / SUM_GROUP {
                            sum += i32::from(*job.sums.add((m * job.k + first) / SUM_GROUP + part));
                        }
                    }
                    for r in 0..R {
                        let mut dots = vdupq_n_s32(0);
                        for part in 0..B::GROUP / 16 {
                            dots = D::dot(dots, w[r][part], x[part]);
                        }
                        acc[r][m] = vfmaq_n_f32(acc[r][m], vcvtq_f32_s32(dots), scales[r][group] * d);
                        if matches!(B::KIND, GroupKind::Min) {
                            acc_mins[r][m] += mins[r][group] * (d * sum as f32);
                        }
                    }
                }
            }
        }
        for r in 0..R {
            for m in 0..M {
                *job.out.add(m * job.out_stride + row + r) = vaddvq_f32(acc[r][m]) + acc_mins[r][m];
            }
        }
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
    out_stride: usize,
) {
    let (k, q, d, sums) = (acts.k, acts.q.as_ptr(), acts.d.as_ptr(), acts.sums.as_ptr());
    with_block!(
        w.dtype(),
        |B| {
            let job = DecodeJob::<B> { w: w.data().as_ptr().cast(), k, q, d, sums, out, out_stride };
            // SAFETY: the matrix holds blocks of its type, which any address will do for; the wrapper checked the shapes; `out`
            // is the caller's promise.
            unsafe {
                match acts.num_rows {
                    0 => {}
                    1 => tiles::<B, D, 4, 1>(&job, rows),
                    2 => tiles::<B, D, 4, 2>(&job, rows),
                    3 => tiles::<B, D, 2, 3>(&job, rows),
                    4 => tiles::<B, D, 2, 4>(&job, rows),
                    5 => tiles::<B, D, 2, 5>(&job, rows),
                    6 => tiles::<B, D, 2, 6>(&job, rows),
                    7 => tiles::<B, D, 1, 7>(&job, rows),
                    _ => tiles::<B, D, 1, 8>(&job, rows),
                }
            }
        },
        unreachable_float(w.dtype())
    );
}

unsafe fn tiles<B: Block, D: Dot, const R: usize, const M: usize>(job: &DecodeJob<B>, rows: Range<usize>) {
    let mut row = rows.start;
    // SAFETY: the caller's job; rows stay inside its range.
    unsafe {
        while row + R <= rows.end {
            D::decode_tile::<B, R, M>(job, row);
            row += R;
        }
        while row < rows.end {
            D::decode_tile::<B, 1, M>(job, row);
            row += 1;
        }
    }
}
