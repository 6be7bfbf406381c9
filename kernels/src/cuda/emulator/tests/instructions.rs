//! Single instructions: each against a definition in Rust, on patterns and on random values.

use half::{bf16, f16};

use super::{Bench, Random, kernel, threads};

const PATTERNS: [u32; 16] = [
    0,
    1,
    2,
    0x7f,
    0x80,
    0xff,
    0x7fff,
    0x8000,
    0xffff,
    0x10000,
    0x7fff_ffff,
    0x8000_0000,
    0x8000_0001,
    0xffff_fffe,
    0xffff_ffff,
    0x3f80_0000,
];

/// Operands for 32 lanes: patterns and then random ones, another mixture for each of `count` sources.
fn operands(count: usize, seed: u64) -> Vec<Vec<u32>> {
    let mut random = Random(seed | 1);
    (0..count)
        .map(|source| {
            (0..32)
                .map(|lane| match lane {
                    0..16 => PATTERNS[(lane * (source + 1) + 3 * source) % 16],
                    _ => random.next(),
                })
                .collect()
        })
        .collect()
}

/// Runs `instruction` on words `%r1..` with the result in `%r10`.
fn word(instruction: &str, sources: &[Vec<u32>]) -> Vec<u32> {
    let mut body = String::new();
    let mut bench = Bench::new().room(32);
    for (source, values) in sources.iter().enumerate() {
        let n = source + 1;
        body += &format!("add.u64 %rd30, %rd{n}, %rd20;\nld.global.u32 %r{n}, [%rd30];\n");
        bench = bench.words(values);
    }
    body += &format!("{instruction}\nadd.u64 %rd30, %rd0, %rd20;\nst.global.u32 [%rd30], %r10;");
    bench.run(&kernel(sources.len() + 1, &body), &threads(32)).unwrap();
    bench.result(0)
}

fn check1(instruction: &str, f: impl Fn(u32) -> u32) {
    let sources = operands(1, 77);
    for (lane, got) in word(instruction, &sources).into_iter().enumerate() {
        let a = sources[0][lane];
        assert_eq!(got, f(a), "{instruction} of {a:#x}");
    }
}

fn check2(instruction: &str, f: impl Fn(u32, u32) -> u32) {
    for seed in [5, 6, 7] {
        let sources = operands(2, seed);
        for (lane, got) in word(instruction, &sources).into_iter().enumerate() {
            let (a, b) = (sources[0][lane], sources[1][lane]);
            assert_eq!(got, f(a, b), "{instruction} of {a:#x}, {b:#x}");
        }
    }
}

fn check3(instruction: &str, f: impl Fn(u32, u32, u32) -> u32) {
    for seed in [15, 16, 17] {
        let sources = operands(3, seed);
        for (lane, got) in word(instruction, &sources).into_iter().enumerate() {
            let (a, b, c) = (sources[0][lane], sources[1][lane], sources[2][lane]);
            assert_eq!(got, f(a, b, c), "{instruction} of {a:#x}, {b:#x}, {c:#x}");
        }
    }
}

#[test]
fn integer_arithmetic_is_the_isas() {
    let s = |a: u32| a as i32;
    check2("add.s32 %r10, %r1, %r2;", u32::wrapping_add);
    check2("sub.u32 %r10, %r1, %r2;", u32::wrapping_sub);
    check2("add.sat.s32 %r10, %r1, %r2;", |a, b| s(a).saturating_add(s(b)) as u32);
    check2("mul.hi.s32 %r10, %r1, %r2;", |a, b| ((s(a) as i64 * s(b) as i64) >> 32) as u32);
    check2("mul.hi.u32 %r10, %r1, %r2;", |a, b| ((a as u64 * b as u64) >> 32) as u32);
    check3("mad.lo.s32 %r10, %r1, %r2, %r3;", |a, b, c| a.wrapping_mul(b).wrapping_add(c));
    check2("min.s32 %r10, %r1, %r2;", |a, b| s(a).min(s(b)) as u32);
    check2("max.u32 %r10, %r1, %r2;", u32::max);
    check1("abs.s32 %r10, %r1;", |a| s(a).wrapping_abs() as u32);
    check1("neg.s32 %r10, %r1;", u32::wrapping_neg);
    check2("or.b32 %r4, %r2, 1; div.s32 %r10, %r1, %r4;", |a, b| s(a).wrapping_div(s(b | 1)) as u32);
    check2("or.b32 %r4, %r2, 1; rem.u32 %r10, %r1, %r4;", |a, b| a % (b | 1));
    check2("{ .reg .b64 %x; mul.wide.s32 %x, %r1, %r2; shr.s64 %x, %x, 16; cvt.u32.u64 %r10, %x; }", |a, b| {
        (((s(a) as i64) * (s(b) as i64)) >> 16) as u32
    });
    check3("sad.s32 %r10, %r1, %r2, %r3;", |a, b, c| s(a).abs_diff(s(b)).wrapping_add(c));
}

