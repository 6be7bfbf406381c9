//! What was known of a row gives the token of the whole row, on random chains: reduced on the host, and by the kernels.

use proptest::prelude::*;

use super::host::HostRow;
use crate::engine::SamplingParams;
use crate::sample::{Sampler, Scratch, logprobs, logprobs_reduced};

fn chains() -> impl Strategy<Value = SamplingParams> {
    let temperature = prop_oneof![
        1 => Just(0.0_f32),
        4 => 0.05..2.0_f32,
        1 => Just(1.0_f32),
        1 => prop_oneof![Just(1e-30_f32), Just(1e-45), Just(f32::MAX)],
    ];
    let top_k = prop_oneof![3 => Just(0_usize), 2 => 1..60_usize, 1 => 200..1200_usize];
    let top_p = prop_oneof![2 => Just(1.0_f32), 3 => 0.0..1.0_f32];
    let min_p = prop_oneof![2 => Just(0.0_f32), 2 => 0.001..0.5_f32, 1 => Just(1.0_f32)];
    (temperature, top_k, top_p, min_p, any::<u64>()).prop_map(|(temperature, top_k, top_p, min_p, seed)| {
        SamplingParams { temperature, top_k, top_p, min_p, seed: Some(seed), ..SamplingParams::default() }
    })
}

/// A row, from a seed: flat or peaked, with ties or without, some of it masked.
fn row(seed: u64, len: usize, spread: f32, step: f32, masked: usize) -> Vec<f32> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut row: Vec<f32> = (0..len)
        .map(|_| {
            let logit = next().ln().max(-12.0) * -spread - 2.0;
            if step > 0.0 { (logit / step).round() * step } else { logit }
        })
        .collect();
    for i in 0..masked.min(len - 1) {
        row[1 + i * 7919 % (len - 1).max(1)] = f32::NEG_INFINITY;
    }
    row
}

fn rows() -> impl Strategy<Value = Vec<f32>> {
    let len = prop_oneof![2..60_usize, 200..300_usize, 900..6000_usize];
    let spread = prop_oneof![Just(0.0_f32), Just(0.01), 0.3..3.0_f32, 3.0..20.0_f32];
    let step = prop_oneof![2 => Just(0.0_f32), 1 => Just(0.5_f32)];
    (any::<u64>(), len, spread, step, 0..400_usize)
        .prop_map(|(seed, len, spread, step, masked)| row(seed, len, spread, step, masked))
}

/// Whether rows of `width` logits are always decided by what is asked of them.
fn is_always_decided(params: &SamplingParams, width: usize) -> bool {
    let has_top_k = params.top_k > 0 && params.top_k < width;
    params.temperature == 0.0
        || (has_top_k && params.top_k <= crate::exec::MAX_BEST)
        || (!has_top_k && params.top_p == 1.0 && params.min_p == 0.0)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4000))]

    #[test]
    fn a_reduced_row_gives_the_token_of_the_whole_one_or_nothing(
        params in chains(),
        row in rows(),
        num_more in 0..40_usize,
        num_top in 0..30_usize,
    ) {
        let (mut scratch, mut sampler) = (Scratch::default(), Sampler::new(params.clone()));
        let mut undecided = 0;
        for _ in 0..3 {
            let mut whole = sampler.clone();
            let expected = whole.sample(&row, &[], &mut scratch).unwrap();
            let token = sampler.task(row.len(), 0).and_then(|mut task| {
                // Others in the step may have asked for more.
                task.num_best += num_more;
                let reduced = HostRow::of(&row, &task).unwrap();
                let token = sampler.sample_reduced(&reduced.as_row(), row.len(), &mut scratch);
                if task.sum && let Some(token) = token {
                    let known = logprobs_reduced(&reduced.as_row(), token, num_top);
                    if task.num_best >= num_top {
                        assert_eq!(known, Some(logprobs(&row, token, num_top, &mut scratch).unwrap()));
                    }
                }
                token
            });
            if let Some(token) = token {
                prop_assert_eq!(token, expected);
            } else {
                undecided += 1;
                prop_assert_eq!(sampler.sample(&row, &[], &mut scratch).unwrap(), expected);
            }
            prop_assert_eq!(sampler.uniform_after(0), whole.uniform_after(0));
        }
        prop_assert!(undecided == 0 || !is_always_decided(&params, row.len()), "{params:?} on {} logits", row.len());
    }

    /// Guesses are sampled one after the other: the draws of all of them are known before the first.
    #[test]
    fn draws_are_known_ahead(seed in any::<u64>(), temperature in 0.1..3.0_f32) {
        let params = SamplingParams { temperature, top_k: 0, top_p: 1.0, min_p: 0.0, seed: Some(seed), ..SamplingParams::default() };
        let (mut sampler, mut scratch) = (Sampler::new(params), Scratch::default());
        let row = row(seed, 3000, 1.0, 0.0, 5);
        let ahead: Vec<_> = (0..5).map(|n| sampler.task(row.len(), n).unwrap()).collect();
        for task in &ahead {
            let reduced = HostRow::of(&row, task).unwrap();
            let mut whole = sampler.clone();
            let token = sampler.sample_reduced(&reduced.as_row(), row.len(), &mut scratch);
            prop_assert_eq!(token, Some(whole.sample(&row, &[], &mut scratch).unwrap()));
        }
        // One that was meant for another draw says nothing.
        let late = HostRow::of(&row, &ahead[0]).unwrap();
        prop_assert_eq!(sampler.sample_reduced(&late.as_row(), row.len(), &mut scratch), None);
    }
}

