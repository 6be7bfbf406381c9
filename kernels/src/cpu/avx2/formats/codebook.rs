//! IQ1, IQ2 and IQ3: points of a codebook, loaded one by one, which on CPUs of this level is no slower than gathers.
//!
//! Points are stored as codes, offset + level. Formats around 128 become signed here: code − 128 is the code with its top bit turned.

use core::arch::x86_64::*;

use super::{
    few_bits::bytes_of_bits,
    plain::{Format, half_at},
};
use crate::quant::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, IQ1_POINTS, IQ2_S_POINTS,
    IQ2_XS_POINTS, IQ2_XXS_POINTS, IQ3_S_POINTS, IQ3_XXS_POINTS,
};

/// Four points of eight codes.
#[inline(always)]
unsafe fn points_of_8<const N: usize>(table: &[u64; N], index: impl Fn(usize) -> u32) -> __m256i {
    // SAFETY: value-only; the table's bounds are checked, or known from the index's bits.
    unsafe {
        let point = |l| table[index(l) as usize % N] as i64;
        _mm256_set_epi64x(point(3), point(2), point(1), point(0))
    }
}

/// Eight points of four codes.
#[inline(always)]
unsafe fn points_of_4<const N: usize>(table: &[u32; N], index: impl Fn(usize) -> u32) -> __m256i {
    // SAFETY: value-only; the table's bounds are checked, or known from the index's bits.
    unsafe {
        let point = |l| table[index(l) as usize % N] as i32;
        _mm256_set_epi32(point(7), point(6), point(5), point(4), point(3), point(2), point(1), point(0))
    }
}

/// Signed levels of points around 128.
#[inline(always)]
unsafe fn signed(points: __m256i, signs: u32) -> __m256i {
    // SAFETY: value-only.
    unsafe {
        let negative = bytes_of_bits(signs);
        let turned = _mm256_xor_si256(points, _mm256_xor_si256(negative, _mm256_set1_epi8(-128)));
        _mm256_sub_epi8(turned, negative)
    }
}

/// Four times eight sign bits from four times seven: the eighth makes the number of set bits even.
#[inline(always)]
fn even_signs(word: u32) -> u32 {
    let sevens = word & 0x7f | (word << 1) & 0x7f00 | (word << 2) & 0x7f_0000 | (word << 3) & 0x7f00_0000;
    even_signs_of_bytes(sevens)
}

/// As [`even_signs`], from bytes.
#[inline(always)]
fn even_signs_of_bytes(sevens: u32) -> u32 {
    // Each step halves the bits that hold the parity of a byte, down to bit 0.
    let mut parity = sevens ^ sevens >> 4;
    parity ^= parity >> 2;
    parity ^= parity >> 1;
    sevens | (parity & 0x0101_0101) << 7
}

/// Little-endian u32 at `p`.
#[inline(always)]
unsafe fn read_u32(p: *const u8) -> u32 {
    // SAFETY: the caller's four bytes.
    unsafe { p.cast::<u32>().read_unaligned() }
}

/// Little-endian u16 at `p`.
#[inline(always)]
unsafe fn read_u16(p: *const u8) -> u32 {
    // SAFETY: the caller's two bytes.
    unsafe { p.cast::<u16>().read_unaligned().into() }
}

/// d · (2 · number + 1).
#[inline(always)]
fn odd_multiple(d: f32, number: u32) -> f32 {
    d * (2 * number + 1) as f32
}

/// Scales from nibbles of the bytes at `p`, low ones first.
#[inline(always)]
unsafe fn nibble_scales(d: f32, p: *const u8, scales: &mut [f32]) {
    for (i, pair) in scales.as_chunks_mut::<2>().0.iter_mut().enumerate() {
        // SAFETY: the caller has a byte for each two scales.
        let byte = u32::from(unsafe { *p.add(i) });
        *pair = [odd_multiple(d, byte & 15), odd_multiple(d, byte >> 4)];
    }
}

impl Format for BlockIq2Xxs {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        for (g, scale) in scales[..8].iter_mut().enumerate() {
            // SAFETY: bytes 0..2 and 6 + 8·g ..+ 4 of the block.
            *scale = unsafe { odd_multiple(half_at(block) * 0.125, read_u32(block.add(6 + 8 * g)) >> 28) };
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 8·i ..+ 8 of the block, i < 8.
        unsafe {
            let indices = read_u32(block.add(2 + 8 * i));
            let points = points_of_8(&IQ2_XXS_POINTS, |l| indices >> (8 * l) & 255);
            signed(points, even_signs(read_u32(block.add(6 + 8 * i))))
        }
    }
}

