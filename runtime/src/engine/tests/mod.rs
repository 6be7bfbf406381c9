//! Engine tests on executors without a model: one generation and many, their ends, and those of the engine. What
//! generations share is in `sharing`, embeddings are in `embedding`, what leaves a window in `window`, what outlives the engine in `keep`,
//! rows that stay on a device in `rows`.

mod drafting;
mod embedding;
mod keep;
mod rows;
mod sharing;
mod window;

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use super::testing::{ByteVocabulary, TestExecutor, hash_logits};
use super::*;
use crate::error::{Error, Result};
use crate::exec::{Executor, KvTypes, Limits, PrefixReuse, StepBatch, StepOutput};
use crate::kv::{BLOCK_TOKENS, KvPool};

const LIMITS: Limits = TestExecutor::LIMITS;

fn start(executor: impl Executor + 'static) -> Engine {
    start_with(executor, EngineOptions::default())
}

fn start_with(executor: impl Executor + 'static, options: EngineOptions) -> Engine {
    Engine::start("test", Box::new(executor), Arc::new(ByteVocabulary), options).unwrap()
}

fn request(prompt: &[u32]) -> GenerateRequest {
    let sampling = SamplingParams { temperature: 0.0, ..SamplingParams::default() };
    GenerateRequest { sampling, ..GenerateRequest::new(prompt.to_vec()) }
}

fn say(text: &str) -> GenerateRequest {
    request(&ByteVocabulary::encode(text))
}

fn fixed(prompt: &[u32], max_tokens: usize) -> GenerateRequest {
    GenerateRequest { max_tokens: Some(max_tokens), ignore_eos: true, logprobs: Some(0), ..request(prompt) }
}

/// A prompt that no other seed shares.
fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed.wrapping_mul(2_654_435_761).wrapping_add(i * 40_503) >> 7) % 256).collect()
}

/// Chosen token ids, through the log-probabilities.
fn ids(answer: &Answer) -> Vec<u32> {
    answer.logprobs.iter().map(|(token, _)| token.id).collect()
}

/// What greedy sampling must give on `TestExecutor::hashing`, without an engine.
fn greedy_reference(prompt: &[u32], num_tokens: usize) -> Vec<u32> {
    let mut history = prompt.to_vec();
    for _ in 0..num_tokens {
        let logits: Vec<f32> = hash_logits(&history, ByteVocabulary::SIZE).collect();
        let best = (0..logits.len()).rev().max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
        history.push(best as u32);
    }
    history.split_off(prompt.len())
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "never: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn assert_all_free(engine: &Engine) {
    wait_until("all blocks are free", || {
        let stats = engine.stats();
        stats.free_blocks == stats.total_blocks
            && stats.free_window_blocks == stats.total_window_blocks
            && stats.running == 0
            && stats.queued == 0
    });
}

/// An executor whose steps wait for permission, one `send` each; after the sender is gone they run freely.
fn gated(executor: TestExecutor) -> (TestExecutor, mpsc::Sender<()>) {
    let (gate, permits) = mpsc::channel();
    (
        executor.with_hook(move |_, _| {
            let _ = permits.recv();
            Ok(())
        }),
        gate,
    )
}

#[test]
fn it_spells_a_text_and_ends() {
    let engine = start(TestExecutor::spelling("Hello, wörld 🌍!", LIMITS));
    let answer = engine.generate_blocking(say("hi")).unwrap();
    assert_eq!(answer.text, "Hello, wörld 🌍!");
    assert_eq!(answer.reason, FinishReason::Stop);
    let completion_tokens = "Hello, wörld 🌍!".len() + 1;
    assert_eq!(
        answer.usage,
        Usage { prompt_tokens: 2, cache_miss: Some(PrefixMiss::Disabled), completion_tokens, ..Usage::default() }
    );
    assert!(answer.timings.queue_ms >= 0.0 && answer.timings.predicted_ms > 0.0);
    assert_all_free(&engine);
    let stats = engine.stats();
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (2, completion_tokens as u64));
    assert_eq!((stats.completed, stats.cancelled, stats.failed), (1, 0, 0));
}

