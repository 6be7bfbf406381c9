//! What each instruction does on one worker: its share of the rows, columns or heads.

use std::ops::Range;

use super::{ActSlot, CacheSlot, Code, Memory, StepInput, WorkerScratch};
use crate::cpu::attention::KV_BLOCK;
use crate::cpu::team::Worker;
use crate::cpu::vector::NormRow;
use crate::cpu::{
    ACT_GROUP, ActRows, FloatActs, MatrixRef, Numerics, PACK_ROWS, PackedActs, PackedBlock, ROW_TILE, RoundedActs,
    SUM_GROUP,
};
use crate::program::instr::{Instr, MatMulPart, MatMulThen, MatMulX, Rows, Span};

/// Pieces of a matmul for each worker: enough to even out a worker that is slower than the others or has lost its core.
const PIECES_A_WORKER: usize = 4;
/// Bytes of weights that a piece of a matmul with few rows reads at least, some µs: calls and claims cost a part of one.
const PIECE_BYTES: usize = 256 << 10;
/// Tiles of columns in a piece of a matmul with many rows at least: a kernel then reads the rows once for several.
const PIECE_TILES: usize = 4;

/// A worker in the middle of a step.
pub(super) struct Run<'a> {
    pub(super) code: &'a Code,
    pub(super) memory: &'a Memory,
    pub(super) input: &'a StepInput<'a>,
    pub(super) worker: &'a Worker<'a>,
    pub(super) scratch: &'a mut WorkerScratch,
}

