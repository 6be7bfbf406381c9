//! Formats of up to four bits without codebooks, and the 8-bit formats of activations.

use core::arch::x86_64::*;

use super::format::{
    Aligned, Format, Order, both_halves, heads, low_halves, nibbles_by_16, quarters, read_u32, twice, two_bits,
    two_nibbles,
};
use crate::quant::{
    BlockMxfp4, BlockNvfp4, BlockQ1_0, BlockQ2_0, BlockQ8_1, BlockQ8K, BlockTq1_0, BlockTq2_0, FP4_LEVELS,
};

/// Little-endian half at `p`, in all lanes.
#[inline(always)]
unsafe fn half_everywhere(p: *const u8) -> __m512 {
    // SAFETY: the caller's two bytes.
    unsafe { _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned())) }
}

/// As [`heads`], for blocks of `GROUPS` groups, 2 or 4: a lane for each group of `count` blocks, zero behind.
#[inline(always)]
unsafe fn heads_of_groups<const BYTES: usize, const GROUPS: usize>(chunk: *const u8, count: usize) -> __m512i {
    const { assert!(GROUPS == 2 || GROUPS == 4) };
    // SAFETY: blocks are longer than four bytes; those behind the last are replaced by the last.
    unsafe {
        let head = |i: usize| read_u32(chunk.add(i.min(count - 1) * BYTES)) as i32;
        let eight = if GROUPS == 4 {
            _mm256_castsi128_si256(_mm_setr_epi32(head(0), head(1), head(2), head(3)))
        } else {
            _mm256_setr_epi32(head(0), head(1), head(2), head(3), head(4), head(5), head(6), head(7))
        };
        let block = if GROUPS == 4 {
            _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3)
        } else {
            _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7)
        };
        let mask = ((1u32 << (count * GROUPS)) - 1) as u16;
        _mm512_maskz_permutexvar_epi32(mask, block, _mm512_castsi256_si512(eight))
    }
}

/// Nibbles to codes of e2m1.
#[inline(always)]
unsafe fn fp4_levels(nibbles: __m512i) -> __m512i {
    // SAFETY: 16 bytes of the table.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(FP4_LEVELS.as_ptr().cast())), nibbles) }
}

impl Format for BlockMxfp4 {
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: nibbles are bytes 1..17 of blocks 4i to 4i + 3.
        unsafe {
            let [first, second] = two_nibbles(quarters::<17>(chunk.add(68 * i + 1)));
            [fp4_levels(first), fp4_levels(second)]
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe {
            let heads = heads::<17>(chunk, count);
            let e = _mm512_and_si512(heads, _mm512_set1_epi32(255));
            // 2^(e − 128), where the least two are subnormal.
            let normal = _mm512_slli_epi32::<23>(_mm512_sub_epi32(e, _mm512_set1_epi32(1)));
            let small = _mm512_cmplt_epi32_mask(e, _mm512_set1_epi32(2));
            let bits = _mm512_mask_sllv_epi32(normal, small, _mm512_set1_epi32(0x0020_0000), e);
            let all = ((1u32 << count) - 1) as u16;
            (_mm512_castsi512_ps(_mm512_maskz_mov_epi32(all, bits)), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; nibbles are bytes 1..17 of each.
        unsafe { fp4_levels(nibbles_by_16(twice(chunk.add(34 * i + 1), chunk.add(34 * i + 18)))) }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: bytes 1..17 of the block.
        unsafe { fp4_levels(nibbles_by_16(twice(block.add(1), block.add(1)))) }
    }
}

impl Format for BlockNvfp4 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe {
            // Each lane gets its block's four bytes, and takes its own.
            let heads = heads_of_groups::<36, 4>(chunk, count);
            let counts = _mm512_set_epi32(24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0, 24, 16, 8, 0);
            let bytes = _mm512_and_si512(_mm512_srlv_epi32(heads, counts), _mm512_set1_epi32(255));
            let is_number = _mm512_cmpneq_epi32_mask(bytes, _mm512_set1_epi32(0x7f));
            // Exponent and mantissa where f32 has them, subnormal or not; 2^119 moves the bias from 127 to 8.
            let bits = _mm512_slli_epi32::<20>(_mm512_and_si512(bytes, _mm512_set1_epi32(0x7f)));
            let bias = _mm512_set1_ps(f32::from_bits((119 + 127) << 23));
            (_mm512_maskz_mul_ps(is_number, _mm512_castsi512_ps(bits), bias), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 4..36 of block i.
        unsafe {
            // Each eight bytes twice: low nibbles, then high ones.
            let pairs = _mm512_set_epi64(3, 3, 2, 2, 1, 1, 0, 0);
            let bytes = _mm512_permutexvar_epi64(pairs, both_halves(chunk.add(36 * i + 4)));
            let nibbles = _mm512_srlv_epi64(bytes, _mm512_set_epi64(4, 0, 4, 0, 4, 0, 4, 0));
            fp4_levels(_mm512_and_si512(nibbles, _mm512_set1_epi8(15)))
        }
    }
}

impl Format for BlockQ1_0 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads_of_groups::<18, 4>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 8·(i % 2) ..+ 8 of block i / 2.
        unsafe {
            let bits = chunk.add(18 * (i / 2) + 2 + 8 * (i % 2)).cast::<u64>().read_unaligned();
            _mm512_maskz_set1_epi8(bits, 2)
        }
    }
}

