//! Programs: random ones must give the same bits on any number of workers; barriers stand where data crosses; what
//! doesn't fit is refused.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::cpu::Numerics;
use crate::cpu::attention::{KV_BLOCK, NO_BLOCK};
use crate::cpu::kv::KvType;
use crate::cpu::vector::{Activation, RopePairs};
use crate::program::Machine;
use crate::program::testing::{HEAD_DIM, HEADS, Input, KV_TYPES, Kit, VOCAB, size};
use crate::quant::{
    QuantType,
    tests::{Rng, random_row},
};

fn program(num_workers: usize, (builder, out): (ProgramBuilder, Span), size: ProgramSize) -> Program {
    Program::new(CpuKernels::detect(), num_workers, builder, out, size).unwrap()
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
        let mut programs = [1, 2, 3].map(|workers| program(workers, Kit::new(seed).build(25), size(kv)));
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
    let size = ProgramSize { vocab_size: VOCAB, max_tokens: 64, max_outputs: 8, num_blocks, num_window_blocks: 0, kv };
    attention_layer(num_workers, KvPool::Full, None, size)
}

/// The same with a window, in either pool.
fn attention_layer(num_workers: usize, pool: KvPool, window: Option<usize>, size: ProgramSize) -> Program {
    let mut builder = ProgramBuilder::new();
    let mut rng = Rng(99);
    let (num_heads, dim) = (3, 64);
    let [q, k, v, out] = [num_heads * dim, dim, dim, num_heads * dim].map(|width| {
        let buf = builder.buffer(width, Rows::Tokens);
        builder.span(buf)
    });
    for span in [q, k, v] {
        let bytes: Vec<u8> = rng.normals(VOCAB * span.width).into_iter().flat_map(f32::to_le_bytes).collect();
        let table = builder.weight(Arc::new(bytes), QuantType::F32, VOCAB, span.width).unwrap();
        builder.push(Instr::Embed { table, scale: 1.0, out: span });
    }
    let cache = builder.cache(pool, 1, dim, dim);
    let sinks = Some(builder.vector(vec![0.5, -1.0, 3.0]));
    builder.push(Instr::StoreKv { k, v, cache });
    let (softcap, scale, causal) = (None, 0.125, true);
    builder.push(Instr::Attend { q, out, cache, num_heads, scale, softcap, window, causal, sinks });
    let buf = builder.buffer(num_heads * dim, Rows::Outputs);
    let result = builder.span(buf);
    builder.push(Instr::Gather { x: out, out: result });
    program(num_workers, (builder, result), size)
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
                reduce: None,
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
            vocab_size: VOCAB,
            max_tokens: 64,
            max_outputs: 8,
            num_blocks,
            num_window_blocks,
            kv,
        };
        let mut whole = attention_layer(2, KvPool::Full, Some(WINDOW), size(num_blocks, 0));
        let mut windowed = attention_layer(2, KvPool::Window, Some(WINDOW), size(num_blocks, 6));
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
                reduce: None,
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
    let mut program = ProgramBuilder::new();
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
    let error = Program::new(CpuKernels::detect(), 1, program, result, size(KvType::F16.into())).err().unwrap();
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
            reduce: None,
        };
        program.run(&input).unwrap().to_vec()
    };
    let rounds = CpuKernels::detect().vectors().rounds_attention();
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
            // Many rows may be rounded, few are not.
            let rounded = rounds && ![kv.k, kv.v].contains(&KvType::F32);
            assert!(furthest < if rounded { 1e-2 } else { 1e-5 }, "{kv}: {furthest}");
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
                reduce: None,
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
        let mut program = ProgramBuilder::new();
        program.cache(KvPool::Full, 1, 24, 24);
        let buf = program.buffer(8, Rows::Outputs);
        let out = program.span(buf);
        match Program::new(CpuKernels::detect(), 1, program, out, size(kv.into())) {
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
    let program = program(1, (kit.program, out), size(KvType::F16.into()));
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
        match Program::new(CpuKernels::detect(), 1, kit.program, out, size(KvType::F16.into())) {
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
    let mut program = program(2, Kit::new(3).build(10), size(KvType::F16.into()));
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
        let mut kit = ProgramBuilder::new();
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
        program(2, (kit, out), size(KvType::F32.into()))
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
        reduce: None,
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