#[test]
fn every_event_is_whole_utf8_and_the_last_is_done() {
    let engine = start(TestExecutor::spelling("a€🌍", LIMITS));
    let mut generation = engine.submit(say("x")).unwrap();
    let mut texts = Vec::new();
    loop {
        match generation.blocking_recv().unwrap() {
            Event::Text { text, .. } => texts.push(text),
            Event::Done { .. } => break,
            Event::Failed(error) => panic!("{error}"),
        }
    }
    assert_eq!(texts, ["a", "€", "🌍"]);
    assert!(generation.blocking_recv().is_none());
}

#[test]
fn async_clients_get_the_same() {
    let engine = start(TestExecutor::spelling("async", LIMITS));
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let answer = runtime.block_on(async { engine.submit(say("x")).unwrap().collect().await }).unwrap();
    assert_eq!(answer.text, "async");
}

#[test]
fn batched_equals_single_equals_the_reference() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    // From one token to more than two steps' budget.
    let lengths = [1, 2, 31, 32, 33, 64, 65, 100, 150, 7, 12, 90];
    let generations: Vec<_> = lengths
        .iter()
        .enumerate()
        .map(|(seed, &len)| {
            let request = GenerateRequest {
                max_tokens: Some(40 + seed),
                ignore_eos: true,
                logprobs: Some(0),
                ..request(&prompt(seed as u32, len))
            };
            engine.submit(request).unwrap()
        })
        .collect();
    for (seed, (generation, &len)) in generations.into_iter().zip(&lengths).enumerate() {
        let answer = generation.collect_blocking().unwrap();
        assert_eq!(ids(&answer), greedy_reference(&prompt(seed as u32, len), 40 + seed), "prompt of {len}");
        assert_eq!(answer.reason, FinishReason::Length);
    }
    assert_eq!(engine.stats().preemptions, 0);
    assert_all_free(&engine);
}

#[test]
fn any_chunking_gives_the_same_tokens() {
    let want = greedy_reference(&prompt(5, 100), 20);
    for max_step_tokens in [1, 7, 32, 99, 100, 101, 512] {
        let limits = Limits { max_step_tokens, ..LIMITS };
        let engine = start(TestExecutor::hashing(limits, ByteVocabulary::SIZE));
        let request =
            GenerateRequest { max_tokens: Some(20), ignore_eos: true, logprobs: Some(0), ..request(&prompt(5, 100)) };
        assert_eq!(ids(&engine.generate_blocking(request).unwrap()), want, "{max_step_tokens} tokens a step");
        assert_all_free(&engine);
        assert_eq!(engine.stats().steps as usize, 100_usize.div_ceil(max_step_tokens) + 19);
    }
}

#[test]
fn preempted_generations_are_the_same_as_undisturbed_ones() {
    // Six sequences that grow to 4 blocks each share 10; sampled, so that the random numbers must go on too.
    let sampling = |seed| SamplingParams {
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        temperature: 1.0,
        repeat_penalty: 1.1,
        seed: Some(seed),
        ..SamplingParams::default()
    };
    let request = |seed: u64| GenerateRequest {
        max_tokens: Some(100),
        ignore_eos: true,
        logprobs: Some(0),
        sampling: sampling(seed),
        ..request(&prompt(seed as u32, 20))
    };
    let roomy = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let tight = start(TestExecutor::hashing(Limits { num_kv_blocks: 10, ..LIMITS }, ByteVocabulary::SIZE));
    let generations: Vec<_> = (0..6).map(|seed| tight.submit(request(seed)).unwrap()).collect();
    for (seed, generation) in (0..6).zip(generations) {
        let (alone, disturbed) =
            (roomy.generate_blocking(request(seed)).unwrap(), generation.collect_blocking().unwrap());
        assert_eq!(ids(&disturbed), ids(&alone));
        assert_eq!((disturbed.seed, disturbed.usage), (seed, alone.usage));
        assert_eq!(disturbed.text, alone.text);
    }
    assert!(tight.stats().preemptions > 0, "the test must preempt");
    assert_eq!(tight.stats().prompt_tokens, 120, "a prompt that is computed again is counted once");
    assert_all_free(&tight);
}

