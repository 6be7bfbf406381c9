//! IQ1, IQ2 and IQ3: points of a codebook, looked up by gathers, and signs as masks.
//!
//! Points are stored as codes, offset + level. The code of a negative element, offset − level, is 2 · offset − code, in which 2 · 128 is 0.

use core::arch::x86_64::*;

use super::format::{Format, read_u32};
use crate::quant::{
    BlockIq1M, BlockIq1S, BlockIq2S, BlockIq2Xs, BlockIq2Xxs, BlockIq3S, BlockIq3Xxs, IQ1_POINTS, IQ2_S_POINTS,
    IQ2_XS_POINTS, IQ2_XXS_POINTS, IQ3_S_POINTS, IQ3_XXS_POINTS,
};

/// Eight points of eight codes.
///
/// # Safety
/// Indices must be inside the table; the CPU must have AVX-512 F.
#[inline(always)]
unsafe fn points_of_8<const N: usize>(table: &[u64; N], indices: __m256i) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe { _mm512_i32gather_epi64::<8>(indices, table.as_ptr().cast()) }
}

/// Sixteen points of four codes.
///
/// # Safety
/// As [`points_of_8`].
#[inline(always)]
unsafe fn points_of_4<const N: usize>(table: &[u32; N], indices: __m512i) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe { _mm512_i32gather_epi32::<4>(indices, table.as_ptr().cast()) }
}

/// Codes with signs around 128.
#[inline(always)]
unsafe fn signed(points: __m512i, signs: u64) -> __m512i {
    // SAFETY: value-only.
    unsafe { _mm512_mask_sub_epi8(points, signs, _mm512_setzero_si512(), points) }
}

/// Eight bytes, each seven sign bits, made whole: the eighth makes the number of set bits even.
#[inline(always)]
unsafe fn even_signs(sevens: __m128i) -> u64 {
    // SAFETY: value-only.
    unsafe {
        // The parity of each nibble's value, in bit 7.
        let parities = _mm_set_epi8(0, -128, -128, 0, -128, 0, 0, -128, -128, 0, 0, -128, 0, -128, -128, 0);
        let folded = _mm_and_si128(_mm_xor_si128(sevens, _mm_srli_epi16::<4>(sevens)), _mm_set1_epi8(15));
        let eighth = _mm_shuffle_epi8(parities, folded);
        _mm_cvtsi128_si64(_mm_or_si128(sevens, eighth)) as u64
    }
}

/// Four times seven bits from each of two words.
#[inline(always)]
unsafe fn sevens_of_words(first: u32, second: u32) -> __m128i {
    // SAFETY: value-only.
    unsafe {
        let both = _mm256_set_m128i(_mm_set1_epi32(second as i32), _mm_set1_epi32(first as i32));
        let fields = _mm256_srlv_epi32(both, _mm256_set_epi32(21, 14, 7, 0, 21, 14, 7, 0));
        _mm256_cvtepi32_epi8(_mm256_and_si256(fields, _mm256_set1_epi32(127)))
    }
}

/// Little-endian u64 at `p`.
#[inline(always)]
unsafe fn read_u64(p: *const u8) -> u64 {
    // SAFETY: the caller's eight bytes.
    unsafe { p.cast::<u64>().read_unaligned() }
}

/// Little-endian half at `p`, times `factor`, in all lanes.
#[inline(always)]
unsafe fn scaled_half(p: *const u8, factor: f32) -> __m512 {
    // SAFETY: the caller's two bytes.
    unsafe {
        let half = _mm512_cvtph_ps(_mm256_set1_epi16(p.cast::<i16>().read_unaligned()));
        _mm512_mul_ps(half, _mm512_set1_ps(factor))
    }
}

/// d · (2 · number + 1) in each lane.
#[inline(always)]
unsafe fn odd_multiples(d: __m512, numbers: __m512i) -> __m512 {
    // SAFETY: value-only.
    unsafe {
        let odd = _mm512_add_epi32(_mm512_add_epi32(numbers, numbers), _mm512_set1_epi32(1));
        _mm512_mul_ps(d, _mm512_cvtepi32_ps(odd))
    }
}

/// The nibbles of eight bytes, low ones first.
#[inline(always)]
unsafe fn nibbles(bytes: u64) -> __m512i {
    // SAFETY: value-only.
    unsafe {
        let bytes = _mm_cvtsi64_si128(bytes as i64);
        let pairs = _mm_unpacklo_epi8(bytes, _mm_srli_epi16::<4>(bytes));
        _mm512_cvtepu8_epi32(_mm_and_si128(pairs, _mm_set1_epi8(15)))
    }
}

