//! Executors without a model, for tests of the engine and of what is built on it.
//!
//! [`TestExecutor`] keeps the tokens themselves in its "KV cache", by block and slot, and computes its logits from the
//! whole history that it reads back through the block table. A wrong block table, start position or chunk therefore
//! changes the answer or is an error. What a window's pool must hold of the history is compared with it.

use std::borrow::Cow;

use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};
use crate::exec::{Executor, HiddenRows, KvTypes, Limits, OutputRows, PrefixReuse, SeqStep, StepBatch, StepOutput};
use crate::kv::{BLOCK_TOKENS, KvPool, NO_BLOCK};

/// Tokens 0..=255 are the bytes; [`END`](Self::END) ends an answer.
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteVocabulary;

impl ByteVocabulary {
    /// The end-of-generation token.
    pub const END: u32 = 256;
    /// Tokens.
    pub const SIZE: usize = 257;

    /// Ids of a text.
    pub fn encode(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }
}

impl Vocabulary for ByteVocabulary {
    fn token_bytes(&self, id: u32) -> Cow<'_, [u8]> {
        u8::try_from(id).map_or(Cow::Borrowed(&[]), |byte| Cow::Owned(vec![byte]))
    }

    fn end_of_generation(&self) -> &[u32] {
        &[Self::END]
    }

    fn vocab_size(&self) -> usize {
        Self::SIZE
    }
}

/// What a step is shown to before it is computed; it may sleep, block, fail or panic. The number counts from 0.
pub type StepHook = Box<dyn FnMut(u64, &StepBatch) -> Result<()> + Send>;

/// From the tokens so far to the next.
type NextToken = Box<dyn Fn(&[u32]) -> u32 + Send>;

/// How logits follow from a sequence.
enum Logits {
    /// Pseudo-random, of all tokens and their order: nothing but the right history gives the right row.
    Hash,
    /// High for one token: the script's, counted from the end of the prompt.
    Script(Vec<u32>),
    /// High for the token that the function finds for the history.
    Next(NextToken),
}

/// A token and a position.
const SLOT_BYTES: usize = size_of::<u32>() + size_of::<u64>();

/// An executor with exact expectations of its batches.
pub struct TestExecutor {
    limits: Limits,
    vocab_size: usize,
    logits: Logits,
    hook: StepHook,
    num_steps: u64,
    /// Token and position in each slot. `[num_kv_blocks · BLOCK_TOKENS]`
    cache: Vec<Option<(u32, usize)>>,
    /// The same of the window's pool.
    window_cache: Vec<Option<(u32, usize)>>,
    /// For each block that holds a sequence's first tokens: the sequence's length when they were written. `[num_kv_blocks]`
    prompt_tokens: Vec<usize>,
    rows: Vec<f32>,
    hidden: Vec<f32>,
}

impl TestExecutor {
    /// Comfortable limits: 128 blocks, a context of 2048, 64 tokens and 32 rows a step.
    pub const LIMITS: Limits =
        Limits { max_step_tokens: 64, max_step_outputs: 32, num_kv_blocks: 128, window: None, max_context: 2048 };

    fn new(limits: Limits, vocab_size: usize, logits: Logits) -> Self {
        Self {
            limits,
            vocab_size,
            logits,
            hook: Box::new(|_, _| Ok(())),
            num_steps: 0,
            cache: vec![None; limits.num_kv_blocks * BLOCK_TOKENS],
            window_cache: vec![None; limits.num_blocks(KvPool::Window) * BLOCK_TOKENS],
            prompt_tokens: vec![0; limits.num_kv_blocks],
            rows: Vec::new(),
            hidden: Vec::new(),
        }
    }

    /// Logits that depend on everything; see [`hash_logits`].
    pub fn hashing(limits: Limits, vocab_size: usize) -> Self {
        Self::new(limits, vocab_size, Logits::Hash)
    }

    /// Answers every prompt with this text in the [`ByteVocabulary`] and then ends. Of a sequence that was preempted it
    /// can't tell where the prompt ended: give it blocks for all.
    pub fn spelling(text: &str, limits: Limits) -> Self {
        let mut script = ByteVocabulary::encode(text);
        script.push(ByteVocabulary::END);
        Self::spelling_tokens(script, ByteVocabulary::SIZE, limits)
    }

    /// [`spelling`](Self::spelling) with tokens of any vocabulary; after the last it goes on with the last, so end with the
    /// end-of-generation token.
    pub fn spelling_tokens(script: Vec<u32>, vocab_size: usize, limits: Limits) -> Self {
        Self::new(limits, vocab_size, Logits::Script(script))
    }

