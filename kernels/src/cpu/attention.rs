//! Attention of some queries over a paged KV cache: one pass, online softmax (Milakov & Gimelshein 2018; Dao et al. 2022).
//!
//! Keys lie transposed, `[k_dim][KV_BLOCK]`, values as `[KV_BLOCK][v_dim]` (see `kv.rs` for the element types). So the scores of
//! a block are two vectors that grow by one fused multiply-add an element of the head, with no horizontal sums, and the
//! weighted values need none either. A block is widened to f32 once for all queries of a tile, which are then taken
//! [`Lanes::QUERIES`] at a time: their sums stay in registers, and each load of a key or a value serves all of them.
//!
//! Products are exact in f32, or pairs of bf16 are multiplied at twice the rate ([`Products`], `attention_rounded.rs`).
//!
//! A tile may cover a part of the positions only: its state (maximum, sum, weighted values) can be stored and merged with
//! that of the other parts ([`merge_parts`]), so that a long context occupies many workers.

use std::f32::consts::LOG2_E;
use std::ops::Range;

use super::kv::{KvType, KvTypes, widen_keys, widen_values};
use super::math::{exp2, tanh};
use super::simd::{LANES, Lanes};

/// Tokens in a block of the cache.
pub const KV_BLOCK: usize = 32;

/// Instead of a block id: nobody sees these positions any more, and nothing may be read there.
pub const NO_BLOCK: u32 = u32::MAX;

/// Queries that one tile takes at most: a multiple of every [`Lanes::QUERIES`], enough that widening a block costs little
/// beside the work on it, few enough that their state stays in the L2 cache.
pub const TILE_QUERIES: usize = 96;

/// One tile's work: `queries.len()` queries of one KV head of one sequence.
#[derive(Debug, Clone, Copy)]
pub struct TileArgs<'a> {
    /// Each `[k_dim]`, with the range of positions that it sees, which may be empty.
    pub queries: &'a [(&'a [f32], Range<usize>)],
    /// Element types of the cache.
    pub kv: KvTypes,
    /// All blocks of the layer's keys: `[num_blocks][num_kv_heads]` blocks of `kv.k.block_bytes(k_dim)`.
    pub k: &'a [u8],
    /// All blocks of the layer's values: `[num_blocks][num_kv_heads]` blocks of `kv.v.block_bytes(v_dim)`.
    pub v: &'a [u8],
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
    pub(super) fn check(&self, scratch: &TileScratch) {
        assert!(self.queries.len() <= TILE_QUERIES && self.kv_head < self.num_kv_heads, "attention: too many queries");
        assert!(self.k_dim.max(self.v_dim) <= scratch.max_dim, "attention: scratch too small");
        assert!(self.kv.fits(self.k_dim, self.v_dim), "attention: head size");
        for (q, seen) in self.queries {
            assert_eq!(q.len(), self.k_dim, "attention: query length");
            assert!(seen.end <= self.table.len() * KV_BLOCK, "attention: positions");
        }
    }
}

/// A tile's state. Reused between tiles; one a worker.
#[derive(Debug, Clone)]
pub struct TileScratch {
    max_dim: usize,
    /// Elements of a value of the last tile.
    v_dim: usize,
    /// Scores, then weights, of a block.
    weights: Vec<[f32; KV_BLOCK]>,
    /// Largest score so far. Scores are in units of ln 2 once the softcap is done: weights are powers of 2.
    max: [f32; TILE_QUERIES],
    /// Sums of the weights, lane by lane.
    sums: Vec<[f32; LANES]>,
    /// Weighted values, `[TILE_QUERIES][v_dim]`.
    values: Vec<f32>,
    /// Queries times the scale, transposed in groups of [`Lanes::QUERIES`]: `[groups][k_dim][queries of the group]`.
    queries: Vec<f32>,
    /// A block's keys or values in f32, `[k_dim][KV_BLOCK]` or `[KV_BLOCK][v_dim]`, or as [`Products`] has them.
    block: Vec<f32>,
}

impl TileScratch {
    /// For heads of at most `max_dim` elements.
    pub fn new(max_dim: usize) -> Self {
        Self {
            max_dim,
            v_dim: 0,
            weights: vec![[0.0; KV_BLOCK]; TILE_QUERIES],
            max: [f32::NEG_INFINITY; TILE_QUERIES],
            sums: vec![[0.0; LANES]; TILE_QUERIES],
            values: vec![0.0; TILE_QUERIES * max_dim],
            queries: vec![0.0; TILE_QUERIES * max_dim],
            block: vec![0.0; max_dim * KV_BLOCK],
        }
    }

