//! Generations with a draft model: whatever it guesses, whatever becomes of it, answers are those without.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use super::*;

const SIZE: usize = ByteVocabulary::SIZE;

/// Guesses that don't depend on the clock, in the rows that eight running generations leave.
fn options(speculation: Speculation) -> EngineOptions {
    let guess_policy = GuessPolicy::Always;
    EngineOptions { speculation, guess_policy, draft_tokens: 5, max_running: 8, ..EngineOptions::default() }
}

fn start_drafting(executor: impl Executor + 'static, draft: impl Executor + 'static) -> Engine {
    start_drafting_with(executor, draft, options(Speculation::Draft))
}

fn start_drafting_with(
    executor: impl Executor + 'static,
    draft: impl Executor + 'static,
    options: EngineOptions,
) -> Engine {
    let draft = DraftExecutor { executor: Box::new(draft), vocab_size: SIZE };
    let companions = Companions { draft: Some(draft), store: None };
    Engine::start_with("test", Box::new(executor), companions, Arc::new(ByteVocabulary), options).unwrap()
}

fn hashing() -> TestExecutor {
    TestExecutor::hashing(LIMITS, SIZE)
}

fn best(logits: impl Iterator<Item = f32>) -> u32 {
    let logits: Vec<f32> = logits.collect();
    (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap() as u32
}

/// Finds what `hashing` does wherever `is_right` says so of the length of the text, and else another token.
fn finding(is_right: impl Fn(usize) -> bool + Send + 'static) -> TestExecutor {
    let next = move |tokens: &[u32]| {
        let right = best(hash_logits(tokens, SIZE));
        if is_right(tokens.len()) { right } else { (right + 1) % 200 }
    };
    TestExecutor::continuing(next, SIZE, LIMITS)
}

fn long(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(max_tokens), ignore_eos: true, logprobs: Some(0), ..request(prompt) }
}

fn assert_nothing_left(engine: &Engine) {
    assert_all_free(engine);
    wait_until("the draft's blocks are free", || engine.stats().draft_blocks == 0);
}

#[test]
fn a_draft_that_is_always_right_gives_six_tokens_a_step() {
    let engine = start_drafting(hashing(), hashing());
    let prompt = prompt(1, 3 * BLOCK_TOKENS);
    let answer = engine.generate_blocking(long(&prompt, 100)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt, 100));
    assert_nothing_left(&engine);
    let stats = engine.stats();
    let Guesses { steps, computed, accepted } = stats.draft;
    assert_eq!((computed, accepted), (accepted, 100 - stats.steps + 1));
    assert!(accepted > 75 && steps <= 17 && stats.ngram == Guesses::default(), "{stats:?}");
    assert_eq!((answer.usage.guessed_tokens as u64, answer.usage.accepted_tokens as u64), (computed, accepted));
}

#[test]
fn a_draft_that_is_always_wrong_changes_nothing() {
    let engine = start_drafting(hashing(), finding(|_| false));
    let answer = engine.generate_blocking(long(&prompt(2, 40), 60)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt(2, 40), 60));
    assert_nothing_left(&engine);
    let stats = engine.stats();
    assert!(stats.draft.accepted == 0 && stats.draft.computed > 200, "{stats:?}");
}

#[test]
fn a_draft_that_is_right_half_of_the_time_helps_by_half() {
    let engine = start_drafting(hashing(), finding(|len| len % 4 < 2));
    let answer = engine.generate_blocking(long(&prompt(3, 41), 80)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt(3, 41), 80));
    assert_nothing_left(&engine);
    let Guesses { computed, accepted, .. } = engine.stats().draft;
    assert!(30 < accepted && accepted < computed, "{accepted} of {computed}");
}

/// All together, drawn with seeds, with penalties, several answers to one prompt, long prompts in pieces.
#[test]
fn drawn_answers_are_those_without_a_draft() {
    let run = |speculation: Speculation, draft: TestExecutor| {
        let limits = Limits { max_step_tokens: 40, ..LIMITS };
        let engine = start_drafting_with(TestExecutor::hashing(limits, SIZE), draft, options(speculation));
        let with = |seed: u32, prompt: &[u32], numerics| {
            let sampling = SamplingParams {
                seed: Some(u64::from(seed)),
                // Of pseudo-random logits only the first few are likely enough for a draft to be right now and then.
                top_k: 2,
                repeat_penalty: 1.1,
                frequency_penalty: 0.1,
                ..SamplingParams::default()
            };
            GenerateRequest { sampling, numerics, ..long(prompt, 50) }
        };
        let groups: Vec<_> = (0..4)
            .map(|seed| {
                let numerics = if seed == 3 { Numerics::Invariant } else { Numerics::Fast };
                let request = with(seed, &prompt(seed, 30 + 50 * seed as usize), numerics);
                engine.submit_group(request, NonZeroUsize::new(1 + seed as usize % 3).unwrap()).unwrap()
            })
            .collect();
        let answers: Vec<Vec<u32>> = groups
            .into_iter()
            .flat_map(GenerationGroup::into_members)
            .map(|generation| ids(&generation.collect_blocking().unwrap()))
            .collect();
        assert_nothing_left(&engine);
        (answers, engine.stats())
    };
    let (plain, _) = run(Speculation::Off, hashing());
    for draft in [hashing(), finding(|_| false), finding(|len| len % 3 > 0)] {
        let (drafted, stats) = run(Speculation::Draft, draft);
        assert_eq!(plain, drafted);
        assert!(stats.draft.computed > stats.draft.accepted, "{stats:?}");
    }
}

