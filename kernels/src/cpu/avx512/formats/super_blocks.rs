//! Blocks of 256 whose groups have scales of their own: the K formats and IQ4_XS.

use core::arch::x86_64::*;

use super::{
    format::{
        Format, Mins, Order, both_halves, nibbles_by_16, read_u32, rotate_halves, select, twice, two_bits, two_nibbles,
    },
    plain::levels,
};
use crate::quant::{BlockIq4Xs, BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K};

/// Scales in lanes 0..8, minima in lanes 8..16, of a Q4_K or Q5_K block.
#[inline(always)]
unsafe fn k_scales(block: *const u8) -> __m512 {
    const LOW: u32 = 0x3f3f_3f3f;
    // SAFETY: the first 16 bytes of the block: d, dmin, and 12 bytes of 6-bit numbers.
    unsafe {
        let (a, b, c) = (read_u32(block.add(4)), read_u32(block.add(8)), read_u32(block.add(12)));
        let scales_high = (c & 0x0f0f_0f0f) | (a >> 6 & 0x0303_0303) << 4;
        let mins_high = (c >> 4 & 0x0f0f_0f0f) | (b >> 6 & 0x0303_0303) << 4;
        let scales = u64::from(a & LOW) | u64::from(scales_high) << 32;
        let mins = u64::from(b & LOW) | u64::from(mins_high) << 32;
        let both = _mm_set_epi64x(mins as i64, scales as i64);
        let numbers = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(both));
        let d = _mm_cvtph_ps(_mm_cvtsi32_si128(read_u32(block) as i32));
        let which = _mm512_set_epi32(1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0);
        _mm512_mul_ps(numbers, _mm512_permutexvar_ps(which, _mm512_castps128_ps512(d)))
    }
}

