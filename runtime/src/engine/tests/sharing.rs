//! What generations share: cached prompts, the prompt of several answers, turns, and steps with guesses.

use std::num::NonZeroUsize;

use super::*;

#[test]
fn a_growing_chat_reuses_all_but_its_new_turn() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let mut history = prompt(1, 70);
    let mut cached = Vec::new();
    for turn in 0..3 {
        let answer = engine.generate_blocking(fixed(&history, 40)).unwrap();
        assert_eq!(ids(&answer), greedy_reference(&history, 40), "turn {turn}");
        cached.push((answer.usage.cached_tokens, answer.usage.cache_miss));
        history.extend(ids(&answer));
        history.extend(prompt(100 + turn, 5));
    }
    // 109 tokens are computed in the first turn, 154 in the second: the answers' too.
    assert_eq!(cached, [(0, Some(PrefixMiss::NoMatch)), (96, None), (128, None)]);
    assert_all_free(&engine);
    let stats = engine.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (70 + 115 + 160, 96 + 128));
    assert!(stats.cached_blocks > 0 && stats.free_blocks == stats.total_blocks);
}

#[test]
fn whoever_skips_the_cache_neither_takes_nor_leaves() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let skipping = GenerateRequest { prompt_cache: PromptCache::Skip, ..fixed(&prompt(1, 70), 3) };
    let usage = |request: &GenerateRequest| {
        let Usage { cached_tokens, cache_miss, .. } = engine.generate_blocking(request.clone()).unwrap().usage;
        (cached_tokens, cache_miss)
    };
    assert_eq!(usage(&skipping), (0, Some(PrefixMiss::Disabled)));
    assert_eq!(engine.stats().cached_blocks, 0);
    assert_eq!(usage(&fixed(&prompt(1, 70), 3)), (0, Some(PrefixMiss::NoMatch)));
    assert_eq!(usage(&skipping), (0, Some(PrefixMiss::Disabled)));
    assert_eq!(usage(&fixed(&prompt(1, 70), 3)), (64, None));

    let options = EngineOptions { prefix_cache: PrefixCache::Off, ..EngineOptions::default() };
    let engine = start_with(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE), options);
    for _ in 0..2 {
        let answer = engine.generate_blocking(fixed(&prompt(1, 70), 3)).unwrap();
        assert_eq!((answer.usage.cached_tokens, answer.usage.cache_miss), (0, Some(PrefixMiss::Disabled)));
    }
}

#[test]
fn a_preempted_generation_finds_what_is_left_of_its_own_blocks() {
    let computed = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&computed);
    let limits = Limits { num_kv_blocks: 7, ..LIMITS };
    let executor = TestExecutor::hashing(limits, ByteVocabulary::SIZE).with_hook(move |_, batch| {
        count.fetch_add(batch.tokens.len() as u64, Ordering::Relaxed);
        Ok(())
    });
    let engine = start(executor);
    let generations = [1, 2].map(|seed| engine.submit(fixed(&prompt(seed, 90), 60)).unwrap());
    for (seed, generation) in [1, 2].into_iter().zip(generations) {
        assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt(seed, 90), 60));
    }
    assert!(engine.stats().preemptions > 0, "the test must preempt");
    // Each computes 149 tokens; what was computed again is less than a whole prompt.
    let again = computed.load(Ordering::Relaxed) - 2 * 149;
    assert!(again < 64, "{again} tokens computed again");
    assert_all_free(&engine);
}

/// All answers of a group, for tests without async code.
pub(super) fn collect(group: GenerationGroup) -> Result<Vec<Answer>> {
    tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(group.collect())
}

pub(super) fn answers(num: usize) -> NonZeroUsize {
    NonZeroUsize::new(num).unwrap()
}

/// Draws from all tokens: answers with different seeds differ.
pub(super) fn drawn(prompt: &[u32], seed: u64) -> GenerateRequest {
    let sampling =
        SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed: Some(seed), ..Default::default() };
    GenerateRequest { sampling, ..fixed(prompt, 40) }
}

