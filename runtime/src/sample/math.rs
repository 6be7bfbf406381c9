//! Passes over rows of logits, written so that the compiler vectorises them: independent lanes, no early exits inside
//! a chunk. Results don't depend on the platform: basic IEEE operations in a fixed order only.

use crate::error::{Error, Result};

/// Independent accumulators of a pass; a multiple of every vector width.
const LANES: usize = 16;
/// Logits between two looks at the flags of a pass.
pub(super) const CHUNK: usize = 1024;

/// e^x for x ≤ 0, to 3 ulp; below -87 it is 0, where an f32 would become subnormal. Unlike `f32::exp` it is the same on
/// every platform, and it vectorises.
#[inline(always)]
pub fn exp_nonpositive(x: f32) -> f32 {
    // Adding 1.5 · 2^23 rounds to an integer, which then stands in the low bits of the sum.
    const ROUND: f32 = 12_582_912.0;
    // ln 2 in two parts: the first has so few bits that its product with |n| ≤ 126 is exact.
    const LN2_HIGH: f32 = 355.0 / 512.0;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    // Taylor series on |r| ≤ 0.35: the first term left out, r^8 / 8!, is below 6e-9.
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let exponent = rounded.to_bits().wrapping_sub(ROUND.to_bits()).wrapping_add(127) << 23;
    let value = p * f32::from_bits(exponent);
    if x < -87.0 { 0.0 } else { value }
}

/// The error for a row that holds NaN or +∞, or nothing but −∞.
pub(super) fn bad_logits(what: &str) -> Error {
    Error::BadLogits(what.to_owned())
}

/// Fails unless every logit is a number or −∞.
pub(super) fn check_logit(logit: f32) -> Result<()> {
    if logit.is_nan() {
        return Err(bad_logits("a logit is NaN"));
    }
    if logit == f32::INFINITY {
        return Err(bad_logits("a logit is +∞"));
    }
    Ok(())
}

/// Highest logit of a chunk; the flag is set if one is NaN or +∞.
#[inline(always)]
fn chunk_max(chunk: &[f32]) -> (f32, bool) {
    let mut max = [f32::NEG_INFINITY; LANES];
    let mut good = [1_u32; LANES];
    let lanes = chunk.chunks_exact(LANES);
    let rest = lanes.remainder();
    for group in lanes {
        for lane in 0..LANES {
            let x = group[lane];
            max[lane] = if x > max[lane] { x } else { max[lane] };
            // Neither NaN nor +∞ is ≤ the largest finite number.
            good[lane] &= u32::from(x <= f32::MAX);
        }
    }
    for (lane, &x) in rest.iter().enumerate() {
        max[lane] = if x > max[lane] { x } else { max[lane] };
        good[lane] &= u32::from(x <= f32::MAX);
    }
    let highest = max.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    (highest, good.contains(&0))
}

/// Index and value of the highest logit; of equal ones the lowest index.
///
/// # Errors
/// [`Error::BadLogits`] for NaN, +∞, and a row of nothing but −∞.
pub fn argmax(logits: &[f32]) -> Result<(u32, f32)> {
    let (mut best, mut best_chunk) = (f32::NEG_INFINITY, None);
    for (index, chunk) in logits.chunks(CHUNK).enumerate() {
        let (max, bad) = chunk_max(chunk);
        if bad {
            chunk.iter().try_for_each(|&logit| check_logit(logit))?;
        }
        if max > best {
            (best, best_chunk) = (max, Some(index * CHUNK));
        }
    }
    let start = best_chunk.ok_or_else(|| bad_logits("every logit is −∞"))?;
    let offset = logits[start..].iter().position(|&logit| logit == best).unwrap_or(0);
    Ok(((start + offset) as u32, best))
}

/// Σ weight(logit) over a chunk.
#[inline(always)]
pub(super) fn sum_of(chunk: &[f32], weight: impl Fn(f32) -> f32) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let lanes = chunk.chunks_exact(LANES);
    let rest = lanes.remainder();
    for group in lanes {
        for lane in 0..LANES {
            sums[lane] += weight(group[lane]);
        }
    }
    for (lane, &logit) in rest.iter().enumerate() {
        sums[lane] += weight(logit);
    }
    sums.iter().map(|&sum| f64::from(sum)).sum()
}

/// Σ e^(logit - max) over a row of finite logits or −∞, none above `max`.
pub(super) fn partition_sum(logits: &[f32], max: f32) -> f64 {
    logits.chunks(CHUNK).map(|chunk| sum_of(chunk, |logit| exp_nonpositive(logit - max))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_the_real_one() {
        let mut x = 0.0_f32;
        while x > -86.9 {
            let (got, want) = (f64::from(exp_nonpositive(x)), f64::from(x).exp());
            assert!(((got - want) / want).abs() < 4e-7, "e^{x}: {got} against {want}");
            x -= 0.000_917;
        }
        assert_eq!(exp_nonpositive(0.0), 1.0);
        assert_eq!(exp_nonpositive(-0.0), 1.0);
        for x in [-87.01, -1e4, f32::MIN, f32::NEG_INFINITY] {
            assert_eq!(exp_nonpositive(x), 0.0, "e^{x}");
        }
        assert!(exp_nonpositive(-87.0) > 0.0);
    }

    #[test]
    fn argmax_takes_the_lowest_id_of_equals_at_every_length() {
        for len in [1, 2, 15, 16, 17, 1023, 1024, 1025, 5000] {
            let mut logits = vec![-1.0_f32; len];
            assert_eq!(argmax(&logits).unwrap(), (0, -1.0));
            for best in [0, len / 2, len - 1] {
                logits[best] = 3.0;
                logits[len - 1] = 3.0;
                assert_eq!(argmax(&logits).unwrap(), (best as u32, 3.0), "length {len}");
                logits.fill(-1.0);
            }
        }
    }

    #[test]
    fn argmax_refuses_rows_that_mean_nothing() {
        for (bad, says) in [(f32::NAN, "NaN"), (f32::INFINITY, "+∞")] {
            for at in [0, 7, 1500, 1999] {
                let mut logits = vec![0.5_f32; 2000];
                logits[at] = bad;
                assert!(argmax(&logits).unwrap_err().to_string().contains(says), "{bad} at {at}");
            }
        }
        assert!(argmax(&[f32::NEG_INFINITY; 20]).unwrap_err().to_string().contains("−∞"));
        assert!(argmax(&[]).is_err());
        assert_eq!(argmax(&[f32::NEG_INFINITY, -5.0]).unwrap(), (1, -5.0));
    }

    #[test]
    fn partition_sum_is_close_to_the_real_one() {
        let logits: Vec<f32> = (0..5003).map(|i| ((i * 7919) % 2003) as f32 / -100.0).collect();
        let want: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        let got = partition_sum(&logits, 0.0);
        assert!((got / want - 1.0).abs() < 1e-6, "{got} against {want}");
    }
}
