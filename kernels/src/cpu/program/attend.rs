//! Attention on one worker: pieces of queries of a KV head and, where a few queries look at a long context, of positions.
//!
//! A context is cut by its length alone, and its parts are joined in their order: the result doesn't depend on the number of
//! workers, nor on who computed what. Whoever finishes the last part of a KV head joins them.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::ops::{Run, range_of};
use super::{CacheSlot, WorkerScratch};
use crate::cpu::attention::{KV_BLOCK, TILE_QUERIES, TileArgs, merge_parts};
use crate::cpu::{DECODE_ROWS, Numerics};
use crate::program::instr::{Instr, Span};

/// Positions that a part of a context has at least: some µs of work.
const PART_POSITIONS: usize = 512;
/// Parts of a context at most: 8 KV heads then occupy 128 workers.
pub(super) const MAX_PARTS: usize = 16;
/// Rows of one sequence in a step up to which its context is cut: more of them are pieces enough.
const MAX_CUT_ROWS: usize = 8;
/// Rows of a step whose contexts are cut. Beyond it there are sequences enough to occupy the workers.
pub(super) const CUT_ROWS: usize = 64;
/// Queries are cut at multiples of it: the largest group that a kernel keeps in registers.
const QUERY_STEP: usize = 12;

/// How the attention of one sequence is cut. The pieces of a KV head follow each other, chunk by chunk, part by part.
#[derive(Debug, Clone, Copy)]
pub(super) struct SeqPieces {
    /// Number of its first piece in the step.
    first: usize,
    /// Chunks of queries of a KV head.
    num_chunks: usize,
    /// Parts of the context.
    num_parts: usize,
    /// Where the first part begins: at a block.
    parts_start: usize,
    /// Positions of a part: whole blocks.
    part_len: usize,
    /// Its first row among those whose contexts are cut.
    cut_row: usize,
}

