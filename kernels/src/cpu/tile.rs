//! The tiles of the large GEMMs, in 8 bits and in f32, written once over an ISA's registers: `N` rows of weights × `R` registers of activation rows.
//!
//! Lanes are rows of activations: a register holds the same four elements of many rows, and meets four codes of one row of
//! weights, broadcast from where they lie. So weights need no transpose; activations get one, a step.
//!
//! Integers are exact inside a group. A group's scale then costs two multiply-adds and no conversion: dot products start at the
//! bits of [`MAGIC`] = 1.5 · 2^23, where a unit in the last place is 1. Read as f32 they are `MAGIC` + dot, exactly, as long as
//! |dot| < 2^22; the largest is 32 · 255 · 127 < 2^20. Then fma(f, d, −`MAGIC` · d) is d · dot with one rounding, since the last
//! term is exact: d has at most 22 significant bits (`ActRows`). CPUs that convert in pipes of their own do without
//! ([`TileLanes::CONVERTS`]).

#![allow(
    clippy::needless_range_loop,
    reason = "tile loops use one index for several arrays and pointers, and their bounds are constants that unroll"
)]

use super::pack::PACK_ROWS;

/// See the head of this file.
pub(super) const MAGIC: f32 = 12_582_912.0;
const MAGIC_BITS: i32 = MAGIC.to_bits() as i32;

/// One tile. Strides in elements; lanes of activation rows have the stride of a block, [`PACK_ROWS`].
pub(super) struct Tile {
    /// Codes less [`TileLanes::bias`]: `[N][code_stride]`
    pub(super) codes: *const u8,
    pub(super) code_stride: usize,
    /// `[N][scale_stride]`, one for each group of weights.
    pub(super) scales: *const f32,
    /// As `scales`, for formats with minima.
    pub(super) mins: *const f32,
    pub(super) scale_stride: usize,
    /// Groups of 32 in the chunk.
    pub(super) num_groups: usize,
    /// i8 `[num_groups · 8][PACK_ROWS][4]`
    pub(super) q: *const i8,
    /// `[num_groups][PACK_ROWS]`
    pub(super) d: *const f32,
    /// See [`prepare_aux`].
    pub(super) aux: *const i32,
    /// `[N][PACK_ROWS]`
    pub(super) sums: *mut f32,
    /// Whether to go on from what `sums` holds.
    pub(super) accumulate: bool,
}

impl Tile {
    /// From column `first` on.
    ///
    /// # Safety
    /// The tile must have it.
    #[cfg(target_arch = "x86_64")]
    pub(super) unsafe fn columns(&self, first: usize) -> Self {
        // SAFETY: inside the shapes of the fields, by contract.
        unsafe {
            Self {
                codes: self.codes.add(first * self.code_stride),
                scales: self.scales.add(first * self.scale_stride),
                mins: self.mins.add(first * self.scale_stride),
                sums: self.sums.add(first * PACK_ROWS),
                ..*self
            }
        }
    }
}

/// The registers of an ISA.
///
/// # Safety
/// All functions: the CPU must have the ISA; pointers must be valid for a register, at any alignment.
#[allow(clippy::missing_safety_doc, reason = "stated once, above")]
pub(super) trait TileLanes {
    /// 32-bit lanes of a register.
    const LANES: usize;
    /// Integers.
    type Int: Copy;
    /// f32.
    type Float: Copy;

    /// Whether [`Self::convert`] costs nothing beside multiplications, as on CPUs that add and convert in pipes of their own. Then dot
    /// products start at 0 instead of [`MAGIC`], and the two groups of a scale of activations share its multiplication.
    const CONVERTS: bool = false;

    /// What is subtracted from the codes of a type, none of which exceeds `max`, when they are unpacked: 128 where the dot product
    /// wants them signed.
    fn bias(max: u8) -> u8;

