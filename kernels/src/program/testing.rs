//! Random programs and their input, for the tests of everything that runs programs.

use std::sync::Arc;

use super::{
    ActId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, ProgramBuilder, ProgramSize, Rows, SeqInput, Span,
    StepInput, VecId, WeightId,
};
use crate::cpu::kv::{KvPool, KvType, KvTypes};
use crate::cpu::vector::{Activation, RopePairs};
use crate::cpu::{CpuKernels, Numerics};
use crate::quant::{
    QuantType,
    tests::{Rng, random_row},
};

pub(crate) const VOCAB: usize = 40;
/// Every type, alone or with another one.
pub(crate) const KV_TYPES: [KvTypes; 5] = [
    KvTypes { k: KvType::F32, v: KvType::F32 },
    KvTypes { k: KvType::F16, v: KvType::F16 },
    KvTypes { k: KvType::Q8_0, v: KvType::Q8_0 },
    KvTypes { k: KvType::Q8_0, v: KvType::Q4_0 },
    KvTypes { k: KvType::Q4_0, v: KvType::F16 },
];
/// Widths of the buffers of tokens: two of each, so that operands can differ.
pub(crate) const WIDTHS: [usize; 3] = [64, 128, 96];
pub(crate) const HEADS: usize = 4;
pub(crate) const KV_HEADS: usize = 2;
pub(crate) const HEAD_DIM: usize = 32;

pub(crate) fn size(kv: KvTypes) -> ProgramSize {
    ProgramSize { vocab_size: VOCAB, max_tokens: 40, max_outputs: 8, num_blocks: 8, num_window_blocks: 0, kv }
}

/// The parts that random programs are put together from.
pub(crate) struct Kit {
    pub(crate) program: ProgramBuilder,
    pub(crate) rng: Rng,
    /// Whether a matrix has an integer matmul, by its number.
    pub(crate) integer: Vec<bool>,
    /// `[WIDTHS][2]`
    pub(crate) spans: [Span; 2 * WIDTHS.len()],
    /// One for each of `WIDTHS`.
    pub(crate) acts: Vec<ActId>,
    pub(crate) cache: CacheId,
    pub(crate) table: usize,
}

impl Kit {
    pub(crate) fn new(seed: u64) -> Self {
        let mut program = ProgramBuilder::new();
        let spans = std::array::from_fn(|i| {
            let buf = program.buffer(WIDTHS[i / 2], Rows::Tokens);
            program.span(buf)
        });
        let acts = WIDTHS.iter().map(|&width| program.act(width)).collect();
        let cache = program.cache(KvPool::Full, KV_HEADS, HEAD_DIM, HEAD_DIM);
        let table = program.rope_table(HEAD_DIM / 2);
        Self { program, rng: Rng(seed * 77 + 1), integer: Vec::new(), spans, acts, cache, table }
    }

    pub(crate) fn below(&mut self, n: usize) -> usize {
        (self.rng.next() >> 33) as usize % n
    }

    pub(crate) fn weight(&mut self, rows: usize, cols: usize) -> WeightId {
        let dtype = [QuantType::Q8_0, QuantType::Q4_0, QuantType::F32][self.below(3)];
        let bytes: Vec<u8> = (0..rows).flat_map(|_| random_row(dtype, cols, &mut self.rng)).collect();
        let weight = self.program.weight(Arc::new(bytes), dtype, rows, cols).unwrap();
        self.integer.push(CpuKernels::matmul_q8_supported(dtype));
        assert_eq!(weight.0 + 1, self.integer.len());
        weight
    }

    pub(crate) fn vector(&mut self, len: usize) -> VecId {
        let data = self.rng.normals(len);
        self.program.vector(data)
    }

    /// Index into `WIDTHS`, and one of the two buffers of that width.
    pub(crate) fn pick(&mut self) -> (usize, Span) {
        let width = self.below(WIDTHS.len());
        let which = self.below(2);
        (width, self.spans[2 * width + which])
    }

