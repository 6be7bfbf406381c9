//! Text as NVRTC writes it: a matrix product with asynchronous copies and tensor cores, once right and once with a
//! barrier missing.

use half::f16;

use super::{Bench, Launch, Random};

const K: usize = 64;

/// A is 16 x 64, B 32 x 64 (both row by row), C = A B^T is 16 x 32.
fn gemm(ptx: &str) -> (Result<(), super::EmulatorError>, Vec<f32>, Vec<f32>) {
    let mut random = Random(7);
    let mut matrix = |rows: usize| -> Vec<f16> { (0..rows * K).map(|_| f16::from_f32(random.small())).collect() };
    let (a, b) = (matrix(16), matrix(32));
    let bytes = |matrix: &[f16]| matrix.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<_>>();
    let k = [K as u32, 0].map(u32::to_le_bytes).concat();
    let mut bench = Bench::new().bytes(&bytes(&a)).bytes(&bytes(&b)).room(16 * 32).plain(&k);
    // Two stages of 16 + 32 rows of 24 halves.
    let launch = Launch { grid: [1, 1, 1], block: [128, 1, 1], dynamic_shared: 2 * 48 * 24 * 2 };
    let ptx = ptx.replace("gemm", "k");
    let outcome = bench.run(&ptx, &launch);
    let dot = |row: usize, column: usize| -> f32 {
        let pairs = a[row * K..][..K].iter().zip(&b[column * K..][..K]);
        pairs.map(|(a, b)| a.to_f32() * b.to_f32()).sum()
    };
    let wanted = (0..16 * 32).map(|at| dot(at / 32, at % 32)).collect();
    (outcome, bench.floats(2), wanted)
}

#[test]
fn a_tiled_product_is_right_and_clean() {
    let (outcome, got, wanted) = gemm(include_str!("ptx/gemm.ptx"));
    outcome.unwrap();
    assert_eq!(got, wanted);
}

#[test]
fn a_missing_barrier_is_found_though_the_result_would_be_right() {
    let (outcome, _, _) = gemm(include_str!("ptx/gemm_race.ptx"));
    let error = outcome.unwrap_err().to_string();
    assert!(error.contains("race") || error.contains("asynchronous copy"), "{error}");
}

/// The C functions and SIMD intrinsics of this text, one result each: kernels are made of these.
#[test]
fn the_compilers_mathematics_comes_out_as_the_hosts() {
    const N: usize = 75;
    let mut random = Random(31);
    let x: Vec<f32> = (0..N).map(|n| if n == 0 { 0.0 } else { random.small() * [1.0, 4.0, 0.01][n % 3] }).collect();
    let q: Vec<u32> = (0..N).map(|_| random.next()).collect();
    let eps = 0.37f32;
    let rest = [eps.to_le_bytes(), (N as u32).to_le_bytes()].concat();
    let singles: Vec<u32> = x.iter().map(|x| x.to_bits()).collect();
    let mut bench = Bench::new().words(&singles).room(16 * N).words(&q).room(12 * N).plain(&rest);
    let launch = Launch { grid: [2, 1, 1], block: [64, 1, 1], dynamic_shared: 0 };
    bench.run(include_str!("ptx/math.ptx"), &launch).unwrap();
    let (y, z) = (bench.floats(1), bench.result(3));
    for n in 0..N {
        let wide = f64::from(x[n]);
        let half = |value: f32| f16::from_f32(value);
        let fused = |value: f32| {
            let value = half(value).to_f32();
            half(value.mul_add(value, value)).to_f32()
        };
        let e4m3 = |value: f32| {
            let quantum = f64::from(value.abs()).log2().floor().max(-6.0).exp2() / 8.0;
            (f64::from(value) / quantum).round_ties_even() * quantum
        };
        let wanted: [(f64, f64); 16] = [
            (wide.exp(), 1e-6),
            ((wide.abs() + f64::from(eps)).ln(), 1e-6),
            (wide.tanh(), 1e-6),
            (wide / (1.0 + (-wide).exp()), 1e-6),
            (wide.sin(), 1e-6),
            (1.0 / (wide * wide + f64::from(eps)).sqrt(), 1e-6),
            (f64::from(x[n].abs().sqrt()), 0.0),
            (erf(wide), 1e-6),
            (wide.abs().powf(1.5), 1e-6),
            (half(x[n]).to_f64(), 0.0),
            (f64::from(fused(x[n]) + fused(eps)), 0.0),
            (if x[n] == 0.0 { 0.0 } else { e4m3(x[n]) }, 0.0),
            (f64::from(x[n].round_ties_even()), 0.0),
            (f64::from(x[n] / eps), 0.0),
            (wide.cos(), 1e-6),
            (f64::from(x[n] % eps), 0.0),
        ];
        for (at, (wanted, tolerance)) in wanted.into_iter().enumerate() {
            let got = f64::from(y[16 * n + at]);
            let error = (got - wanted).abs();
            assert!(
                !(error > tolerance * wanted.abs().max(1.0)) && !got.is_nan(),
                "y[{at}] of {wide}: {got}, {wanted}"
            );
        }
        let (q, r) = (q[n], q[(n + 1) % N]);
        let bytes = |f: fn(u8, u8) -> u8| {
            let (q, r) = (q.to_le_bytes(), r.to_le_bytes());
            u32::from_le_bytes(std::array::from_fn(|at| f(q[at], r[at])))
        };
        let dot: i32 =
            (0..4).map(|at| i32::from(q.to_le_bytes()[at] as i8) * i32::from(r.to_le_bytes()[at] as i8)).sum();
        let all: Vec<u8> = [q.to_le_bytes(), r.to_le_bytes()].concat();
        let wanted = [
            (q as i32).wrapping_div(r as i32 | 1) as u32,
            q % (r | 1),
            (dot + n as i32) as u32,
            bytes(|a, b| (a as i8).saturating_sub(b as i8) as u8),
            bytes(|a, b| if a as i8 > b as i8 { 0xff } else { 0 }),
            u32::from_le_bytes([all[7], all[3], all[5], all[2]]),
            ((u64::from(r) << 32 | u64::from(q)) >> (n % 32)) as u32,
            (x[n] * 100.0).round_ties_even() as i32 as u32,
            (i64::from(q as i32) * i64::from(r as i32) / (N as i64 + 3)) as u32,
            bytes(u8::abs_diff),
            q.count_ones() + r.leading_zeros() + if q == 0 { 0 } else { q.trailing_zeros() + 1 },
            bytes(u8::saturating_add),
        ];
        assert_eq!(z[12 * n..12 * n + 12], wanted, "of {q:#x} and {r:#x}");
    }
}

/// The error function by its series, which is exact enough for the arguments here.
fn erf(x: f64) -> f64 {
    let (mut term, mut sum) = (x, x);
    for n in 1..400 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    (sum * 2.0 / std::f64::consts::PI.sqrt()).clamp(-1.0, 1.0)
}