    unsafe fn load_int(p: *const i32) -> Self::Int;
    unsafe fn store_int(p: *mut i32, x: Self::Int);
    unsafe fn splat_int(x: i32) -> Self::Int;
    unsafe fn add_int(a: Self::Int, b: Self::Int) -> Self::Int;
    /// `a · b + c`.
    unsafe fn mul_add_int(a: Self::Int, b: Self::Int, c: Self::Int) -> Self::Int;
    /// The lower and the upper 16 bits of each lane, with their signs.
    unsafe fn halves(x: Self::Int) -> [Self::Int; 2];
    unsafe fn load(p: *const f32) -> Self::Float;
    unsafe fn store(p: *mut f32, x: Self::Float);
    unsafe fn splat(x: f32) -> Self::Float;
    unsafe fn from_bits(x: Self::Int) -> Self::Float;
    unsafe fn to_bits(x: Self::Float) -> Self::Int;
    unsafe fn mul(a: Self::Float, b: Self::Float) -> Self::Float;
    /// `a · b + c`, rounded once.
    unsafe fn fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
    /// Integers below 2^22 in magnitude, exactly.
    #[inline(always)]
    unsafe fn convert(x: Self::Int) -> Self::Float {
        // SAFETY: value-only.
        unsafe {
            let shifted = Self::from_bits(Self::add_int(x, Self::splat_int(MAGIC_BITS)));
            Self::fma(shifted, Self::splat(1.0), Self::splat(-MAGIC))
        }
    }
    /// `acc + a · b`, rounded once, in the register of `acc`.
    #[inline(always)]
    unsafe fn add_product(acc: Self::Float, a: Self::Float, b: Self::Float) -> Self::Float {
        // SAFETY: value-only.
        unsafe { Self::fma(a, b, acc) }
    }

    /// `start[r][lane] + Σ codes[n · stride + i] · q[i / 4][lane + r · LANES][i % 4]` over the `GROUP` elements i of a group, for
    /// codes up to `MAX`, less [`Self::bias`].
    unsafe fn dots<const GROUP: usize, const MAX: u8, const R: usize, const N: usize>(
        start: [Self::Int; R],
        codes: *const u8,
        stride: usize,
        q: *const i8,
    ) -> [[Self::Int; R]; N];
}

/// [`TileLanes`] but `bias` and `dots`, as another type has it.
#[cfg(target_arch = "x86_64")]
macro_rules! lanes_of {
    ($lanes:ty) => {
        lanes_of! {
            @forward $lanes,
            load_int(p: *const i32) -> Self::Int;
            store_int(p: *mut i32, x: Self::Int) -> ();
            splat_int(x: i32) -> Self::Int;
            add_int(a: Self::Int, b: Self::Int) -> Self::Int;
            mul_add_int(a: Self::Int, b: Self::Int, c: Self::Int) -> Self::Int;
            halves(x: Self::Int) -> [Self::Int; 2];
            load(p: *const f32) -> Self::Float;
            store(p: *mut f32, x: Self::Float) -> ();
            splat(x: f32) -> Self::Float;
            from_bits(x: Self::Int) -> Self::Float;
            to_bits(x: Self::Float) -> Self::Int;
            mul(a: Self::Float, b: Self::Float) -> Self::Float;
            fma(a: Self::Float, b: Self::Float, c: Self::Float) -> Self::Float;
        }
    };
    (@forward $lanes:ty, $($name:ident($($arg:ident: $type:ty),*) -> $out:ty;)*) => {
        const LANES: usize = <$lanes as TileLanes>::LANES;
        type Int = <$lanes as TileLanes>::Int;
        type Float = <$lanes as TileLanes>::Float;

        $(#[inline(always)]
        unsafe fn $name($($arg: $type),*) -> $out {
            // SAFETY: the caller's promises, passed on.
            unsafe { <$lanes as TileLanes>::$name($($arg),*) }
        })*
    };
}
#[cfg(target_arch = "x86_64")]
pub(super) use lanes_of;