#[test]
fn chains_that_change_logits_need_whole_rows() {
    let plain = SamplingParams::default();
    assert!(Sampler::new(plain.clone()).task(1000, 0).is_some());
    for params in [
        SamplingParams { logit_bias: vec![(3, 1.0)], ..plain.clone() },
        SamplingParams { repeat_penalty: 1.1, ..plain.clone() },
        SamplingParams { presence_penalty: 0.1, ..plain.clone() },
        SamplingParams { frequency_penalty: 0.1, temperature: 0.0, ..plain.clone() },
        SamplingParams { top_k: 1025, ..plain },
    ] {
        assert_eq!(Sampler::new(params.clone()).task(2000, 0), None, "{params:?}");
    }
}

/// The kernels themselves, on the emulated device: what they know of a row decides the same tokens.
#[cfg(feature = "cuda")]
mod on_a_device {
    use std::sync::Arc;

    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    use shimmy_kernels::cuda::program::CudaProgram;
    use shimmy_kernels::cuda::{Gpu, Target};
    use shimmy_kernels::program::{Instr, Machine, ProgramBuilder, ProgramSize, Reduce, Rows, SeqInput, StepInput};
    use shimmy_kernels::quant::QuantType;

    use super::*;
    use crate::exec::{KvType, Numerics};
    use crate::kv::BLOCK_TOKENS;

    const NUM_ROWS: usize = 24;
    const NUM_STEPS: usize = 6;

    /// A program whose outputs are the rows of a table, by token.
    fn program(gpu: &Gpu, rows: &[Vec<f32>]) -> CudaProgram {
        let width = rows[0].len();
        let mut builder = ProgramBuilder::new();
        let bytes: Vec<u8> = rows.concat().into_iter().flat_map(f32::to_le_bytes).collect();
        let table = builder.weight(Arc::new(bytes), QuantType::F32, rows.len(), width).unwrap();
        let [x, out] = [Rows::Tokens, Rows::Outputs].map(|rows| {
            let buffer = builder.buffer(width, rows);
            builder.span(buffer)
        });
        builder.push(Instr::Embed { table, scale: 1.0, out: x });
        builder.push(Instr::Gather { x, out });
        let size = ProgramSize {
            vocab_size: rows.len(),
            max_tokens: rows.len(),
            max_outputs: rows.len(),
            num_blocks: rows.len().div_ceil(BLOCK_TOKENS),
            num_window_blocks: 0,
            kv: KvType::F16.into(),
        };
        CudaProgram::new(gpu, builder, out, size, false, &mut |_, _| {}).unwrap()
    }

    #[test]
    fn the_kernels_decide_the_tokens_of_whole_rows() {
        let gpu = Gpu::open(Target::Emulated).unwrap();
        let mut runner = TestRunner::deterministic();
        let (mut scratch, mut num_decided) = (Scratch::default(), 0);
        for len in [50, 700, 3001, 12_000] {
            let spreads = [0.0, 0.01, 0.5, 1.0, 2.0, 8.0];
            let rows: Vec<Vec<f32>> = (0..NUM_ROWS)
                .map(|i| row(77 + i as u64, len, spreads[i % 6], if i % 4 == 3 { 0.5 } else { 0.0 }, i * 5))
                .collect();
            let mut program = program(&gpu, &rows);
            let tokens: Vec<u32> = (0..NUM_ROWS as u32).collect();
            for _ in 0..NUM_STEPS {
                let mut samplers: Vec<Sampler> =
                    rows.iter().map(|_| Sampler::new(chains().new_tree(&mut runner).unwrap().current())).collect();
                let tasks: Vec<_> = samplers.iter().map(|sampler| sampler.task(len, 0)).collect();
                let input = StepInput {
                    tokens: &tokens,
                    seqs: &[SeqInput { rows: 0..NUM_ROWS, start: 0, table: 0..1 }],
                    seq_of_row: &[0; NUM_ROWS],
                    blocks: &[0],
                    window_blocks: &[],
                    outputs: &tokens,
                    hidden: &[],
                    ropes: &[],
                    numerics: Numerics::Fast,
                    reduce: Some(Reduce { width: len, tasks: &tasks }),
                };
                program.run(&input).unwrap();
                for (index, (sampler, row)) in samplers.iter_mut().zip(&rows).enumerate() {
                    let expected = sampler.clone().sample(row, &[], &mut scratch).unwrap();
                    let reduced = tasks[index].map(|_| program.reduced(index).unwrap());
                    let Some(reduced) = reduced else { continue };
                    let token = sampler.sample_reduced(&reduced, len, &mut scratch);
                    let params = sampler.params().clone();
                    assert!(
                        token == Some(expected) || token.is_none(),
                        "{token:?}, {expected}: {params:?}, row {index}"
                    );
                    assert!(token.is_some() || !is_always_decided(&params, len), "{params:?}");
                    num_decided += usize::from(token.is_some());
                }
            }
        }
        assert!(num_decided > 4 * NUM_STEPS * NUM_ROWS / 2, "only {num_decided} were decided");
    }
}
