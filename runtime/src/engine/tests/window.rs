//! Generations on an executor with a pool of its own for layers with a window. The test executor refuses a step that would
//! see what has left it, or what another text has written there.

use super::sharing::{answers, collect, drawn};
use super::*;
use crate::kv::{KvWindow, NO_BLOCK};

/// A window of 50 tokens; steps have at most 64: a sequence needs five blocks at most.
fn limits(num_kv_blocks: usize, num_blocks: usize) -> Limits {
    Limits { num_kv_blocks, window: Some(KvWindow { num_tokens: 50, num_blocks }), ..LIMITS }
}

/// Most blocks of the window's pool that a piece of any step held.
fn watched(limits: Limits) -> (TestExecutor, Arc<AtomicU64>) {
    let most = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&most);
    let executor = TestExecutor::hashing(limits, ByteVocabulary::SIZE).with_hook(move |_, batch| {
        for seq in &batch.seqs {
            let table = &batch.window_blocks[seq.blocks.clone()];
            let held = table.iter().filter(|&&block| block != NO_BLOCK).count();
            seen.fetch_max(held as u64, Ordering::Relaxed);
        }
        Ok(())
    });
    (executor, most)
}

#[test]
fn a_long_text_holds_no_more_than_its_window() {
    let (executor, most) = watched(limits(60, 5));
    let engine = start(executor);
    let answer = engine.generate_blocking(fixed(&prompt(1, 300), 1500)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt(1, 300), 1500));
    assert_eq!(most.load(Ordering::Relaxed), 5);
    let stats = engine.stats();
    assert_eq!((stats.total_blocks, stats.total_window_blocks, stats.preemptions), (60, 5, 0));
    assert_all_free(&engine);
    let stats = engine.stats();
    assert!(stats.cached_window_blocks > 0 && stats.cached_window_blocks <= 5, "{stats:?}");
}

#[test]
fn many_share_a_small_window_pool() {
    let (executor, most) = watched(limits(100, 9));
    let engine = start(executor);
    let generations: Vec<_> =
        (0..12).map(|seed| (seed, engine.submit(fixed(&prompt(seed % 9, 10), 150)).unwrap())).collect();
    for (seed, generation) in generations {
        let answer = generation.collect_blocking().unwrap();
        assert_eq!(ids(&answer), greedy_reference(&prompt(seed % 9, 10), 150), "{seed}");
    }
    assert!(engine.stats().preemptions > 0, "the test must preempt");
    assert!(most.load(Ordering::Relaxed) <= 5);
    assert_all_free(&engine);
}

#[test]
fn a_chat_goes_on_from_its_end_and_says_when_the_window_is_gone() {
    let engine = start(watched(limits(100, 8)).0);
    let mut history = prompt(1, 70);
    let mut usage = Vec::new();
    for turn in 0..4 {
        let answer = engine.generate_blocking(fixed(&history, 40)).unwrap();
        assert_eq!(ids(&answer), greedy_reference(&history, 40), "turn {turn}");
        usage.push((answer.usage.cached_tokens, answer.usage.cache_miss));
        history.extend(ids(&answer));
        history.extend(prompt(100 + turn, 5));
        if turn == 2 {
            // Another text takes the window's pool, and hardly any of the other one.
            engine.generate_blocking(fixed(&prompt(9, 250), 10)).unwrap();
        }
    }
    let none = (0, Some(PrefixMiss::NoMatch));
    assert_eq!(usage[..3], [none, (96, None), (128, None)], "the same as without a window");
    assert_eq!(usage[3], (0, Some(PrefixMiss::Evicted)));
}

#[test]
fn several_answers_share_a_prompts_window() {
    for num_blocks in [7, 40] {
        let engine = start(watched(limits(128, num_blocks)).0);
        for len in [64, 75, 200] {
            let prompt = prompt(3, len);
            let group = collect(engine.submit_group(drawn(&prompt, 100), answers(4)).unwrap()).unwrap();
            for (seed, answer) in (100..).zip(&group) {
                let alone = engine.generate_blocking(drawn(&prompt, seed)).unwrap();
                assert_eq!(ids(answer), ids(&alone), "prompt of {len}, {num_blocks} blocks");
            }
        }
        assert_all_free(&engine);
    }
}
