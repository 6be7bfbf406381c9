//! Models in stages, on the CPU and an emulated GPU and on two of those: wherever the layers are cut, the answers are those of
//! the goldens, and what the engine does with blocks of the KV cache goes on working.

use std::sync::Arc;
use std::time::Duration;

use shimmy_runtime::engine::{
    Companions, Engine, EngineOptions, GenerateRequest, PrefixCache, SamplingParams, SharedStore, kept_bytes,
};
use shimmy_runtime::exec::{
    self, Backend, Device, ExecOptions, Executor, GpuLayers, GpuMemory, GpuOptions, KvSize, OutputRows, StepBatch,
    WindowKv,
};
use shimmy_runtime::kv::BlockStore;
use shimmy_runtime::plan::Plan;

use super::models::{self, GOLDEN_TOLERANCE, Golden, batched, greedy, language_models, max_difference, prefill};
use super::prefix::{Ids, differs};
use crate::support;

/// Every cut is tried in models of so many layers at most: emulation is slow.
const FEW_LAYERS: usize = 4;
/// Tokens that are drawn after the prompt.
const NUM_GREEDY: usize = 3;

/// The options of the other golden tests, with the last layers on so many emulated GPUs.
fn options(num_gpus: usize, layers: GpuLayers) -> ExecOptions {
    let (_, exact) = models::executors().swap_remove(0);
    let devices = vec![Device::Emulated; num_gpus];
    ExecOptions { backend: Backend::Cuda, gpu: GpuOptions { devices, layers, memory: GpuMemory::Free }, ..exact }
}

fn check(plan: &Plan, options: &ExecOptions, golden: &Golden) -> Result<String, String> {
    let mut executor = exec::build(plan, options).map_err(|error| error.to_string())?;
    let placement = executor.placement().unwrap_or_default().to_owned();
    let close = |what: &str, got: &[f32], want: &[f32]| {
        let difference = max_difference(got, &want[..got.len()]);
        if difference <= GOLDEN_TOLERANCE { Ok(()) } else { Err(format!("{placement}: {what} off by {difference}")) }
    };
    let executor = executor.as_mut();
    let whole = prefill(executor, &golden.tokens, golden.tokens.len());
    close("logits", &whole, golden.rows("logits").unwrap())?;
    let (chosen, rows) = greedy(executor, &golden.tokens, NUM_GREEDY);
    close("greedy logits", &rows, golden.rows("greedy_logits").unwrap())?;
    if chosen != golden.greedy[..NUM_GREEDY] {
        return Err(format!("{placement}: {chosen:?} instead of {:?}", golden.greedy));
    }
    let short = &golden.tokens[..golden.tokens.len() / 2];
    // Where keys depend on the length of the text, it isn't the beginning of the long one.
    let short_whole = prefill(executor, short, short.len());
    let (rows, short_rows) = batched(executor, &golden.tokens, short);
    close("the long sequence of a batch", &rows, &whole)?;
    close("the short sequence of a batch", &short_rows, &short_whole)?;
    Ok(placement)
}

#[test]
fn every_family_matches_its_goldens_wherever_it_is_cut() {
    let Some(goldens) = support::goldens() else { return };
    let (mut failures, mut num_run, mut most_layers) = (Vec::new(), 0, 0);
    for (folder, plan, golden) in language_models(&goldens).filter(|(_, plan, _)| plan.kv.len() > 1) {
        let num_layers = plan.kv.len();
        // Every cut of the first model with so many layers, and one of the others; two GPUs with and without the CPU.
        let mut cases = vec![options(1, GpuLayers::Last(num_layers / 2))];
        if num_layers > most_layers && num_layers <= FEW_LAYERS {
            most_layers = num_layers;
            cases = (1..num_layers).map(|layers| options(1, GpuLayers::Last(layers))).collect();
            cases.extend([options(2, GpuLayers::Auto), options(2, GpuLayers::Last(num_layers - 1))]);
        }
        for options in &cases {
            match check(&plan, options, &golden) {
                Ok(placement) => println!("{}: {placement}", folder.display()),
                Err(what) => failures.push(format!("{}: {what}", folder.display())),
            }
            num_run += 1;
        }
    }
    assert!(failures.is_empty(), "{} failures:\n{}", failures.len(), failures.join("\n"));
    assert!(num_run > 1 && most_layers > 2, "{num_run} cases of at most {most_layers} layers");
}

