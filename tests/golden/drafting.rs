//! A draft model through the engine, on every golden language model and both executors: with itself as its draft a model
//! answers as without one, the likeliest tokens or drawn ones.

use std::sync::Arc;

use shimmy_runtime::engine::{
    Answer, Companions, DraftExecutor, Engine, EngineOptions, GenerateRequest, GuessPolicy, Numerics, SamplingParams,
    Speculation,
};
use shimmy_runtime::exec::{
    self, Activations, Backend, Device, ExecOptions, KvSize, KvType, PrefixReuse, WeightMemory, WindowKv,
};
use shimmy_runtime::plan::Plan;

use super::deterministic::bits;
use super::models::{Golden, on_language_models};
use super::prefix::{Ids, differs};

const NUM_TOKENS: usize = 24;

fn start(plan: &Plan, backend: Backend, speculation: Speculation) -> Engine {
    let options = ExecOptions {
        gpu: Device::Emulated.into(),
        backend,
        threads: Some(2),
        max_context: Some(256),
        kv_size: KvSize::Tokens(1024),
        window_kv: WindowKv::Last,
        max_step_tokens: 30,
        activations: Activations::F32,
        kv_types: KvType::F32.into(),
        weight_memory: WeightMemory::default(),
    };
    let draft = ExecOptions { window_kv: WindowKv::All, ..options.clone() };
    let [executor, draft] = [&options, &draft].map(|options| exec::build(plan, options).unwrap());
    let draft = DraftExecutor { executor: draft, vocab_size: plan.vocab_size };
    // Whether it pays would depend on the clock. Guesses get the rows that running sequences leave.
    let guess_policy = GuessPolicy::Always;
    let options = EngineOptions { speculation, guess_policy, max_running: 8, ..EngineOptions::default() };
    let companions = Companions { draft: Some(draft), store: None };
    Engine::start_with("golden", executor, companions, Arc::new(Ids(plan.vocab_size)), options).unwrap()
}

fn request(prompt: &[u32], temperature: f32) -> GenerateRequest {
    // Bits are compared where tokens are drawn: any rounding could change the draw.
    let numerics = if temperature > 0.0 { Numerics::Invariant } else { Numerics::Fast };
    GenerateRequest {
        max_tokens: Some(NUM_TOKENS),
        sampling: SamplingParams { temperature, seed: Some(7), ..SamplingParams::default() },
        ignore_eos: true,
        logprobs: Some(2),
        numerics,
        ..GenerateRequest::new(prompt.to_vec())
    }
}

/// All at once: the answers to three prompts, the likeliest tokens and drawn ones.
fn answers(engine: &Engine, tokens: &[u32]) -> Vec<Answer> {
    let prompts = [&tokens[..1], &tokens[..tokens.len() / 2], tokens];
    let requests = prompts.iter().flat_map(|prompt| [request(prompt, 0.0), request(prompt, 1.0)]);
    let generations: Vec<_> = requests.map(|request| engine.submit(request).unwrap()).collect();
    generations.into_iter().map(|generation| generation.collect_blocking().unwrap()).collect()
}

fn check(plan: &Plan, backend: Backend, golden: &Golden) -> Result<(), String> {
    let plain = answers(&start(plan, backend, Speculation::Off), &golden.tokens);
    let engine = start(plan, backend, Speculation::Draft);
    let drafted = answers(&engine, &golden.tokens);
    for (index, (expected, got)) in plain.iter().zip(&drafted).enumerate() {
        if index % 2 == 0 {
            differs(expected, got).map_or(Ok(()), |what| Err(format!("greedy answer {index}: {what}")))?;
        } else if bits(expected) != bits(got) {
            return Err(format!("drawn answer {index} differs"));
        }
    }
    let accepted: usize = drafted.iter().map(|answer| answer.usage.accepted_tokens).sum();
    match PrefixReuse::of(plan) {
        PrefixReuse::DependsOnLength if accepted > 0 => Err("guesses, although keys depend on the length".into()),
        PrefixReuse::Exact if accepted < NUM_TOKENS => Err(format!("only {accepted} guesses of its own stood")),
        _ => Ok(()),
    }
}

#[test]
fn drafts_never_change_a_golden_answer() {
    on_language_models(|_| true, check);
}