impl<'a> Run<'a> {
    pub(super) fn num_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.input.tokens.len(),
            Rows::Outputs => self.input.outputs.len(),
            Rows::Hidden => self.input.hidden.len(),
        }
    }

    /// Whether a matmul takes that many rows by the kernels for many.
    pub(super) fn are_many(&self, num_rows: usize) -> bool {
        self.are_more_than(self.code.kernels.few_rows(), num_rows)
    }

    /// Whether there are more rows than `few`, or kernels must be those of more.
    pub(super) fn are_more_than(&self, few: usize, num_rows: usize) -> bool {
        num_rows > few || self.input.numerics == Numerics::Invariant
    }

    /// This worker's rows of the buffer: the same ones in every row-wise instruction on as many rows.
    fn my_rows(&self, span: &Span) -> Range<usize> {
        let num_rows = self.num_rows(self.code.buffers[span.buf.0].rows);
        // Rows that are packed lie side by side: whole cache lines of them, if that leaves work for others.
        let tile = if !self.are_many(num_rows) {
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
    pub(super) unsafe fn row(&self, span: &Span, row: usize) -> &'a [f32] {
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
        id.map(|id| &self.code.vectors_data[id.0][..])
    }

    #[expect(
        clippy::expect_used,
        reason = "the builder made this very call; only bytes that change their length can fail it"
    )]
    pub(super) fn matrix(&self, id: super::WeightId) -> MatrixRef<'a> {
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
                        vectors.rope(*pairs, &cos[angles.clone()], &sin[angles.clone()], head);
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
                let wanted = match self.code.buffers[out.buf.0].rows {
                    Rows::Hidden => self.input.hidden,
                    Rows::Outputs | Rows::Tokens => self.input.outputs,
                };
                for row in self.my_rows(out) {
                    // SAFETY: own row of the output; the input is complete since the last barrier.
                    unsafe { self.row_mut(out, row).copy_from_slice(self.row(x, wanted[row] as usize)) };
                }
            }
        }
    }

    /// Quantises this worker's rows and, where there are many, packs them; or rounds those.
    ///
    /// # Safety
    /// As [`Self::execute`].
    pub(super) unsafe fn quantize(&mut self, x: &Span, slot: &ActSlot) {
        let rows = self.my_rows(x);
        let are_many = self.are_many(self.num_rows(self.code.buffers[x.buf.0].rows));
        if are_many && self.code.kernels.rounds_many() {
            for rows in by_block(rows) {
                let lane = rows.start % PACK_ROWS;
                let to = self.rounded_block(slot, rows.start - lane);
                // SAFETY: own rows; their lanes of the block are this worker's too. The arena holds whole blocks.
                unsafe {
                    let (from, stride) = self.float_rows(x, rows.clone());
                    self.code.kernels.round_acts(from, stride, rows.len(), slot.k, lane, to);
                }
            }
            return;
        }
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
        if !are_many {
            return;
        }
        for rows in by_block(rows) {
            let lane = rows.start % PACK_ROWS;
            let to = self.packed_block(slot, rows.start - lane);
            // SAFETY: own rows, quantised above; their lanes of the block are this worker's too. The arena holds whole blocks.
            unsafe { self.code.kernels.pack_acts(&self.acts(slot, rows), lane, to) };
        }
    }

    /// The block of packed rows that begins with row `first`.
    pub(super) fn packed_block(&self, slot: &ActSlot, first: usize) -> PackedBlock {
        let [q, d, sums] = PackedActs::lengths(first, slot.k);
        PackedBlock {
            q: self.memory.packed_q.at(slot.packed_q + q),
            d: self.memory.packed_d.at(slot.packed_d + d),
            sums: self.memory.packed_sums.at(slot.packed_sums + sums),
        }
    }

    /// As [`Self::packed_block`], of rounded rows.
    pub(super) fn rounded_block(&self, slot: &ActSlot, first: usize) -> *mut u32 {
        self.memory.pairs.at(slot.pairs + RoundedActs::len(first, slot.k))
    }

    /// Packs this worker's f32 rows, where there are so many that a matmul takes them packed.
    ///
    /// # Safety
    /// As [`Self::execute`].
    pub(super) unsafe fn pack_floats(&self, x: &Span) {
        let num_rows = self.num_rows(self.code.buffers[x.buf.0].rows);
        if !FloatActs::takes_packed(num_rows, self.input.numerics) {
            return;
        }
        for rows in by_block(self.my_rows(x)) {
            let lane = rows.start % PACK_ROWS;
            let to = self.memory.packed_floats.at((rows.start - lane) * x.width);
            // SAFETY: own rows; their lanes of the block are this worker's too. The region holds whole blocks.
            unsafe {
                let (from, stride) = self.float_rows(x, rows.clone());
                self.code.kernels.pack_floats(from, stride, rows.len(), x.width, lane, to);
            }
        }
    }

    /// f32 rows as one slice, from the first one's columns to the last one's, and the elements from row to row.
    ///
    /// # Safety
    /// Nobody writes anywhere in those rows while the result lives.
    unsafe fn float_rows(&self, x: &Span, rows: Range<usize>) -> (&'a [f32], usize) {
        let slot = &self.code.buffers[x.buf.0];
        let start = slot.offset + rows.start * slot.width + x.start;
        let end = start + (rows.len() - 1) * slot.width + x.width;
        // SAFETY: in bounds by the builder's checks; nobody writes by contract.
        (unsafe { self.memory.arena.slice(start..end) }, slot.width)
    }

    /// Quantised rows, not packed.
    ///
    /// # Safety
    /// Nobody writes to those rows while the result lives.
    pub(super) unsafe fn acts(&self, slot: &ActSlot, rows: Range<usize>) -> ActRows<'a> {
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

    /// The first rows, packed.
    ///
    /// # Safety
    /// Nobody writes to those rows while the result lives.
    pub(super) unsafe fn packed_acts(&self, slot: &ActSlot, num_rows: usize) -> PackedActs<'a> {
        let [q, d, sums] = PackedActs::lengths(num_rows, slot.k);
        // SAFETY: forwarded.
        unsafe {
            PackedActs {
                q: self.memory.packed_q.slice(slot.packed_q..slot.packed_q + q),
                d: self.memory.packed_d.slice(slot.packed_d..slot.packed_d + d),
                sums: self.memory.packed_sums.slice(slot.packed_sums..slot.packed_sums + sums),
            }
        }
    }

    /// The first rows, rounded.
    ///
    /// # Safety
    /// Nobody writes to those rows while the result lives.
    pub(super) unsafe fn rounded_acts(&self, slot: &ActSlot, num_rows: usize) -> RoundedActs<'a> {
        let range = slot.pairs..slot.pairs + RoundedActs::len(num_rows, slot.k);
        // SAFETY: forwarded.
        RoundedActs { num_rows, k: slot.k, pairs: unsafe { self.memory.pairs.slice(range) } }
    }

    /// # Safety
    /// As [`Self::execute`].
    unsafe fn matmul(&mut self, x: &MatMulX, rows: Rows, parts: &[MatMulPart], then: &MatMulThen) {
        let num_rows = self.num_rows(rows);
        if num_rows == 0 {
            return;
        }
        let tiles = |part: &MatMulPart| part.out.width.div_ceil(ROW_TILE);
        // A piece of a pair is the same columns of both parts, else some of all tiles.
        let pair = match (then, parts) {
            (MatMulThen::Glu(act), [gate, up]) => Some((*act, gate, up)),
            _ => None,
        };
        let num_tiles = if pair.is_some() { tiles(&parts[0]) } else { parts.iter().map(tiles).sum() };
        let piece_tiles = self.piece_tiles(num_tiles, num_rows, &parts[0]);
        let worker = self.worker;
        worker.pieces(num_tiles.div_ceil(piece_tiles), |piece| {
            let mine = piece * piece_tiles..((piece + 1) * piece_tiles).min(num_tiles);
            if let Some((act, gate, up)) = pair {
                let columns = mine.start * ROW_TILE..(mine.end * ROW_TILE).min(gate.out.width);
                // SAFETY: columns of both outputs that are this piece's alone; the input is complete since the last barrier.
                unsafe {
                    self.matmul_columns(x, rows, gate, columns.clone());
                    self.matmul_columns(x, rows, up, columns.clone());
                }
                for row in 0..num_rows {
                    let cut = |span: &Span| Span { start: span.start + columns.start, width: columns.len(), ..*span };
                    // SAFETY: as above.
                    unsafe {
                        self.code.vectors.glu(act, self.row_mut(&cut(&gate.out), row), self.row(&cut(&up.out), row));
                    }
                }
                return;
            }
            let mut first = 0;
            for part in parts {
                let from = mine.start.clamp(first, first + tiles(part)) - first;
                let to = mine.end.clamp(first, first + tiles(part)) - first;
                first += tiles(part);
                let columns = (from * ROW_TILE).min(part.out.width)..(to * ROW_TILE).min(part.out.width);
                if columns.is_empty() {
                    continue;
                }
                // SAFETY: columns that are this piece's alone; the input is complete since the last barrier.
                unsafe { self.matmul_columns(x, rows, part, columns.clone()) };
                if let MatMulThen::AddTo(dst) = then {
                    for row in 0..num_rows {
                        let cut =
                            |span: &Span| Span { start: span.start + columns.start, width: columns.len(), ..*span };
                        // SAFETY: own columns of both; `dst` is disjoint from the output (checked by the builder).
                        unsafe { self.code.vectors.add(self.row_mut(&cut(dst), row), self.row(&cut(&part.out), row)) };
                    }
                }
            }
        });
    }

    /// Tiles of columns that one piece of a matmul takes. A column's result doesn't depend on it.
    pub(super) fn piece_tiles(&self, num_tiles: usize, num_rows: usize, part: &MatMulPart) -> usize {
        let num_workers = self.worker.num_workers();
        if num_workers == 1 {
            return num_tiles;
        }
        let least = if !self.are_many(num_rows) {
            let weight = &self.code.weights[part.weight.0];
            let tile_bytes = (*weight.bytes).as_ref().len() / weight.rows * ROW_TILE;
            PIECE_BYTES.div_ceil(tile_bytes.max(1))
        } else {
            PIECE_TILES
        };
        // No larger than an even share: a small matmul is better divided once than done by one worker.
        least.min(num_tiles.div_ceil(num_workers)).max(num_tiles.div_ceil(PIECES_A_WORKER * num_workers))
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
                let are_many = self.are_many(num_rows);
                // SAFETY: quantised rows are complete since the last barrier; `out` addresses `[num_rows, columns]` of the
                // buffer, in bounds by the builder's checks, exclusive by contract.
                unsafe {
                    let (columns, kernels) = (columns.clone(), &self.code.kernels);
                    if are_many && kernels.rounds_many() {
                        let acts = self.rounded_acts(slot_x, num_rows);
                        let scratch = &mut self.scratch.matmul;
                        kernels.matmul_on_rounded(&weight, columns, &acts, out, slot.width, scratch);
                    } else {
                        let packed = are_many.then(|| self.packed_acts(slot_x, num_rows));
                        let acts = ActRows { packed, ..self.acts(slot_x, 0..num_rows) };
                        let scratch = &mut self.scratch.matmul;
                        kernels.matmul_q8(&weight, columns, &acts, out, slot.width, scratch);
                    }
                }
            }
            MatMulX::Float(span) => {
                let (kernels, numerics) = (&self.code.kernels, self.input.numerics);
                let takes_packed =
                    FloatActs::takes_packed(num_rows, numerics) && !kernels.rounds(weight.dtype(), weight.cols());
                // SAFETY: as above. The slice spans whole rows; the builder refuses an output in the same buffer, so nobody
                // writes anywhere in it. Packed rows are complete since the last barrier.
                unsafe {
                    let (x, stride) = self.float_rows(span, 0..num_rows);
                    let packed_len = num_rows.next_multiple_of(PACK_ROWS) * span.width;
                    let packed = takes_packed.then(|| self.memory.packed_floats.slice(0..packed_len));
                    let acts = FloatActs { x, stride, num_rows, numerics, packed };
                    let scratch = &mut self.scratch.matmul;
                    kernels.matmul_rounded(&weight, columns.clone(), &acts, out, slot.width, scratch);
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
        let block = self.input.blocks_in(cache.pool)[seq.table.start + position / KV_BLOCK] as usize;
        let slot = position % KV_BLOCK;
        // SAFETY: own row.
        let (k, v) = unsafe { (self.row(k, row), self.row(v, row)) };
        let kv = self.code.size.kv;
        let (k_bytes, v_bytes) = (kv.k.block_bytes(cache.k_dim), kv.v.block_bytes(cache.v_dim));
        for (head, (k, v)) in k.chunks_exact(cache.k_dim).zip(v.chunks_exact(cache.v_dim)).enumerate() {
            let index = block * cache.num_kv_heads + head;
            // SAFETY: the block lies in the cache, and the slot of this position in it is written by this row alone
            // (`check_input`). Blocks begin at multiples of 64 bytes.
            unsafe {
                kv.k.store_key(
                    self.memory.kv.range_at(cache.k + index * k_bytes..cache.k + (index + 1) * k_bytes),
                    slot,
                    k,
                );
                kv.v.store_value(
                    self.memory.kv.range_at(cache.v + index * v_bytes..cache.v + (index + 1) * v_bytes),
                    slot,
                    v,
                );
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

/// Rows, cut where a block of packed ones ends.
fn by_block(rows: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    let mut first = rows.start;
    std::iter::from_fn(move || {
        let block = first..rows.end.min((first + 1).next_multiple_of(PACK_ROWS));
        first = block.end;
        (!block.is_empty()).then_some(block)
    })
}

/// Where columns of a row lie in the arena.
pub(super) fn range_of(code: &Code, span: &Span, row: usize) -> Range<usize> {
    let slot = &code.buffers[span.buf.0];
    let start = slot.offset + row * slot.width + span.start;
    start..start + span.width
}
