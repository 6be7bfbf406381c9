//! What goes into the engine and what comes out of it.

use std::time::Duration;

pub use crate::exec::Numerics;
pub use crate::kv::PrefixMiss;
pub use crate::sched::Class;

/// How tokens are drawn. The processors run in the order of the fields; see `crate::sample`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Added to the logits of single tokens.
    pub logit_bias: Vec<(u32, f32)>,
    /// Divides positive and multiplies negative logits of the last `repeat_last_n` tokens; 1 is off.
    pub repeat_penalty: f32,
    /// Window of `repeat_penalty`; counts prompt tokens too.
    pub repeat_last_n: usize,
    /// Subtracted once from the logit of each token generated so far.
    pub presence_penalty: f32,
    /// Subtracted for each occurrence of a token generated so far.
    pub frequency_penalty: f32,
    /// Keep the `top_k` most probable tokens; 0 is off.
    pub top_k: usize,
    /// Keep the smallest set whose probability reaches this; 1 is off.
    pub top_p: f32,
    /// Keep tokens with at least this share of the best one's probability; 0 is off.
    pub min_p: f32,
    /// 0 is greedy.
    pub temperature: f32,
    /// `None`: drawn at random and reported in [`Event::Done`].
    pub seed: Option<u64>,
}

impl Default for SamplingParams {
    /// The server's defaults where the model names none.
    fn default() -> Self {
        Self {
            logit_bias: Vec::new(),
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.05,
            temperature: 0.8,
            seed: None,
        }
    }
}

/// Whether a request takes part in the prefix cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PromptCache {
    /// It takes what the cache has of its prompt, and leaves its own for later ones.
    #[default]
    Use,
    /// It computes all of its prompt and leaves nothing.
    Skip,
}

/// Whether several tokens of an answer are tried in one step. It changes how long an answer takes and not which it is,
/// but for the rounding of steps with more rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Speculation {
    /// One token a step.
    #[default]
    Off,
    /// Guesses what followed the last tokens when they occurred before.
    Ngram,
    /// Guesses what a draft model finds likeliest. Only for an engine that has one.
    Draft,
}

/// One generation.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// Token ids; not empty.
    pub prompt: Vec<u32>,
    /// Most tokens to generate; `None`: to the end of the context.
    pub max_tokens: Option<usize>,
    /// How to draw.
    pub sampling: SamplingParams,
    /// Texts that end the answer and are not part of it. Found across token edges.
    pub stop: Vec<String>,
    /// Token ids that end the answer, beside the model's own.
    pub stop_token_ids: Vec<u32>,
    /// Go on after an end-of-generation token.
    pub ignore_eos: bool,
    /// Report the log-probability of each token and of this many alternatives.
    pub logprobs: Option<usize>,
    /// Whether it may share computed prompts with others.
    pub prompt_cache: PromptCache,
    /// Whether its answer may depend on who else is answered meanwhile.
    pub numerics: Numerics,
    /// Whether tokens are guessed; `None`: as the engine's options say.
    pub speculation: Option<Speculation>,
    /// Whose it is and how urgent.
    pub class: Class,
    /// Most time from submission to the last token; after it the generation fails.
    pub deadline: Option<Duration>,
}

impl GenerateRequest {
    /// To the end of the answer or of the context, with default sampling.
    pub fn new(prompt: Vec<u32>) -> Self {
        Self {
            prompt,
            max_tokens: None,
            sampling: SamplingParams::default(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            logprobs: None,
            prompt_cache: PromptCache::Use,
            numerics: Numerics::Fast,
            speculation: None,
            class: Class::default(),
            deadline: None,
        }
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// End of generation token or stop token.
    Stop,
    /// A stop string: its place among those of the request.
    StopString(usize),
    /// `max_tokens` or the end of the context.
    Length,
}

/// Token counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the prompt that were found in the cache.
    pub cached_tokens: usize,
    /// Why they aren't more; `None`: all that could be used was found.
    pub cache_miss: Option<PrefixMiss>,
    /// Tokens generated, the ending one included.
    pub completion_tokens: usize,
    /// Guesses that were computed.
    pub guessed_tokens: usize,
    /// Those of them that were right; they are among the tokens generated.
    pub accepted_tokens: usize,
}

/// Wall-clock times.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Timings {
    /// From submission to the first step.
    pub queue_ms: f64,
    /// From the first step to the first token.
    pub prompt_ms: f64,
    /// From the first token to the last.
    pub predicted_ms: f64,
}

/// Log-probability of one token (natural logarithm, of the distribution before temperature and truncation).
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub id: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// ln p.
    pub logprob: f32,
}

/// What a generation sends to its client.
#[derive(Debug)]
pub enum Event {
    /// Text that is complete UTF-8 and can't be part of a stop string any more. May be empty when only `logprobs` are new.
    Text {
        /// The text.
        text: String,
        /// For each token that this text completes: the chosen token and its alternatives, if asked for.
        logprobs: Vec<(TokenLogprob, Vec<TokenLogprob>)>,
    },
    /// The last event of a generation that ended by itself.
    Done {
        /// Why.
        reason: FinishReason,
        /// Counts.
        usage: Usage,
        /// Times.
        timings: Timings,
        /// Seed that was used.
        seed: u64,
    },
    /// The last event of a generation that failed.
    Failed(crate::error::Error),
}
