//! Few rows of activations: weights are read once, in the layout of the file, `R` rows at a time against `M` activations.
//!
//! Per register of 64 codes and pair of rows: one dot product into 16 lanes of i32, one conversion, one multiply-add with the
//! product of both scales, spread from a register that holds them for the whole chunk; where the format allows it, two registers share
//! all but the dot product ([`Order`]). Offsets of codes are taken off like minima, once a chunk. Sums over lanes come last. The order of
//! additions depends neither on `R` nor on `M`, so a row's result is the same in every batch.

use core::arch::x86_64::*;
use std::ops::Range;

use super::{
    dot::Dot,
    formats::{Format, Mins, Order},
};
use crate::{
    cpu::ahead::ReadOnce,
    cpu::matrix::{ACT_GROUP, ActRows, Carve, MatrixRef, SUM_GROUP, Scratch},
    cpu::scalar::unreachable_float,
    quant::with_block,
};

/// How far ahead weights are asked for in each of the rows that are read together: what memory's latency takes at a core's rate.
const PREFETCH_BYTES: usize = 1024;

/// One matmul. Strides are in elements, from one row of activations to the next.
pub(super) struct DecodeJob {
    w: *const u8,
    read_once: ReadOnce,
    row_bytes: usize,
    k: usize,
    /// i8 `[M, K]`, chunks in the order of the format.
    q: *const i8,
    /// Scales of the activations in the order of [`Format::scales`], 16 for a chunk, zero behind the end: `[M, factor_stride]`.
    factors: *const f32,
    /// Scaled sums in the same order: what minima are multiplied by, or scales if codes have an offset.
    sums: *const f32,
    factor_stride: usize,
    out: *mut f32,
    out_stride: usize,
}

/// Which scale of the chunk belongs to each lane of its registers.
#[repr(C, align(64))]
struct Spread([[i32; 16]; 8]);

const fn spread(order: Order, group: usize) -> Spread {
    let mut out = [[0; 16]; 8];
    let mut i = 0;
    while i < 128 {
        // Behind a chunk of four registers numbers mean nothing.
        out[i / 16][i % 16] = (order.element(i / 16, i % 16 / 4) / group % 16) as i32;
        i += 1;
    }
    Spread(out)
}

/// `R` rows, `row` and every `step`-th from there, against all `M` rows of activations.
///
/// # Safety
/// The job's pointers must be valid for its shapes; those rows must exist; the CPU must have the features of `D`.
#[inline(always)]
pub(super) unsafe fn tile<F: Format, D: Dot, const R: usize, const M: usize>(job: &DecodeJob, row: usize, step: usize) {
    let chunk_elements = F::CODES * 64;
    let chunk_bytes = F::CHUNK_BLOCKS * F::BYTES;
    let num_chunks = job.k / chunk_elements;
    let (spread, natural) = const { (&spread(F::ORDER, F::GROUP), &spread(Order::Natural, F::GROUP)) };
    // SAFETY: weights: blocks of rows row..row + R, inside `num_chunks` chunks and then the rest of the row. Activations: inside
    // row m; what the last register of an odd number of blocks lacks is masked off. Prefetches may point anywhere.
    unsafe {
        let first = job.w.add(row * job.row_bytes);
        let stride = step * job.row_bytes;
        let mut acc = [[_mm512_setzero_ps(); M]; R];
        for chunk in 0..num_chunks {
            let mut products = [[_mm512_setzero_ps(); M]; R];
            for r in 0..R {
                let blocks = first.add(r * stride + chunk * chunk_bytes);
                // Volatile: known before the loop, it would make two of it.
                let read_once = (&raw const job.read_once).read_volatile();
                read_once.ask_all(blocks.wrapping_add(PREFETCH_BYTES), chunk_bytes);
                let (scales, mins) = F::scales(blocks, F::CHUNK_BLOCKS);
                for m in 0..M {
                    (acc[r][m], products[r][m]) = factors::<F>(job, acc[r][m], scales, mins, chunk, m);
                }
            }
            for i in 0..F::CODES / 2 {
                let mut codes = [[_mm512_setzero_si512(); 2]; R];
                for r in 0..R {
                    codes[r] = F::pair(first.add(r * stride + chunk * chunk_bytes), i);
                }
                let which = [
                    _mm512_load_si512(spread.0[2 * i].as_ptr().cast()),
                    _mm512_load_si512(spread.0[2 * i + 1].as_ptr().cast()),
                ];
                for m in 0..M {
                    let q = job.q.add(m * job.k + chunk * chunk_elements + i * 128);
                    let x = [_mm512_loadu_si512(q.cast()), _mm512_loadu_si512(q.add(64).cast())];
                    for r in 0..R {
                        let dot = D::dot(_mm512_setzero_si512(), codes[r][0], x[0]);
                        if let Order::Halves = F::ORDER {
                            let both = D::dot(dot, codes[r][1], x[1]);
                            acc[r][m] = add_scaled(acc[r][m], both, products[r][m], which[0]);
                        } else {
                            let second = D::dot(_mm512_setzero_si512(), codes[r][1], x[1]);
                            acc[r][m] = add_scaled(acc[r][m], dot, products[r][m], which[0]);
                            acc[r][m] = add_scaled(acc[r][m], second, products[r][m], which[1]);
                        }
                    }
                }
            }
        }
        if F::CHUNK_BLOCKS > 1 {
            let blocks_left = job.k / F::LEN - num_chunks * F::CHUNK_BLOCKS;
            if blocks_left > 0 {
                let mut products = [[_mm512_setzero_ps(); M]; R];
                for r in 0..R {
                    let blocks = first.add(r * stride + num_chunks * chunk_bytes);
                    let (scales, mins) = F::scales(blocks, blocks_left);
                    for m in 0..M {
                        (acc[r][m], products[r][m]) = factors::<F>(job, acc[r][m], scales, mins, num_chunks, m);
                    }
                }
                for i in 0..(blocks_left * F::LEN).div_ceil(64) {
                    let is_whole = 64 * (i + 1) <= blocks_left * F::LEN;
                    let bytes = if is_whole { !0 } else { 0xffff_ffff };
                    let which = _mm512_load_si512(natural.0[i].as_ptr().cast());
                    let element = num_chunks * chunk_elements + i * 64;
                    for r in 0..R {
                        let blocks = first.add(r * stride + num_chunks * chunk_bytes);
                        let codes = if is_whole { F::codes(blocks, i) } else { F::half(blocks.add(2 * i * F::BYTES)) };
                        for m in 0..M {
                            let x = _mm512_maskz_loadu_epi8(bytes, job.q.add(m * job.k + element));
                            let dot = D::dot(_mm512_setzero_si512(), codes, x);
                            acc[r][m] = add_scaled(acc[r][m], dot, products[r][m], which);
                        }
                    }
                }
            }
        }
        for m in 0..M {
            let mut four = [acc[0][m]; 4];
            for r in 0..R {
                four[r] = acc[r][m];
            }
            let mut sums = [0.0; 4];
            _mm_storeu_ps(sums.as_mut_ptr(), sum_four(four));
            for (r, sum) in sums.into_iter().enumerate().take(R) {
                job.out.add(m * job.out_stride + row + r * step).write(sum);
            }
        }
    }
}

