//! `cvt`: hot and packed conversions as rows of the table, all others through an exact value in between.

use std::array::from_fn;

use super::super::ir::Map::{DW, WD, WW, WWW};
use super::super::ir::{Type, Word};
use super::float::saturate;
use super::half::{from_bf16, from_f16, to_bf16, to_f16};
use super::rounding::{BF16, E4M3, E5M2, F16, F32, Format, Mode, round};
use super::{Row, narrow, row, w1, w2, widen};

/// What a general conversion does.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct Conversion {
    pub(in super::super) to: Type,
    pub(in super::super) from: Type,
    /// `.rni` and its like: the result is a whole number.
    pub(in super::super) whole: bool,
    pub(in super::super) mode: Mode,
    pub(in super::super) flush: bool,
    pub(in super::super) saturate: bool,
    pub(in super::super) relu: bool,
}

/// A value between two types: exact either way.
enum Value {
    Integer(i128),
    Float(f64),
}

impl Conversion {
    /// Converts one value; what is above the types' width is ignored and comes out zero, or as the sign where the
    /// caller keeps it.
    pub(in super::super) fn apply(&self, bits: u64) -> u64 {
        match (self.read(bits), self.to) {
            (Value::Integer(value), Type::Bits(width) | Type::Unsigned(width) | Type::Signed(width)) => {
                let signed = matches!(self.to, Type::Signed(_));
                let value = if self.saturate { clamp(value, width, signed) } else { value };
                // A register wider than the type gets zeros above, or the sign.
                let unused = 64 - width;
                if signed { ((value as i64) << unused >> unused) as u64 } else { (value as u64) << unused >> unused }
            }
            (Value::Float(value), Type::Bits(width) | Type::Unsigned(width) | Type::Signed(width)) => {
                // Without a source or a destination of 64 bits NaN becomes zero, otherwise the top bit alone.
                if value.is_nan() {
                    let wide = self.from == Type::F64 || width == 64;
                    return if wide { 1 << (width - 1) } else { 0 };
                }
                // The cast saturates far beyond any of the types.
                clamp(self.rounded_whole(value) as i128, width, matches!(self.to, Type::Signed(_))) as u64
            }
            (Value::Integer(value), _) => {
                let nearest = value as f64;
                self.write(nearest, (value - nearest as i128) as f64)
            }
            (Value::Float(value), _) => self.write(if self.whole { self.rounded_whole(value) } else { value }, 0.0),
        }
    }

    fn read(&self, bits: u64) -> Value {
        let single = bits as u32;
        match self.from {
            Type::Bits(width) | Type::Unsigned(width) => {
                Value::Integer(i128::from(if width == 64 { bits } else { bits & ((1 << width) - 1) }))
            }
            Type::Signed(width) => Value::Integer(i128::from((bits << (64 - width)) as i64 >> (64 - width))),
            Type::F16 | Type::F16x2 => Value::Float(from_f16(single & 0xffff).into()),
            Type::Bf16 | Type::Bf16x2 => Value::Float(from_bf16(single & 0xffff).into()),
            Type::F32 | Type::Tf32 => {
                let value = f32::from_bits(single);
                let zero = self.flush && value.is_subnormal();
                Value::Float(if zero { 0f64.copysign(value.into()) } else { value.into() })
            }
            Type::F64 => Value::Float(f64::from_bits(bits)),
            Type::E4m3 => Value::Float(from_e4m3(single & 0xff).into()),
            Type::E5m2 => Value::Float(from_e5m2(single & 0xff).into()),
        }
    }

    fn write(&self, value: f64, residual: f64) -> u64 {
        let value = match value {
            _ if self.saturate && !matches!(self.to, Type::E4m3 | Type::E5m2) => {
                if value > 0.0 {
                    value.min(1.0)
                } else {
                    0.0
                }
            }
            _ if self.relu && value <= 0.0 => 0.0,
            _ => value,
        };
        let format = match self.to {
            Type::F16 | Type::F16x2 => F16,
            Type::Bf16 | Type::Bf16x2 => BF16,
            Type::E4m3 => E4M3,
            Type::E5m2 => E5M2,
            Type::F64 => return value.to_bits(),
            _ => F32,
        };
        let bits = round(value, residual, format, self.mode);
        match self.to {
            // Ten bits of significand in a single; the rest is cut off after a rounding half away from zero.
            Type::Tf32 => u64::from(bits.wrapping_add(0x1000) & !0x1fff),
            Type::F32 if self.flush && f32::from_bits(bits).is_subnormal() => u64::from(bits & 1 << 31),
            _ => u64::from(bits),
        }
    }

    fn rounded_whole(self, value: f64) -> f64 {
        match self.mode {
            Mode::Nearest => value.round_ties_even(),
            Mode::Zero => value.trunc(),
            Mode::Down => value.floor(),
            Mode::Up => value.ceil(),
        }
    }
}

fn clamp(value: i128, width: u8, signed: bool) -> i128 {
    let (low, high) = match signed {
        true => (-(1 << (width - 1)), (1 << (width - 1)) - 1),
        false => (0, (1 << width) - 1),
    };
    value.clamp(low, high)
}

