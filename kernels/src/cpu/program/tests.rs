//! Programs: random ones must give the same bits on any number of workers; barriers stand where data crosses; what
//! doesn't fit is refused.

use std::ops::Range;
use std::sync::Arc;

use super::build::ProgramSize;
use super::*;
use crate::cpu::Numerics;
use crate::cpu::attention::{KV_BLOCK, NO_BLOCK};
use crate::cpu::kv::KvType;
use crate::cpu::vector::{Activation, RopePairs};
use crate::quant::{
    QuantType,
    tests::{Rng, random_row},
};

const VOCAB: usize = 40;
/// Every type, alone or with another one.
const KV_TYPES: [KvTypes; 5] = [
    KvTypes { k: KvType::F32, v: KvType::F32 },
    KvTypes { k: KvType::F16, v: KvType::F16 },
    KvTypes { k: KvType::Q8_0, v: KvType::Q8_0 },
    KvTypes { k: KvType::Q8_0, v: KvType::Q4_0 },
    KvTypes { k: KvType::Q4_0, v: KvType::F16 },
];
/// Widths of the buffers of tokens: two of each, so that operands can differ.
const WIDTHS: [usize; 3] = [64, 128, 96];
const HEADS: usize = 4;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 32;

fn size(num_workers: usize, kv: KvTypes) -> ProgramSize {
    ProgramSize { max_tokens: 40, max_outputs: 8, num_blocks: 8, num_window_blocks: 0, kv, num_workers }
}

/// The parts that random programs are put together from.
struct Kit {
    program: ProgramBuilder,
    rng: Rng,
    /// Whether a matrix has an integer matmul, by its number.
    integer: Vec<bool>,
    /// `[WIDTHS][2]`
    spans: [Span; 2 * WIDTHS.len()],
    /// One for each of `WIDTHS`.
    acts: Vec<ActId>,
    cache: CacheId,
    table: usize,
}

impl Kit {
    fn new(seed: u64) -> Self {
        let mut program = ProgramBuilder::new(CpuKernels::detect());
        let spans = std::array::from_fn(|i| {
            let buf = program.buffer(WIDTHS[i / 2], Rows::Tokens);
            program.span(buf)
        });
        let acts = WIDTHS.iter().map(|&width| program.act(width)).collect();
        let cache = program.cache(KvPool::Full, KV_HEADS, HEAD_DIM, HEAD_DIM);
        let table = program.rope_table(HEAD_DIM / 2);
        Self { program, rng: Rng(seed * 77 + 1), integer: Vec::new(), spans, acts, cache, table }
    }

    fn below(&mut self, n: usize) -> usize {
        (self.rng.next() >> 33) as usize % n
    }

    fn weight(&mut self, rows: usize, cols: usize) -> WeightId {
        let dtype = [QuantType::Q8_0, QuantType::Q4_0, QuantType::F32][self.below(3)];
        let bytes: Vec<u8> = (0..rows).flat_map(|_| random_row(dtype, cols, &mut self.rng)).collect();
        let weight = self.program.weight(Arc::new(bytes), dtype, rows, cols).unwrap();
        self.integer.push(CpuKernels::matmul_q8_supported(dtype));
        assert_eq!(weight.0 + 1, self.integer.len());
        weight
    }

    fn vector(&mut self, len: usize) -> VecId {
        let data = self.rng.normals(len);
        self.program.vector(data)
    }

    /// Index into `WIDTHS`, and one of the two buffers of that width.
    fn pick(&mut self) -> (usize, Span) {
        let width = self.below(WIDTHS.len());
        let which = self.below(2);
        (width, self.spans[2 * width + which])
    }

    fn activation(&mut self) -> Activation {
        [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu][self.below(4)]
    }