/// Adds dot products, each times its scale: that of number `which` among the chunk's.
#[inline(always)]
unsafe fn add_scaled(acc: __m512, dots: __m512i, products: __m512, which: __m512i) -> __m512 {
    // SAFETY: value-only.
    unsafe { _mm512_fmadd_ps(_mm512_cvtepi32_ps(dots), _mm512_permutexvar_ps(which, products), acc) }
}

/// Multiplies the scales of a chunk by those of the activations and adds the minima's part.
#[inline(always)]
unsafe fn factors<F: Format>(
    job: &DecodeJob,
    acc: __m512,
    scales: __m512,
    mins: __m512,
    chunk: usize,
    m: usize,
) -> (__m512, __m512) {
    // SAFETY: 16 factors a chunk, padded with zeros.
    unsafe {
        let at = m * job.factor_stride + chunk * 16;
        let products = _mm512_mul_ps(scales, _mm512_loadu_ps(job.factors.add(at)));
        let acc = match F::MINS {
            Mins::None => _mm512_fmadd_ps(scales, _mm512_loadu_ps(job.sums.add(at)), acc),
            Mins::Apart => _mm512_fmadd_ps(mins, _mm512_loadu_ps(job.sums.add(at)), acc),
            Mins::Upper => _mm512_mask_add_ps(acc, 0xff00, acc, products),
        };
        (acc, products)
    }
}

