//! What each type of the KV cache costs in accuracy, on a real model, and that both executors store the same.

use shimmy_runtime::exec::{
    self, Activations, Backend, Device, ExecOptions, KvSize, KvType, KvTypes, WeightMemory, WindowKv,
};
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
    let build = |backend, kv_types: KvTypes| {
        let options = ExecOptions {
            gpu: Device::Emulated.into(),
            backend,
            threads: Some(2),
            max_context: Some(tokens.len()),
            kv_size: KvSize::Tokens(tokens.len()),
            window_kv: WindowKv::All,
            max_step_tokens: 64,
            activations: Activations::F32,
            kv_types,
            weight_memory: WeightMemory::default(),
        };
        exec::build(&plan, &options).unwrap()
    };
    // Bounds of the mean KL from an f32 cache, in nats.
    let mut mean_kl = std::collections::HashMap::new();
    for (k, v, bound) in [
        (KvType::F32, KvType::F32, 1e-9),
        (KvType::F16, KvType::F16, 2e-6),
        (KvType::Q8_0, KvType::Q8_0, 1e-3),
        (KvType::Q8_0, KvType::Q4_0, 0.5),
        (KvType::Q4_0, KvType::F16, 0.5),
        (KvType::Q4_0, KvType::Q4_0, 0.5),
    ] {
        let kv_types = KvTypes { k, v };
        let mut tested = build(Backend::Cpu, kv_types);
        // A few rows and many: parts of a block, and whole ones.
        let piece = if k == KvType::Q8_0 { 7 } else { 64 };
        let mut exact = build(Backend::Cpu, KvType::F32.into());
        let error = divergence::compare(&mut *exact, &mut *tested, &tokens, piece).unwrap();
        println!("{kv_types} cache: {error:?}");
        assert!(error.mean_kl < bound, "{kv_types} cache: {error:?}");
        mean_kl.insert(kv_types.to_string(), error.mean_kl);
        // The same numbers are in both caches, but for a rare code that a last bit of a key or value decides.
        let mut tested = build(Backend::Cpu, kv_types);
        let tokens = &tokens[..64];
        let apart = divergence::compare(&mut *build(Backend::Candle, kv_types), &mut *tested, tokens, 32).unwrap();
        println!("{kv_types} cache, cpu from candle: {apart:?}");
        assert!(apart.mean_kl < bound, "{kv_types} cache, cpu from candle: {apart:?}");
    }
    // Each half of a pair counts: few bits for keys alone or values alone cost less than for both.
    assert!(mean_kl["q8_0"] < mean_kl["q8_0,q4_0"] && mean_kl["q8_0,q4_0"] < mean_kl["q4_0"], "{mean_kl:?}");
    assert!(mean_kl["q8_0"] < mean_kl["q4_0,f16"] && mean_kl["q4_0,f16"] < mean_kl["q4_0"], "{mean_kl:?}");
}
