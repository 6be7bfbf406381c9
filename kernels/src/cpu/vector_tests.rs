//! Row-wise kernels and attention: each instruction set by name against f64 arithmetic.

use std::ops::Range;

use super::attention::{KV_BLOCK, TILE_QUERIES, TileArgs, TileScratch, merge_parts};
use super::kv::{KvType, KvTypes};
use super::vector::{Activation, NormRow, QuantizedLanes, RopePairs, VectorKernels};
use super::{ACT_GROUP, CpuKernels, Isa, PACK_ROWS};

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
    for (isa, kernels) in tables() {
        let mut halves = head;
        kernels.rope(RopePairs::Halves, &cos, &sin, &mut halves);
        close(isa, &halves, &[0.6 - 2.4, 1.6 + 2.4, 0.8 + 1.8, -1.2 + 3.2, 5.0], 1e-6);
        let mut adjacent = head;
        kernels.rope(RopePairs::Adjacent, &cos, &sin, &mut adjacent);
        close(isa, &adjacent, &[0.6 - 1.6, 0.8 + 1.2, 2.4 + 2.4, -1.8 + 3.2, 5.0], 1e-6);
        for len in [2, 14, 30, 64, 80, 128, 256] {
            let (head, angles) = (values(len as u64, len, 3.0), values(9, len / 2, 3.0));
            let (cos, sin): (Vec<f32>, Vec<f32>) = angles.iter().map(|x| (x.cos(), x.sin())).unzip();
            for pairs in [RopePairs::Halves, RopePairs::Adjacent] {
                let mut expected = vec![0.0; len];
                for i in 0..len / 2 {
                    let [a, b] = if pairs == RopePairs::Halves { [i, i + len / 2] } else { [2 * i, 2 * i + 1] };
                    let [x, y, c, s] = [head[a], head[b], cos[i], sin[i]].map(f64::from);
                    (expected[a], expected[b]) = (x * c - y * s, x * s + y * c);
                }
                let mut got = head.clone();
                kernels.rope(pairs, &cos, &sin, &mut got);
                close(isa, &got, &expected, 1e-6);
            }
        }
    }
}

/// One sequence scattered over the blocks of a cache.
struct Cache {
    kv: KvTypes,
    num_kv_heads: usize,
    k_dim: usize,
    v_dim: usize,
    table: Vec<u32>,
    /// What was stored, as the cache gives it back: `[positions][num_kv_heads][dim]`.
    keys: Vec<f32>,
    values: Vec<f32>,
    /// The cache itself, in words for their alignment.
    k: Vec<u64>,
    v: Vec<u64>,
}

impl Cache {
    fn new(kv: KvTypes, num_kv_heads: usize, k_dim: usize, v_dim: usize, num_blocks: usize) -> Self {
        let positions = num_blocks * KV_BLOCK;
        let words = |kv: KvType, dim: usize| vec![0u64; num_blocks * num_kv_heads * kv.block_bytes(dim) / 8];
        let mut cache = Self {
            kv,
            num_kv_heads,
            k_dim,
            v_dim,
            table: (0..num_blocks as u32).rev().collect(),
            keys: values(11, positions * num_kv_heads * k_dim, 1.0),
            values: values(12, positions * num_kv_heads * v_dim, 2.0),
            k: words(kv.k, k_dim),
            v: words(kv.v, v_dim),
        };
        for position in 0..positions {
            cache.store(position);
        }
        cache.keys.chunks_exact_mut(k_dim).for_each(|head| kv.k.round(head));
        cache.values.chunks_exact_mut(v_dim).for_each(|head| kv.v.round(head));
        cache
    }

