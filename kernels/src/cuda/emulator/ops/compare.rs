//! Comparisons of `setp`, `set` and `testp`.

use std::cmp::Ordering;

use super::super::ir::Compare::{self, D, W};
use super::super::ir::{Double, LANES, Word};
use super::half::{from_bf16, from_f16};

fn words(a: &Word, b: &Word, f: impl Fn(u32, u32) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..LANES {
        out |= u32::from(f(a[lane], b[lane])) << lane;
    }
    out
}

fn doubles(a: &Double, b: &Double, f: impl Fn(u64, u64) -> bool) -> u32 {
    let mut out = 0;
    for lane in 0..LANES {
        out |= u32::from(f(a[lane], b[lane])) << lane;
    }
    out
}

/// Subnormal numbers compare as zero under `.ftz`.
#[inline(always)]
fn flushed(a: u32) -> f32 {
    let value = f32::from_bits(a);
    if value.abs() < f32::MIN_POSITIVE { 0.0 } else { value }
}

macro_rules! integers {
    ($($relation:literal, $class:ident, $apply:ident, $unsigned:literal, $signed:literal, $to:ty, $op:tt;)*) => {
        &[$(
            (concat!($relation, ".", $unsigned), $class(|a, b| $apply(a, b, |a, b| a $op b))),
            (concat!($relation, ".", $signed), $class(|a, b| $apply(a, b, |a, b| (a as $to) $op (b as $to)))),
        )*]
    };
}

/// The same for narrow, whole and long integers. Narrow ones are zero-extended in their words.
const INTEGERS: &[(&str, Compare)] = integers! {
    "eq", W, words, "u32", "s32", i32, ==; "ne", W, words, "u32", "s32", i32, !=;
    "lt", W, words, "u32", "s32", i32, <; "le", W, words, "u32", "s32", i32, <=;
    "gt", W, words, "u32", "s32", i32, >; "ge", W, words, "u32", "s32", i32, >=;
    "eq", W, words, "u16", "s16", i16, ==; "ne", W, words, "u16", "s16", i16, !=;
    "lt", W, words, "u16", "s16", i16, <; "le", W, words, "u16", "s16", i16, <=;
    "gt", W, words, "u16", "s16", i16, >; "ge", W, words, "u16", "s16", i16, >=;
    "eq", D, doubles, "u64", "s64", i64, ==; "ne", D, doubles, "u64", "s64", i64, !=;
    "lt", D, doubles, "u64", "s64", i64, <; "le", D, doubles, "u64", "s64", i64, <=;
    "gt", D, doubles, "u64", "s64", i64, >; "ge", D, doubles, "u64", "s64", i64, >=;
};

macro_rules! floats {
    ($($relation:literal, |$a:ident, $b:ident| $holds:expr;)*) => {
        &[$(
            (concat!($relation, ".f32"), W(|a, b| words(a, b, |a, b| {
                let ($a, $b) = (f32::from_bits(a), f32::from_bits(b)); $holds }))),
            (concat!($relation, ".ftz.f32"), W(|a, b| words(a, b, |a, b| {
                let ($a, $b) = (flushed(a), flushed(b)); $holds }))),
            (concat!($relation, ".f16"), W(|a, b| words(a, b, |a, b| {
                let ($a, $b) = (from_f16(a), from_f16(b)); $holds }))),
            (concat!($relation, ".bf16"), W(|a, b| words(a, b, |a, b| {
                let ($a, $b) = (from_bf16(a), from_bf16(b)); $holds }))),
            (concat!($relation, ".f64"), D(|a, b| doubles(a, b, |a, b| {
                let ($a, $b) = (f64::from_bits(a), f64::from_bits(b)); $holds }))),
        )*]
    };
}

/// The plain relations are false for NaN, those that end in `u` true.
const FLOATS: &[(&str, Compare)] = floats! {
    "eq", |a, b| a == b; "ne", |a, b| a.partial_cmp(&b).is_some_and(Ordering::is_ne); "lt", |a, b| a < b; "le", |a, b| a <= b;
    "gt", |a, b| a > b; "ge", |a, b| a >= b;
    "equ", |a, b| a.partial_cmp(&b).is_none_or(Ordering::is_eq); "neu", |a, b| a != b; "ltu", |a, b| !(a >= b); "leu", |a, b| !(a > b);
    "gtu", |a, b| !(a <= b); "geu", |a, b| !(a < b);
    "num", |a, b| !a.is_nan() && !b.is_nan(); "nan", |a, b| a.is_nan() || b.is_nan();
};

/// `testp`: the second operand is unused.
const TESTS: &[(&str, Compare)] = &[
    ("finite.f32", W(|a, _| words(a, a, |a, _| f32::from_bits(a).is_finite()))),
    ("infinite.f32", W(|a, _| words(a, a, |a, _| f32::from_bits(a).is_infinite()))),
    ("number.f32", W(|a, _| words(a, a, |a, _| !f32::from_bits(a).is_nan()))),
    ("notanumber.f32", W(|a, _| words(a, a, |a, _| f32::from_bits(a).is_nan()))),
    ("normal.f32", W(|a, _| words(a, a, |a, _| f32::from_bits(a).is_normal()))),
    ("subnormal.f32", W(|a, _| words(a, a, |a, _| f32::from_bits(a).is_subnormal()))),
    ("finite.f64", D(|a, _| doubles(a, a, |a, _| f64::from_bits(a).is_finite()))),
    ("infinite.f64", D(|a, _| doubles(a, a, |a, _| f64::from_bits(a).is_infinite()))),
    ("number.f64", D(|a, _| doubles(a, a, |a, _| !f64::from_bits(a).is_nan()))),
    ("notanumber.f64", D(|a, _| doubles(a, a, |a, _| f64::from_bits(a).is_nan()))),
    ("normal.f64", D(|a, _| doubles(a, a, |a, _| f64::from_bits(a).is_normal()))),
    ("subnormal.f64", D(|a, _| doubles(a, a, |a, _| f64::from_bits(a).is_subnormal()))),
];

/// Names of unsigned relations, and of types without a sign, as the tables have them.
const ALIASES: &[(&str, &str)] =
    &[("lo", "lt"), ("ls", "le"), ("hi", "gt"), ("hs", "ge"), ("b16", "u16"), ("b32", "u32"), ("b64", "u64")];

/// The comparison `relation`, possibly with `.ftz`, of values of type `ty`.
pub(in super::super) fn find(relation: &str, ty: &str) -> Option<Compare> {
    let plain =
        |word: &str| ALIASES.iter().find(|(from, _)| *from == word).map_or(word.to_owned(), |(_, to)| (*to).to_owned());
    let relation: Vec<String> = relation.split('.').map(plain).collect();
    let name = format!("{}.{}", relation.join("."), plain(ty));
    let tables = [INTEGERS, FLOATS, TESTS].into_iter().flatten();
    tables.into_iter().find(|(row, _)| *row == name).map(|(_, compare)| *compare)
}
