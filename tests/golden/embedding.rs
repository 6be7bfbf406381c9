//! Embeddings on every golden language model: hidden states are those that the logits come from, the executors agree, and
//! how a text is cut and who is beside it changes nothing but rounding, or nothing at all.

#![allow(clippy::neg_cmp_op_on_partial_ord, reason = "`!(d <= bound)` also catches NaN, which is the point")]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use shimmy_runtime::engine::{
    EmbedRequest, Engine, EngineOptions, GenerateRequest, Numerics, Pooling, PromptCache, SamplingParams,
};
use shimmy_runtime::exec::{self, Backend, ExecOptions, Executor, KvSize, OutputRows, StepBatch};
use shimmy_runtime::plan::{Op, Plan, Rows};

use super::models::{Golden, executors, max_difference, on_language_models, scattered_blocks};
use super::prefix::Ids;

/// Of logits that are made of hidden states here.
const LOGITS_TOLERANCE: f32 = 1e-3;
/// Of embeddings that are computed in other pieces, or by another executor, in f32.
const EXACT_TOLERANCE: f32 = 1e-5;
/// The same with activations rounded to 8 bits.
const ROUNDED_TOLERANCE: f32 = 0.05;

/// Hidden states of all tokens, in pieces of `chunk`.
fn hidden(executor: &mut dyn Executor, tokens: &[u32], chunk: usize) -> (usize, Vec<f32>) {
    let blocks = scattered_blocks(0, tokens.len());
    let (mut width, mut rows) = (0, Vec::new());
    for (index, piece) in tokens.chunks(chunk).enumerate() {
        let mut batch = StepBatch::default();
        batch.push(piece, index * chunk, tokens.len(), &blocks, OutputRows::AllHidden);
        let output = executor.step(&batch).unwrap();
        assert_eq!((output.num_rows, output.data.len()), (0, 0));
        width = output.hidden.width;
        rows.extend_from_slice(output.hidden.data);
    }
    (width, rows)
}

/// What the plan makes of hidden states: the output matrix and what follows it.
fn logits(plan: &Plan, width: usize, hidden: &[f32]) -> Vec<f32> {
    let mut rows = Vec::new();
    for op in plan.ops.iter().filter(|op| plan.buffers[op.out().0].rows == Rows::Outputs) {
        match *op {
            Op::Linear { weight, .. } => {
                let view = &plan.weights[weight.0].view;
                let mut matrix = vec![0.0; view.num_elements()];
                view.dtype.dequantize_row(&view.data, &mut matrix).unwrap();
                for row in hidden.chunks(width) {
                    let dot = |column: &[f32]| column.iter().zip(row).map(|(a, b)| a * b).sum::<f32>();
                    rows.extend(matrix.chunks(width).map(dot));
                }
            }
            Op::Scale { factor, .. } => rows.iter_mut().for_each(|x| *x *= factor),
            Op::Softcap { cap, .. } => rows.iter_mut().for_each(|x| *x = cap * (*x / cap).tanh()),
            Op::Gather { .. } | Op::Norm { .. } => {}
            ref other => panic!("{other:?}"),
        }
    }
    rows
}

fn within(what: &str, got: &[f32], want: &[f32], bound: f32) -> Result<(), String> {
    let difference = max_difference(got, want);
    if !(difference <= bound) {
        return Err(format!("{what}: off by {difference}, allowed {bound}"));
    }
    Ok(())
}

#[test]
fn golden_logits_come_from_the_hidden_states() {
    on_language_models(
        |_| true,
        |plan, backend, golden: &Golden| {
            for (name, options) in executors().into_iter().filter(|(_, options)| options.backend == backend) {
                let mut executor = exec::build(plan, &options).unwrap();
                let tokens = &golden.tokens;
                let (width, whole) = hidden(&mut *executor, tokens, tokens.len());
                assert_eq!(whole.len(), tokens.len() * width);
                let made = logits(plan, width, &whole);
                within(&format!("{name}: logits"), &made, golden.rows("logits").unwrap(), LOGITS_TOLERANCE)?;
                for chunk in [1, 7] {
                    let (_, rows) = hidden(&mut *executor, tokens, chunk);
                    within(&format!("{name}: in pieces of {chunk}"), &rows, &whole, 1e-4)?;
                }
                // Beside a piece whose logits are wanted, and only of the last token.
                let mut batch = StepBatch::default();
                batch.push(tokens, 0, tokens.len(), &scattered_blocks(0, tokens.len()), OutputRows::LastHidden);
                batch.push(tokens, 0, tokens.len(), &scattered_blocks(1, tokens.len()), OutputRows::Last);
                let output = executor.step(&batch).unwrap();
                assert_eq!((output.num_rows, output.hidden.data.len()), (1, width));
                within(&format!("{name}: last"), output.hidden.data, &whole[whole.len() - width..], 1e-4)?;
                within(&format!("{name}: its logits"), output.row(0), &made[made.len() - output.width..], 1e-3)?;
            }
            Ok(())
        },
    );
}