    fn sum(&self, n: usize) -> f32 {
        self.sums[n].iter().sum()
    }

    /// Weighted values of query `n` of the last tile, and what they are to be multiplied by.
    pub(super) fn result(&self, n: usize, sink: Option<f32>) -> (&[f32], f32) {
        (&self.values[n * self.v_dim..][..self.v_dim], normaliser(self.max[n], self.sum(n), sink))
    }

    /// Stores the state of query `n` of the last tile: `[v_dim]` weighted values, then maximum and sum.
    pub fn store_part(&self, n: usize, part: &mut [f32]) {
        let (values, rest) = part.split_at_mut(self.v_dim);
        values.copy_from_slice(&self.values[n * self.v_dim..][..self.v_dim]);
        rest[0] = self.max[n];
        rest[1] = self.sum(n);
    }
}

/// What weighted values are multiplied by at the end: 1 / Σ weights, the sink's among them. 0 where nothing was seen.
fn normaliser(max: f32, sum: f32, sink: Option<f32>) -> f32 {
    if sum == 0.0 {
        return 0.0;
    }
    match sink {
        // Relative to the larger of both, so that neither overflows.
        Some(sink) => {
            let sink = sink * LOG2_E;
            let top = max.max(sink);
            let shift = (max - top).exp2();
            shift / (sum * shift + (sink - top).exp2())
        }
        None => 1.0 / sum,
    }
}

/// Joins the parts of one query in their order: `parts` is `[num_parts][stride]`, each as [`TileScratch::store_part`] left it.
///
/// The result depends on how the positions were cut, not on who computed which part.
pub fn merge_parts(parts: &[f32], stride: usize, sink: Option<f32>, out: &mut [f32]) {
    let v_dim = out.len();
    let max = parts.chunks_exact(stride).map(|part| part[v_dim]).fold(f32::NEG_INFINITY, f32::max);
    out.fill(0.0);
    let mut sum = 0.0;
    for part in parts.chunks_exact(stride) {
        if part[v_dim + 1] == 0.0 {
            continue;
        }
        let factor = (part[v_dim] - max).exp2();
        sum += part[v_dim + 1] * factor;
        for (out, x) in out.iter_mut().zip(part) {
            *out += x * factor;
        }
    }
    let factor = normaliser(max, sum, sink);
    out.iter_mut().for_each(|x| *x *= factor);
}

/// Calls a kernel of the products for a group of `$count` queries, padded to the next size that there is a kernel for.
macro_rules! for_group {
    ($lanes:ident, $count:expr, $products:ident.$kernel:ident($($arg:expr),*)) => {
        match padded::<$lanes>($count) {
            1 => $products.$kernel::<1>($($arg),*),
            2 => $products.$kernel::<2>($($arg),*),
            3 => $products.$kernel::<3>($($arg),*),
            4 => $products.$kernel::<4>($($arg),*),
            // The conditions are constants: an instruction set has only the kernels that its registers hold.
            6 if $lanes::QUERIES >= 6 => $products.$kernel::<6>($($arg),*),
            8 if $lanes::QUERIES >= 8 => $products.$kernel::<8>($($arg),*),
            _ if $lanes::QUERIES >= 12 => $products.$kernel::<12>($($arg),*),
            _ => {}
        }
    };
}

/// The number of queries that a group of `count` is computed as. Never more than [`Lanes::QUERIES`].
#[inline(always)]
fn padded<L: Lanes>(count: usize) -> usize {
    match count {
        0..=4 => count,
        5 | 6 => 6,
        7 | 8 => 8,
        _ => 12,
    }
    .min(L::QUERIES)
}

/// How a tile multiplies. Buffers are those of [`TileScratch`]; where elements are pairs, the bits of an f32 are one.
pub(super) trait Products<L: Lanes>: Copy {
    /// Elements in a lane.
    const PER_LANE: usize;

    /// A query times `factor`, its lanes `width` apart in `packed`.
    fn pack_query(self, l: L, query: &[f32], factor: f32, width: usize, packed: &mut [f32]);

    /// A block's keys, `[k_dim / PER_LANE][KV_BLOCK]`.
    fn keys(self, l: L, kv: KvType, block: &[u8], k_dim: usize, to: &mut [f32]);

    /// A block's values, `[KV_BLOCK / PER_LANE][v_dim]`. Tokens outside `used` are zeros or left out.
    fn values(self, l: L, kv: KvType, block: &[u8], v_dim: usize, used: &Range<usize>, to: &mut [f32]);

