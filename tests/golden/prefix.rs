//! The prefix cache through the engine, on every golden language model and both executors: whoever shares a beginning,
//! in whatever pieces, answers as if every prompt had been computed alone and from its start.

use std::borrow::Cow;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::Duration;

use shimmy_runtime::engine::{
    Answer, Companions, Engine, EngineOptions, GenerateRequest, GuessPolicy, PrefixCache, PrefixMiss, SamplingParams,
    SharedStore, Speculation, Vocabulary, kept_bytes,
};
use shimmy_runtime::exec::{
    self, Activations, Backend, Device, ExecOptions, Executor, KvSize, KvType, PrefixReuse, WeightMemory, WindowKv,
};
use shimmy_runtime::kv::BlockStore;
use shimmy_runtime::plan::Plan;

use super::models::{Golden, on_language_models};

/// Two tokens this close in log-probability may change places when sums are made in another order. The steps that the
/// engine makes differ in their numbers of rows, and with them the kernels.
const UNDECIDED: f32 = 1e-3;
const NUM_TOKENS: usize = 20;
/// Room for nearly all requests of a round at once.
const KV_TOKENS: usize = 1024;
/// Room for a few forks of a prompt that is longer than a block, and for fewer than [`NUM_FORKED`].
const FEW_KV_TOKENS: usize = 256;
const NUM_FORKED: usize = 9;

/// Ids without a text and without an end.
pub(crate) struct Ids(pub(crate) usize);

impl Vocabulary for Ids {
    fn token_bytes(&self, _: u32) -> Cow<'_, [u8]> {
        Cow::Borrowed(b"x")
    }

    fn end_of_generation(&self) -> &[u32] {
        &[]
    }

    fn vocab_size(&self) -> usize {
        self.0
    }
}

fn start(
    plan: &Plan,
    backend: Backend,
    prefix_cache: PrefixCache,
    window_kv: WindowKv,
    max_step_tokens: usize,
) -> Engine {
    start_with_store(plan, backend, prefix_cache, window_kv, max_step_tokens, KV_TOKENS, |_| None)
}

fn start_with_store(
    plan: &Plan,
    backend: Backend,
    prefix_cache: PrefixCache,
    window_kv: WindowKv,
    max_step_tokens: usize,
    kv_tokens: usize,
    store: impl FnOnce(&dyn Executor) -> Option<SharedStore>,
) -> Engine {
    let options = ExecOptions {
        gpu: Device::Emulated.into(),
        backend,
        threads: Some(2),
        max_context: Some(256),
        kv_size: KvSize::Tokens(kv_tokens),
        window_kv,
        max_step_tokens,
        activations: Activations::F32,
        kv_types: KvType::F32.into(),
        weight_memory: WeightMemory::default(),
    };
    let executor = exec::build(plan, &options).unwrap();
    // Guesses must not change an answer either.
    let speculation = if max_step_tokens == 40 { Speculation::Ngram } else { Speculation::Off };
    let guess_policy = GuessPolicy::Always;
    let options =
        EngineOptions { prefix_cache, speculation, guess_policy, max_running: 20, ..EngineOptions::default() };
    let store = store(&*executor);
    let companions = Companions { store, draft: None };
    Engine::start_with("golden", executor, companions, Arc::new(Ids(plan.vocab_size)), options).unwrap()
}

pub(super) fn request(prompt: &[u32]) -> GenerateRequest {
    GenerateRequest {
        max_tokens: Some(NUM_TOKENS),
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        ignore_eos: true,
        logprobs: Some(2),
        ..GenerateRequest::new(prompt.to_vec())
    }
}

/// Compares two answers token by token, up to a place where the first was undecided. Says what differs.
pub(crate) fn differs(expected: &Answer, got: &Answer) -> Option<String> {
    for (index, ((token, top), (other, _))) in expected.logprobs.iter().zip(&got.logprobs).enumerate() {
        if token.id != other.id {
            let margin = top[0].logprob - top[1].logprob;
            return (margin > UNDECIDED).then(|| format!("token {index} is {} instead of {}", other.id, token.id));
        }
        if (token.logprob - other.logprob).abs() > UNDECIDED {
            return Some(format!("token {index} has log-probability {} instead of {}", other.logprob, token.logprob));
        }
    }
    (expected.logprobs.len() != got.logprobs.len()).then(|| "it has another length".to_owned())
}