#[test]
fn sums_with_carry_are_sums_of_wide_numbers() {
    // (a:b) + (b:c), then - (c:a), upper words.
    check3("add.cc.u32 %r4, %r2, %r3; addc.u32 %r10, %r1, %r2;", |a, b, c| {
        (((u64::from(a) << 32 | u64::from(b)).wrapping_add(u64::from(b) << 32 | u64::from(c))) >> 32) as u32
    });
    check3("sub.cc.u32 %r4, %r2, %r1; subc.u32 %r10, %r1, %r3;", |a, b, c| {
        (((u64::from(a) << 32 | u64::from(b)).wrapping_sub(u64::from(c) << 32 | u64::from(a))) >> 32) as u32
    });
    // The upper word of a * b + c with the carry of the lower one.
    check3("mad.lo.cc.u32 %r4, %r1, %r2, %r3; madc.hi.u32 %r10, %r1, %r2, 0;", |a, b, c| {
        ((u64::from(a) * u64::from(b)).wrapping_add(u64::from(c)) >> 32) as u32
    });
}

#[test]
fn bits_are_moved_as_the_isa_says() {
    check2("shl.b32 %r10, %r1, %r2;", |a, b| a.checked_shl(b).unwrap_or(0));
    check2("shr.s32 %r10, %r1, %r2;", |a, b| ((a as i32) >> b.min(31)) as u32);
    check3(
        "shf.l.wrap.b32 %r10, %r1, %r2, %r3;",
        |a, b, c| {
            if c & 31 == 0 { b } else { b << (c & 31) | a >> (32 - (c & 31)) }
        },
    );
    check3("shf.r.clamp.b32 %r10, %r1, %r2, %r3;", |a, b, c| match c.min(32) {
        0 => a,
        32 => b,
        n => a >> n | b << (32 - n),
    });
    // The table is what the function gives for these three constants.
    for (table, f) in [
        (0xf0 & 0xcc & 0xaa, (|a, b, c| a & b & c) as fn(u32, u32, u32) -> u32),
        (0xf0 ^ 0xcc ^ 0xaa, |a, b, c| a ^ b ^ c),
        ((0xf0 & 0xcc) | (0xaa & !0xf0), |a, b, c| (a & b) | (c & !a)),
    ] {
        let table: u32 = table & 0xff;
        check3(&format!("lop3.b32 %r10, %r1, %r2, %r3, {table};"), f);
    }
    check3("prmt.b32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let bytes: Vec<u8> = a.to_le_bytes().into_iter().chain(b.to_le_bytes()).collect();
        let pick = |n: u32| {
            let nibble = c >> (4 * n) & 15;
            let byte = bytes[(nibble & 7) as usize];
            if nibble & 8 == 0 {
                byte
            } else if byte >> 7 == 1 {
                0xff
            } else {
                0
            }
        };
        u32::from_le_bytes([pick(0), pick(1), pick(2), pick(3)])
    });
    check1("bfe.u32 %r10, %r1, 5, 9;", |a| a >> 5 & 0x1ff);
    check1("bfe.s32 %r10, %r1, 5, 9;", |a| ((a << 18) as i32 >> 23) as u32);
    check1("bfe.s32 %r10, %r1, 28, 9;", |a| ((a as i32) >> 28) as u32);
    check2("bfi.b32 %r10, %r1, %r2, 7, 12;", |a, b| b & !(0xfff << 7) | (a & 0xfff) << 7);
    check1("clz.b32 %r10, %r1;", u32::leading_zeros);
    check1("popc.b32 %r10, %r1;", u32::count_ones);
    check1("brev.b32 %r10, %r1;", u32::reverse_bits);
    check1("bfind.u32 %r10, %r1;", |a| if a == 0 { u32::MAX } else { 31 - a.leading_zeros() });
    check1("bfind.shiftamt.u32 %r10, %r1;", |a| if a == 0 { u32::MAX } else { a.leading_zeros() });
    check2("{ .reg .b64 %x; mov.b64 %x, {%r1, %r2}; shr.u64 %x, %x, 13; mov.b64 {%r10, _}, %x; }", |a, b| {
        ((u64::from(b) << 32 | u64::from(a)) >> 13) as u32
    });
    check2("{ .reg .b16 a, b; mov.b32 {a, b}, %r1; mov.b32 %r10, {b, a}; }", |a, _| a.rotate_left(16));
}