    /// `acc + x · y`, where both are single lanes' elements.
    fn multiply(self, l: L, x: L::V, y: L::V, acc: L::V) -> L::V;

    /// Makes weights, one a token, what [`Self::multiply`] takes.
    fn pack_weights(self, l: L, weights: [L::V; 2], to: &mut [f32; KV_BLOCK]);

    /// `N` queries, `[lanes of k_dim][N]`, against one block: raw scores.
    #[inline(always)]
    fn scores<const N: usize>(self, l: L, queries: &[f32], keys: &[f32], out: &mut [[f32; KV_BLOCK]]) {
        let queries = queries.as_chunks::<N>().0;
        let keys = keys.as_chunks::<LANES>().0.as_chunks::<2>().0;
        let Some(out) = out.first_chunk_mut::<N>() else { return };
        if L::WIDE {
            let mut acc = [[l.splat(0.0); 2]; N];
            for (q, key) in queries.iter().zip(keys) {
                let k = [l.load(&key[0]), l.load(&key[1])];
                for (acc, q) in acc.iter_mut().zip(q) {
                    let q = l.splat(*q);
                    acc[0] = self.multiply(l, q, k[0], acc[0]);
                    acc[1] = self.multiply(l, q, k[1], acc[1]);
                }
            }
            for (acc, out) in acc.iter().zip(out) {
                let halves = out.as_chunks_mut::<LANES>().0;
                l.store(acc[0], &mut halves[0]);
                l.store(acc[1], &mut halves[1]);
            }
        } else {
            // Half a block at a time: the sums of a whole one don't fit the registers.
            for half in 0..2 {
                let mut acc = [l.splat(0.0); N];
                for (q, key) in queries.iter().zip(keys) {
                    let k = l.load(&key[half]);
                    for (acc, q) in acc.iter_mut().zip(q) {
                        *acc = self.multiply(l, l.splat(*q), k, *acc);
                    }
                }
                for (acc, out) in acc.iter().zip(&mut *out) {
                    l.store(*acc, &mut out.as_chunks_mut::<LANES>().0[half]);
                }
            }
        }
    }

    /// `out[n] += Σ_t weights[n][t] · values[t]` over `tokens` of the block.
    #[inline(always)]
    fn accumulate<const N: usize>(
        self,
        l: L,
        v_dim: usize,
        values: &[f32],
        tokens: &Range<usize>,
        weights: &[[f32; KV_BLOCK]],
        out: &mut [f32],
    ) {
        let Some(weights) = weights.first_chunk::<N>() else { return };
        let lanes = tokens.start / Self::PER_LANE..tokens.end.div_ceil(Self::PER_LANE);
        let mut column = 0;
        // As many columns as the registers hold sums for, so that even one query keeps several sums in flight.
        if L::WIDE && N <= 4 {
            while column + 4 * LANES <= v_dim {
                accumulate_columns::<L, Self, N, 4>(l, self, v_dim, column, values, &lanes, weights, out);
                column += 4 * LANES;
            }
        }
        if L::WIDE || N <= 2 {
            while column + 2 * LANES <= v_dim {
                accumulate_columns::<L, Self, N, 2>(l, self, v_dim, column, values, &lanes, weights, out);
                column += 2 * LANES;
            }
        }
        while column + LANES <= v_dim {
            accumulate_columns::<L, Self, N, 1>(l, self, v_dim, column, values, &lanes, weights, out);
            column += LANES;
        }
        // Pairs come in whole vectors; what they don't fill is f32.
        for (weights, row) in weights.iter().zip(out.chunks_exact_mut(v_dim)) {
            for c in column..v_dim {
                for t in tokens.clone() {
                    row[c] += weights[t] * values[t * v_dim + c];
                }
            }
        }
    }
}

/// In f32.
#[derive(Clone, Copy)]
pub(super) struct Exact;

impl<L: Lanes> Products<L> for Exact {
    const PER_LANE: usize = 1;

    #[inline(always)]
    fn pack_query(self, _: L, query: &[f32], factor: f32, width: usize, packed: &mut [f32]) {
        for (column, x) in packed.chunks_mut(width).zip(query) {
            column[0] = x * factor;
        }
    }

    #[inline(always)]
    fn keys(self, l: L, kv: KvType, block: &[u8], k_dim: usize, to: &mut [f32]) {
        widen_keys(l, kv, block, k_dim, to);
    }

    #[inline(always)]
    fn values(self, l: L, kv: KvType, block: &[u8], v_dim: usize, _: &Range<usize>, to: &mut [f32]) {
        widen_values(l, kv, block, v_dim, to);
    }

