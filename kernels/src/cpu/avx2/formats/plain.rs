//! Formats whose codes are shifted out of their bits, and what all formats share.

use core::arch::x86_64::*;

use crate::quant::{
    Block, BlockIq4Nl, BlockIq4Xs, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K,
    BlockQ6K, BlockQ8_0, GroupKind, IQ4_LEVELS,
};

/// One block format. Functions are meant to be inlined into functions with AVX2 and F16C.
pub(in crate::cpu::avx2) trait Format: Block {
    /// Codes are signed bytes, without an offset: only where unsigned ones would saturate.
    const SIGNED: bool = false;

    /// Scales and minima of each group of a block.
    ///
    /// # Safety
    /// The block must be readable; the CPU must have AVX2 and F16C.
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]);

    /// Codes of elements `32·i ..+ 32`.
    ///
    /// # Safety
    /// The block must be readable; the CPU must have AVX2.
    unsafe fn codes(block: *const u8, i: usize) -> __m256i;
}

/// What a format's codes mean to the dot product: the offset that it must subtract, if any.
pub(in crate::cpu::avx2) const fn offset<F: Format>() -> Option<u8> {
    match F::KIND {
        GroupKind::Offset(offset) if !F::SIGNED => Some(offset),
        _ => None,
    }
}

/// Half at `p`.
#[inline(always)]
pub(super) unsafe fn half_at(p: *const u8) -> f32 {
    // SAFETY: the caller's two bytes.
    unsafe {
        let bits = p.cast::<u16>().read_unaligned();
        _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits))))
    }
}

/// Low nibbles of 16 bytes, then their high nibbles.
#[inline(always)]
pub(super) unsafe fn nibbles_by_16(p: *const u8) -> __m256i {
    // SAFETY: the caller's 16 bytes.
    unsafe {
        let bytes = _mm_loadu_si128(p.cast());
        _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), _mm256_set1_epi8(15))
    }
}

/// 16 in each byte whose bit of the u32 at `p` is set.
#[inline(always)]
unsafe fn fifth_bits(p: *const u8) -> __m256i {
    // SAFETY: the caller's four bytes.
    unsafe {
        let bits = _mm256_set1_epi32(p.cast::<i32>().read_unaligned());
        let (zero, two) = (0, 0x0202_0202_0202_0202);
        let one = 0x0101_0101_0101_0101;
        let spread = _mm256_shuffle_epi8(bits, _mm256_set_epi64x(two + one, two, one, zero));
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        let is_set = _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit);
        _mm256_and_si256(is_set, _mm256_set1_epi8(16))
    }
}

/// Nibbles of 32 bytes: low ones, or high ones.
#[inline(always)]
unsafe fn nibbles_of_32(p: *const u8, high: bool) -> __m256i {
    // SAFETY: the caller's 32 bytes.
    unsafe {
        let bytes = _mm256_loadu_si256(p.cast());
        let bytes = if high { _mm256_srli_epi16::<4>(bytes) } else { bytes };
        _mm256_and_si256(bytes, _mm256_set1_epi8(15))
    }
}

/// Bits `from ..+ count` of 32 bytes, moved to bit 4 of their byte.
#[inline(always)]
unsafe fn high_bits(p: *const u8, from: usize, count: u32) -> __m256i {
    // SAFETY: the caller's 32 bytes.
    unsafe {
        let bits = _mm256_srl_epi16(_mm256_loadu_si256(p.cast()), _mm_cvtsi32_si128(from as i32));
        _mm256_slli_epi16::<4>(_mm256_and_si256(bits, _mm256_set1_epi8((1 << count) - 1)))
    }
}

