//! Half precision and bfloat16, one value in a word or two side by side.
//!
//! Everything is computed in `f64` and rounded once. Packed instructions are the same functions on both halves.

use super::super::ir::Map::{WW, WWW, WWWW};
use super::super::ir::Word;
use super::rounding::{BF16, F16, Format, Mode, fused, round, two_sum};
use super::{Row, w1, w2, w3};

/// A half as a single; exact.
#[inline(always)]
pub(in super::super) fn from_f16(bits: u32) -> f32 {
    // Moving the exponent by a multiplication makes subnormal numbers come out right.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((254 - 15) << 23);
    let magnitude = if bits & 0x7c00 == 0x7c00 { f32::from_bits(magnitude.to_bits() | 0x7f80_0000) } else { magnitude };
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// A bfloat16 as a single; exact.
#[inline(always)]
pub(in super::super) fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// A single rounded to the nearest half.
#[inline]
pub(in super::super) fn to_f16(value: f32) -> u32 {
    round(value.into(), 0.0, F16, Mode::Nearest)
}

/// A single rounded to the nearest bfloat16.
#[inline]
pub(in super::super) fn to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    if value.is_nan() { 0x7fff } else { (bits + 0x7fff + (bits >> 16 & 1)) >> 16 }
}

/// What tells the two formats apart.
trait Kind {
    const FORMAT: Format;
    /// Pattern of the smallest normal number.
    const NORMAL: u32;
    fn widen(bits: u32) -> f32;
}

struct Half;
struct Brain;

impl Kind for Half {
    const FORMAT: Format = F16;
    const NORMAL: u32 = 0x400;
    fn widen(bits: u32) -> f32 {
        from_f16(bits)
    }
}

impl Kind for Brain {
    const FORMAT: Format = BF16;
    const NORMAL: u32 = 0x80;
    fn widen(bits: u32) -> f32 {
        from_bf16(bits)
    }
}

/// Flushes a subnormal operand or result if `Z`.
#[inline(always)]
fn flush<K: Kind, const Z: bool>(bits: u32) -> u32 {
    if Z && bits & 0x7fff < K::NORMAL { bits & 0x8000 } else { bits }
}

#[inline(always)]
fn one<K: Kind, const Z: bool>(bits: u32) -> f32 {
    K::widen(flush::<K, Z>(bits & 0xffff))
}

#[inline(always)]
fn done<K: Kind, const Z: bool>((value, residual): (f64, f64)) -> u32 {
    flush::<K, Z>(round(value, residual, K::FORMAT, Mode::Nearest))
}

#[inline(always)]
fn h1<K: Kind, const Z: bool, const PACKED: bool>(a: &Word, f: impl Fn(f32) -> (f64, f64)) -> Word {
    let each = |a| done::<K, Z>(f(one::<K, Z>(a)));
    w1(a, |a| if PACKED { each(a) | each(a >> 16) << 16 } else { each(a) })
}

#[inline(always)]
fn h2<K: Kind, const Z: bool, const PACKED: bool>(a: &Word, b: &Word, f: impl Fn(f32, f32) -> (f64, f64)) -> Word {
    let each = |a, b| done::<K, Z>(f(one::<K, Z>(a), one::<K, Z>(b)));
    w2(a, b, |a, b| if PACKED { each(a, b) | each(a >> 16, b >> 16) << 16 } else { each(a, b) })
}

#[inline(always)]
fn h3<K: Kind, const Z: bool, const PACKED: bool>(
    a: &Word,
    b: &Word,
    c: &Word,
    f: impl Fn(f32, f32, f32) -> (f64, f64),
) -> Word {
    let each = |a, b, c| done::<K, Z>(f(one::<K, Z>(a), one::<K, Z>(b), one::<K, Z>(c)));
    w3(a, b, c, |a, b, c| if PACKED { each(a, b, c) | each(a >> 16, b >> 16, c >> 16) << 16 } else { each(a, b, c) })
}

/// Four instructions of one function: both formats, single and packed.
macro_rules! halves {
    ($($name:literal, $map:ident, $apply:ident($($arg:ident),+), $f:expr;)*) => {
        &[$(
            (&[concat!($name, ".f16")], $map(|$($arg),+| $apply::<Half, false, false>($($arg),+, $f)),
                Some($map(|$($arg),+| $apply::<Half, true, false>($($arg),+, $f)))),
            (&[concat!($name, ".f16x2")], $map(|$($arg),+| $apply::<Half, false, true>($($arg),+, $f)),
                Some($map(|$($arg),+| $apply::<Half, true, true>($($arg),+, $f)))),
            (&[concat!($name, ".bf16")], $map(|$($arg),+| $apply::<Brain, false, false>($($arg),+, $f)),
                Some($map(|$($arg),+| $apply::<Brain, true, false>($($arg),+, $f)))),
            (&[concat!($name, ".bf16x2")], $map(|$($arg),+| $apply::<Brain, false, true>($($arg),+, $f)),
                Some($map(|$($arg),+| $apply::<Brain, true, true>($($arg),+, $f)))),
        )*]
    };
}

/// Instructions on halves.
pub(super) const ROWS: &[Row] = halves! {
    "add", WWW, h2(a, b), |a, b| two_sum(a.into(), b.into());
    "sub", WWW, h2(a, b), |a, b| two_sum(a.into(), (-b).into());
    "mul", WWW, h2(a, b), |a, b| (f64::from(a) * f64::from(b), 0.0);
    "add.sat", WWW, h2(a, b), |a, b| saturate(two_sum(a.into(), b.into()));
    "sub.sat", WWW, h2(a, b), |a, b| saturate(two_sum(a.into(), (-b).into()));
    "mul.sat", WWW, h2(a, b), |a, b| saturate((f64::from(a) * f64::from(b), 0.0));
    "fma", WWWW, h3(a, b, c), fused;
    "fma.sat", WWWW, h3(a, b, c), |a, b, c| saturate(fused(a, b, c));
    "fma.relu", WWWW, h3(a, b, c), |a, b, c| relu(fused(a, b, c));
    "neg", WW, h1(a), |a| exact(-a);
    "abs", WW, h1(a), |a| exact(a.abs());
    "min", WWW, h2(a, b), |a, b| exact(smaller(a, b));
    "max", WWW, h2(a, b), |a, b| exact(-smaller(-a, -b));
    "min.NaN", WWW, h2(a, b), |a, b| exact(if a.is_nan() || b.is_nan() { f32::NAN } else { smaller(a, b) });
    "max.NaN", WWW, h2(a, b), |a, b| exact(if a.is_nan() || b.is_nan() { f32::NAN } else { -smaller(-a, -b) });
    "ex2", WW, h1(a), |a| (f64::from(a).exp2(), 0.0);
    "tanh", WW, h1(a), |a| (f64::from(a).tanh(), 0.0);
};

fn exact(value: f32) -> (f64, f64) {
    (value.into(), 0.0)
}

/// The smaller one; a number before NaN, -0 before +0.
fn smaller(a: f32, b: f32) -> f32 {
    if b.is_nan() || a < b || a == b && a.is_sign_negative() { a } else { b }
}

fn saturate((value, residual): (f64, f64)) -> (f64, f64) {
    match value {
        _ if value >= 1.0 => (1.0, 0.0),
        _ if value > 0.0 => (value, residual),
        _ => (0.0, 0.0),
    }
}

fn relu((value, residual): (f64, f64)) -> (f64, f64) {
    if value <= 0.0 { (0.0, 0.0) } else { (value, residual) }
}
