//! The gated half of an MLP in steps of many rows: matmuls of gate and up, the activation, and the quantisation of the result, a few
//! columns at a time, while they are in the second cache. Rows stay lanes from the matmuls' tiles to the packed activations, so nothing
//! is transposed, and the result never goes to memory as f32.

use super::ops::Run;
use super::{ActId, Span};
use crate::cpu::gemm::SLAB_ROWS;
use crate::cpu::vector::QuantizedLanes;
use crate::cpu::{ACT_GROUP, ActRows, CpuKernels, PACK_ROWS, ROW_TILE, RoundedActs};
use crate::program::instr::{Instr, MatMulThen, MatMulX};

/// Columns of gate and up that are computed together: two f32 strips of as many rows as a slab has take 384 KiB.
const COLUMNS: usize = 96;
/// f32 of one strip.
const STRIP: usize = SLAB_ROWS * COLUMNS;
/// f32 that a worker needs.
pub(super) const LANES_LEN: usize = 2 * STRIP;

const _: () = assert!(COLUMNS.is_multiple_of(ROW_TILE) && CpuKernels::lane_cols(COLUMNS) == COLUMNS);
const _: () = assert!(ROW_TILE.is_multiple_of(ACT_GROUP));

/// Rows as the matmuls of many take them here.
enum Acts<'a> {
    Quantized(ActRows<'a>),
    Rounded(RoundedActs<'a>),
}

impl Acts<'_> {
    fn rows(&self, range: std::ops::Range<usize>) -> Self {
        match self {
            Self::Quantized(acts) => Self::Quantized(acts.rows(range)),
            Self::Rounded(acts) => Self::Rounded(acts.rows(range)),
        }
    }
}