/// Sum over the lanes of each.
#[inline(always)]
pub(super) unsafe fn sum_four(x: [__m512; 4]) -> __m128 {
    // SAFETY: value-only.
    unsafe {
        let ab = _mm512_add_ps(_mm512_unpacklo_ps(x[0], x[1]), _mm512_unpackhi_ps(x[0], x[1]));
        let cd = _mm512_add_ps(_mm512_unpacklo_ps(x[2], x[3]), _mm512_unpackhi_ps(x[2], x[3]));
        let (ab, cd) = (_mm512_castps_pd(ab), _mm512_castps_pd(cd));
        let low = _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd));
        let high = _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd));
        let abcd = _mm512_add_ps(low, high);
        let halves = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps::<1>(abcd));
        _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps::<1>(halves))
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
    let chunk_elements = F::CODES * 64;
    let factor_stride = acts.k.div_ceil(chunk_elements) * 16;
    let mut carve = scratch.carve();
    let carved: &mut Carve = &mut carve;
    let factors = carved.take::<f32>(acts.num_rows * factor_stride);
    let sums = carved.take::<f32>(if F::MINS == Mins::Upper { 0 } else { factors.len() });
    let ordered = carved.take::<i8>(if F::ORDER == Order::Natural { 0 } else { acts.q.len() });
    for m in 0..acts.num_rows {
        let row = acts.rows(m..m + 1);
        let part = m * factor_stride..(m + 1) * factor_stride;
        prepare_factors::<F>(&row, &mut factors[part.clone()], if sums.is_empty() { &mut [] } else { &mut sums[part] });
        if !ordered.is_empty() {
            reorder::<F>(row.q, &mut ordered[m * acts.k..(m + 1) * acts.k]);
        }
    }
    let job = DecodeJob {
        w: w.data().as_ptr(),
        read_once: ReadOnce::detect(),
        row_bytes: w.row_bytes(),
        k: acts.k,
        q: if ordered.is_empty() { acts.q.as_ptr() } else { ordered.as_ptr() },
        factors: factors.as_ptr(),
        sums: sums.as_ptr(),
        factor_stride,
        out,
        out_stride: stride,
    };
    // SAFETY: slices above have the job's shapes; rows are inside the matrix and `out` is the caller's promise.
    unsafe {
        match acts.num_rows {
            0 => {}
            // The prefetchers of AMD's cores like two streams better: Zen 4 decodes a 1B 1.2 times as fast as with four (Q8_0, 2026-11-30).
            1 if job.read_once.is_far() => tiles::<F, D, 2, 1>(&job, rows),
            1 => tiles::<F, D, 4, 1>(&job, rows),
            2 => tiles::<F, D, 4, 2>(&job, rows),
            3 => tiles::<F, D, 2, 3>(&job, rows),
            4 => tiles::<F, D, 2, 4>(&job, rows),
            5 => tiles::<F, D, 1, 5>(&job, rows),
            6 => tiles::<F, D, 1, 6>(&job, rows),
            7 => tiles::<F, D, 1, 7>(&job, rows),
            _ => tiles::<F, D, 1, 8>(&job, rows),
        }
    }
}

/// All rows. Those of a tile are far apart: `R` streams through memory, each in order, are read faster than one.
unsafe fn tiles<F: Format, D: Dot, const R: usize, const M: usize>(job: &DecodeJob, rows: Range<usize>) {
    let step = rows.len() / R;
    // SAFETY: the caller's job; rows stay inside its range.
    unsafe {
        for row in rows.start..rows.start + step {
            D::decode_tile::<F, R, M>(job, row, step);
        }
        for row in rows.start + R * step..rows.end {
            D::decode_tile::<F, 1, M>(job, row, 1);
        }
    }
}

/// Brings one row into the order of the format. What is left behind the last whole chunk stays as it is.
fn reorder<F: Format>(q: &[i8], ordered: &mut [i8]) {
    let (from, from_rest) = q.split_at(q.len() - q.len() % (F::CODES * 64));
    let (to, to_rest) = ordered.split_at_mut(from.len());
    for (from, to) in from.chunks_exact(F::CODES * 64).zip(to.chunks_exact_mut(F::CODES * 64)) {
        for (i, quarter) in to.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let element = F::ORDER.element(i / 4, i % 4);
            quarter.copy_from_slice(&from[element..element + 16]);
        }
    }
    to_rest.copy_from_slice(from_rest);
}

/// Brings one row's scales (and scaled sums) into the order of the format's scales.
fn prepare_factors<F: Format>(act: &ActRows, factors: &mut [f32], sums: &mut [f32]) {
    let chunk_groups = F::CODES * 64 / F::GROUP;
    let num_groups = act.k / F::GROUP;
    let scale = |group: usize| act.d[group * F::GROUP / ACT_GROUP];
    let has_high_nibbles = |group: usize| F::ORDER == Order::Nibbles && !group.is_multiple_of(2);
    let scaled_sum = |group: usize| {
        let per_group = F::GROUP / SUM_GROUP;
        let sum: i32 = act.sums[group * per_group..(group + 1) * per_group].iter().map(|&sum| i32::from(sum)).sum();
        scale(group) * sum as f32
    };
    factors.fill(0.0);
    sums.fill(0.0);
    for group in 0..num_groups {
        let at = group / chunk_groups * 16 + group % chunk_groups;
        factors[at] = if has_high_nibbles(group) { scale(group) / 16.0 } else { scale(group) };
        match F::MINS {
            Mins::None => sums[at] = -f32::from(F::OFFSET) * scaled_sum(group),
            Mins::Apart => sums[at] = scaled_sum(group),
            // Minima are subtracted.
            Mins::Upper => factors[at + 8] = -scaled_sum(group),
        }
    }
}
