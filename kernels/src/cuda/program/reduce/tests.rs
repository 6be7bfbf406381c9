//! Rows of logits against the same reductions on the host, which sort and sum whole rows: on the emulated device always, on a
//! real one where there is one.

use std::sync::Arc;

use super::*;
use crate::cpu::Numerics;
use crate::cpu::kv::KvType;
use crate::cuda::program::CudaProgram;
use crate::cuda::program::tests::devices;
use crate::program::{Instr, Machine, ProgramBuilder, ProgramSize, Rows, SeqInput, StepInput};
use crate::quant::{QuantType, tests::Rng};

/// Columns of a row that are no tokens: better than all that are, so nothing may look at them.
const PADDING: usize = 5;

/// A program whose outputs are the rows of a table, by token.
fn rows_program(gpu: &Gpu, rows: &[Vec<f32>]) -> CudaProgram {
    let width = rows[0].len() + PADDING;
    let mut builder = ProgramBuilder::new();
    let padded = rows.iter().flat_map(|row| row.iter().copied().chain([f32::NAN; PADDING]));
    let bytes: Vec<u8> = padded.flat_map(f32::to_le_bytes).collect();
    let table = builder.weight(Arc::new(bytes), QuantType::F32, rows.len(), width).unwrap();
    let x = builder.buffer(width, Rows::Tokens);
    let x = builder.span(x);
    builder.push(Instr::Embed { table, scale: 1.0, out: x });
    let out = builder.buffer(width, Rows::Outputs);
    let out = builder.span(out);
    builder.push(Instr::Gather { x, out });
    let size = ProgramSize {
        vocab_size: rows.len(),
        max_tokens: rows.len(),
        max_outputs: rows.len(),
        num_blocks: rows.len().div_ceil(32),
        num_window_blocks: 0,
        kv: KvType::F16.into(),
    };
    CudaProgram::new(gpu, builder, out, size, false, &mut |_, _| {}).unwrap()
}

/// Runs a step whose outputs are all rows.
fn run(program: &mut CudaProgram, tasks: &[Option<RowTask>], width: usize) {
    let tokens: Vec<u32> = (0..tasks.len() as u32).collect();
    let blocks: Vec<u32> = (0..tokens.len().div_ceil(32) as u32).collect();
    let input = StepInput {
        tokens: &tokens,
        seqs: &[SeqInput { rows: 0..tokens.len(), start: 0, table: 0..blocks.len() }],
        seq_of_row: &vec![0; tokens.len()],
        blocks: &blocks,
        window_blocks: &[],
        outputs: &tokens,
        hidden: &[],
        ropes: &[],
        numerics: Numerics::Fast,
        reduce: Some(Reduce { width, tasks }),
    };
    let whole = program.run(&input).unwrap();
    assert!(whole.is_empty(), "rows were downloaded");
}

/// By sorting all.
fn best_by_sorting(row: &[f32], num_best: usize) -> Vec<Candidate> {
    let mut all: Vec<Candidate> =
        row.iter().zip(0..).map(|(&logit, id)| Candidate { logit: logit + 0.0, id }).collect();
    all.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
    all.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
    all.truncate(num_best);
    all
}

/// `exp_nonpositive` of the runtime.
fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * (355.0 / 512.0)) - n * -2.121_944_4e-4;
    let coefficients = [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let p = coefficients.into_iter().fold(1.0_f32 / 5040.0, |p, c: f32| p * r + c);
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    if x < -87.0 { 0.0 } else { p * f32::from_bits(exponent) }
}

/// Sums of weights as the runtime makes them: 16 in turns over a chunk, then in `f64`.
fn chunk_sums(weights: &[f32]) -> Vec<f64> {
    let sum = |chunk: &[f32]| {
        let mut lanes = [0.0_f32; 16];
        chunk.iter().enumerate().for_each(|(i, &weight)| lanes[i % 16] += weight);
        lanes.iter().map(|&lane| f64::from(lane)).sum()
    };
    weights.chunks(CHUNK).map(sum).collect()
}

fn weights(row: &[f32], temperature: f32) -> Vec<f32> {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    row.iter().map(|logit| exp((logit - max) / temperature)).collect()
}

/// The token of a draw, by the definition.
fn drawn(row: &[f32], draw: Draw) -> u32 {
    let weights = weights(row, draw.temperature);
    let sums = chunk_sums(&weights);
    let mut target = draw.uniform * sums.iter().sum::<f64>();
    let mut chunk = 0;
    for (index, &sum) in sums.iter().enumerate().filter(|(_, sum)| **sum > 0.0) {
        chunk = index;
        if target < sum {
            break;
        }
        target -= sum;
    }
    let mut chosen = 0;
    for (id, &weight) in weights.iter().enumerate().skip(chunk * CHUNK).take(CHUNK).filter(|(_, weight)| **weight > 0.0)
    {
        chosen = id;
        target -= f64::from(weight);
        if target < 0.0 {
            break;
        }
    }
    chosen as u32
}