#[test]
fn several_answers_are_those_of_their_seeds_and_compute_the_prompt_once() {
    // Prompts that fill their last block and that don't; places for all answers, for two, and blocks for some.
    for (len, max_running, num_kv_blocks) in [(64, 8, 128), (75, 8, 128), (75, 2, 128), (75, 8, 8), (1, 1, 128)] {
        let computed = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&computed);
        let limits = Limits { num_kv_blocks, ..LIMITS };
        let executor = TestExecutor::hashing(limits, ByteVocabulary::SIZE).with_hook(move |_, batch| {
            count.fetch_add(batch.tokens.len() as u64, Ordering::Relaxed);
            Ok(())
        });
        let engine = start_with(executor, EngineOptions { max_running, ..EngineOptions::default() });
        let prompt = prompt(3, len);
        let group = collect(engine.submit_group(drawn(&prompt, 100), answers(4)).unwrap()).unwrap();
        assert_all_free(&engine);
        let stats = engine.stats();
        assert_eq!((stats.completed, stats.prompt_tokens), (4, len as u64));
        if num_kv_blocks == 128 && max_running == 8 {
            assert_eq!(computed.load(Ordering::Relaxed), len as u64 + 4 * 39, "prompt of {len}");
        }
        for (seed, answer) in (100..).zip(&group) {
            let alone = engine.generate_blocking(drawn(&prompt, seed)).unwrap();
            assert_eq!((ids(answer), answer.seed), (ids(&alone), seed), "prompt of {len}, {max_running} at once");
        }
        assert_ne!(ids(&group[0]), ids(&group[1]));
    }
}

#[test]
fn an_answer_outlives_the_first_of_its_group() {
    let (executor, gate) = gated(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let engine = start(executor);
    // Three steps for the prompt: the first answer is dropped before the others can fork from it.
    let group = engine.submit_group(drawn(&prompt(3, 150), 5), answers(3)).unwrap();
    let [first, second, third] = group.into_members().try_into().unwrap();
    gate.send(()).unwrap();
    wait_until("the prompt has begun", || engine.stats().steps == 1);
    drop((first, third));
    drop(gate);
    let second = second.collect_blocking().unwrap();
    assert_eq!(ids(&second), ids(&engine.generate_blocking(drawn(&prompt(3, 150), 6)).unwrap()));
    assert_all_free(&engine);
    assert_eq!((engine.stats().cancelled, engine.stats().completed), (2, 2));
}

#[test]
fn a_group_takes_as_many_places_of_the_queue_as_it_has_answers() {
    let (executor, gate) = gated(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let engine = start_with(executor, EngineOptions { queue: 4, ..EngineOptions::default() });
    assert!(matches!(engine.submit_group(fixed(&[1], 2), answers(5)), Err(Error::Overloaded { .. })));
    let group = engine.submit_group(fixed(&[1], 2), answers(4)).unwrap();
    drop(gate);
    assert_eq!(collect(group).unwrap().len(), 4);
    assert_all_free(&engine);
    assert_eq!(collect(engine.submit_group(fixed(&[1], 2), answers(4)).unwrap()).unwrap().len(), 4);
}

#[test]
fn a_client_with_many_requests_lets_others_take_turns() {
    let (gate, permits) = mpsc::channel::<()>();
    let order = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&order);
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE).with_hook(move |_, batch| {
        let _ = permits.recv();
        log.lock().unwrap().push(batch.tokens[0]);
        Ok(())
    });
    let engine = start_with(executor, EngineOptions { max_running: 1, ..EngineOptions::default() });
    let submit = |token: u32, client: u64, priority: i32| {
        let class = Class { priority, client };
        engine.submit(GenerateRequest { class, ..fixed(&[token], 1) }).unwrap()
    };
    let mut generations = vec![submit(0, 7, 0)];
    wait_until("the first runs", || engine.stats().queued == 0);
    generations.extend(
        [(1, 7, 0), (2, 7, 0), (3, 7, 0), (4, 8, 0), (5, 8, 0), (6, 9, 1), (7, 7, -1)]
            .map(|(token, client, priority)| submit(token, client, priority)),
    );
    drop(gate);
    for generation in generations {
        generation.collect_blocking().unwrap();
    }
    assert_eq!(*order.lock().unwrap(), [0, 7, 1, 4, 2, 5, 3, 6]);
}