#[test]
fn dot_products_of_bytes_have_all_signs() {
    let signed = |a: u32| a.to_le_bytes().map(|byte| i64::from(byte as i8));
    let unsigned = |a: u32| a.to_le_bytes().map(i64::from);
    let dot =
        |a: [i64; 4], b: [i64; 4], c: u32| (0..4).map(|i| a[i] * b[i]).sum::<i64>().wrapping_add(i64::from(c)) as u32;
    check3("dp4a.s32.s32 %r10, %r1, %r2, %r3;", |a, b, c| dot(signed(a), signed(b), c));
    check3("dp4a.s32.u32 %r10, %r1, %r2, %r3;", |a, b, c| dot(signed(a), unsigned(b), c));
    check3("dp4a.u32.s32 %r10, %r1, %r2, %r3;", |a, b, c| dot(unsigned(a), signed(b), c));
    check3("dp4a.u32.u32 %r10, %r1, %r2, %r3;", |a, b, c| dot(unsigned(a), unsigned(b), c));
    check3("dp2a.hi.s32.u32 %r10, %r1, %r2, %r3;", |a, b, c| {
        let (low, high) = (i64::from(a as i16), i64::from((a >> 16) as i16));
        let b = unsigned(b);
        (low * b[2] + high * b[3]).wrapping_add(i64::from(c)) as u32
    });
}

#[test]
fn singles_are_rounded_once() {
    let f = f32::from_bits;
    // One canonical NaN.
    let bits = |value: f32| if value.is_nan() { 0x7fff_ffff } else { value.to_bits() };
    let flush = |a: u32| if f(a).is_subnormal() { f(a & 1 << 31) } else { f(a) };
    check2("add.f32 %r10, %r1, %r2;", |a, b| bits(f(a) + f(b)));
    check2("mul.rn.f32 %r10, %r1, %r2;", |a, b| bits(f(a) * f(b)));
    check2("mul.ftz.f32 %r10, %r1, %r2;", |a, b| bits(flush(bits(flush(a) * flush(b)))));
    check3("fma.rn.f32 %r10, %r1, %r2, %r3;", |a, b, c| bits(f(a).mul_add(f(b), f(c))));
    check2("div.rn.f32 %r10, %r1, %r2;", |a, b| bits(f(a) / f(b)));
    check1("sqrt.rn.f32 %r10, %r1;", |a| bits(f(a).sqrt()));
    check2("min.f32 %r10, %r1, %r2;", |a, b| match (f(a).is_nan(), f(b).is_nan()) {
        (true, true) => 0x7fff_ffff,
        (true, false) => b,
        (false, true) => a,
        _ => {
            if f(a).total_cmp(&f(b)).is_lt() {
                a
            } else {
                b
            }
        }
    });
}

#[test]
fn a_fused_product_is_rounded_as_the_hosts() {
    let mut random = Random(99);
    // Operands whose sums cancel and whose results are tiny, where a double rounding would show.
    for _ in 0..200_000 {
        let [a, b, c] = [0; 3].map(|_: u32| {
            let bits = random.next();
            f32::from_bits(bits & 0x807f_ffff | ((bits >> 8 & 0x7f) + 60) << 23)
        });
        for c in [c, -(a * b), c * 1e-30] {
            let (got, wanted) = (super::ops::find("fma.rn.f32").map(|_| super::ops::fma(a, b, c)), a.mul_add(b, c));
            assert_eq!(got.map(f32::to_bits), Some(wanted.to_bits()), "{a:e} * {b:e} + {c:e}");
        }
    }
}