#[test]
fn a_request_says_who_guesses() {
    let engine = start_drafting_with(hashing(), hashing(), options(Speculation::Off));
    let speculate = |speculation| {
        let before = engine.stats();
        let request = GenerateRequest { speculation, ..long(&prompt(4, 20), 30) };
        assert_eq!(ids(&engine.generate_blocking(request).unwrap()), greedy_reference(&prompt(4, 20), 30));
        assert_nothing_left(&engine);
        engine.stats().draft.accepted - before.draft.accepted
    };
    assert_eq!((speculate(None), speculate(Some(Speculation::Ngram))), (0, 0));
    assert!(speculate(Some(Speculation::Draft)) > 20);

    let without = start_with(hashing(), options(Speculation::Off));
    let error = without.submit(GenerateRequest { speculation: Some(Speculation::Draft), ..request(&[1]) }).unwrap_err();
    assert!(matches!(error, Error::InvalidRequest { param: "speculate", .. }), "{error}");
    assert!(error.to_string().contains("--draft-model"), "{error}");
}

/// Whatever ends the draft in its eighth step, answers go on.
fn assert_survives(fail: impl Fn() -> Result<()> + Send + 'static) {
    let draft = hashing().with_hook(move |step, _| if step == 7 { fail() } else { Ok(()) });
    let engine = start_drafting(hashing(), draft);
    for seed in 0..2 {
        let answer = engine.generate_blocking(long(&prompt(seed, 20), 60)).unwrap();
        assert_eq!(ids(&answer), greedy_reference(&prompt(seed, 20), 60));
    }
    assert_nothing_left(&engine);
    let stats = engine.stats();
    assert!(stats.failed == 0 && stats.draft.accepted > 0 && stats.draft.accepted < 12, "{stats:?}");
}

#[test]
fn answers_go_on_when_the_drafts_step_fails() {
    assert_survives(|| Err(Error::Unsupported("a broken device".into())));
}

#[test]
fn answers_go_on_when_the_drafts_step_panics() {
    assert_survives(|| panic!("an index out of bounds"));
}

/// Rows that can't be of the drafts' vocabulary, or of no number at all.
#[test]
fn rows_that_mean_nothing_are_guesses_that_fail() {
    let nonsense = Altered::new(hashing(), |_, _, data| data.fill(f32::NAN));
    let engine = start_drafting(hashing(), nonsense);
    let answer = engine.generate_blocking(long(&prompt(5, 20), 20)).unwrap();
    assert_eq!(ids(&answer), greedy_reference(&prompt(5, 20), 20));
    assert_nothing_left(&engine);
}

#[test]
fn a_draft_with_a_shorter_context_and_few_blocks_guesses_as_far_as_it_can() {
    let draft_limits = Limits { num_kv_blocks: 3, max_context: 2 * BLOCK_TOKENS, max_step_tokens: 7, ..LIMITS };
    let engine = start_drafting(hashing(), TestExecutor::hashing(draft_limits, SIZE));
    let generations: Vec<_> = (0..4).map(|seed| engine.submit(long(&prompt(seed, 30), 60)).unwrap()).collect();
    for (seed, generation) in (0..).zip(generations) {
        assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt(seed, 30), 60));
    }
    assert_nothing_left(&engine);
    let stats = engine.stats();
    assert!(stats.draft.accepted > 10 && stats.draft.accepted < 40 * 4, "{stats:?}");
}

