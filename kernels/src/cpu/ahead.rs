//! Weights that are read next, asked for while others are computed on: by a GEMM those that it unpacks, with few rows those that follow.

use std::ops::Range;

use super::matrix::MatrixRef;

/// Bytes that a prefetch brings.
const LINE: usize = 64;

/// The weights that are unpacked next come while these are used, some lines before each tile: short pieces of many rows are more
/// than the hardware's prefetchers follow.
pub(super) struct Ahead {
    at: *const u8,
    row_bytes: usize,
    /// Bytes of a row that are wanted, and the next of them.
    piece: usize,
    offset: usize,
    rows_left: usize,
    lines_per_tile: usize,
}

impl Ahead {
    /// What follows elements `chunk` (whole blocks) of the columns `cols`: their next chunk, or the first one of the next `block_cols`
    /// columns. It is spread over `num_tiles` calls of [`Self::ask`].
    pub(super) fn new(
        w: &MatrixRef,
        cols: &Range<usize>,
        block_cols: usize,
        chunk: Range<usize>,
        num_tiles: usize,
    ) -> Self {
        let (next, from) = if chunk.end < w.cols() {
            (cols.clone(), chunk.end)
        } else {
            // Behind the caller's rows too: its next piece is most likely the next one of the matrix.
            (cols.end..w.rows().min(cols.end + block_cols), 0)
        };
        let bytes = |elements: usize| elements / w.dtype().block_len() * w.dtype().block_bytes();
        let piece = bytes(chunk.len().min(w.cols() - from));
        Self {
            at: w.data().as_ptr().wrapping_add(next.start * w.row_bytes() + bytes(from)),
            row_bytes: w.row_bytes(),
            piece,
            offset: 0,
            rows_left: next.len(),
            lines_per_tile: (next.len() * piece.div_ceil(LINE)).div_ceil(num_tiles.max(1)),
        }
    }

    /// Asks for the next lines; `prefetch` takes any address.
    #[inline(always)]
    pub(super) fn ask(&mut self, prefetch: impl Fn(*const u8)) {
        for _ in 0..self.lines_per_tile {
            if self.rows_left == 0 {
                return;
            }
            prefetch(self.at.wrapping_add(self.offset));
            self.offset += LINE;
            if self.offset >= self.piece {
                (self.offset, self.rows_left) = (0, self.rows_left - 1);
                self.at = self.at.wrapping_add(self.row_bytes);
            }
        }
    }
}

/// Asks for weights that are read once, soon.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadOnce {
    /// Into the first cache, or into the second.
    near: bool,
}

#[cfg(target_arch = "x86_64")]
impl ReadOnce {
    /// What suits this CPU: the first cache, but for AMD's. Zen 4 reads Q8_0 at 16 GB/s a core with lines asked into the first cache
    /// and at 26 into the second, Q4_0 at 18 and 20 (2026-11-30).
    pub(super) fn detect() -> Self {
        // Instructions that nobody else has.
        Self { near: !is_x86_feature_detected!("sse4a") }
    }

    /// Whether lines go to the second cache only.
    pub(super) fn is_far(self) -> bool {
        !self.near
    }

    /// Asks for the lines of `bytes` bytes at `address`, which need not be valid.
    #[inline(always)]
    pub(super) fn ask_all(self, address: *const u8, bytes: usize) {
        let mut offset = 0;
        while offset < bytes {
            self.ask(address.wrapping_add(offset));
            offset += LINE;
        }
    }

    /// Asks for the line at `address`, which need not be valid.
    #[inline(always)]
    pub(super) fn ask(self, address: *const u8) {
        use core::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch doesn't fault, and every x86-64 has it.
        unsafe {
            if self.near {
                _mm_prefetch::<_MM_HINT_T0>(address.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T1>(address.cast());
            }
        }
    }
}