#[test]
fn directed_roundings_enclose_the_exact_value() {
    let f = f32::from_bits;
    let sources = operands(2, 123);
    let down = word("mul.rm.f32 %r10, %r1, %r2;", &sources);
    let up = word("mul.rp.f32 %r10, %r1, %r2;", &sources);
    for lane in 16..32 {
        let exact = f64::from(f(sources[0][lane])) * f64::from(f(sources[1][lane]));
        let (down, up) = (f(down[lane]), f(up[lane]));
        if exact.is_nan() {
            continue;
        }
        assert!(f64::from(down) <= exact && exact <= f64::from(up), "{down:e} <= {exact:e} <= {up:e}");
        assert!(down == up || down.next_up() == up || up == 0.0, "{down:e} and {up:e} are neighbours");
    }
}

#[test]
fn halves_agree_with_the_crate_that_defines_them() {
    let mut random = Random(3);
    for _ in 0..100_000 {
        let value = f32::from_bits(random.next());
        if !value.is_nan() {
            assert_eq!(super::ops::to_f16(value) as u16, f16::from_f32(value).to_bits(), "{value:e}");
            assert_eq!(super::ops::to_bf16(value) as u16, bf16::from_f32(value).to_bits(), "{value:e}");
        }
        let middling = f32::from_bits(value.to_bits() & 0x807f_ffff | (100 + value.to_bits() % 45) << 23);
        assert_eq!(super::ops::to_f16(middling) as u16, f16::from_f32(middling).to_bits(), "{middling:e}");
    }
    for bits in 0..=u16::MAX {
        let value = super::ops::from_f16(bits.into());
        let wanted = f16::from_bits(bits).to_f32();
        assert!(value.to_bits() == wanted.to_bits() || value.is_nan() && wanted.is_nan(), "{bits:#x}");
    }
    check2("add.rn.f16x2 %r10, %r1, %r2;", |a, b| {
        let one = |a: u32, b: u32| {
            let sum = f16::from_bits(a as u16).to_f64() + f16::from_bits(b as u16).to_f64();
            if sum.is_nan() { 0x7fff } else { u32::from(f16::from_f32(sum as f32).to_bits()) }
        };
        one(a, b) | one(a >> 16, b >> 16) << 16
    });
    check1("{ .reg .b16 h; cvt.rn.f16.f32 h, %r1; cvt.f32.f16 %r10, h; }", |a| {
        let value = f32::from_bits(a);
        if value.is_nan() { f16_nan() } else { f16::from_f32(value).to_f32().to_bits() }
    });
}

/// The half's NaN as a single.
fn f16_nan() -> u32 {
    super::ops::from_f16(0x7fff).to_bits()
}

#[test]
fn conversions_saturate_and_round() {
    let f = f32::from_bits;
    check1("cvt.rzi.s32.f32 %r10, %r1;", |a| f(a) as i32 as u32);
    check1("cvt.rni.s32.f32 %r10, %r1;", |a| f(a).round_ties_even() as i32 as u32);
    check1("cvt.rzi.u32.f32 %r10, %r1;", |a| f(a) as u32);
    check1("cvt.rn.f32.s32 %r10, %r1;", |a| (a as i32 as f32).to_bits());
    check1("cvt.rz.f32.u32 %r10, %r1;", |a| {
        let nearest = a as f32;
        let toward_zero = if f64::from(nearest) > f64::from(a) { nearest.next_down() } else { nearest };
        toward_zero.to_bits()
    });
    check1("cvt.s32.s8 %r10, %r1;", |a| a as u8 as i8 as i32 as u32);
    check1("{ .reg .b16 h; cvt.sat.s8.s32 h, %r1; cvt.s32.s16 %r10, h; }", |a| (a as i32).clamp(-128, 127) as u32);
    check1("{ .reg .b16 h; cvt.u16.u32 h, %r1; cvt.s32.s16 %r10, h; }", |a| a as u16 as i16 as i32 as u32);
    check1("cvt.sat.f32.f32 %r10, %r1;", |a| if f(a) > 0.0 { f(a).min(1.0).to_bits() } else { 0 });
    check2("cvt.rn.bf16x2.f32 %r10, %r1, %r2;", |a, b| {
        let one = |a: u32| if f(a).is_nan() { 0x7fff } else { u32::from(bf16::from_f32(f(a)).to_bits()) };
        one(a) << 16 | one(b)
    });
}