impl Run<'_> {
    /// The matmul of gate and up, `instr`, with its result quantised to `act`; few rows as [`Self::execute`] does them.
    ///
    /// # Safety
    /// As [`Self::execute`]; nobody reads or writes `act` meanwhile.
    pub(super) unsafe fn glu_quantize(&mut self, instr: &Instr, act: ActId) {
        let Instr::MatMul { x: MatMulX::Act(x), rows, parts, then: MatMulThen::Glu(glu) } = instr else { return };
        let ([gate, up], num_rows) = (&parts[..], self.num_rows(*rows)) else { return };
        if !self.are_many(num_rows) {
            // SAFETY: forwarded.
            return unsafe { self.execute(instr) };
        }
        if num_rows == 0 {
            return;
        }
        let (x, to) = (&self.code.acts[x.0], &self.code.acts[act.0]);
        // SAFETY: quantised or rounded rows are complete since the last barrier.
        let acts = unsafe {
            if self.code.kernels.rounds_many() {
                Acts::Rounded(self.rounded_acts(x, num_rows))
            } else {
                Acts::Quantized(ActRows { packed: Some(self.packed_acts(x, num_rows)), ..self.acts(x, 0..num_rows) })
            }
        };
        let matrices = [self.matrix(gate.weight), self.matrix(up.weight)];
        let num_tiles = gate.out.width.div_ceil(ROW_TILE);
        let piece_tiles = self.piece_tiles(num_tiles, num_rows, gate);
        let (worker, mut lanes) = (self.worker, std::mem::take(&mut self.scratch.lanes));
        let (gates, ups) = lanes.split_at_mut(STRIP);
        worker.pieces(num_tiles.div_ceil(piece_tiles), |piece| {
            let end = ((piece + 1) * piece_tiles * ROW_TILE).min(gate.out.width);
            for slab in (0..num_rows).step_by(SLAB_ROWS) {
                let slab_end = num_rows.min(slab + SLAB_ROWS);
                let acts = acts.rows(slab..slab_end);
                for first in (piece * piece_tiles * ROW_TILE..end).step_by(COLUMNS) {
                    let columns = first..end.min(first + COLUMNS);
                    for (matrix, out) in matrices.iter().zip([&mut *gates, &mut *ups]) {
                        let scratch = &mut self.scratch.matmul;
                        let (columns, kernels) = (columns.clone(), &self.code.kernels);
                        match &acts {
                            Acts::Quantized(acts) => kernels.matmul_q8_lanes(matrix, columns, acts, out, scratch),
                            Acts::Rounded(acts) => kernels.matmul_on_rounded_lanes(matrix, columns, acts, out, scratch),
                        }
                    }
                    let strip_len = CpuKernels::lane_cols(columns.len()) * PACK_ROWS;
                    let strips = gates.chunks_exact_mut(strip_len).zip(ups.chunks_exact(strip_len));
                    for (block, (gate, up)) in (slab..slab_end).step_by(PACK_ROWS).zip(strips) {
                        let len = columns.len() * PACK_ROWS;
                        self.code.vectors.glu(*glu, &mut gate[..len], &up[..len]);
                        let groups = gate[..len].as_chunks::<PACK_ROWS>().0.as_chunks::<ACT_GROUP>().0;
                        for (at, group) in columns.clone().step_by(ACT_GROUP).zip(groups) {
                            // SAFETY: these columns are this piece's alone, here and in what is quantised or rounded: the block has K
                            // columns, of which `at` is the first of a whole group.
                            unsafe {
                                if matches!(acts, Acts::Rounded(_)) {
                                    let to = self.rounded_block(to, block).add(at / 2 * PACK_ROWS);
                                    self.code.kernels.round_lanes(group, &mut *to.cast());
                                    continue;
                                }
                                let to = self.packed_block(to, block);
                                let to = QuantizedLanes {
                                    q: &mut *to.q.add(at * PACK_ROWS).cast(),
                                    d: &mut *to.d.add(at / ACT_GROUP * PACK_ROWS).cast(),
                                    sums: &mut *to.sums.add(at / ACT_GROUP * PACK_ROWS * 2).cast(),
                                };
                                self.code.vectors.quantize_lanes(group, to);
                            }
                        }
                    }
                }
            }
        });
        self.scratch.lanes = lanes;
    }

    /// Quantises what [`Self::glu_quantize`] left in `x`.
    ///
    /// # Safety
    /// As [`Self::execute`].
    pub(super) unsafe fn quantize_few(&mut self, x: &Span, act: ActId) {
        if !self.are_many(self.num_rows(self.code.buffers[x.buf.0].rows)) {
            // SAFETY: forwarded.
            unsafe { self.quantize(x, &self.code.acts[act.0]) };
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::cpu::Numerics;
    use crate::cpu::kv::KvType;
    use crate::cpu::program::{MatMulPart, Program, ProgramBuilder, ProgramSize, Rows, SeqInput, StepInput, Work};
    use crate::cpu::vector::Activation;
    use crate::program::Machine;
    use crate::quant::{
        QuantType,
        tests::{Rng, random_row},
    };

    const VOCAB: usize = 50;
    const MAX_TOKENS: usize = 600;

    /// An MLP; with `is_read`, somebody looks at the result of its first half.
    fn mlp(num_workers: usize, types: [QuantType; 3], is_read: bool) -> Program {
        let (width, hidden) = (256, 768);
        let (mut builder, mut rng) = (ProgramBuilder::new(), Rng(5));
        let [x, gate, up, down, copy] = [width, hidden, hidden, width, hidden].map(|width| {
            let buf = builder.buffer(width, Rows::Tokens);
            builder.span(buf)
        });
        let table: Vec<u8> = rng.normals(VOCAB * width).into_iter().flat_map(f32::to_le_bytes).collect();
        let table = builder.weight(Arc::new(table), QuantType::F32, VOCAB, width).unwrap();
        let [w_gate, w_up, w_down] = [(hidden, width), (hidden, width), (width, hidden)];
        let mut part = |dtype: QuantType, (rows, cols): (usize, usize), out| {
            let bytes: Vec<u8> = (0..rows).flat_map(|_| random_row(dtype, cols, &mut rng)).collect();
            let weight = builder.weight(Arc::new(bytes), dtype, rows, cols).unwrap();
            MatMulPart { weight, bias: None, out }
        };
        let first = vec![part(types[0], w_gate, gate), part(types[1], w_up, up)];
        let second = vec![part(types[2], w_down, down)];
        let (in_act, mid_act) = (builder.act(width), builder.act(hidden));
        builder.push(Instr::Embed { table, scale: 1.0, out: x });
        builder.push(Instr::Quantize { x, act: in_act });
        let then = MatMulThen::Glu(Activation::Silu);
        builder.push(Instr::MatMul { x: MatMulX::Act(in_act), rows: Rows::Tokens, parts: first, then });
        builder.push(Instr::Quantize { x: gate, act: mid_act });
        let (rows, then) = (Rows::Tokens, MatMulThen::Done);
        builder.push(Instr::MatMul { x: MatMulX::Act(mid_act), rows, parts: second, then });
        if is_read {
            builder.push(Instr::Scale { factor: 1.0, x: gate, out: copy });
        }
        let buf = builder.buffer(width, Rows::Outputs);
        let out = builder.span(buf);
        builder.push(Instr::Gather { x: down, out });
        let size = ProgramSize {
            vocab_size: VOCAB,
            max_tokens: MAX_TOKENS,
            max_outputs: MAX_TOKENS,
            num_blocks: MAX_TOKENS,
            num_window_blocks: 0,
            kv: KvType::F32.into(),
        };
        Program::new(CpuKernels::detect(), num_workers, builder, out, size).unwrap()
    }

    #[test]
    fn what_nobody_reads_is_quantized_at_once_to_the_same_bits() {
        if !CpuKernels::detect().has_lanes() {
            eprintln!("SKIP: the scalar kernels have no lanes");
            return;
        }
        let is_fused = |program: &Program| {
            let works = || program.code.instrs.iter().map(|step| &step.work);
            let [first, second] = [
                works().any(|work| matches!(work, Work::GluQuantize(..))),
                works().any(|work| matches!(work, Work::QuantizeFew(..))),
            ];
            assert_eq!(first, second);
            first
        };
        for types in
            [[QuantType::Q4_K, QuantType::Q4_K, QuantType::Q6_K], [QuantType::Q8_0, QuantType::Q4_1, QuantType::Q4_0]]
        {
            let mut plain = mlp(1, types, true);
            assert!(!is_fused(&plain));
            for num_workers in [1, 2, 3] {
                let mut fused = mlp(num_workers, types, false);
                assert!(is_fused(&fused));
                for (len, numerics) in [
                    (1, Numerics::Fast),
                    (8, Numerics::Fast),
                    (9, Numerics::Fast),
                    (MAX_TOKENS, Numerics::Fast),
                    (77, Numerics::Fast),
                    (3, Numerics::Invariant),
                ] {
                    let tokens: Vec<u32> = (0..len as u32).map(|i| i * 7 % VOCAB as u32).collect();
                    let blocks: Vec<u32> = (0..len as u32).collect();
                    let outputs = blocks.clone();
                    let input = StepInput {
                        tokens: &tokens,
                        seqs: &[SeqInput { rows: 0..len, start: 0, table: 0..len }],
                        seq_of_row: &vec![0; len],
                        blocks: &blocks,
                        window_blocks: &[],
                        outputs: &outputs,
                        hidden: &[],
                        ropes: &[],
                        numerics,
                        reduce: None,
                    };
                    let bits = |program: &mut Program| -> Vec<u32> {
                        program.run(&input).unwrap().iter().map(|x| x.to_bits()).collect()
                    };
                    let (got, expected) = (bits(&mut fused), bits(&mut plain));
                    assert!(expected.iter().any(|&x| f32::from_bits(x).abs() > 1e-6), "nothing to compare");
                    assert!(got == expected, "{types:?}: {len} rows, {num_workers} workers");
                }
            }
        }
    }
}
