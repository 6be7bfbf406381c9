//! What each type of the KV cache costs in accuracy, on a real model, and that both executors store the same.

use shimmy_runtime::exec::{self, Activations, Backend, ExecOptions, KvSize, KvType};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::measure::divergence;
use shimmy_runtime::plan::OutputKind;

use crate::support;

#[test]
fn every_type_of_the_cache_stays_within_its_error() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let file = ModelFile::open(&model).unwrap();
    let (_, plan) = shimmy_runtime::arch::load(&file, OutputKind::Logits).unwrap();
    let tokens: Vec<u32> = (0..160).map(|i: u32| 1000 + i * i * 31 % 20_000).collect();
    let build = |backend, kv_type| {
        let options = ExecOptions {
            backend,
            threads: Some(2),
            max_context: Some(tokens.len()),
            kv_size: KvSize::Tokens(tokens.len()),
            max_step_tokens: 64,
            activations: Activations::F32,
            kv_type,
        };
        exec::build(&plan, &options).unwrap()
    };
    // Bounds of the mean KL from an f32 cache, in nats.
    for (kv_type, bound) in [(KvType::F32, 1e-9), (KvType::F16, 2e-6), (KvType::Q8_0, 1e-3), (KvType::Q4_0, 0.5)] {
        let mut tested = build(Backend::Cpu, kv_type);
        // A few rows and many: parts of a block, and whole ones.
        let piece = if kv_type == KvType::Q8_0 { 7 } else { 64 };
        let error = divergence::compare(&mut *build(Backend::Cpu, KvType::F32), &mut *tested, &tokens, piece).unwrap();
        println!("{} cache: {error:?}", kv_type.name());
        assert!(error.mean_kl < bound, "{} cache: {error:?}", kv_type.name());
        // The same numbers are in both caches, but for a rare code that a last bit of a key or value decides.
        let mut tested = build(Backend::Cpu, kv_type);
        let tokens = &tokens[..64];
        let apart = divergence::compare(&mut *build(Backend::Candle, kv_type), &mut *tested, tokens, 32).unwrap();
        println!("{} cache, cpu from candle: {apart:?}", kv_type.name());
        assert!(apart.mean_kl < bound, "{} cache, cpu from candle: {apart:?}", kv_type.name());
    }
}
