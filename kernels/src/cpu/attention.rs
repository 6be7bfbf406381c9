//! Attention of a few queries over a paged KV cache: one pass, online softmax (Milakov & Gimelshein 2018; Dao et al. 2022).
//!
//! Layout of a block of [`KV_BLOCK`] tokens of one KV head: keys transposed `[k_dim][KV_BLOCK]`, values `[KV_BLOCK][v_dim]`.
//! So the scores of a block are two vectors that grow by one fused multiply-add an element of the head, with no
//! horizontal sums, and the weighted values need none either. Up to [`TILE_QUERIES`] queries share every load of K and V.

use half::f16;

use super::math::{exp, tanh};
use super::simd::{LANES, Lanes};

/// Tokens in a block of the cache.
pub const KV_BLOCK: usize = 32;

/// Queries that one tile works on.
pub const TILE_QUERIES: usize = 4;

/// The keys or the values of one layer.
#[derive(Debug, Clone, Copy)]
pub enum KvSlice<'a> {
    /// Half precision.
    F16(&'a [f16]),
    /// Single precision.
    F32(&'a [f32]),
}

impl KvSlice<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F16(s) => s.len(),
            Self::F32(s) => s.len(),
        }
    }
}

/// One tile's work: `queries.len()` queries of one KV head of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct TileArgs<'a> {
    /// Each `[k_dim]`, with the range of positions that it sees (not empty).
    pub queries: &'a [(&'a [f32], std::ops::Range<usize>)],
    /// All blocks of the layer's keys: `[num_blocks][num_kv_heads][k_dim][KV_BLOCK]`.
    pub k: KvSlice<'a>,
    /// All blocks of the layer's values: `[num_blocks][num_kv_heads][KV_BLOCK][v_dim]`.
    pub v: KvSlice<'a>,
    /// Position `p` is in block `table[p / KV_BLOCK]`.
    pub table: &'a [u32],
    /// KV heads of the layer.
    pub num_kv_heads: usize,
    /// Which of them.
    pub kv_head: usize,
    /// Elements of a key.
    pub k_dim: usize,
    /// Elements of a value.
    pub v_dim: usize,
    /// Factor on the scores.
    pub scale: f32,
    /// `cap · tanh(score / cap)`.
    pub softcap: Option<f32>,
}

impl TileArgs<'_> {
    /// Panics where a slice doesn't hold what the tile will read.
    pub(super) fn check(&self, out_len: usize) {
        assert!(self.queries.len() <= TILE_QUERIES && self.kv_head < self.num_kv_heads, "attention: too many queries");
        assert_eq!(out_len, self.queries.len() * self.v_dim, "attention: output length");
        for (q, seen) in self.queries {
            assert_eq!(q.len(), self.k_dim, "attention: query length");
            assert!(seen.start < seen.end && seen.end <= self.table.len() * KV_BLOCK, "attention: positions");
        }
    }
}

/// Reused between tiles; one a worker.
#[derive(Debug, Clone)]
pub struct TileScratch {
    /// Scores, then weights, of a block.
    weights: [[f32; KV_BLOCK]; TILE_QUERIES],
    /// A block's keys or values in f32, `[k_dim][KV_BLOCK]` or `[KV_BLOCK][v_dim]`.
    block: Vec<f32>,
}

impl TileScratch {
    /// For heads of at most `max_dim` elements.
    pub fn new(max_dim: usize) -> Self {
        Self { weights: [[0.0; KV_BLOCK]; TILE_QUERIES], block: vec![0.0; max_dim * KV_BLOCK] }
    }
}

/// Widens a block to f32 (or copies it): the conversion is paid once for all queries of the tile.
#[inline(always)]
fn widen<L: Lanes>(l: L, from: KvSlice<'_>, start: usize, to: &mut [f32]) {
    match from {
        KvSlice::F32(s) => to.copy_from_slice(&s[start..start + to.len()]),
        KvSlice::F16(s) => {
            let (chunks, tail) = s[start..start + to.len()].as_chunks::<LANES>();
            let (outs, out_tail) = to.as_chunks_mut::<LANES>();
            for (x, out) in chunks.iter().zip(outs) {
                l.store(l.load_f16(x), out);
            }
            for (x, out) in tail.iter().zip(out_tail) {
                *out = x.to_f32();
            }
        }
    }
}

