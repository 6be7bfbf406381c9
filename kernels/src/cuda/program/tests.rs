//! Programs on a device against the same programs on the CPU: on the emulated device always, on a real one where there is one.

use std::sync::Arc;

use super::*;
use crate::cpu::CpuKernels;
use crate::cpu::attention::{KV_BLOCK, NO_BLOCK};
use crate::cpu::kv::{KvType, KvTypes};
use crate::cpu::program::Program;
use crate::cpu::vector::Activation;
use crate::cuda::emulator::Checks;
use crate::cuda::{Emulation, Target};
use crate::program::testing::{Input, KV_TYPES, Kit, VOCAB, size};
use crate::program::{MatMulPart, MatMulThen, MatMulX, Rows, SeqInput};
use crate::quant::{
    QuantType,
    tests::{Rng, random_row},
};

/// The devices to test on: the emulated one as each architecture's PTX, once with all checks, and the first real one.
pub(super) fn devices() -> Vec<Gpu> {
    let mut devices: Vec<Gpu> = [((7, 5), Checks::FAST), ((8, 0), Checks::ALL), ((9, 0), Checks::FAST)]
        .map(|(compute_capability, checks)| Emulation { compute_capability, checks, ..Emulation::default() })
        .map(|emulation| Gpu::emulated(&emulation).unwrap())
        .into();
    match Gpu::open(Target::Device(0)) {
        Ok(gpu) => devices.push(gpu),
        Err(error) if std::env::var("REQUIRE_CUDA").as_deref() == Ok("1") => panic!("{error}"),
        Err(error) => eprintln!("SKIP on a GPU: {error}"),
    }
    devices
}

/// One of them: for tests that are about the host's side, or long.
fn device() -> Gpu {
    devices().pop().unwrap()
}

fn cuda(gpu: &Gpu, (builder, output): (ProgramBuilder, Span), size: ProgramSize) -> CudaProgram {
    CudaProgram::new(gpu, builder, output, size, false, &mut |_, _| {}).unwrap()
}

/// The same for random programs, which attend to positions that nobody has written: on the CPU those are zeros.
fn cuda_on_zeros(gpu: &Gpu, program: (ProgramBuilder, Span), size: ProgramSize) -> CudaProgram {
    let program = cuda(gpu, program, size);
    gpu.fill(&program.code.kv.buffer, 0).unwrap();
    program
}

fn cpu((builder, output): (ProgramBuilder, Span), size: ProgramSize) -> Program {
    // Quantised weights meet quantised activations on the GPU, also where this CPU would round both.
    Program::new(CpuKernels::detect().without_bf16(), 1, builder, output, size).unwrap()
}

/// Squared error relative to the square of what was expected.
fn nmse(got: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(got.len(), expected.len());
    assert!(expected.iter().any(|x| *x != 0.0), "nothing to compare");
    let square = |x: f32| f64::from(x) * f64::from(x);
    let error: f64 = got.iter().zip(expected).map(|(got, expected)| square(got - expected)).sum();
    error / expected.iter().copied().map(square).sum::<f64>()
}

