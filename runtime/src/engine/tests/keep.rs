//! Computed prompts that outlive their engine.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::engine::SharedStore;
use crate::kv::{BlockStore, KvWindow};

/// Bytes of a block of the test executor.
fn block_bytes() -> usize {
    kept_bytes(&TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE))
}

fn start_keeping(limits: Limits, store: &SharedStore) -> Engine {
    let executor = TestExecutor::hashing(limits, ByteVocabulary::SIZE);
    let companions = Companions { store: Some(store.clone()), draft: None };
    let options = EngineOptions::default();
    Engine::start_with("test", Box::new(executor), companions, Arc::new(ByteVocabulary), options).unwrap()
}

fn in_file(path: &Path) -> SharedStore {
    SharedStore::new(BlockStore::open(path, &[0; 32], block_bytes(), 1 << 20).unwrap())
}

fn stop(engine: Engine) {
    engine.shutdown();
    assert!(engine.wait_stopped(Duration::from_secs(20)));
}

/// Generates 5 tokens after a prompt of 100, checks them, and says how many tokens were cached.
fn cached(engine: &Engine, id: u32) -> usize {
    let prompt = prompt(id, 100);
    let answer = engine.generate_blocking(fixed(&prompt, 5)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt, 5));
    answer.usage.cached_tokens
}

#[test]
fn a_new_engine_finds_what_the_last_one_computed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocks.kv");
    for in_memory in [true, false] {
        let open =
            || if in_memory { SharedStore::new(BlockStore::memory(block_bytes(), 1 << 20)) } else { in_file(&path) };
        let mut store = open();
        let engine = start_keeping(LIMITS, &store);
        assert_eq!((cached(&engine, 1), cached(&engine, 2), cached(&engine, 1)), (0, 0, 96));
        assert_eq!(engine.stats().recalled_tokens, 0);
        stop(engine);
        if !in_memory {
            drop(store);
            store = open();
        }
        assert_eq!(store.lock().len(), 6);
        let engine = start_keeping(LIMITS, &store);
        assert_eq!((cached(&engine, 2), cached(&engine, 3), cached(&engine, 1), cached(&engine, 2)), (96, 0, 96, 96));
        let stats = engine.stats();
        assert_eq!((stats.recalled_tokens, stats.prefix_hits), (2 * 96, 3 * 96));
        assert_all_free(&engine);
        stop(engine);
    }
}

#[test]
fn a_file_has_what_the_pool_has_no_room_for() {
    let folder = tempfile::tempdir().unwrap();
    let store = in_file(&folder.path().join("blocks.kv"));
    // Room for one sequence of 4 blocks.
    let engine = start_keeping(Limits { num_kv_blocks: 4, ..LIMITS }, &store);
    for id in 0..5 {
        assert_eq!(cached(&engine, id), 0);
    }
    store.lock().flush();
    for id in 0..5 {
        assert_eq!(cached(&engine, id), 96);
    }
    assert!(engine.stats().recalled_tokens >= 4 * 96);
}

#[test]
fn layers_with_a_window_come_back_with_the_others() {
    let window = Some(KvWindow { num_tokens: 50, num_blocks: 20 });
    let folder = tempfile::tempdir().unwrap();
    let limits = Limits { window, ..LIMITS };
    let bytes = kept_bytes(&TestExecutor::hashing(limits, ByteVocabulary::SIZE));
    assert_eq!(bytes, 2 * block_bytes());
    let path = folder.path().join("blocks.kv");
    for in_memory in [true, false] {
        let open = || match in_memory {
            true => BlockStore::memory(bytes, 1 << 20),
            false => BlockStore::open(&path, &[0; 32], bytes, 1 << 20).unwrap(),
        };
        let mut store = SharedStore::new(open());
        let engine = start_keeping(limits, &store);
        // 300 tokens: most of their windows are gone from the pool when the next one is computed.
        let long = prompt(9, 300);
        let ask = |engine: &Engine, len: usize| {
            let answer = engine.generate_blocking(fixed(&long[..len], 5)).unwrap();
            assert_eq!(ids(&answer), greedy_reference(&long[..len], 5), "{len} tokens");
            answer.usage.cached_tokens
        };
        assert_eq!(ask(&engine, 300), 0);
        assert_eq!(cached(&engine, 1), 0);
        stop(engine);
        if !in_memory {
            drop(store);
            store = SharedStore::new(open());
        }
        let engine = start_keeping(limits, &store);
        assert_eq!((cached(&engine, 1), ask(&engine, 300)), (96, 288));
        if !in_memory {
            assert_eq!(ask(&start_keeping(limits, &store), 150), 128, "a place in the middle, by another engine");
        }
        assert_all_free(&engine);
        stop(engine);
    }
}

#[test]
fn a_crash_keeps_what_was_computed_before() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("blocks.kv");
    let store = in_file(&path);
    let engine = start_keeping(LIMITS, &store);
    assert_eq!(cached(&engine, 1), 0);
    engine.abort();
    assert!(engine.wait_stopped(Duration::from_secs(20)));
    drop((engine, store));
    assert_eq!(cached(&start_keeping(LIMITS, &in_file(&path)), 1), 96);
}

#[test]
fn a_store_of_other_blocks_is_refused() {
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE);
    let store = SharedStore::new(BlockStore::memory(block_bytes() + 64, 1 << 20));
    let companions = Companions { store: Some(store), draft: None };
    let options = EngineOptions::default();
    let error = Engine::start_with("test", Box::new(executor), companions, Arc::new(ByteVocabulary), options);
    assert!(error.unwrap_err().to_string().contains("blocks of"));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 30, ..ProptestConfig::default() })]

    #[test]
    fn random_lives_never_change_an_answer(
        lives in prop::collection::vec(prop::collection::vec((0..6_u32, 1..150_usize, 1..40_usize), 1..8), 1..5),
        num_kv_blocks in 8..40_usize,
        num_window_blocks in prop::option::of(12..40_usize),
        max_kept in 1..30_usize,
        damage in prop::collection::vec(4096..40_000_usize, 0..4),
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("blocks.kv");
        for life in lives {
            if let Ok(mut bytes) = std::fs::read(&path) {
                for &at in &damage {
                    if let Some(byte) = bytes.get_mut(at) {
                        *byte ^= 0x55;
                    }
                }
                std::fs::write(&path, bytes).unwrap();
            }
            let window = num_window_blocks.map(|num_blocks| KvWindow { num_tokens: 50, num_blocks });
            let limits = Limits { num_kv_blocks, window, ..LIMITS };
            let bytes = kept_bytes(&TestExecutor::hashing(limits, ByteVocabulary::SIZE));
            let store = BlockStore::open(&path, &[0; 32], bytes, max_kept * 1280).unwrap();
            let engine = start_keeping(limits, &SharedStore::new(store));
            let requests: Vec<_> = life.iter().map(|&(id, len, max)| (prompt(id, len), max)).collect();
            let running: Vec<_> =
                requests.iter().map(|(prompt, max)| engine.submit(fixed(prompt, *max)).unwrap()).collect();
            for (generation, (prompt, max)) in running.into_iter().zip(&requests) {
                let answer = generation.collect_blocking().unwrap();
                prop_assert_eq!(ids(&answer), greedy_reference(prompt, *max));
            }
            stop(engine);
        }
    }
}
