//! [`Format`], and what the formats share.

use core::arch::x86_64::*;

use crate::quant::{Block, GroupKind};

/// Where the minima of a format go.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu::avx512) enum Mins {
    /// There are none, but for the codes' offset: a minimum of −offset · scale.
    None,
    /// [`Format::scales`] returns them apart.
    Apart,
    /// In the upper eight lanes of the scales, without their sign, to be multiplied by negated sums of the activations.
    Upper,
}

/// The order in which [`Format::pair`] takes the elements of a chunk, by quarters of a register.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::cpu::avx512) enum Order {
    /// As they come.
    Natural,
    /// First halves of four groups of 32, then their second halves: the pair shares its scales, and so a conversion and a multiplication.
    Halves,
    /// Groups 0 and 2 of 32, then 1 and 3, as they lie in the low and high nibbles of 64 bytes. The second register has 16 times the codes,
    /// which is made up for in the factors of odd groups.
    Nibbles,
}

impl Order {
    /// The element of the chunk at which a quarter of a register begins.
    pub(in crate::cpu::avx512) const fn element(self, register: usize, quarter: usize) -> usize {
        let (pair, second) = (register / 2 * 128, register % 2);
        pair + match self {
            Self::Natural => 64 * second + 16 * quarter,
            Self::Halves => 32 * quarter + 16 * second,
            Self::Nibbles => 64 * (quarter / 2) + 32 * second + 16 * (quarter % 2),
        }
    }
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
    /// Order of [`Self::pair`].
    const ORDER: Order = Order::Natural;

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

    /// Registers `2·i` and `2·i + 1` of the chunk in [`Self::ORDER`].
    ///
    /// # Safety
    /// The blocks that they are in must be readable; the CPU must have AVX-512 F, BW, VL and DQ.
    #[inline(always)]
    unsafe fn pair(chunk: *const u8, i: usize) -> [__m512i; 2] {
        const { assert!(matches!(Self::ORDER, Order::Natural)) };
        // SAFETY: the caller's promises, passed on.
        unsafe { [Self::codes(chunk, 2 * i), Self::codes(chunk, 2 * i + 1)] }
    }

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

/// The first two bytes of four blocks of `BYTES`.
#[inline(always)]
pub(super) unsafe fn four_words<const BYTES: usize>(p: *const u8) -> u64 {
    // SAFETY: the caller's blocks.
    unsafe {
        let word = |block: usize| u64::from(p.add(block * BYTES).cast::<u16>().read_unaligned());
        word(0) | word(1) << 16 | word(2) << 32 | word(3) << 48
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

/// 16 bytes of each of four blocks of `BYTES`, the first at `p`.
#[inline(always)]
pub(super) unsafe fn quarters<const BYTES: usize>(p: *const u8) -> __m512i {
    // SAFETY: the caller's bytes.
    unsafe {
        let all = _mm512_castsi128_si512(_mm_loadu_si128(p.cast()));
        let all = _mm512_mask_broadcast_i32x4(all, 0x00f0, _mm_loadu_si128(p.add(BYTES).cast()));
        let all = _mm512_mask_broadcast_i32x4(all, 0x0f00, _mm_loadu_si128(p.add(2 * BYTES).cast()));
        _mm512_mask_broadcast_i32x4(all, 0xf000, _mm_loadu_si128(p.add(3 * BYTES).cast()))
    }
}

/// Low nibbles, then high nibbles.
#[inline(always)]
pub(super) unsafe fn two_nibbles(x: __m512i) -> [__m512i; 2] {
    // SAFETY: value-only.
    unsafe {
        let low = _mm512_set1_epi8(15);
        [_mm512_and_si512(x, low), _mm512_and_si512(_mm512_srli_epi16::<4>(x), low)]
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

/// Two bits of 32 bytes at `p` for 64 codes: bits `from` and `from + 1` for the lower half, the next two for the upper.
#[inline(always)]
pub(super) unsafe fn two_bits(p: *const u8, from: i32) -> __m512i {
    // SAFETY: the caller's 32 bytes.
    unsafe { rotate_halves(both_halves(p), from, from + 2) }
}
