//! What a token costs after the logits are there: each path of the sampler over real vocabulary sizes.
//!
//! A step of a small model takes milliseconds, and every sequence of the batch is sampled in it, so a path must stay in
//! the tens of microseconds. Throughput is in logits.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use shimmy_runtime::engine::SamplingParams;
use shimmy_runtime::sample::{Sampler, Scratch, logprobs};

/// Roughly what language models put out: a bell of unlikely tokens and a few likely ones.
fn row(vocab_size: usize) -> Vec<f32> {
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32
    };
    let mut row: Vec<f32> = (0..vocab_size).map(|_| (0..6).map(|_| uniform()).sum::<f32>() * 2.0 - 6.0).collect();
    for likely in 0..20 {
        row[(likely * 7919 + 101) % vocab_size] = 16.0 - likely as f32 * 0.4;
    }
    row
}

fn sampling(c: &mut Criterion) {
    let off =
        SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 0.8, seed: Some(1), ..Default::default() };
    let paths = [
        ("greedy", SamplingParams { temperature: 0.0, ..off.clone() }),
        ("server defaults", SamplingParams { seed: Some(1), ..Default::default() }),
        ("defaults, repeat penalty", SamplingParams { repeat_penalty: 1.1, seed: Some(1), ..Default::default() }),
        ("top_p 0.95 alone", SamplingParams { top_p: 0.95, ..off.clone() }),
        ("min_p 0.05 alone", SamplingParams { min_p: 0.05, ..off.clone() }),
        ("nothing cut", off),
    ];
    let history: Vec<u32> = (0..500).collect();
    for vocab_size in [49_152, 262_144] {
        let row = row(vocab_size);
        let mut group = c.benchmark_group(format!("sample {vocab_size}"));
        group.throughput(Throughput::Elements(vocab_size as u64));
        let mut scratch = Scratch::default();
        for (name, params) in &paths {
            let mut sampler = Sampler::new(params.clone());
            let token = sampler.sample(&row, &history, &mut scratch);
            assert!(token.is_ok_and(|id| row[id as usize] > 3.0), "{name} must draw a likely token of this row");
            group.bench_function(BenchmarkId::from_parameter(name), |b| {
                b.iter(|| sampler.sample(black_box(&row), &history, &mut scratch));
            });
        }
        // Without the likely tokens: the share needs a good part of the vocabulary.
        let flat: Vec<f32> = row.iter().map(|&logit| logit.min(6.0)).collect();
        let mut sampler = Sampler::new(paths[3].1.clone());
        group.bench_function(BenchmarkId::from_parameter("top_p 0.95 alone, flat"), |b| {
            b.iter(|| sampler.sample(black_box(&flat), &history, &mut scratch));
        });
        group.bench_function(BenchmarkId::from_parameter("logprobs, 5 alternatives"), |b| {
            b.iter(|| logprobs(black_box(&row), 101, 5, &mut scratch));
        });
        group.finish();
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20).warm_up_time(std::time::Duration::from_millis(300))
        .measurement_time(std::time::Duration::from_secs(1));
    targets = sampling
}
criterion_main!(benches);
