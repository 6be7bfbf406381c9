//! What a load gave, in numbers: percentiles, JSON, Markdown.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use super::client::Api;
use super::drive::{Arrivals, Extent, Outcome, Shape};

/// Milliseconds at three ranks; `None` when nothing was measured.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: f64,
    /// 90 of 100 are not above it.
    pub p90: f64,
    /// 99 of 100 are not above it.
    pub p99: f64,
}

impl Percentiles {
    /// Of these times, by nearest rank.
    pub fn of(times: impl Iterator<Item = Duration>) -> Option<Self> {
        let mut ms: Vec<f64> = times.map(|time| time.as_secs_f64() * 1e3).collect();
        ms.sort_unstable_by(f64::total_cmp);
        let rank = |percent: usize| ms.get((ms.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50: rank(50)?, p90: rank(90)?, p99: rank(99)? })
    }
}

/// Whether answers had the lengths that were asked for, and whose counts they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TokenCounts {
    /// The server's, and all are as asked.
    Exact,
    /// The server's, some not as asked.
    Differ,
    /// The server gave none: events with text were counted.
    Events,
}

/// One load's numbers.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Level {
    /// Clients or requests a second.
    pub arrivals: Arrivals,
    /// Requests that were answered to their end.
    pub answered: usize,
    /// The others, by kind.
    pub errors: BTreeMap<String, usize>,
    /// From the first request to the last answer.
    pub wall_s: f64,
    /// Generated tokens of whole answers, by wall time.
    pub generated_tokens_per_s: f64,
    /// Prompt tokens of answered requests, by wall time.
    pub prompt_tokens_per_s: f64,
    /// Answered requests, by wall time.
    pub requests_per_s: f64,
    /// Of prompts and answers.
    pub prompt_counts: TokenCounts,
    /// Of answers.
    pub output_counts: TokenCounts,
    /// From sending to the first text.
    pub first_token_ms: Option<Percentiles>,
    /// Between two texts of an answer.
    pub inter_token_ms: Option<Percentiles>,
    /// From sending to the end.
    pub end_to_end_ms: Option<Percentiles>,
    /// The generator's share of one CPU; `None` where the system doesn't tell.
    pub generator_cpu: Option<f64>,
}

impl Level {
    /// From what a load gave. `is_exact` says that the prompts were made to their length.
    pub fn new(arrivals: Arrivals, outcome: &Outcome) -> Self {
        let Outcome { answered, failed, wall, generator_cpu } = outcome;
        let wall_s = wall.as_secs_f64().max(1e-9);
        let mut errors = BTreeMap::new();
        for failure in failed {
            *errors.entry(failure.kind()).or_default() += 1;
        }
        let (mut prompt, mut output) = (Counted::default(), Counted::default());
        for (timeline, wanted) in answered {
            prompt.add(timeline.usage.map(|usage| usage.prompt_tokens), wanted.prompt, 0);
            output.add(timeline.usage.map(|usage| usage.completion_tokens), wanted.output, timeline.gaps.len() + 1);
        }
        let times = || answered.iter().map(|(timeline, _)| timeline);
        Self {
            arrivals,
            answered: answered.len(),
            errors,
            wall_s,
            generated_tokens_per_s: output.tokens as f64 / wall_s,
            prompt_tokens_per_s: prompt.tokens as f64 / wall_s,
            requests_per_s: answered.len() as f64 / wall_s,
            prompt_counts: prompt.kind(),
            output_counts: output.kind(),
            first_token_ms: Percentiles::of(times().map(|timeline| timeline.first)),
            inter_token_ms: Percentiles::of(times().flat_map(|timeline| timeline.gaps.iter().copied())),
            end_to_end_ms: Percentiles::of(times().map(|timeline| timeline.total)),
            generator_cpu: generator_cpu.map(|cpu| cpu.as_secs_f64() / wall_s),
        }
    }

    /// Requests without a whole answer.
    pub fn failed(&self) -> usize {
        self.errors.values().sum()
    }

    /// `16 clients` or `4 requests/s`.
    pub fn label(&self) -> String {
        match self.arrivals {
            Arrivals::Concurrency(clients) => format!("{clients} clients"),
            Arrivals::Rate(rate) => format!("{rate} requests/s"),
        }
    }
}

#[derive(Default)]
struct Counted {
    tokens: usize,
    differ: bool,
    uncounted: bool,
}

impl Counted {
    fn add(&mut self, counted: Option<usize>, wanted: usize, otherwise: usize) {
        self.tokens += counted.unwrap_or(otherwise);
        self.uncounted |= counted.is_none();
        self.differ |= counted.is_some_and(|tokens| tokens != wanted);
    }

    fn kind(&self) -> TokenCounts {
        match (self.uncounted, self.differ) {
            (true, _) => TokenCounts::Events,
            (false, true) => TokenCounts::Differ,
            (false, false) => TokenCounts::Exact,
        }
    }
}

/// All loads of a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Who was measured.
    pub server: String,
    /// Which model, as far as it is known.
    pub model: Option<String>,
    /// Which resource.
    pub api: Api,
    /// What the requests were like.
    pub shape: Shape,
    /// When each load ended; `None`: after a number of requests that depends on the load.
    pub extent: Option<Extent>,
    /// Each load.
    pub levels: Vec<Level>,
}