#[test]
fn a_deadline_ends_what_runs_and_what_waits() {
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE).with_hook(|_, _| {
        std::thread::sleep(Duration::from_millis(2));
        Ok(())
    });
    let engine = start_with(executor, EngineOptions { max_running: 1, ..EngineOptions::default() });
    let within = |ms| GenerateRequest { deadline: Some(Duration::from_millis(ms)), ..fixed(&prompt(1, 40), 1500) };
    let (running, waiting) = (engine.submit(within(60)).unwrap(), engine.submit(within(30)).unwrap());
    let untouched = engine.submit(fixed(&[1], 3)).unwrap();
    match waiting.collect_blocking() {
        Err(Error::DeadlineExceeded { deadline_ms: 30, completion_tokens: 0 }) => {}
        other => panic!("{other:?}"),
    }
    match running.collect_blocking() {
        Err(Error::DeadlineExceeded { deadline_ms: 60, completion_tokens: 1.. }) => {}
        other => panic!("{other:?}"),
    }
    untouched.collect_blocking().unwrap();
    assert_all_free(&engine);
    assert_eq!((engine.stats().failed, engine.stats().completed), (2, 1));
}

#[test]
fn an_engine_that_panics_leaves_others_running() {
    let broken = start(TestExecutor::spelling("x", LIMITS).with_hook(|_, _| panic!("a broken device")));
    let (executor, gate) = gated(TestExecutor::spelling("still here", LIMITS));
    let sound = start(executor);
    let generation = sound.submit(say("x")).unwrap();
    assert!(matches!(broken.generate_blocking(say("x")), Err(Error::EngineStopped(_))));
    drop(gate);
    assert_eq!(generation.collect_blocking().unwrap().text, "still here");
}

#[test]
fn guesses_save_steps_and_change_nothing() {
    let limits = Limits { max_step_tokens: 40, ..LIMITS };
    // A text that repeats itself for a while, and then another one.
    let next = |tokens: &[u32]| {
        let period = 5 + tokens.len() as u32 / 60;
        97 + tokens.len() as u32 % period
    };
    let run = |speculation: Option<Speculation>| {
        let options = EngineOptions { max_running: 2, guess_policy: GuessPolicy::Always, ..EngineOptions::default() };
        let engine = start_with(TestExecutor::continuing(next, ByteVocabulary::SIZE, limits), options);
        let request = GenerateRequest { speculation, ..fixed(&prompt(1, 3), 300) };
        let answer = engine.generate_blocking(request).unwrap();
        assert_all_free(&engine);
        (ids(&answer), answer.usage.completion_tokens, engine.stats())
    };
    let (plain, _, plain_stats) = run(None);
    let (guessed, num_tokens, stats) = run(Some(Speculation::Ngram));
    assert_eq!(plain, guessed);
    assert_eq!(num_tokens, 300, "guesses don't go beyond the budget");
    assert_eq!((plain_stats.ngram.computed, plain_stats.steps), (0, 300));
    assert_eq!(stats.steps + stats.ngram.accepted, 300);
    assert!(stats.steps < 150 && stats.ngram.computed > stats.ngram.accepted, "{stats:?}");
}

/// Two likely tokens after each one, so that endings recur and guesses are right half of the time.
fn coin(_: &StepBatch, width: usize, data: &mut [f32]) {
    for row in data.chunks_mut(width) {
        let best = (0..width).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
        for (id, logit) in row.iter_mut().enumerate() {
            *logit = if id == best || id == 100 { 9.0 } else { -9.0 };
        }
    }
}

#[test]
fn drawn_answers_are_the_same_with_guesses() {
    let run = |speculation: Speculation| {
        let next = |tokens: &[u32]| 97 + (tokens[tokens.len() - 1] + 1) % 3;
        let executor = Altered::new(TestExecutor::continuing(next, ByteVocabulary::SIZE, LIMITS), coin);
        let guess_policy = GuessPolicy::Always;
        let options = EngineOptions { max_running: 4, speculation, guess_policy, ..EngineOptions::default() };
        let engine = start_with(executor, options);
        let generations: Vec<_> = (0..3).map(|seed| engine.submit(drawn(&[97, 98], seed)).unwrap()).collect();
        let all: Vec<_> =
            generations.into_iter().map(|generation| ids(&generation.collect_blocking().unwrap())).collect();
        assert_all_free(&engine);
        (all, engine.stats())
    };
    let ((plain, _), (guessed, stats)) = (run(Speculation::Off), run(Speculation::Ngram));
    assert_eq!(plain, guessed);
    assert!(0 < stats.ngram.accepted && stats.ngram.accepted < stats.ngram.computed, "{stats:?}");
}