impl Format for BlockIq2Xs {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 and 66..74 of the block.
        unsafe { nibble_scales(half_at(block) * 0.125, block.add(66), scales) }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 8·i ..+ 8 of the block, i < 8.
        unsafe {
            let word = |l: usize| read_u16(block.add(2 + 8 * i + 2 * l));
            let points = points_of_8(&IQ2_XS_POINTS, |l| word(l) & 511);
            let sevens = (0..4).fold(0, |sevens, l| sevens | (word(l) >> 9) << (8 * l));
            signed(points, even_signs_of_bytes(sevens))
        }
    }
}

impl Format for BlockIq2S {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 and 74..82 of the block.
        unsafe { nibble_scales(half_at(block) * 0.125, block.add(74), scales) }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 4·i ..+ 4, 34 + 4·i ..+ 4 and byte 66 + i of the block, i < 8.
        unsafe {
            let (low, high) = (read_u32(block.add(2 + 4 * i)), u32::from(*block.add(66 + i)));
            let points = points_of_8(&IQ2_S_POINTS, |l| (low >> (8 * l) & 255) | (high >> (2 * l) & 3) << 8);
            signed(points, read_u32(block.add(34 + 4 * i)))
        }
    }
}

impl Format for BlockIq3Xxs {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        for (g, scale) in scales[..8].iter_mut().enumerate() {
            // SAFETY: bytes 0..2 and 66 + 4·g ..+ 4 of the block.
            *scale = unsafe { odd_multiple(half_at(block) * 0.25, read_u32(block.add(66 + 4 * g)) >> 28) };
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 8·i ..+ 8 and 66 + 4·i ..+ 4 of the block, i < 8.
        unsafe {
            let points = points_of_4(&IQ3_XXS_POINTS, |l| u32::from(*block.add(2 + 8 * i + l)));
            signed(points, even_signs(read_u32(block.add(66 + 4 * i))))
        }
    }
}

impl Format for BlockIq3S {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 and 106..110 of the block.
        unsafe { nibble_scales(half_at(block), block.add(106), &mut scales[..8]) }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 8·i ..+ 8, byte 66 + i and bytes 74 + 4·i ..+ 4 of the block, i < 8.
        unsafe {
            let ninth = u32::from(*block.add(66 + i));
            let index = |l: usize| u32::from(*block.add(2 + 8 * i + l)) | (ninth >> l & 1) << 8;
            let points = points_of_4(&IQ3_S_POINTS, index);
            // 30 − code where the sign is set.
            let negative = bytes_of_bits(read_u32(block.add(74 + 4 * i)));
            let turned = _mm256_sub_epi8(_mm256_xor_si256(points, negative), negative);
            _mm256_add_epi8(turned, _mm256_and_si256(negative, _mm256_set1_epi8(30)))
        }
    }
}

impl Format for BlockIq1S {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        for (g, scale) in scales[..8].iter_mut().enumerate() {
            // SAFETY: bytes 0..2 and 34 + 2·g ..+ 2 of the block.
            *scale = unsafe { odd_multiple(half_at(block) * 0.125, read_u16(block.add(34 + 2 * g)) >> 12 & 7) };
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 4·i ..+ 4 and 34 + 2·i ..+ 2 of the block, i < 8.
        unsafe {
            let (low, word) = (read_u32(block.add(2 + 4 * i)), read_u16(block.add(34 + 2 * i)));
            let points = points_of_8(&IQ1_POINTS, |l| (low >> (8 * l) & 255) | (word >> (3 * l) & 7) << 8);
            // The shift up is 2 more.
            _mm256_add_epi8(points, _mm256_set1_epi8((!word >> 14 & 2) as i8))
        }
    }
}

impl Format for BlockIq1M {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 48..56 of the block.
        unsafe {
            let words: [u32; 4] = std::array::from_fn(|i| read_u16(block.add(48 + 2 * i)));
            let d = words[0] >> 12 | words[1] >> 8 & 0xf0 | words[2] >> 4 & 0xf00 | words[3] & 0xf000;
            let d = _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(d as i32))) * 0.125;
            for (g, scale) in scales.iter_mut().enumerate() {
                *scale = odd_multiple(d, words[g / 4] >> (3 * (g % 4)) & 7);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 4·i ..+ 4 and 32 + 2·i ..+ 2 of the block, i < 8.
        unsafe {
            let (low, high) = (read_u32(block.add(4 * i)), read_u16(block.add(32 + 2 * i)));
            let points = points_of_8(&IQ1_POINTS, |l| (low >> (8 * l) & 255) | (high >> (4 * l) & 7) << 8);
            // The shift up is 2 more, in each of eight bytes.
            let up = |l: usize| (u64::from(!high >> (4 * l + 3) & 1) * 0x0202_0202_0202_0202) as i64;
            _mm256_add_epi8(points, _mm256_set_epi64x(up(3), up(2), up(1), up(0)))
        }
    }
}
