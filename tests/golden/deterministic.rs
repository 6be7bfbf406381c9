//! Deterministic requests: the same seed gives the same tokens, with the same log-probabilities to the last bit, whoever else
//! is answered, however prompts are cut, and whatever comes from the prefix cache.

use std::path::Path;
use std::sync::Arc;

use shimmy_runtime::engine::{Answer, Engine, EngineOptions, GenerateRequest, Numerics, SamplingParams};
use shimmy_runtime::exec::{self, Backend, Device, ExecOptions, KvSize};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::plan::{OutputKind, Plan};

use super::prefix::Ids;
use crate::support;

const NUM_TOKENS: usize = 12;

fn start(plan: &Plan, backend: Backend, max_step_tokens: usize) -> Engine {
    let options = ExecOptions {
        backend,
        gpu: Device::Emulated.into(),
        threads: Some(2),
        max_context: Some(256),
        kv_size: KvSize::Tokens(70 * 64),
        max_step_tokens,
        ..ExecOptions::default()
    };
    let executor = exec::build(plan, &options).unwrap();
    Engine::start("golden", executor, Arc::new(Ids(plan.vocab_size)), EngineOptions::default()).unwrap()
}

fn request(prompt: Vec<u32>, seed: u64, numerics: Numerics) -> GenerateRequest {
    let sampling = SamplingParams { seed: Some(seed), temperature: 1.0, ..SamplingParams::default() };
    let (max_tokens, logprobs) = (Some(NUM_TOKENS), Some(0));
    GenerateRequest { max_tokens, sampling, ignore_eos: true, logprobs, numerics, ..GenerateRequest::new(prompt) }
}

/// Tokens and the bits of their log-probabilities.
pub(crate) fn bits(answer: &Answer) -> Vec<(u32, u32)> {
    answer.logprobs.iter().map(|(token, _)| (token.id, token.logprob.to_bits())).collect()
}

/// `concurrency`: how many requests at once, one of them the one that is compared.
fn check(plan: &Plan, backend: Backend, concurrency: &[usize]) {
    let vocab = plan.vocab_size as u32;
    let prompt =
        |seed: u32| -> Vec<u32> { (0..40 + seed % 13).map(|i| 3 + (i * i * 7 + i * seed) % (vocab - 3)).collect() };
    let expected =
        bits(&start(plan, backend, 256).generate_blocking(request(prompt(0), 1, Numerics::Invariant)).unwrap());
    for &num_requests in concurrency {
        let engine = start(plan, backend, if num_requests == 3 { 17 } else { 256 });
        // The others aren't all deterministic, and some of them begin alike.
        for round in 0..2 {
            let generations: Vec<_> = (0..num_requests as u32)
                .map(|index| {
                    let numerics = if index % 2 == 0 { Numerics::Invariant } else { Numerics::Fast };
                    engine.submit(request(prompt(index / 3), 1 + u64::from(index / 3), numerics)).unwrap()
                })
                .collect();
            let answers: Vec<Answer> =
                generations.into_iter().map(|generation| generation.collect_blocking().unwrap()).collect();
            assert_eq!(bits(&answers[0]), expected, "{backend:?}, {num_requests} at once, round {round}");
            assert_eq!(answers[0].usage.cached_tokens, if round == 0 { 0 } else { 32 });
        }
    }
}

fn plan(path: &Path) -> Plan {
    shimmy_runtime::arch::load(&ModelFile::open(path).unwrap(), OutputKind::Logits).unwrap().1
}

#[test]
fn tokens_are_bit_equal_whoever_else_is_answered() {
    let Some(goldens) = support::goldens() else { return };
    for name in ["llama-h256", "gemma2-swa", "llama-tied-mha-bias"] {
        let plan = plan(&goldens.join("models").join(name));
        check(&plan, Backend::Cpu, &[1, 3, 16, 64]);
    }
    check(&plan(&goldens.join("models/llama-h256")), Backend::Candle, &[1, 3, 16, 64]);
    check(&plan(&goldens.join("models/gemma2-swa")), Backend::Cuda, &[1, 3]);
}

/// Quantised weights: other kernels than those of the small goldens.
#[test]
fn a_real_model_is_bit_equal_too() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    check(&plan(&model), Backend::Cpu, &[3, 16]);
}