#[test]
fn a_dropped_generation_frees_its_blocks_within_one_step() {
    let (executor, gate) = gated(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let engine = start(executor);
    let long = || GenerateRequest { ignore_eos: true, ..request(&prompt(1, 40)) };
    let mut kept = engine.submit(long()).unwrap();
    let dropped = engine.submit(long()).unwrap();
    for _ in 0..3 {
        gate.send(()).unwrap();
    }
    wait_until("both run", || engine.stats().steps == 3 && engine.stats().running == 2);
    drop(dropped);
    // The engine is inside step 3; the sweep before step 4 sees the drop.
    gate.send(()).unwrap();
    gate.send(()).unwrap();
    wait_until("two more steps", || engine.stats().steps == 5);
    let stats = engine.stats();
    assert_eq!((stats.running, stats.cancelled), (1, 1));
    assert_eq!(stats.total_blocks - stats.free_blocks, 2);
    assert!(matches!(kept.blocking_recv(), Some(Event::Text { .. })));
    drop(kept);
    drop(gate);
    wait_until("the second drop is counted", || engine.stats().cancelled == 2);
    assert_all_free(&engine);
}

#[test]
fn a_request_that_is_dropped_while_it_waits_never_runs() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (gate, permits) = mpsc::channel::<()>();
    let log = Arc::clone(&seen);
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE).with_hook(move |_, batch: &StepBatch| {
        let _ = permits.recv();
        log.lock().unwrap().extend(batch.tokens.iter().copied());
        Ok(())
    });
    let engine = start_with(executor, EngineOptions { max_running: 1, ..EngineOptions::default() });
    let first = engine.submit(GenerateRequest { max_tokens: Some(3), ignore_eos: true, ..request(&[1]) }).unwrap();
    wait_until("the first runs", || engine.stats().queued == 0);
    let waiting = engine.submit(GenerateRequest { max_tokens: Some(3), ..request(&[77; 9]) }).unwrap();
    assert_eq!(engine.stats().queued, 1);
    drop(waiting);
    drop(gate);
    first.collect_blocking().unwrap();
    wait_until("the drop is counted", || engine.stats().cancelled == 1);
    assert_all_free(&engine);
    let sevens = seen.lock().unwrap().windows(9).filter(|window| *window == [77; 9]).count();
    assert_eq!(sevens, 0);
}

#[test]
fn stop_strings_end_the_answer_across_tokens() {
    let engine = start(TestExecutor::spelling("One. Two.\n\nUser: three", LIMITS));
    let stop = vec!["never".to_owned(), "\n\nUser:".to_owned()];
    let answer = engine.generate_blocking(GenerateRequest { stop, ..say("count") }).unwrap();
    assert_eq!((answer.text.as_str(), answer.reason), ("One. Two.", FinishReason::StopString(1)));
    assert_eq!(answer.usage.completion_tokens, "One. Two.\n\nUser:".len(), "it ends with the token that completed it");
    assert_all_free(&engine);
}

#[test]
fn text_held_for_a_stop_string_comes_out_at_the_end() {
    let engine = start(TestExecutor::spelling("ends with </st", LIMITS));
    let request = GenerateRequest { stop: vec!["</stop>".into()], ..say("x") };
    assert_eq!(engine.generate_blocking(request.clone()).unwrap().text, "ends with </st");
    let answer = engine.generate_blocking(GenerateRequest { max_tokens: Some(12), ..request }).unwrap();
    assert_eq!((answer.text.as_str(), answer.reason), ("ends with </", FinishReason::Length));
}

#[test]
fn stop_token_ids_end_the_answer_and_are_not_in_it() {
    let engine = start(TestExecutor::spelling("abc!def", LIMITS));
    let answer =
        engine.generate_blocking(GenerateRequest { stop_token_ids: vec![u32::from(b'!')], ..say("x") }).unwrap();
    assert_eq!((answer.text.as_str(), answer.reason, answer.usage.completion_tokens), ("abc", FinishReason::Stop, 4));
}

