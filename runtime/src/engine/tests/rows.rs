//! Executors that keep their rows: the same answers as from whole rows, which come only where sampling needs them.

use super::*;
use crate::exec::{HiddenRows, KeptRows, ReducedRow};
use crate::sample::reduced::host::HostRow;

/// Keeps the rows of another executor, as a device does.
struct Keeping<E> {
    executor: E,
    rows: Vec<f32>,
    width: usize,
    reduced: Vec<Option<HostRow>>,
}

impl<E> Keeping<E> {
    fn new(executor: E) -> Self {
        Self { executor, rows: Vec::new(), width: 0, reduced: Vec::new() }
    }
}

impl<E> KeptRows for Keeping<E> {
    fn reduced(&self, row: usize) -> Option<ReducedRow<'_>> {
        self.reduced[row].as_ref().map(HostRow::as_row)
    }

    fn read(&self, row: usize, into: &mut Vec<f32>) -> Result<()> {
        into.clear();
        into.extend_from_slice(&self.rows[row * self.width..][..self.width]);
        Ok(())
    }
}

impl<E: Executor> Executor for Keeping<E> {
    fn name(&self) -> &'static str {
        "keeping"
    }

    fn limits(&self) -> Limits {
        self.executor.limits()
    }

    fn kv_types(&self) -> KvTypes {
        self.executor.kv_types()
    }

    fn prefix_reuse(&self) -> PrefixReuse {
        self.executor.prefix_reuse()
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

    fn keeps_rows(&self) -> bool {
        true
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        let output = self.executor.step(batch)?;
        assert!(output.hidden.data.is_empty(), "hidden states have no place here");
        let (num_rows, width, hidden) = (output.num_rows, output.width, HiddenRows::default());
        self.width = width;
        self.rows.clear();
        self.rows.extend_from_slice(output.data);
        let tasks = &batch.tasks;
        if tasks.rows.is_empty() {
            return Ok(StepOutput { num_rows, width, data: &self.rows, kept: None, hidden });
        }
        assert_eq!(tasks.rows.len(), num_rows, "a task for each row");
        let rows = self.rows.chunks(width);
        let reduce =
            |(row, task): (&[f32], &Option<_>)| task.as_ref().and_then(|task| HostRow::of(&row[..tasks.width], task));
        self.reduced = rows.zip(&tasks.rows).map(reduce).collect();
        Ok(StepOutput { num_rows, width, data: &[], kept: Some(self), hidden })
    }
}

fn whole() -> TestExecutor {
    TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE)
}

fn chain(seed: u64, top_k: usize, top_p: f32, min_p: f32, temperature: f32) -> SamplingParams {
    SamplingParams { seed: Some(seed), top_k, top_p, min_p, temperature, ..SamplingParams::default() }
}

/// A token and the bits of its log-probability.
type Pair = (u32, u32);

/// Of each token of an answer, and of its alternatives.
fn bits(answer: &Answer) -> Vec<(Pair, Vec<Pair>)> {
    let pair = |token: &TokenLogprob| (token.id, token.logprob.to_bits());
    let entry = |(token, top): &(TokenLogprob, Vec<TokenLogprob>)| (pair(token), top.iter().map(pair).collect());
    answer.logprobs.iter().map(entry).collect()
}

