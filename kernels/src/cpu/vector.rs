//! Row-wise operations behind a table picked once: norms, activations, sums, rotary embedding, attention tiles.

use super::attention::{Exact, TileArgs, TileScratch};
use super::isa::Isa;
use super::matrix::ACT_GROUP;
use super::pack::PACK_ROWS;
use super::simd::ScalarLanes;
use super::{attention, attention_rounded, math};

/// Activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`.
    Gelu,
    /// GELU's tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// A norm of one row: `(x − mean) / sqrt(mean((x − mean)²) + eps) · weight + bias`, with `mean` taken as 0 unless `centre`.
#[derive(Debug, Clone, Copy)]
pub struct NormRow<'a> {
    /// Layer norm subtracts the mean, RMS norm doesn't.
    pub centre: bool,
    /// Under the root.
    pub eps: f32,
    /// As long as the row.
    pub weight: Option<&'a [f32]>,
    /// As long as the row.
    pub bias: Option<&'a [f32]>,
}

/// How elements of a head pair up in a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopePairs {
    /// `(x[i], x[i + n/2])`.
    Halves,
    /// `(x[2i], x[2i + 1])`.
    Adjacent,
}

/// Where a group of columns goes, quantised: a part of a block of [`super::PackedActs`].
#[derive(Debug)]
pub struct QuantizedLanes<'a> {
    /// Four columns of a row side by side.
    pub q: &'a mut [[[i8; 4]; PACK_ROWS]; ACT_GROUP / 4],
    /// Scales.
    pub d: &'a mut [f32; PACK_ROWS],
    /// Sums over 16 columns.
    pub sums: &'a mut [[i16; 2]; PACK_ROWS],
}

