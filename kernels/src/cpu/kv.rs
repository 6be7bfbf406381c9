//! Element types of the KV cache: how a block of [`KV_BLOCK`] tokens of one KV head lies in memory, how one token is
//! written to it, and how a block is read back as f32.
//!
//! | type | keys | values |
//! |---|---|---|
//! | f32, f16 | `[dim][KV_BLOCK]` | `[KV_BLOCK][dim]` |
//! | q8_0 | int8 `[dim][KV_BLOCK]`, then scales | int8 `[KV_BLOCK][dim]`, then scales |
//! | q4_0 | bytes `[dim / 2][KV_BLOCK]`: elements `2j` (low nibble) and `2j + 1`; then scales | bytes `[KV_BLOCK][dim / 2]`, in groups of 16 bytes: elements `i` (low) and `i + 16`; then scales |
//!
//! Scales are f16 `[dim / KV_GROUP][KV_BLOCK]`: one for each token and [`KV_GROUP`] elements of its head, so that a token is
//! stored without a look at its neighbours and no two tokens share a byte.

use std::fmt;
use std::str::FromStr;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::attention::KV_BLOCK;
use super::simd::{LANES, Lanes};

/// Goes up when the bytes of a block or the numbers in it change their meaning: files of blocks from before are of no use then.
pub const KV_LAYOUT: u32 = 2;

/// Elements of a head that share a scale in a quantised cache.
pub const KV_GROUP: usize = 32;

/// Element type of a KV cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub enum KvType {
    /// Single precision.
    F32,
    /// Half precision.
    #[default]
    F16,
    /// int8 and a scale for 32 elements: 8.5 bits an element.
    Q8_0,
    /// Four bits and a scale for 32 elements: 4.5 bits an element.
    Q4_0,
}

impl KvType {
    /// All of them, largest first.
    pub const ALL: [Self; 4] = [Self::F32, Self::F16, Self::Q8_0, Self::Q4_0];

