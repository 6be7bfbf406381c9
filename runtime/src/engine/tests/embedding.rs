//! Embeddings beside answers: pooled rightly in any pieces, and as well behaved as any request.

use super::*;
use crate::engine::testing::{HIDDEN, hash_hidden};

/// Without an engine.
fn reference(tokens: &[u32], pooling: Pooling) -> Vec<f32> {
    let first = match pooling {
        Pooling::Mean => 1,
        Pooling::Last => tokens.len(),
    };
    let mut sum = [0.0_f64; HIDDEN];
    for end in first..=tokens.len() {
        sum.iter_mut().zip(hash_hidden(&tokens[..end])).for_each(|(sum, x)| *sum += f64::from(x));
    }
    let length = sum.iter().map(|x| x * x).sum::<f64>().sqrt();
    sum.iter().map(|x| (x / length) as f32).collect()
}

fn embed(engine: &Engine, tokens: &[u32], pooling: Pooling) -> Embedding {
    engine.embed(EmbedRequest::new(tokens.to_vec(), pooling)).unwrap().collect_blocking().unwrap()
}

#[test]
fn texts_of_any_length_are_pooled_beside_answers() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let answers: Vec<_> = (1..4).map(|seed| (seed, engine.submit(fixed(&prompt(seed, 90), 60)).unwrap())).collect();
    let mut pending = Vec::new();
    // Of one token, of a piece of a step, of several steps.
    for (seed, len) in [(10, 1), (11, 5), (12, 64), (13, 65), (14, 300), (15, 999)] {
        for pooling in [Pooling::Mean, Pooling::Last] {
            let tokens = prompt(seed, len);
            pending.push((engine.embed(EmbedRequest::new(tokens.clone(), pooling)).unwrap(), tokens, pooling));
        }
    }
    let (num, total) = (pending.len() as u64, pending.iter().map(|(_, tokens, _)| tokens.len() as u64).sum::<u64>());
    for (embedding, tokens, pooling) in pending {
        let Embedding { vector, usage, timings } = embedding.collect_blocking().unwrap();
        assert_eq!(vector, reference(&tokens, pooling), "{pooling:?} of {}", tokens.len());
        assert_eq!((usage.prompt_tokens, usage.completion_tokens), (tokens.len(), 0));
        assert!(timings.prompt_ms > 0.0 && timings.predicted_ms == 0.0);
    }
    for (seed, answer) in answers {
        assert_eq!(ids(&answer.collect_blocking().unwrap()), greedy_reference(&prompt(seed, 90), 60), "{seed}");
    }
    assert_all_free(&engine);
    let stats = engine.stats();
    assert_eq!((stats.embeddings, stats.completed, stats.failed), (num, num + 3, 0));
    assert_eq!((stats.prompt_tokens, stats.generated_tokens), (total + 270, 180));
    let metrics = engine.metrics();
    assert_eq!(metrics.prompt_tokens.read().count, num + 3);
    // What is measured of answers doesn't know them.
    assert_eq!((metrics.end_to_end.read().count, metrics.time_to_first_token.read().count), (3, 3));
}