/// Hidden states come from the last stage, in the same step as logits of other rows.
#[test]
fn hidden_states_and_logits_share_a_step_of_stages() {
    let Some(goldens) = support::goldens() else { return };
    let (_, plan, golden) = language_models(&goldens).find(|(_, plan, _)| plan.kv.len() == 2).unwrap();
    let rows = |options: &ExecOptions| {
        let mut executor = exec::build(&plan, options).unwrap();
        let mut batch = StepBatch::default();
        batch.push(&golden.tokens[..9], 0, 9, &[1], OutputRows::LastHidden);
        batch.push(&golden.tokens[..5], 0, 5, &[0], OutputRows::All);
        let output = executor.step(&batch).unwrap();
        (output.data.to_vec(), output.hidden.data.to_vec())
    };
    let expected = rows(&models::executors().swap_remove(0).1);
    let got = rows(&options(1, GpuLayers::Last(1)));
    assert_eq!(got.1.len(), plan.buffers[plan.hidden.unwrap().0].width);
    for (got, expected) in [(&got.0, &expected.0), (&got.1, &expected.1)] {
        assert!(max_difference(got, expected) <= GOLDEN_TOLERANCE);
    }
}

/// Windows with a pool of their own, forks, shared beginnings, and blocks that come back in another engine; rows of logits stay
/// on the GPU.
#[test]
fn an_engine_on_stages_answers_as_on_the_cpu() {
    let Some(goldens) = support::goldens() else { return };
    let has_both =
        |plan: &Plan| plan.kv.iter().any(|kv| kv.window.is_some()) && plan.kv.iter().any(|kv| kv.window.is_none());
    let (folder, plan, golden) = language_models(&goldens).find(|(_, plan, _)| has_both(plan)).unwrap();
    let text = [&golden.tokens[..], &golden.greedy, &golden.tokens].concat();
    let request = || GenerateRequest {
        max_tokens: Some(4),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ignore_eos: true,
        logprobs: Some(2),
        ..GenerateRequest::new(text[..70].to_vec())
    };
    let start = |options: ExecOptions, store: &mut Option<SharedStore>| {
        let kv_size = KvSize::Tokens(512);
        let options =
            ExecOptions { window_kv: WindowKv::Last, kv_size, max_context: Some(128), max_step_tokens: 40, ..options };
        let executor = exec::build(&plan, &options).unwrap();
        assert!(executor.limits().window.is_some(), "{}: no pool for windows", folder.display());
        let new = |executor: &dyn Executor| SharedStore::new(BlockStore::memory(kept_bytes(executor), 64 << 20));
        let store = store.get_or_insert_with(|| new(&*executor)).clone();
        let companions = Companions { store: Some(store), draft: None };
        let engine = EngineOptions { prefix_cache: PrefixCache::On, ..EngineOptions::default() };
        Engine::start_with("golden", executor, companions, Arc::new(Ids(plan.vocab_size)), engine).unwrap()
    };
    let expected = start(models::executors().swap_remove(1).1, &mut None).generate_blocking(request()).unwrap();
    let mut store = None;
    for life in 0..2 {
        let engine = start(options(1, GpuLayers::Last(plan.kv.len() / 2)), &mut store);
        let forked = engine.submit_group(request(), 2.try_into().unwrap()).unwrap();
        for generation in forked.into_members() {
            let got = generation.collect_blocking().unwrap();
            assert_eq!(differs(&expected, &got), None, "{}: life {life}", folder.display());
        }
        let got = engine.generate_blocking(request()).unwrap();
        assert_eq!(differs(&expected, &got), None, "{}: again in life {life}", folder.display());
        assert_eq!(got.usage.cached_tokens, 64, "life {life}");
        let stats = engine.stats();
        assert_eq!((stats.fetched_rows, stats.recalled_tokens > 0), (0, life == 1), "life {life}");
        engine.shutdown();
        assert!(engine.wait_stopped(Duration::from_secs(60)));
    }
}
