//! Single and double precision.
//!
//! The `.approx` instructions yield the nearest single (to within the last place where the host's function is what it
//! is): devices differ among each other in their last bits, so a kernel can't depend on them. NaN results are the
//! canonical NaN, as on a device.

use super::super::ir::Map::{DD, DDD, DDDD, WW, WWW, WWWW};
use super::super::ir::{Double, LANES, Word};
use super::rounding::{F32, Mode, fused, round, two_sum};
use super::{Row, d1, d2, d3, row, w1, w2, w3};

/// What a device makes of any NaN.
const NAN: u32 = 0x7fff_ffff;

/// An operand, subnormal numbers flushed if `Z`.
#[inline(always)]
fn input<const Z: bool>(a: u32) -> f32 {
    let value = f32::from_bits(a);
    if Z && value.abs() < f32::MIN_POSITIVE { f32::from_bits(a & 1 << 31) } else { value }
}

#[inline(always)]
fn output<const Z: bool>(value: f32) -> u32 {
    if value.is_nan() {
        return NAN;
    }
    let bits = value.to_bits();
    if Z && value.abs() < f32::MIN_POSITIVE { bits & 1 << 31 } else { bits }
}

#[inline(always)]
fn f1<const Z: bool>(a: &Word, f: impl Fn(f32) -> f32) -> Word {
    w1(a, |a| output::<Z>(f(input::<Z>(a))))
}

#[inline(always)]
fn f2<const Z: bool>(a: &Word, b: &Word, f: impl Fn(f32, f32) -> f32) -> Word {
    w2(a, b, |a, b| output::<Z>(f(input::<Z>(a), input::<Z>(b))))
}

#[inline(always)]
fn f3<const Z: bool>(a: &Word, b: &Word, c: &Word, f: impl Fn(f32, f32, f32) -> f32) -> Word {
    w3(a, b, c, |a, b, c| output::<Z>(f(input::<Z>(a), input::<Z>(b), input::<Z>(c))))
}

/// Rows of single precision: each function once as it is and once flushing.
macro_rules! singles {
    ($($names:expr, $map:ident, $apply:ident($($arg:ident),+), $f:expr;)*) => {
        &[$(($names, $map(|$($arg),+| $apply::<false>($($arg),+, $f)), Some($map(|$($arg),+| $apply::<true>($($arg),+, $f))))),*]
    };
}

/// The fused multiply-add, by far the commonest instruction.
pub(super) const FUSED: &[Row] = &[(&["fma.f32", "mad.f32"], WWWW(fma_lanes::<false>), Some(WWWW(fma_lanes::<true>)))];

