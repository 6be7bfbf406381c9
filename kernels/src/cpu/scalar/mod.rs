//! Plain Rust: what every other ISA's kernels are tested against, and what runs where none of them can.

use std::ops::Range;

use super::{
    CpuKernels, DECODE_ROWS, Isa,
    matrix::{ACT_GROUP, ActRows, FloatActs, MatrixRef, SUM_GROUP, Scratch, scale_of},
    pack::transpose,
};
use crate::quant::{Block, GroupKind, QuantType, with_block};

/// The table.
pub(super) const KERNELS: CpuKernels = CpuKernels {
    isa: Isa::Scalar,
    few_rows: DECODE_ROWS,
    quantize_act_row,
    matmul_q8,
    matmul_q8_lanes: None,
    matmul_f32,
    matmul_bf16: None,
    rounded: None,
    dequantize_row,
    transpose,
};

/// See [`CpuKernels::quantize_act_row`]. The largest magnitude is found on the bits, where NaN > infinity > all numbers: any
/// order of evaluation gives the same, and a NaN is never lost.
fn quantize_act_row(x: &[f32], q: &mut [i8], d: &mut [f32], sums: &mut [i16]) {
    for (((x, q), d), sums) in
        x.as_chunks::<32>().0.iter().zip(q.as_chunks_mut::<32>().0).zip(d).zip(sums.as_chunks_mut::<2>().0)
    {
        let largest = f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
        let inverse = 127.0 / largest;
        if !inverse.is_normal() {
            // All zero (or so small that 127 / largest overflows: less than 4e-37), or not finite.
            *d = if largest.is_finite() { 0.0 } else { largest };
            q.fill(0);
            sums.fill(0);
            continue;
        }
        *d = scale_of(largest);
        for (q, x) in q.iter_mut().zip(x) {
            *q = (x * inverse).round_ties_even() as i8;
        }
        for (sum, q) in sums.iter_mut().zip(q.as_chunks::<SUM_GROUP>().0) {
            *sum = q.iter().map(|&q| i16::from(q)).sum();
        }
    }
}

unsafe fn matmul_q8(w: &MatrixRef, rows: Range<usize>, acts: &ActRows, out: *mut f32, stride: usize, _: &mut Scratch) {
    with_block!(
        w.dtype(),
        |B| for row in rows {
            let blocks: &[B] = bytemuck::cast_slice(w.row(row));
            for m in 0..acts.num_rows {
                let acts = acts.rows(m..m + 1);
                // SAFETY: the caller owns element (m, row) of `out`.
                unsafe { out.add(m * stride + row).write(dot_q8(blocks, &acts)) };
            }
        },
        unreachable_float(w.dtype())
    );
}

/// Dot product of a row of blocks and one row of activations: exact integers inside a group, f32 across groups in order.
fn dot_q8<B: Block>(blocks: &[B], act: &ActRows) -> f32 {
    let (mut codes, mut scales, mut mins) = ([0; 256], [0.0; 16], [0.0; 16]);
    let mut total = 0.0;
    for (block, q) in blocks.iter().zip(act.q.chunks_exact(B::LEN)).enumerate().map(|(i, (block, q))| ((i, block), q)) {
        let (index, block) = block;
        block.unpack(&mut codes[..B::LEN], &mut scales, &mut mins);
        for group in 0..B::LEN / B::GROUP {
            let elements = group * B::GROUP..(group + 1) * B::GROUP;
            let products = codes[elements.clone()].iter().zip(&q[elements.clone()]);
            let mut dot: i32 = products.map(|(&code, &q)| i32::from(code) * i32::from(q)).sum();
            let first = index * B::LEN + elements.start;
            let sums = &act.sums[first / SUM_GROUP..(first + B::GROUP) / SUM_GROUP];
            let sum: i32 = sums.iter().map(|&sum| i32::from(sum)).sum();
            let d = act.d[first / ACT_GROUP];
            if let GroupKind::Offset(offset) = B::KIND {
                dot -= i32::from(offset) * sum;
            } else {
                total += mins[group] * (d * sum as f32);
            }
            total += scales[group] * (d * dot as f32);
        }
    }
    total
}

/// `matmul_q8` asserts that the type is quantised before it calls through the table.
#[cold]
#[expect(clippy::panic, reason = "CpuKernels::matmul_q8 asserts matmul_q8_supported")]
pub(super) fn unreachable_float(dtype: QuantType) {
    panic!("matmul_q8 on {dtype}");
}

unsafe fn matmul_f32(
    w: &MatrixRef,
    rows: Range<usize>,
    acts: &FloatActs,
    out: *mut f32,
    stride: usize,
    scratch: &mut Scratch,
) {
    let weights = scratch.carve().take::<f32>(w.cols());
    for row in rows {
        dequantize_row(w.dtype(), w.row(row), weights);
        for m in 0..acts.num_rows {
            let x = &acts.x[m * acts.stride..m * acts.stride + w.cols()];
            let dot = weights.iter().zip(x).map(|(w, x)| w * x).sum();
            // SAFETY: the caller owns element (m, row) of `out`.
            unsafe { out.add(m * stride + row).write(dot) };
        }
    }
}

fn dequantize_row(dtype: QuantType, src: &[u8], dst: &mut [f32]) {
    super::dequantize_checked(dtype, src, dst);
}