#[test]
fn eight_bit_floats_go_there_and_back() {
    // Every finite e4m3 and e5m2 survives the way to half and back.
    for (ty, nan) in [("e4m3x2", 0x7f), ("e5m2x2", 0x7c)] {
        let all: Vec<u32> = (0..128).map(|pair| pair | ((127 - pair) | 0x80) << 8).collect();
        for part in all.chunks(32) {
            let text = format!(
                "{{ .reg .b16 h; cvt.u16.u32 h, %r1; cvt.rn.f16x2.{ty} %r2, h; \
                 cvt.rn.satfinite.{ty}.f16x2 h, %r2; cvt.u32.u16 %r10, h; }}"
            );
            let got = word(&text, &[part.to_vec()]);
            for (got, wanted) in got.into_iter().zip(part) {
                for shift in [0, 8] {
                    let (got, wanted) = (got >> shift & 0xff, wanted >> shift & 0xff);
                    if wanted & 0x7f < nan {
                        assert_eq!(got, wanted, "{ty}");
                    }
                }
            }
        }
    }
    // 448 is the largest e4m3; 449 rounds to it, and so does everything above.
    let values = [448.0f32, 449.0, 1e9, f32::INFINITY, 0.001953125, 0.0009765625, 1.0625, 1.1875];
    let words: Vec<u32> = values.iter().cycle().take(32).map(|value| value.to_bits()).collect();
    let got = word("{ .reg .b16 h; cvt.rn.satfinite.e4m3x2.f32 h, %r1, %r1; cvt.u32.u16 %r10, h; }", &[words]);
    // The smallest is 2^-9, half of that ties to zero; 1.0625 ties to 1, 1.1875 to 1.25.
    assert_eq!(got[..8].iter().map(|pair| pair & 0xff).collect::<Vec<_>>(), [0x7e, 0x7e, 0x7e, 0x7e, 1, 0, 0x38, 0x3a]);
}

#[test]
fn comparisons_know_nan_and_signs() {
    let f = f32::from_bits;
    let set = |text: &str| format!("setp.{text} %p1, %r1, %r2; selp.u32 %r10, 1, 0, %p1;");
    check2(&set("lt.s32"), |a, b| u32::from((a as i32) < b as i32));
    check2(&set("lo.u32"), |a, b| u32::from(a < b));
    check2(&set("ge.f32"), |a, b| u32::from(f(a) >= f(b)));
    check2(&set("geu.f32"), |a, b| u32::from(!(f(a) < f(b))));
    check2(&set("neu.f32"), |a, b| u32::from(f(a) != f(b)));
    check2(&set("ne.f32"), |a, b| u32::from(f(a) < f(b) || f(a) > f(b)));
    check2(&set("nan.f32"), |a, b| u32::from(f(a).is_nan() || f(b).is_nan()));
    check2(
        "setp.gt.u32 %p3, %r2, 255; setp.lt.and.s32 %p1|%p2, %r1, 0, !%p3; selp.u32 %r4, 2, 0, %p2; selp.u32 %r5, 1, 0, %p1; or.b32 %r10, %r4, %r5;",
        |a, b| {
            let (less, small) = ((a as i32) < 0, b <= 255);
            u32::from(less && small) | u32::from(!less && small) << 1
        },
    );
    check2("set.gt.u32.f32 %r10, %r1, %r2;", |a, b| if f(a) > f(b) { u32::MAX } else { 0 });
    check2("set.lt.f16x2.f16x2 %r10, %r1, %r2;", |a, b| {
        let one = |a: u32, b: u32| if f16::from_bits(a as u16) < f16::from_bits(b as u16) { 0x3c00 } else { 0 };
        one(a, b) | one(a >> 16, b >> 16) << 16
    });
}
