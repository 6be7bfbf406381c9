//! What few kernels use: doubles, `fns`, `elect`.

use super::{Bench, Random, kernel, threads};

/// Zeros, subnormals, the ends of the range, what is no number, and numbers of all sizes.
fn doubles(seed: u64) -> Vec<f64> {
    let mut random = Random(seed);
    let special =
        [0.0, -0.0, 1.0, -1.5, f64::from_bits(1), f64::MIN_POSITIVE, f64::MAX, f64::INFINITY, f64::NAN, 1e-300];
    (0..32)
        .map(|lane| match special.get((lane * 3 + seed as usize) % 16) {
            Some(&special) => special,
            None => f64::from_bits(u64::from(random.next()) << 32 | u64::from(random.next())),
        })
        .collect()
}

fn bytes(values: &[f64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Runs `instruction` on `%fd1`, `%fd2` and `%fd3` with the result in `%fd4`, many times.
fn check(instruction: &str, f: impl Fn(f64, f64, f64) -> f64) {
    let mut body = "shl.b64 %rd21, %rd20, 1;\n".to_owned();
    for n in 1..=3 {
        body += &format!("add.u64 %rd30, %rd{n}, %rd21;\nld.global.f64 %fd{n}, [%rd30];\n");
    }
    body += &format!("{instruction}\nadd.u64 %rd30, %rd0, %rd21;\nst.global.f64 [%rd30], %fd4;");
    for round in 0..16 {
        let [a, b, c] = [1, 2, 3].map(|n| doubles(7 * n + 22 * round));
        let mut bench = Bench::new().room(64).bytes(&bytes(&a)).bytes(&bytes(&b)).bytes(&bytes(&c));
        bench.run(&kernel(4, &body), &threads(32)).unwrap();
        for (lane, words) in bench.result(0).chunks(2).enumerate() {
            let got = f64::from_bits(u64::from(words[0]) | u64::from(words[1]) << 32);
            let (a, b, c) = (a[lane], b[lane], c[lane]);
            let wanted = f(a, b, c);
            let are_same = got.to_bits() == wanted.to_bits() || got.is_nan() && wanted.is_nan();
            assert!(are_same, "{instruction} of {a:e}, {b:e}, {c:e}: {got:e} for {wanted:e}");
        }
    }
}

#[test]
fn doubles_are_the_hosts() {
    check("add.rn.f64 %fd4, %fd1, %fd2;", |a, b, _| a + b);
    check("sub.f64 %fd4, %fd1, %fd2;", |a, b, _| a - b);
    check("mul.rn.f64 %fd4, %fd1, %fd2;", |a, b, _| a * b);
    check("div.rn.f64 %fd4, %fd1, %fd2;", |a, b, _| a / b);
    check("fma.rn.f64 %fd4, %fd1, %fd2, %fd3;", f64::mul_add);
    check("rcp.rn.f64 %fd4, %fd1;", |a, _, _| 1.0 / a);
    check("sqrt.rn.f64 %fd4, %fd1;", |a, _, _| a.sqrt());
    check("abs.f64 %fd4, %fd1;", |a, _, _| a.abs());
    check("neg.f64 %fd4, %fd1;", |a, _, _| -a);
    check("copysign.f64 %fd4, %fd1, %fd2;", |a, b, _| b.copysign(a));
    // Of a number and none, the number.
    let smaller = |a: f64, b: f64| if b.is_nan() || a < b || (a == b && a.is_sign_negative()) { a } else { b };
    check("min.f64 %fd4, %fd1, %fd2;", |a, b, _| smaller(a, b));
    check("max.f64 %fd4, %fd1, %fd2;", |a, b, _| -smaller(-a, -b));
}

#[test]
fn doubles_are_compared_and_converted() {
    let select = |compare: &str| format!("setp.{compare}.f64 %p1, %fd1, %fd2;\nselp.f64 %fd4, %fd1, %fd3, %p1;");
    check(&select("lt"), |a, b, c| if a < b { a } else { c });
    check(&select("ge"), |a, b, c| if a >= b { a } else { c });
    check(&select("gtu"), |a, b, c| if !(a <= b) { a } else { c });
    check(&select("eq"), |a, b, c| if a == b { a } else { c });
    check("cvt.rn.f32.f64 %f1, %fd1;\ncvt.f64.f32 %fd4, %f1;", |a, _, _| f64::from(a as f32));
    // What is no number becomes the highest bit alone.
    let signed = |a: f64| if a.is_nan() { i32::MIN } else { a as i32 };
    check("cvt.rzi.s32.f64 %r1, %fd1;\ncvt.rn.f64.s32 %fd4, %r1;", |a, _, _| f64::from(signed(a)));
    let unsigned = |a: f64| if a.is_nan() { 1 << 63 } else { a as u64 };
    check("cvt.rzi.u64.f64 %rd31, %fd1;\ncvt.rn.f64.u64 %fd4, %rd31;", |a, _, _| unsigned(a) as f64);
    check("mov.b64 {%r1, %r2}, %fd1;\nmov.b64 %fd4, {%r1, %r2};", |a, _, _| a);
}

/// As the ISA's pseudocode has it.
fn nth_set(mask: u32, base: u32, offset: i32) -> u32 {
    let is_set = |position: i32| mask >> position & 1 == 1;
    if offset == 0 {
        return if is_set(base as i32) { base } else { u32::MAX };
    }
    let (mut position, mut left) = (base as i32, offset.abs() - 1);
    while (0..32).contains(&position) {
        if is_set(position) {
            if left == 0 {
                return position as u32;
            }
            left -= 1;
        }
        position += offset.signum();
    }
    u32::MAX
}

#[test]
fn fns_finds_the_nth_set_bit() {
    let body = "add.u64 %rd30, %rd1, %rd20;\nld.global.u32 %r1, [%rd30];\nadd.u64 %rd30, %rd2, %rd20;\n\
                ld.global.u32 %r2, [%rd30];\nadd.u64 %rd30, %rd3, %rd20;\nld.global.u32 %r3, [%rd30];\n\
                fns.b32 %r10, %r1, %r2, %r3;\nadd.u64 %rd30, %rd0, %rd20;\nst.global.u32 [%rd30], %r10;";
    let mut random = Random(5);
    for round in 0..32 {
        let masks: Vec<u32> = (0..32)
            .map(|lane| match lane {
                0 => 0,
                1 => u32::MAX,
                2 => 1,
                3 => 1 << 31,
                _ => random.next() & random.next(),
            })
            .collect();
        let bases: Vec<u32> = (0..32).map(|lane| (lane + round) % 32).collect();
        let offsets: Vec<u32> = (0..32).map(|_| (random.next() % 15).wrapping_sub(7)).collect();
        let mut bench = Bench::new().room(32).words(&masks).words(&bases).words(&offsets);
        bench.run(&kernel(4, body), &threads(32)).unwrap();
        for (lane, got) in bench.result(0).into_iter().enumerate() {
            let (mask, base, offset) = (masks[lane], bases[lane], offsets[lane] as i32);
            assert_eq!(got, nth_set(mask, base, offset), "{mask:#034b} from {base}, {offset}");
        }
    }
}

#[test]
fn elect_names_one_lane_of_those_that_are_there() {
    let run = |mask: u32, guard: &str| {
        let body = format!(
            "mov.u32 %r1, 7777;\nmov.u32 %r2, 0;\n{guard}elect.sync %r1|%p1, {mask:#x};\nselp.u32 %r2, 1, 0, %p1;\n\
             OVER:\nmul.wide.u32 %rd30, %r0, 8;\nadd.u64 %rd30, %rd0, %rd30;\nst.global.v2.u32 [%rd30], {{%r1, %r2}};"
        );
        let mut bench = Bench::new().room(64);
        bench.run(&kernel(1, &body).replace("sm_80", "sm_90"), &threads(32)).map(|()| bench.result(0))
    };
    for (lane, got) in run(u32::MAX, "").unwrap().chunks(2).enumerate() {
        assert_eq!(got, [0, u32::from(lane == 0)]);
    }
    let upper = "setp.lt.u32 %p2, %r0, 20;\n@%p2 bra OVER;\n";
    for (lane, got) in run(0xfff0_0000, upper).unwrap().chunks(2).enumerate() {
        let expected = if lane < 20 { [7777, 0] } else { [20, u32::from(lane == 20)] };
        assert_eq!(got, expected, "lane {lane}");
    }
    // Lanes that run it without being named.
    assert!(run(0xff00_0000, upper).is_err());
}