fn check(plan: &Plan, backend: Backend, golden: &Golden) -> Result<(), String> {
    let text = [&golden.tokens[..], &golden.greedy, &golden.tokens].concat();
    let mut other = text.clone();
    other[40] = (other[40] + 1) % plan.vocab_size as u32;
    // Around the edges of blocks, and one that goes its own way inside the second block.
    let mut prompts: Vec<&[u32]> = [1, 31, 32, 33, 50, 64, 65, text.len()].iter().map(|&len| &text[..len]).collect();
    prompts.push(&other[..90]);

    let alone = start(plan, backend, PrefixCache::Off, WindowKv::All, 256);
    let expected: Vec<Answer> =
        prompts.iter().map(|prompt| alone.generate_blocking(request(prompt)).unwrap()).collect();
    let reuse = PrefixReuse::of(plan);
    for max_step_tokens in [7, 40] {
        let engine = start(plan, backend, PrefixCache::On, WindowKv::Last, max_step_tokens);
        // The first round finds what the others of it have left by then, the second what the first has left.
        for round in 0..2 {
            let generations: Vec<_> = prompts.iter().map(|prompt| engine.submit(request(prompt)).unwrap()).collect();
            // Three answers to one prompt: the block that it begins is copied.
            let forked = engine.submit_group(request(prompts[4]), NonZeroUsize::new(3).unwrap()).unwrap();
            for generation in forked.into_members() {
                if let Some(what) = differs(&expected[4], &generation.collect_blocking().unwrap()) {
                    return Err(format!("forked, {max_step_tokens} a step, round {round}: {what}"));
                }
            }
            for ((generation, expected), prompt) in generations.into_iter().zip(&expected).zip(&prompts) {
                let got = generation.collect_blocking().unwrap();
                if let Some(what) = differs(expected, &got) {
                    return Err(format!("prompt of {}, {max_step_tokens} a step, round {round}: {what}", prompt.len()));
                }
                let cached = (got.usage.cached_tokens, got.usage.cache_miss);
                let found = (prompt.len() - 1) / 32 * 32;
                let wanted = match reuse {
                    PrefixReuse::DependsOnLength => (0, Some(PrefixMiss::Disabled)),
                    PrefixReuse::Exact => (found, (found == 0).then_some(PrefixMiss::TooShort)),
                };
                if round == 1 && cached != wanted {
                    return Err(format!("prompt of {}: {cached:?} instead of {wanted:?}", prompt.len()));
                }
            }
        }
    }
    if reuse == PrefixReuse::Exact {
        check_store(plan, backend, &prompts, &expected)
    } else {
        check_resumed(plan, backend, prompts[4], &expected[4])
    }
}

/// Who finds no room for a copy of the begun block waits and is computed anew, with the token that it had drawn: keys that depend
/// on the length of the text are those of the length that it had then.
fn check_resumed(plan: &Plan, backend: Backend, prompt: &[u32], expected: &Answer) -> Result<(), String> {
    let engine = start_with_store(plan, backend, PrefixCache::Off, WindowKv::Last, 40, FEW_KV_TOKENS, |_| None);
    let group = engine.submit_group(request(prompt), NonZeroUsize::new(NUM_FORKED).unwrap()).unwrap();
    for generation in group.into_members() {
        if let Some(what) = differs(expected, &generation.collect_blocking().unwrap()) {
            return Err(format!("forked, with little room: {what}"));
        }
    }
    Ok(())
}

/// What one engine computed serves the next one.
fn check_store(plan: &Plan, backend: Backend, prompts: &[&[u32]], expected: &[Answer]) -> Result<(), String> {
    let mut store = None;
    for life in 0..2 {
        let engine = start_with_store(plan, backend, PrefixCache::On, WindowKv::Last, 40, KV_TOKENS, |executor| {
            let new = || SharedStore::new(BlockStore::memory(kept_bytes(executor), 256 << 20));
            Some(store.get_or_insert_with(new).clone())
        });
        for (prompt, expected) in prompts.iter().zip(expected) {
            let got = engine.generate_blocking(request(prompt)).unwrap();
            if let Some(what) = differs(expected, &got) {
                return Err(format!("prompt of {}, life {life}: {what}", prompt.len()));
            }
            let found = (prompt.len() - 1) / 32 * 32;
            if life == 1 && got.usage.cached_tokens != found {
                return Err(format!("prompt of {}: {} cached", prompt.len(), got.usage.cached_tokens));
            }
        }
        if life == 1 && engine.stats().recalled_tokens == 0 {
            return Err("nothing came back".into());
        }
        engine.shutdown();
        assert!(engine.wait_stopped(Duration::from_secs(60)));
    }
    Ok(())
}

#[test]
fn prefix_hits_never_change_an_answer() {
    on_language_models(|_| true, check);
}