#[test]
fn ignore_eos_goes_on_to_max_tokens() {
    let script = [b'a', b'b'].map(u32::from).into_iter().chain([ByteVocabulary::END, u32::from(b'c')]).collect();
    let engine = start(TestExecutor::spelling_tokens(script, ByteVocabulary::SIZE, LIMITS));
    let ends = engine.generate_blocking(GenerateRequest { max_tokens: Some(6), ..say("x") }).unwrap();
    assert_eq!((ends.text.as_str(), ends.reason, ends.usage.completion_tokens), ("ab", FinishReason::Stop, 3));
    let goes_on =
        engine.generate_blocking(GenerateRequest { max_tokens: Some(6), ignore_eos: true, ..say("x") }).unwrap();
    assert_eq!((goes_on.text.as_str(), goes_on.reason), ("abccc", FinishReason::Length));
    assert_eq!(goes_on.usage.completion_tokens, 6);
}

#[test]
fn without_max_tokens_the_context_is_the_end() {
    let engine = start(TestExecutor::hashing(Limits { max_context: 50, ..LIMITS }, ByteVocabulary::SIZE));
    let answer = engine.generate_blocking(GenerateRequest { ignore_eos: true, ..request(&prompt(3, 20)) }).unwrap();
    assert_eq!((answer.reason, answer.usage.completion_tokens), (FinishReason::Length, 30));
    for (len, max_tokens) in [(50, None), (20, Some(31))] {
        let error = engine.submit(GenerateRequest { max_tokens, ..request(&prompt(3, len)) }).unwrap_err();
        assert!(matches!(error, Error::ContextLength { context_tokens: 50, .. }), "{error:?}");
    }
    let error = engine.submit(request(&[1000])).unwrap_err();
    assert!(matches!(error, Error::InvalidRequest { param: "prompt", .. }), "{error:?}");
}

#[test]
fn logprobs_name_the_chosen_token_and_its_alternatives() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let request = GenerateRequest { max_tokens: Some(5), ignore_eos: true, logprobs: Some(3), ..request(&[9, 8]) };
    let answer = engine.generate_blocking(request).unwrap();
    assert_eq!(answer.logprobs.len(), 5);
    let logits: Vec<f64> = hash_logits(&[9, 8], ByteVocabulary::SIZE).map(f64::from).collect();
    let ln_sum = logits.iter().map(|logit| logit.exp()).sum::<f64>().ln();
    let (chosen, top) = &answer.logprobs[0];
    assert!((f64::from(chosen.logprob) - (logits[chosen.id as usize] - ln_sum)).abs() < 1e-4);
    assert_eq!(top.len(), 3);
    assert_eq!(top[0], *chosen, "greedy takes the most probable");
    assert!(top.is_sorted_by(|a, b| a.logprob >= b.logprob));
}

#[test]
fn the_seed_is_reported_and_repeats_the_answer() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let with = |seed| GenerateRequest {
        max_tokens: Some(30),
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        ..request(&[1, 2, 3])
    };
    let first = engine.generate_blocking(with(None)).unwrap();
    let again = engine.generate_blocking(with(Some(first.seed))).unwrap();
    assert_eq!((first.text, first.seed), (again.text, again.seed));
    assert_ne!(engine.generate_blocking(with(None)).unwrap().seed, first.seed);
}

#[test]
fn a_full_queue_is_overload_and_a_free_place_is_taken() {
    let (executor, gate) = gated(TestExecutor::spelling("ok", LIMITS));
    let engine = start_with(executor, EngineOptions { queue: 2, max_running: 1, ..EngineOptions::default() });
    let running = engine.submit(say("a")).unwrap();
    wait_until("it runs", || engine.stats().queued == 0);
    let waiting = [engine.submit(say("b")).unwrap(), engine.submit(say("c")).unwrap()];
    let error = engine.submit(say("d")).unwrap_err();
    assert!(matches!(error, Error::Overloaded { retry_after_ms: 1000.. }), "{error:?}");
    drop(gate);
    assert_eq!(running.collect_blocking().unwrap().text, "ok");
    for generation in waiting {
        assert_eq!(generation.collect_blocking().unwrap().text, "ok");
    }
    assert_eq!(engine.generate_blocking(say("e")).unwrap().text, "ok");
}