/// Four bits of exponent, three of significand, no infinities.
pub(in super::super) fn from_e4m3(bits: u32) -> f32 {
    let magnitude = match bits & 0x7f {
        0x7f => f32::NAN,
        value => f32::from_bits(value << 20) * f32::from_bits((254 - 7) << 23),
    };
    f32::from_bits(magnitude.to_bits() | (bits & 0x80) << 24)
}

/// The upper byte of a half.
pub(in super::super) fn from_e5m2(bits: u32) -> f32 {
    from_f16(bits << 8)
}

fn to_bytes(format: Format, upper: f32, lower: f32) -> u32 {
    let one = |value: f32| round(value.into(), 0.0, format, Mode::Nearest);
    one(upper) << 8 | one(lower)
}

fn pair(a: &Word, b: &Word, f: impl Fn(f32) -> u32) -> Word {
    w2(a, b, |a, b| f(f32::from_bits(a)) << 16 | f(f32::from_bits(b)))
}

fn relu(value: f32) -> f32 {
    if value <= 0.0 { 0.0 } else { value }
}

/// Both halves of a word as singles, upper first.
fn halves(a: u32) -> (f32, f32) {
    (from_f16(a >> 16), from_f16(a & 0xffff))
}

/// Conversions with a row of their own. A destination wider than its type gets zeros above, or the sign: the types here
/// fill their registers, except the narrow sources, which sit zero-extended.
pub(super) const ROWS: &[Row] = &[
    row(&["cvt.u64.u32"], DW(|a| widen(a, u64::from))),
    row(&["cvt.s64.s32"], DW(|a| widen(a, |a| i64::from(a as i32) as u64))),
    row(&["cvt.u16.u32", "cvt.u32.u16"], WW(|a| w1(a, |a| a & 0xffff))),
    row(&["cvt.u32.u8", "cvt.u16.u8"], WW(|a| w1(a, |a| a & 0xff))),
    row(&["cvt.s32.s16"], WW(|a| w1(a, |a| a as u16 as i16 as i32 as u32))),
    row(&["cvt.s32.s8"], WW(|a| w1(a, |a| a as u8 as i8 as i32 as u32))),
    row(&["cvt.s16.s8"], WW(|a| w1(a, |a| a as u8 as i8 as u16 as u32))),
    row(&["cvt.u32.u64", "cvt.s32.s64", "cvt.u32.s64", "cvt.s32.u64"], WD(|a| narrow(a, |a| a as u32))),
    row(&["cvt.f32.s32"], WW(|a| w1(a, |a| (a as i32 as f32).to_bits()))),
    row(&["cvt.f32.u32"], WW(|a| w1(a, |a| (a as f32).to_bits()))),
    row(&["cvt.f32.f16"], WW(|a| w1(a, |a| from_f16(a & 0xffff).to_bits()))),
    row(&["cvt.f32.bf16"], WW(|a| w1(a, |a| a << 16))),
    row(&["cvt.f16.f32"], WW(|a| w1(a, |a| to_f16(f32::from_bits(a))))),
    row(&["cvt.bf16.f32"], WW(|a| w1(a, |a| to_bf16(f32::from_bits(a))))),
    row(&["cvt.f64.f32"], DW(|a| widen(a, |a| f64::from(f32::from_bits(a)).to_bits()))),
    row(&["cvt.f32.f64"], WD(|a| narrow(a, |a| (f64::from_bits(a) as f32).to_bits()))),
    row(&["cvt.sat.f32.f32"], WW(|a| w1(a, |a| saturate(f32::from_bits(a)).to_bits()))),
    row(&["cvt.f16x2.f32"], WWW(|a, b| pair(a, b, to_f16))),
    row(&["cvt.bf16x2.f32"], WWW(|a, b| pair(a, b, to_bf16))),
    row(&["cvt.relu.f16x2.f32"], WWW(|a, b| pair(a, b, |value| to_f16(relu(value))))),
    row(&["cvt.relu.bf16x2.f32"], WWW(|a, b| pair(a, b, |value| to_bf16(relu(value))))),
    row(
        &["cvt.satfinite.e4m3x2.f32"],
        WWW(|a, b| w2(a, b, |a, b| to_bytes(E4M3, f32::from_bits(a), f32::from_bits(b)))),
    ),
    row(
        &["cvt.satfinite.e5m2x2.f32"],
        WWW(|a, b| w2(a, b, |a, b| to_bytes(E5M2, f32::from_bits(a), f32::from_bits(b)))),
    ),
    row(&["cvt.satfinite.e4m3x2.f16x2"], WW(|a| w1(a, |a| to_bytes(E4M3, halves(a).0, halves(a).1)))),
    row(&["cvt.satfinite.e5m2x2.f16x2"], WW(|a| w1(a, |a| to_bytes(E5M2, halves(a).0, halves(a).1)))),
    row(
        &["cvt.f16x2.e4m3x2"],
        WW(|a| from_fn(|i| to_f16(from_e4m3(a[i] >> 8 & 0xff)) << 16 | to_f16(from_e4m3(a[i] & 0xff)))),
    ),
    row(&["cvt.f16x2.e5m2x2"], WW(|a| w1(a, |a| (a & 0xff00) << 16 | (a & 0xff) << 8))),
];