    /// Writes a position of all heads to the cache.
    fn store(&mut self, position: usize) {
        for head in 0..self.num_kv_heads {
            let row = position * self.num_kv_heads + head;
            let index = self.table[position / KV_BLOCK] as usize * self.num_kv_heads + head;
            let (k_bytes, v_bytes) = (self.kv.k.block_bytes(self.k_dim), self.kv.v.block_bytes(self.v_dim));
            let k = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.k)[index * k_bytes..][..k_bytes];
            let v = &mut bytemuck::cast_slice_mut::<u64, u8>(&mut self.v)[index * v_bytes..][..v_bytes];
            let slot = position % KV_BLOCK;
            // SAFETY: whole blocks, borrowed mutably.
            unsafe {
                self.kv.k.store_key(k.as_mut_ptr(), slot, &self.keys[row * self.k_dim..][..self.k_dim]);
                self.kv.v.store_value(v.as_mut_ptr(), slot, &self.values[row * self.v_dim..][..self.v_dim]);
            }
        }
    }

    fn args<'a>(&'a self, queries: &'a [(&'a [f32], Range<usize>)], kv_head: usize) -> TileArgs<'a> {
        TileArgs {
            queries,
            kv: self.kv,
            k: bytemuck::cast_slice(&self.k),
            v: bytemuck::cast_slice(&self.v),
            table: &self.table,
            num_kv_heads: self.num_kv_heads,
            kv_head,
            k_dim: self.k_dim,
            v_dim: self.v_dim,
            scale: 0.7,
            softcap: None,
        }
    }

    fn expected(&self, args: &TileArgs<'_>, sink: Option<f32>) -> Vec<f64> {
        let mut out = Vec::new();
        for (q, seen) in args.queries {
            let row = |p: usize| p * self.num_kv_heads + args.kv_head;
            let scores: Vec<f64> = seen
                .clone()
                .map(|p| {
                    let key = &self.keys[row(p) * self.k_dim..][..self.k_dim];
                    let dot: f64 = q.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let score = dot * f64::from(args.scale);
                    args.softcap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                })
                .collect();
            let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
            let max = scores.iter().copied().fold(sink, f64::max);
            let weights: Vec<f64> = scores.iter().map(|s| (s - max).exp()).collect();
            let sum = weights.iter().sum::<f64>() + (sink - max).exp();
            for d in 0..self.v_dim {
                let value = |p: usize| f64::from(self.values[row(p) * self.v_dim + d]);
                out.push(seen.clone().zip(&weights).map(|(p, w)| w * value(p)).sum::<f64>() / sum);
            }
        }
        out
    }
}

/// All results of a tile.
fn attend(kernels: &VectorKernels, args: &TileArgs<'_>, scratch: &mut TileScratch, sink: Option<f32>) -> Vec<f32> {
    kernels.attention_tile(args, scratch);
    finish(kernels, args, scratch, sink)
}

/// The same with rounded products.
fn attend_rounded(kernels: &VectorKernels, args: &TileArgs<'_>, sink: Option<f32>) -> Vec<f32> {
    let mut scratch = TileScratch::new(args.k_dim.max(args.v_dim));
    kernels.attention_tile_rounded(args, &mut scratch);
    finish(kernels, args, &scratch, sink)
}

fn finish(kernels: &VectorKernels, args: &TileArgs<'_>, scratch: &TileScratch, sink: Option<f32>) -> Vec<f32> {
    let mut out = vec![f32::NAN; args.queries.len() * args.v_dim];
    for (n, out) in out.chunks_exact_mut(args.v_dim).enumerate() {
        kernels.finish_attention(scratch, n, sink, out);
    }
    out
}

/// Ranges at block edges, inside one block, over all, and windows that skip whole blocks.
const RANGES: [Range<usize>; 8] = [0..1, 0..160, 31..33, 5..9, 96..128, 40..97, 128..160, 159..160];

/// Every type with itself, and every one with another as keys and as values.
fn kv_types() -> impl Iterator<Item = KvTypes> {
    let next = |i: usize| KvType::ALL[(i + 1) % KvType::ALL.len()];
    KvType::ALL.into_iter().enumerate().flat_map(move |(i, k)| [k.into(), KvTypes { k, v: next(i) }])
}

#[test]
fn attention_tiles_match_plain_softmax() {
    for (isa, kernels) in tables() {
        for (k_dim, v_dim) in [(64, 64), (32, 32), (24, 24), (72, 40), (128, 256), (96, 64)] {
            for kv in kv_types().filter(|kv| kv.fits(k_dim, v_dim)) {
                let cache = Cache::new(kv, 2, k_dim, v_dim, 5);
                let queries = values(13, TILE_QUERIES * k_dim, 1.0);
                let mut scratch = TileScratch::new(k_dim.max(v_dim));
                // Every size of a group of queries, and several groups.
                for count in (1..=13).chain([23, TILE_QUERIES - 1, TILE_QUERIES]) {
                    for shift in (count % 2..RANGES.len()).step_by(2) {
                        let tile: Vec<_> = (0..count)
                            .map(|n| (&queries[n * k_dim..][..k_dim], RANGES[(n + shift) % RANGES.len()].clone()))
                            .collect();
                        let mut args = cache.args(&tile, shift % 2);
                        args.softcap = (shift % 3 == 0).then_some(2.0);
                        let sink = (shift % 4 > 1).then_some(shift as f32 - 3.0);
                        let got = attend(&kernels, &args, &mut scratch, sink);
                        close(&format!("{isa} {kv}"), &got, &cache.expected(&args, sink), 2e-5);
                    }
                }
            }
        }
    }
}