/// For each group of weights and lane what its dot products start at, [`MAGIC_BITS`] (0 with [`TileLanes::CONVERTS`]) −
/// offset · Σ q, where the offset is the type's less [`TileLanes::bias`]; for formats with minima the bits of d · Σ q. `[num_groups · 32 / GROUP][PACK_ROWS]`.
///
/// # Safety
/// `sums` (pairs of a group, `[num_groups][PACK_ROWS][2]`), `d` and `aux` must be valid for `num_groups` groups of 32; the CPU must have the
/// ISA.
#[inline(always)]
pub(super) unsafe fn prepare_aux<L: TileLanes, const GROUP: usize, const MIN: bool>(
    offset: i32,
    sums: *const i16,
    d: *const f32,
    num_groups: usize,
    aux: *mut i32,
) {
    let parts = 32 / GROUP;
    // SAFETY: all offsets are inside the shapes that the caller promises.
    unsafe {
        for group in 0..num_groups {
            for lane in (0..PACK_ROWS).step_by(L::LANES) {
                let halves = L::halves(L::load_int(sums.add((group * PACK_ROWS + lane) * 2).cast()));
                for part in 0..parts {
                    let sum = if parts == 1 { L::add_int(halves[0], halves[1]) } else { halves[part] };
                    let value = if MIN {
                        let d = L::load(d.add(group * PACK_ROWS + lane));
                        let sum = L::from_bits(L::add_int(sum, L::splat_int(MAGIC_BITS)));
                        L::to_bits(L::fma(sum, d, L::mul(d, L::splat(-MAGIC))))
                    } else {
                        L::mul_add_int(sum, L::splat_int(-offset), L::splat_int(start_bits::<L>()))
                    };
                    L::store_int(aux.add((group * parts + part) * PACK_ROWS + lane), value);
                }
            }
        }
    }
}

/// What a dot product of nothing is.
const fn start_bits<L: TileLanes>() -> i32 {
    if L::CONVERTS { 0 } else { MAGIC_BITS }
}

/// Computes the tile. To be inlined into a function compiled for the ISA.
///
/// # Safety
/// The tile's pointers must be valid for its shapes; the CPU must have the ISA.
#[inline(always)]
pub(super) unsafe fn compute<
    L: TileLanes,
    const GROUP: usize,
    const MIN: bool,
    const MAX: u8,
    const R: usize,
    const N: usize,
>(
    tile: &Tile,
) {
    // SAFETY: all offsets are inside the shapes that the fields state.
    unsafe {
        let mut acc = [[L::splat(0.0); R]; N];
        if tile.accumulate {
            for n in 0..N {
                for r in 0..R {
                    acc[n][r] = L::load(tile.sums.add(n * PACK_ROWS + r * L::LANES));
                }
            }
        }
        for group in 0..tile.num_groups {
            let (mut d, mut shift) = ([L::splat(0.0); R], [L::splat(0.0); R]);
            for r in 0..R {
                d[r] = L::load(tile.d.add(group * PACK_ROWS + r * L::LANES));
                if !L::CONVERTS {
                    shift[r] = L::mul(d[r], L::splat(-MAGIC));
                }
            }
            // Dot products of the group times the scales of weights, where all of them meet the scale of activations at once.
            let mut scaled = [[L::splat(0.0); R]; N];
            let shares_d = L::CONVERTS && GROUP < 32;
            for part in 0..32 / GROUP {
                let index = group * (32 / GROUP) + part;
                let mut start = [L::splat_int(start_bits::<L>()); R];
                if !MIN {
                    for r in 0..R {
                        start[r] = L::load_int(tile.aux.add(index * PACK_ROWS + r * L::LANES));
                    }
                }
                let codes = tile.codes.add(index * GROUP);
                let q = tile.q.add(index * GROUP * PACK_ROWS);
                let dots = L::dots::<GROUP, MAX, R, N>(start, codes, tile.code_stride, q);
                for n in 0..N {
                    let scale = L::splat(*tile.scales.add(n * tile.scale_stride + index));
                    for r in 0..R {
                        if shares_d {
                            let dot = L::convert(dots[n][r]);
                            scaled[n][r] =
                                if part == 0 { L::mul(dot, scale) } else { L::add_product(scaled[n][r], dot, scale) };
                        } else {
                            let dot = if L::CONVERTS {
                                L::mul(L::convert(dots[n][r]), d[r])
                            } else {
                                L::fma(L::from_bits(dots[n][r]), d[r], shift[r])
                            };
                            acc[n][r] = L::add_product(acc[n][r], dot, scale);
                        }
                    }
                }
                if MIN {
                    let mut sums = [L::splat(0.0); R];
                    for r in 0..R {
                        sums[r] = L::load(tile.aux.add(index * PACK_ROWS + r * L::LANES).cast());
                    }
                    for n in 0..N {
                        let min = L::splat(*tile.mins.add(n * tile.scale_stride + index));
                        for r in 0..R {
                            acc[n][r] = L::add_product(acc[n][r], sums[r], min);
                        }
                    }
                }
            }
            if shares_d {
                for n in 0..N {
                    for r in 0..R {
                        acc[n][r] = L::add_product(acc[n][r], scaled[n][r], d[r]);
                    }
                }
            }
        }
        for n in 0..N {
            for r in 0..R {
                L::store(tile.sums.add(n * PACK_ROWS + r * L::LANES), acc[n][r]);
            }
        }
    }
}