impl Format for BlockQ2_0 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads_of_groups::<18, 2>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2..18 of block i.
        unsafe {
            // A byte in each 32 bits; its upper nibble to byte 2, then the upper two bits of both nibbles one byte up.
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(chunk.add(18 * i + 2).cast()));
            let nibbles = _mm512_or_si512(bytes, _mm512_slli_epi32::<12>(bytes));
            let pairs = _mm512_or_si512(nibbles, _mm512_slli_epi32::<6>(nibbles));
            _mm512_and_si512(pairs, _mm512_set1_epi8(3))
        }
    }
}

impl Format for BlockTq2_0 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 64..66 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe { (half_everywhere(chunk.add(64)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 32·(i / 2) ..+ 32 of the block, i < 4.
        unsafe {
            let bits = two_bits(chunk.add(32 * (i / 2)), 4 * (i as i32 % 2));
            _mm512_and_si512(bits, _mm512_set1_epi8(3))
        }
    }
}

impl Format for BlockTq1_0 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 52..54 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe { (half_everywhere(chunk.add(52)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        /// The power of three for each byte of register i.
        static POWERS: [Aligned<[u8; 64]>; 4] = {
            let mut out = [const { Aligned([0; 64]) }; 4];
            let powers = [1, 3, 9, 27, 81];
            let mut e = 0;
            while e < 256 {
                let digit = if e < 160 {
                    e / 32
                } else if e < 240 {
                    (e - 160) / 16
                } else {
                    (e - 240) / 4
                };
                out[e / 64].0[e % 64] = powers[digit];
                e += 1;
            }
            out
        };
        // SAFETY: bytes 0..52 of the block, i < 4.
        unsafe {
            let bytes = match i {
                0 | 1 => both_halves(chunk),
                2 => {
                    let tail = _mm256_broadcastsi128_si256(_mm_loadu_si128(chunk.add(32).cast()));
                    _mm512_inserti64x4::<1>(both_halves(chunk), tail)
                }
                _ => {
                    let tail = _mm512_broadcast_i32x4(_mm_loadu_si128(chunk.add(32).cast()));
                    _mm512_inserti32x4::<3>(tail, _mm_set1_epi32(read_u32(chunk.add(48)) as i32))
                }
            };
            let powers = _mm512_load_si512((&raw const POWERS[i]).cast());
            // Even and odd bytes in the upper halves of 16 bits: byte · power mod 256, times three, whose carry is the digit.
            let upper = _mm512_set1_epi16(0xff00_u16 as i16);
            let three = _mm512_set1_epi16(3);
            let power_of_even = _mm512_and_si512(powers, _mm512_set1_epi16(255));
            let power_of_odd = _mm512_srli_epi16::<8>(powers);
            let even = _mm512_mullo_epi16(_mm512_slli_epi16::<8>(bytes), power_of_even);
            let odd = _mm512_mullo_epi16(_mm512_and_si512(bytes, upper), power_of_odd);
            let odd_digits = _mm512_slli_epi16::<8>(_mm512_mulhi_epu16(odd, three));
            _mm512_or_si512(_mm512_mulhi_epu16(even, three), odd_digits)
        }
    }
}

impl Format for BlockQ8_1 {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512) {
        // SAFETY: the caller's blocks.
        unsafe { (low_halves(heads::<36>(chunk, count)), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: blocks 2i and 2i + 1; quants are bytes 4..36 of each.
        unsafe {
            let low = _mm512_castsi256_si512(_mm256_loadu_si256(chunk.add(72 * i + 4).cast()));
            let pair = _mm512_inserti64x4::<1>(low, _mm256_loadu_si256(chunk.add(72 * i + 40).cast()));
            _mm512_xor_si512(pair, _mm512_set1_epi8(-128))
        }
    }

    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        // SAFETY: bytes 4..36 of the block.
        unsafe { _mm512_xor_si512(both_halves(block.add(4)), _mm512_set1_epi8(-128)) }
    }
}

impl Format for BlockQ8K {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..4 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe { (_mm512_set1_ps(f32::from_bits(read_u32(chunk))), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 4 + 64·i ..+ 64 of the block, i < 4.
        unsafe { _mm512_xor_si512(_mm512_loadu_si512(chunk.add(4 + 64 * i).cast()), _mm512_set1_epi8(-128)) }
    }
}