/// A row for each way that logits can lie.
fn rows(width: usize, rng: &mut Rng) -> Vec<Vec<f32>> {
    let normals = rng.normals(width);
    let mut at = |n: usize| (rng.next() >> 33) as usize % n;
    let mut masked = normals.clone();
    (0..width).for_each(|i| {
        if i % 3 != 1 {
            masked[i] = f32::NEG_INFINITY;
        }
    });
    let mut peaked = vec![-200.0; width];
    (0..7).for_each(|_| peaked[at(width)] = 5.0);
    let mut alone = vec![f32::NEG_INFINITY; width];
    alone[width - 1] = -3.0;
    vec![
        normals.iter().map(|x| x * 4.0 - 2.0).collect(),
        // Few values: many ties.
        normals.iter().map(|x| (x * 2.0).round()).collect(),
        vec![-1.25; width],
        // All of the best in neighbouring columns, and the other way round.
        (0..width).map(|i| i as f32 * -0.001).collect(),
        (0..width).map(|i| i as f32 * 0.001).collect(),
        (0..width).map(|i| if i % 2 == 0 { 0.0 } else { -0.0 }).collect(),
        masked,
        peaked,
        alone,
        normals.iter().map(|x| x * 1e30).collect(),
    ]
}

#[test]
fn rows_are_reduced_to_what_sorting_and_summing_gives() {
    for (index, gpu) in devices().iter().enumerate() {
        // The largest ones on one device: the emulated one takes its time.
        let widths: &[(usize, usize)] = if index == 0 {
            &[(1, 5), (37, 40), (1000, 1), (1024, 1024), (4097, 256), (32_003, 40), (70_000, 300), (262_208, 60)]
        } else {
            &[(6, 3), (1025, 64), (5000, 256), (9000, 1000)]
        };
        for &(width, num_best) in widths {
            let mut rng = Rng(width as u64);
            let mut rows = rows(width, &mut rng);
            if width > 100_000 {
                rows.truncate(3);
            }
            let temperatures = [1.0, 0.7, 3.0, 1e-3, 1e-45, f32::MAX];
            let task = |row: usize, rng: &mut Rng| RowTask {
                num_best: (num_best / (1 + row % 2)).max(1),
                sum: row % 3 != 2,
                draw: (row % 4 != 3).then(|| Draw {
                    temperature: temperatures[(row + width) % temperatures.len()],
                    uniform: (rng.next() >> 11) as f64 / (1_u64 << 53) as f64,
                }),
            };
            let tasks: Vec<_> = (0..rows.len()).map(|row| Some(task(row, &mut rng))).collect();
            let mut program = rows_program(gpu, &rows);
            run(&mut program, &tasks, width);
            for (number, (row, task)) in rows.iter().zip(tasks.iter().flatten()).enumerate() {
                let what = format!("{}: row {number} of {width}, {task:?}", gpu.info().name);
                let all = best_by_sorting(row, width);
                let Some(got) = program.reduced(number) else {
                    assert!(all.is_empty(), "{what}: nothing is known");
                    continue;
                };
                assert!(got.best.len() >= task.num_best.min(all.len()), "{what}: {} tokens", got.best.len());
                assert_eq!(got.best, &all[..got.best.len()], "{what}");
                let has_all = got.best.len() == all.len();
                assert!(if got.is_complete { has_all } else { got.best.len() >= task.num_best }, "{what}");
                assert!(
                    got.is_complete || all.len() >= 64 || got.best.len() == 1,
                    "{what}: {} of {}",
                    got.best.len(),
                    all.len()
                );
                let sum = chunk_sums(&weights(row, 1.0)).iter().sum::<f64>();
                assert_eq!(
                    got.sum.map(f64::to_bits),
                    task.sum.then_some(sum.to_bits()),
                    "{what}: {:?} for {sum}",
                    got.sum
                );
                let token = task.draw.map(|draw| {
                    let id = drawn(row, draw);
                    (draw, Candidate { logit: row[id as usize], id })
                });
                assert_eq!(got.drawn, token, "{what}");
                let mut whole = Vec::new();
                program.read_output(number, &mut whole).unwrap();
                let bits = |row: &[f32]| row.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&whole[..width]), bits(row), "{what}");
            }
            assert!(program.read_output(rows.len(), &mut Vec::new()).is_err());
        }
    }
}

/// Every number of a draw, where the borders between tokens are.
#[test]
fn a_draw_takes_the_token_at_its_share() {
    let gpu = &devices()[0];
    let row = vec![0.0_f32; 2048 + 512];
    let shares = [0.0, 1.0 / 2560.0, 1023.0 / 2560.0, 1024.0 / 2560.0, 0.5, 2047.5 / 2560.0, 0.999_999];
    let uniforms: Vec<f64> = shares.into_iter().chain([1.0 - f64::EPSILON / 2.0]).collect();
    let mut program = rows_program(gpu, &vec![row.clone(); uniforms.len()]);
    let task = |&uniform| Some(RowTask { num_best: 1, sum: false, draw: Some(Draw { temperature: 1.0, uniform }) });
    let tasks: Vec<_> = uniforms.iter().map(task).collect();
    run(&mut program, &tasks, row.len());
    for (number, &uniform) in uniforms.iter().enumerate() {
        let (_, token) = program.reduced(number).unwrap().drawn.unwrap();
        assert_eq!(token.id, (uniform * 2560.0) as u32, "{uniform}");
    }
}

