//! Rows of logits that stay on the device: requests are answered with the tokens of whole rows, of which none is downloaded.

use std::path::Path;
use std::sync::Arc;

use shimmy_runtime::engine::{Answer, Engine, EngineOptions, GenerateRequest, Numerics, SamplingParams};
use shimmy_runtime::exec::{
    self, Backend, Device, ExecOptions, Executor, KvSize, KvTypes, Limits, PrefixReuse, StepBatch, StepOutput,
};
use shimmy_runtime::kv::KvPool;
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::plan::{OutputKind, Plan};

use super::deterministic::bits;
use super::prefix::Ids;
use crate::support;

const NUM_TOKENS: usize = 10;

/// An executor that hands out whole rows, whatever it is asked.
struct Whole(Box<dyn Executor>);

impl Executor for Whole {
    fn name(&self) -> &'static str {
        self.0.name()
    }

    fn limits(&self) -> Limits {
        self.0.limits()
    }

    fn kv_types(&self) -> KvTypes {
        self.0.kv_types()
    }

    fn prefix_reuse(&self) -> PrefixReuse {
        self.0.prefix_reuse()
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> shimmy_runtime::Result<()> {
        self.0.copy_block(pool, from, to)
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.0.block_bytes(pool)
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> shimmy_runtime::Result<()> {
        self.0.read_block(pool, block, into)
    }

    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> shimmy_runtime::Result<()> {
        self.0.write_block(pool, block, bytes)
    }

    fn step(&mut self, batch: &StepBatch) -> shimmy_runtime::Result<StepOutput<'_>> {
        assert!(batch.tasks.rows.is_empty(), "it was asked for less than whole rows");
        self.0.step(batch)
    }
}

fn executor(plan: &Plan) -> Box<dyn Executor> {
    let options = ExecOptions {
        backend: Backend::Cuda,
        gpu: Device::Emulated.into(),
        max_context: Some(256),
        kv_size: KvSize::Tokens(1024),
        max_step_tokens: 128,
        ..ExecOptions::default()
    };
    exec::build(plan, &options).unwrap()
}

fn start(plan: &Plan, executor: Box<dyn Executor>) -> Engine {
    Engine::start("golden", executor, Arc::new(Ids(plan.vocab_size)), EngineOptions::default()).unwrap()
}

fn plan(path: &Path) -> Plan {
    shimmy_runtime::arch::load(&ModelFile::open(path).unwrap(), OutputKind::Logits).unwrap().1
}

fn request(seed: u32, vocab: u32, sampling: SamplingParams) -> GenerateRequest {
    let prompt = (0..20 + seed).map(|i| 3 + (i * i * 7 + i * seed) % (vocab - 3)).collect();
    let sampling = SamplingParams { seed: Some(u64::from(seed)), ..sampling };
    // Whoever is in the same steps.
    let (max_tokens, logprobs, numerics) = (Some(NUM_TOKENS), Some(3), Numerics::Invariant);
    GenerateRequest { max_tokens, sampling, ignore_eos: true, logprobs, numerics, ..GenerateRequest::new(prompt) }
}

#[test]
fn decided_requests_download_no_row_and_answer_as_with_whole_rows() {
    let Some(goldens) = support::goldens() else { return };
    let plain = SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, ..SamplingParams::default() };
    let decided = [
        ("greedy", SamplingParams { temperature: 0.0, ..plain.clone() }),
        ("the default chain", SamplingParams::default()),
        ("top-p", SamplingParams { top_p: 0.5, ..plain.clone() }),
        ("min-p", SamplingParams { min_p: 0.7, ..plain.clone() }),
        ("temperature", SamplingParams { temperature: 0.7, ..plain.clone() }),
    ];
    for name in ["llama-h256", "gemma2-swa"] {
        let plan = plan(&goldens.join("models").join(name));
        let vocab = plan.vocab_size as u32;
        let (kept, whole) = (start(&plan, executor(&plan)), start(&plan, Box::new(Whole(executor(&plan)))));
        let ask = |engine: &Engine| -> Vec<Answer> {
            let generations: Vec<_> = (1..)
                .zip(&decided)
                .map(|(seed, (_, sampling))| engine.submit(request(seed, vocab, sampling.clone())).unwrap())
                .collect();
            generations.into_iter().map(|generation| generation.collect_blocking().unwrap()).collect()
        };
        for ((what, _), (got, expected)) in decided.iter().zip(ask(&kept).iter().zip(&ask(&whole))) {
            assert_eq!(bits(got), bits(expected), "{name}: {what}");
        }
        assert_eq!(kept.stats().fetched_rows, 0, "{name}: rows were downloaded");
        // The counter counts: a penalty needs them all.
        let penalty = SamplingParams { presence_penalty: 0.5, ..plain.clone() };
        let [got, expected] =
            [&kept, &whole].map(|engine| engine.generate_blocking(request(9, vocab, penalty.clone())).unwrap());
        assert_eq!(bits(&got), bits(&expected), "{name}: a penalty");
        assert_eq!(kept.stats().fetched_rows, NUM_TOKENS as u64, "{name}");
    }
}
