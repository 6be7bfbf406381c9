//! Weights that a GEMM unpacks next, asked for while it computes on others.

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