#[test]
fn tokens_that_the_draft_does_not_know_end_its_guesses() {
    let draft = DraftExecutor { executor: Box::new(TestExecutor::hashing(LIMITS, 200)), vocab_size: 200 };
    let vocabulary = Arc::new(ByteVocabulary);
    let companions = Companions { draft: Some(draft), store: None };
    let options = options(Speculation::Draft);
    let engine = Engine::start_with("test", Box::new(hashing()), companions, vocabulary, options).unwrap();
    let prompt = [[1; 20], [250; 20]].concat();
    assert_eq!(ids(&engine.generate_blocking(long(&prompt, 20)).unwrap()), greedy_reference(&prompt, 20));
    assert_nothing_left(&engine);
    assert_eq!((engine.stats().draft.computed, engine.stats().failed), (0, 0));
}

#[test]
fn a_dropped_generation_frees_the_drafts_blocks_within_one_step() {
    let (executor, gate) = gated(hashing());
    let engine = start_drafting(executor, hashing());
    let [kept, dropped] = [6, 7].map(|seed| engine.submit(long(&prompt(seed, 40), 1000)).unwrap());
    (0..4).for_each(|_| gate.send(()).unwrap());
    // Both follow: two blocks each.
    wait_until("four steps", || engine.stats().steps == 4);
    assert!(engine.stats().draft_blocks >= 4, "{:?}", engine.stats());
    drop(dropped);
    (0..2).for_each(|_| gate.send(()).unwrap());
    wait_until("two more steps", || engine.stats().steps == 6);
    let blocks = engine.stats().draft_blocks;
    assert!((2..4).contains(&blocks), "{blocks} blocks");
    drop(kept);
    drop(gate);
    assert_nothing_left(&engine);
}

#[test]
fn an_engine_that_ends_lets_go_of_its_draft() {
    let held = Arc::new(());
    let hold = Arc::clone(&held);
    let draft = hashing().with_hook(move |_, _| {
        assert!(Arc::strong_count(&hold) > 1);
        Ok(())
    });
    let engine = start_drafting(hashing(), draft);
    engine.generate_blocking(long(&prompt(8, 10), 10)).unwrap();
    assert_eq!(Arc::strong_count(&held), 2);
    engine.shutdown();
    assert!(engine.wait_stopped(Duration::from_secs(20)));
    assert_eq!(Arc::strong_count(&held), 1);
}

/// Too few blocks for all, and clients that leave: preempted generations are followed again.
#[test]
fn a_crowd_that_is_preempted_and_leaves_finds_the_same_answers() {
    let limits = Limits { num_kv_blocks: 14, ..LIMITS };
    // No step is computed until the first ones are all there: they need more blocks than there are, whatever the machine is
    // busy with.
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().unwrap();
    let wait = Arc::clone(&gate);
    let executor = TestExecutor::hashing(limits, SIZE).with_hook(move |_, _| {
        drop(wait.lock());
        Ok(())
    });
    let engine = start_drafting(executor, finding(|len| len % 5 > 0));
    let first: Vec<_> = (0..12_u32)
        .map(|seed| {
            let prompt = prompt(1000 + seed, BLOCK_TOKENS - 10);
            (engine.submit(long(&prompt, 60)).unwrap(), prompt)
        })
        .collect();
    drop(closed);
    for (generation, prompt) in first {
        assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt, 60));
    }
    assert!(engine.stats().preemptions > 0, "{:?}", engine.stats());
    std::thread::scope(|scope| {
        for client in 0..6_u32 {
            let engine = &engine;
            scope.spawn(move || {
                for round in 0..10_u32 {
                    let seed = client * 100 + round;
                    let prompt = prompt(seed, 1 + (seed as usize * 37) % (3 * BLOCK_TOKENS));
                    let mut generation = engine.submit(long(&prompt, 60)).unwrap();
                    if seed % 3 == 0 {
                        for _ in 0..seed % 7 {
                            generation.blocking_recv();
                        }
                        continue;
                    }
                    assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt, 60));
                }
            });
        }
    });
    wait_until("everybody is counted", || engine.stats().completed + engine.stats().cancelled == 72);
    assert_nothing_left(&engine);
    let stats = engine.stats();
    assert!(stats.failed == 0 && stats.preemptions > 0 && stats.draft.accepted > 100, "{stats:?}");
}

/// With measured times nothing can be said of how many are guessed, but much of the answers.
#[test]
fn measured_times_choose_how_many_and_never_which() {
    let measured = EngineOptions { guess_policy: GuessPolicy::WherePays, ..options(Speculation::Draft) };
    let engine = start_drafting_with(hashing(), finding(|len| len % 7 > 0), measured);
    let generations: Vec<_> = (0..3).map(|seed| engine.submit(long(&prompt(seed, 50), 400)).unwrap()).collect();
    for (seed, generation) in (0..).zip(generations) {
        assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt(seed, 50), 400));
    }
    assert_nothing_left(&engine);
}
