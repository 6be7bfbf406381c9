//! Elementary functions and row-wise operations over [`Lanes`]: one source for all instruction sets.

use super::matrix::{ACT_GROUP, SUM_GROUP};
use super::pack::PACK_ROWS;
use super::simd::{LANES, Lanes};
use super::tile::MAGIC;
use super::vector::{Activation, NormRow, QuantizedLanes};

/// `e^x`. Range reduction by `ln 2` in two parts and the degree-6 polynomial of Cephes' `expf`; relative error below
/// 3e-7 on `[-87, 88]`, 0 below, clamped above.
#[inline(always)]
pub(super) fn exp<L: Lanes>(l: L, x: L::V) -> L::V {
    let low = l.splat(-87.0);
    let clamped = l.min(l.max(x, low), l.splat(88.0));
    let n = l.round(l.mul(clamped, l.splat(std::f32::consts::LOG2_E)));
    let r = l.fma(n, l.splat(-0.693_359_4), clamped);
    let r = l.fma(n, l.splat(2.121_944_4e-4), r);
    let mut p = l.splat(1.987_569_1e-4);
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = l.fma(p, r, l.splat(c));
    }
    let p = l.fma(p, l.mul(r, r), l.add(r, l.splat(1.0)));
    l.keep_if_ge(l.mul(p, l.exp2_int(n)), x, low)
}

/// `2^x` for `x <= 0`: Cephes' polynomial of degree 6 for what rounding leaves; relative error below 3e-7, 0 below −126.
#[inline(always)]
pub(super) fn exp2<L: Lanes>(l: L, x: L::V) -> L::V {
    let low = l.splat(-126.0);
    let clamped = l.max(x, low);
    let n = l.round(clamped);
    let r = l.sub(clamped, n);
    let mut p = l.splat(1.535_336_2e-4);
    for c in [1.339_887_4e-3, 9.618_437e-3, 5.550_332_5e-2, 2.402_264_8e-1, 6.931_472e-1, 1.0] {
        p = l.fma(p, r, l.splat(c));
    }
    l.keep_if_ge(l.mul(p, l.exp2_int(n)), x, low)
}

/// `tanh x = 1 − 2 / (e^{2x} + 1)`; absolute error below 3e-7.
#[inline(always)]
pub(super) fn tanh<L: Lanes>(l: L, x: L::V) -> L::V {
    let e = exp(l, l.add(x, x));
    l.sub(l.splat(1.0), l.div(l.splat(2.0), l.add(e, l.splat(1.0))))
}

/// The error function for `x >= 0`: Abramowitz & Stegun 7.1.26, absolute error below 2e-7.
#[inline(always)]
fn erf_positive<L: Lanes>(l: L, x: L::V) -> L::V {
    let t = l.div(l.splat(1.0), l.fma(l.splat(0.327_591_1), x, l.splat(1.0)));
    let mut p = l.splat(1.061_405_4);
    for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
        p = l.fma(p, t, l.splat(c));
    }
    let e = exp(l, l.sub(l.splat(0.0), l.mul(x, x)));
    l.sub(l.splat(1.0), l.mul(l.mul(p, t), e))
}

#[inline(always)]
pub(super) fn activate<L: Lanes>(l: L, act: Activation, x: L::V) -> L::V {
    let one = l.splat(1.0);
    match act {
        Activation::Silu => l.div(x, l.add(one, exp(l, l.sub(l.splat(0.0), x)))),
        Activation::GeluTanh => {
            let inner = l.mul(l.splat(0.797_884_6), l.mul(x, l.fma(l.mul(x, x), l.splat(0.044_715), one)));
            l.mul(l.mul(l.splat(0.5), x), l.add(one, tanh(l, inner)))
        }
        Activation::Gelu => {
            // x · Φ(x); Φ by the symmetry of erf: |x| keeps the polynomial in its range.
            let abs = l.max(x, l.sub(l.splat(0.0), x));
            let erf = erf_positive(l, l.mul(abs, l.splat(std::f32::consts::FRAC_1_SQRT_2)));
            l.mul(l.splat(0.5), l.fma(abs, erf, x))
        }
        Activation::Relu => l.max(x, l.splat(0.0)),
    }
}

// Macros and not functions of closures: a closure that the compiler doesn't inline has none of the features of the function
// around it, and each intrinsic in it becomes a call. With closures, that took 29% of SmolLM2's prefill (2026-11-23).

/// `out = f(x)` for each 16 elements; the tail goes through a zero-padded copy.
macro_rules! map1 {
    ($l:expr, $x:expr, $out:expr, |$v:ident| $f:expr) => {{
        let (xs, x_tail) = $x.as_chunks::<LANES>();
        let (outs, out_tail) = $out.as_chunks_mut::<LANES>();
        for (x, out) in xs.iter().zip(outs) {
            let $v = $l.load(x);
            $l.store($f, out);
        }
        if !x_tail.is_empty() {
            let mut pad = [0.0; LANES];
            pad[..x_tail.len()].copy_from_slice(x_tail);
            let $v = $l.load(&pad);
            $l.store($f, &mut pad);
            out_tail.copy_from_slice(&pad[..out_tail.len()]);
        }
    }};
}

