//! Cuts by probability over a whole vocabulary, without sorting it.

use super::math::{exp_nonpositive, partition_sum};
use super::select::{Candidate, GROUP, by_rank, top_k};
use crate::error::Result;

/// Candidates that are selected and sorted first: nearly always they hold the share that is asked for.
pub(super) const FIRST: usize = 256;
/// Ranges of logits in a natural unit, when `FIRST` candidates are too few.
const RANGES_PER_UNIT: f32 = 16.0;
/// Ranges down to where [`exp_nonpositive`] is 0.
const NUM_RANGES: usize = 87 * RANGES_PER_UNIT as usize + 1;

/// How many of the best candidates together weigh at least `wanted`; at least one. `None`: all of them weigh less.
pub(super) fn prefix_with(sorted: &[Candidate], wanted: f64, max: f32) -> Option<usize> {
    let mut sum = 0.0;
    let last = sorted.iter().position(|candidate| {
        sum += f64::from(exp_nonpositive(candidate.logit - max));
        sum >= wanted
    });
    last.map(|index| index + 1)
}

/// The fewest tokens from the top that have the share `top_p`, in an order that depends on the row only. `max` is the
/// highest logit; `sums` is a buffer.
pub(super) fn top_p_of_all(
    logits: &[f32],
    top_p: f32,
    max: f32,
    candidates: &mut Vec<Candidate>,
    sums: &mut Vec<f64>,
) -> Result<()> {
    let wanted = f64::from(top_p) * partition_sum(logits, max);
    top_k(logits, FIRST, candidates)?;
    candidates.sort_unstable_by(by_rank);
    if let Some(kept) = prefix_with(candidates, wanted, max) {
        candidates.truncate(kept);
        return Ok(());
    }

    // A flat row: thousands of tokens may be needed. Weigh ranges of logits to find the one in which the share is reached;
    // better tokens are in, worse ones out, and only that range has to be sorted.
    let range = |logit: f32| (((max - logit) * RANGES_PER_UNIT) as usize).min(NUM_RANGES);
    sums.clear();
    sums.resize(NUM_RANGES + 1, 0.0);
    for &logit in logits {
        sums[range(logit)] += f64::from(exp_nonpositive(logit - max));
    }
    let mut better = 0.0;
    let crossing = sums.iter().position(|&sum| {
        let reached = better + sum >= wanted;
        if !reached {
            better += sum;
        }
        reached
    });
    let crossing = crossing.unwrap_or(NUM_RANGES);

    candidates.clear();
    let in_ranges = |wanted: fn(&usize, &usize) -> bool| {
        logits.iter().zip(0..).filter_map(move |(&logit, id)| {
            (logit > f32::NEG_INFINITY && wanted(&range(logit), &crossing)).then_some(Candidate { logit, id })
        })
    };
    candidates.extend(in_ranges(usize::lt));
    let num_better = candidates.len();
    candidates.extend(in_ranges(usize::eq));
    let tail = &mut candidates[num_better..];
    tail.sort_unstable_by(by_rank);
    let kept = prefix_with(tail, wanted - better, max).unwrap_or(tail.len());
    candidates.truncate(num_better + kept);
    Ok(())
}

/// Tokens with lower logits have less than the share `min_p` of the best one's probability. A logarithm with room for its
/// error, which differs between platforms: of the others, `exp_nonpositive` decides who is in.
pub(super) fn min_p_threshold(min_p: f32, max: f32) -> f32 {
    max + min_p.ln() * (1.0 + 1e-5) - max.abs() * 1e-6 - 1e-5
}