#[test]
fn a_slow_reader_is_cancelled_and_told_so() {
    let options = EngineOptions { max_unread_events: 8, ..EngineOptions::default() };
    let engine = start_with(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE), options);
    let request = GenerateRequest { ignore_eos: true, logprobs: Some(0), ..request(&[1]) };
    let mut generation = engine.submit(request).unwrap();
    wait_until("it is cancelled", || engine.stats().failed == 1);
    assert_all_free(&engine);
    for _ in 0..8 {
        assert!(matches!(generation.blocking_recv(), Some(Event::Text { .. })));
    }
    assert!(matches!(generation.blocking_recv(), Some(Event::Failed(Error::SlowReader(8)))));
    assert!(generation.blocking_recv().is_none());
}

/// Whatever ends the engine in step 2, its clients, running and waiting, get an error that says why.
fn assert_failure(fail: impl Fn() -> Result<()> + Send + 'static, says: &str) {
    let (gate, permits) = mpsc::channel::<()>();
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE).with_hook(move |step, _| {
        let _ = permits.recv();
        if step == 2 { fail() } else { Ok(()) }
    });
    let engine = start_with(executor, EngineOptions { max_running: 2, ..EngineOptions::default() });
    let long = || GenerateRequest { ignore_eos: true, ..request(&[1, 2]) };
    let generations = [(); 3].map(|()| engine.submit(long()).unwrap());
    drop(gate);
    for generation in generations {
        let error = generation.collect_blocking().unwrap_err();
        assert!(matches!(error, Error::EngineStopped(_)) && error.to_string().contains(says), "{error}");
    }
    assert!(engine.wait_stopped(Duration::from_secs(20)));
    let error = engine.submit(long()).unwrap_err();
    assert!(matches!(error, Error::EngineStopped(_)) && error.to_string().contains(says), "{error}");
    assert!(engine.stop_reason().unwrap().contains(says));
    assert_eq!((engine.stats().failed, engine.stats().queued), (3, 0));
}

#[test]
fn an_error_in_a_step_fails_all_streams() {
    assert_failure(|| Err(Error::Unsupported("a broken device".into())), "a broken device");
}

#[test]
fn a_panic_in_a_step_fails_all_streams() {
    assert_failure(|| panic!("an index out of bounds"), "an index out of bounds");
}

/// An executor whose output is changed before it is returned: `alter` gets the step, the width and the rows.
struct Altered {
    executor: TestExecutor,
    alter: fn(&StepBatch, usize, &mut [f32]),
    data: Vec<f32>,
}

impl Altered {
    fn new(executor: TestExecutor, alter: fn(&StepBatch, usize, &mut [f32])) -> Self {
        Self { executor, alter, data: Vec::new() }
    }
}

