//! Sampler tests: each processor by hand, distributions by chi-square, edge cases.

use super::*;
use crate::engine::SamplingParams;
use crate::error::Error;

/// All processors off, temperature 1.
fn plain() -> SamplingParams {
    SamplingParams { top_k: 0, top_p: 1.0, min_p: 0.0, temperature: 1.0, seed: Some(1), ..SamplingParams::default() }
}

fn draw(params: &SamplingParams, logits: &[f32], history: &[u32], generated: &[u32], n: usize) -> Vec<u32> {
    let mut sampler = Sampler::new(params.clone());
    generated.iter().for_each(|&token| sampler.accept(token));
    let mut scratch = Scratch::default();
    (0..n).map(|_| sampler.sample(logits, history, &mut scratch).unwrap()).collect()
}

fn greedy(params: SamplingParams, logits: &[f32], history: &[u32], generated: &[u32]) -> u32 {
    draw(&SamplingParams { temperature: 0.0, ..params }, logits, history, generated, 1)[0]
}

/// Which tokens are ever drawn from logits so flat that each possible one turns up.
fn support(params: &SamplingParams, logits: &[f32]) -> Vec<u32> {
    let mut ids = draw(params, logits, &[], &[], 3000);
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// Draws and compares with `probabilities` by Pearson's chi-square; fails beyond the 1 - 1e-6 quantile (Wilson-Hilferty).
fn assert_distribution(params: &SamplingParams, logits: &[f32], probabilities: &[f64]) {
    let n = 40_000;
    let mut observed = vec![0_usize; logits.len()];
    for id in draw(params, logits, &[], &[], n) {
        observed[id as usize] += 1;
    }
    let (mut chi2, mut bins) = (0.0, 0.0);
    for (id, (&seen, &p)) in observed.iter().zip(probabilities).enumerate() {
        if p == 0.0 {
            assert_eq!(seen, 0, "token {id} is impossible");
            continue;
        }
        let expected = p * n as f64;
        assert!(expected > 5.0, "choose logits that make the test meaningful");
        chi2 += (seen as f64 - expected).powi(2) / expected;
        bins += 1.0;
    }
    let freedom: f64 = bins - 1.0;
    let spread = 2.0 / (9.0 * freedom);
    let limit = freedom * (1.0 - spread + 4.75 * spread.sqrt()).powi(3);
    assert!(chi2 < limit, "chi-square {chi2} over {limit} at {freedom} degrees of freedom");
}

fn softmax(logits: &[f64]) -> Vec<f64> {
    let weights: Vec<f64> = logits.iter().map(|logit| logit.exp()).collect();
    let total: f64 = weights.iter().sum();
    weights.iter().map(|weight| weight / total).collect()
}

const LOGITS: [f32; 6] = [1.0, 3.0, 0.5, 2.0, -1.0, 2.5];

fn shares(keep: &[usize], temperature: f64) -> Vec<f64> {
    let scaled: Vec<f64> = (0..LOGITS.len())
        .map(|id| if keep.contains(&id) { f64::from(LOGITS[id]) / temperature } else { f64::NEG_INFINITY })
        .collect();
    softmax(&scaled)
}

#[test]
fn distributions_are_those_of_the_definition() {
    let all = [0, 1, 2, 3, 4, 5];
    assert_distribution(&plain(), &LOGITS, &shares(&all, 1.0));
    assert_distribution(&SamplingParams { temperature: 2.0, ..plain() }, &LOGITS, &shares(&all, 2.0));
    assert_distribution(&SamplingParams { top_k: 3, ..plain() }, &LOGITS, &shares(&[1, 5, 3], 1.0));
    // Shares from the top: 0.453, 0.274, 0.167, 0.061, …
    assert_distribution(&SamplingParams { top_p: 0.7, ..plain() }, &LOGITS, &shares(&[1, 5], 1.0));
    assert_distribution(&SamplingParams { top_p: 0.75, ..plain() }, &LOGITS, &shares(&[1, 5, 3], 1.0));
    // Against the best: e^-0.5 = 0.607, e^-1 = 0.368, e^-2 = 0.135.
    assert_distribution(&SamplingParams { min_p: 0.3, ..plain() }, &LOGITS, &shares(&[1, 5, 3], 1.0));
}

#[test]
fn truncation_comes_before_temperature_and_top_p_counts_what_top_k_left() {
    // At temperature 10 everything is nearly equal; a top_p after it would keep all three.
    let params = SamplingParams { top_p: 0.7, temperature: 10.0, ..plain() };
    assert_distribution(&params, &LOGITS, &shares(&[1, 5], 10.0));
    // Of the best two, the first has 0.622: with it alone 0.6 is reached, of the whole row it has only 0.453.
    assert_eq!(support(&SamplingParams { top_k: 2, top_p: 0.6, ..plain() }, &LOGITS), [1]);
    assert_eq!(support(&SamplingParams { top_p: 0.6, ..plain() }, &LOGITS), [1, 5]);
    let params = SamplingParams { top_k: 4, top_p: 0.99, min_p: 0.5, temperature: 3.0, ..plain() };
    assert_distribution(&params, &LOGITS, &shares(&[1, 5], 3.0));
}

#[test]
fn a_large_row_is_drawn_right_by_every_path() {
    // 5000 tokens; all the weight on ten of them in different chunks, equal shares.
    let mut logits = vec![-200.0_f32; 5000];
    let ids: Vec<usize> = (0..10).map(|i| i * 499 + 3).collect();
    ids.iter().for_each(|&id| logits[id] = 7.0);
    let probabilities: Vec<f64> = (0..5000).map(|id| if ids.contains(&id) { 0.1 } else { 0.0 }).collect();
    for params in [
        plain(),
        SamplingParams { top_k: 100, ..plain() },
        SamplingParams { top_p: 0.9999, ..plain() },
        SamplingParams { min_p: 0.5, ..plain() },
    ] {
        assert_distribution(&params, &logits, &probabilities);
    }
}

#[test]
fn top_p_of_a_flat_vocabulary_needs_many_tokens() {
    let logits = vec![0.25_f32; 10_000];
    let ids = draw(&SamplingParams { top_p: 0.5, ..plain() }, &logits, &[], &[], 2000);
    assert!(ids.iter().all(|&id| id < 5000), "of equal tokens the lowest ids are kept");
    assert!(ids.iter().any(|&id| id > 4900));
}

#[test]
fn greedy_is_the_lowest_id_of_the_highest() {
    assert_eq!(greedy(plain(), &[1.0, 5.0, 5.0, 2.0], &[], &[]), 1);
}

#[test]
fn logit_bias_is_added() {
    let params = SamplingParams { logit_bias: vec![(0, 2.5), (1, -10.0), (0, 0.1), (99, 7.0)], ..plain() };
    // 0: 1.0 + 2.5 + 0.1 = 3.6 against 5: 2.5.
    assert_eq!(greedy(params, &LOGITS, &[], &[]), 0);
}

#[test]
fn repeat_penalty_divides_positive_and_multiplies_negative_logits_once_in_its_window() {
    let with = |repeat_penalty, repeat_last_n| SamplingParams { repeat_penalty, repeat_last_n, ..plain() };
    // 3.0 / 2 = 1.5 < 2.5, however often it occurs.
    assert_eq!(greedy(with(2.0, 64), &LOGITS, &[1, 1, 1], &[]), 5);
    // 3.0 / 1.19 = 2.52 > 2.5; twice it would be 2.12.
    assert_eq!(greedy(with(1.19, 64), &LOGITS, &[1, 1], &[]), 1);
    // Out of the window.
    assert_eq!(greedy(with(2.0, 2), &LOGITS, &[1, 0, 0], &[]), 1);
    assert_eq!(greedy(with(2.0, 3), &LOGITS, &[1, 0, 0], &[]), 5);
    assert_eq!(greedy(with(2.0, 0), &LOGITS, &[1], &[]), 1);
    // -1.0 · 2 = -2.0 < -1.5.
    assert_eq!(greedy(with(2.0, 64), &[-1.0, -1.5], &[0], &[]), 1);
    assert_eq!(greedy(with(1.4, 64), &[-1.0, -1.5], &[0], &[]), 0);
}

#[test]
fn presence_counts_once_frequency_each_time_and_the_prompt_not_at_all() {
    let presence = SamplingParams { presence_penalty: 0.4, ..plain() };
    assert_eq!(greedy(presence.clone(), &LOGITS, &[1, 1, 1, 1], &[1, 1]), 1, "3.0 - 0.4 = 2.6");
    let frequency = SamplingParams { frequency_penalty: 0.4, ..plain() };
    assert_eq!(greedy(frequency.clone(), &LOGITS, &[1], &[1]), 1, "3.0 - 0.4 = 2.6");
    assert_eq!(greedy(frequency.clone(), &LOGITS, &[1, 1], &[1, 1]), 5, "3.0 - 0.8 = 2.2");
    assert_eq!(greedy(frequency, &LOGITS, &[1, 1, 1, 1], &[]), 1, "prompt tokens don't count");
    let both = SamplingParams { presence_penalty: 0.3, frequency_penalty: 0.3, ..plain() };
    assert_eq!(greedy(both, &LOGITS, &[], &[1]), 5, "3.0 - 0.6 = 2.4");
    let negative = SamplingParams { presence_penalty: -1.0, ..plain() };
    assert_eq!(greedy(negative, &LOGITS, &[], &[5]), 5, "2.5 + 1.0 = 3.5");
}

#[test]
fn bias_comes_before_the_repeat_penalty_and_that_before_presence() {
    let params = SamplingParams { logit_bias: vec![(0, 4.0)], repeat_penalty: 2.0, presence_penalty: 0.2, ..plain() };
    // 0: (1 + 4) / 2 - 0.2 = 2.3, below 5 with 2.5 and 1 with 3.0; in any other order it wins.
    assert_eq!(greedy(params.clone(), &LOGITS, &[0], &[0]), 1);
    // Against 2.2 it wins; presence before the penalty would give (5 - 0.2) / 2 = 2.4, which beats 2.35.
    assert_eq!(greedy(params.clone(), &[1.0, 2.2], &[0], &[0]), 0);
    assert_eq!(greedy(params, &[1.0, 2.35], &[0], &[0]), 1);
}

#[test]
fn the_same_seed_gives_the_same_tokens_and_another_gives_others() {
    let first = draw(&SamplingParams { seed: Some(42), ..plain() }, &LOGITS, &[], &[], 50);
    assert_eq!(first, draw(&SamplingParams { seed: Some(42), ..plain() }, &LOGITS, &[], &[], 50));
    assert_ne!(first, draw(&SamplingParams { seed: Some(43), ..plain() }, &LOGITS, &[], &[], 50));
    assert_ne!(Sampler::new(SamplingParams { seed: None, ..plain() }).seed(), random_seed());
    assert!(random_seed() < 1 << 53);
}

#[test]
fn tokens_of_a_seed_are_pinned() {
    // A change here changes every seeded answer of every user: it needs a reason and a line in the release notes.
    let tokens = draw(&SamplingParams { seed: Some(7), ..plain() }, &LOGITS, &[], &[], 12);
    assert_eq!(tokens, [1, 1, 3, 5, 3, 1, 1, 5, 1, 5, 1, 1]);
}

#[test]
fn edges_of_the_ranges() {
    assert_eq!(support(&SamplingParams { top_p: 0.0, ..plain() }, &LOGITS), [1], "top_p 0 keeps one");
    assert_eq!(support(&SamplingParams { top_p: 0.0, top_k: 4, ..plain() }, &LOGITS), [1]);
    assert_eq!(support(&SamplingParams { min_p: 1.0, ..plain() }, &LOGITS), [1], "min_p 1 keeps the best");
    assert_eq!(support(&SamplingParams { min_p: 1.0, ..plain() }, &[2.0, 1.0, 2.0]), [0, 2], "and its equals");
    assert_eq!(support(&SamplingParams { top_k: 1, ..plain() }, &[2.0, 1.0, 2.0]), [0]);
    assert_eq!(support(&SamplingParams { top_k: 100, ..plain() }, &[0.0, 0.0]), [0, 1], "top_k beyond the row is off");
    for temperature in [1e-3, 1e-30, f32::MIN_POSITIVE, 1e-45] {
        for base in [plain(), SamplingParams { top_k: 3, ..plain() }, SamplingParams { min_p: 0.01, ..plain() }] {
            assert_eq!(support(&SamplingParams { temperature, ..base }, &LOGITS), [1], "temperature {temperature}");
        }
    }
    let hot = SamplingParams { temperature: f32::MAX, ..plain() };
    assert_eq!(support(&hot, &LOGITS), [0, 1, 2, 3, 4, 5]);
    // −∞ is never drawn, even when everything else is far apart.
    let masked = [f32::NEG_INFINITY, -3.0e38, f32::NEG_INFINITY, 3.0e38];
    for params in [plain(), hot, SamplingParams { top_k: 3, ..plain() }, SamplingParams { top_p: 0.9, ..plain() }] {
        assert!(support(&params, &masked).iter().all(|id| [1, 3].contains(id)));
    }
}

#[test]
fn rows_that_mean_nothing_are_errors_on_every_path() {
    let paths = [
        SamplingParams { temperature: 0.0, ..plain() },
        plain(),
        SamplingParams { top_k: 2, ..plain() },
        SamplingParams { top_p: 0.5, ..plain() },
        SamplingParams { min_p: 0.5, ..plain() },
        SamplingParams { repeat_penalty: 1.1, ..plain() },
    ];
    for params in paths {
        for bad in [vec![1.0, f32::NAN, 2.0], vec![1.0, 2.0, f32::INFINITY], vec![f32::NEG_INFINITY; 5], vec![]] {
            let result = Sampler::new(params.clone()).sample(&bad, &[0], &mut Scratch::default());
            assert!(matches!(result, Err(Error::BadLogits(_))), "{params:?} on {bad:?}: {result:?}");
        }
    }
}

#[test]
fn logprobs_are_the_log_softmax_of_the_raw_row() {
    let exact = softmax(&LOGITS.map(f64::from));
    let result = logprobs(&LOGITS, 0, 3, &mut Scratch::default()).unwrap();
    assert!((f64::from(result.chosen) - exact[0].ln()).abs() < 1e-5);
    assert_eq!(result.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 5, 3]);
    for (id, ln_p) in result.top {
        assert!((f64::from(ln_p) - exact[id as usize].ln()).abs() < 1e-5);
    }
    assert_eq!(logprobs(&LOGITS, 4, 0, &mut Scratch::default()).unwrap().top, []);
    assert!(logprobs(&[f32::NAN], 0, 0, &mut Scratch::default()).is_err());
}