/// A step of one sequence that begins at `start`, in blocks 0, 1, …
fn one_sequence(tokens: &[u32], start: usize, outputs: &[u32], run: impl FnOnce(&StepInput<'_>)) {
    let blocks: Vec<u32> = (0..(start + tokens.len()).div_ceil(KV_BLOCK) as u32).collect();
    let input = StepInput {
        tokens,
        seqs: &[SeqInput { rows: 0..tokens.len(), start, table: 0..blocks.len() }],
        seq_of_row: &vec![0; tokens.len()],
        blocks: &blocks,
        window_blocks: &[],
        outputs,
        hidden: &[],
        ropes: &[],
        numerics: Numerics::Fast,
        reduce: None,
    };
    run(&input);
}

/// Embeddings of `dtype` are f32 rows, which three matrices of the type multiply: as a group, added to, and as a GLU.
fn matmuls(dtype: QuantType, cols: usize, is_quantised: bool) -> (ProgramBuilder, Span) {
    const WIDTH: usize = 40;
    let mut program = ProgramBuilder::new();
    let mut rng = Rng(u64::from(dtype.ggml_id()) + 5);
    let mut weight = |program: &mut ProgramBuilder, rows: usize, cols: usize, dtype: QuantType| {
        let bytes: Vec<u8> = (0..rows).flat_map(|_| random_row(dtype, cols, &mut rng)).collect();
        program.weight(Arc::new(bytes), dtype, rows, cols).unwrap()
    };
    let buffer = |program: &mut ProgramBuilder, width| {
        let buf = program.buffer(width, Rows::Tokens);
        program.span(buf)
    };
    let x = buffer(&mut program, cols);
    let [first, second, third, sum] = [WIDTH, WIDTH, 3, WIDTH].map(|width| buffer(&mut program, width));
    let table = weight(&mut program, VOCAB, cols, dtype);
    program.push(Instr::Embed { table, scale: 1.5, out: x });
    let sums = weight(&mut program, VOCAB, WIDTH, QuantType::F32);
    program.push(Instr::Embed { table: sums, scale: 1.0, out: sum });
    let rows = if is_quantised {
        let act = program.act(cols);
        program.push(Instr::Quantize { x, act });
        MatMulX::Act(act)
    } else {
        MatMulX::Float(x)
    };
    let bias = Some(program.vector((0..WIDTH).map(|i| i as f32 / 8.0).collect()));
    let [a, b, c] = [WIDTH, WIDTH, 3].map(|rows| weight(&mut program, rows, cols, dtype));
    let group = vec![
        MatMulPart { weight: a, out: first, bias },
        MatMulPart { weight: b, out: second, bias: None },
        MatMulPart { weight: c, out: third, bias: None },
    ];
    program.push(Instr::MatMul { x: rows, rows: Rows::Tokens, parts: group, then: MatMulThen::Done });
    let parts = vec![MatMulPart { weight: b, out: second, bias }];
    program.push(Instr::MatMul { x: rows, rows: Rows::Tokens, parts, then: MatMulThen::AddTo(sum) });
    let parts =
        vec![MatMulPart { weight: a, out: first, bias: None }, MatMulPart { weight: b, out: second, bias: None }];
    let then = MatMulThen::Glu(Activation::Silu);
    program.push(Instr::MatMul { x: rows, rows: Rows::Tokens, parts, then });
    // All of it as one row of outputs.
    let widths = [cols, WIDTH, WIDTH, 3, WIDTH];
    let outputs: Vec<Span> = [x, first, second, third, sum].into_iter().collect();
    let all = program.buffer(widths.iter().sum(), Rows::Outputs);
    let mut start = 0;
    for from in outputs {
        program.push(Instr::Gather { x: from, out: Span { buf: all, start, width: from.width } });
        start += from.width;
    }
    let out = program.span(all);
    (program, out)
}

#[test]
fn matmuls_of_every_type_agree_with_the_cpu() {
    for gpu in devices() {
        for &dtype in QuantType::all().iter().filter(|dtype| dtype.has_kernels()) {
            // A short tail for the lanes, and for the tensor cores' steps.
            let cols = dtype.block_len().max(32) * if dtype.block_len() == 256 { 3 } else { 5 };
            for is_quantised in [true, false] {
                if is_quantised && dtype.is_float() {
                    continue;
                }
                let size = ProgramSize { max_tokens: 64, ..size(KvType::F16.into()) };
                let mut expected = cpu(matmuls(dtype, cols, is_quantised), size);
                let mut got = cuda(&gpu, matmuls(dtype, cols, is_quantised), size);
                for num_rows in [1, 2, 3, 8, 21, 50] {
                    let tokens: Vec<u32> = (0..num_rows).map(|i| i * 7 % VOCAB as u32).collect();
                    let outputs = [0, num_rows - 1, num_rows / 2];
                    one_sequence(&tokens, 0, &outputs, |input| {
                        let what = format!("{}: {dtype}, quantised {is_quantised}, {num_rows} rows", gpu.info().name);
                        let got = got.run(input).unwrap_or_else(|error| panic!("{what}: {error}"));
                        let error = nmse(got, expected.run(input).unwrap());
                        // 16-bit weights round the rows.
                        let bound = if dtype.is_float() && num_rows > 8 { 3e-5 } else { 1e-9 };
                        assert!(error < bound, "{what}: {error:e}");
                    });
                }
            }
        }
    }
}

#[test]
fn random_programs_agree_with_the_cpu() {
    for gpu in devices() {
        let mut largest: f64 = 0.0;
        for seed in 0..40 {
            let [k, v] = [seed % 4, seed / 4 % 4].map(|index| KvType::ALL[index as usize]);
            let kv = KvTypes { k, v };
            let mut expected = cpu(Kit::new(seed).build(25), size(kv));
            let mut got = cuda_on_zeros(&gpu, Kit::new(seed).build(25), size(kv));
            let mut rng = Rng(seed + 1000);
            for pieces in [[(5, 0), (1, 0)], [(1, 5), (1, 1)], [(3, 6), (35, 2)], [(1, 9), (1, 37)]] {
                let input = Input::new(&mut rng, pieces);
                let what = format!("{}: seed {seed}, {pieces:?}", gpu.info().name);
                let got = got.run(&input.as_step()).unwrap_or_else(|error| panic!("{what}: {error}"));
                let expected = expected.run(&input.as_step()).unwrap();
                let error = if expected.iter().all(|x| *x == 0.0) { 0.0 } else { nmse(got, expected) };
                largest = largest.max(error);
                // Roundings differ, so now and then a code of a quantised row is another one.
                assert!(error < 1e-3, "{what}: {error:e}");
            }
        }
        eprintln!("{}: largest error {largest:e}", gpu.info().name);
    }
}

/// One layer's attention alone: embeddings are queries, keys and values.
fn attention_layer(
    pool: KvPool,
    (num_heads, num_kv_heads, dim): (usize, usize, usize),
    window: Option<usize>,
) -> (ProgramBuilder, Span) {
    let mut builder = ProgramBuilder::new();
    let mut rng = Rng(99);
    let [q, k, v, out] = [num_heads, num_kv_heads, num_kv_heads, num_heads].map(|heads| {
        let buf = builder.buffer(heads * dim, Rows::Tokens);
        builder.span(buf)
    });
    for span in [q, k, v] {
        let bytes: Vec<u8> = rng.normals(VOCAB * span.width).into_iter().flat_map(f32::to_le_bytes).collect();
        let table = builder.weight(Arc::new(bytes), QuantType::F32, VOCAB, span.width).unwrap();
        builder.push(Instr::Embed { table, scale: 1.0, out: span });
    }
    let cache = builder.cache(pool, num_kv_heads, dim, dim);
    let sinks = Some(builder.vector((0..num_heads).map(|head| head as f32 / 2.0 - 1.0).collect()));
    builder.push(Instr::StoreKv { k, v, cache });
    let scale = 1.0 / (dim as f32).sqrt();
    let attend = Instr::Attend { q, out, cache, num_heads, scale, softcap: None, window, causal: true, sinks };
    builder.push(attend);
    let buf = builder.buffer(num_heads * dim, Rows::Outputs);
    let result = builder.span(buf);
    builder.push(Instr::Gather { x: out, out: result });
    (builder, result)
}

/// Contexts beyond one split, heads of sizes that lanes don't divide, groups of 1 to 12 heads, every pair of types.
#[test]
fn attention_agrees_with_the_cpu() {
    let (fast, checked) = (device(), Gpu::emulated(&Emulation::default()).unwrap());
    let shapes = [(3, 1, 64), (4, 4, 80), (12, 1, 32), (16, 2, 128), (2, 2, 256)];
    for (kv, shape) in KV_TYPES.into_iter().flat_map(|kv| shapes.map(|shape| (kv, shape))) {
        if !kv.fits(shape.2, shape.2) {
            continue;
        }
        let gpu = if kv == KvType::F16.into() { &checked } else { &fast };
        for window in [None, Some(70)] {
            let size = ProgramSize { max_tokens: 300, num_blocks: 20, ..size(kv) };
            let mut expected = cpu(attention_layer(KvPool::Full, shape, window), size);
            let mut got = cuda(gpu, attention_layer(KvPool::Full, shape, window), size);
            let mut start = 0;
            for len in [1, 290, 1, 40, 2] {
                let tokens: Vec<u32> = (start..start + len).map(|i| (i * i % 37) as u32).collect();
                one_sequence(&tokens, start, &[0, len as u32 - 1], |input| {
                    let error = nmse(got.run(input).unwrap(), expected.run(input).unwrap());
                    assert!(error < 1e-6, "{kv}, {shape:?}, {window:?}, {start} + {len}: {error:e}");
                });
                start += len;
            }
        }
    }
}

/// Heads of sizes that are no multiple of 8 are filled up with zeros.
#[test]
fn small_heads_agree_with_the_cpu() {
    let (gpu, kv) = (device(), KvTypes { k: KvType::F16, v: KvType::F32 });
    let mut expected = cpu(attention_layer(KvPool::Full, (4, 2, 12), None), size(kv));
    let mut got = cuda(&gpu, attention_layer(KvPool::Full, (4, 2, 12), None), size(kv));
    one_sequence(&[3, 1, 4, 1, 5], 0, &[4], |input| {
        assert!(nmse(got.run(input).unwrap(), expected.run(input).unwrap()) < 1e-9);
    });
}

/// A layer with a window that keeps some blocks, in turns, computes what one computes that keeps all, and reads no hole.
#[test]
fn a_window_in_a_pool_of_its_own_gives_the_same_bits() {
    const LEN: usize = 330;
    const WINDOW: usize = 70;
    let gpu = device();
    let tokens: Vec<u32> = (0..LEN as u32).map(|i| i * i % 37).collect();
    let num_blocks = LEN.div_ceil(KV_BLOCK);
    let blocks: Vec<u32> = (0..num_blocks as u32).collect();
    let whole = ProgramSize { max_tokens: 64, num_blocks, ..size(KvType::F16.into()) };
    let shape = (3, 1, 64);
    let mut full = cuda(&gpu, attention_layer(KvPool::Full, shape, Some(WINDOW)), whole);
    let cut = ProgramSize { num_window_blocks: 6, ..whole };
    let mut windowed = cuda(&gpu, attention_layer(KvPool::Window, shape, Some(WINDOW)), cut);
    let mut start: usize = 0;
    for len in [1, 40, 64, 3, 20, 1, 1, 64, 50, 31, 33] {
        let first = (start + 1).saturating_sub(WINDOW) / KV_BLOCK;
        let end = start + len;
        let ring: Vec<u32> = (0..num_blocks)
            .map(|block| if (first..end.div_ceil(KV_BLOCK)).contains(&block) { (block % 6) as u32 } else { NO_BLOCK })
            .collect();
        let seqs = [SeqInput { rows: 0..len, start, table: 0..num_blocks }];
        let input = |window_blocks: &[u32], program: &mut CudaProgram| {
            let input = StepInput {
                tokens: &tokens[start..end],
                seqs: &seqs,
                seq_of_row: &vec![0; len],
                blocks: &blocks,
                window_blocks,
                outputs: &[0, len as u32 - 1],
                hidden: &[],
                ropes: &[],
                numerics: Numerics::Fast,
                reduce: None,
            };
            program.run(&input).unwrap().to_vec()
        };
        assert_eq!(input(&ring, &mut windowed), input(&[], &mut full), "{start} + {len}");
        start = end;
    }
}

#[test]
fn graphs_give_the_bits_of_launches() {
    for gpu in devices() {
        let mut program = cuda_on_zeros(&gpu, Kit::new(7).build(25), size(KvType::F16.into()));
        let mut again = cuda_on_zeros(&gpu, Kit::new(7).build(25), size(KvType::F16.into()));
        let mut rng = Rng(3);
        for position in 0..4 {
            let input = Input::new(&mut rng, [(1, position), (1, position)]);
            let direct = again.run(&input.as_step()).unwrap().to_vec();
            again.graphs.clear();
            assert_eq!(program.run(&input.as_step()).unwrap(), direct, "step {position}");
        }
        assert!(program.graphs.values().any(Option::is_some), "nothing was recorded");
    }
}

/// With invariant numerics a row's bits don't depend on the rows beside it.
#[test]
fn rows_are_invariant_where_they_must_be() {
    for gpu in devices() {
        for seed in 0..6 {
            let mut together = cuda_on_zeros(&gpu, Kit::new(seed).build(25), size(KvType::F16.into()));
            let mut alone = cuda_on_zeros(&gpu, Kit::new(seed).build(25), size(KvType::F16.into()));
            let mut rng = Rng(seed);
            let input = Input::new(&mut rng, [(3, 0), (37, 0)]);
            let step = StepInput { numerics: Numerics::Invariant, outputs: &[2], ..input.as_step() };
            let expected = together.run(&step).unwrap().to_vec();
            let rows = 0..3;
            let seqs = [SeqInput { rows: rows.clone(), start: 0, table: 0..4 }];
            let single = StepInput { tokens: &step.tokens[rows], seqs: &seqs, seq_of_row: &[0; 3], ..step };
            assert_eq!(alone.run(&single).unwrap(), expected, "{}: seed {seed}", gpu.info().name);
        }
    }
}

#[test]
fn blocks_are_copied_read_and_written_like_their_originals() {
    let gpu = device();
    for kv in KV_TYPES {
        let size = ProgramSize { max_tokens: 64, num_blocks: 4, ..size(kv) };
        let build = || cuda(&gpu, attention_layer(KvPool::Full, (3, 1, 64), None), size);
        let step = |program: &mut CudaProgram, tokens: &[u32], start: usize, blocks: &[u32]| {
            let input = StepInput {
                tokens,
                seqs: &[SeqInput { rows: 0..tokens.len(), start, table: 0..blocks.len() }],
                seq_of_row: &vec![0; tokens.len()],
                blocks,
                window_blocks: &[],
                outputs: &[tokens.len() as u32 - 1],
                hidden: &[],
                ropes: &[],
                numerics: Numerics::Fast,
                reduce: None,
            };
            program.run(&input).unwrap().to_vec()
        };
        let mut program = build();
        let tokens: Vec<u32> = (0..64).map(|i| i * 7 % 37).collect();
        step(&mut program, &tokens[..40], 0, &[0, 3]);
        step(&mut program, &tokens[40..63], 40, &[0, 3]);
        // A block is written whole before it is read whole.
        step(&mut program, &tokens[63..], 63, &[0, 3]);
        program.copy_block(KvPool::Full, 3, 1).unwrap();
        let original = step(&mut program, &[5], 50, &[0, 3]);
        assert_eq!(step(&mut program, &[5], 50, &[0, 1]), original, "{kv}");
        assert!(program.copy_block(KvPool::Full, 4, 1).is_err() && program.copy_block(KvPool::Window, 0, 0).is_err());
        let mut bytes = Vec::new();
        program.read_block(KvPool::Full, 0, &mut bytes).unwrap();
        program.read_block(KvPool::Full, 1, &mut bytes).unwrap();
        let mut second = build();
        let (first, last) = bytes.split_at(second.block_bytes(KvPool::Full));
        second.write_block(KvPool::Full, 3, first).unwrap();
        second.write_block(KvPool::Full, 2, last).unwrap();
        assert_eq!(step(&mut second, &[5], 50, &[3, 2]), original, "{kv}");
        assert!(second.write_block(KvPool::Full, 2, &last[1..]).is_err());
        assert!(second.read_block(KvPool::Full, 4, &mut bytes).is_err());
    }
}

#[test]
fn what_a_device_cannot_take_is_refused_with_the_reason() {
    let kv = KvType::F16.into();
    let small = Gpu::emulated(&Emulation { memory_bytes: 1 << 16, ..Emulation::default() }).unwrap();
    let (builder, output) = Kit::new(1).build(5);
    let error = CudaProgram::new(&small, builder, output, size(kv), false, &mut |_, _| {}).err().unwrap();
    assert!(error.to_string().contains("out of GPU memory"), "{error}");
    let (builder, output) = attention_layer(KvPool::Full, (1, 1, 264), None);
    let error = CudaProgram::new(&device(), builder, output, size(kv), false, &mut |_, _| {}).err().unwrap();
    assert!(error.to_string().contains("heads of 264"), "{error}");
    let mut program = cuda(&device(), attention_layer(KvPool::Full, (1, 1, 32), None), size(kv));
    one_sequence(&[VOCAB as u32], 0, &[0], |input| assert!(program.run(input).is_err()));
}

/// What a program takes is known before; its input, which grows with the steps, stays below what was counted for it.
#[test]
fn what_a_program_takes_of_the_memory_is_known_before() {
    for seed in 0..6 {
        let gpu = Gpu::emulated(&Emulation { checks: Checks::FAST, ..Emulation::default() }).unwrap();
        let (before, size) = (gpu.memory().unwrap().free, size(KV_TYPES[seed as usize % KV_TYPES.len()]));
        let (builder, output) = Kit::new(seed).build(25);
        let needs = Needs::of(&builder, Some(&output), &size);
        let mut program = cuda_on_zeros(&gpu, (builder, output), size);
        let taken = || before - gpu.memory().unwrap().free;
        assert_eq!(taken(), gpu.taken(), "seed {seed}");
        let built = taken();
        let mut rng = Rng(seed);
        program.run(&Input::new(&mut rng, [(3, 0), (37, 0)]).as_step()).unwrap();
        let input = taken() - built;
        assert!(input > 0 && taken() <= needs.total(), "seed {seed}: {} of {needs:?}", taken());
        assert!(needs.total() - taken() <= 8192, "seed {seed}: {} of {needs:?}", taken());
        drop(program);
        assert_eq!(gpu.taken(), 0, "seed {seed}");
    }
}
