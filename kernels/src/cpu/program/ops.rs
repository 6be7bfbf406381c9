//! What each instruction does on one worker: its share of the rows, columns or heads.

use std::ops::Range;

use half::f16;

use super::instr::{Instr, MatMulPart, MatMulThen, MatMulX, Rows, Span};
use super::{ActSlot, CacheSlot, Code, KvMemory, Memory, StepInput, WorkerScratch};
use crate::cpu::attention::{KV_BLOCK, KvSlice, TILE_QUERIES, TileArgs};
use crate::cpu::team::Worker;
use crate::cpu::vector::{NormRow, rope_head};
use crate::cpu::{ACT_GROUP, ActRows, DECODE_ROWS, MatrixRef, PACK_ROWS, PackedActs, ROW_TILE, SUM_GROUP};

/// A worker in the middle of a step.
pub(super) struct Run<'a> {
    pub(super) code: &'a Code,
    pub(super) memory: &'a Memory,
    pub(super) input: &'a StepInput<'a>,
    pub(super) worker: &'a Worker<'a>,
    pub(super) scratch: &'a mut WorkerScratch,
}

impl<'a> Run<'a> {
    fn num_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.input.tokens.len(),
            Rows::Outputs => self.input.outputs.len(),
        }
    }

    /// This worker's rows of the buffer: the same ones in every row-wise instruction on as many rows.
    fn my_rows(&self, span: &Span) -> Range<usize> {
        let num_rows = self.num_rows(self.code.buffers[span.buf.0].rows);
        // Rows that are packed lie side by side: whole cache lines of them, if that leaves work for others.
        let tile = if num_rows <= DECODE_ROWS {
            1
        } else if num_rows <= PACK_ROWS {
            PACK_ROWS / 4
        } else {
            PACK_ROWS / 2
        };
        self.worker.share(num_rows, tile)
    }

    /// # Safety
    /// No worker writes to these columns of the row while the result lives.
    unsafe fn row(&self, span: &Span, row: usize) -> &'a [f32] {
        // SAFETY: forwarded.
        unsafe { self.memory.arena.slice(range_of(self.code, span, row)) }
    }

    /// # Safety
    /// Nothing else reaches these columns of the row while the result lives.
    unsafe fn row_mut(&self, span: &Span, row: usize) -> &'a mut [f32] {
        // SAFETY: forwarded.
        unsafe { self.memory.arena.slice_mut(range_of(self.code, span, row)) }
    }

    fn vector(&self, id: Option<super::VecId>) -> Option<&'a [f32]> {
        id.map(|id| self.code.vectors_data[id.0].as_slice())
    }

    #[expect(
        clippy::expect_used,
        reason = "the builder made this very call; only bytes that change their length can fail it"
    )]
    fn matrix(&self, id: super::WeightId) -> MatrixRef<'a> {
        let slot = &self.code.weights[id.0];
        MatrixRef::new(slot.dtype, slot.rows, slot.cols, (*slot.bytes).as_ref()).expect("a matrix changed its length")
    }

    /// `out = f(x)` on this worker's rows. `x` goes through a copy, so that `out` may be `x`.
    ///
    /// # Safety
    /// A row-wise instruction of a checked program, in its turn.
    unsafe fn unary(&mut self, x: &Span, out: &Span, f: impl Fn(&[f32], &mut [f32])) {
        for row in self.my_rows(x) {
            // SAFETY: own row; the reference ends with the copy.
            let from = unsafe { self.row(x, row) };
            let copy = &mut self.scratch.row[..x.width];
            copy.copy_from_slice(from);
            // SAFETY: own row, and `from` is no longer used.
            let to = unsafe { self.memory.arena.slice_mut(range_of(self.code, out, row)) };
            f(copy, to);
        }
    }

    /// `out = f(a, b)` on this worker's rows, as `out = a`, then `f(out, b)`. `b` goes through a copy, so that `out` may
    /// be `a` or `b`.
    ///
    /// # Safety
    /// A row-wise instruction of a checked program, in its turn.
    unsafe fn binary(&mut self, a: &Span, b: &Span, out: &Span, f: impl Fn(&mut [f32], &[f32])) {
        for row in self.my_rows(out) {
            // SAFETY: own row; the reference ends with the copy.
            let from = unsafe { self.row(b, row) };
            let copy = &mut self.scratch.row[..b.width];
            copy.copy_from_slice(from);
            // SAFETY: own row, and `from` is no longer used; `a` is `out` or disjoint from it.
            let to = unsafe { self.memory.arena.slice_mut(range_of(self.code, out, row)) };
            if a != out {
                // SAFETY: own row; disjoint from `to`, and if it is `b`, only read.
                to.copy_from_slice(unsafe { self.memory.arena.slice(range_of(self.code, a, row)) });
            }
            f(to, copy);
        }
    }

    /// Does this worker's share of one instruction.
    ///
    /// # Safety
    /// The program was checked, the step's input was checked, and the barriers before this instruction were passed.
    pub(super) unsafe fn execute(&mut self, instr: &Instr) {
        let vectors = self.code.vectors;
        match instr {
            Instr::Embed { table, scale, out } => {
                let table = self.matrix(*table);
                for row in self.my_rows(out) {
                    // SAFETY: own row.
                    let to = unsafe { self.row_mut(out, row) };
                    let from = table.row(self.input.tokens[row] as usize);
                    let done = self.code.kernels.dequantize_row(table.dtype(), from, to);
                    debug_assert!(done.is_ok(), "the builder checked the table's type and width");
                    if *scale != 1.0 {
                        to.iter_mut().for_each(|x| *x *= scale);
                    }
                }
            }
            Instr::Norm { centre, eps, groups, x, out, weight, bias } => {
                let norm =
                    NormRow { centre: *centre, eps: *eps, weight: self.vector(*weight), bias: self.vector(*bias) };
                let part = x.width / groups;
                // SAFETY: row-wise; forwarded.
                unsafe {
                    self.unary(x, out, |x, out| {
                        for (x, out) in x.chunks_exact(part).zip(out.chunks_exact_mut(part)) {
                            vectors.norm(&norm, x, out);
                        }
                    });
                }
            }
            // SAFETY: row-wise; forwarded.
            Instr::Quantize { x, act } => unsafe { self.quantize(x, &self.code.acts[act.0]) },
            // SAFETY: forwarded.
            Instr::MatMul { x, rows, parts, then } => unsafe { self.matmul(x, *rows, parts, then) },
            Instr::Rope { x, head_dim, pairs, table } => {
                let half = self.code.rope_halves[*table];
                let (cos, sin) = &self.input.ropes[*table];
                for row in self.my_rows(x) {
                    let angles = row * half..(row + 1) * half;
                    // SAFETY: own row.
                    for head in unsafe { self.row_mut(x, row) }.chunks_exact_mut(*head_dim) {
                        rope_head(*pairs, &cos[angles.clone()], &sin[angles.clone()], head);
                    }
                }
            }
            Instr::StoreKv { k, v, cache } => {
                for row in self.my_rows(k) {
                    // SAFETY: own row, and the cache slot of this row's position is nobody else's: `check_input`.
                    unsafe { self.store_kv(k, v, &self.code.caches[cache.0], row) };
                }
            }
            // SAFETY: forwarded.
            Instr::Attend { .. } => unsafe { self.attend(instr) },
            // SAFETY: row-wise; forwarded.
            Instr::Glu { act, gate, up, out } => unsafe {
                self.binary(gate, up, out, |gate, up| vectors.glu(*act, gate, up));
            },
            // SAFETY: row-wise; forwarded.
            Instr::Add { a, b, out } => unsafe { self.binary(a, b, out, |a, b| vectors.add(a, b)) },
            // SAFETY: row-wise; forwarded.
            Instr::Activate { act, x, out } => unsafe { self.unary(x, out, |x, y| vectors.activation(*act, x, y)) },
            // SAFETY: row-wise; forwarded.
            Instr::Scale { factor, x, out } => unsafe { self.unary(x, out, |x, y| vectors.scale(*factor, x, y)) },
            // SAFETY: row-wise; forwarded.
            Instr::Softcap { cap, x, out } => unsafe { self.unary(x, out, |x, y| vectors.softcap(*cap, x, y)) },
            Instr::Gather { x, out } => {
                for row in self.my_rows(out) {
                    // SAFETY: own row of the output; the input is complete since the last barrier.
                    unsafe { self.row_mut(out, row).copy_from_slice(self.row(x, self.input.outputs[row] as usize)) };
                }
            }
        }
    }

    /// Quantises this worker's rows and, where there are many, packs them.
    ///
    /// # Safety
    /// As [`Self::execute`].
    unsafe fn quantize(&mut self, x: &Span, slot: &ActSlot) {
        let rows = self.my_rows(x);
        for row in rows.clone() {
            let [q, d, sums] = slot.rows(row..row + 1);
            // SAFETY: own row, here and there.
            unsafe {
                self.code.kernels.quantize_act_row(
                    self.row(x, row),
                    self.memory.act_q.slice_mut(q),
                    self.memory.act_d.slice_mut(d),
                    self.memory.act_sums.slice_mut(sums),
                );
            }
        }
        if self.num_rows(self.code.buffers[x.buf.0].rows) <= DECODE_ROWS {
            return;
        }
        let mut first = rows.start;
        while first < rows.end {
            let lane = first % PACK_ROWS;
            let end = rows.end.min(first - lane + PACK_ROWS);
            let [q, d] = PackedActs::lengths(first - lane, slot.k);
            let (q, d) = (self.memory.packed_q.at(slot.packed_q + q), self.memory.packed_d.at(slot.packed_d + d));
            // SAFETY: own rows, quantised above; their lanes of the block are this worker's too. The arena holds whole blocks.
            unsafe { self.code.kernels.pack_acts(&self.acts(slot, first..end), lane, q, d) };
            first = end;
        }
    }

    /// Quantised rows, not packed.
    ///
    /// # Safety
    /// Nobody writes to those rows while the result lives.
    unsafe fn acts(&self, slot: &ActSlot, rows: Range<usize>) -> ActRows<'a> {
        let num_rows = rows.len();
        let [q, d, sums] = slot.rows(rows);
        // SAFETY: forwarded.
        unsafe {
            ActRows {
                num_rows,
                k: slot.k,
                q: self.memory.act_q.slice(q),
                d: self.memory.act_d.slice(d),
                sums: self.memory.act_sums.slice(sums),
                packed: None,
            }
        }
    }

    /// # Safety
    /// As [`Self::execute`].
    unsafe fn matmul(&mut self, x: &MatMulX, rows: Rows, parts: &[MatMulPart], then: &MatMulThen) {
        if self.num_rows(rows) == 0 {
            return;
        }
        // A worker's columns: the same ones of both parts where the epilogue pairs them, else a share of all tiles.
        if let (MatMulThen::Glu(act), [gate, up]) = (then, parts) {
            let columns = self.worker.share(gate.out.width, ROW_TILE);
            if columns.is_empty() {
                return;
            }
            // SAFETY: own columns of both outputs; the input is complete since the last barrier.
            unsafe {
                self.matmul_columns(x, rows, gate, columns.clone());
                self.matmul_columns(x, rows, up, columns.clone());
            }
            for row in 0..self.num_rows(rows) {
                let part = |span: &Span| Span { start: span.start + columns.start, width: columns.len(), ..*span };
                // SAFETY: own columns.
                unsafe {
                    self.code.vectors.glu(*act, self.row_mut(&part(&gate.out), row), self.row(&part(&up.out), row))
                };
            }
            return;
        }
        let tiles = |part: &MatMulPart| part.out.width.div_ceil(ROW_TILE);
        let mine = self.worker.share(parts.iter().map(tiles).sum(), 1);
        let mut first = 0;
        for part in parts {
            let from = mine.start.clamp(first, first + tiles(part)) - first;
            let to = mine.end.clamp(first, first + tiles(part)) - first;
            first += tiles(part);
            let columns = (from * ROW_TILE).min(part.out.width)..(to * ROW_TILE).min(part.out.width);
            if columns.is_empty() {
                continue;
            }
            // SAFETY: own columns; the input is complete since the last barrier.
            unsafe { self.matmul_columns(x, rows, part, columns.clone()) };
            if let MatMulThen::AddTo(dst) = then {
                for row in 0..self.num_rows(rows) {
                    let cut = |span: &Span| Span { start: span.start + columns.start, width: columns.len(), ..*span };
                    // SAFETY: own columns of both; `dst` is disjoint from the output (checked by the builder).
                    unsafe { self.code.vectors.add(self.row_mut(&cut(dst), row), self.row(&cut(&part.out), row)) };
                }
            }
        }
    }

    /// `out[.., columns] = x · weight[columns]ᵀ + bias[columns]`.
    ///
    /// # Safety
    /// Nobody else reaches these columns of `part.out` now, and nobody writes to `x`.
    unsafe fn matmul_columns(&mut self, x: &MatMulX, rows: Rows, part: &MatMulPart, columns: Range<usize>) {
        let num_rows = self.num_rows(rows);
        let weight = self.matrix(part.weight);
        let slot = &self.code.buffers[part.out.buf.0];
        let out = self.memory.arena.at(slot.offset + part.out.start);
        match x {
            MatMulX::Act(act) => {
                let slot_x = &self.code.acts[act.0];
                let [q, d] = PackedActs::lengths(num_rows, slot_x.k);
                // SAFETY: quantised rows are complete since the last barrier; `out` addresses `[num_rows, columns]` of the
                // buffer, in bounds by the builder's checks, exclusive by contract.
                unsafe {
                    let packed = (num_rows > DECODE_ROWS).then(|| PackedActs {
                        q: self.memory.packed_q.slice(slot_x.packed_q..slot_x.packed_q + q),
                        d: self.memory.packed_d.slice(slot_x.packed_d..slot_x.packed_d + d),
                    });
                    let acts = ActRows { packed, ..self.acts(slot_x, 0..num_rows) };
                    let scratch = &mut self.scratch.matmul;
                    self.code.kernels.matmul_q8(&weight, columns.clone(), &acts, out, slot.width, scratch);
                }
            }
            MatMulX::Float(span) => {
                let slot_x = &self.code.buffers[span.buf.0];
                let start = slot_x.offset + span.start;
                let end = start + (num_rows - 1) * slot_x.width + span.width;
                // SAFETY: as above. The slice spans whole rows; the builder refuses an output in the same buffer, so nobody
                // writes anywhere in it.
                unsafe {
                    let x = self.memory.arena.slice(start..end);
                    let scratch = &mut self.scratch.matmul;
                    self.code.kernels.matmul_rounded(
                        &weight,
                        columns.clone(),
                        x,
                        slot_x.width,
                        num_rows,
                        out,
                        slot.width,
                        scratch,
                    );
                }
            }
        }
        if let Some(bias) = self.vector(part.bias) {
            let cut = Span { start: part.out.start + columns.start, width: columns.len(), ..part.out };
            for row in 0..num_rows {
                // SAFETY: own columns.
                self.code.vectors.add(unsafe { self.row_mut(&cut, row) }, &bias[columns.clone()]);
            }
        }
    }

    /// # Safety
    /// As [`Self::execute`], for a row of this worker.
    unsafe fn store_kv(&self, k: &Span, v: &Span, cache: &CacheSlot, row: usize) {
        let seq = &self.input.seqs[self.input.seq_of_row[row] as usize];
        let position = self.input.position(row);
        let block = self.input.blocks[seq.table.start + position / KV_BLOCK] as usize;
        let slot = position % KV_BLOCK;
        // SAFETY: own row.
        let (k, v) = unsafe { (self.row(k, row), self.row(v, row)) };
        for head in 0..cache.num_kv_heads {
            let index = block * cache.num_kv_heads + head;
            let keys = cache.k + index * cache.k_dim * KV_BLOCK + slot;
            let values = cache.v + (index * KV_BLOCK + slot) * cache.v_dim;
            let (k, v) = (&k[head * cache.k_dim..][..cache.k_dim], &v[head * cache.v_dim..][..cache.v_dim]);
            // SAFETY: the slot of this position in this block is written by this row alone (`check_input`), element by
            // element, and in bounds: block ids, heads and dimensions were checked.
            unsafe {
                match &self.memory.kv {
                    KvMemory::F16(cells) => {
                        for (d, x) in k.iter().enumerate() {
                            *cells.at(keys + d * KV_BLOCK) = saturate(*x);
                        }
                        for (to, x) in cells.slice_mut(values..values + cache.v_dim).iter_mut().zip(v) {
                            *to = saturate(*x);
                        }
                    }
                    KvMemory::F32(cells) => {
                        for (d, x) in k.iter().enumerate() {
                            *cells.at(keys + d * KV_BLOCK) = *x;
                        }
                        cells.slice_mut(values..values + cache.v_dim).copy_from_slice(v);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::execute`].
    unsafe fn attend(&mut self, instr: &Instr) {
        let Instr::Attend { q, out, cache, num_heads, scale, softcap, window, causal } = instr else { return };
        let cache = &self.code.caches[cache.0];
        let group = num_heads / cache.num_kv_heads;
        let k_len = self.code.num_blocks * cache.num_kv_heads * cache.k_dim * KV_BLOCK;
        let v_len = self.code.num_blocks * cache.num_kv_heads * cache.v_dim * KV_BLOCK;
        // SAFETY: nobody writes to the cache between the barriers around this instruction.
        let (keys, values) = unsafe {
            match &self.memory.kv {
                KvMemory::F16(cells) => (
                    KvSlice::F16(cells.slice(cache.k..cache.k + k_len)),
                    KvSlice::F16(cells.slice(cache.v..cache.v + v_len)),
                ),
                KvMemory::F32(cells) => (
                    KvSlice::F32(cells.slice(cache.k..cache.k + k_len)),
                    KvSlice::F32(cells.slice(cache.v..cache.v + v_len)),
                ),
            }
        };

        // Work is counted in query × position; each tile goes to the worker in whose share its start falls. With few
        // queries tiles are small, so that every worker gets some.
        let num_queries = self.input.tokens.len() * num_heads;
        let tile_len = (num_queries / (2 * self.worker.num_workers())).clamp(1, TILE_QUERIES);
        let cost = |seq: &super::SeqInput| seq.start + seq.rows.len().div_ceil(2);
        let total: usize = self.input.seqs.iter().map(|seq| seq.rows.len() * num_heads * cost(seq)).sum();
        let share = self.worker.share(total, 1);
        let mut done = 0;

        for seq in self.input.seqs {
            let table = &self.input.blocks[seq.table.clone()];
            let queries = seq.rows.len() * group;
            for kv_head in 0..cache.num_kv_heads {
                for first in (0..queries).step_by(tile_len) {
                    let count = tile_len.min(queries - first);
                    let at = done;
                    done += count * cost(seq);
                    if !share.contains(&at) {
                        continue;
                    }
                    // Query `i` of this KV head: token `i / group`, head `i % group` of the group.
                    let place = |i: usize| (seq.rows.start + i / group, kv_head * group + i % group);
                    let mut tile: [(&[f32], Range<usize>); TILE_QUERIES] = std::array::from_fn(|_| (&[][..], 0..0));
                    for (slot, i) in tile.iter_mut().zip(first..first + count) {
                        let (row, head) = place(i);
                        let span = Span { start: q.start + head * cache.k_dim, width: cache.k_dim, ..*q };
                        let position = self.input.position(row);
                        let end = if *causal { position + 1 } else { seq.start + seq.rows.len() };
                        let start = window.map_or(0, |window| (position + 1).saturating_sub(window));
                        // SAFETY: queries are complete since the last barrier.
                        *slot = (unsafe { self.row(&span, row) }, start..end);
                    }
                    let args = TileArgs {
                        queries: &tile[..count],
                        k: keys,
                        v: values,
                        table,
                        num_kv_heads: cache.num_kv_heads,
                        kv_head,
                        k_dim: cache.k_dim,
                        v_dim: cache.v_dim,
                        scale: *scale,
                        softcap: *softcap,
                    };
                    let WorkerScratch { attention, heads, .. } = &mut *self.scratch;
                    let heads = &mut heads[..count * cache.v_dim];
                    self.code.vectors.attention_tile(&args, attention, heads);
                    for (result, i) in heads.chunks_exact(cache.v_dim).zip(first..) {
                        let (row, head) = place(i);
                        let span = Span { start: out.start + head * cache.v_dim, width: cache.v_dim, ..*out };
                        let range = range_of(self.code, &span, row);
                        // SAFETY: this head of this row belongs to this tile alone.
                        unsafe { self.memory.arena.slice_mut(range) }.copy_from_slice(result);
                    }
                }
            }
        }
    }
}

impl ActSlot {
    /// Where values, scales and sums of some rows lie in their arenas.
    fn rows(&self, rows: Range<usize>) -> [Range<usize>; 3] {
        [(self.q, self.k), (self.d, self.k / ACT_GROUP), (self.sums, self.k / SUM_GROUP)]
            .map(|(start, width)| start + rows.start * width..start + rows.end * width)
    }
}

/// Where columns of a row lie in the arena.
fn range_of(code: &Code, span: &Span, row: usize) -> Range<usize> {
    let slot = &code.buffers[span.buf.0];
    let start = slot.offset + row * slot.width + span.start;
    start..start + span.width
}

/// To half precision; beyond its range the largest finite value: an infinity in the cache would poison every later token.
fn saturate(x: f32) -> f16 {
    f16::from_f32(x.clamp(-65504.0, 65504.0))
}