#[test]
fn rows_that_mean_nothing_are_left_to_the_host() {
    for gpu in &devices()[..2] {
        let width = 5000;
        let good: Vec<f32> = (0..width).map(|i| (i % 977) as f32 / 100.0).collect();
        let with = |at: usize, bad: f32| {
            let mut row = good.clone();
            row[at] = bad;
            row
        };
        let nan = f32::from_bits(0xffc0_0001);
        let rows = vec![
            with(0, f32::NAN),
            with(4999, nan),
            with(1700, f32::INFINITY),
            vec![f32::NEG_INFINITY; width],
            with(3, f32::NEG_INFINITY),
            good.clone(),
        ];
        let draw = Some(Draw { temperature: 0.9, uniform: 0.5 });
        let mut tasks = vec![Some(RowTask { num_best: 20, sum: true, draw }); rows.len()];
        // What will be read whole is not described.
        tasks[5] = None;
        let mut program = rows_program(gpu, &rows);
        run(&mut program, &tasks, width);
        let are_known: Vec<bool> = (0..rows.len() + 2).map(|row| program.reduced(row).is_some()).collect();
        assert_eq!(are_known, [false, false, false, false, true, false, false, false]);
        // The next step is not confused with this one: here nothing is reduced.
        let input = StepInput {
            tokens: &[4],
            seqs: &[SeqInput { rows: 0..1, start: 0, table: 0..1 }],
            seq_of_row: &[0],
            blocks: &[0],
            window_blocks: &[],
            outputs: &[0],
            hidden: &[],
            ropes: &[],
            numerics: Numerics::Fast,
            reduce: None,
        };
        assert_eq!(program.run(&input).unwrap()[..width], rows[4]);
        assert!(program.reduced(4).is_none());
    }
}

/// As many rows as a full step has, each with its own task, in a graph too.
#[test]
fn many_rows_are_reduced_each_by_itself() {
    const NUM_ROWS: usize = 512;
    let gpu = &devices()[0];
    let mut rng = Rng(8);
    let rows: Vec<Vec<f32>> = (0..NUM_ROWS).map(|_| rng.normals(300)).collect();
    let mut program = rows_program(gpu, &rows);
    for num_rows in [NUM_ROWS, 48, 48, 48] {
        let task = |row: usize, rng: &mut Rng| {
            let uniform = (rng.next() >> 11) as f64 / (1_u64 << 53) as f64;
            let draw = (row.is_multiple_of(3)).then_some(Draw { temperature: 0.5 + row as f32, uniform });
            RowTask { num_best: 1 + row % 5, sum: row.is_multiple_of(2), draw }
        };
        let tasks: Vec<_> = (0..num_rows).map(|row| (row % 7 != 6).then(|| task(row, &mut rng))).collect();
        run(&mut program, &tasks, 300);
        for (number, (row, task)) in rows.iter().zip(&tasks).enumerate() {
            let Some(task) = task else {
                assert!(program.reduced(number).is_none(), "row {number}");
                continue;
            };
            let got = program.reduced(number).unwrap();
            assert_eq!(got.best[..task.num_best], best_by_sorting(row, task.num_best), "row {number}");
            let sum = chunk_sums(&weights(row, 1.0)).iter().sum::<f64>();
            assert_eq!(got.sum, task.sum.then_some(sum), "row {number}");
            assert_eq!(got.drawn.map(|(_, token)| token.id), task.draw.map(|draw| drawn(row, draw)), "row {number}");
        }
    }
}

#[test]
fn tasks_that_do_not_fit_are_refused() {
    let row = [1.0_f32, 2.0];
    let task = RowTask { num_best: 1, sum: false, draw: None };
    let fits = |tasks: &[Option<RowTask>], width| Reduce { width, tasks }.check(1, row.len()).is_ok();
    assert!(fits(&[Some(task)], 2) && fits(&[None], 1));
    assert!(!fits(&[], 2) && !fits(&[None, None], 2) && !fits(&[None], 3) && !fits(&[None], 0));
    for num_best in [0, MAX_BEST + 1] {
        assert!(!fits(&[Some(RowTask { num_best, ..task })], 2));
    }
    for (temperature, uniform) in [(0.0, 0.5), (-1.0, 0.5), (f32::NAN, 0.5), (1.0, 1.0), (1.0, -0.1), (1.0, f64::NAN)] {
        assert!(!fits(&[Some(RowTask { draw: Some(Draw { temperature, uniform }), ..task })], 2));
    }
}