/// A number that the compiler knows nothing about. A loop of so many rounds stays a loop. Unrolled, all its loads move to the front,
/// registers run out and sums go to memory and back: 8% slower with AVX-512 VNNI (2026-11). The loop written in assembly
/// without any spill was no faster than this.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn opaque(mut x: usize) -> usize {
    // SAFETY: no instruction at all.
    unsafe { core::arch::asm!("/* {0} */", inout(reg) x, options(pure, nomem, nostack, preserves_flags)) };
    x
}

/// [`TileLanes::dots`] where an instruction multiplies four bytes a lane and adds them up: `dot(acc, codes, x)`.
///
/// # Safety
/// As [`TileLanes::dots`]; `dot` must be callable.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) unsafe fn dots_by_4<L: TileLanes, const GROUP: usize, const R: usize, const N: usize>(
    start: [L::Int; R],
    codes: *const u8,
    stride: usize,
    q: *const i8,
    dot: impl Fn(L::Int, L::Int, L::Int) -> L::Int,
) -> [[L::Int; R]; N] {
    let mut dots = [start; N];
    let (mut step, num_steps) = (0, opaque(GROUP / 4));
    loop {
        // SAFETY: the caller's codes and activations.
        unsafe {
            let mut x = [L::splat_int(0); R];
            for r in 0..R {
                x[r] = L::load_int(q.add((step * PACK_ROWS + r * L::LANES) * 4).cast());
            }
            for n in 0..N {
                let w = L::splat_int(codes.add(n * stride + step * 4).cast::<i32>().read_unaligned());
                for r in 0..R {
                    dots[n][r] = dot(dots[n][r], w, x[r]);
                }
            }
        }
        // The compiler must not think of a loop without a round.
        step += 1;
        if step == num_steps {
            break;
        }
    }
    dots
}

/// One tile of the GEMM in f32. Strides in elements; lanes of activation rows have the stride of a block, [`PACK_ROWS`].
pub(super) struct FloatTile {
    /// Elements of the chunk.
    pub(super) k: usize,
    /// `[N][weight_stride]`
    pub(super) weights: *const f32,
    pub(super) weight_stride: usize,
    /// `[k][PACK_ROWS]`
    pub(super) x: *const f32,
    /// `[N][PACK_ROWS]`
    pub(super) sums: *mut f32,
    /// Whether to go on from what `sums` holds.
    pub(super) accumulate: bool,
}

/// Computes the tile. To be inlined into a function compiled for the ISA.
///
/// # Safety
/// The tile's pointers must be valid for its shapes; the CPU must have the ISA.
#[inline(always)]
pub(super) unsafe fn compute_float<L: TileLanes, const R: usize, const N: usize>(tile: &FloatTile) {
    // SAFETY: all offsets are inside the shapes that the fields state.
    unsafe {
        let mut acc = [[L::splat(0.0); R]; N];
        if tile.accumulate {
            for n in 0..N {
                for r in 0..R {
                    acc[n][r] = L::load(tile.sums.add(n * PACK_ROWS + r * L::LANES));
                }
            }
        }
        for i in 0..tile.k {
            let mut x = [L::splat(0.0); R];
            for r in 0..R {
                x[r] = L::load(tile.x.add(i * PACK_ROWS + r * L::LANES));
            }
            for n in 0..N {
                let w = L::splat(*tile.weights.add(n * tile.weight_stride + i));
                for r in 0..R {
                    acc[n][r] = L::fma(w, x[r], acc[n][r]);
                }
            }
        }
        for n in 0..N {
            for r in 0..R {
                L::store(tile.sums.add(n * PACK_ROWS + r * L::LANES), acc[n][r]);
            }
        }
    }
}