/// `out = f(out, x)` for each 16 elements; the tail goes through zero-padded copies.
macro_rules! zip_in_place {
    ($l:expr, $out:expr, $x:expr, |$a:ident, $b:ident| $f:expr) => {{
        let (xs, x_tail) = $x.as_chunks::<LANES>();
        let (outs, out_tail) = $out.as_chunks_mut::<LANES>();
        for (x, out) in xs.iter().zip(outs) {
            let ($a, $b) = ($l.load(out), $l.load(x));
            $l.store($f, out);
        }
        if !x_tail.is_empty() {
            let (mut a, mut b) = ([0.0; LANES], [0.0; LANES]);
            a[..out_tail.len()].copy_from_slice(out_tail);
            b[..x_tail.len()].copy_from_slice(x_tail);
            let ($a, $b) = ($l.load(&a), $l.load(&b));
            $l.store($f, &mut a);
            out_tail.copy_from_slice(&a[..out_tail.len()]);
        }
    }};
}

/// Sum over a row of `f(x)`, with padding that must contribute 0.
#[inline(always)]
fn reduce<L: Lanes>(l: L, x: &[f32], f: impl Fn(L::V, L::V) -> L::V, pad: f32) -> f32 {
    let (xs, tail) = x.as_chunks::<LANES>();
    let mut acc = l.splat(0.0);
    for x in xs {
        acc = f(acc, l.load(x));
    }
    if !tail.is_empty() {
        let mut padded = [pad; LANES];
        padded[..tail.len()].copy_from_slice(tail);
        acc = f(acc, l.load(&padded));
    }
    l.sum(acc)
}

/// See [`NormRow`].
#[inline(always)]
pub(super) fn norm<L: Lanes>(l: L, row: &NormRow<'_>, x: &[f32], out: &mut [f32]) {
    let n = x.len() as f32;
    let mean = if row.centre { reduce(l, x, |acc, x| l.add(acc, x), 0.0) / n } else { 0.0 };
    let m = l.splat(mean);
    let squares = |acc, x| {
        let d = l.sub(x, m);
        l.fma(d, d, acc)
    };
    let scale = 1.0 / (reduce(l, x, squares, mean) / n + row.eps).sqrt();
    let s = l.splat(scale);
    map1!(l, x, out, |x| l.mul(l.sub(x, m), s));
    if let Some(weight) = row.weight {
        zip_in_place!(l, out, weight, |a, w| l.mul(a, w));
    }
    if let Some(bias) = row.bias {
        zip_in_place!(l, out, bias, |a, b| l.add(a, b));
    }
}

#[inline(always)]
pub(super) fn activation<L: Lanes>(l: L, act: Activation, x: &[f32], out: &mut [f32]) {
    map1!(l, x, out, |x| activate(l, act, x));
}

/// `gate = act(gate) · up`.
#[inline(always)]
pub(super) fn glu<L: Lanes>(l: L, act: Activation, gate: &mut [f32], up: &[f32]) {
    zip_in_place!(l, gate, up, |gate, up| l.mul(activate(l, act, gate), up));
}

/// `a += b`.
#[inline(always)]
pub(super) fn add<L: Lanes>(l: L, a: &mut [f32], b: &[f32]) {
    zip_in_place!(l, a, b, |a, b| l.add(a, b));
}

#[inline(always)]
pub(super) fn scale<L: Lanes>(l: L, factor: f32, x: &[f32], out: &mut [f32]) {
    let f = l.splat(factor);
    map1!(l, x, out, |x| l.mul(x, f));
}

#[inline(always)]
pub(super) fn softcap<L: Lanes>(l: L, cap: f32, x: &[f32], out: &mut [f32]) {
    let (c, inverse) = (l.splat(cap), l.splat(1.0 / cap));
    map1!(l, x, out, |x| l.mul(c, tanh(l, l.mul(x, inverse))));
}

/// See `VectorKernels::quantize_lanes`: the arithmetic of `CpuKernels::quantize_act_row`, operation by operation.
#[inline(always)]
pub(super) fn quantize_lanes<L: Lanes>(l: L, x: &[[f32; PACK_ROWS]; ACT_GROUP], to: QuantizedLanes<'_>) {
    let largest_number = l.splat(f32::MAX);
    let halves = to.d.as_chunks_mut::<LANES>().0.iter_mut().zip(to.sums.as_chunks_mut::<LANES>().0);
    for (half, (d, sums)) in halves.enumerate() {
        let mut largest = l.splat(0.0);
        for column in x {
            largest = l.larger_magnitude(largest, l.load(&column.as_chunks().0[half]));
        }
        // Infinite where the largest is zero or nearly so: codes and scale are 0 then.
        let inverse = l.div(l.splat(127.0), largest);
        let factor = l.keep_if_ge(inverse, largest_number, inverse);
        let scale = l.keep_if_ge(l.clear_low_bits(l.div(largest, l.splat(127.0))), largest_number, inverse);
        // x − x is 0, but NaN for an infinity or a NaN.
        l.store(l.add(scale, l.sub(largest, largest)), d);
        let mut sum = [l.splat(0.0); ACT_GROUP / SUM_GROUP];
        for (quad, (columns, q)) in x.as_chunks::<4>().0.iter().zip(&mut *to.q).enumerate() {
            let mut codes = [l.splat(0.0); 4];
            for i in 0..4 {
                let x = l.load(&columns[i].as_chunks().0[half]);
                // Rounded to nearest even, in the low bits: a unit in the last place of the sum is 1.
                codes[i] = l.add(l.mul(x, factor), l.splat(MAGIC));
                let sum = &mut sum[quad / (SUM_GROUP / 4)];
                *sum = l.add_bits(*sum, codes[i]);
            }
            l.store_low_bytes(codes, &mut q.as_chunks_mut().0[half]);
        }
        l.store_low_halves(sum, sums);
    }
}
