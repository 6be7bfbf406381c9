//! Layers with a window that keep the last tokens only answer as those that keep all: past the window, in any pieces, in
//! company, after a preemption, and on from what is left of a prefix. On every golden language model with windows and both
//! executors, in a pool that is too small for anything else.

use std::num::NonZeroUsize;
use std::sync::Arc;

use shimmy_runtime::engine::{Answer, Engine, EngineOptions, GenerateRequest, GuessPolicy, PrefixCache, Speculation};
use shimmy_runtime::exec::{self, Activations, Backend, Device, ExecOptions, KvSize, KvType, WeightMemory, WindowKv};
use shimmy_runtime::kv::BLOCK_TOKENS;
use shimmy_runtime::plan::Plan;

use super::models::{Golden, on_language_models};
use super::prefix::{Ids, differs, request};

const CONTEXT: usize = 512;
/// More than six of the windows of any of the models.
const NUM_TOKENS: usize = 160;

fn options(backend: Backend, window_kv: WindowKv, kv_size: KvSize, max_step_tokens: usize) -> ExecOptions {
    ExecOptions {
        gpu: Device::Emulated.into(),
        backend,
        threads: Some(2),
        max_context: Some(CONTEXT),
        kv_size,
        window_kv,
        max_step_tokens,
        activations: Activations::F32,
        kv_types: KvType::F32.into(),
        weight_memory: WeightMemory::default(),
    }
}

fn start(plan: &Plan, options: &ExecOptions, prefix_cache: PrefixCache) -> Engine {
    let executor = exec::build(plan, options).unwrap();
    // Guesses reach beyond what is known, and come back.
    let speculation = if options.max_step_tokens == 40 { Speculation::Ngram } else { Speculation::Off };
    let guess_policy = GuessPolicy::Always;
    let options =
        EngineOptions { prefix_cache, speculation, guess_policy, max_running: 20, ..EngineOptions::default() };
    Engine::start("golden", executor, Arc::new(Ids(plan.vocab_size)), options).unwrap()
}

fn long(prompt: &[u32]) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(NUM_TOKENS), ..request(prompt) }
}

fn check(plan: &Plan, backend: Backend, golden: &Golden) -> Result<(), String> {
    let text = [&golden.tokens[..], &golden.greedy].concat().repeat(3);
    let mut other = text.clone();
    other[50] = (other[50] + 1) % plan.vocab_size as u32;
    let prompts = [&text[..20], &text[..64], &text[..150], &other[..100], &other[30..90]];

    let all = options(backend, WindowKv::All, KvSize::Tokens(2 * CONTEXT), 256);
    let all = start(plan, &all, PrefixCache::Off);
    assert!(all.limits().window.is_none() && all.stats().total_window_blocks == 0);
    let expected: Vec<Answer> = prompts.iter().map(|prompt| all.generate_blocking(long(prompt)).unwrap()).collect();

    for max_step_tokens in [7, 40] {
        let sized = |kv_size| options(backend, WindowKv::Last, kv_size, max_step_tokens);
        let auto = sized(KvSize::Auto);
        let context_bytes = exec::kv_bytes_of_context(plan, &auto, KvType::F32.into(), CONTEXT);
        let engine = start(plan, &sized(KvSize::Bytes(2 * context_bytes)), PrefixCache::On);
        let (limits, at) = (engine.limits(), format!("{max_step_tokens} a step"));
        let window = limits.window.ok_or("no pool for the windows")?;
        // Without forks and repetitions every block of the window's pool serves twice.
        let num_tokens: usize = prompts.iter().map(|prompt| prompt.len() + NUM_TOKENS).sum();
        if 2 * window.num_blocks * BLOCK_TOKENS > num_tokens || window.num_blocks >= limits.num_kv_blocks {
            return Err(format!("{at}: {} blocks for windows, {} in all", window.num_blocks, limits.num_kv_blocks));
        }
        // The second round goes on from what the first has left.
        for round in 0..2 {
            let generations: Vec<_> = prompts.iter().map(|prompt| engine.submit(long(prompt)).unwrap()).collect();
            let forked = engine.submit_group(long(prompts[2]), NonZeroUsize::new(3).unwrap()).unwrap();
            let members = forked.into_members().into_iter().map(|generation| (generation, &expected[2]));
            for (generation, expected) in generations.into_iter().zip(&expected).chain(members) {
                let got = generation.collect_blocking().map_err(|error| format!("{at}, round {round}: {error}"))?;
                if let Some(what) = differs(expected, &got) {
                    return Err(format!("prompt of {}, {at}, round {round}: {what}", got.usage.prompt_tokens));
                }
            }
        }
        // Nobody else's text came between: all of this one's end is there.
        engine.generate_blocking(long(prompts[2])).unwrap();
        let again = engine.generate_blocking(long(prompts[2])).unwrap();
        if let Some(what) = differs(&expected[2], &again) {
            return Err(format!("{at}, again: {what}"));
        }
    }
    Ok(())
}

#[test]
fn windows_that_leave_tokens_behind_never_change_an_answer() {
    on_language_models(|plan| plan.kv.iter().any(|cache| cache.window.is_some()), check);
}