impl Report {
    /// A heading, a table, and what its columns mean.
    pub fn markdown(&self) -> String {
        let Shape { prompt, output, temperature, seed, shared_prefix, .. } = &self.shape;
        let model = self.model.as_deref().unwrap_or("its model");
        let mut text = format!(
            "## {model} on {}\n\nPrompts of {prompt} tokens, answers of {output}, temperature {temperature}, seed {seed}",
            self.server
        );
        if *shared_prefix > 0 {
            text += &format!(", the first {shared_prefix} tokens of all prompts the same");
        }
        text += ". Times in ms, p50 / p90 / p99.\n\n\
                 | load | answered | failed | generated tok/s | requests/s | first token | between tokens | whole answer | generator's share of a CPU |\n\
                 |---|---|---|---|---|---|---|---|---|\n";
        for level in &self.levels {
            let cpu = level.generator_cpu.map_or_else(|| "unknown".into(), |share| format!("{:.0}%", share * 100.0));
            text += &format!(
                "| {} | {} | {} | {:.1} | {:.2} | {} | {} | {} | {cpu} |\n",
                level.label(),
                level.answered,
                level.failed(),
                level.generated_tokens_per_s,
                level.requests_per_s,
                cell(level.first_token_ms),
                cell(level.inter_token_ms),
                cell(level.end_to_end_ms),
            );
        }
        for level in &self.levels {
            for (kind, count) in &level.errors {
                text += &format!("\n{}: {count} × {kind}\n", level.label());
            }
            for (what, counts) in [("prompts", level.prompt_counts), ("answers", level.output_counts)] {
                let note = match counts {
                    TokenCounts::Exact => continue,
                    TokenCounts::Differ => "some have other lengths than asked for; rates count the server's `usage`",
                    TokenCounts::Events => "the server sends no `usage`; rates count events",
                };
                text += &format!("\n{}: {what}: {note}\n", level.label());
            }
        }
        text
    }
}

fn cell(times: Option<Percentiles>) -> String {
    // Below 10 ms a tenth matters.
    let ms = |ms: f64| if ms < 10.0 { format!("{ms:.1}") } else { format!("{ms:.0}") };
    times.map_or_else(|| "none".into(), |times| format!("{} / {} / {}", ms(times.p50), ms(times.p90), ms(times.p99)))
}

#[cfg(test)]
mod tests {
    use super::super::client::{Failure, Timeline, Usage};
    use super::super::drive::Wanted;
    use super::super::workload::Length;
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn percentiles_are_nearest_ranks() {
        assert_eq!(Percentiles::of(std::iter::empty()), None);
        assert_eq!(Percentiles::of([ms(7)].into_iter()), Some(Percentiles { p50: 7.0, p90: 7.0, p99: 7.0 }));
        let hundred = (1..=100).rev().map(ms);
        assert_eq!(Percentiles::of(hundred), Some(Percentiles { p50: 50.0, p90: 90.0, p99: 99.0 }));
    }

    fn outcome(usage: Option<Usage>) -> Outcome {
        let timeline = Timeline { first: ms(20), gaps: vec![ms(5); 3], total: ms(35), usage };
        let answered = vec![(timeline, Wanted { prompt: 10, output: 4 }); 5];
        let failed = vec![
            Failure::Timeout(ms(1)),
            Failure::Status { status: 429, body: String::new() },
            Failure::Status { status: 429, body: String::new() },
        ];
        Outcome { answered, failed, wall: ms(2000), generator_cpu: Some(ms(100)) }
    }

    #[test]
    fn rates_count_whole_answers() {
        let usage = Usage { prompt_tokens: 10, completion_tokens: 4 };
        let level = Level::new(Arrivals::Concurrency(5), &outcome(Some(usage)));
        assert_eq!((level.answered, level.failed()), (5, 3));
        assert_eq!(level.errors, BTreeMap::from([("timeout".into(), 1), ("status 429".into(), 2)]));
        assert_eq!((level.generated_tokens_per_s, level.prompt_tokens_per_s, level.requests_per_s), (10.0, 25.0, 2.5));
        assert_eq!((level.prompt_counts, level.output_counts), (TokenCounts::Exact, TokenCounts::Exact));
        assert_eq!(level.inter_token_ms.unwrap().p99, 5.0);
        assert_eq!(level.generator_cpu, Some(0.05));
        let wrong = Usage { prompt_tokens: 10, completion_tokens: 3 };
        assert_eq!(Level::new(Arrivals::Rate(1.0), &outcome(Some(wrong))).output_counts, TokenCounts::Differ);
        let level = Level::new(Arrivals::Rate(1.0), &outcome(None));
        assert_eq!((level.output_counts, level.generated_tokens_per_s), (TokenCounts::Events, 10.0));
    }

    #[test]
    fn the_table_says_what_failed_and_whose_counts_they_are() {
        let shape = Shape {
            prompt: Length::Fixed(10),
            output: Length::Uniform(2, 9),
            shared_prefix: 0,
            temperature: 0.0,
            seed: 1,
            limit: ms(1000),
        };
        let levels = vec![Level::new(Arrivals::Concurrency(5), &outcome(None))];
        let (server, api) = ("http://x:1".into(), Api::Completions);
        let text = Report { server, model: None, api, shape, extent: None, levels }.markdown();
        let row = "| 5 clients | 5 | 3 | 10.0 | 2.50 | 20 / 20 / 20 | 5.0 / 5.0 / 5.0 | 35 / 35 / 35 | 5% |";
        assert!(text.contains(row), "{text}");
        assert!(
            text.contains("answers of 2-9") && text.contains("2 × status 429") && text.contains("no `usage`"),
            "{text}"
        );
    }
}