impl Format for BlockQ4K {
    const MINS: Mins = Mins::Upper;
    const ORDER: Order = Order::Nibbles;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: bytes 16 + 64·i ..+ 64 of the block, i < 2.
        unsafe {
            let nibbles = _mm512_loadu_si512(chunk.add(16 + 64 * i).cast());
            let low = _mm512_set1_epi8(15);
            [_mm512_and_si512(nibbles, low), _mm512_andnot_si512(low, nibbles)]
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block.
        unsafe { (k_scales(chunk), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 16 + 32·i ..+ 32 of the block, i < 4.
        unsafe {
            let nibbles = rotate_halves(both_halves(chunk.add(16 + 32 * i)), 0, 4);
            _mm512_and_si512(nibbles, _mm512_set1_epi8(15))
        }
    }
}

impl Format for BlockQ5K {
    const MINS: Mins = Mins::Upper;

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: the caller's block.
        unsafe { (k_scales(chunk), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 16..48 and 48 + 32·i ..+ 32 of the block, i < 4.
        unsafe {
            let nibbles = rotate_halves(both_halves(chunk.add(48 + 32 * i)), 0, 4);
            // Bits 2i and 2i + 1 of each byte to bit 4 of the same byte; what comes from other bytes is masked off.
            let turn = 2 * i as i32 - 4;
            let high = rotate_halves(both_halves(chunk.add(16)), turn & 31, (turn + 1) & 31);
            _mm512_and_si512(select(_mm512_set1_epi8(15), nibbles, high), _mm512_set1_epi8(31))
        }
    }
}

impl Format for BlockQ6K {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 192..210 of the block: 16 signed scales and d.
        unsafe {
            let numbers = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(chunk.add(192).cast())));
            let d = chunk.add(208).cast::<i16>().read_unaligned();
            (_mm512_mul_ps(numbers, _mm512_cvtph_ps(_mm256_set1_epi16(d))), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 64·(i / 2) ..+ 64 and 128 + 32·(i / 2) ..+ 32 of the block, i < 4.
        unsafe {
            let low = _mm512_loadu_si512(chunk.add(64 * (i / 2)).cast());
            let high = both_halves(chunk.add(128 + 32 * (i / 2)));
            // Upper bits to bits 4 and 5 of the same byte; what comes from other bytes is masked off.
            let (low, high) = if i.is_multiple_of(2) {
                (low, rotate_halves(high, 28, 30))
            } else {
                (_mm512_srli_epi16::<4>(low), rotate_halves(high, 0, 2))
            };
            _mm512_and_si512(select(_mm512_set1_epi8(15), low, high), _mm512_set1_epi8(63))
        }
    }
}

impl Format for BlockQ2K {
    const MINS: Mins = Mins::Apart;

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..16 and 80..84 of the block.
        unsafe {
            let packed = _mm512_cvtepu8_epi32(_mm_loadu_si128(chunk.cast()));
            let scales = _mm512_cvtepi32_ps(_mm512_and_si512(packed, _mm512_set1_epi32(15)));
            let mins = _mm512_cvtepi32_ps(_mm512_srli_epi32::<4>(packed));
            let d = _mm512_cvtph_ps(_mm256_set1_epi16(chunk.add(80).cast::<i16>().read_unaligned()));
            let dmin = _mm512_cvtph_ps(_mm256_set1_epi16(chunk.add(82).cast::<i16>().read_unaligned()));
            (_mm512_mul_ps(scales, d), _mm512_sub_ps(_mm512_setzero_ps(), _mm512_mul_ps(mins, dmin)))
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 16 + 32·(i / 2) ..+ 32 of the block, i < 4.
        unsafe {
            let bits = two_bits(chunk.add(16 + 32 * (i / 2)), 4 * (i as i32 % 2));
            _mm512_and_si512(bits, _mm512_set1_epi8(3))
        }
    }
}

impl Format for BlockQ3K {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        const LOW: u32 = 0x0f0f_0f0f;
        const HIGH: u32 = 0x0303_0303;
        // SAFETY: bytes 96..110 of the block: 12 of 6-bit numbers, and d.
        unsafe {
            let (a, b, c) = (read_u32(chunk.add(96)), read_u32(chunk.add(100)), read_u32(chunk.add(104)));
            let words = [
                (a & LOW) | (c & HIGH) << 4,
                (b & LOW) | (c >> 2 & HIGH) << 4,
                (a >> 4 & LOW) | (c >> 4 & HIGH) << 4,
                (b >> 4 & LOW) | (c >> 6 & HIGH) << 4,
            ];
            let six = _mm512_cvtepu8_epi32(_mm_loadu_si128(words.as_ptr().cast()));
            let numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(six, _mm512_set1_epi32(32)));
            let d = _mm512_cvtph_ps(_mm256_set1_epi16(chunk.add(108).cast::<i16>().read_unaligned()));
            (_mm512_mul_ps(numbers, d), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 0..32 and 32 + 32·(i / 2) ..+ 32 of the block, i < 4.
        unsafe {
            let low = two_bits(chunk.add(32 + 32 * (i / 2)), 4 * (i as i32 % 2));
            // Bits 2i and 2i + 1 of each byte to bit 2 of the same byte; what comes from other bytes is masked off.
            let turn = 2 * i as i32 - 2;
            let high = rotate_halves(both_halves(chunk), turn & 31, (turn + 1) & 31);
            _mm512_and_si512(select(_mm512_set1_epi8(3), low, high), _mm512_set1_epi8(7))
        }
    }
}

impl Format for BlockIq4Xs {
    const ORDER: Order = Order::Halves;

    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        // SAFETY: bytes 8 + 64·i ..+ 64 of the block, i < 2: four groups of 16 bytes.
        unsafe {
            let [first, second] = two_nibbles(_mm512_loadu_si512(chunk.add(8 + 64 * i).cast()));
            [levels(first), levels(second)]
        }
    }

    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..8 of the block: d, 8 × 2 high bits, 8 × 4 low bits.
        unsafe {
            let words = chunk.cast::<u64>().read_unaligned();
            let (high, low) =
                (_mm512_set1_epi32((words >> 16 & 0xffff) as i32), _mm512_set1_epi32((words >> 32) as i32));
            let lane = _mm512_set_epi32(0, 0, 0, 0, 0, 0, 0, 0, 7, 6, 5, 4, 3, 2, 1, 0);
            let low = _mm512_srlv_epi32(low, _mm512_slli_epi32::<2>(lane));
            let high = _mm512_srlv_epi32(high, _mm512_add_epi32(lane, lane));
            let six = _mm512_or_si512(
                _mm512_and_si512(low, _mm512_set1_epi32(15)),
                _mm512_slli_epi32::<4>(_mm512_and_si512(high, _mm512_set1_epi32(3))),
            );
            let numbers = _mm512_cvtepi32_ps(_mm512_sub_epi32(six, _mm512_set1_epi32(32)));
            let d = _mm512_cvtph_ps(_mm256_set1_epi16(words as i16));
            // Only eight groups: the other lanes are multiplied by factors of zero.
            (_mm512_mul_ps(numbers, d), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 8 + 32·i ..+ 32 of the block, i < 4.
        unsafe {
            let group = chunk.add(8 + 32 * i);
            levels(nibbles_by_16(twice(group, group.add(16))))
        }
    }
}
