//! Distributions that an engine's thread records and anybody may read: plain atomics with that one writer, so that a step
//! takes no lock and no memory for them. A reader may see a value in the counts and not yet in the sum.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::request::{FinishReason, Timings, Usage};

/// Upper bounds of times, in seconds: from the gap between two tokens of a small model to an answer of minutes.
const SECONDS: [f64; 20] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0,
    500.0, 1000.0,
];
/// Upper bounds of token and sequence counts.
const COUNTS: [f64; 16] =
    [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0, 32768.0];

/// How often values fell between the bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One more than there are bounds: the last is for larger values.
    counts: Box<[AtomicU64]>,
    /// Bits of an f64.
    sum: AtomicU64,
}

/// A [`Histogram`] at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Upper bounds, inclusive, and how many values were not above each.
    pub buckets: Vec<(f64, u64)>,
    /// Values.
    pub count: u64,
    /// Their sum.
    pub sum: f64,
}

impl Histogram {
    fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Adds a value. Only the engine's thread does: the sum is read and written in two steps.
    pub(super) fn record(&self, value: f64) {
        self.counts[self.bounds.partition_point(|&bound| bound < value)].fetch_add(1, Ordering::Relaxed);
        let sum = f64::from_bits(self.sum.load(Ordering::Relaxed)) + value;
        self.sum.store(sum.to_bits(), Ordering::Relaxed);
    }

    fn record_time(&self, time: Duration) {
        self.record(time.as_secs_f64());
    }

    /// What was recorded so far.
    pub fn read(&self) -> Distribution {
        let mut count = 0;
        let mut upto = |counter: &AtomicU64| {
            count += counter.load(Ordering::Relaxed);
            count
        };
        let buckets = self.bounds.iter().zip(&self.counts).map(|(&bound, counter)| (bound, upto(counter))).collect();
        // The total comes from the same reading, so that no bucket ever holds more than it.
        let count = self.counts.last().map_or(0, &mut upto);
        Distribution { buckets, count, sum: f64::from_bits(self.sum.load(Ordering::Relaxed)) }
    }
}

/// What an engine's thread measures. Times are in seconds.
#[derive(Debug)]
pub struct Metrics {
    /// From submission to the first token.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a generation.
    pub inter_token: Histogram,
    /// From submission to the end, of generations that ended by themselves; the same holds for the following ones.
    pub end_to_end: Histogram,
    /// From submission to the first step.
    pub queue: Histogram,
    /// From the first step to the first token.
    pub prefill: Histogram,
    /// From the first token to the last.
    pub decode: Histogram,
    /// Tokens of the prompt.
    pub prompt_tokens: Histogram,
    /// Tokens of the answer.
    pub generated_tokens: Histogram,
    /// Tokens that a step computed.
    pub step_tokens: Histogram,
    /// Sequences that had a part in a step.
    pub step_sequences: Histogram,
    /// The executor's time for a step.
    pub step: Histogram,
    stopped: AtomicU64,
    cut: AtomicU64,
    slow_readers: AtomicU64,
}

impl Metrics {
    pub(super) fn new() -> Self {
        let [times, counts] = [|| Histogram::new(&SECONDS), || Histogram::new(&COUNTS)];
        Self {
            time_to_first_token: times(),
            inter_token: times(),
            end_to_end: times(),
            queue: times(),
            prefill: times(),
            decode: times(),
            prompt_tokens: counts(),
            generated_tokens: counts(),
            step_tokens: counts(),
            step_sequences: counts(),
            step: times(),
            stopped: AtomicU64::new(0),
            cut: AtomicU64::new(0),
            slow_readers: AtomicU64::new(0),
        }
    }

    /// Generations that ended for this reason; one stop is like another.
    pub fn finished(&self, reason: FinishReason) -> u64 {
        self.counter(reason).load(Ordering::Relaxed)
    }

    /// Generations that were cancelled because their client left too much unread.
    pub fn slow_readers(&self) -> u64 {
        self.slow_readers.load(Ordering::Relaxed)
    }

    fn counter(&self, reason: FinishReason) -> &AtomicU64 {
        match reason {
            FinishReason::Stop | FinishReason::StopString(_) => &self.stopped,
            FinishReason::Length => &self.cut,
        }
    }

    /// A step was computed.
    pub(super) fn step(&self, num_tokens: usize, num_sequences: usize, time: Duration) {
        self.step_tokens.record(num_tokens as f64);
        self.step_sequences.record(num_sequences as f64);
        self.step.record_time(time);
    }

    /// A generation's first token came so long after its submission.
    pub(super) fn first_token(&self, since_submission: Duration) {
        self.time_to_first_token.record_time(since_submission);
    }

    /// A later token came so long after the one before it.
    pub(super) fn next_token(&self, gap: Duration) {
        self.inter_token.record_time(gap);
    }

    /// A generation ended by itself.
    pub(super) fn ended(&self, reason: FinishReason, usage: &Usage, timings: &Timings) {
        self.counter(reason).fetch_add(1, Ordering::Relaxed);
        let Timings { queue_ms, prompt_ms, predicted_ms } = *timings;
        self.end_to_end.record((queue_ms + prompt_ms + predicted_ms) / 1e3);
        self.queue.record(queue_ms / 1e3);
        self.prefill.record(prompt_ms / 1e3);
        self.decode.record(predicted_ms / 1e3);
        self.prompt_tokens.record(usage.prompt_tokens as f64);
        self.generated_tokens.record(usage.completion_tokens as f64);
    }

    /// An embedding was computed. It has no answer, so that what is measured of answers leaves it out.
    pub(super) fn embedded(&self, usage: &Usage, timings: &Timings) {
        self.queue.record(timings.queue_ms / 1e3);
        self.prefill.record(timings.prompt_ms / 1e3);
        self.prompt_tokens.record(usage.prompt_tokens as f64);
    }

    /// A generation was cancelled because its client left too much unread.
    pub(super) fn slow_reader(&self) {
        self.slow_readers.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_on_a_bound_belongs_below_it() {
        let histogram = Histogram::new(&COUNTS[..3]);
        for value in [0.0, 1.0, 1.5, 4.0, 4.5] {
            histogram.record(value);
        }
        let expected = Distribution { buckets: vec![(1.0, 2), (2.0, 3), (4.0, 4)], count: 5, sum: 11.0 };
        assert_eq!(histogram.read(), expected);
    }

    #[test]
    fn bounds_grow() {
        assert!(SECONDS.is_sorted_by(|a, b| a < b) && COUNTS.is_sorted_by(|a, b| a < b));
    }
}