#[test]
fn parts_of_a_context_join_to_the_whole() {
    for (isa, kernels) in tables() {
        let cache = Cache::new(KvType::F16.into(), 1, 32, 48, 5);
        let queries = values(13, 3 * 32, 4.0);
        let mut scratch = TileScratch::new(48);
        let tile = |part: Range<usize>| -> Vec<(&[f32], Range<usize>)> {
            let within = |seen: Range<usize>| seen.start.max(part.start)..seen.end.min(part.end);
            // The second sees nothing of the first and last part.
            [0..160, 70..80, 3..150].into_iter().zip(queries.chunks(32)).map(|(seen, q)| (q, within(seen))).collect()
        };
        let stride = 48 + 2;
        let mut parts = vec![f32::NAN; 3 * 3 * stride];
        for (index, part) in [0..64, 64..128, 128..160].into_iter().enumerate() {
            kernels.attention_tile(&cache.args(&tile(part), 0), &mut scratch);
            for n in 0..3 {
                scratch.store_part(n, &mut parts[(n * 3 + index) * stride..][..stride]);
            }
        }
        for sink in [None, Some(2.5)] {
            let mut out = vec![f32::NAN; 3 * 48];
            for (out, parts) in out.chunks_exact_mut(48).zip(parts.chunks_exact(3 * stride)) {
                merge_parts(parts, stride, sink, out);
            }
            let whole = tile(0..160);
            close(isa, &out, &cache.expected(&cache.args(&whole, 0), sink), 2e-5);
        }
    }
}

#[test]
fn attention_ignores_what_nobody_sees() {
    for (isa, kernels) in tables() {
        let mut cache = Cache::new(KvType::F32.into(), 1, 16, 16, 2);
        let query = values(1, 16, 1.0);
        let tile = [(&query[..], 3..20)];
        let clean = attend(&kernels, &cache.args(&tile, 0), &mut TileScratch::new(16), None);
        for position in (0..3).chain(20..KV_BLOCK) {
            cache.keys[position * 16..][..16].fill(f32::NAN);
            cache.values[position * 16..][..16].fill(f32::NAN);
            cache.store(position);
        }
        let got = attend(&kernels, &cache.args(&tile, 0), &mut TileScratch::new(16), None);
        assert_eq!(got, clean, "{isa}");
    }
}

/// Tables that round attention, one with the instructions emulated.
fn rounding_tables() -> Vec<(&'static str, VectorKernels)> {
    let mut tables = tables();
    tables.retain(|(_, table)| table.rounds_attention());
    let mut emulated = VectorKernels::for_isa(Isa::Scalar);
    emulated.attention_tile_rounded = Some(super::vector::attention_tile_emulated);
    tables.push(("emulated", emulated));
    tables
}

fn bf16(x: f32) -> f32 {
    half::bf16::from_f32(x).to_f32()
}

/// Queries (times the scale in units of ln 2), keys and values are those that were rounded, and each weight is within half a step.
#[test]
fn rounded_attention_is_that_of_rounded_factors() {
    for (isa, kernels) in rounding_tables() {
        for (k_dim, v_dim) in [(64, 64), (24, 48), (128, 256), (256, 16), (96, 64)] {
            for kv in kv_types().filter(|kv| kv.fits(k_dim, v_dim) && ![kv.k, kv.v].contains(&KvType::F32)) {
                let mut cache = Cache::new(kv, 2, k_dim, v_dim, 5);
                for x in cache.keys.iter_mut().chain(&mut cache.values) {
                    *x = bf16(*x);
                }
                let queries = values(13, TILE_QUERIES * k_dim, 1.0);
                for count in [1, 2, 5, 12, 13, TILE_QUERIES] {
                    for shift in 0..RANGES.len() {
                        let tile: Vec<_> = (0..count)
                            .map(|n| (&queries[n * k_dim..][..k_dim], RANGES[(n + shift) % RANGES.len()].clone()))
                            .collect();
                        let mut args = cache.args(&tile, shift % 2);
                        args.softcap = (shift % 3 == 0).then_some(2.0);
                        let sink = (shift % 4 > 1).then_some(shift as f32 - 3.0);
                        let got = attend_rounded(&kernels, &args, sink);

                        let unit = if args.softcap.is_some() { 1.0 } else { std::f32::consts::LOG2_E };
                        let factor = args.scale * unit;
                        let rounded: Vec<f32> = queries.iter().map(|x| bf16(x * factor) / factor).collect();
                        let tile: Vec<_> =
                            tile.iter().zip(rounded.chunks(k_dim)).map(|((_, seen), q)| (q, seen.clone())).collect();
                        let expected = cache.expected(&TileArgs { queries: &tile, ..args }, sink);
                        // Half a step of 8 bits, of values up to 2.
                        for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
                            let error = (f64::from(*got) - expected).abs();
                            assert!(error <= 2.0 / 256.0, "{isa} {kv} [{i}]: {got} instead of {expected}");
                        }
                    }
                }
            }
        }
    }
}

