//! Row-wise kernels and attention: each instruction set by name against f64 arithmetic.

use half::f16;

use super::Isa;
use super::attention::{KV_BLOCK, KvSlice, TILE_QUERIES, TileArgs, TileScratch};
use super::vector::{Activation, NormRow, RopePairs, VectorKernels, rope_head};

/// Lengths around the vector width, and real ones.
const LENGTHS: [usize; 9] = [1, 7, 15, 16, 17, 31, 48, 576, 1000];

/// Deterministic values in `-range..range`.
fn values(seed: u64, len: usize, range: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            ((state >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * range
        })
        .collect()
}

/// Every table that this CPU has; `REQUIRE_ISA` (a comma-separated list of names) turns a missing one into a failure.
fn tables() -> Vec<(&'static str, VectorKernels)> {
    let required = std::env::var("REQUIRE_ISA").unwrap_or_default();
    Isa::ALL
        .into_iter()
        .filter_map(|isa| {
            if !isa.is_available() {
                assert!(!required.split(',').any(|name| name == isa.name()), "{} is required", isa.name());
                println!("SKIP {}: this CPU lacks it", isa.name());
                return None;
            }
            Some((isa.name(), VectorKernels::for_isa(isa)))
        })
        .collect()
}

fn close(name: &str, got: &[f32], expected: &[f64], tolerance: f64) {
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        let ok = error <= tolerance * expected.abs().max(1.0);
        assert!(ok, "{name}[{i}]: {got} instead of {expected}");
    }
}

/// `erf` by its Taylor series (small) or continued complement (large): slow and right.
fn erf(x: f64) -> f64 {
    if x.abs() > 5.0 {
        return x.signum();
    }
    let (mut term, mut sum) = (x, x);
    for n in 1..200 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

fn reference(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / 2f64.sqrt())),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Activation::Relu => x.max(0.0),
    }
}

#[test]
fn activations_match_their_definition() {
    for (isa, kernels) in tables() {
        for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            for range in [0.01, 4.0, 100.0] {
                for len in LENGTHS {
                    let x = values(len as u64, len, range);
                    let up = values(len as u64 + 1, len, 2.0);
                    let mut out = vec![f32::NAN; len];
                    kernels.activation(act, &x, &mut out);
                    let expected: Vec<f64> = x.iter().map(|&x| reference(act, f64::from(x))).collect();
                    close(&format!("{isa} {act:?}"), &out, &expected, 1e-6);

                    let mut gate = x.clone();
                    kernels.glu(act, &mut gate, &up);
                    let product: Vec<f64> = expected.iter().zip(&up).map(|(a, &b)| a * f64::from(b)).collect();
                    close(&format!("{isa} {act:?} glu"), &gate, &product, 2e-6);
                }
            }
        }
    }
}

#[test]
fn norms_match_their_definition() {
    for (isa, kernels) in tables() {
        for len in LENGTHS {
            for centre in [false, true] {
                let x: Vec<f32> = values(3, len, 3.0).iter().map(|x| x + 0.7).collect();
                let (weight, bias) = (values(4, len, 1.5), values(5, len, 0.5));
                let row = NormRow { centre, eps: 1e-5, weight: Some(&weight), bias: Some(&bias) };
                let mut out = vec![f32::NAN; len];
                kernels.norm(&row, &x, &mut out);
                let n = len as f64;
                let mean = if centre { x.iter().map(|&x| f64::from(x)).sum::<f64>() / n } else { 0.0 };
                let square = x.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
                let expected: Vec<f64> = (0..len)
                    .map(|i| {
                        (f64::from(x[i]) - mean) / (square + 1e-5).sqrt() * f64::from(weight[i]) + f64::from(bias[i])
                    })
                    .collect();
                close(&format!("{isa} norm"), &out, &expected, if len == 1 { 1e-3 } else { 1e-5 });
            }
        }
    }
}

#[test]
fn sums_scales_and_softcaps_match_their_definition() {
    for (isa, kernels) in tables() {
        for len in LENGTHS {
            let (a, b) = (values(6, len, 80.0), values(7, len, 5.0));
            let f64s = |v: &[f32], f: &dyn Fn(f64) -> f64| v.iter().map(|&x| f(f64::from(x))).collect::<Vec<_>>();
            let mut sum = a.clone();
            kernels.add(&mut sum, &b);
            let expected: Vec<f64> = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) + f64::from(b)).collect();
            close(isa, &sum, &expected, 1e-6);
            let mut out = vec![f32::NAN; len];
            kernels.scale(-1.25, &a, &mut out);
            close(isa, &out, &f64s(&a, &|x| x * -1.25), 1e-6);
            kernels.softcap(30.0, &a, &mut out);
            close(isa, &out, &f64s(&a, &|x| 30.0 * (x / 30.0).tanh()), 2e-6);
        }
    }
}

#[test]
fn rope_rotates_pairs_and_leaves_the_rest() {
    let (cos, sin) = ([0.6, 0.8], [0.8, -0.6]);
    let head = [1.0, 2.0, 3.0, 4.0, 5.0];
    let mut halves = head;
    rope_head(RopePairs::Halves, &cos, &sin, &mut halves);
    close("halves", &halves, &[0.6 - 2.4, 1.6 + 2.4, 0.8 + 1.8, -1.2 + 3.2, 5.0], 1e-6);
    let mut adjacent = head;
    rope_head(RopePairs::Adjacent, &cos, &sin, &mut adjacent);
    close("adjacent", &adjacent, &[0.6 - 1.6, 0.8 + 1.2, 2.4 + 2.4, -1.8 + 3.2, 5.0], 1e-6);
}

