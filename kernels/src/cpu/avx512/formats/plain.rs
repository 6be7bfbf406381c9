//! Formats whose codes are shifted out of their bits, and what all formats share.

use core::arch::x86_64::*;

use crate::quant::{
    Block, BlockIq4Nl, BlockIq4Xs, BlockQ2K, BlockQ3K, BlockQ4_0, BlockQ4_1, BlockQ4K, BlockQ5_0, BlockQ5_1, BlockQ5K,
    BlockQ6K, BlockQ8_0, GroupKind, IQ4_LEVELS,
};

/// Where the minima of a format go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu::avx512) enum Mins {
    /// There are none: codes have an offset.
    None,
    /// [`Format::scales`] returns them apart.
    Apart,
    /// In the upper eight lanes of the scales, without their sign, to be multiplied by negated sums of the activations.
    Upper,
}

/// One block format. Functions are meant to be inlined into functions with AVX-512 F, BW, VL and DQ.
pub(in crate::cpu::avx512) trait Format: Block {
    /// Bytes of a block.
    const BYTES: usize = size_of::<Self>();
    /// Subtracted from each code.
    const OFFSET: u8 = match Self::KIND {
        GroupKind::Offset(offset) => offset,
        GroupKind::Min => 0,
    };
    /// Minima.
    const MINS: Mins = Mins::None;

    /// Blocks in a chunk.
    const CHUNK_BLOCKS: usize = if Self::LEN == 256 { 1 } else { 16 * Self::GROUP / Self::LEN };
    /// Registers of codes in a chunk.
    const CODES: usize = Self::CHUNK_BLOCKS * Self::LEN / 64;

    /// Scales and minima of the first `count` blocks at `chunk` (all of them if it is [`Self::CHUNK_BLOCKS`]), zero behind.
    ///
    /// # Safety
    /// `count` blocks must be readable; the CPU must have AVX-512 F, BW, VL and DQ.
    unsafe fn scales(chunk: *const u8, count: usize) -> (__m512, __m512);

    /// Codes `64·i ..+ 64` of the chunk.
    ///
    /// # Safety
    /// The blocks that they are in must be readable; the CPU must have AVX-512 F, BW, VL and DQ.
    unsafe fn codes(chunk: *const u8, i: usize) -> __m512i;

    /// The 32 codes of one block in the lower half; the upper half is of no interest. Only formats of 32 have odd blocks.
    ///
    /// # Safety
    /// The block must be readable; the CPU must have AVX-512 F, BW, VL and DQ.
    #[inline(always)]
    unsafe fn half(block: *const u8) -> __m512i {
        const { assert!(Self::LEN != 32) };
        // SAFETY: the first register of the caller's block, which is longer than 32.
        unsafe { Self::codes(block, 0) }
    }
}

#[repr(C, align(64))]
pub(super) struct Aligned<T>(pub(super) T);

/// The first four bytes of `count` blocks of `BYTES`: scale in the low half, minimum (or codes) in the high one; zero behind. At least
/// one block. Not a gather: AMD's is microcode, slower than 16 loads and in the way of everything else.
#[inline(always)]
pub(super) unsafe fn heads<const BYTES: usize>(chunk: *const u8, count: usize) -> __m512i {
    macro_rules! all {
        ($head:ident: $($i:literal)*) => { _mm512_setr_epi32($($head!($i)),*) };
    }
    // SAFETY: blocks are longer than four bytes; those behind the last are replaced by the last.
    unsafe {
        if count >= 16 {
            macro_rules! head {
                ($i:literal) => {
                    chunk.add($i * BYTES).cast::<i32>().read_unaligned()
                };
            }
            all!(head: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
        } else {
            let last = chunk.add((count - 1) * BYTES);
            macro_rules! head {
                ($i:literal) => {
                    (if $i < count { chunk.add($i * BYTES) } else { last }).cast::<i32>().read_unaligned()
                };
            }
            let mask = (1u32 << count) as u16;
            _mm512_maskz_mov_epi32(mask.wrapping_sub(1), all!(head: 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15))
        }
    }
}

/// Half-precision values in the low halves of the lanes.
#[inline(always)]
pub(super) unsafe fn low_halves(x: __m512i) -> __m512 {
    // SAFETY: value-only.
    unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(x)) }
}

/// 16 bytes at `a` in both quarters of the lower half, 16 bytes at `b` in those of the upper.
#[inline(always)]
pub(super) unsafe fn twice(a: *const u8, b: *const u8) -> __m512i {
    // SAFETY: the caller's 16 bytes each.
    unsafe {
        let low = _mm512_broadcast_i32x4(_mm_loadu_si128(a.cast()));
        _mm512_mask_broadcast_i32x4(low, 0xff00, _mm_loadu_si128(b.cast()))
    }
}

/// Per half: low nibbles of the first 16 bytes, high nibbles of the second 16 bytes.
#[inline(always)]
pub(super) unsafe fn nibbles_by_16(x: __m512i) -> __m512i {
    // SAFETY: value-only.
    unsafe {
        let shifts = _mm512_set_epi32(4, 4, 4, 4, 0, 0, 0, 0, 4, 4, 4, 4, 0, 0, 0, 0);
        _mm512_and_si512(_mm512_srlv_epi32(x, shifts), _mm512_set1_epi8(15))
    }
}

/// 32 bytes at `p` in both halves.
#[inline(always)]
pub(super) unsafe fn both_halves(p: *const u8) -> __m512i {
    // SAFETY: the caller's 32 bytes.
    unsafe { _mm512_broadcast_i64x4(_mm256_loadu_si256(p.cast())) }
}

/// Rotates each 32-bit lane right, by `low` in the lower half and by `high` in the upper.
#[inline(always)]
pub(super) unsafe fn rotate_halves(x: __m512i, low: i32, high: i32) -> __m512i {
    // SAFETY: value-only.
    unsafe {
        let counts =
            _mm512_set_epi32(high, high, high, high, high, high, high, high, low, low, low, low, low, low, low, low);
        _mm512_rorv_epi32(x, counts)
    }
}

/// Bits of `a` where `mask` is 1, else bits of `b`.
#[inline(always)]
pub(super) unsafe fn select(mask: __m512i, a: __m512i, b: __m512i) -> __m512i {
    // SAFETY: value-only.
    unsafe { _mm512_ternarylogic_epi32::<0xca>(mask, a, b) }
}

/// Little-endian u32 at `p`.
#[inline(always)]
pub(super) unsafe fn read_u32(p: *const u8) -> u32 {
    // SAFETY: the caller's four bytes.
    unsafe { p.cast::<u32>().read_unaligned() }
}

impl Format for BlockQ4_0 {
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

impl Format for BlockQ5_0 {
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

/// Two bits of 32 bytes at `p` for 64 codes: bits `from` and `from + 1` for the lower half, the next two for the upper.
#[inline(always)]
pub(super) unsafe fn two_bits(p: *const u8, from: i32) -> __m512i {
    // SAFETY: the caller's 32 bytes.
    unsafe { rotate_halves(both_halves(p), from, from + 2) }
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

/// Indices to levels.
#[inline(always)]
unsafe fn levels(indices: __m512i) -> __m512i {
    // SAFETY: 16 bytes of the table.
    unsafe { _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(IQ4_LEVELS.as_ptr().cast())), indices) }
}

impl Format for BlockIq4Nl {
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

impl Format for BlockIq4Xs {
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