    /// Name in options and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        }
    }

    /// Whether heads of `dim` elements can be stored: the quantised types take whole groups.
    pub const fn fits(self, dim: usize) -> bool {
        matches!(self, Self::F32 | Self::F16) || dim.is_multiple_of(KV_GROUP)
    }

    /// Bytes of the keys, or of the values, of one token and one head.
    pub const fn token_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 => 4 * dim,
            Self::F16 => 2 * dim,
            Self::Q8_0 => dim + dim / KV_GROUP * 2,
            Self::Q4_0 => dim / 2 + dim / KV_GROUP * 2,
        }
    }

    /// Bytes of the keys, or of the values, of a block of one head: a multiple of 64.
    pub const fn block_bytes(self, dim: usize) -> usize {
        self.token_bytes(dim) * KV_BLOCK
    }

    /// Where the scales begin in a block.
    const fn codes_bytes(self, dim: usize) -> usize {
        match self {
            Self::F32 | Self::F16 => self.block_bytes(dim),
            Self::Q8_0 => dim * KV_BLOCK,
            Self::Q4_0 => dim / 2 * KV_BLOCK,
        }
    }

    /// Replaces the elements of one head by what the cache gives back for them.
    ///
    /// # Panics
    /// If the length doesn't [`Self::fits`].
    pub fn round(self, head: &mut [f32]) {
        assert!(self.fits(head.len()), "heads of {} elements in {}", head.len(), self.name());
        match self {
            Self::F32 => {}
            Self::F16 => head.iter_mut().for_each(|x| *x = saturate(*x).to_f32()),
            Self::Q8_0 | Self::Q4_0 => {
                for group in head.as_chunks_mut::<KV_GROUP>().0 {
                    let (codes, scale) = self.quantize(group);
                    for (x, code) in group.iter_mut().zip(codes) {
                        *x = f32::from(code) * scale.to_f32();
                    }
                }
            }
        }
    }

    /// Codes of a group, `-127..=127` or `-8..=7`, and their scale.
    fn quantize(self, group: &[f32; KV_GROUP]) -> ([i8; KV_GROUP], f16) {
        let largest = group.iter().fold(0.0f32, |most, &x| if x.abs() > most.abs() { x } else { most });
        // Four bits reach one further down than up: the largest element gets the −8.
        let (scale, low, high) = match self {
            Self::Q4_0 => (saturate(largest / -8.0), -8.0, 7.0),
            _ => (saturate(largest.abs() / 127.0), -127.0, 127.0),
        };
        let wide = scale.to_f32();
        let inverse = if wide == 0.0 { 0.0 } else { 1.0 / wide };
        // The scale was rounded after the division, so a code may fall just outside. A NaN becomes 0.
        (group.map(|x| (x * inverse).round_ties_even().clamp(low, high) as i8), scale)
    }

    /// Writes the keys of one token and head to its slot of a block.
    ///
    /// # Safety
    /// `block` is valid for writes of [`Self::block_bytes`] of `key.len()` elements and aligned to 4 bytes; nobody else touches
    /// this slot's bytes meanwhile.
    ///
    /// # Panics
    /// If the slot is not in a block, or the length doesn't [`Self::fits`].
    pub(super) unsafe fn store_key(self, block: *mut u8, slot: usize, key: &[f32]) {
        assert!(slot < KV_BLOCK && self.fits(key.len()), "kv cache: slot {slot}, {} elements", key.len());
        match self {
            Self::F32 => {
                for (d, x) in key.iter().enumerate() {
                    // SAFETY: element `d · KV_BLOCK + slot` of `dim · KV_BLOCK`.
                    unsafe { block.cast::<f32>().add(d * KV_BLOCK + slot).write(*x) };
                }
            }
            Self::F16 => {
                for (first, part) in (0..).step_by(KV_GROUP).zip(key.chunks(KV_GROUP)) {
                    for (d, x) in (first..).zip(&saturate_all(part)[..part.len()]) {
                        // SAFETY: as above.
                        unsafe { block.cast::<f16>().add(d * KV_BLOCK + slot).write(*x) };
                    }
                }
            }
            Self::Q8_0 | Self::Q4_0 => {
                for (g, group) in key.as_chunks::<KV_GROUP>().0.iter().enumerate() {
                    let (codes, scale) = self.quantize(group);
                    // SAFETY: bytes `[dim or dim / 2][KV_BLOCK]`, of which `slot` is a column; then the scale's place.
                    unsafe {
                        if self == Self::Q8_0 {
                            for (d, code) in codes.iter().enumerate() {
                                block.add((g * KV_GROUP + d) * KV_BLOCK + slot).write(*code as u8);
                            }
                        } else {
                            for (j, [low, high]) in codes.as_chunks::<2>().0.iter().enumerate() {
                                block.add((g * KV_GROUP / 2 + j) * KV_BLOCK + slot).write(nibbles(*low, *high));
                            }
                        }
                        self.store_scale(block, key.len(), g, slot, scale);
                    }
                }
            }
        }
    }

    /// Writes the values of one token and head to its slot of a block.
    ///
    /// # Safety
    /// As [`Self::store_key`].
    ///
    /// # Panics
    /// As [`Self::store_key`].
    pub(super) unsafe fn store_value(self, block: *mut u8, slot: usize, value: &[f32]) {
        let dim = value.len();
        assert!(slot < KV_BLOCK && self.fits(dim), "kv cache: slot {slot}, {dim} elements");
        match self {
            Self::F32 => {
                for (d, x) in value.iter().enumerate() {
                    // SAFETY: element `slot · dim + d` of `KV_BLOCK · dim`.
                    unsafe { block.cast::<f32>().add(slot * dim + d).write(*x) };
                }
            }
            Self::F16 => {
                for (first, part) in (0..).step_by(KV_GROUP).zip(value.chunks(KV_GROUP)) {
                    for (d, x) in (first..).zip(&saturate_all(part)[..part.len()]) {
                        // SAFETY: as above.
                        unsafe { block.cast::<f16>().add(slot * dim + d).write(*x) };
                    }
                }
            }
            Self::Q8_0 | Self::Q4_0 => {
                for (g, group) in value.as_chunks::<KV_GROUP>().0.iter().enumerate() {
                    let (codes, scale) = self.quantize(group);
                    // SAFETY: bytes `[KV_BLOCK][dim or dim / 2]`, of which `slot` is a row; then the scale's place.
                    unsafe {
                        if self == Self::Q8_0 {
                            for (d, code) in codes.iter().enumerate() {
                                block.add(slot * dim + g * KV_GROUP + d).write(*code as u8);
                            }
                        } else {
                            let (low, high) = codes.split_at(KV_GROUP / 2);
                            for (i, (low, high)) in low.iter().zip(high).enumerate() {
                                block.add((slot * dim + g * KV_GROUP) / 2 + i).write(nibbles(*low, *high));
                            }
                        }
                        self.store_scale(block, dim, g, slot, scale);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::store_key`], of a quantised type, for a group of the `dim` elements.
    unsafe fn store_scale(self, block: *mut u8, dim: usize, group: usize, slot: usize, scale: f16) {
        // SAFETY: behind the codes lie `dim / KV_GROUP · KV_BLOCK` scales; their start is even, as `block` is.
        unsafe { block.add(self.codes_bytes(dim)).cast::<f16>().add(group * KV_BLOCK + slot).write(scale) };
    }
}

impl FromStr for KvType {
    type Err = crate::Error;

    fn from_str(name: &str) -> crate::Result<Self> {
        let found = Self::ALL.into_iter().find(|kv| kv.name() == name);
        found.ok_or_else(|| crate::Error::KvType { got: name.to_owned(), known: Self::ALL.map(Self::name).join(", ") })
    }
}

/// The blocks that a cache lies in. Layers that see a window only have blocks of their own, which a sequence gives back
/// when they have fallen out of the window, so that a cache is addressed by the table of its pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvPool {
    /// Those that hold a sequence from its first token on.
    Full,
    /// Those that hold the last tokens.
    Window,
}

/// Element types of a KV cache. Keys decide which values are looked at and suffer more from few bits than values do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct KvTypes {
    /// Of keys.
    pub k: KvType,
    /// Of values.
    pub v: KvType,
}

impl KvTypes {
    /// Whether heads of these sizes can be stored.
    pub const fn fits(self, k_dim: usize, v_dim: usize) -> bool {
        self.k.fits(k_dim) && self.v.fits(v_dim)
    }

    /// Bytes of the keys and values of one token and one head.
    pub const fn token_bytes(self, k_dim: usize, v_dim: usize) -> usize {
        self.k.token_bytes(k_dim) + self.v.token_bytes(v_dim)
    }
}

impl From<KvType> for KvTypes {
    /// The same for both.
    fn from(kv: KvType) -> Self {
        Self { k: kv, v: kv }
    }
}

impl fmt::Display for KvTypes {
    /// `q8_0`, or keys before values: `q8_0,q4_0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.k.name())?;
        if self.k == self.v { Ok(()) } else { write!(f, ",{}", self.v.name()) }
    }
}

impl FromStr for KvTypes {
    type Err = crate::Error;

    fn from_str(names: &str) -> crate::Result<Self> {
        match names.split_once(',') {
            Some((k, v)) => Ok(Self { k: k.parse()?, v: v.parse()? }),
            None => names.parse().map(KvType::into),
        }
    }
}

/// To half precision; beyond its range the largest finite value: an infinity in the cache would poison every later token.
fn saturate(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}

/// [`saturate`] of each; several with an instruction where the CPU has one.
fn saturate_all(part: &[f32]) -> [f16; KV_GROUP] {
    let (mut clamped, mut halves) = ([0.0; KV_GROUP], [f16::ZERO; KV_GROUP]);
    for (to, x) in clamped.iter_mut().zip(part) {
        *to = x.clamp(-65504.0, 65504.0);
    }
    halves.convert_from_f32_slice(&clamped);
    halves
}

/// Two codes in `-8..=7` as a byte.
fn nibbles(low: i8, high: i8) -> u8 {
    (low + 8) as u8 | ((high + 8) as u8) << 4
}

/// Widens f16 to f32; the tail that no vector fills goes one by one.
#[inline(always)]
fn widen_f16<L: Lanes>(l: L, from: &[f16], to: &mut [f32]) {
    let (chunks, tail) = from.as_chunks::<LANES>();
    let (outs, out_tail) = to.as_chunks_mut::<LANES>();
    for (x, out) in chunks.iter().zip(outs) {
        l.store(l.load_f16(x), out);
    }
    for (x, out) in tail.iter().zip(out_tail) {
        *out = x.to_f32();
    }
}

/// A block's keys as f32, `[dim][KV_BLOCK]`. `block` is exactly [`KvType::block_bytes`] long and aligned to 4 bytes.
#[inline(always)]
pub(super) fn widen_keys<L: Lanes>(l: L, kv: KvType, block: &[u8], dim: usize, to: &mut [f32]) {
    match kv {
        KvType::F32 => to[..dim * KV_BLOCK].copy_from_slice(bytemuck::cast_slice(block)),
        KvType::F16 => widen_f16(l, bytemuck::cast_slice(block), &mut to[..dim * KV_BLOCK]),
        KvType::Q8_0 | KvType::Q4_0 => {
            let (codes, scales) = block.split_at(kv.codes_bytes(dim));
            let scales = bytemuck::cast_slice::<u8, f16>(scales).as_chunks::<LANES>().0.as_chunks::<2>().0;
            let groups = to.as_chunks_mut::<LANES>().0.as_chunks_mut::<{ 2 * KV_GROUP }>().0;
            let group_bytes = codes.len() / (dim / KV_GROUP);
            for ((codes, scale), out) in codes.chunks_exact(group_bytes).zip(scales).zip(groups) {
                let scale = [l.load_f16(&scale[0]), l.load_f16(&scale[1])];
                let codes = codes.as_chunks::<LANES>().0;
                if kv == KvType::Q8_0 {
                    for (row, out) in codes.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<2>().0) {
                        l.store(l.mul(l.load_i8(bytemuck::cast_ref(&row[0])), scale[0]), &mut out[0]);
                        l.store(l.mul(l.load_i8(bytemuck::cast_ref(&row[1])), scale[1]), &mut out[1]);
                    }
                } else {
                    // A row of bytes is two rows of elements.
                    for (row, out) in codes.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<4>().0) {
                        for half in 0..2 {
                            let [even, odd] = l.load_nibbles(&row[half]);
                            l.store(l.mul(even, scale[half]), &mut out[half]);
                            l.store(l.mul(odd, scale[half]), &mut out[2 + half]);
                        }
                    }
                }
            }
        }
    }
}