/// `N` queries against one block: raw scores.
#[inline(always)]
fn scores<L: Lanes, const N: usize>(
    l: L,
    args: &TileArgs<'_>,
    first: usize,
    keys: &[f32],
    out: &mut [[f32; KV_BLOCK]; TILE_QUERIES],
) {
    let mut acc = [[l.splat(0.0); 2]; N];
    let queries: [&[f32]; N] = std::array::from_fn(|i| &args.queries[first + i].0[..args.k_dim]);
    for (d, key) in keys.as_chunks::<KV_BLOCK>().0[..args.k_dim].iter().enumerate() {
        let (halves, _) = key.as_chunks::<LANES>();
        let k = [l.load(&halves[0]), l.load(&halves[1])];
        for (acc, q) in acc.iter_mut().zip(&queries) {
            let q = l.splat(q[d]);
            acc[0] = l.fma(q, k[0], acc[0]);
            acc[1] = l.fma(q, k[1], acc[1]);
        }
    }
    for (acc, out) in acc.iter().zip(&mut out[first..]) {
        let (halves, _) = out.as_chunks_mut::<LANES>();
        l.store(acc[0], &mut halves[0]);
        l.store(acc[1], &mut halves[1]);
    }
}

/// `out[n] += Σ_t weights[n][t] · values[t]` over `tokens`, 64 columns at a time.
#[inline(always)]
fn accumulate<L: Lanes, const N: usize>(
    l: L,
    v_dim: usize,
    first: usize,
    values: &[f32],
    tokens: std::ops::Range<usize>,
    weights: &[[f32; KV_BLOCK]; TILE_QUERIES],
    out: &mut [f32],
) {
    const COLUMNS: usize = 4 * LANES;
    let mut column = 0;
    while column + COLUMNS <= v_dim {
        let mut acc = [[l.splat(0.0); 4]; N];
        for (n, acc) in acc.iter_mut().enumerate() {
            let row = &out[(first + n) * v_dim + column..][..COLUMNS];
            for (acc, x) in acc.iter_mut().zip(row.as_chunks::<LANES>().0) {
                *acc = l.load(x);
            }
        }
        for t in tokens.clone() {
            let (v, _) = values[t * v_dim + column..][..COLUMNS].as_chunks::<LANES>();
            let v = [l.load(&v[0]), l.load(&v[1]), l.load(&v[2]), l.load(&v[3])];
            for (n, acc) in acc.iter_mut().enumerate() {
                let w = l.splat(weights[first + n][t]);
                for (acc, v) in acc.iter_mut().zip(v) {
                    *acc = l.fma(w, v, *acc);
                }
            }
        }
        for (n, acc) in acc.iter().enumerate() {
            let row = &mut out[(first + n) * v_dim + column..][..COLUMNS];
            for (acc, x) in acc.iter().zip(row.as_chunks_mut::<LANES>().0) {
                l.store(*acc, x);
            }
        }
        column += COLUMNS;
    }
    while column + LANES <= v_dim {
        for n in 0..N {
            let row = &mut out[(first + n) * v_dim + column..].as_chunks_mut::<LANES>().0[0];
            let mut acc = l.load(row);
            for t in tokens.clone() {
                let v = l.load(&values[t * v_dim + column..].as_chunks::<LANES>().0[0]);
                acc = l.fma(l.splat(weights[first + n][t]), v, acc);
            }
            l.store(acc, row);
        }
        column += LANES;
    }
    for n in 0..N {
        for c in column..v_dim {
            for t in tokens.clone() {
                out[(first + n) * v_dim + c] += weights[first + n][t] * values[t * v_dim + c];
            }
        }
    }
}