/// A cache with one sequence scattered over its blocks.
struct Cache {
    num_kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    table: Vec<u32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Cache {
    fn new(num_kv_heads: usize, k_dim: usize, v_dim: usize, num_blocks: usize) -> Self {
        let len = |dim: usize| num_blocks * num_kv_heads * dim * KV_BLOCK;
        // Rounded to half precision, so that both element types hold the same.
        let round = |v: Vec<f32>| v.into_iter().map(|x| f16::from_f32(x).to_f32()).collect();
        Self {
            num_kv_heads,
            k_dim,
            v_dim,
            table: (0..num_blocks as u32).rev().collect(),
            k: round(values(11, len(k_dim), 1.0)),
            v: round(values(12, len(v_dim), 2.0)),
        }
    }

    fn expected(&self, args: &TileArgs<'_>) -> Vec<f64> {
        let mut out = Vec::new();
        for (q, seen) in args.queries {
            let index = |p: usize| self.table[p / KV_BLOCK] as usize * self.num_kv_heads + args.kv_head;
            let scores: Vec<f64> = seen
                .clone()
                .map(|p| {
                    let base = index(p) * self.k_dim * KV_BLOCK + p % KV_BLOCK;
                    let dot: f64 =
                        (0..self.k_dim).map(|d| f64::from(q[d]) * f64::from(self.k[base + d * KV_BLOCK])).sum();
                    let score = dot * f64::from(args.scale);
                    args.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum: f64 = weights.iter().sum();
            for d in 0..self.v_dim {
                let value = |p: usize| f64::from(self.v[(index(p) * KV_BLOCK + p % KV_BLOCK) * self.v_dim + d]);
                out.push(seen.clone().zip(&weights).map(|(p, w)| w * value(p)).sum::<f64>() / sum);
            }
        }
        out
    }
}

#[test]
fn attention_tiles_match_plain_softmax() {
    for (isa, kernels) in tables() {
        for (k_dim, v_dim) in [(64, 64), (16, 16), (24, 24), (72, 40), (128, 256)] {
            let cache = Cache::new(2, k_dim, v_dim, 5);
            let halves = |v: &[f32]| v.iter().map(|&x| f16::from_f32(x)).collect::<Vec<_>>();
            let (k16, v16) = (halves(&cache.k), halves(&cache.v));
            let queries = values(13, TILE_QUERIES * k_dim, 1.0);
            let mut scratch = TileScratch::new(k_dim.max(v_dim));
            // Ranges at block edges, inside one block, over all, and windows that skip whole blocks.
            let ranges = [0..1, 0..160, 31..33, 5..9, 96..128, 40..97, 128..160, 159..160];
            for count in 1..=TILE_QUERIES {
                for shift in 0..ranges.len() {
                    for (softcap, kv_head) in [(None, 0), (Some(2.0), 1)] {
                        let tile: Vec<_> = (0..count)
                            .map(|n| (&queries[n * k_dim..][..k_dim], ranges[(n + shift) % ranges.len()].clone()))
                            .collect();
                        let mut args = TileArgs {
                            queries: &tile,
                            k: KvSlice::F32(&cache.k),
                            v: KvSlice::F32(&cache.v),
                            table: &cache.table,
                            num_kv_heads: 2,
                            kv_head,
                            k_dim,
                            v_dim,
                            scale: 0.7,
                            softcap,
                        };
                        let expected = cache.expected(&args);
                        let mut out = vec![f32::NAN; count * v_dim];
                        kernels.attention_tile(&args, &mut scratch, &mut out);
                        close(&format!("{isa} f32"), &out, &expected, 2e-5);
                        (args.k, args.v) = (KvSlice::F16(&k16), KvSlice::F16(&v16));
                        out.fill(f32::NAN);
                        kernels.attention_tile(&args, &mut scratch, &mut out);
                        close(&format!("{isa} f16"), &out, &expected, 2e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn attention_ignores_what_nobody_sees() {
    for (isa, kernels) in tables() {
        let mut cache = Cache::new(1, 16, 16, 2);
        let query = values(1, 16, 1.0);
        let tile = [(&query[..], 3..20)];
        let table = cache.table.clone();
        let run = |cache: &Cache| {
            let args = TileArgs {
                queries: &tile,
                k: KvSlice::F32(&cache.k),
                v: KvSlice::F32(&cache.v),
                table: &table,
                num_kv_heads: 1,
                kv_head: 0,
                k_dim: 16,
                v_dim: 16,
                scale: 1.0,
                softcap: None,
            };
            let mut out = vec![0.0; 16];
            kernels.attention_tile(&args, &mut TileScratch::new(16), &mut out);
            out
        };
        let clean = run(&cache);
        let block = table[0] as usize * 16 * KV_BLOCK;
        for position in (0..3).chain(20..KV_BLOCK) {
            for d in 0..16 {
                cache.k[block + d * KV_BLOCK + position] = f32::NAN;
                cache.v[block + position * 16 + d] = f32::NAN;
            }
        }
        assert_eq!(run(&cache), clean, "{isa}");
    }
}
