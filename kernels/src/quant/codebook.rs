//! Helpers of the codebook formats: signs, and the searches of their quantisers.

use super::fit;

/// Eight sign bits from the seven that a file holds: the number of negative elements is even.
#[inline(always)]
pub(super) fn even_signs(seven: u32) -> u32 {
    seven | (seven.count_ones() & 1) << 7
}

/// Codes of a point, `offset + level`, where a set bit of `signs` makes it `offset − level`. `twice` is 2 · offset, wrapped.
#[inline(always)]
pub(super) fn put_signed<const D: usize>(codes: &mut [u8], point: [u8; D], signs: u32, twice: u8) {
    for (j, (code, level)) in codes[..D].iter_mut().zip(point).enumerate() {
        *code = if signs >> j & 1 == 0 { level } else { twice.wrapping_sub(level) };
    }
}

/// Little-endian u16 at byte `at`.
#[inline(always)]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(bytes[at]) | u32::from(bytes[at + 1]) << 8
}

/// Little-endian u32 at byte `at`.
#[inline(always)]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u16_at(bytes, at) | u16_at(bytes, at + 2) << 16
}

/// A codebook of `N` points in `D` dimensions, for the search of the nearest.
pub(super) struct Book<const N: usize, const D: usize> {
    /// `[D][N]`
    coordinates: [[f32; N]; D],
    /// Half the squared length of each point.
    half_norms: [f32; N],
}

impl<const N: usize, const D: usize> Book<N, D> {
    /// From points of digits of `bits` bits, first element lowest, that stand for `levels`.
    pub(super) const fn new(points: &[u16; N], bits: usize, levels: &[f32]) -> Self {
        assert!(N.is_multiple_of(LANES));
        let mut book = Self { coordinates: [[0.0; N]; D], half_norms: [0.0; N] };
        let mut i = 0;
        while i < N {
            let mut e = 0;
            while e < D {
                let level = levels[points[i] as usize >> (bits * e) & ((1 << bits) - 1)];
                book.coordinates[e][i] = level;
                book.half_norms[i] += 0.5 * level * level;
                e += 1;
            }
            i += 1;
        }
        book
    }

    /// The point nearest to `x`, and half the squared distance less half the squared length of `x`.
    pub(super) fn nearest(&self, x: &[f32; D]) -> (usize, f32) {
        let (mut best, mut at) = ([f32::INFINITY; LANES], [0u32; LANES]);
        for first in (0..N).step_by(LANES) {
            let mut cost = [0.0; LANES];
            cost.copy_from_slice(&self.half_norms[first..first + LANES]);
            for (x, coordinates) in x.iter().zip(&self.coordinates) {
                for (cost, coordinate) in cost.iter_mut().zip(&coordinates[first..first + LANES]) {
                    *cost -= x * coordinate;
                }
            }
            for ((cost, best), at) in cost.iter().zip(&mut best).zip(&mut at) {
                let better = cost < best;
                *best = if better { *cost } else { *best };
                *at = if better { first as u32 } else { *at };
            }
        }
        let lane = (0..LANES).min_by(|&a, &b| best[a].total_cmp(&best[b])).unwrap_or(0);
        (at[lane] as usize + lane, best[lane])
    }
}

/// Points that are compared at a time.
const LANES: usize = 16;

/// A scale for `x` in units of `levels`: of a row of candidates below and around "the extreme is the highest level", each followed by
/// least squares, the one with the least error when every element takes its nearest level.
pub(super) fn scale_for(x: &[f32], levels: &[f32]) -> f32 {
    let highest = levels.iter().fold(0.0, |highest: f32, level| highest.max(level.abs()));
    let first = fit::extreme(x).abs() / highest;
    let (mut best, mut least) = (0.0, f32::INFINITY);
    for step in 0..16 {
        let scale = first * (0.4 + 0.05 * step as f32);
        let (mut level_x, mut level_level) = (0.0, 0.0);
        for &x in x {
            let wanted = x * fit::inverse(scale);
            let nearest = levels.iter().fold(f32::INFINITY, |best: f32, &level| {
                if (level - wanted).abs() < (best - wanted).abs() { level } else { best }
            });
            (level_x, level_level) = (level_x + nearest * x, level_level + nearest * nearest);
        }
        // The error after least squares, less the constant Σ x².
        let error = -level_x * level_x * fit::inverse(level_level);
        if error < least {
            (best, least) = (level_x * fit::inverse(level_level), error);
        }
    }
    best
}

/// Signs and magnitudes of eight elements. With `even` the number of signs is made even: the smallest element gets the wrong one, and
/// its magnitude is negative.
pub(super) fn signs_of(x: &[f32], even: Parity) -> (u32, [f32; 8]) {
    let mut magnitudes: [f32; 8] = std::array::from_fn(|i| x[i].abs());
    let mut signs = (0..8).fold(0, |signs, i| signs | u32::from(x[i] < 0.0) << i);
    if matches!(even, Parity::Even) && signs.count_ones() % 2 == 1 {
        let least = (0..8).min_by(|&a, &b| magnitudes[a].total_cmp(&magnitudes[b])).unwrap_or(0);
        signs ^= 1 << least;
        magnitudes[least] = -magnitudes[least];
    }
    (signs, magnitudes)
}

/// Whether a format stores all signs of eight elements or the first seven of an even number.
#[derive(Clone, Copy)]
pub(super) enum Parity {
    Any,
    Even,
}

/// Numbers `s` in `0..=max` with `wanted ≈ d · step · (s + 0.5)`, and that d · step.
pub(super) fn half_step_scales<const G: usize>(wanted: &[f32; G], max: u8) -> ([u8; G], f32) {
    let unit = wanted.iter().fold(0.0, |most: f32, &scale| most.max(scale)) / (f32::from(max) + 0.5);
    (wanted.map(|scale| fit::code(scale, fit::inverse(unit), -0.5, max)), unit)
}

/// The factor that brings `values` closest to `x`.
pub(super) fn refit(x: &[f32], values: &[f32]) -> f32 {
    let (vx, vv) = x.iter().zip(values).fold((0.0, 0.0), |(vx, vv), (x, v)| (vx + v * x, vv + v * v));
    vx * fit::inverse(vv)
}