    #[inline(always)]
    fn multiply(self, l: L, x: L::V, y: L::V, acc: L::V) -> L::V {
        l.fma(x, y, acc)
    }

    #[inline(always)]
    fn pack_weights(self, l: L, weights: [L::V; 2], to: &mut [f32; KV_BLOCK]) {
        let halves = to.as_chunks_mut::<LANES>().0;
        l.store(weights[0], &mut halves[0]);
        l.store(weights[1], &mut halves[1]);
    }
}

/// `out[n][column..] += Σ_t weights[n][t] · values[t][column..]`, `W` vectors of columns, t in lanes of weights.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "a piece of one loop, in a function for its constants")]
fn accumulate_columns<L: Lanes, P: Products<L>, const N: usize, const W: usize>(
    l: L,
    products: P,
    v_dim: usize,
    column: usize,
    values: &[f32],
    lanes: &Range<usize>,
    weights: &[[f32; KV_BLOCK]; N],
    out: &mut [f32],
) {
    // Indices and not iterators: only loops of constant length are unrolled, and only then do the sums stay in registers.
    let mut acc = [[l.splat(0.0); W]; N];
    for n in 0..N {
        let row = out[n * v_dim + column..][..W * LANES].as_chunks::<LANES>().0;
        for w in 0..W {
            acc[n][w] = l.load(&row[w]);
        }
    }
    for t in lanes.start..lanes.end.min(KV_BLOCK) {
        let row = values[t * v_dim + column..][..W * LANES].as_chunks::<LANES>().0;
        // No closure: it would not be inlined (see `math.rs`).
        let mut v = [l.splat(0.0); W];
        for w in 0..W {
            v[w] = l.load(&row[w]);
        }
        for n in 0..N {
            let weight = l.splat(weights[n][t]);
            for w in 0..W {
                acc[n][w] = products.multiply(l, weight, v[w], acc[n][w]);
            }
        }
    }
    for n in 0..N {
        let row = out[n * v_dim + column..][..W * LANES].as_chunks_mut::<LANES>().0;
        for w in 0..W {
            l.store(acc[n][w], &mut row[w]);
        }
    }
}

/// Turns a query's scores of a block into weights and brings its state to the new maximum. The positions `seen` of the
/// block are seen; not empty.
#[inline(always)]
fn softmax_step<L: Lanes, P: Products<L>>(
    l: L,
    products: P,
    args: &TileArgs<'_>,
    scratch: &mut TileScratch,
    n: usize,
    seen: Range<usize>,
) {
    let row = &mut scratch.weights[n];
    if let Some(cap) = args.softcap {
        for half in row.as_chunks_mut::<LANES>().0 {
            let s = l.mul(l.splat(cap * LOG2_E), tanh(l, l.mul(l.load(half), l.splat(1.0 / cap))));
            l.store(s, half);
        }
    }
    if seen != (0..KV_BLOCK) {
        row[..seen.start].fill(f32::NEG_INFINITY);
        row[seen.end..].fill(f32::NEG_INFINITY);
    }

    let halves = row.as_chunks::<LANES>().0;
    let s = [l.load(&halves[0]), l.load(&halves[1])];
    let old = scratch.max[n];
    let mut m = l.splat(old);
    let largest = l.max(s[0], s[1]);
    // Most blocks of a long context have no larger score, and need no horizontal maximum.
    let max = if l.any_above(largest, m) { old.max(l.max_lane(largest)) } else { old };
    if max > old {
        m = l.splat(max);
    }
    let w = [exp2(l, l.sub(s[0], m)), exp2(l, l.sub(s[1], m))];
    products.pack_weights(l, w, row);
    let sums = &mut scratch.sums[n];
    let mut total = l.load(sums);
    if max > old {
        // The first block has max = −∞: the factor is 2^(−∞) = 0 on an empty sum.
        let factor = (old - max).exp2();
        total = l.mul(total, l.splat(factor));
        let (chunks, tail) = scratch.values[n * args.v_dim..][..args.v_dim].as_chunks_mut::<LANES>();
        for x in chunks {
            l.store(l.mul(l.load(x), l.splat(factor)), x);
        }
        for x in tail {
            *x *= factor;
        }
        scratch.max[n] = max;
    }
    l.store(l.add(total, l.add(w[0], w[1])), sums);
}