    /// Goes on with the token that `next` finds for the tokens so far.
    pub fn continuing(next: impl Fn(&[u32]) -> u32 + Send + 'static, vocab_size: usize, limits: Limits) -> Self {
        Self::new(limits, vocab_size, Logits::Next(Box::new(next)))
    }

    /// Shows each step to `hook` before it is computed.
    #[must_use]
    pub fn with_hook(mut self, hook: impl FnMut(u64, &StepBatch) -> Result<()> + Send + 'static) -> Self {
        self.hook = Box::new(hook);
        self
    }

    fn check_limits(&self, batch: &StepBatch) -> Result<()> {
        let num_outputs = batch.num_outputs();
        if batch.tokens.len() > self.limits.max_step_tokens || num_outputs > self.limits.max_step_outputs {
            return Err(broken(format!("{} tokens and {num_outputs} rows in a step", batch.tokens.len())));
        }
        if batch.seqs.is_empty() {
            return Err(broken("a step without work".into()));
        }
        for seq in &batch.seqs {
            let end = seq.start + seq.tokens.len();
            if seq.tokens.is_empty() || end > seq.num_tokens || seq.num_tokens > self.limits.max_context {
                return Err(broken(format!("a piece {}..{end} of {} tokens", seq.start, seq.num_tokens)));
            }
            // The hidden states of a text's beginning may be wanted, or of nothing but its end.
            let is_text = seq.output == OutputRows::AllHidden;
            if !is_text && (seq.output != OutputRows::None) != (end == seq.num_tokens) {
                return Err(broken(format!("output {:?} at {end} of {}", seq.output, seq.num_tokens)));
            }
            if seq.blocks.len() * BLOCK_TOKENS < end {
                return Err(broken(format!("{} blocks for {end} tokens", seq.blocks.len())));
            }
        }
        if self.limits.window.is_some() {
            batch.validate(&self.limits, self.vocab_size)?;
        }
        if let Some(block) = batch.blocks.iter().find(|&&block| block as usize >= self.limits.num_kv_blocks) {
            return Err(broken(format!("block {block} is outside the pool")));
        }
        if let Some(token) = batch.tokens.iter().find(|&&token| token as usize >= self.vocab_size) {
            return Err(broken(format!("token {token} is outside the vocabulary")));
        }
        Ok(())
    }

    fn write(&mut self, batch: &StepBatch) {
        for seq in &batch.seqs {
            let blocks = &batch.blocks[seq.blocks.clone()];
            if seq.start == 0 {
                self.prompt_tokens[blocks[0] as usize] = seq.num_tokens;
            }
            for (position, &token) in (seq.start..).zip(&batch.tokens[seq.tokens.clone()]) {
                self.cache[slot(blocks, position)] = Some((token, position));
                if self.limits.window.is_some() {
                    let blocks = &batch.window_blocks[seq.blocks.clone()];
                    self.window_cache[slot(blocks, position)] = Some((token, position));
                }
            }
        }
    }

    /// The window's pool must hold what the piece's tokens see, and `history` is all of it.
    fn check_window(&self, batch: &StepBatch, seq: &SeqStep, history: &[u32]) -> Result<()> {
        let Some(window) = self.limits.window else { return Ok(()) };
        let blocks = &batch.window_blocks[seq.blocks.clone()];
        for (position, &token) in history.iter().enumerate().skip((seq.start + 1).saturating_sub(window.num_tokens)) {
            let found = match blocks[position / BLOCK_TOKENS] {
                NO_BLOCK => return Err(broken(format!("position {position} is seen and fell out of the window"))),
                _ => self.window_cache[slot(blocks, position)],
            };
            if found != Some((token, position)) {
                return Err(broken(format!("the window's slot of position {position} holds {found:?}")));
            }
        }
        Ok(())
    }

    fn read(&self, blocks: &[u32], num_tokens: usize) -> Result<Vec<u32>> {
        let mut history = Vec::with_capacity(num_tokens);
        for position in 0..num_tokens {
            match self.cache[slot(blocks, position)] {
                Some((token, written)) if written == position => history.push(token),
                other => return Err(broken(format!("the slot of position {position} holds {other:?}"))),
            }
        }
        Ok(history)
    }
}

/// Where a position lies in a cache.
fn slot(blocks: &[u32], position: usize) -> usize {
    blocks[position / BLOCK_TOKENS] as usize * BLOCK_TOKENS + position % BLOCK_TOKENS
}

fn broken(what: String) -> Error {
    Error::Unsupported(format!("test executor: {what}"))
}