/// Rounding errs both ways: over many queries little is left of it.
#[test]
fn rounded_attention_stays_close() {
    for (isa, kernels) in rounding_tables() {
        let cache = Cache::new(KvType::F16.into(), 1, 64, 64, 5);
        let queries = values(17, TILE_QUERIES * 64, 1.0);
        let tile: Vec<_> = queries.chunks(64).map(|q| (q, 0..150)).collect();
        let args = cache.args(&tile, 0);
        let expected = cache.expected(&args, None);
        let errors: f64 = attend_rounded(&kernels, &args, None)
            .iter()
            .zip(&expected)
            .map(|(got, expected)| (f64::from(*got) - expected).powi(2))
            .sum();
        let all: f64 = expected.iter().map(|x| x * x).sum();
        let relative = (errors / all).sqrt();
        println!("{isa}: {relative:.5}");
        assert!(relative < 0.006, "{isa}: {relative}");
    }
}

#[test]
fn a_rounded_query_does_not_depend_on_the_others() {
    for (isa, kernels) in rounding_tables() {
        let cache = Cache::new(KvType::F16.into(), 1, 64, 32, 5);
        let queries = values(19, 40 * 64, 1.0);
        let tile: Vec<_> = queries.chunks(64).zip(0..).map(|(q, n)| (q, n / 3..n * 3 + 2)).collect();
        let all = attend_rounded(&kernels, &cache.args(&tile, 0), None);
        for (n, expected) in all.chunks(32).enumerate() {
            assert_eq!(attend_rounded(&kernels, &cache.args(&tile[n..n + 1], 0), None), expected, "{isa} {n}");
        }
    }
}

#[test]
fn rounded_attention_ignores_what_nobody_sees() {
    for (isa, kernels) in rounding_tables() {
        for seen in [3..20, 4..20, 3..21, 2..32] {
            let mut cache = Cache::new(KvType::F16.into(), 1, 16, 16, 2);
            let query = values(1, 16, 1.0);
            let tile = [(&query[..], seen.clone())];
            let clean = attend_rounded(&kernels, &cache.args(&tile, 0), None);
            for position in (0..seen.start).chain(seen.end..KV_BLOCK) {
                cache.keys[position * 16..][..16].fill(f32::NAN);
                cache.values[position * 16..][..16].fill(f32::NAN);
                cache.store(position);
            }
            assert_eq!(attend_rounded(&kernels, &cache.args(&tile, 0), None), clean, "{isa} {seen:?}");
        }
    }
}

/// An f32 cache promises more than 8 bits, and heads that aren't whole pairs and vectors have no kernel; nor has the exact mode.
#[test]
fn what_must_not_be_rounded_is_not() {
    for (isa, kernels) in rounding_tables() {
        let exact = kernels.without_bf16();
        for (kv, k_dim, v_dim, rounds) in [
            (KvType::F16.into(), 32, 32, true),
            (KvTypes { k: KvType::F32, v: KvType::F16 }, 32, 32, false),
            (KvTypes { k: KvType::F16, v: KvType::F32 }, 32, 32, false),
            (KvType::F16.into(), 32, 24, false),
            (KvType::F16.into(), 33, 32, false),
        ] {
            let cache = Cache::new(kv, 1, k_dim, v_dim, 2);
            let query = values(23, k_dim, 1.0);
            let tile = [(&query[..], 0..40)];
            let args = cache.args(&tile, 0);
            let expected = attend(&kernels, &args, &mut TileScratch::new(64), None);
            assert_eq!(attend_rounded(&kernels, &args, None) != expected, rounds, "{isa} {kv} {k_dim} {v_dim}");
            assert_eq!(attend_rounded(&exact, &args, None), expected, "{isa} {kv}");
        }
    }
}

