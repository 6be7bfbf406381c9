//! Formats of up to four bits without codebooks, and the 8-bit formats of activations.

use core::arch::x86_64::*;

use super::plain::{Format, half_at, nibbles_by_16, two_bits};
use crate::quant::{
    BlockMxfp4, BlockNvfp4, BlockQ1_0, BlockQ2_0, BlockQ8_1, BlockQ8K, BlockTq1_0, BlockTq2_0, FP4_LEVELS,
    NVFP4_HALF_SCALES,
};

/// Nibbles to codes of e2m1.
#[inline(always)]
unsafe fn fp4_levels(nibbles: __m256i) -> __m256i {
    // SAFETY: 16 bytes of the table.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_LEVELS.as_ptr().cast()));
        _mm256_shuffle_epi8(table, nibbles)
    }
}

impl Format for BlockMxfp4 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: the first byte of the block. 2^(e − 128), where the least two are subnormal.
        let e = u32::from(unsafe { *block });
        scales[0] = f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: bytes 1..17 of the block.
        unsafe { fp4_levels(nibbles_by_16(block.add(1))) }
    }
}

impl Format for BlockNvfp4 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        for (i, scale) in scales[..4].iter_mut().enumerate() {
            // SAFETY: bytes 0..4 of the block; a byte is inside the table.
            *scale = unsafe { NVFP4_HALF_SCALES[usize::from(*block.add(i))] };
        }
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 4 + 16·i ..+ 16 of the block, i < 2.
        unsafe {
            // Each eight bytes twice: low nibbles, then high ones.
            let bytes = _mm256_castsi128_si256(_mm_loadu_si128(block.add(4 + 16 * i).cast()));
            let pairs = _mm256_permute4x64_epi64::<0b01_01_00_00>(bytes);
            let nibbles = _mm256_srlv_epi64(pairs, _mm256_set_epi64x(4, 0, 4, 0));
            fp4_levels(_mm256_and_si256(nibbles, _mm256_set1_epi8(15)))
        }
    }
}

impl Format for BlockQ1_0 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 of the block.
        scales[..4].fill(unsafe { half_at(block) });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 4·i ..+ 4 of the block, i < 4.
        unsafe {
            let bits = block.add(2 + 4 * i).cast::<u32>().read_unaligned();
            _mm256_and_si256(bytes_of_bits(bits), _mm256_set1_epi8(2))
        }
    }
}

/// 0xff in each byte whose bit is set.
#[inline(always)]
pub(super) unsafe fn bytes_of_bits(bits: u32) -> __m256i {
    // SAFETY: value-only.
    unsafe {
        let (one, two) = (0x0101_0101_0101_0101, 0x0202_0202_0202_0202);
        let spread = _mm256_shuffle_epi8(_mm256_set1_epi32(bits as i32), _mm256_set_epi64x(two + one, two, one, 0));
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        _mm256_cmpeq_epi8(_mm256_and_si256(spread, bit), bit)
    }
}

impl Format for BlockQ2_0 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 of the block.
        scales[..2].fill(unsafe { half_at(block) });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 2 + 8·i ..+ 8 of the block, i < 2.
        unsafe {
            // A byte in each 32 bits; its upper nibble to byte 2, then the upper two bits of both nibbles one byte up.
            let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(block.add(2 + 8 * i).cast()));
            let nibbles = _mm256_or_si256(bytes, _mm256_slli_epi32::<12>(bytes));
            let pairs = _mm256_or_si256(nibbles, _mm256_slli_epi32::<6>(nibbles));
            _mm256_and_si256(pairs, _mm256_set1_epi8(3))
        }
    }
}

impl Format for BlockTq2_0 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 64..66 of the block.
        scales[..8].fill(unsafe { half_at(block.add(64)) });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 0..64 of the block, i < 8.
        unsafe { two_bits(block.add(32 * (i / 4)), 2 * (i % 4)) }
    }
}

impl Format for BlockTq1_0 {
    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 52..54 of the block.
        scales[..8].fill(unsafe { half_at(block.add(52)) });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        /// The power of three for each half of register i.
        const POWERS: [[i16; 2]; 7] = [[1, 1], [3, 3], [9, 9], [27, 27], [81, 81], [1, 3], [9, 27]];
        // SAFETY: bytes 0..52 of the block, i < 8.
        unsafe {
            let tail = _mm_loadu_si128(block.add(32).cast());
            let (bytes, powers) = match i {
                0..=4 => (_mm256_loadu_si256(block.cast()), _mm256_set1_epi16(POWERS[i][0])),
                5 | 6 => {
                    let [low, high] = POWERS[i].map(|power| _mm_set1_epi16(power));
                    (_mm256_broadcastsi128_si256(tail), _mm256_set_m128i(high, low))
                }
                _ => {
                    let last = _mm_set1_epi32(block.add(48).cast::<i32>().read_unaligned());
                    let powers = _mm_set_epi16(27, 27, 9, 9, 3, 3, 1, 1);
                    (_mm256_set_m128i(last, tail), _mm256_set_m128i(powers, _mm_set1_epi16(81)))
                }
            };
            // Even and odd bytes in the upper halves of 16 bits: byte · power mod 256, times three, whose carry is the digit.
            let three = _mm256_set1_epi16(3);
            let even = _mm256_mullo_epi16(_mm256_slli_epi16::<8>(bytes), powers);
            let odd = _mm256_mullo_epi16(_mm256_and_si256(bytes, _mm256_set1_epi16(0xff00_u16 as i16)), powers);
            let odd_digits = _mm256_slli_epi16::<8>(_mm256_mulhi_epu16(odd, three));
            _mm256_or_si256(_mm256_mulhi_epu16(even, three), odd_digits)
        }
    }
}

impl Format for BlockQ8_1 {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..2 of the block.
        scales[0] = unsafe { half_at(block) };
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, _: usize) -> __m256i {
        // SAFETY: bytes 4..36 of the block.
        unsafe { _mm256_loadu_si256(block.add(4).cast()) }
    }
}

impl Format for BlockQ8K {
    const SIGNED: bool = true;

    #[inline(always)]
    unsafe fn scales(block: *const u8, scales: &mut [f32; 16], _: &mut [f32; 16]) {
        // SAFETY: bytes 0..4 of the block.
        scales[..8].fill(unsafe { block.cast::<f32>().read_unaligned() });
    }

    #[inline(always)]
    unsafe fn codes(block: *const u8, i: usize) -> __m256i {
        // SAFETY: bytes 4 + 32·i ..+ 32 of the block, i < 8.
        unsafe { _mm256_loadu_si256(block.add(4 + 32 * i).cast()) }
    }
}