/// A format of 32 weights with one scale at byte 0 and, with `min`, a minimum at byte 2.
macro_rules! block_of_32 {
    ($block:ident, min: $min:literal, signed: $signed:literal, |$p:ident| $codes:expr) => {
        impl Format for $block {
            const SIGNED: bool = $signed;

            #[inline(always)]
            unsafe fn scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]) {
                // SAFETY: the first two or four bytes of the block.
                unsafe {
                    scales[0] = half_at(block);
                    if $min {
                        mins[0] = half_at(block.add(2));
                    }
                }
            }

            #[inline(always)]
            unsafe fn codes($p: *const u8, _: usize) -> __m256i {
                // SAFETY: bytes of the caller's block.
                unsafe { $codes }
            }
        }
    };
}

block_of_32!(BlockQ4_0, min: false, signed: false, |p| nibbles_by_16(p.add(2)));
block_of_32!(BlockQ4_1, min: true, signed: false, |p| nibbles_by_16(p.add(4)));
block_of_32!(BlockQ5_0, min: false, signed: false, |p| _mm256_or_si256(
    nibbles_by_16(p.add(6)),
    fifth_bits(p.add(2))
));
block_of_32!(BlockQ5_1, min: true, signed: false, |p| _mm256_or_si256(
    nibbles_by_16(p.add(8)),
    fifth_bits(p.add(4))
));
block_of_32!(BlockQ8_0, min: false, signed: true, |p| _mm256_loadu_si256(p.add(2).cast()));

/// Scales and minima of a Q4_K or Q5_K block.
#[inline(always)]
unsafe fn k_scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]) {
    const LOW: u32 = 0x3f3f_3f3f;
    // SAFETY: the first 16 bytes of the block: d, dmin, and 12 bytes of 6-bit numbers; eight floats each.
    unsafe {
        let word = |i: usize| block.add(4 + 4 * i).cast::<u32>().read_unaligned();
        let (a, b, c) = (word(0), word(1), word(2));
        let scales_high = (c & 0x0f0f_0f0f) | (a >> 6 & 0x0303_0303) << 4;
        let mins_high = (c >> 4 & 0x0f0f_0f0f) | (b >> 6 & 0x0303_0303) << 4;
        let scale_bytes = u64::from(a & LOW) | u64::from(scales_high) << 32;
        let min_bytes = u64::from(b & LOW) | u64::from(mins_high) << 32;
        let scale = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(scale_bytes as i64)));
        let min = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(min_bytes as i64)));
        _mm256_storeu_ps(scales.as_mut_ptr(), _mm256_mul_ps(scale, _mm256_set1_ps(half_at(block))));
        _mm256_storeu_ps(mins.as_mut_ptr(), _mm256_mul_ps(min, _mm256_set1_ps(-half_at(block.add(2)))));
    }
}

impl Format for BlockQ4K {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]) {
        // SAFETY: the caller's block.
        unsafe { k_scales(block, scales, mins) }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 16..144 of the block, i < 8.
        unsafe { nibbles_of_32(block.add(16 + 32 * (i / 2)), i % 2 == 1) }
    }
}

impl Format for BlockQ5K {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]) {
        // SAFETY: the caller's block.
        unsafe { k_scales(block, scales, mins) }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 16..176 of the block, i < 8.
        unsafe {
            let low = nibbles_of_32(block.add(48 + 32 * (i / 2)), i % 2 == 1);
            _mm256_or_si256(low, high_bits(block.add(16), i, 1))
        }
    }
}

impl Format for BlockQ6K {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 192..210 of the block: 16 signed scales and d.
        unsafe {
            let d = _mm256_set1_ps(half_at(block.add(208)));
            for half in 0..2 {
                let bytes = _mm_loadl_epi64(block.add(192 + 8 * half).cast());
                let numbers = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                _mm256_storeu_ps(scales.as_mut_ptr().add(8 * half), _mm256_mul_ps(numbers, d));
            }
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 0..192 of the block, i < 8.
        unsafe {
            let (half, part) = (i / 4, i % 4);
            let low = nibbles_of_32(block.add(64 * half + 32 * (part % 2)), part >= 2);
            _mm256_or_si256(low, high_bits(block.add(128 + 32 * half), 2 * part, 2))
        }
    }
}