#[test]
fn cached_elements_stay_within_a_step_of_their_type() {
    for range in [1e-6, 1.0, 300.0, 1e6] {
        let exact = values(3, 256, range);
        // The largest half precision number bounds what f16 and the scales can hold.
        for (kv, step, largest) in [
            (KvType::F32, 0.0, f32::MAX),
            (KvType::F16, 1.0 / 1024.0, 65504.0),
            (KvType::Q8_0, 0.51 / 127.0, f32::MAX),
            (KvType::Q4_0, 1.01 / 8.0, 5e5),
        ] {
            let mut rounded = exact.clone();
            kv.round(&mut rounded);
            for (group, rounded) in exact.chunks(32).zip(rounded.chunks(32)) {
                let most = group.iter().fold(0.0f32, |most, x| most.max(x.abs()));
                for (x, got) in group.iter().zip(rounded) {
                    let x = x.clamp(-largest, largest);
                    // Below the smallest half precision number everything is 0.
                    let bound = step * most + if kv == KvType::F32 { 0.0 } else { 127.0 * 6e-8 };
                    assert!((x - got).abs() <= bound, "{kv:?}: {x} became {got}, largest {most}");
                }
            }
        }
    }
    for kv in KvType::ALL {
        let mut odd = [f32::INFINITY, f32::NEG_INFINITY, 0.0, 1.0].repeat(16);
        kv.round(&mut odd);
        assert!(kv == KvType::F32 || odd.iter().all(|x| x.is_finite()), "{kv:?}: {odd:?}");
        let mut zeros = [0.0; 32];
        kv.round(&mut zeros);
        assert_eq!(zeros, [0.0; 32]);
    }
}

/// Lanes are quantised as rows are, to the last bit, but for the scale of what isn't finite.
#[test]
fn quantized_lanes_are_quantized_rows() {
    for isa in Isa::ALL.into_iter().filter(|isa| isa.is_available()) {
        let (Some(kernels), vectors) = (CpuKernels::for_isa(isa), VectorKernels::for_isa(isa)) else { continue };
        for (seed, range) in [1e-38, 3.7e-37, 1e-3, 1.0, 250.0, 3e38].into_iter().enumerate() {
            let mut rows = values(seed as u64, PACK_ROWS * ACT_GROUP, range);
            rows[..ACT_GROUP].fill(0.0);
            rows[ACT_GROUP..2 * ACT_GROUP].fill(-0.0);
            // Halves of a unit, to be rounded to even.
            rows[2 * ACT_GROUP..3 * ACT_GROUP].iter_mut().zip(0..).for_each(|(x, i)| *x = 0.5 * (i - 16) as f32);
            rows[2 * ACT_GROUP] = 127.0;
            rows[5 * ACT_GROUP + 3] = f32::NAN;
            rows[7 * ACT_GROUP + 31] = f32::NEG_INFINITY;
            let lanes = std::array::from_fn(|c| std::array::from_fn(|r| rows[r * ACT_GROUP + c]));
            let (mut q, mut d, mut sums) = ([[[77; 4]; PACK_ROWS]; 8], [7.0; PACK_ROWS], [[777; 2]; PACK_ROWS]);
            vectors.quantize_lanes(&lanes, QuantizedLanes { q: &mut q, d: &mut d, sums: &mut sums });
            for (r, row) in rows.chunks_exact(ACT_GROUP).enumerate() {
                let (mut row_q, mut row_d, mut row_sums) = ([0; ACT_GROUP], [0.0], [0; 2]);
                kernels.quantize_act_row(row, &mut row_q, &mut row_d, &mut row_sums);
                if row_d[0].is_finite() {
                    let got: Vec<i8> = q.iter().flat_map(|quad| quad[r]).collect();
                    let name = isa.name();
                    assert_eq!(
                        (got.as_slice(), d[r].to_bits(), sums[r]),
                        (&row_q[..], row_d[0].to_bits(), row_sums),
                        "{name} row {r}"
                    );
                } else {
                    assert!(d[r].is_nan() && (r == 5 || r == 7), "{} row {r}: {}", isa.name(), d[r]);
                }
            }
        }
    }
}
