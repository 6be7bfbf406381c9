//! Integer and bit instructions. Sixteen-bit values are kept zero-extended in words.

use std::array::from_fn;

use super::super::ir::Map::{DD, DDD, DDDD, DDDWW, DDW, DDWW, DWW, DWWD, WD, WW, WWW, WWWW, WWWWW};
use super::{Row, d1, d2, d3, narrow, row, w1, w2, w3};

const fn s(a: u32) -> i32 {
    a as i32
}

/// The signed value of the low 16 bits.
const fn s16(a: u32) -> i32 {
    a as u16 as i16 as i32
}

const fn sd(a: u64) -> i64 {
    a as i64
}

/// Two 16-bit operations side by side.
fn x2(a: u32, b: u32, f: impl Fn(u32, u32) -> u32) -> u32 {
    f(a & 0xffff, b & 0xffff) & 0xffff | f(a >> 16, b >> 16) << 16
}

/// Instructions on words.
pub(super) const WORDS: &[Row] = &[
    row(&["add.s32", "add.u32"], WWW(|a, b| w2(a, b, u32::wrapping_add))),
    row(&["sub.s32", "sub.u32"], WWW(|a, b| w2(a, b, u32::wrapping_sub))),
    row(&["add.sat.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).saturating_add(s(b)) as u32))),
    row(&["sub.sat.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).saturating_sub(s(b)) as u32))),
    row(&["add.s16", "add.u16"], WWW(|a, b| w2(a, b, |a, b| a.wrapping_add(b) & 0xffff))),
    row(&["sub.s16", "sub.u16"], WWW(|a, b| w2(a, b, |a, b| a.wrapping_sub(b) & 0xffff))),
    row(&["add.s16x2", "add.u16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, u32::wrapping_add)))),
    row(&["sub.s16x2", "sub.u16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, u32::wrapping_sub)))),
    row(&["mul.lo.s32", "mul.lo.u32"], WWW(|a, b| w2(a, b, u32::wrapping_mul))),
    row(&["mul.lo.s16", "mul.lo.u16"], WWW(|a, b| w2(a, b, |a, b| a.wrapping_mul(b) & 0xffff))),
    row(&["mul24.lo.s32", "mul24.lo.u32"], WWW(|a, b| w2(a, b, |a, b| (a << 8 >> 8).wrapping_mul(b << 8 >> 8)))),
    row(&["mul.hi.u32"], WWW(|a, b| w2(a, b, high_unsigned))),
    row(&["mul.hi.s32"], WWW(|a, b| w2(a, b, high_signed))),
    row(&["mul.hi.u16"], WWW(|a, b| w2(a, b, |a, b| (a * b) >> 16))),
    row(&["mul.hi.s16"], WWW(|a, b| w2(a, b, |a, b| (s16(a) * s16(b)) as u32 >> 16))),
    row(&["mul.wide.u16"], WWW(|a, b| w2(a, b, |a, b| (a & 0xffff) * (b & 0xffff)))),
    row(&["mul.wide.s16"], WWW(|a, b| w2(a, b, |a, b| (s16(a) * s16(b)) as u32))),
    row(&["mad.lo.s32", "mad.lo.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)))),
    row(
        &["mad.lo.s16", "mad.lo.u16"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c) & 0xffff)),
    ),
    row(&["mad.hi.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| high_unsigned(a, b).wrapping_add(c)))),
    row(&["mad.hi.s32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| high_signed(a, b).wrapping_add(c)))),
    row(&["mad.wide.u16"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| ((a & 0xffff) * (b & 0xffff)).wrapping_add(c)))),
    row(&["mad.wide.s16"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| ((s16(a) * s16(b)) as u32).wrapping_add(c)))),
    row(&["sad.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| a.abs_diff(b).wrapping_add(c)))),
    row(&["sad.s32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| s(a).abs_diff(s(b)).wrapping_add(c)))),
    // A division by zero yields all ones, and the remainder the dividend, as devices do.
    row(&["div.u32"], WWW(|a, b| w2(a, b, |a, b| a.checked_div(b).unwrap_or(u32::MAX)))),
    row(&["rem.u32"], WWW(|a, b| w2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)))),
    row(&["div.s32"], WWW(|a, b| w2(a, b, |a, b| if b == 0 { u32::MAX } else { s(a).wrapping_div(s(b)) as u32 }))),
    row(&["rem.s32"], WWW(|a, b| w2(a, b, |a, b| if b == 0 { a } else { s(a).wrapping_rem(s(b)) as u32 }))),
    row(&["div.u16"], WWW(|a, b| w2(a, b, |a, b| a.checked_div(b).unwrap_or(0xffff)))),
    row(&["rem.u16"], WWW(|a, b| w2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)))),
    row(
        &["div.s16"],
        WWW(|a, b| w2(a, b, |a, b| s16(a).checked_div(s16(b)).map_or(0xffff, |value| value as u32 & 0xffff))),
    ),
    row(&["rem.s16"], WWW(|a, b| w2(a, b, |a, b| s16(a).checked_rem(s16(b)).map_or(a, |value| value as u32 & 0xffff)))),
    row(&["abs.s32"], WW(|a| w1(a, |a| s(a).unsigned_abs()))),
    row(&["abs.s16"], WW(|a| w1(a, |a| s16(a).unsigned_abs()))),
    row(&["neg.s32"], WW(|a| w1(a, u32::wrapping_neg))),
    row(&["neg.s16"], WW(|a| w1(a, |a| a.wrapping_neg() & 0xffff))),
    row(&["min.u32"], WWW(|a, b| w2(a, b, u32::min))),
    row(&["max.u32"], WWW(|a, b| w2(a, b, u32::max))),
    row(&["min.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).min(s(b)) as u32))),
    row(&["max.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).max(s(b)) as u32))),
    row(&["min.relu.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).min(s(b)).max(0) as u32))),
    row(&["max.relu.s32"], WWW(|a, b| w2(a, b, |a, b| s(a).max(s(b)).max(0) as u32))),
    row(&["min.u16"], WWW(|a, b| w2(a, b, u32::min))),
    row(&["max.u16"], WWW(|a, b| w2(a, b, u32::max))),
    row(&["min.s16"], WWW(|a, b| w2(a, b, |a, b| s16(a).min(s16(b)) as u32 & 0xffff))),
    row(&["max.s16"], WWW(|a, b| w2(a, b, |a, b| s16(a).max(s16(b)) as u32 & 0xffff))),
    row(&["min.u16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, u32::min)))),
    row(&["max.u16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, u32::max)))),
    row(&["min.s16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, |a, b| s16(a).min(s16(b)) as u32)))),
    row(&["max.s16x2"], WWW(|a, b| w2(a, b, |a, b| x2(a, b, |a, b| s16(a).max(s16(b)) as u32)))),
    row(&["and.b32", "and.b16"], WWW(|a, b| w2(a, b, |a, b| a & b))),
    row(&["or.b32", "or.b16"], WWW(|a, b| w2(a, b, |a, b| a | b))),
    row(&["xor.b32", "xor.b16"], WWW(|a, b| w2(a, b, |a, b| a ^ b))),
    row(&["not.b32"], WW(|a| w1(a, |a| !a))),
    row(&["not.b16"], WW(|a| w1(a, |a| !a & 0xffff))),
    row(&["cnot.b32", "cnot.b16"], WW(|a| w1(a, |a| u32::from(a == 0)))),
    // Shift counts beyond the width shift everything out.
    row(&["shl.b32"], WWW(|a, b| w2(a, b, |a, b| if b < 32 { a << b } else { 0 }))),
    row(&["shr.u32", "shr.b32"], WWW(|a, b| w2(a, b, |a, b| if b < 32 { a >> b } else { 0 }))),
    row(&["shr.s32"], WWW(|a, b| w2(a, b, |a, b| (s(a) >> b.min(31)) as u32))),
    row(&["shl.b16"], WWW(|a, b| w2(a, b, |a, b| if b < 16 { a << b & 0xffff } else { 0 }))),
    row(&["shr.u16", "shr.b16"], WWW(|a, b| w2(a, b, |a, b| if b < 16 { a >> b } else { 0 }))),
    row(&["shr.s16"], WWW(|a, b| w2(a, b, |a, b| (s16(a) >> b.min(15)) as u32 & 0xffff))),
    row(&["shf.l.wrap.b32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| funnel_left(a, b, c & 31)))),
    row(&["shf.l.clamp.b32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| funnel_left(a, b, c.min(32))))),
    row(&["shf.r.wrap.b32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| funnel_right(a, b, c & 31)))),
    row(&["shf.r.clamp.b32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| funnel_right(a, b, c.min(32))))),
    row(&["lop3.b32"], WWWWW(|a, b, c, table| from_fn(|lane| lop3(a[lane], b[lane], c[lane], table[lane])))),
    row(&["clz.b32"], WW(|a| w1(a, u32::leading_zeros))),
    row(&["popc.b32"], WW(|a| w1(a, u32::count_ones))),
    row(&["brev.b32"], WW(|a| w1(a, u32::reverse_bits))),
    row(&["bfind.u32"], WW(|a| w1(a, |a| a.checked_ilog2().unwrap_or(u32::MAX)))),
    row(&["bfind.s32"], WW(|a| w1(a, |a| (a ^ (s(a) >> 31) as u32).checked_ilog2().unwrap_or(u32::MAX)))),
    row(&["bfind.shiftamt.u32"], WW(|a| w1(a, |a| a.checked_ilog2().map_or(u32::MAX, |bit| 31 - bit)))),
    row(
        &["bfind.shiftamt.s32"],
        WW(|a| w1(a, |a| (a ^ (s(a) >> 31) as u32).checked_ilog2().map_or(u32::MAX, |bit| 31 - bit))),
    ),
    row(&["bfe.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| extract(u64::from(a), b, c, 32, false) as u32))),
    row(&["bfe.s32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| extract(u64::from(a), b, c, 32, true) as u32))),
    row(&["bfi.b32"], WWWWW(|a, b, c, d| from_fn(|i| insert(u64::from(a[i]), u64::from(b[i]), c[i], d[i], 32) as u32))),
    row(&["bmsk.clamp.b32"], WWW(|a, b| w2(a, b, |a, b| insert(u64::MAX, 0, a.min(32), b.min(32), 32) as u32))),
    row(
        &["slct.u32.s32", "slct.s32.s32", "slct.b32.s32", "slct.f32.s32"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| if s(c) >= 0 { a } else { b })),
    ),
    row(
        &["slct.u32.f32", "slct.s32.f32", "slct.b32.f32", "slct.f32.f32"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| if f32::from_bits(c) >= 0.0 { a } else { b })),
    ),
    row(&["fns.b32"], WWWW(|a, b, c| w3(a, b, c, nth_set))),
];

/// Instructions that see bytes: permutations and dot products.
pub(super) const BYTES: &[Row] = &[
    row(&["prmt.b32"], WWWW(|a, b, c| w3(a, b, c, permute))),
    row(&["prmt.b32.f4e"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, 0x3210 + 0x1111 * (c & 3))))),
    row(
        &["prmt.b32.b4e"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, [0x5670, 0x6701, 0x7012, 0x0123][c as usize & 3]))),
    ),
    row(&["prmt.b32.rc8"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, 0x1111 * (c & 3))))),
    row(
        &["prmt.b32.ecl"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, [0x3210, 0x3211, 0x3222, 0x3333][c as usize & 3]))),
    ),
    row(
        &["prmt.b32.ecr"],
        WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, [0x0000, 0x1110, 0x2210, 0x3210][c as usize & 3]))),
    ),
    row(&["prmt.b32.rc16"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| permute(a, b, [0x1010, 0x3232][c as usize & 1])))),
    row(&["dp4a.s32.s32"], WWWW(|a, b, c| w3(a, b, c, dp4a::<true, true>))),
    row(&["dp4a.s32.u32"], WWWW(|a, b, c| w3(a, b, c, dp4a::<true, false>))),
    row(&["dp4a.u32.s32"], WWWW(|a, b, c| w3(a, b, c, dp4a::<false, true>))),
    row(&["dp4a.u32.u32"], WWWW(|a, b, c| w3(a, b, c, dp4a::<false, false>))),
    row(&["dp2a.lo.s32.s32"], WWWW(|a, b, c| w3(a, b, c, dp2a::<true, true>))),
    row(&["dp2a.lo.s32.u32"], WWWW(|a, b, c| w3(a, b, c, dp2a::<true, false>))),
    row(&["dp2a.lo.u32.s32"], WWWW(|a, b, c| w3(a, b, c, dp2a::<false, true>))),
    row(&["dp2a.lo.u32.u32"], WWWW(|a, b, c| w3(a, b, c, dp2a::<false, false>))),
    row(&["dp2a.hi.s32.s32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| dp2a::<true, true>(a, b >> 16, c)))),
    row(&["dp2a.hi.s32.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| dp2a::<true, false>(a, b >> 16, c)))),
    row(&["dp2a.hi.u32.s32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| dp2a::<false, true>(a, b >> 16, c)))),
    row(&["dp2a.hi.u32.u32"], WWWW(|a, b, c| w3(a, b, c, |a, b, c| dp2a::<false, false>(a, b >> 16, c)))),
    // The four-way SIMD video instructions, of which devices since Maxwell have only these cheaply.
    row(&["vabsdiff4.u32.u32.u32"], WWWW(|a, b, _| w2(a, b, |a, b| u32::from_le_bytes(differences::<false>(a, b))))),
    row(&["vabsdiff4.u32.s32.s32"], WWWW(|a, b, _| w2(a, b, |a, b| u32::from_le_bytes(differences::<true>(a, b))))),
    row(&["vabsdiff4.u32.u32.u32.add"], WWWW(|a, b, c| w3(a, b, c, total_difference::<false>))),
    row(&["vabsdiff4.u32.s32.s32.add"], WWWW(|a, b, c| w3(a, b, c, total_difference::<true>))),
];

/// Instructions on 64-bit registers, and those that widen into them.
pub(super) const DOUBLES: &[Row] = &[
    row(&["add.s64", "add.u64"], DDD(|a, b| d2(a, b, u64::wrapping_add))),
    row(&["sub.s64", "sub.u64"], DDD(|a, b| d2(a, b, u64::wrapping_sub))),
    row(&["mul.lo.s64", "mul.lo.u64"], DDD(|a, b| d2(a, b, u64::wrapping_mul))),
    row(&["mul.hi.u64"], DDD(|a, b| d2(a, b, |a, b| ((u128::from(a) * u128::from(b)) >> 64) as u64))),
    row(&["mul.hi.s64"], DDD(|a, b| d2(a, b, |a, b| ((i128::from(sd(a)) * i128::from(sd(b))) >> 64) as u64))),
    row(&["mad.lo.s64", "mad.lo.u64"], DDDD(|a, b, c| d3(a, b, c, |a, b, c| a.wrapping_mul(b).wrapping_add(c)))),
    row(
        &["mad.hi.u64"],
        DDDD(|a, b, c| d3(a, b, c, |a, b, c| (((u128::from(a) * u128::from(b)) >> 64) as u64).wrapping_add(c))),
    ),
    row(
        &["mad.hi.s64"],
        DDDD(|a, b, c| d3(a, b, c, |a, b, c| (((i128::from(sd(a)) * i128::from(sd(b))) >> 64) as u64).wrapping_add(c))),
    ),
    row(&["mul.wide.u32"], DWW(|a, b| from_fn(|i| u64::from(a[i]) * u64::from(b[i])))),
    row(&["mul.wide.s32"], DWW(|a, b| from_fn(|i| (i64::from(s(a[i])) * i64::from(s(b[i]))) as u64))),
    row(&["mad.wide.u32"], DWWD(|a, b, c| from_fn(|i| (u64::from(a[i]) * u64::from(b[i])).wrapping_add(c[i])))),
    row(
        &["mad.wide.s32"],
        DWWD(|a, b, c| from_fn(|i| ((i64::from(s(a[i])) * i64::from(s(b[i]))) as u64).wrapping_add(c[i]))),
    ),
    row(&["div.u64"], DDD(|a, b| d2(a, b, |a, b| a.checked_div(b).unwrap_or(u64::MAX)))),
    row(&["rem.u64"], DDD(|a, b| d2(a, b, |a, b| a.checked_rem(b).unwrap_or(a)))),
    row(&["div.s64"], DDD(|a, b| d2(a, b, |a, b| if b == 0 { u64::MAX } else { sd(a).wrapping_div(sd(b)) as u64 }))),
    row(&["rem.s64"], DDD(|a, b| d2(a, b, |a, b| if b == 0 { a } else { sd(a).wrapping_rem(sd(b)) as u64 }))),
    row(&["abs.s64"], DD(|a| d1(a, |a| sd(a).unsigned_abs()))),
    row(&["neg.s64"], DD(|a| d1(a, u64::wrapping_neg))),
    row(&["min.u64"], DDD(|a, b| d2(a, b, u64::min))),
    row(&["max.u64"], DDD(|a, b| d2(a, b, u64::max))),
    row(&["min.s64"], DDD(|a, b| d2(a, b, |a, b| sd(a).min(sd(b)) as u64))),
    row(&["max.s64"], DDD(|a, b| d2(a, b, |a, b| sd(a).max(sd(b)) as u64))),
    row(&["and.b64"], DDD(|a, b| d2(a, b, |a, b| a & b))),
    row(&["or.b64"], DDD(|a, b| d2(a, b, |a, b| a | b))),
    row(&["xor.b64"], DDD(|a, b| d2(a, b, |a, b| a ^ b))),
    row(&["not.b64"], DD(|a| d1(a, |a| !a))),
    row(&["cnot.b64"], DD(|a| d1(a, |a| u64::from(a == 0)))),
    row(&["shl.b64"], DDW(|a, b| from_fn(|i| a[i].checked_shl(b[i]).unwrap_or(0)))),
    row(&["shr.u64", "shr.b64"], DDW(|a, b| from_fn(|i| a[i].checked_shr(b[i]).unwrap_or(0)))),
    row(&["shr.s64"], DDW(|a, b| from_fn(|i| (sd(a[i]) >> b[i].min(63)) as u64))),
    row(&["brev.b64"], DD(|a| d1(a, u64::reverse_bits))),
    row(&["clz.b64"], WD(|a| narrow(a, u64::leading_zeros))),
    row(&["popc.b64"], WD(|a| narrow(a, u64::count_ones))),
    row(&["bfind.u64"], WD(|a| narrow(a, |a| a.checked_ilog2().unwrap_or(u32::MAX)))),
    row(&["bfind.s64"], WD(|a| narrow(a, |a| (a ^ (sd(a) >> 63) as u64).checked_ilog2().unwrap_or(u32::MAX)))),
    row(&["bfind.shiftamt.u64"], WD(|a| narrow(a, |a| a.checked_ilog2().map_or(u32::MAX, |bit| 63 - bit)))),
    row(&["bfe.u64"], DDWW(|a, b, c| from_fn(|i| extract(a[i], b[i], c[i], 64, false)))),
    row(&["bfe.s64"], DDWW(|a, b, c| from_fn(|i| extract(a[i], b[i], c[i], 64, true)))),
    row(&["bfi.b64"], DDDWW(|a, b, c, d| from_fn(|i| insert(a[i], b[i], c[i], d[i], 64)))),
];

fn high_unsigned(a: u32, b: u32) -> u32 {
    ((u64::from(a) * u64::from(b)) >> 32) as u32
}

fn high_signed(a: u32, b: u32) -> u32 {
    ((i64::from(s(a)) * i64::from(s(b))) >> 32) as u32
}

/// The upper word of `b:a` shifted left by up to 32 bits.
fn funnel_left(a: u32, b: u32, count: u32) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) << count >> 32) as u32
}

/// The lower word of `b:a` shifted right by up to 32 bits.
fn funnel_right(a: u32, b: u32, count: u32) -> u32 {
    ((u64::from(b) << 32 | u64::from(a)) >> count) as u32
}

/// Bit `4a + 2b + c` of the table, for each bit of the operands.
#[inline(always)]
fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for term in 0..8 {
        let pick = |bit: u32, x: u32| if term & bit != 0 { x } else { !x };
        let wanted = (table >> term & 1).wrapping_neg();
        out |= wanted & pick(4, a) & pick(2, b) & pick(1, c);
    }
    out
}

/// A bit field: position and length are taken from the low bytes, bits beyond the top read as zero or as the sign.
fn extract(a: u64, position: u32, length: u32, width: u32, signed: bool) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    let top = width - 1;
    let sign = match signed && length > 0 {
        true => a >> (position + length - 1).min(top) & 1,
        false => 0,
    };
    let mut out = 0;
    for bit in 0..width {
        let value = if bit < length && position + bit <= top { a >> (position + bit) & 1 } else { sign };
        out |= value << bit;
    }
    out
}

/// `b` with `length` bits from `position` on replaced by the low bits of `a`.
fn insert(a: u64, b: u64, position: u32, length: u32, width: u32) -> u64 {
    let (position, length) = (position & 0xff, length & 0xff);
    if position >= width {
        return b;
    }
    let ones = if length >= 64 { u64::MAX } else { (1 << length) - 1 };
    let kept = if width == 64 { u64::MAX } else { (1 << width) - 1 };
    let field = ones << position & kept;
    b & !field | a << position & field
}

/// Position of the `offset`-th set bit counted from `base`, upwards for positive offsets (1 is the first at or above the
/// base), downwards for negative ones; 0 asks for the base itself.
fn nth_set(mask: u32, base: u32, offset: u32) -> u32 {
    let base = base & 31;
    let is_set = |bit: &u32| mask >> bit & 1 == 1;
    let found = match s(offset) {
        0 => Some(base).filter(is_set),
        count @ 1.. => (base..32).filter(is_set).nth(count as usize - 1),
        count => (0..=base).rev().filter(is_set).nth(count.unsigned_abs() as usize - 1),
    };
    found.unwrap_or(u32::MAX)
}

/// Each nibble of the selector takes a byte of `b:a`, or with its top bit the sign of that byte eight times.
#[inline(always)]
fn permute(a: u32, b: u32, selector: u32) -> u32 {
    let source = u64::from(b) << 32 | u64::from(a);
    let mut out = 0;
    for byte in 0..4 {
        let nibble = selector >> (4 * byte) & 15;
        let value = (source >> (8 * (nibble & 7))) as u8;
        let value = if nibble & 8 != 0 { ((value as i8) >> 7) as u8 } else { value };
        out |= u32::from(value) << (8 * byte);
    }
    out
}

#[inline(always)]
fn byte<const SIGNED: bool>(a: u32, index: u32) -> i32 {
    let value = (a >> (8 * index)) as u8;
    if SIGNED { i32::from(value as i8) } else { i32::from(value) }
}

#[inline(always)]
fn dp4a<const A: bool, const B: bool>(a: u32, b: u32, c: u32) -> u32 {
    // Four products of at most 2^16 in magnitude fit easily.
    let sum: i32 = (0..4).map(|index| byte::<A>(a, index) * byte::<B>(b, index)).sum();
    c.wrapping_add(sum as u32)
}

#[inline(always)]
fn dp2a<const A: bool, const B: bool>(a: u32, b: u32, c: u32) -> u32 {
    let half = |index: u32| {
        let value = (a >> (16 * index)) as u16;
        if A { i32::from(value as i16) } else { i32::from(value) }
    };
    let sum: i32 = (0..2).map(|index| half(index) * byte::<B>(b, index)).sum();
    c.wrapping_add(sum as u32)
}

/// Distances of bytes; between signed ones they fit unsigned bytes just as well.
fn differences<const SIGNED: bool>(a: u32, b: u32) -> [u8; 4] {
    from_fn(|index| byte::<SIGNED>(a, index as u32).abs_diff(byte::<SIGNED>(b, index as u32)) as u8)
}

fn total_difference<const SIGNED: bool>(a: u32, b: u32, c: u32) -> u32 {
    differences::<SIGNED>(a, b).into_iter().fold(c, |sum, distance| sum.wrapping_add(distance.into()))
}