impl Executor for Altered {
    fn name(&self) -> &'static str {
        "altered"
    }

    fn limits(&self) -> Limits {
        self.executor.limits()
    }

    fn kv_types(&self) -> KvTypes {
        self.executor.kv_types()
    }

    fn prefix_reuse(&self) -> PrefixReuse {
        PrefixReuse::Exact
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<()> {
        self.executor.copy_block(pool, from, to)
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.executor.block_bytes(pool)
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<()> {
        self.executor.read_block(pool, block, into)
    }

    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> Result<()> {
        self.executor.write_block(pool, block, bytes)
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        let output = self.executor.step(batch)?;
        self.data = output.data.to_vec();
        (self.alter)(batch, output.width, &mut self.data);
        Ok(StepOutput { data: &self.data, ..output })
    }
}

/// Rows of NaN for prompts that begin with token 13.
fn superstition(batch: &StepBatch, width: usize, data: &mut [f32]) {
    for (row, seq) in batch.seqs.iter().enumerate() {
        if batch.tokens[seq.tokens.start] == 13 {
            data[row * width + 5] = f32::NAN;
        }
    }
}

#[test]
fn logits_that_mean_nothing_fail_one_stream_only() {
    let engine = start(Altered::new(TestExecutor::spelling("fine", LIMITS), superstition));
    let [good, bad] = [1, 13].map(|token| engine.submit(request(&[token])).unwrap());
    assert!(matches!(bad.collect_blocking(), Err(Error::BadLogits(_))));
    assert_eq!(good.collect_blocking().unwrap().text, "fine");
    assert_all_free(&engine);
}

#[test]
fn shutdown_finishes_what_was_accepted_and_refuses_the_rest() {
    let (executor, gate) = gated(TestExecutor::spelling("done", LIMITS));
    let engine = start_with(executor, EngineOptions { max_running: 1, ..EngineOptions::default() });
    let generations = [(); 3].map(|()| engine.submit(say("x")).unwrap());
    engine.shutdown();
    let error = engine.submit(say("late")).unwrap_err();
    assert!(error.to_string().contains("shutting down"), "{error}");
    assert!(!engine.wait_stopped(Duration::from_millis(20)), "steps are still waiting at the gate");
    drop(gate);
    for generation in generations {
        assert_eq!(generation.collect_blocking().unwrap().text, "done");
    }
    assert!(engine.wait_stopped(Duration::from_secs(20)));
    engine.shutdown();
}

#[test]
fn an_idle_engine_shuts_down_too() {
    let engine = start(TestExecutor::spelling("x", LIMITS));
    engine.shutdown();
    assert!(engine.wait_stopped(Duration::from_secs(20)));
}

#[test]
fn abort_fails_what_runs() {
    let (executor, gate) = gated(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let engine = start(executor);
    let generation = engine.submit(GenerateRequest { ignore_eos: true, ..say("x") }).unwrap();
    engine.abort();
    drop(gate);
    assert!(matches!(generation.collect_blocking(), Err(Error::EngineStopped(_))));
    assert!(engine.wait_stopped(Duration::from_secs(20)));
}

#[test]
fn generations_outlive_the_last_handle() {
    let (executor, gate) = gated(TestExecutor::spelling("still here", LIMITS));
    let engine = start(executor);
    let generation = engine.submit(say("x")).unwrap();
    drop(engine);
    drop(gate);
    assert_eq!(generation.collect_blocking().unwrap().text, "still here");
}

#[test]
fn an_idle_engine_takes_no_steps() {
    let steps = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&steps);
    let executor = TestExecutor::spelling("hi", LIMITS).with_hook(move |_, _| {
        count.fetch_add(1, Ordering::Relaxed);
        Ok(())
    });
    let engine = start(executor);
    engine.generate_blocking(say("x")).unwrap();
    let after = steps.load(Ordering::Relaxed);
    std::thread::sleep(Duration::from_millis(30));
    assert_eq!((after, steps.load(Ordering::Relaxed)), (3, 3), "h, i, end");
}

#[test]
fn an_executor_without_room_is_refused() {
    let executor = TestExecutor::hashing(Limits { num_kv_blocks: 0, ..LIMITS }, ByteVocabulary::SIZE);
    let result = Engine::start("test", Box::new(executor), Arc::new(ByteVocabulary), EngineOptions::default());
    assert!(matches!(result, Err(Error::OutOfMemory(_))));
}

#[test]
fn a_crowd_that_comes_and_goes_leaves_nothing_behind() {
    let limits = Limits { num_kv_blocks: 20, ..LIMITS };
    let engine = start(TestExecutor::hashing(limits, ByteVocabulary::SIZE));
    std::thread::scope(|scope| {
        for client in 0..8_u32 {
            let engine = &engine;
            scope.spawn(move || {
                for round in 0..15_u32 {
                    let seed = client * 100 + round;
                    let prompt = prompt(seed, 1 + (seed as usize * 37) % (3 * BLOCK_TOKENS));
                    let request = GenerateRequest {
                        max_tokens: Some(50),
                        ignore_eos: true,
                        logprobs: Some(0),
                        ..request(&prompt)
                    };
                    let mut generation = engine.submit(request).unwrap();
                    if seed % 3 == 0 {
                        for _ in 0..seed % 7 {
                            generation.blocking_recv();
                        }
                        continue;
                    }
                    assert_eq!(ids(&generation.collect_blocking().unwrap()), greedy_reference(&prompt, 50));
                }
            });
        }
    });
    wait_until("everybody is counted", || engine.stats().completed + engine.stats().cancelled == 120);
    assert_all_free(&engine);
    assert_eq!(engine.stats().failed, 0);
}