/// Bits `from` and `from + 1` of 32 bytes at `p`.
#[inline(always)]
pub(super) unsafe fn two_bits(p: *const u8, from: usize) -> __m256i {
    // SAFETY: the caller's 32 bytes.
    unsafe {
        let bits = _mm256_srl_epi16(_mm256_loadu_si256(p.cast()), _mm_cvtsi32_si128(from as i32));
        _mm256_and_si256(bits, _mm256_set1_epi8(3))
    }
}

impl Format for BlockQ2K {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], mins: &mut [f32; 16]) {
        // SAFETY: bytes 0..16 and 80..84 of the block.
        unsafe {
            let (d, dmin) = (_mm256_set1_ps(half_at(block.add(80))), _mm256_set1_ps(-half_at(block.add(82))));
            for half in 0..2 {
                let packed = _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(8 * half).cast()));
                let scale = _mm256_cvtepi32_ps(_mm256_and_si256(packed, _mm256_set1_epi32(15)));
                let min = _mm256_cvtepi32_ps(_mm256_srli_epi32::<4>(packed));
                _mm256_storeu_ps(scales.as_mut_ptr().add(8 * half), _mm256_mul_ps(scale, d));
                _mm256_storeu_ps(mins.as_mut_ptr().add(8 * half), _mm256_mul_ps(min, dmin));
            }
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 16..80 of the block, i < 8.
        unsafe { two_bits(block.add(16 + 32 * (i / 4)), 2 * (i % 4)) }
    }
}

impl Format for BlockQ3K {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 96..110 of the block: 12 of 6-bit numbers, and d.
        unsafe {
            let (d, packed) = (_mm256_set1_ps(half_at(block.add(108))), block.add(96));
            // Low nibbles of eight bytes, then their high ones; two bits each of four bytes, then their next ones.
            let low = _mm_loadl_epi64(packed.cast());
            let low = _mm_and_si128(_mm_unpacklo_epi64(low, _mm_srli_epi16::<4>(low)), _mm_set1_epi8(15));
            let high = _mm_set1_epi32(packed.add(8).cast::<i32>().read_unaligned());
            let high = _mm_and_si128(_mm_srlv_epi32(high, _mm_set_epi32(6, 4, 2, 0)), _mm_set1_epi8(3));
            let six = _mm_sub_epi8(_mm_or_si128(low, _mm_slli_epi16::<4>(high)), _mm_set1_epi8(32));
            for (half, bytes) in [six, _mm_srli_si128::<8>(six)].into_iter().enumerate() {
                let numbers = _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
                _mm256_storeu_ps(scales.as_mut_ptr().add(8 * half), _mm256_mul_ps(numbers, d));
            }
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 0..96 of the block, i < 8.
        unsafe {
            let low = two_bits(block.add(32 + 32 * (i / 4)), 2 * (i % 4));
            _mm256_or_si256(low, _mm256_srli_epi16::<2>(high_bits(block, i, 1)))
        }
    }
}

/// Indices to signed levels.
#[inline(always)]
unsafe fn levels(indices: __m256i) -> __m256i {
    // SAFETY: 16 bytes of the table.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast()));
        _mm256_shuffle_epi8(_mm256_xor_si256(table, _mm256_set1_epi8(-128)), indices)
    }
}

block_of_32!(BlockIq4Nl, min: false, signed: true, |p| levels(nibbles_by_16(p.add(2))));

impl Format for BlockIq4Xs {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..8 of the block: d, 8 × 2 high bits, 8 × 4 low bits.
        unsafe {
            let words = block.cast::<u64>().read_unaligned();
            let d = half_at(block);
            for (g, scale) in scales.iter_mut().take(8).enumerate() {
                let six = (words >> (32 + 4 * g) & 15) | (words >> (16 + 2 * g) & 3) << 4;
                *scale = d * (six as f32 - 32.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 8 + 16·i ..+ 16 of the block, i < 8.
        unsafe { levels(nibbles_by_16(block.add(8 + 16 * i))) }
    }
}