/// The rows of [`TestExecutor::hashing`]: between -4 and 4, from all tokens and their order.
pub fn hash_logits(history: &[u32], vocab_size: usize) -> impl Iterator<Item = f32> {
    let state = history.iter().fold(0, |state, &token| mix(state ^ (u64::from(token) + 1)));
    (0..vocab_size as u64).map(move |id| (mix(state ^ (id << 32)) >> 40) as f32 / (1 << 21) as f32 - 4.0)
}

/// Elements of a hidden state.
pub const HIDDEN: usize = 8;

/// The hidden state after these tokens: between -4 and 4, from all of them and their order, whatever the logits follow from.
pub fn hash_hidden(history: &[u32]) -> impl Iterator<Item = f32> {
    hash_logits(history, HIDDEN)
}

/// SplitMix64's finaliser.
fn mix(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Executor for TestExecutor {
    fn name(&self) -> &'static str {
        "test"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    /// It stores tokens; nobody asks how large they are.
    fn kv_types(&self) -> KvTypes {
        KvTypes::default()
    }

    /// A script counts from the end of the prompt, which can't be told of a prompt that begins in the cache.
    fn prefix_reuse(&self) -> PrefixReuse {
        match self.logits {
            Logits::Script(_) => PrefixReuse::DependsOnLength,
            Logits::Hash | Logits::Next(_) => PrefixReuse::Exact,
        }
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<()> {
        self.limits.check_block(pool, from.max(to))?;
        let cache = match pool {
            KvPool::Full => {
                self.prompt_tokens[to as usize] = self.prompt_tokens[from as usize];
                &mut self.cache
            }
            KvPool::Window => &mut self.window_cache,
        };
        let start = |block: u32| block as usize * BLOCK_TOKENS;
        cache.copy_within(start(from)..start(from) + BLOCK_TOKENS, start(to));
        Ok(())
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        if self.limits.num_blocks(pool) == 0 { 0 } else { BLOCK_TOKENS * SLOT_BYTES }
    }

    /// Each slot's token and position, or ones where there is none.
    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<()> {
        self.limits.check_block(pool, block)?;
        let cache = match pool {
            KvPool::Full => &self.cache,
            KvPool::Window => &self.window_cache,
        };
        for slot in &cache[block as usize * BLOCK_TOKENS..][..BLOCK_TOKENS] {
            let (token, position) = slot.map_or((u32::MAX, u64::MAX), |(token, position)| (token, position as u64));
            into.extend(token.to_le_bytes());
            into.extend(position.to_le_bytes());
        }
        Ok(())
    }

    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> Result<()> {
        self.limits.check_block(pool, block)?;
        if bytes.len() != self.block_bytes(pool) {
            return Err(broken(format!("{} bytes for a block", bytes.len())));
        }
        let cache = match pool {
            KvPool::Full => &mut self.cache,
            KvPool::Window => &mut self.window_cache,
        };
        let slots = &mut cache[block as usize * BLOCK_TOKENS..];
        for (slot, bytes) in slots.iter_mut().zip(bytes.as_chunks::<SLOT_BYTES>().0) {
            let [a, b, c, d, position @ ..] = *bytes;
            let token = u32::from_le_bytes([a, b, c, d]);
            *slot = (token != u32::MAX).then(|| (token, u64::from_le_bytes(position) as usize));
        }
        Ok(())
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        (self.hook)(self.num_steps, batch)?;
        self.num_steps += 1;
        self.check_limits(batch)?;
        self.write(batch);
        self.rows.clear();
        self.hidden.clear();
        for seq in &batch.seqs {
            let blocks = &batch.blocks[seq.blocks.clone()];
            let history = self.read(blocks, seq.start + seq.tokens.len())?;
            self.check_window(batch, seq, &history)?;
            let positions = seq.start..history.len();
            for position in seq.output.hidden(positions.clone()) {
                self.hidden.extend(hash_hidden(&history[..=position]));
            }
            for position in seq.output.logits(positions) {
                let history = &history[..=position];
                let next = match &self.logits {
                    Logits::Hash => {
                        self.rows.extend(hash_logits(history, self.vocab_size));
                        continue;
                    }
                    Logits::Script(script) => {
                        let generated = history.len() - self.prompt_tokens[blocks[0] as usize].min(history.len());
                        script.get(generated).or(script.last()).copied().unwrap_or_default()
                    }
                    Logits::Next(next) => next(history),
                };
                // e^30 against 1: no sampling parameters in their ranges draw anything else, short of absurd temperatures.
                self.rows.extend((0..self.vocab_size).map(|id| if id == next as usize { 30.0 } else { 0.0 }));
            }
        }
        let hidden = HiddenRows { width: HIDDEN, data: &self.hidden };
        Ok(StepOutput { num_rows: batch.num_outputs(), width: self.vocab_size, data: &self.rows, kept: None, hidden })
    }
}