    fn matmul(&mut self) -> Instr {
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

    fn instr(&mut self) -> Instr {
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

    /// A program of `num_instrs`; the same for the same seed.
    fn build(mut self, num_instrs: usize, size: ProgramSize) -> Program {
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
        self.program.build(out, VOCAB, size).unwrap()
    }
}

/// One step's input, owned.
struct Input {
    tokens: Vec<u32>,
    seqs: Vec<SeqInput>,
    seq_of_row: Vec<u32>,
    blocks: Vec<u32>,
    outputs: Vec<u32>,
    ropes: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Input {
    /// Pieces of two sequences: lengths and first positions.
    fn new(rng: &mut Rng, pieces: [(usize, usize); 2]) -> Self {
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

    fn as_step(&self) -> StepInput<'_> {
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
        }
    }
}

/// All of the program's buffers, and its output.
fn run(program: &mut Program, input: &Input) -> (Vec<u32>, Vec<u32>) {
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let output = bits(program.run(&input.as_step()).unwrap());
    let rows = |slot: &BufferSlot| match slot.rows {
        Rows::Tokens => input.tokens.len(),
        Rows::Outputs => input.outputs.len(),
        Rows::Hidden => 0,
    };
    let len = program.code.buffers.iter().map(|slot| slot.offset + slot.width * rows(slot)).max().unwrap();
    // SAFETY: the team is idle.
    let arena = bits(unsafe { program.memory.arena.slice(0..len) });
    (arena, output)
}

#[test]
fn random_programs_give_the_same_bits_on_any_number_of_workers() {
    for seed in 0..60 {
        let [k, v] = [seed % 4, seed / 4 % 4].map(|index| KvType::ALL[index as usize]);
        let kv = KvTypes { k, v };
        let mut programs = [1, 2, 3].map(|workers| Kit::new(seed).build(25, size(workers, kv)));
        let mut rng = Rng(seed + 1000);
        // A prompt beside a token, tokens alone, a longer prompt after what is cached.
        for pieces in [[(5, 0), (1, 0)], [(1, 5), (1, 1)], [(3, 6), (35, 2)], [(1, 9), (1, 37)]] {
            let input = Input::new(&mut rng, pieces);
            let expected = run(&mut programs[0], &input);
            assert!(expected.1.iter().any(|&bits| f32::from_bits(bits).is_finite()), "seed {seed}: nothing to compare");
            for program in &mut programs[1..] {
                let got = run(program, &input);
                assert!(got == expected, "seed {seed}, {pieces:?}, {} workers", program.num_workers());
            }
        }
    }
}

/// One layer's attention alone: embeddings are queries, keys and values.
fn attention_program(num_workers: usize, kv: KvTypes, num_blocks: usize) -> Program {
    let size = ProgramSize { max_tokens: 64, max_outputs: 8, num_blocks, num_window_blocks: 0, kv, num_workers };
    attention_layer(KvPool::Full, None, size)
}

/// The same with a window, in either pool.
fn attention_layer(pool: KvPool, window: Option<usize>, size: ProgramSize) -> Program {
    let mut program = ProgramBuilder::new(CpuKernels::detect());
    let mut rng = Rng(99);
    let (num_heads, dim) = (3, 64);
    let [q, k, v, out] = [num_heads * dim, dim, dim, num_heads * dim].map(|width| {
        let buf = program.buffer(width, Rows::Tokens);
        program.span(buf)
    });
    for span in [q, k, v] {
        let bytes: Vec<u8> = rng.normals(VOCAB * span.width).into_iter().flat_map(f32::to_le_bytes).collect();
        let table = program.weight(Arc::new(bytes), QuantType::F32, VOCAB, span.width).unwrap();
        program.push(Instr::Embed { table, scale: 1.0, out: span });
    }
    let cache = program.cache(pool, 1, dim, dim);
    let sinks = Some(program.vector(vec![0.5, -1.0, 3.0]));
    program.push(Instr::StoreKv { k, v, cache });
    let (softcap, scale, causal) = (None, 0.125, true);
    program.push(Instr::Attend { q, out, cache, num_heads, scale, softcap, window, causal, sinks });
    let buf = program.buffer(num_heads * dim, Rows::Outputs);
    let result = program.span(buf);
    program.push(Instr::Gather { x: out, out: result });
    program.build(result, VOCAB, size).unwrap()
}

#[test]
fn a_copied_block_is_read_like_its_original() {
    for kv in KV_TYPES {
        let mut program = attention_program(2, kv, 4);
        let step = |program: &mut Program, tokens: &[u32], start: usize, blocks: &[u32]| {
            let seqs = [SeqInput { rows: 0..tokens.len(), start, table: 0..blocks.len() }];
            let (seq_of_row, outputs) = (vec![0; tokens.len()], vec![tokens.len() as u32 - 1]);
            let (seq_of_row, outputs, numerics) = (&seq_of_row[..], &outputs[..], Numerics::Fast);
            let input = StepInput {
                tokens,
                seqs: &seqs,
                seq_of_row,
                blocks,
                window_blocks: &[],
                outputs,
                hidden: &[],
                ropes: &[],
                numerics,
            };
            program.run(&input).unwrap().to_vec()
        };
        let tokens: Vec<u32> = (0..40).map(|i| i * 7 % 37).collect();
        step(&mut program, &tokens, 0, &[0, 3]);
        program.copy_block(KvPool::Full, 3, 1).unwrap();
        let original = step(&mut program, &[5], 40, &[0, 3]);
        // The copy doesn't see what was written to the original since, nor the other way round.
        assert_eq!(step(&mut program, &[5], 40, &[0, 1]), original, "{kv}");
        let other = step(&mut program, &[6], 41, &[0, 1]);
        step(&mut program, &[9], 41, &[0, 3]);
        assert_eq!(step(&mut program, &[6], 41, &[0, 1]), other, "{kv}");
        assert!(program.copy_block(KvPool::Full, 4, 1).is_err() && program.copy_block(KvPool::Full, 1, 4).is_err());
        assert!(program.copy_block(KvPool::Window, 0, 0).is_err(), "there is none");
        // The same by way of bytes, into another program.
        let mut bytes = vec![7];
        program.read_block(KvPool::Full, 0, &mut bytes).unwrap();
        program.read_block(KvPool::Full, 1, &mut bytes).unwrap();
        let mut second = attention_program(2, kv, 4);
        let (first, last) = bytes[1..].split_at(second.block_bytes(KvPool::Full));
        second.write_block(KvPool::Full, 3, first).unwrap();
        second.write_block(KvPool::Full, 2, last).unwrap();
        assert_eq!(step(&mut second, &[6], 41, &[3, 2]), other, "{kv:?}");
        assert!(
            second.write_block(KvPool::Full, 2, &last[1..]).is_err()
                && second.write_block(KvPool::Full, 4, last).is_err()
        );
        assert!(second.read_block(KvPool::Full, 4, &mut bytes).is_err());
    }
}

/// A layer with a window of 70 positions that keeps five blocks, in turns, computes what one computes that keeps all.
#[test]
fn a_window_in_a_pool_of_its_own_gives_the_same_bits_and_reads_no_hole() {
    const LEN: usize = 400;
    const WINDOW: usize = 70;
    let tokens: Vec<u32> = (0..LEN as u32).map(|i| i * i % 37).collect();
    let num_blocks = LEN.div_ceil(KV_BLOCK);
    let blocks: Vec<u32> = (0..num_blocks as u32).collect();
    for kv in KV_TYPES {
        let size = |num_blocks, num_window_blocks| ProgramSize {
            max_tokens: 64,
            max_outputs: 8,
            num_blocks,
            num_window_blocks,
            kv,
            num_workers: 2,
        };
        let mut whole = attention_layer(KvPool::Full, Some(WINDOW), size(num_blocks, 0));
        let mut windowed = attention_layer(KvPool::Window, Some(WINDOW), size(num_blocks, 6));
        assert_eq!((windowed.num_blocks(KvPool::Full), windowed.num_blocks(KvPool::Window)), (num_blocks, 6));
        let mut start: usize = 0;
        for len in [1, 40, 64, 3, 20, 1, 1, 64, 50, 31, 33, 64, 28] {
            let rows = start..start + len;
            let first = (start + 1).saturating_sub(WINDOW) / KV_BLOCK;
            let mut ring: Vec<u32> =
                (0..num_blocks).map(|block| if block < first { NO_BLOCK } else { (block % 6) as u32 }).collect();
            ring[rows.end.div_ceil(KV_BLOCK)..].fill(NO_BLOCK);
            let seqs = [SeqInput { rows: 0..len, start, table: 0..num_blocks }];
            let (seq_of_row, outputs) = (vec![0; len], [len as u32 - 1]);
            let input = StepInput {
                tokens: &tokens[rows],
                seqs: &seqs,
                seq_of_row: &seq_of_row,
                blocks: &blocks,
                window_blocks: &ring,
                outputs: &outputs,
                hidden: &[],
                ropes: &[],
                numerics: Numerics::Fast,
            };
            let bits = |program: &mut Program, input: &StepInput<'_>| -> Vec<u32> {
                program.run(input).unwrap().iter().map(|x| x.to_bits()).collect()
            };
            assert_eq!(bits(&mut windowed, &input), bits(&mut whole, &input), "{kv}: {len} from {start}");
            // One hole more than there may be, at either end; a block outside the pool; no table.
            for (place, block) in [(first, NO_BLOCK), ((start + len - 1) / KV_BLOCK, NO_BLOCK), (first, 6)] {
                let mut wrong = ring.clone();
                wrong[place] = block;
                let wrong = StepInput { window_blocks: &wrong, ..input };
                assert!(matches!(windowed.run(&wrong), Err(ProgramError::Step(_))), "{kv}: {block} at {place}");
            }
            let wrong = StepInput { window_blocks: &[], ..input };
            assert!(matches!(windowed.run(&wrong), Err(ProgramError::Step(_))), "{kv}: no table");
            start += len;
        }
        assert_eq!(start, LEN);
    }
}

#[test]
fn a_cache_of_the_last_tokens_refuses_to_be_read_whole() {
    let mut program = ProgramBuilder::new(CpuKernels::detect());
    let spans = [64, 64].map(|width| {
        let buf = program.buffer(width, Rows::Tokens);
        program.span(buf)
    });
    let [q, out] = spans;
    let cache = program.cache(KvPool::Window, 1, 64, 64);
    let (softcap, window, sinks) = (None, None, None);
    program.push(Instr::Attend { q, out, cache, num_heads: 1, scale: 1.0, softcap, window, causal: true, sinks });
    let buf = program.buffer(64, Rows::Outputs);
    let result = program.span(buf);
    let error = program.build(result, VOCAB, size(1, KvType::F16.into())).err().unwrap();
    assert!(error.to_string().contains("a window only"), "{error}");
}

#[test]
fn a_long_context_in_parts_gives_the_same_on_any_number_of_workers_and_as_in_one() {
    let num_tokens: usize = 2600;
    let tokens: Vec<u32> = (0..num_tokens as u32).map(|i| i * i % 37).collect();
    let blocks: Vec<u32> = (0..num_tokens.div_ceil(KV_BLOCK) as u32).rev().collect();
    let step = |program: &mut Program, rows: Range<usize>| {
        let seqs = [SeqInput { rows: 0..rows.len(), start: rows.start, table: 0..blocks.len() }];
        let (seq_of_row, outputs) = (vec![0; rows.len()], vec![rows.len() as u32 - 1]);
        let (tokens, seq_of_row, blocks) = (&tokens[rows], &seq_of_row[..], &blocks[..]);
        let (outputs, numerics) = (&outputs[..], Numerics::Fast);
        let input = StepInput {
            tokens,
            seqs: &seqs,
            seq_of_row,
            blocks,
            window_blocks: &[],
            outputs,
            hidden: &[],
            ropes: &[],
            numerics,
        };
        program.run(&input).unwrap().to_vec()
    };
    for kv in KV_TYPES {
        let mut expected = None;
        for num_workers in [1, 2, 7] {
            let mut program = attention_program(num_workers, kv, blocks.len());
            let mut whole = Vec::new();
            for start in (0..num_tokens).step_by(50) {
                whole = step(&mut program, start..start + 50);
            }
            // The last token again: one row, whose context is cut into five parts; then as the last of three.
            let parts = step(&mut program, num_tokens - 1..num_tokens);
            assert_eq!(step(&mut program, num_tokens - 3..num_tokens), parts, "{kv}");
            let furthest = whole.iter().zip(&parts).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(furthest > 0.0, "{kv}: the context wasn't cut");
            assert!(furthest < 1e-5, "{kv}: {furthest}");
            let bits = (whole, parts);
            assert!(*expected.get_or_insert(bits.clone()) == bits, "{kv}, {num_workers} workers");
        }
    }
}

/// The keys and values of a sequence, and what its last token gives, do not depend on how it was cut, nor on a longer one
/// beside it.
#[test]
fn an_invariant_sequence_is_the_same_in_any_company() {
    const LEN: usize = 700;
    let tokens: Vec<u32> = (0..LEN as u32).map(|i| i * i % 37).collect();
    let num_blocks = LEN.div_ceil(KV_BLOCK);
    let blocks: Vec<u32> = (0..2 * num_blocks as u32).collect();
    let tables = [0..num_blocks, num_blocks..2 * num_blocks];
    // Pieces of the first sequence and of the other one.
    let run = |num_workers: usize, kv: KvTypes, steps: &[[Range<usize>; 2]]| {
        let mut program = attention_program(num_workers, kv, blocks.len());
        let mut last = Vec::new();
        for [mine, other] in steps {
            let seqs = [
                SeqInput { rows: 0..mine.len(), start: mine.start, table: tables[0].clone() },
                SeqInput { rows: mine.len()..mine.len() + other.len(), start: other.start, table: tables[1].clone() },
            ];
            let tokens: Vec<u32> = [&tokens[mine.clone()], &tokens[other.clone()]].concat();
            let seq_of_row: Vec<u32> = (0..tokens.len()).map(|row| u32::from(row >= mine.len())).collect();
            let outputs = [mine.len() as u32 - 1];
            let input = StepInput {
                tokens: &tokens,
                seqs: &seqs,
                seq_of_row: &seq_of_row,
                blocks: &blocks,
                window_blocks: &[],
                outputs: &outputs,
                hidden: &[],
                ropes: &[],
                numerics: Numerics::Invariant,
            };
            last = program.run(&input).unwrap().iter().map(|x| x.to_bits()).collect();
        }
        last
    };
    for kv in KV_TYPES {
        let pieces = |len: usize| (0..LEN).step_by(len).map(move |start| [start..LEN.min(start + len), 0..0]);
        let whole = run(2, kv, &pieces(50).collect::<Vec<_>>());
        assert_eq!(run(1, kv, &pieces(50).collect::<Vec<_>>()), whole, "{kv}");
        assert_eq!(run(2, kv, &pieces(7).collect::<Vec<_>>()), whole, "{kv}");
        let mut alone = vec![[0..33, 0..0], [33..LEN - 1 - 15 * 41, 0..0]];
        alone.extend((LEN - 1 - 15 * 41..LEN - 1).step_by(41).map(|start| [start..start + 41, 0..0]));
        alone.push([LEN - 1..LEN, 0..0]);
        assert_eq!(run(2, kv, &alone), whole, "{kv}");
        let company: Vec<_> =
            (0..LEN).step_by(20).map(|start| [start..LEN.min(start + 20), start..LEN.min(start + 30)]).collect();
        assert_eq!(run(7, kv, &company), whole, "{kv}");
    }
}

#[test]
fn quantised_caches_refuse_heads_of_broken_groups() {
    for (kv, fits) in [(KvType::F16, true), (KvType::Q8_0, false), (KvType::Q4_0, false)] {
        let mut program = ProgramBuilder::new(CpuKernels::detect());
        program.cache(KvPool::Full, 1, 24, 24);
        let buf = program.buffer(8, Rows::Outputs);
        let out = program.span(buf);
        match program.build(out, VOCAB, size(1, kv.into())) {
            Ok(_) => assert!(fits),
            Err(error) => assert!(!fits && error.to_string().contains(kv.name()), "{error}"),
        }
    }
}

#[test]
fn barriers_stand_where_data_crosses_and_nowhere_else() {
    let mut kit = Kit::new(1);
    let [x, y, q, wide] = [0, 1, 2, 3].map(|i| kit.spans[i]);
    let (act, act_wide, cache, table) = (kit.acts[0], kit.acts[1], kit.cache, kit.table);
    let matrix = |kit: &mut Kit, n, k| {
        let bytes: Vec<u8> = (0..n).flat_map(|_| random_row(QuantType::Q8_0, k, &mut kit.rng)).collect();
        kit.program.weight(Arc::new(bytes), QuantType::Q8_0, n, k).unwrap()
    };
    let embed = kit.weight(VOCAB, 64);
    let (w_q, w_k, w_o) = (matrix(&mut kit, 128, 64), matrix(&mut kit, 64, 64), matrix(&mut kit, 64, 128));
    let rows = Rows::Tokens;
    let part = |weight, out| MatMulPart { weight, out, bias: None };
    let norm = Instr::Norm { centre: false, eps: 1e-5, groups: 1, x, out: y, weight: None, bias: None };
    let attend = Instr::Attend {
        q,
        out: wide,
        cache,
        num_heads: HEADS,
        scale: 1.0,
        softcap: None,
        window: None,
        causal: true,
        sinks: None,
    };
    let qk =
        Instr::MatMul { x: MatMulX::Act(act), rows, parts: vec![part(w_q, q), part(w_k, y)], then: MatMulThen::Done };
    let o = Instr::MatMul { x: MatMulX::Act(act_wide), rows, parts: vec![part(w_o, y)], then: MatMulThen::AddTo(x) };
    let expected = [
        (Instr::Embed { table: embed, scale: 1.0, out: x }, false),
        // Rows stay with their worker.
        (norm.clone(), false),
        (Instr::Quantize { x: y, act }, false),
        // Reads all rows.
        (qk, true),
        // Rows of what was computed by columns.
        (Instr::Rope { x: q, head_dim: HEAD_DIM, pairs: RopePairs::Halves, table }, true),
        (Instr::Rope { x: y, head_dim: HEAD_DIM, pairs: RopePairs::Halves, table }, false),
        (Instr::StoreKv { k: y, v: x, cache }, false),
        // Keys of other workers' rows.
        (attend, true),
        (Instr::Quantize { x: wide, act: act_wide }, true),
        (o, true),
        (norm, true),
        (Instr::Quantize { x: y, act }, false),
    ];
    for (instr, _) in &expected {
        kit.program.push(instr.clone());
    }
    let buf = kit.program.buffer(64, Rows::Outputs);
    let out = kit.program.span(buf);
    kit.program.push(Instr::Gather { x: y, out });
    let program = kit.program.build(out, VOCAB, size(1, KvType::F16.into())).unwrap();
    let placed: Vec<bool> = program.code.instrs.iter().map(|step| step.barrier).collect();
    // The gather picks any row.
    let wanted: Vec<bool> = expected.iter().map(|(_, barrier)| *barrier).chain([true]).collect();
    assert_eq!(placed, wanted);
    assert_eq!(program.num_barriers(), 7);
}

#[test]
fn instructions_that_do_not_fit_are_refused_by_name() {
    let refused = |name: &str, make: &dyn Fn(&mut Kit) -> Instr| {
        let mut kit = Kit::new(2);
        let instr = make(&mut kit);
        kit.program.push(instr);
        let buf = kit.program.buffer(64, Rows::Outputs);
        let out = kit.program.span(buf);
        match kit.program.build(out, VOCAB, size(1, KvType::F16.into())) {
            Err(ProgramError::Instr { index: 0, name: got, .. }) => assert_eq!(got, name),
            Err(other) => panic!("{name}: {other}"),
            Ok(_) => panic!("{name}: accepted"),
        }
    };
    let quant = |kit: &mut Kit, n, k| {
        let bytes: Vec<u8> = (0..n).flat_map(|_| random_row(QuantType::Q8_0, k, &mut kit.rng)).collect();
        kit.program.weight(Arc::new(bytes), QuantType::Q8_0, n, k).unwrap()
    };
    refused("embed", &|kit| Instr::Embed { table: quant(kit, VOCAB, 64), scale: 1.0, out: kit.spans[2] });
    refused("add", &|kit| Instr::Add { a: kit.spans[0], b: kit.spans[2], out: kit.spans[0] });
    refused("add", &|kit| {
        // Overlapping columns that are not the same columns.
        let half = |start| Span { start, width: 64, ..kit.spans[2] };
        Instr::Add { a: half(0), b: half(32), out: half(0) }
    });
    refused("scale", &|kit| {
        let past = Span { start: 32, ..kit.spans[0] };
        Instr::Scale { factor: 1.0, x: past, out: past }
    });
    refused("activate", &|kit| {
        let unknown = Span { buf: BufId(99), ..kit.spans[0] };
        Instr::Activate { act: Activation::Silu, x: unknown, out: unknown }
    });
    refused("norm", &|kit| Instr::Norm {
        centre: false,
        eps: 0.0,
        groups: 3,
        x: kit.spans[0],
        out: kit.spans[0],
        weight: None,
        bias: None,
    });
    refused("quantize", &|kit| Instr::Quantize { x: kit.spans[0], act: kit.acts[1] });
    refused("rope", &|kit| Instr::Rope { x: kit.spans[0], head_dim: 16, pairs: RopePairs::Halves, table: kit.table });
    refused("store_kv", &|kit| Instr::StoreKv { k: kit.spans[0], v: kit.spans[2], cache: kit.cache });
    let attend = |kit: &Kit, out, num_heads, window| Instr::Attend {
        q: kit.spans[2],
        out,
        cache: kit.cache,
        num_heads,
        scale: 1.0,
        softcap: None,
        window,
        causal: true,
        sinks: None,
    };
    refused("attend", &|kit| attend(kit, kit.spans[2], HEADS, None));
    refused("attend", &|kit| attend(kit, kit.spans[3], 3, None));
    refused("attend", &|kit| attend(kit, kit.spans[3], HEADS, Some(0)));
    let matmul = |x, parts, then| Instr::MatMul { x, rows: Rows::Tokens, parts, then };
    let part = |weight, out| MatMulPart { weight, out, bias: None };
    refused("matmul", &|kit| {
        matmul(MatMulX::Act(kit.acts[0]), vec![part(quant(kit, 64, 128), kit.spans[0])], MatMulThen::Done)
    });
    refused("matmul", &|kit| {
        matmul(MatMulX::Float(kit.spans[0]), vec![part(quant(kit, 64, 64), kit.spans[0])], MatMulThen::Done)
    });
    refused("matmul", &|kit| {
        let parts = vec![part(quant(kit, 64, 64), kit.spans[0]), part(quant(kit, 64, 64), kit.spans[0])];
        matmul(MatMulX::Act(kit.acts[0]), parts, MatMulThen::Done)
    });
    refused("matmul", &|kit| {
        let parts = vec![part(quant(kit, 64, 64), kit.spans[0])];
        matmul(MatMulX::Act(kit.acts[0]), parts, MatMulThen::Glu(Activation::Silu))
    });
    refused("matmul", &|kit| {
        let bytes: Vec<u8> = (0..64).flat_map(|_| random_row(QuantType::F32, 64, &mut kit.rng)).collect();
        let weight = kit.program.weight(Arc::new(bytes), QuantType::F32, 64, 64).unwrap();
        matmul(MatMulX::Act(kit.acts[0]), vec![part(weight, kit.spans[0])], MatMulThen::Done)
    });
    refused("gather", &|kit| Instr::Gather { x: kit.spans[0], out: kit.spans[1] });
}

#[test]
fn steps_outside_the_program_are_refused_and_change_nothing() {
    let mut program = Kit::new(3).build(10, size(2, KvType::F16.into()));
    let mut rng = Rng(5);
    let sound = Input::new(&mut rng, [(5, 0), (1, 0)]);
    let before = run(&mut program, &sound);
    let mut refused = |what: &str, change: &dyn Fn(&mut Input)| {
        let mut bad = Input::new(&mut Rng(6), [(5, 0), (1, 0)]);
        change(&mut bad);
        let result = program.run(&bad.as_step()).map(<[f32]>::len);
        assert!(matches!(result, Err(ProgramError::Step(_))), "{what}: {result:?}");
    };
    refused("no tokens", &|input| input.tokens.clear());
    refused("too many tokens", &|input| input.tokens = vec![0; 41]);
    refused("vocabulary", &|input| input.tokens[3] = VOCAB as u32);
    refused("output row", &|input| input.outputs[0] = 6);
    refused("too many outputs", &|input| input.outputs = vec![0; 9]);
    refused("missing rope table", &|input| input.ropes.clear());
    refused("short rope table", &|input| input.ropes[0].1.truncate(5 * HEAD_DIM / 2));
    refused("sequence of a row", &|input| input.seq_of_row[5] = 0);
    refused("no sequence of a row", &|input| input.seq_of_row.truncate(5));
    refused("gap", &|input| input.seqs[1].rows = 4..5);
    refused("uncovered rows", &|input| input.seqs.truncate(1));
    refused("table range", &|input| input.seqs[0].table = 4..99);
    refused("block id", &|input| input.blocks[0] = 8);
    refused("too few blocks", &|input| input.seqs[0].start = 4 * KV_BLOCK - 4);
    refused("a block of two sequences", &|input| input.blocks[4] = input.blocks[0]);
    assert!(run(&mut program, &sound) == before, "a refused step left something behind");
}

#[test]
fn hidden_states_are_gathered_apart_from_the_outputs() {
    let program = |with_hidden: bool| {
        let mut kit = ProgramBuilder::new(CpuKernels::detect());
        let table: Vec<f32> = (0..VOCAB * 32).map(|i| i as f32).collect();
        let bytes: Vec<u8> = table.iter().flat_map(|x| x.to_le_bytes()).collect();
        let table = kit.weight(Arc::new(bytes), QuantType::F32, VOCAB, 32).unwrap();
        let spans = [Rows::Tokens, Rows::Outputs, Rows::Hidden].map(|rows| {
            let buf = kit.buffer(32, rows);
            kit.span(buf)
        });
        let [x, out, hidden] = spans;
        kit.push(Instr::Embed { table, scale: 1.0, out: x });
        kit.push(Instr::Gather { x, out });
        kit.push(Instr::Gather { x, out: hidden });
        kit.push(Instr::Scale { factor: 2.0, x: hidden, out: hidden });
        if with_hidden {
            kit.hidden(hidden);
        }
        kit.build(out, VOCAB, size(2, KvType::F32.into())).unwrap()
    };
    let tokens = [3, 1, 2, 5];
    let seqs = [SeqInput { rows: 0..4, start: 0, table: 0..1 }];
    let input = |outputs, hidden| StepInput {
        tokens: &tokens,
        seqs: &seqs,
        seq_of_row: &[0; 4],
        blocks: &[0],
        window_blocks: &[],
        outputs,
        hidden,
        ropes: &[],
        numerics: Numerics::Fast,
    };
    let row = |token: usize, factor: f32| (0..32).map(move |i| factor * (token * 32 + i) as f32);
    let mut with = program(true);
    for (outputs, hidden) in [(&[1][..], &[0, 3][..]), (&[], &[2]), (&[3, 0], &[]), (&[], &[0, 1, 2, 3])] {
        let got = with.run(&input(outputs, hidden)).unwrap().to_vec();
        let expected = |rows: &[u32], factor: f32| -> Vec<f32> {
            rows.iter().flat_map(|&index| row(tokens[index as usize] as usize, factor)).collect()
        };
        assert_eq!(got, expected(outputs, 1.0));
        assert_eq!(with.hidden(hidden.len()), expected(hidden, 2.0));
    }
    assert!(with.run(&input(&[0], &[4])).is_err(), "a row outside the step");
    let mut without = program(false);
    let error = without.run(&input(&[0], &[1])).unwrap_err();
    assert!(error.to_string().contains("hidden states"), "{error}");
    assert!(without.hidden(3).is_empty());
}