/// Multiplies the queries by the scale, so that scores without a softcap are in units of ln 2, and transposes them in groups; pads
/// with zeros.
#[inline(always)]
fn pack_queries<L: Lanes, P: Products<L>>(l: L, products: P, args: &TileArgs<'_>, packed: &mut [f32]) {
    let factor = if args.softcap.is_some() { args.scale } else { args.scale * LOG2_E };
    let num_lanes = args.k_dim / P::PER_LANE;
    for (group, packed) in args.queries.chunks(L::QUERIES).zip(packed.chunks_mut(L::QUERIES * num_lanes)) {
        let width = padded::<L>(group.len());
        let packed = &mut packed[..width * num_lanes];
        if group.len() < width {
            packed.fill(0.0);
        }
        for (n, (q, _)) in group.iter().enumerate() {
            products.pack_query(l, q, factor, width, &mut packed[n..]);
        }
    }
}

/// The tile: leaves `softmax(scale · q · Kᵀ) · V` of each query in the scratch, not yet divided by the sum of the weights.
#[inline(always)]
pub(super) fn tile<L: Lanes, P: Products<L>>(l: L, products: P, args: &TileArgs<'_>, scratch: &mut TileScratch) {
    let num_queries = args.queries.len();
    scratch.v_dim = args.v_dim;
    scratch.max.fill(f32::NEG_INFINITY);
    scratch.sums.fill([0.0; LANES]);
    scratch.values[..num_queries.next_multiple_of(L::QUERIES) * args.v_dim].fill(0.0);
    let seen = args.queries.iter().map(|(_, seen)| seen).filter(|seen| !seen.is_empty());
    let Some(start) = seen.clone().map(|seen| seen.start).min() else { return };
    let end = seen.map(|seen| seen.end).max().unwrap_or(start);
    pack_queries(l, products, args, &mut scratch.queries);
    let (k_bytes, v_bytes) = (args.kv.k.block_bytes(args.k_dim), args.kv.v.block_bytes(args.v_dim));
    let place = |block: usize| args.table[block] as usize * args.num_kv_heads + args.kv_head;
    let k_lanes = args.k_dim / P::PER_LANE;

    let blocks = start / KV_BLOCK..end.div_ceil(KV_BLOCK);
    for block in blocks.clone() {
        let base = block * KV_BLOCK;
        let index = place(block);
        // The next block is elsewhere: the hardware can't guess where.
        let next = (block + 1 < blocks.end).then(|| place(block + 1));
        if let Some(next) = next {
            l.prefetch(&args.k[next * k_bytes..][..k_bytes]);
        }
        // What a query sees of this block.
        let part = |seen: &Range<usize>| {
            seen.start.saturating_sub(base).min(KV_BLOCK)..seen.end.saturating_sub(base).min(KV_BLOCK)
        };

        products.keys(l, args.kv.k, &args.k[index * k_bytes..][..k_bytes], args.k_dim, &mut scratch.block);
        for (group, queries) in args.queries.chunks(L::QUERIES).enumerate() {
            if queries.iter().all(|(_, seen)| part(seen).is_empty()) {
                continue;
            }
            let first = group * L::QUERIES;
            let packed = &scratch.queries[first * k_lanes..][..padded::<L>(queries.len()) * k_lanes];
            let keys = &scratch.block[..k_lanes * KV_BLOCK];
            let out = &mut scratch.weights[first..];
            for_group!(L, queries.len(), products.scores(l, packed, keys, out));
            for (n, (_, seen)) in (first..).zip(queries) {
                let seen = part(seen);
                if seen.is_empty() {
                    scratch.weights[n].fill(0.0);
                } else {
                    softmax_step(l, products, args, scratch, n, seen);
                }
            }
        }

        if let Some(next) = next {
            l.prefetch(&args.v[next * v_bytes..][..v_bytes]);
        }
        // First and one past the last token of the block that any of some queries sees.
        let used = |queries: &[(&[f32], Range<usize>)]| {
            let parts = queries.iter().map(|(_, seen)| part(seen)).filter(|part| !part.is_empty());
            parts.reduce(|a, b| a.start.min(b.start)..a.end.max(b.end))
        };
        let Some(all) = used(args.queries) else { continue };
        let values = &args.v[index * v_bytes..][..v_bytes];
        products.values(l, args.kv.v, values, args.v_dim, &all, &mut scratch.block);
        for (group, queries) in args.queries.chunks(L::QUERIES).enumerate() {
            let Some(used) = used(queries) else { continue };
            let first = group * L::QUERIES;
            let values = &scratch.block[..args.v_dim * KV_BLOCK / P::PER_LANE];
            let (weights, out) = (&scratch.weights[first..], &mut scratch.values[first * args.v_dim..]);
            for_group!(L, queries.len(), products.accumulate(l, args.v_dim, values, &used, weights, out));
        }
    }
}