#[test]
fn only_the_last_token_may_come_after_a_cached_prompt() {
    let engine = start(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let tokens = prompt(7, 150);
    let cached = |pooling| {
        let Embedding { vector, usage, .. } = embed(&engine, &tokens, pooling);
        assert_eq!(vector, reference(&tokens, pooling));
        (usage.cached_tokens, usage.cache_miss)
    };
    assert_eq!(cached(Pooling::Mean), (0, Some(PrefixMiss::Disabled)));
    assert_eq!(cached(Pooling::Last), (0, Some(PrefixMiss::NoMatch)));
    assert_eq!(cached(Pooling::Last), (128, None));
    assert_eq!(cached(Pooling::Mean), (0, Some(PrefixMiss::Disabled)));
    // An answer to the same prompt takes what the embedding has left.
    let answer = engine.generate_blocking(fixed(&tokens, 3)).unwrap();
    assert_eq!((ids(&answer), answer.usage.cached_tokens), (greedy_reference(&tokens, 3), 128));
    assert_all_free(&engine);
}

#[test]
fn one_that_loses_its_blocks_begins_again() {
    // While a text takes two tokens a step, the answers grow into its blocks.
    let limits = Limits { num_kv_blocks: 9, max_step_tokens: 4, max_step_outputs: 4, ..LIMITS };
    let engine = start(TestExecutor::hashing(limits, ByteVocabulary::SIZE));
    let answers = [1, 2].map(|seed| engine.submit(fixed(&prompt(seed, 30), 90)).unwrap());
    let texts: Vec<Vec<u32>> = (20..24).map(|seed| prompt(seed, 100)).collect();
    let pending: Vec<_> =
        texts.iter().map(|text| engine.embed(EmbedRequest::new(text.clone(), Pooling::Mean)).unwrap()).collect();
    for (text, embedding) in texts.iter().zip(pending) {
        assert_eq!(embedding.collect_blocking().unwrap().vector, reference(text, Pooling::Mean));
    }
    for (seed, answer) in [1, 2].into_iter().zip(answers) {
        assert_eq!(ids(&answer.collect_blocking().unwrap()), greedy_reference(&prompt(seed, 30), 90));
    }
    assert!(engine.stats().preemptions > 0);
    assert_all_free(&engine);
}

#[test]
fn dropping_one_frees_its_blocks() {
    let (executor, gate) = gated(TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE));
    let engine = start(executor);
    let running = engine.embed(EmbedRequest::new(prompt(1, 500), Pooling::Mean)).unwrap();
    gate.send(()).unwrap();
    wait_until("its first piece is computed", || engine.stats().steps == 1);
    assert!(engine.stats().free_blocks < engine.stats().total_blocks);
    drop(running);
    drop(gate);
    wait_until("the drop is counted", || engine.stats().cancelled == 1);
    assert_all_free(&engine);
    assert_eq!((engine.stats().embeddings, engine.stats().completed), (0, 0));
}

#[test]
fn what_cant_be_embedded_is_refused() {
    let (executor, gate) = gated(TestExecutor::hashing(Limits { max_context: 50, ..LIMITS }, ByteVocabulary::SIZE));
    let engine = start_with(executor, EngineOptions { queue: 4, max_running: 1, ..EngineOptions::default() });
    let submit = |tokens: Vec<u32>| engine.embed(EmbedRequest::new(tokens, Pooling::Mean)).map(drop);
    assert!(matches!(submit(vec![]), Err(Error::InvalidRequest { param: "input", .. })));
    assert!(matches!(submit(vec![1000]), Err(Error::InvalidRequest { param: "input", .. })));
    let error = submit(prompt(1, 51)).unwrap_err();
    assert!(matches!(error, Error::ContextLength { prompt_tokens: 51, context_tokens: 50, .. }), "{error:?}");
    // The whole context is not too much: nothing comes after it.
    let full = engine.embed(EmbedRequest::new(prompt(1, 50), Pooling::Mean)).unwrap();
    let late = EmbedRequest { deadline: Some(Duration::from_millis(1)), ..EmbedRequest::new(vec![5], Pooling::Last) };
    let late = engine.embed(late).unwrap();
    let mut waiting = Vec::new();
    while let Ok(pending) = engine.embed(EmbedRequest::new(prompt(2, 9), Pooling::Last)) {
        waiting.push(pending);
        assert!(waiting.len() <= 4, "the queue has no end");
    }
    assert!(matches!(submit(vec![1]), Err(Error::Overloaded { .. })));
    std::thread::sleep(Duration::from_millis(2));
    drop(gate);
    assert_eq!(full.collect_blocking().unwrap().vector, reference(&prompt(1, 50), Pooling::Mean));
    assert!(matches!(late.collect_blocking(), Err(Error::DeadlineExceeded { completion_tokens: 0, .. })));
    for pending in waiting {
        assert_eq!(pending.collect_blocking().unwrap().vector, reference(&prompt(2, 9), Pooling::Last));
    }
    assert_all_free(&engine);
}

#[test]
fn an_engine_that_fails_tells_them() {
    let executor = TestExecutor::hashing(LIMITS, ByteVocabulary::SIZE).with_hook(|step, _| match step {
        2 => panic!("a broken device"),
        _ => Ok(()),
    });
    let engine = start(executor);
    let error = engine.embed(EmbedRequest::new(prompt(1, 500), Pooling::Mean)).unwrap().collect_blocking();
    assert!(matches!(&error, Err(Error::EngineStopped(why)) if why.contains("a broken device")), "{error:?}");
}
