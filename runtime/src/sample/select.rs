//! Partial selection: the highest logits of a row without sorting it.

use std::cmp::Ordering;

use super::math::{bad_logits, check_logit};
use crate::error::Result;
pub(super) use crate::exec::Candidate;

/// Logits that are looked at together: one compare pass decides whether any of them matters.
pub(super) const GROUP: usize = 64;

/// Highest logit first, of equal ones the lowest id: a total order, as no logit is NaN.
pub(super) fn by_rank(a: &Candidate, b: &Candidate) -> Ordering {
    b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id))
}

/// Puts the `k` highest finite logits into `out`, in no order; fewer if the row has fewer.
///
/// # Errors
/// `BadLogits` for NaN or +∞ anywhere, and a row of nothing but −∞.
pub(super) fn top_k(logits: &[f32], k: usize, out: &mut Vec<Candidate>) -> Result<()> {
    out.clear();
    // Candidates pile up to this many before the worst are thrown out: selecting costs their number, so it must at
    // least double between two selections.
    let pile = k.saturating_add(k.max(GROUP));
    let mut threshold = f32::NEG_INFINITY;
    for (index, group) in logits.chunks(GROUP).enumerate() {
        // NaN is not ≤ anything, so it gets to the slow path and is found there. Ids grow, so an equal logit that comes
        // later loses against those that are in.
        if group.iter().map(|&logit| u32::from(logit <= threshold)).sum::<u32>() == group.len() as u32 {
            continue;
        }
        for (offset, &logit) in group.iter().enumerate() {
            check_logit(logit)?;
            if logit > threshold {
                // −0 and 0 are equal logits, but `total_cmp` tells them apart.
                out.push(Candidate { logit: logit + 0.0, id: (index * GROUP + offset) as u32 });
            }
        }
        if out.len() >= pile || (threshold == f32::NEG_INFINITY && out.len() >= k) {
            keep_best(out, k);
            threshold = out.iter().map(|candidate| candidate.logit).fold(f32::INFINITY, f32::min);
        }
    }
    keep_best(out, k);
    if out.is_empty() {
        return Err(bad_logits("every logit is −∞"));
    }
    Ok(())
}

fn keep_best(candidates: &mut Vec<Candidate>, k: usize) {
    if k < candidates.len() {
        candidates.select_nth_unstable_by(k, by_rank);
        candidates.truncate(k);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn top_k_is_the_head_of_the_sorted_row(
            logits in prop::collection::vec(
                prop_oneof![(-9..9_i8).prop_map(f32::from), Just(f32::NEG_INFINITY), Just(-0.0), -50.0..50.0_f32],
                1..700,
            ),
            k in 1..300_usize,
        ) {
            let mut sorted: Vec<(f32, u32)> = logits.iter().copied().zip(0..).collect();
            sorted.retain(|&(logit, _)| logit > f32::NEG_INFINITY);
            sorted.sort_by(|a, b| b.0.partial_cmp(&a.0).unwrap().then(a.1.cmp(&b.1)));
            sorted.truncate(k);
            let mut out = Vec::new();
            let result = top_k(&logits, k, &mut out);
            prop_assert_eq!(result.is_err(), sorted.is_empty());
            out.sort_by(by_rank);
            prop_assert_eq!(out.iter().map(|c| (c.logit, c.id)).collect::<Vec<_>>(), sorted);
        }
    }

    #[test]
    fn nan_and_infinity_are_found_wherever_they_are() {
        for bad in [f32::NAN, f32::INFINITY] {
            for at in [0, 70, 999] {
                let mut logits: Vec<f32> = (0..1000).map(|i| -(i as f32)).collect();
                logits[at] = bad;
                assert!(top_k(&logits, 5, &mut Vec::new()).is_err(), "{bad} at {at}");
            }
        }
    }

    #[test]
    fn rising_and_falling_rows() {
        for rising in [true, false] {
            let logits: Vec<f32> = (0..10_000).map(|i| if rising { i as f32 } else { -(i as f32) }).collect();
            let mut out = Vec::new();
            top_k(&logits, 3, &mut out).unwrap();
            out.sort_by(by_rank);
            let ids: Vec<u32> = out.iter().map(|c| c.id).collect();
            assert_eq!(ids, if rising { [9999, 9998, 9997] } else { [0, 1, 2] });
        }
    }
}