#[test]
fn chains_that_are_decided_fetch_no_row_and_answer_the_same() {
    let (kept, expected) = (start(Keeping::new(whole())), start(whole()));
    let chains = [
        chain(1, 40, 0.95, 0.05, 0.0),
        chain(2, 40, 0.95, 0.05, 0.8),
        chain(3, 0, 0.9, 0.0, 1.0),
        chain(4, 0, 1.0, 0.2, 1.0),
        chain(5, 0, 1.0, 0.0, 1.0),
        chain(6, 0, 1.0, 0.0, 0.3),
    ];
    let requests: Vec<_> = (0_u32..)
        .zip(&chains)
        .flat_map(|(index, sampling)| {
            [None, Some(0), Some(5)].map(|logprobs| GenerateRequest {
                sampling: sampling.clone(),
                logprobs,
                ..fixed(&prompt(index, 3 + 20 * index as usize), 20)
            })
        })
        .collect();
    // All at once, so that different tasks meet in a step.
    let generations: Vec<_> = requests.iter().map(|request| kept.submit(request.clone()).unwrap()).collect();
    for (request, generation) in requests.into_iter().zip(generations) {
        let sampling = request.sampling.clone();
        let answer = generation.collect_blocking().unwrap();
        let wanted = expected.generate_blocking(request).unwrap();
        assert_eq!((&answer.text, bits(&answer)), (&wanted.text, bits(&wanted)), "{sampling:?}");
    }
    assert_eq!(kept.stats().fetched_rows, 0);
    assert_all_free(&kept);
}

#[test]
fn rows_come_whole_where_logits_are_changed() {
    let (kept, expected) = (start(Keeping::new(whole())), start(whole()));
    let penalty = SamplingParams { presence_penalty: 0.5, ..chain(9, 0, 1.0, 0.0, 1.0) };
    let request =
        |sampling: &SamplingParams| GenerateRequest { sampling: sampling.clone(), ..fixed(&prompt(1, 9), 10) };
    // Alone, its rows come with the step; beside another, one by one.
    let answer = kept.generate_blocking(request(&penalty)).unwrap();
    assert_eq!(bits(&answer), bits(&expected.generate_blocking(request(&penalty)).unwrap()));
    assert_eq!(kept.stats().fetched_rows, 10);
    let others =
        [penalty, chain(2, 40, 1.0, 0.0, 0.8)].map(|sampling| (kept.submit(request(&sampling)).unwrap(), sampling));
    for (generation, sampling) in others {
        let answer = generation.collect_blocking().unwrap();
        assert_eq!(bits(&answer), bits(&expected.generate_blocking(request(&sampling)).unwrap()), "{sampling:?}");
    }
    assert_eq!(kept.stats().fetched_rows, 20);
}

#[test]
fn several_answers_and_guesses_are_the_same() {
    let request = |sampling: SamplingParams| GenerateRequest {
        sampling,
        speculation: Some(Speculation::Ngram),
        ..fixed(&prompt(3, 12).repeat(4), 30)
    };
    let options = || EngineOptions { guess_policy: GuessPolicy::Always, ..EngineOptions::default() };
    for temperature in [0.0, 0.02, 1.0] {
        // One that repeats itself, so that guesses are right now and then.
        let executor =
            || TestExecutor::continuing(|tokens| tokens[tokens.len() - 12] ^ 1, ByteVocabulary::SIZE, LIMITS);
        let kept = start_with(Keeping::new(executor()), options());
        let expected = start_with(executor(), options());
        let answers = |engine: &Engine| -> Vec<_> {
            let request = request(chain(5, 0, 1.0, 0.0, temperature));
            let group = engine.submit_group(request, 3.try_into().unwrap()).unwrap();
            group.into_members().into_iter().map(|member| bits(&member.collect_blocking().unwrap())).collect()
        };
        assert_eq!(answers(&kept), answers(&expected), "temperature {temperature}");
    }
}

#[test]
fn a_row_that_means_nothing_fails_its_request_only() {
    let engine = start(Keeping::new(Altered::new(TestExecutor::spelling("fine", LIMITS), superstition)));
    let [good, bad] = [1, 13].map(|token| engine.submit(request(&[token])).unwrap());
    assert!(matches!(bad.collect_blocking(), Err(Error::BadLogits(_))));
    assert_eq!(good.collect_blocking().unwrap().text, "fine");
    // To find out what is wrong with it.
    assert_eq!(engine.stats().fetched_rows, 1);
    assert_all_free(&engine);
}