    pub(crate) fn activation(&mut self) -> Activation {
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu][self.below(4)]
    }

    pub(crate) fn matmul(&mut self) -> Instr {
        let (k, x) = self.pick();
        let (n, out) = self.pick();
        let weight = self.weight(WIDTHS[n], WIDTHS[k]);
        let bias = (self.below(2) == 0).then(|| self.vector(WIDTHS[n]));
        let mut parts = vec![MatMulPart { weight, out, bias }];
        let other = self.spans[2 * n + usize::from(out == self.spans[2 * n])];
        let then = match self.below(4) {
            0 => MatMulThen::AddTo(other),
            1 => {
                parts.push(MatMulPart { weight: self.weight(WIDTHS[n], WIDTHS[k]), out: other, bias: None });
                MatMulThen::Glu(self.activation())
            }
            2 => {
                // A group of unequal widths: shares cross from one matrix to the next.
                let m = (n + 1) % WIDTHS.len();
                let out = self.spans[2 * m + self.below(2)];
                parts.push(MatMulPart { weight: self.weight(WIDTHS[m], WIDTHS[k]), out, bias: None });
                MatMulThen::Done
            }
            _ => MatMulThen::Done,
        };
        // Integer weights only on quantised rows; floats on an input that no output shares a buffer with.
        let all_integer = parts.iter().all(|part| self.integer[part.weight.0]);
        let apart = parts.iter().all(|part| part.out.buf != x.buf)
            && !matches!(then, MatMulThen::AddTo(dst) if dst.buf == x.buf);
        if all_integer && (!apart || self.below(2) == 0) {
            return Instr::MatMul { x: MatMulX::Act(self.acts[k]), rows: Rows::Tokens, parts, then };
        }
        if apart {
            return Instr::MatMul { x: MatMulX::Float(x), rows: Rows::Tokens, parts, then };
        }
        Instr::Quantize { x, act: self.acts[k] }
    }

    pub(crate) fn instr(&mut self) -> Instr {
        let (width, x) = self.pick();
        let out = self.spans[2 * width + self.below(2)];
        match self.below(16) {
            0 => Instr::Activate { act: self.activation(), x, out },
            1 => Instr::Add { a: x, b: out, out: self.spans[2 * width + self.below(2)] },
            2 => Instr::Glu { act: self.activation(), gate: x, up: out, out: self.spans[2 * width + self.below(2)] },
            3 => Instr::Scale { factor: 0.5, x, out },
            4 => Instr::Softcap { cap: 3.0, x, out },
            5 => Instr::Rope {
                x: self.spans[self.below(4)],
                head_dim: HEAD_DIM,
                pairs: [RopePairs::Halves, RopePairs::Adjacent][self.below(2)],
                table: self.table,
            },
            6 => Instr::Quantize { x, act: self.acts[width] },
            7 => Instr::StoreKv { k: self.spans[self.below(2)], v: self.spans[self.below(2)], cache: self.cache },
            8 | 9 => {
                let from = self.below(2);
                Instr::Attend {
                    q: self.spans[2 + from],
                    out: self.spans[3 - from],
                    cache: self.cache,
                    num_heads: HEADS,
                    scale: 0.2,
                    softcap: (self.below(2) == 0).then_some(5.0),
                    window: (self.below(2) == 0).then_some(9),
                    causal: self.below(4) != 0,
                    sinks: (self.below(2) == 0).then(|| self.vector(HEADS)),
                }
            }
            10..13 => self.matmul(),
            // Norms also keep the numbers in a range where a difference shows.
            _ => {
                let weight = (self.below(2) == 0).then(|| self.vector(WIDTHS[width] / 2));
                Instr::Norm { centre: self.below(2) == 0, eps: 1e-3, groups: 2, x, out, weight, bias: None }
            }
        }
    }

    /// A program of `num_instrs` and its output; the same for the same seed.
    pub(crate) fn build(mut self, num_instrs: usize) -> (ProgramBuilder, Span) {
        for span in self.spans {
            let table = self.weight(VOCAB, span.width);
            self.program.push(Instr::Embed { table, scale: 3.0, out: span });
        }
        for i in 0..WIDTHS.len() {
            self.program.push(Instr::Quantize { x: self.spans[2 * i], act: self.acts[i] });
        }
        for _ in 0..num_instrs {
            let instr = self.instr();
            self.program.push(instr);
        }
        let buf = self.program.buffer(WIDTHS[0], Rows::Outputs);
        let out = self.program.span(buf);
        self.program.push(Instr::Gather { x: self.spans[0], out });
        (self.program, out)
    }
}

/// One step's input, owned.
pub(crate) struct Input {
    pub(crate) tokens: Vec<u32>,
    pub(crate) seqs: Vec<SeqInput>,
    pub(crate) seq_of_row: Vec<u32>,
    pub(crate) blocks: Vec<u32>,
    pub(crate) outputs: Vec<u32>,
    pub(crate) ropes: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Input {
    /// Pieces of two sequences: lengths and first positions.
    pub(crate) fn new(rng: &mut Rng, pieces: [(usize, usize); 2]) -> Self {
        let num_rows = pieces.iter().map(|(len, _)| len).sum();
        let mut seqs = Vec::new();
        let mut row = 0;
        for (index, (len, start)) in pieces.into_iter().enumerate() {
            seqs.push(SeqInput { rows: row..row + len, start, table: 4 * index..4 * index + 4 });
            row += len;
        }
        let angles = rng.normals(num_rows * HEAD_DIM / 2);
        Self {
            tokens: (0..num_rows).map(|_| rng.next() as u32 % VOCAB as u32).collect(),
            seq_of_row: seqs.iter().enumerate().flat_map(|(i, seq)| vec![i as u32; seq.rows.len()]).collect(),
            seqs,
            blocks: vec![6, 1, 4, 3, 0, 7, 2, 5],
            outputs: vec![num_rows as u32 - 1, 0],
            ropes: vec![(angles.iter().map(|x| x.cos()).collect(), angles.iter().map(|x| x.sin()).collect())],
        }
    }

    pub(crate) fn as_step(&self) -> StepInput<'_> {
        StepInput {
            tokens: &self.tokens,
            seqs: &self.seqs,
            seq_of_row: &self.seq_of_row,
            blocks: &self.blocks,
            window_blocks: &[],
            outputs: &self.outputs,
            hidden: &[],
            ropes: &self.ropes,
            numerics: Numerics::Fast,
            reduce: None,
        }
    }
}