impl Format for BlockIq2Xxs {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..66 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe {
            let words = _mm512_cvtepi64_epi32(_mm512_srli_epi64::<60>(_mm512_loadu_si512(chunk.add(2).cast())));
            (odd_multiples(scaled_half(chunk, 0.125), _mm512_castsi256_si512(words)), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 16·i ..+ 16 of the block, i < 4. Indices are bytes, and the table has 256 points.
        unsafe {
            let (first, second) = (read_u64(chunk.add(2 + 16 * i)), read_u64(chunk.add(10 + 16 * i)));
            let indices = _mm_cvtsi64_si128((first & 0xffff_ffff | second << 32) as i64);
            let points = points_of_8(&IQ2_XXS_POINTS, _mm256_cvtepu8_epi32(indices));
            let sevens = sevens_of_words((first >> 32) as u32, (second >> 32) as u32);
            signed(points, even_signs(sevens))
        }
    }
}

impl Format for BlockIq2Xs {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..2 and 66..74 of the block.
        unsafe { (odd_multiples(scaled_half(chunk, 0.125), nibbles(read_u64(chunk.add(66)))), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 16·i ..+ 16 of the block, i < 4. Indices are 9 bits, and the table has 512 points.
        unsafe {
            let words = _mm_loadu_si128(chunk.add(2 + 16 * i).cast());
            let indices = _mm256_cvtepu16_epi32(_mm_and_si128(words, _mm_set1_epi16(511)));
            let points = points_of_8(&IQ2_XS_POINTS, indices);
            let sevens = _mm_cvtepi16_epi8(_mm_srli_epi16::<9>(words));
            signed(points, even_signs(sevens))
        }
    }
}

impl Format for BlockIq2S {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..2 and 74..82 of the block.
        unsafe { (odd_multiples(scaled_half(chunk, 0.125), nibbles(read_u64(chunk.add(74)))), _mm512_setzero_ps()) }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 8·i ..+ 8, 34 + 8·i ..+ 8 and 66 + 2·i ..+ 2 of the block, i < 4. Indices are 10 bits, and the table has
        // 1024 points.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(chunk.add(2 + 8 * i).cast()));
            let pairs = _mm256_set1_epi32(chunk.add(66 + 2 * i).cast::<u16>().read_unaligned().into());
            // Bits 2·l and 2·l + 1 to bits 8 and 9.
            let high = _mm256_srlv_epi32(_mm256_slli_epi32::<8>(pairs), _mm256_set_epi32(14, 12, 10, 8, 6, 4, 2, 0));
            let indices = _mm256_or_si256(low, _mm256_and_si256(high, _mm256_set1_epi32(0x300)));
            signed(points_of_8(&IQ2_S_POINTS, indices), read_u64(chunk.add(34 + 8 * i)))
        }
    }
}

