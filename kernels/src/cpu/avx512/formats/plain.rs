//! Blocks of 32 whose codes are shifted out of their bits.

use core::arch::x86_64::*;

use super::format::{
    Format, Mins, Order, both_halves, four_words, heads, low_halves, nibbles_by_16, quarters, read_u32, twice,
    two_nibbles,
};
use crate::quant::{BlockIq4Nl, BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0, IQ4_LEVELS};

impl Format for BlockQ4_0 {
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: nibbles are bytes 2..18 of blocks 4i to 4i + 3.
        unsafe { two_nibbles(quarters::<18>(chunk.add(72 * i + 2))) }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads::<18>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; nibbles are bytes 2..18 of each.
        unsafe { nibbles_by_16(twice(chunk.add(36 * i + 2), chunk.add(36 * i + 20))) }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: bytes 2..18 of the block.
        unsafe { nibbles_by_16(twice(block.add(2), block.add(2))) }
    }
}

impl Format for BlockQ4_1 {
    const MINS: Mins = Mins::Apart;
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: nibbles are bytes 4..20 of blocks 4i to 4i + 3.
        unsafe { two_nibbles(quarters::<20>(chunk.add(80 * i + 4))) }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe {
            let heads = heads::<20>(chunk, count);
            (low_halves(heads), low_halves(_mm512_srli_epi32::<16>(heads)))
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; nibbles are bytes 4..20 of each.
        unsafe { nibbles_by_16(twice(chunk.add(40 * i + 4), chunk.add(40 * i + 24))) }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: bytes 4..20 of the block.
        unsafe { nibbles_by_16(twice(block.add(4), block.add(4))) }
    }
}

/// Codes of two 5-bit blocks: nibbles from `twice`, fifth bits as one mask.
#[inline(always)]
unsafe fn five_bits(nibbles: __m512i, high_a: u32, high_b: u32) -> __m512i {
    // SAFETY: value-only.
    unsafe {
        let codes = nibbles_by_16(nibbles);
        let mask = u64::from(high_a) | u64::from(high_b) << 32;
        _mm512_mask_add_epi8(codes, mask, codes, _mm512_set1_epi8(16))
    }
}

/// As [`five_bits`] of two registers of nibbles; `high` are the fifth bits of four blocks of `BYTES`.
#[inline(always)]
unsafe fn two_five_bits<const BYTES: usize>(nibbles: [__m512i; 2], high: *const u8) -> [__m512i; 2] {
    // SAFETY: the caller's four bytes in each of the blocks.
    unsafe {
        let sixteen = _mm512_set1_epi8(16);
        [
            _mm512_mask_add_epi8(nibbles[0], four_words::<BYTES>(high), nibbles[0], sixteen),
            _mm512_mask_add_epi8(nibbles[1], four_words::<BYTES>(high.add(2)), nibbles[1], sixteen),
        ]
    }
}

impl Format for BlockQ5_0 {
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: blocks 4i to 4i + 3; fifth bits are bytes 2..6 of each, nibbles 6..22.
        unsafe {
            let first = chunk.add(88 * i);
            two_five_bits::<22>(two_nibbles(quarters::<22>(first.add(6))), first.add(2))
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads::<22>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; fifth bits are bytes 2..6 of each, nibbles 6..22.
        unsafe {
            let (a, b) = (chunk.add(44 * i), chunk.add(44 * i + 22));
            five_bits(twice(a.add(6), b.add(6)), read_u32(a.add(2)), read_u32(b.add(2)))
        }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: as in `codes`.
        unsafe { five_bits(twice(block.add(6), block.add(6)), read_u32(block.add(2)), 0) }
    }
}

impl Format for BlockQ5_1 {
    const MINS: Mins = Mins::Apart;
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: blocks 4i to 4i + 3; fifth bits are bytes 4..8 of each, nibbles 8..24.
        unsafe {
            let first = chunk.add(96 * i);
            two_five_bits::<24>(two_nibbles(quarters::<24>(first.add(8))), first.add(4))
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe {
            let heads = heads::<24>(chunk, count);
            (low_halves(heads), low_halves(_mm512_srli_epi32::<16>(heads)))
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; fifth bits are bytes 4..8 of each, nibbles 8..24.
        unsafe {
            let (a, b) = (chunk.add(48 * i), chunk.add(48 * i + 24));
            five_bits(twice(a.add(8), b.add(8)), read_u32(a.add(4)), read_u32(b.add(4)))
        }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: as in `codes`.
        unsafe { five_bits(twice(block.add(8), block.add(8)), read_u32(block.add(4)), 0) }
    }
}

impl Format for BlockQ8_0 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads::<34>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; quants are bytes 2..34 of each.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(chunk.add(68 * i + 2).cast()));
            let pair = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(chunk.add(68 * i + 36).cast()));
            _mm512_xor_si512(pair, _mm512_set1_epi8(-128))
        }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: bytes 2..34 of the block.
        unsafe { _mm512_xor_si512(both_halves(block.add(2)), _mm512_set1_epi8(-128)) }
    }
}

/// Indices to levels.
#[inline(always)]
pub(super) unsafe fn levels(indices: __m512i) -> __m512i {
    // SAFETY: 16 bytes of the table.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast())), indices) }
}

impl Format for BlockIq4Nl {
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: as Q4_0.
        unsafe {
            let [first, second] = BlockQ4_0::pair(chunk, i);
            [levels(first), levels(second)]
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks, laid out as those of Q4_0.
        unsafe { BlockQ4_0::scales(chunk, count) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: as Q4_0.
        unsafe { levels(BlockQ4_0::codes(chunk, i)) }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: as Q4_0.
        unsafe { levels(BlockQ4_0::half(block)) }
    }
}