/// A block's values as f32, `[KV_BLOCK][dim]`. `block` as in [`widen_keys`].
#[inline(always)]
pub(super) fn widen_values<L: Lanes>(l: L, kv: KvType, block: &[u8], dim: usize, to: &mut [f32]) {
    match kv {
        KvType::F32 => to[..dim * KV_BLOCK].copy_from_slice(bytemuck::cast_slice(block)),
        KvType::F16 => widen_f16(l, bytemuck::cast_slice(block), &mut to[..dim * KV_BLOCK]),
        KvType::Q8_0 | KvType::Q4_0 => {
            let (codes, scales) = block.split_at(kv.codes_bytes(dim));
            let scales = bytemuck::cast_slice::<u8, f16>(scales);
            let codes = codes.as_chunks::<LANES>().0;
            let num_groups = dim / KV_GROUP;
            for (g, scales) in scales.as_chunks::<KV_BLOCK>().0.iter().enumerate() {
                let mut wide = [0.0; KV_BLOCK];
                widen_f16(l, scales, &mut wide);
                for (t, scale) in wide.iter().enumerate() {
                    let scale = l.splat(*scale);
                    let group = t * num_groups + g;
                    let pair = if kv == KvType::Q8_0 {
                        let code = |i: usize| l.load_i8(bytemuck::cast_ref(&codes[2 * group + i]));
                        [code(0), code(1)]
                    } else {
                        l.load_nibbles(&codes[group])
                    };
                    let out = to[group * KV_GROUP..][..KV_GROUP].as_chunks_mut::<LANES>().0;
                    l.store(l.mul(pair[0], scale), &mut out[0]);
                    l.store(l.mul(pair[1], scale), &mut out[1]);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for k in KvType::ALL {
            for v in KvType::ALL {
                assert_eq!(KvTypes { k, v }.to_string().parse::<KvTypes>(), Ok(KvTypes { k, v }));
            }
            assert_eq!(KvTypes::from(k).to_string(), k.name());
        }
        for wrong in ["", "q8", "q8_0,", ",q8_0", "q8_0, q4_0", "q8_0,q4_0,f16"] {
            let error = wrong.parse::<KvTypes>().unwrap_err().to_string();
            assert!(error.contains("f32, f16, q8_0, q4_0"), "{wrong}: {error}");
        }
    }
}