impl Run<'_> {
    /// # Safety
    /// As [`Run::execute`], for an [`Instr::Attend`].
    pub(super) unsafe fn attend(&mut self, instr: &Instr) {
        let Instr::Attend { cache, num_heads, window, .. } = instr else { return };
        let cache = &self.code.caches[cache.0];
        let group = num_heads / cache.num_kv_heads;
        // With few queries in all, chunks are small, so that every worker gets some. A query's result doesn't depend on it.
        let num_queries = self.input.tokens.len() * num_heads;
        let chunk_len =
            (num_queries / (4 * self.worker.num_workers()) / QUERY_STEP * QUERY_STEP).clamp(QUERY_STEP, TILE_QUERIES);

        let mut plan = std::mem::take(&mut self.scratch.seq_pieces);
        plan.clear();
        let (mut num_pieces, mut cut_rows) = (0, 0);
        for seq in self.input.seqs {
            let num_rows = seq.rows.len();
            let first = window.map_or(0, |window| (seq.start + 1).saturating_sub(window));
            let (start, end) = (first / KV_BLOCK * KV_BLOCK, seq.start + num_rows);
            let may_cut = self.input.numerics == Numerics::Fast;
            let wanted = if may_cut && num_rows <= MAX_CUT_ROWS && cut_rows + num_rows <= CUT_ROWS {
                ((end - start) / PART_POSITIONS).clamp(1, MAX_PARTS)
            } else {
                1
            };
            let part_len = (end - start).div_ceil(wanted).next_multiple_of(KV_BLOCK).max(KV_BLOCK);
            let pieces = SeqPieces {
                first: num_pieces,
                num_chunks: (num_rows * group).div_ceil(chunk_len),
                num_parts: (end - start).div_ceil(part_len).max(1),
                parts_start: start,
                part_len,
                cut_row: cut_rows,
            };
            if pieces.num_parts > 1 {
                cut_rows += num_rows;
            }
            num_pieces += cache.num_kv_heads * pieces.num_chunks * pieces.num_parts;
            plan.push(pieces);
        }
        let worker = self.worker;
        worker.pieces(num_pieces, |piece| {
            // The last sequence that begins at or before the piece; those without rows have no pieces.
            let index = plan.partition_point(|seq| seq.first <= piece) - 1;
            // SAFETY: forwarded; each piece is done once.
            unsafe { self.attend_piece(instr, cache, index, &plan[index], piece - plan[index].first, chunk_len) };
        });
        self.scratch.seq_pieces = plan;
    }

    /// # Safety
    /// As [`Self::attend`]; nobody else does this piece.
    unsafe fn attend_piece(
        &mut self,
        instr: &Instr,
        cache: &CacheSlot,
        seq_index: usize,
        pieces: &SeqPieces,
        piece: usize,
        chunk_len: usize,
    ) {
        let Instr::Attend { q, out, num_heads, scale, softcap, window, causal, sinks, .. } = instr else { return };
        let seq = &self.input.seqs[seq_index];
        let group = num_heads / cache.num_kv_heads;
        let part = piece % pieces.num_parts;
        let chunk = piece / pieces.num_parts % pieces.num_chunks;
        let kv_head = piece / pieces.num_parts / pieces.num_chunks;
        let queries = chunk * chunk_len..((chunk + 1) * chunk_len).min(seq.rows.len() * group);
        // Query `i` of this KV head: token `i / group`, head `i % group` of the group.
        let place = |i: usize| (seq.rows.start + i / group, kv_head * group + i % group);
        let within = if pieces.num_parts == 1 {
            0..usize::MAX
        } else {
            let start = pieces.parts_start + part * pieces.part_len;
            start..start + pieces.part_len
        };

        let mut tile: [(&[f32], Range<usize>); TILE_QUERIES] = std::array::from_fn(|_| (&[][..], 0..0));
        for (slot, i) in tile.iter_mut().zip(queries.clone()) {
            let (row, head) = place(i);
            let span = Span { start: q.start + head * cache.k_dim, width: cache.k_dim, ..*q };
            let position = self.input.position(row);
            let end = if *causal { position + 1 } else { seq.start + seq.rows.len() };
            let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
            // SAFETY: queries are complete since the last barrier.
            *slot = (unsafe { self.row(&span, row) }, start.max(within.start)..end.min(within.end));
        }
        let blocks = self.code.size.num_blocks_in(cache.pool) * cache.num_kv_heads;
        let (k_len, v_len) = (
            blocks * self.code.size.kv.k.block_bytes(cache.k_dim),
            blocks * self.code.size.kv.v.block_bytes(cache.v_dim),
        );
        // SAFETY: nobody writes to the cache between the barriers around this instruction.
        let (k, v) =
            unsafe { (self.memory.kv.slice(cache.k..cache.k + k_len), self.memory.kv.slice(cache.v..cache.v + v_len)) };
        let args = TileArgs {
            queries: &tile[..queries.len()],
            kv: self.code.size.kv,
            k,
            v,
            table: &self.input.blocks_in(cache.pool)[seq.table.clone()],
            num_kv_heads: cache.num_kv_heads,
            kv_head,
            k_dim: cache.k_dim,
            v_dim: cache.v_dim,
            scale: *scale,
            softcap: *softcap,
        };
        // Precision doesn't follow what is fastest for a matmul.
        let rounds = self.are_more_than(DECODE_ROWS, seq.rows.len());
        let WorkerScratch { attention, .. } = &mut *self.scratch;
        if rounds {
            self.code.vectors.attention_tile_rounded(&args, attention);
        } else {
            self.code.vectors.attention_tile(&args, attention);
        }

        let sink = |head: usize| sinks.map(|sinks| self.code.vectors_data[sinks.0][head]);
        let out_of = |i: usize| {
            let (row, head) = place(i);
            let span = Span { start: out.start + head * cache.v_dim, width: cache.v_dim, ..*out };
            (range_of(self.code, &span, row), head)
        };
        if pieces.num_parts == 1 {
            for (n, i) in queries.enumerate() {
                let (range, head) = out_of(i);
                // SAFETY: this head of this row belongs to this piece alone.
                let out = unsafe { self.memory.arena.slice_mut(range) };
                self.code.vectors.finish_attention(attention, n, sink(head), out);
            }
            return;
        }

        // The parts of a query lie behind each other: `[MAX_PARTS][v_dim + 2]` of each head of each row.
        let stride = cache.v_dim + 2;
        let parts_of = |i: usize| {
            let (row, head) = place(i);
            ((pieces.cut_row + row - seq.rows.start) * num_heads + head) * MAX_PARTS * stride
        };
        for (n, i) in queries.enumerate() {
            let start = parts_of(i) + part * stride;
            // SAFETY: this part of this head of this row belongs to this piece alone, until its arrival below.
            attention.store_part(n, unsafe { self.memory.parts.slice_mut(start..start + stride) });
        }
        let arrivals = &self.memory.arrivals[pieces.cut_row * cache.num_kv_heads + kv_head];
        // Each arrival releases its part; the last one acquires all of them.
        if arrivals.fetch_add(1, Ordering::AcqRel) + 1 < (pieces.num_chunks * pieces.num_parts) as u32 {
            return;
        }
        arrivals.store(0, Ordering::Relaxed);
        for i in 0..seq.rows.len() * group {
            let (range, head) = out_of(i);
            let start = parts_of(i);
            // SAFETY: all parts of this KV head are stored and nobody writes to them before the next barrier; the output
            // belongs to the last arrival alone.
            unsafe {
                let parts = self.memory.parts.slice(start..start + pieces.num_parts * stride);
                merge_parts(parts, stride, sink(head), self.memory.arena.slice_mut(range));
            }
        }
    }
}