/// The tile. `out[n] = softmax(scale · q_n · Kᵀ) · V` over the positions that query `n` sees.
#[inline(always)]
pub(super) fn tile<L: Lanes>(l: L, args: &TileArgs<'_>, scratch: &mut TileScratch, out: &mut [f32]) {
    let num_queries = args.queries.len();
    let Some(start) = args.queries.iter().map(|(_, seen)| seen.start).min() else { return };
    let end = args.queries.iter().map(|(_, seen)| seen.end).max().unwrap_or(start);
    let k_stride = args.k_dim * KV_BLOCK;
    let v_stride = args.v_dim * KV_BLOCK;
    assert!(scratch.block.len() >= k_stride.max(v_stride), "attention: scratch too small");
    debug_assert!(args.k.len().is_multiple_of(k_stride) && args.v.len().is_multiple_of(v_stride));

    let mut max = [f32::NEG_INFINITY; TILE_QUERIES];
    let mut sum = [0.0f32; TILE_QUERIES];
    out.fill(0.0);

    for block in start / KV_BLOCK..end.div_ceil(KV_BLOCK) {
        let base = block * KV_BLOCK;
        let index = args.table[block] as usize * args.num_kv_heads + args.kv_head;

        let keys = &mut scratch.block[..k_stride];
        widen(l, args.k, index * k_stride, keys);
        match num_queries {
            1 => scores::<L, 1>(l, args, 0, keys, &mut scratch.weights),
            2 => scores::<L, 2>(l, args, 0, keys, &mut scratch.weights),
            3 => scores::<L, 3>(l, args, 0, keys, &mut scratch.weights),
            _ => scores::<L, 4>(l, args, 0, keys, &mut scratch.weights),
        }

        // First and one past the last token of the block that any query sees.
        let (mut used_from, mut used_to) = (KV_BLOCK, 0);
        for (n, (_, seen)) in args.queries.iter().enumerate() {
            let row = &mut scratch.weights[n];
            let from = seen.start.saturating_sub(base).min(KV_BLOCK);
            let to = seen.end.saturating_sub(base).min(KV_BLOCK);
            if from >= to {
                row.fill(0.0);
                continue;
            }
            (used_from, used_to) = (used_from.min(from), used_to.max(to));
            let (halves, _) = row.as_chunks_mut::<LANES>();
            let scale = l.splat(args.scale);
            for half in &mut *halves {
                let mut s = l.mul(l.load(half), scale);
                if let Some(cap) = args.softcap {
                    s = l.mul(l.splat(cap), tanh(l, l.mul(s, l.splat(1.0 / cap))));
                }
                l.store(s, half);
            }
            row[..from].fill(f32::NEG_INFINITY);
            row[to..].fill(f32::NEG_INFINITY);

            let (halves, _) = row.as_chunks_mut::<LANES>();
            let s = [l.load(&halves[0]), l.load(&halves[1])];
            let new_max = max[n].max(l.max_lane(l.max(s[0], s[1])));
            let m = l.splat(new_max);
            let w = [exp(l, l.sub(s[0], m)), exp(l, l.sub(s[1], m))];
            l.store(w[0], &mut halves[0]);
            l.store(w[1], &mut halves[1]);
            if new_max > max[n] {
                // The first block has max = −inf: the factor is e^(−inf) = 0 on an empty sum.
                let factor = (max[n] - new_max).exp();
                sum[n] *= factor;
                let f = l.splat(factor);
                let row = &mut out[n * args.v_dim..(n + 1) * args.v_dim];
                let (chunks, tail) = row.as_chunks_mut::<LANES>();
                for x in chunks {
                    let y = l.mul(l.load(x), f);
                    l.store(y, x);
                }
                for x in tail {
                    *x *= factor;
                }
                max[n] = new_max;
            }
            sum[n] += l.sum(l.add(w[0], w[1]));
        }
        if used_from >= used_to {
            continue;
        }
        let used = used_from..used_to;

        let values = &mut scratch.block[..v_stride];
        widen(l, args.v, index * v_stride, values);
        match num_queries {
            1 => accumulate::<L, 1>(l, args.v_dim, 0, values, used, &scratch.weights, out),
            2 => accumulate::<L, 2>(l, args.v_dim, 0, values, used, &scratch.weights, out),
            3 => accumulate::<L, 3>(l, args.v_dim, 0, values, used, &scratch.weights, out),
            _ => accumulate::<L, 4>(l, args.v_dim, 0, values, used, &scratch.weights, out),
        }
    }
    for (n, sum) in sum.iter().enumerate().take(num_queries) {
        let inverse = 1.0 / sum;
        for x in &mut out[n * args.v_dim..(n + 1) * args.v_dim] {
            *x *= inverse;
        }
    }
}
