//! Rounding from an exact value, given as a double and what it lacks, to any smaller float.
//!
//! A sum or product of small floats that is computed in `f64` and then narrowed may be rounded twice. The residual says
//! on which side of the double the exact value lies, which is all that a correct second rounding needs.

/// Rounding modes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) enum Mode {
    Nearest,
    Zero,
    Down,
    Up,
}

/// A binary float format below `f64`.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Format {
    /// Explicit bits of the significand.
    mantissa: u32,
    /// Exponent of the smallest normal number.
    min_exponent: i32,
    /// The pattern after the largest finite number.
    limit: u32,
    /// What a value too large becomes when rounded to nearest.
    overflow: u32,
    nan: u32,
    sign: u32,
}

pub(in super::super) const F32: Format = Format {
    mantissa: 23,
    min_exponent: -126,
    limit: 0x7f80_0000,
    overflow: 0x7f80_0000,
    nan: 0x7fff_ffff,
    sign: 1 << 31,
};
pub(in super::super) const F16: Format =
    Format { mantissa: 10, min_exponent: -14, limit: 0x7c00, overflow: 0x7c00, nan: 0x7fff, sign: 1 << 15 };
pub(in super::super) const BF16: Format =
    Format { mantissa: 7, min_exponent: -126, limit: 0x7f80, overflow: 0x7f80, nan: 0x7fff, sign: 1 << 15 };
/// The eight-bit formats are written with `.satfinite` only: what is too large becomes the largest number.
pub(in super::super) const E4M3: Format =
    Format { mantissa: 3, min_exponent: -6, limit: 0x7f, overflow: 0x7e, nan: 0x7f, sign: 1 << 7 };
pub(in super::super) const E5M2: Format =
    Format { mantissa: 2, min_exponent: -14, limit: 0x7c, overflow: 0x7b, nan: 0x7f, sign: 1 << 7 };

/// The bits of `value + residual`, correctly rounded. The residual is smaller than half a unit in the last place of
/// `value`; only its sign counts.
#[inline]
pub(in super::super) fn round(value: f64, residual: f64, format: Format, mode: Mode) -> u32 {
    // Nearly all values are normal numbers that don't lie in the middle between two of the format, where the residual
    // would decide.
    let bits = value.to_bits() & !(1 << 63);
    let exponent = (bits >> 52) as i32 - 1023;
    let dropped = 52 - format.mantissa;
    let half = 1 << (dropped - 1);
    if mode == Mode::Nearest && exponent >= format.min_exponent && bits & (2 * half - 1) != half {
        let bias = ((1023 + format.min_exponent - 1) as u64) << format.mantissa;
        let magnitude = ((bits + half) >> dropped) - bias;
        if magnitude < u64::from(format.limit) {
            return if value.is_sign_negative() { format.sign } else { 0 } | magnitude as u32;
        }
    }
    round_carefully(value, residual, format, mode)
}

#[cold]
fn round_carefully(value: f64, residual: f64, format: Format, mode: Mode) -> u32 {
    if value.is_nan() {
        return format.nan;
    }
    let negative = value.is_sign_negative();
    let sign = if negative { format.sign } else { 0 };
    if value.is_infinite() {
        return sign | format.overflow;
    }
    if value == 0.0 {
        return sign;
    }
    let bits = value.abs().to_bits();
    // No format's smallest number is anywhere near the subnormal doubles, so their exponent needs no care.
    let mut exponent = (bits >> 52) as i32 - 1023;
    let mut significand = (bits & ((1 << 52) - 1) | 1 << 52) << 10;
    if residual != 0.0 && !residual.is_nan() {
        match residual.is_sign_negative() == negative {
            true => significand |= 1,
            false => significand -= 1,
        }
    }
    if significand < 1 << 62 {
        significand <<= 1;
        exponent -= 1;
    }
    let below = (format.min_exponent - exponent).max(0) as u32;
    let mut dropped = 62 - format.mantissa + below;
    if dropped > 63 {
        // Less than half of the smallest number: nothing remains but that it isn't zero.
        (significand, dropped) = (1, 63);
    }
    let mut kept = significand >> dropped;
    let rest = significand & ((1 << dropped) - 1);
    let half = 1 << (dropped - 1);
    let up = match mode {
        Mode::Nearest => rest > half || rest == half && kept & 1 == 1,
        Mode::Zero => false,
        Mode::Down => negative && rest > 0,
        Mode::Up => !negative && rest > 0,
    };
    kept += u64::from(up);
    let scale = (exponent.max(format.min_exponent) - format.min_exponent) as u64;
    // The implicit bit of a normal number adds one to the exponent field, a carry out of the significand another.
    let magnitude = (scale << format.mantissa) + kept;
    if magnitude < u64::from(format.limit) {
        return sign | magnitude as u32;
    }
    let away = matches!((mode, negative), (Mode::Nearest, _) | (Mode::Down, true) | (Mode::Up, false));
    sign | if away { format.overflow } else { format.limit - 1 }
}

/// `a + b` and what the sum lacks to be exact.
#[inline(always)]
pub(in super::super) fn two_sum(a: f64, b: f64) -> (f64, f64) {
    let sum = a + b;
    let b_part = sum - a;
    (sum, (a - (sum - b_part)) + (b - b_part))
}

/// `a * b + c` of singles or smaller: the product is exact in `f64`.
#[inline(always)]
pub(in super::super) fn fused(a: f32, b: f32, c: f32) -> (f64, f64) {
    two_sum(f64::from(a) * f64::from(b), f64::from(c))
}
