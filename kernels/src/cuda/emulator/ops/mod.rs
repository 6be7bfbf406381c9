//! What each instruction computes, as tables from its name to a function over the lanes of registers.
//!
//! A name is the instruction's word without the qualifiers that change nothing here: `.rn`, `.approx` and `.full` (every
//! result is rounded to nearest from an accurate value) and `.ftz`, which chooses the second function of a row.

#[cfg(test)]
pub(super) use float::fma;
#[cfg(test)]
pub(super) use half::{from_f16, to_bf16, to_f16};

pub(super) mod compare;
pub(super) mod convert;
mod float;
pub(super) mod half;
mod integer;
pub(super) mod rounding;

use std::collections::HashMap;
use std::sync::LazyLock;

use super::ir::{Double, LANES, Map, Word};

/// A row of a table: names and the function; floats have a second one that flushes subnormal numbers.
pub(super) type Row = (&'static [&'static str], Map, Option<Map>);

static TABLE: LazyLock<HashMap<&'static str, (Map, Option<Map>)>> = LazyLock::new(|| {
    let tables = [
        integer::WORDS,
        integer::DOUBLES,
        integer::BYTES,
        float::FUSED,
        float::SINGLES,
        float::DOUBLES,
        half::ROWS,
        convert::ROWS,
    ];
    let rows = tables.into_iter().flatten();
    rows.flat_map(|&(names, map, flushing)| names.iter().map(move |&name| (name, (map, flushing)))).collect()
});

/// The function that `opcode` names, or None if no table has it.
pub(super) fn find(opcode: &str) -> Option<Map> {
    let mut flushes = false;
    let name: Vec<&str> = opcode
        .split('.')
        .filter(|&part| {
            flushes |= part == "ftz";
            !matches!(part, "ftz" | "rn" | "approx" | "full")
        })
        .collect();
    let &(plain, flushing) = TABLE.get(name.join(".").as_str())?;
    Some(if flushes { flushing.unwrap_or(plain) } else { plain })
}

/// A row without a flushing variant.
const fn row(names: &'static [&'static str], map: Map) -> Row {
    (names, map, None)
}

#[inline(always)]
fn w1(a: &Word, f: impl Fn(u32) -> u32) -> Word {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn w2(a: &Word, b: &Word, f: impl Fn(u32, u32) -> u32) -> Word {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn w3(a: &Word, b: &Word, c: &Word, f: impl Fn(u32, u32, u32) -> u32) -> Word {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

#[inline(always)]
fn d1(a: &Double, f: impl Fn(u64) -> u64) -> Double {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn d2(a: &Double, b: &Double, f: impl Fn(u64, u64) -> u64) -> Double {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane]);
    }
    out
}

#[inline(always)]
fn d3(a: &Double, b: &Double, c: &Double, f: impl Fn(u64, u64, u64) -> u64) -> Double {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane], b[lane], c[lane]);
    }
    out
}

#[inline(always)]
fn narrow(a: &Double, f: impl Fn(u64) -> u32) -> Word {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}

#[inline(always)]
fn widen(a: &Word, f: impl Fn(u32) -> u64) -> Double {
    let mut out = [0; LANES];
    for lane in 0..LANES {
        out[lane] = f(a[lane]);
    }
    out
}