/// Instructions on singles.
pub(super) const SINGLES: &[Row] = singles! {
    &["add.f32"], WWW, f2(a, b), |a, b| a + b;
    &["sub.f32"], WWW, f2(a, b), |a, b| a - b;
    &["mul.f32"], WWW, f2(a, b), |a, b| a * b;
    &["add.sat.f32"], WWW, f2(a, b), |a, b| saturate(a + b);
    &["sub.sat.f32"], WWW, f2(a, b), |a, b| saturate(a - b);
    &["mul.sat.f32"], WWW, f2(a, b), |a, b| saturate(a * b);
    &["fma.sat.f32", "mad.sat.f32"], WWWW, f3(a, b, c), |a, b, c| saturate(fma(a, b, c));
    &["add.rz.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), b.into()), Mode::Zero);
    &["add.rm.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), b.into()), Mode::Down);
    &["add.rp.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), b.into()), Mode::Up);
    &["sub.rz.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), (-b).into()), Mode::Zero);
    &["sub.rm.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), (-b).into()), Mode::Down);
    &["sub.rp.f32"], WWW, f2(a, b), |a, b| directed(two_sum(a.into(), (-b).into()), Mode::Up);
    &["mul.rz.f32"], WWW, f2(a, b), |a, b| directed((f64::from(a) * f64::from(b), 0.0), Mode::Zero);
    &["mul.rm.f32"], WWW, f2(a, b), |a, b| directed((f64::from(a) * f64::from(b), 0.0), Mode::Down);
    &["mul.rp.f32"], WWW, f2(a, b), |a, b| directed((f64::from(a) * f64::from(b), 0.0), Mode::Up);
    &["fma.rz.f32"], WWWW, f3(a, b, c), |a, b, c| directed(fused(a, b, c), Mode::Zero);
    &["fma.rm.f32"], WWWW, f3(a, b, c), |a, b, c| directed(fused(a, b, c), Mode::Down);
    &["fma.rp.f32"], WWWW, f3(a, b, c), |a, b, c| directed(fused(a, b, c), Mode::Up);
    &["div.f32"], WWW, f2(a, b), |a, b| a / b;
    &["div.rz.f32"], WWW, f2(a, b), |a, b| directed(quotient(a, b), Mode::Zero);
    &["div.rm.f32"], WWW, f2(a, b), |a, b| directed(quotient(a, b), Mode::Down);
    &["div.rp.f32"], WWW, f2(a, b), |a, b| directed(quotient(a, b), Mode::Up);
    &["rcp.f32"], WW, f1(a), |a| 1.0 / a;
    &["rcp.rz.f32"], WW, f1(a), |a| directed(quotient(1.0, a), Mode::Zero);
    &["sqrt.f32"], WW, f1(a), f32::sqrt;
    &["rsqrt.f32"], WW, f1(a), |a| (1.0 / f64::from(a).sqrt()) as f32;
    &["ex2.f32"], WW, f1(a), f32::exp2;
    &["lg2.f32"], WW, f1(a), |a| f64::from(a).log2() as f32;
    &["sin.f32"], WW, f1(a), |a| f64::from(a).sin() as f32;
    &["cos.f32"], WW, f1(a), |a| f64::from(a).cos() as f32;
    &["tanh.f32"], WW, f1(a), |a| f64::from(a).tanh() as f32;
    &["abs.f32"], WW, f1(a), f32::abs;
    &["neg.f32"], WW, f1(a), |a| -a;
    &["min.f32"], WWW, f2(a, b), |a, b| if minimum(a, b) { a } else { b };
    &["max.f32"], WWW, f2(a, b), |a, b| if maximum(a, b) { a } else { b };
    &["min.NaN.f32"], WWW, f2(a, b), |a, b| if a.is_nan() || minimum(a, b) && !b.is_nan() { a } else { b };
    &["max.NaN.f32"], WWW, f2(a, b), |a, b| if a.is_nan() || maximum(a, b) && !b.is_nan() { a } else { b };
    &["copysign.f32"], WWW, f2(a, b), |a, b| b.copysign(a);
};

/// Instructions on doubles; `.rn` only.
pub(super) const DOUBLES: &[Row] = &[
    row(&["add.f64"], DDD(|a, b| g2(a, b, |a, b| a + b))),
    row(&["sub.f64"], DDD(|a, b| g2(a, b, |a, b| a - b))),
    row(&["mul.f64"], DDD(|a, b| g2(a, b, |a, b| a * b))),
    row(&["div.f64"], DDD(|a, b| g2(a, b, |a, b| a / b))),
    row(&["fma.f64", "mad.f64"], DDDD(|a, b, c| d3(a, b, c, |a, b, c| g(a).mul_add(g(b), g(c)).to_bits()))),
    row(&["rcp.f64"], DD(|a| d1(a, |a| (1.0 / g(a)).to_bits()))),
    row(&["sqrt.f64"], DD(|a| d1(a, |a| g(a).sqrt().to_bits()))),
    row(&["rsqrt.f64"], DD(|a| d1(a, |a| (1.0 / g(a).sqrt()).to_bits()))),
    row(&["abs.f64"], DD(|a| d1(a, |a| a & !(1 << 63)))),
    row(&["neg.f64"], DD(|a| d1(a, |a| a ^ 1 << 63))),
    row(&["min.f64"], DDD(|a, b| g2(a, b, |a, b| if minimum(a, b) { a } else { b }))),
    row(&["max.f64"], DDD(|a, b| g2(a, b, |a, b| if maximum(a, b) { a } else { b }))),
    row(&["copysign.f64"], DDD(|a, b| d2(a, b, |a, b| b & !(1 << 63) | a & 1 << 63))),
];

fn g(a: u64) -> f64 {
    f64::from_bits(a)
}

fn g2(a: &Double, b: &Double, f: impl Fn(f64, f64) -> f64) -> Double {
    d2(a, b, |a, b| f(g(a), g(b)).to_bits())
}

/// Whether `min` picks the first: a number before NaN, and -0 before +0.
#[inline(always)]
fn minimum<T: PartialOrd + Into<f64> + Copy>(a: T, b: T) -> bool {
    let (x, y): (f64, f64) = (a.into(), b.into());
    y.is_nan() || x < y || x == y && x.is_sign_negative()
}

#[inline(always)]
fn maximum<T: PartialOrd + Into<f64> + Copy>(a: T, b: T) -> bool {
    let (x, y): (f64, f64) = (a.into(), b.into());
    y.is_nan() || x > y || x == y && x.is_sign_positive()
}

/// `.sat`: into 0..=1, NaN to 0.
#[inline(always)]
pub(super) fn saturate(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// All lanes at once, so that the host computes several in one instruction; the rare careful ones afterwards.
fn fma_lanes<const Z: bool>(a: &Word, b: &Word, c: &Word) -> Word {
    let mut out = [0; LANES];
    let mut careful = [0u32; LANES];
    for lane in 0..LANES {
        let sum = f64::from(input::<Z>(a[lane])) * f64::from(input::<Z>(b[lane])) + f64::from(input::<Z>(c[lane]));
        out[lane] = output::<Z>(sum as f32);
        careful[lane] = u32::from(needs_care(sum));
    }
    if careful.iter().fold(0, |any, one| any | one) != 0 {
        for lane in 0..LANES {
            if careful[lane] != 0 {
                let value = round_fused(input::<Z>(a[lane]), input::<Z>(b[lane]), input::<Z>(c[lane]));
                out[lane] = output::<Z>(f32::from_bits(value));
            }
        }
    }
    out
}

/// A correctly rounded `a * b + c` without a fused instruction on the host.
///
/// The product is exact in `f64`. Rounding the sum to `f64` first and to `f32` then is wrong only where the first
/// rounding lands on the middle between two singles, or where the result is so small that singles are coarser than
/// usual: those go the careful way.
#[inline(always)]
pub(in super::super) fn fma(a: f32, b: f32, c: f32) -> f32 {
    let sum = f64::from(a) * f64::from(b) + f64::from(c);
    if needs_care(sum) { f32::from_bits(round_fused(a, b, c)) } else { sum as f32 }
}

#[inline(always)]
fn needs_care(sum: f64) -> bool {
    let middle = sum.to_bits() & 0x1fff_ffff == 0x1000_0000;
    let small = sum.abs() < 2.0 * f64::from(f32::MIN_POSITIVE) && sum != 0.0;
    middle | small
}

#[cold]
fn round_fused(a: f32, b: f32, c: f32) -> u32 {
    let (value, residual) = fused(a, b, c);
    round(value, residual, F32, Mode::Nearest)
}

#[inline(never)]
fn directed((value, residual): (f64, f64), mode: Mode) -> f32 {
    f32::from_bits(round(value, residual, F32, mode))
}

/// A quotient and the sign of what it lacks.
fn quotient(a: f32, b: f32) -> (f64, f64) {
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    let rest = (-quotient).mul_add(b, a);
    (quotient, rest * b.signum())
}