fn start(plan: &Plan, options: &ExecOptions, max_step_tokens: usize) -> Engine {
    let options = ExecOptions { max_step_tokens, kv_size: KvSize::Tokens(4096), ..options.clone() };
    let executor = exec::build(plan, &options).unwrap();
    Engine::start("golden", executor, Arc::new(Ids(plan.vocab_size)), EngineOptions::default()).unwrap()
}

fn embed(engine: &Engine, tokens: &[u32], pooling: Pooling, numerics: Numerics) -> Vec<f32> {
    let request = EmbedRequest { numerics, ..EmbedRequest::new(tokens.to_vec(), pooling) };
    let vector = engine.embed(request).unwrap().collect_blocking().unwrap().vector;
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    vector
}

/// The same texts at once, with answers beside them.
fn embed_together(engine: &Engine, texts: &[&[u32]], pooling: Pooling, numerics: Numerics) -> Vec<Vec<f32>> {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    let answer = |tokens: &[u32]| {
        let request = GenerateRequest::new(tokens[..9].to_vec());
        let prompt_cache = PromptCache::Skip;
        let request = GenerateRequest { max_tokens: Some(20), sampling: sampling.clone(), prompt_cache, ..request };
        engine.submit(request).unwrap()
    };
    let answers: Vec<_> = texts.iter().map(|tokens| answer(tokens)).collect();
    let pending: Vec<_> = texts
        .iter()
        .map(|tokens| {
            let request = EmbedRequest { numerics, ..EmbedRequest::new(tokens.to_vec(), pooling) };
            engine.embed(request).unwrap()
        })
        .collect();
    let vectors = pending.into_iter().map(|pending| pending.collect_blocking().unwrap().vector).collect();
    answers.into_iter().for_each(|answer| drop(answer.collect_blocking().unwrap()));
    vectors
}

#[test]
fn golden_embeddings_do_not_depend_on_pieces_and_company_and_executors_agree() {
    // What candle computed, for the cpu executor, or the other way round.
    let known = Mutex::new(BTreeMap::<usize, Vec<Vec<f32>>>::new());
    on_language_models(
        |_| true,
        |plan, backend, golden: &Golden| {
            let all = executors();
            let (_, exact) = all.iter().find(|(_, options)| options.backend == backend).unwrap();
            let (engine, cut) = (start(plan, exact, 256), start(plan, exact, 11));
            let tokens = &golden.tokens;
            let texts = [&tokens[..], &tokens[..tokens.len() / 2], &tokens[3..]];
            let mut vectors = Vec::new();
            for pooling in [Pooling::Mean, Pooling::Last] {
                let alone = texts.map(|text| embed(&engine, text, pooling, Numerics::Fast));
                let pieces = embed_together(&cut, &texts, pooling, Numerics::Fast);
                for (alone, pieces) in alone.iter().zip(&pieces) {
                    within(&format!("{pooling:?} in pieces"), pieces, alone, EXACT_TOLERANCE)?;
                }
                let invariant = embed(&engine, texts[0], pooling, Numerics::Invariant);
                let together = embed_together(&cut, &texts, pooling, Numerics::Invariant);
                if together[0] != invariant {
                    return Err(format!("{pooling:?}: an invariant embedding depends on its company"));
                }
                if alone[0] == alone[2] {
                    return Err(format!("{pooling:?}: two texts have one embedding"));
                }
                // Activations in 8 bits, as served by default.
                let ExecOptions { activations, kv_types, .. } = ExecOptions::default();
                let rounded = start(plan, &ExecOptions { activations, kv_types, ..exact.clone() }, 64);
                let rounded = embed(&rounded, texts[0], pooling, Numerics::Fast);
                within(&format!("{pooling:?} rounded"), &rounded, &alone[0], ROUNDED_TOLERANCE)?;
                vectors.extend(alone);
            }
            let key = std::ptr::from_ref(plan).addr();
            if let Some(other) = known.lock().unwrap().remove(&key) {
                for (ours, theirs) in vectors.iter().zip(&other) {
                    within("cpu against candle", ours, theirs, EXACT_TOLERANCE)?;
                }
                return Ok(());
            }
            assert_eq!(backend, Backend::Cpu, "each model runs on both executors, the cpu first");
            known.lock().unwrap().insert(key, vectors);
            Ok(())
        },
    );
    assert!(known.into_inner().unwrap().is_empty(), "a model ran on one executor only");
}