/// The table. Every function checks its lengths in release builds too.
#[derive(Clone, Copy)]
pub struct VectorKernels {
    norm: unsafe fn(&NormRow<'_>, &[f32], &mut [f32]),
    activation: unsafe fn(Activation, &[f32], &mut [f32]),
    glu: unsafe fn(Activation, &mut [f32], &[f32]),
    add: unsafe fn(&mut [f32], &[f32]),
    scale: unsafe fn(f32, &[f32], &mut [f32]),
    softcap: unsafe fn(f32, &[f32], &mut [f32]),
    rope: unsafe fn(RopePairs, &[f32], &[f32], &mut [f32]),
    attention_tile: unsafe fn(&TileArgs<'_>, &mut TileScratch),
    /// With products of bf16 pairs; `None` where f32 is as fast, or is asked for.
    pub(super) attention_tile_rounded: Option<unsafe fn(&TileArgs<'_>, &mut TileScratch)>,
    quantize_lanes: unsafe fn(&[[f32; PACK_ROWS]; ACT_GROUP], QuantizedLanes<'_>),
}

/// Entry points of one instruction set: `#[target_feature]` functions into which the generic bodies are inlined.
macro_rules! entry_points {
    ($module:ident, $lanes:ty, $detect:expr, $(#[$feature:meta])?) => {
        mod $module {
            use super::*;

            /// The table, if the CPU has what it needs.
            pub(super) fn table() -> Option<VectorKernels> {
                let _: $lanes = $detect?;
                Some(VectorKernels {
                    norm,
                    activation,
                    glu,
                    add,
                    scale,
                    softcap,
                    rope,
                    attention_tile,
                    attention_tile_rounded: None,
                    quantize_lanes,
                })
            }

            /// Inside the functions below the features are given by their contract.
            #[inline(always)]
            fn lanes() -> $lanes {
                #[allow(clippy::unwrap_used, reason = "reachable only through a table, which exists only after detection")]
                $detect.unwrap()
            }

            $(#[$feature])?
            fn norm(row: &NormRow<'_>, x: &[f32], out: &mut [f32]) {
                math::norm(lanes(), row, x, out);
            }
            $(#[$feature])?
            fn activation(act: Activation, x: &[f32], out: &mut [f32]) {
                math::activation(lanes(), act, x, out);
            }
            $(#[$feature])?
            fn glu(act: Activation, gate: &mut [f32], up: &[f32]) {
                // One loop an activation: the choice is made outside.
                match act {
                    Activation::Silu => math::glu(lanes(), Activation::Silu, gate, up),
                    Activation::GeluTanh => math::glu(lanes(), Activation::GeluTanh, gate, up),
                    Activation::Gelu => math::glu(lanes(), Activation::Gelu, gate, up),
                    Activation::Relu => math::glu(lanes(), Activation::Relu, gate, up),
                }
            }
            $(#[$feature])?
            fn add(a: &mut [f32], b: &[f32]) {
                math::add(lanes(), a, b);
            }
            $(#[$feature])?
            fn scale(factor: f32, x: &[f32], out: &mut [f32]) {
                math::scale(lanes(), factor, x, out);
            }
            $(#[$feature])?
            fn softcap(cap: f32, x: &[f32], out: &mut [f32]) {
                math::softcap(lanes(), cap, x, out);
            }
            $(#[$feature])?
            fn rope(pairs: RopePairs, cos: &[f32], sin: &[f32], head: &mut [f32]) {
                rope_head(pairs, cos, sin, head);
            }
            $(#[$feature])?
            fn attention_tile(args: &TileArgs<'_>, scratch: &mut TileScratch) {
                attention::tile(lanes(), Exact, args, scratch);
            }
            $(#[$feature])?
            fn quantize_lanes(x: &[[f32; PACK_ROWS]; ACT_GROUP], to: QuantizedLanes<'_>) {
                math::quantize_lanes(lanes(), x, to);
            }
        }
    };
}

entry_points!(scalar, ScalarLanes, Some(ScalarLanes),);
#[cfg(target_arch = "x86_64")]
entry_points!(
    avx2,
    super::super::simd::Avx2Lanes,
    super::super::simd::Avx2Lanes::detect(),
    #[target_feature(enable = "avx2,fma,f16c")]
);
#[cfg(target_arch = "x86_64")]
entry_points!(
    avx512,
    super::super::simd::Avx512Lanes,
    super::super::simd::Avx512Lanes::detect(),
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
);
#[cfg(target_arch = "aarch64")]
entry_points!(
    neon,
    super::super::neon::lanes::NeonLanes,
    super::super::neon::lanes::NeonLanes::detect(),
    #[target_feature(enable = "neon")]
);

/// A length that a caller got wrong is a bug in this crate: stop before memory is touched.
macro_rules! same_length {
    ($a:expr, $b:expr) => {
        assert_eq!($a, $b, "vector kernel: lengths differ")
    };
}

/// See `VectorKernels::attention_tile_rounded`: with the instructions of AVX-512 BF16.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c")]
fn attention_tile_bf16(args: &TileArgs<'_>, scratch: &mut TileScratch) {
    use super::{attention_rounded::Avx512Bf16, simd::Avx512Lanes};
    #[allow(clippy::unwrap_used, reason = "reachable only through a table, which exists only after detection")]
    let (lanes, math) = (Avx512Lanes::detect().unwrap(), Avx512Bf16::detect().unwrap());
    attention::tile(lanes, attention_rounded::Rounded(math), args, scratch);
}

/// As `attention_tile_bf16`, without them.
#[cfg(test)]
pub(super) fn attention_tile_emulated(args: &TileArgs<'_>, scratch: &mut TileScratch) {
    attention::tile(ScalarLanes, attention_rounded::Rounded(attention_rounded::Emulated), args, scratch);
}

impl VectorKernels {
    /// The table of this level; [`Isa::Scalar`]'s where the CPU lacks it.
    pub fn for_isa(isa: Isa) -> Self {
        let table = match isa {
            Isa::Scalar => None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => avx2::table(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 | Isa::Avx512Vnni | Isa::Amx => avx512::table(),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => avx512::table().map(|table| {
                let rounded = attention_rounded::Avx512Bf16::detect().map(|_| attention_tile_bf16 as _);
                Self { attention_tile_rounded: rounded, ..table }
            }),
            #[cfg(target_arch = "aarch64")]
            Isa::Neon | Isa::NeonDotprod | Isa::NeonI8mm => neon::table(),
            _ => None,
        };
        #[expect(clippy::expect_used, reason = "plain Rust needs no CPU feature")]
        table.or_else(scalar::table).expect("scalar code runs anywhere")
    }

    /// These, without rounding anything to bf16: what the exact mode uses.
    pub fn without_bf16(self) -> Self {
        Self { attention_tile_rounded: None, ..self }
    }

    /// Whether [`Self::attention_tile_rounded`] rounds.
    pub fn rounds_attention(&self) -> bool {
        self.attention_tile_rounded.is_some()
    }

    /// Normalises `x` into `out`, both of the weight's length.
    pub fn norm(&self, row: &NormRow<'_>, x: &[f32], out: &mut [f32]) {
        same_length!(x.len(), out.len());
        for v in [row.weight, row.bias].into_iter().flatten() {
            same_length!(v.len(), x.len());
        }
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.norm)(row, x, out) }
    }

    /// `out = act(x)`.
    pub fn activation(&self, act: Activation, x: &[f32], out: &mut [f32]) {
        same_length!(x.len(), out.len());
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.activation)(act, x, out) }
    }

    /// `gate = act(gate) ⊙ up`.
    pub fn glu(&self, act: Activation, gate: &mut [f32], up: &[f32]) {
        same_length!(gate.len(), up.len());
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.glu)(act, gate, up) }
    }

    /// `a += b`.
    pub fn add(&self, a: &mut [f32], b: &[f32]) {
        same_length!(a.len(), b.len());
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.add)(a, b) }
    }

    /// `out = factor · x`.
    pub fn scale(&self, factor: f32, x: &[f32], out: &mut [f32]) {
        same_length!(x.len(), out.len());
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.scale)(factor, x, out) }
    }

    /// `out = cap · tanh(x / cap)`.
    pub fn softcap(&self, cap: f32, x: &[f32], out: &mut [f32]) {
        same_length!(x.len(), out.len());
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.softcap)(cap, x, out) }
    }

    /// Rotates the first `2 · cos.len()` elements of `head`.
    pub fn rope(&self, pairs: RopePairs, cos: &[f32], sin: &[f32], head: &mut [f32]) {
        assert!(sin.len() == cos.len() && head.len() >= 2 * cos.len(), "rope: lengths differ");
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.rope)(pairs, cos, sin, head) }
    }

    /// The result of query `n` of the last tile, if the tile covered all that it sees. A sink is one more score without a
    /// value: it takes its part of the weights.
    pub fn finish_attention(&self, scratch: &TileScratch, n: usize, sink: Option<f32>, out: &mut [f32]) {
        let (values, factor) = scratch.result(n, sink);
        self.scale(factor, values, out);
    }

    /// Attends with up to [`attention::TILE_QUERIES`] queries; see [`TileArgs`]. The results are in the scratch.
    pub fn attention_tile(&self, args: &TileArgs<'_>, scratch: &mut TileScratch) {
        args.check(scratch);
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.attention_tile)(args, scratch) }
    }

    /// As [`Self::attention_tile`], with queries, keys, weights and values rounded to bf16 where that is faster and the cache
    /// isn't f32. A query's result doesn't depend on the others.
    pub fn attention_tile_rounded(&self, args: &TileArgs<'_>, scratch: &mut TileScratch) {
        match self.attention_tile_rounded {
            Some(tile) if attention_rounded::takes(args) => {
                args.check(scratch);
                // SAFETY: a table is only made when the CPU has the features of its functions.
                unsafe { tile(args, scratch) }
            }
            _ => self.attention_tile(args, scratch),
        }
    }

    /// Quantises a group of columns whose rows are lanes, as `CpuKernels::quantize_act_row` does rows. The scale of a group that
    /// holds an infinity or a NaN is NaN.
    pub fn quantize_lanes(&self, x: &[[f32; PACK_ROWS]; ACT_GROUP], to: QuantizedLanes<'_>) {
        // SAFETY: a table is only made when the CPU has the features of its functions.
        unsafe { (self.quantize_lanes)(x, to) }
    }
}

/// See `VectorKernels::rope`: the compiler vectorises it for the function that it is inlined into.
#[inline(always)]
fn rope_head(pairs: RopePairs, cos: &[f32], sin: &[f32], head: &mut [f32]) {
    let half = cos.len();
    match pairs {
        RopePairs::Halves => {
            let (a, b) = head[..2 * half].split_at_mut(half);
            for (((a, b), c), s) in a.iter_mut().zip(b).zip(cos).zip(sin) {
                (*a, *b) = (*a * c - *b * s, *a * s + *b * c);
            }
        }
        RopePairs::Adjacent => {
            for ((pair, c), s) in head[..2 * half].as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin) {
                let [a, b] = *pair;
                *pair = [a * c - b * s, a * s + b * c];
            }
        }
    }
}