impl Format for BlockIq3Xxs {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..2 and 66..98 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe {
            let words = _mm512_castsi256_si512(_mm256_loadu_si256(chunk.add(66).cast()));
            (odd_multiples(scaled_half(chunk, 0.25), _mm512_srli_epi32::<28>(words)), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 16·i ..+ 16 and 66 + 8·i ..+ 8 of the block, i < 4. Indices are bytes, and the table has 256 points.
        unsafe {
            let indices = _mm512_cvtepu8_epi32(_mm_loadu_si128(chunk.add(2 + 16 * i).cast()));
            let points = points_of_4(&IQ3_XXS_POINTS, indices);
            let sevens = sevens_of_words(read_u32(chunk.add(66 + 8 * i)), read_u32(chunk.add(70 + 8 * i)));
            signed(points, even_signs(sevens))
        }
    }
}

impl Format for BlockIq3S {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..2 and 106..110 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe {
            let numbers = nibbles(read_u32(chunk.add(106)).into());
            (odd_multiples(scaled_half(chunk, 1.0), numbers), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 16·i ..+ 16, 66 + 2·i ..+ 2 and 74 + 8·i ..+ 8 of the block, i < 4. Indices are 9 bits, and the table has
        // 512 points.
        unsafe {
            let low = _mm512_cvtepu8_epi32(_mm_loadu_si128(chunk.add(2 + 16 * i).cast()));
            let ninth = chunk.add(66 + 2 * i).cast::<u16>().read_unaligned();
            let indices = _mm512_mask_or_epi32(low, ninth, low, _mm512_set1_epi32(256));
            let points = points_of_4(&IQ3_S_POINTS, indices);
            _mm512_mask_sub_epi8(points, read_u64(chunk.add(74 + 8 * i)), _mm512_set1_epi8(30), points)
        }
    }
}

/// Eight points of IQ1, codes with the shift down, and 2 more where the mask has the shift up.
///
/// # Safety
/// As [`points_of_8`].
#[inline(always)]
unsafe fn shifted_points(indices: __m256i, is_up: u8) -> __m512i {
    // SAFETY: the caller's promises.
    unsafe {
        let points = points_of_8(&IQ1_POINTS, indices);
        _mm512_mask_add_epi8(points, spread_bits(is_up), points, _mm512_set1_epi8(2))
    }
}

/// Each bit eight times.
#[inline(always)]
unsafe fn spread_bits(bits: u8) -> u64 {
    // SAFETY: value-only.
    unsafe { _mm512_movepi8_mask(_mm512_movm_epi64(bits)) }
}

impl Format for BlockIq1S {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 0..2 and 34..50 of the block. Only eight groups: the other lanes are multiplied by factors of zero.
        unsafe {
            let words = _mm256_cvtepu16_epi32(_mm_loadu_si128(chunk.add(34).cast()));
            let numbers = _mm256_and_si256(_mm256_srli_epi32::<12>(words), _mm256_set1_epi32(7));
            (odd_multiples(scaled_half(chunk, 0.125), _mm512_castsi256_si512(numbers)), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 2 + 8·i ..+ 8 and 34 + 4·i ..+ 4 of the block, i < 4. Indices are 11 bits, and the table has 2048 points.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(chunk.add(2 + 8 * i).cast()));
            let words = read_u32(chunk.add(34 + 4 * i));
            // Bits 3·l ..+ 3 of each half to bits 8 to 10.
            let both = _mm256_set1_epi32(words as i32);
            let fields = _mm256_srlv_epi32(both, _mm256_set_epi32(25, 22, 19, 16, 9, 6, 3, 0));
            let high = _mm256_slli_epi32::<8>(_mm256_and_si256(fields, _mm256_set1_epi32(7)));
            // Bit 15 of a half is the shift down of four points.
            let is_down = ((words >> 15 & 1) * 0x0f) | ((words >> 31) * 0xf0);
            shifted_points(_mm256_or_si256(low, high), !is_down as u8)
        }
    }
}

impl Format for BlockIq1M {
    #[inline(always)]
    unsafe fn scales(chunk: *const u8, _: usize) -> (__m512, __m512) {
        // SAFETY: bytes 48..56 of the block.
        unsafe {
            let words = read_u64(chunk.add(48));
            let d = (words >> 12 & 0xf) | (words >> 24 & 0xf0) | (words >> 36 & 0xf00) | (words >> 48 & 0xf000);
            let d = _mm512_mul_ps(_mm512_cvtph_ps(_mm256_set1_epi16(d as i16)), _mm512_set1_ps(0.125));
            // Word g / 4 to lane g, then 3 bits from bit 3·(g % 4) on.
            let lanes = _mm256_set_epi64x(
                0x0706_0706_0706_0706,
                0x0504_0504_0504_0504,
                0x0302_0302_0302_0302,
                0x0100_0100_0100_0100,
            );
            let fields = _mm512_cvtepu16_epi32(_mm256_shuffle_epi8(_mm256_set1_epi64x(words as i64), lanes));
            let counts = _mm512_set_epi32(9, 6, 3, 0, 9, 6, 3, 0, 9, 6, 3, 0, 9, 6, 3, 0);
            let numbers = _mm512_and_si512(_mm512_srlv_epi32(fields, counts), _mm512_set1_epi32(7));
            (odd_multiples(d, numbers), _mm512_setzero_ps())
        }
    }

    #[inline(always)]
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i {
        // SAFETY: bytes 8·i ..+ 8 and 32 + 4·i ..+ 4 of the block, i < 4. Indices are 11 bits, and the table has 2048 points.
        unsafe {
            let low = _mm256_cvtepu8_epi32(_mm_loadl_epi64(chunk.add(8 * i).cast()));
            let both = _mm256_set1_epi32(read_u32(chunk.add(32 + 4 * i)) as i32);
            let fields = _mm256_srlv_epi32(both, _mm256_set_epi32(28, 24, 20, 16, 12, 8, 4, 0));
            let high = _mm256_slli_epi32::<8>(_mm256_and_si256(fields, _mm256_set1_epi32(7)));
            let is_up = _mm256_testn_epi32_mask(fields, _mm256_set1_epi32(8));
            shifted_points(_mm256_or_si256(low, high), is_up)
        }
    }
}