/// Tokens that may have at least the share `min_p` of the best one's probability, in the order of their ids; a few that
/// have a hair less may be among them. `max` is the highest logit, `min_p` above 0.
pub(super) fn min_p_of_all(logits: &[f32], min_p: f32, max: f32, candidates: &mut Vec<Candidate>) {
    let threshold = min_p_threshold(min_p, max);
    candidates.clear();
    for (index, group) in logits.chunks(GROUP).enumerate() {
        if group.iter().map(|&logit| u32::from(logit >= threshold)).sum::<u32>() == 0 {
            continue;
        }
        let ids = (index * GROUP) as u32..;
        let likely = group.iter().zip(ids).filter(|&(&logit, _)| logit >= threshold && logit > f32::NEG_INFINITY);
        candidates.extend(likely.map(|(&logit, id)| Candidate { logit, id }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// By the definition, in f64: the sorted ids of the nucleus.
    fn by_definition(logits: &[f32], top_p: f32) -> Vec<u32> {
        let mut sorted: Vec<(f32, u32)> =
            logits.iter().copied().zip(0..).filter(|&(logit, _)| logit > f32::NEG_INFINITY).collect();
        sorted.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let max = f64::from(sorted[0].0);
        let weights: Vec<f64> = sorted.iter().map(|&(logit, _)| (f64::from(logit) - max).exp()).collect();
        let wanted = f64::from(top_p) * weights.iter().sum::<f64>();
        let mut sum = 0.0;
        let last = weights.iter().position(|weight| {
            sum += weight;
            sum >= wanted
        });
        sorted.truncate(last.map_or(sorted.len(), |index| index + 1));
        sorted.into_iter().map(|(_, id)| id).collect()
    }

    proptest! {
        #[test]
        fn top_p_is_the_definition_on_peaked_and_flat_rows(
            seed in any::<u64>(),
            len in 1..6000_usize,
            spread in prop_oneof![Just(0.0_f32), Just(0.01), 0.1..3.0_f32, 3.0..60.0_f32],
            top_p in 0.0..0.999_f32,
            masked in 0..20_usize,
        ) {
            let mut state = seed | 1;
            let mut logits: Vec<f32> = (0..len)
                .map(|_| {
                    state ^= state << 13;
                    state ^= state >> 7;
                    state ^= state << 17;
                    (state >> 40) as f32 / (1 << 24) as f32 * spread - 3.0
                })
                .collect();
            for i in 0..masked.min(len - 1) {
                logits[1 + i * 7919 % (len - 1).max(1)] = f32::NEG_INFINITY;
            }
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let (mut candidates, mut sums) = (Vec::new(), Vec::new());
            top_p_of_all(&logits, top_p, max, &mut candidates, &mut sums).unwrap();
            candidates.sort_by(by_rank);
            let got: Vec<u32> = candidates.iter().map(|candidate| candidate.id).collect();
            let want = by_definition(&logits, top_p);
            // Both are heads of the same order; sums of 6000 f32 weights are exact to 1e-6, which is at most a few tokens.
            let common = got.len().min(want.len());
            prop_assert_eq!(&got[..common], &want[..common]);
            prop_assert!(got.len().abs_diff(want.len()) <= 1 + len / 1000, "{} against {}", got.len(), want.len());
        }

        #[test]
        fn min_p_misses_no_token(
            logits in prop::collection::vec(prop_oneof![-100.0..100.0_f32, Just(f32::NEG_INFINITY), Just(7.5)], 1..300),
            min_p in prop_oneof![1e-6..1.0_f32, Just(1.0), Just(0.5), Just(f32::MIN_POSITIVE)],
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            prop_assume!(max > f32::NEG_INFINITY);
            let mut candidates = Vec::new();
            min_p_of_all(&logits, min_p, max, &mut candidates);
            let exact = |candidate: &Candidate| exp_nonpositive(candidate.logit - max) >= min_p;
            let want: Vec<Candidate> =
                logits.iter().zip(0..).map(|(&logit, id)| Candidate { logit, id }).filter(exact).collect();
            let num_extra = candidates.iter().filter(|c| (c.logit - max) < min_p.ln() - 1e-2).count();
            prop_assert_eq!(num_extra, 0);
            candidates.retain(exact);
            prop_assert_eq!(candidates, want);
        }
    }
}
