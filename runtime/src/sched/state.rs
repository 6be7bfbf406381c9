//! [`State`]: the sequences, their blocks, and the choice of each step's work.

use super::queue::WaitQueue;
use super::sequence::{Class, SeqId, Sequence};
use crate::error::{Error, Result};
use crate::exec::OutputRows;
use crate::kv::{BLOCK_TOKENS, BlockPool, BlockTable, CachedBlock, KvPool, KvWindow, Prefix, PrefixMiss, PrefixSpace};

/// What the scheduler may hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Most tokens in a step; at least 1.
    pub max_step_tokens: usize,
    /// Most rows of output in a step. Those that the running sequences leave are for guesses.
    pub max_step_outputs: usize,
    /// Most sequences that run at once; at least 1. Never more than rows of output in a step or tokens in a step: then
    /// each running sequence can have its next token in every step.
    pub max_running: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// The pool of the layers that see a window only, if they have one of their own.
    pub window: Option<KvWindow>,
    /// Most tokens of one sequence.
    pub max_context: usize,
}

impl Capacity {
    /// Most tokens that one sequence can ever have: its context, as far as the pool holds it.
    pub fn max_sequence_tokens(&self) -> usize {
        // A window's pool that holds what one sequence ever needs at once holds sequences of any length.
        let of_window = |window: KvWindow| {
            let enough = window.num_blocks >= KvWindow::blocks_each(window.num_tokens, self.max_step_tokens);
            if enough { usize::MAX } else { window.num_blocks }
        };
        let num_blocks = self.num_blocks.min(self.window.map_or(usize::MAX, of_window));
        self.max_context.min(num_blocks.saturating_mul(BLOCK_TOKENS))
    }
}

/// A piece of a sequence to compute in this step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Whose.
    pub id: SeqId,
    /// Position of the first token; as many are computed.
    pub start: usize,
    /// Tokens; at least 1.
    pub len: usize,
    /// Tokens of the sequence known so far.
    pub num_tokens: usize,
    /// Guessed tokens that are computed after `len` known ones; then `len` is 1.
    pub num_guesses: usize,
    /// `Last` when the piece reaches the last known token, `All` when it has guesses too, else `None`.
    pub output: OutputRows,
}

/// A sequence that got its blocks in this step, for the first time or again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admission {
    /// Whose.
    pub id: SeqId,
    /// Tokens whose keys and values were found in the cache: its first piece starts there.
    pub cached_tokens: usize,
    /// Why they aren't more.
    pub miss: Option<PrefixMiss>,
}

/// One step's work. Reused from step to step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// What to compute; each sequence at most once.
    pub pieces: Vec<Piece>,
    /// Sequences that lost their blocks in favour of others and wait again.
    pub preempted: Vec<SeqId>,
    /// Sequences that got blocks.
    pub admitted: Vec<Admission>,
}

impl StepPlan {
    /// Tokens over all pieces.
    pub fn num_tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len + piece.num_guesses).sum()
    }
}

/// A second sequence with the tokens of another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fork {
    /// The new one.
    pub id: SeqId,
    /// To be copied before the next step: one block of each pool at most.
    pub copies: [Option<BlockCopy>; 2],
}

/// A block whose content must be copied to another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockCopy {
    /// Whose ids these are.
    pub pool: KvPool,
    /// From here.
    pub from: u32,
    /// To here.
    pub to: u32,
}

/// Where the tokens of sequences are. The scheduler hands them to the prefix cache.
pub trait TokenSource {
    /// All known tokens of a sequence: as many as the scheduler was told of.
    fn tokens(&self, id: SeqId) -> &[u32];

    /// Called when a sequence with more `tokens` than the cache holds is about to get its blocks: whoever has computed blocks of
    /// them elsewhere may bring them back into the pool. Says whether there are more of them in the cache now.
    fn recall(&self, _space: PrefixSpace, _tokens: &[u32], _pool: &mut BlockPool) -> bool {
        false
    }
}

/// All sequences of one executor.
#[derive(Debug)]
pub struct State {
    capacity: Capacity,
    pool: BlockPool,
    /// By rank; each owns blocks for at least its `num_computed` tokens.
    running: Vec<Sequence>,
    /// They own no blocks.
    waiting: WaitQueue,
    next_id: u64,
    num_admissions: u64,
}

impl State {
    /// No sequences, all blocks free.
    pub fn new(capacity: Capacity) -> Self {
        let capacity = Capacity {
            max_step_tokens: capacity.max_step_tokens.max(1),
            max_running: capacity.max_running.min(capacity.max_step_tokens).max(1),
            ..capacity
        };
        Self {
            capacity,
            pool: match capacity.window {
                Some(window) => BlockPool::with_window(capacity.num_blocks, window, capacity.max_step_tokens),
                None => BlockPool::new(capacity.num_blocks),
            },
            running: Vec::new(),
            waiting: WaitQueue::default(),
            next_id: 0,
            num_admissions: 0,
        }
    }

    /// Lets a sequence wait for its first step: `num_tokens` prompt tokens that may grow to `max_total`. With a `space` it
    /// takes what that space of the prefix cache holds of it, and leaves its own blocks there.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when `max_total` tokens could never be held, even by a sequence that runs alone.
    pub fn submit(
        &mut self,
        num_tokens: usize,
        max_total: usize,
        class: Class,
        space: Option<PrefixSpace>,
    ) -> Result<SeqId> {
        let context_tokens = self.capacity.max_sequence_tokens();
        if num_tokens == 0 {
            return Err(Error::InvalidRequest { param: "prompt", message: "has no tokens".into() });
        }
        if max_total.max(num_tokens) > context_tokens {
            return Err(Error::ContextLength {
                prompt_tokens: num_tokens,
                max_tokens: max_total.saturating_sub(num_tokens),
                context_tokens,
            });
        }
        let id = SeqId(self.next_id);
        self.next_id += 1;
        self.waiting.push(Sequence::new(id, num_tokens, class, space));
        Ok(id)
    }

    /// Chooses the next step's work and takes the blocks for it. After the step, call [`advance`](Self::advance), then
    /// for each piece with an output either [`append`](Self::append) or [`remove`](Self::remove).
    ///
    /// The plan is empty only if no sequence is left. The first of the running sequences always makes progress: it takes
    /// blocks from the last ones, and alone it fits, as [`submit`](Self::submit) made sure.
    pub fn schedule(&mut self, plan: &mut StepPlan, tokens: &dyn TokenSource) {
        plan.pieces.clear();
        plan.preempted.clear();
        plan.admitted.clear();
        let mut budget = self.capacity.max_step_tokens;
        let mut guess_rows = self.capacity.max_step_outputs.saturating_sub(self.capacity.max_running);

        let mut index = 0;
        while index < self.running.len() {
            // No more sequences run than a step has tokens: each can have one, whatever prompts there are before it.
            let for_later = self.running.len() - index - 1;
            let seq = &self.running[index];
            let len = (seq.num_tokens - seq.num_computed).min(budget - for_later);
            // Without blocks, the last one keeps what it has and sits this step out: recomputing it would cost more than
            // waiting for another one to end, and one that ranks higher takes its blocks if it needs them.
            if len > 0 && self.secure(index, len, plan) {
                let num_guesses = self.take_guesses(index, guess_rows.min(budget - for_later - len));
                plan.pieces.push(self.running[index].piece(len, num_guesses));
                budget -= len + num_guesses;
                guess_rows -= num_guesses;
            }
            index += 1;
        }

        // Blocks that were just taken from a sequence would go straight back to it.
        if plan.preempted.is_empty() {
            self.admit(budget, plan, tokens);
        }
    }

    /// How many guesses of a sequence, at most `most`, are computed with its next token. They never take another's blocks.
    fn take_guesses(&mut self, index: usize, most: usize) -> usize {
        let (num_running, context_tokens) = (self.running.len(), self.capacity.max_sequence_tokens());
        let seq = &mut self.running[index];
        let wanted = std::mem::take(&mut seq.num_guesses).min(most).min(context_tokens - seq.num_tokens);
        if wanted == 0 || !seq.decodes() {
            return 0;
        }
        if self.pool.num_spare() > num_running {
            // Without success there is less room, which the next line sees.
            let _ = seq.table.reserve(seq.num_tokens + wanted, &mut self.pool);
        }
        wanted.min(seq.table.room().saturating_sub(seq.num_tokens))
    }

    /// Makes room for the next `len` tokens of a running sequence, at the cost of those that rank lower.
    fn secure(&mut self, index: usize, len: usize, plan: &mut StepPlan) -> bool {
        let seq = &mut self.running[index];
        seq.table.release(seq.num_computed, &mut self.pool);
        loop {
            let seq = &mut self.running[index];
            if seq.table.reserve(seq.num_computed + len, &mut self.pool).is_ok() {
                return true;
            }
            if index + 1 == self.running.len() {
                return false;
            }
            // Lower ranks come later in this step, so the victim has no piece in the plan yet.
            if let Some(mut victim) = self.running.pop() {
                victim.table.clear(&mut self.pool);
                victim.num_computed = 0;
                victim.num_guesses = 0;
                plan.preempted.push(victim.id);
                self.waiting.resume(victim);
            }
        }
    }

    fn admit(&mut self, mut budget: usize, plan: &mut StepPlan, tokens: &dyn TokenSource) {
        while budget > 0 && self.running.len() < self.capacity.max_running {
            let Some(next) = self.waiting.front() else { return };
            let mut prefix = self.find(next, tokens);
            // Room for all known tokens at once: two half-computed prompts can't starve each other of blocks. One more
            // block for each running sequence keeps it from being preempted again by the next few tokens of the others.
            if !self.pool.has_room(next.num_tokens, &prefix, self.running.len()) {
                return;
            }
            // Now it is sure to be admitted. What comes back takes blocks that it needs anyway.
            if matches!(prefix.miss, Some(PrefixMiss::NoMatch | PrefixMiss::Evicted))
                && let (Some(space), Some(known)) = (next.space, tokens.tokens(next.id).get(..next.num_tokens - 1))
                && tokens.recall(space, known, &mut self.pool)
            {
                prefix = self.pool.find(space, known);
                // What came back may be a longer way into the text, whose window nobody else has.
                if !self.pool.has_room(next.num_tokens, &prefix, self.running.len()) {
                    return;
                }
            }
            let Some(mut seq) = self.waiting.pop() else { return };
            seq.table = BlockTable::with_prefix(&prefix, &mut self.pool);
            seq.num_computed = prefix.num_tokens();
            if seq.table.reserve(seq.num_tokens, &mut self.pool).is_err() {
                // Can't be: they were counted above. But a sequence must not get lost over it.
                seq.table.clear(&mut self.pool);
                seq.num_computed = 0;
                self.waiting.resume(seq);
                return;
            }
            let len = (seq.num_tokens - seq.num_computed).min(budget);
            plan.pieces.push(seq.piece(len, 0));
            plan.admitted.push(Admission { id: seq.id, cached_tokens: seq.num_computed, miss: prefix.miss });
            budget -= len;
            self.run(seq);
        }
    }

    /// The cached part of a waiting sequence. The last token is always computed: its row is wanted.
    fn find(&self, seq: &Sequence, tokens: &dyn TokenSource) -> Prefix {
        match (seq.space, tokens.tokens(seq.id).get(..seq.num_tokens - 1)) {
            (Some(space), Some(tokens)) => self.pool.find(space, tokens),
            _ => Prefix::none(PrefixMiss::Disabled),
        }
    }

    fn run(&mut self, mut seq: Sequence) {
        seq.admission = self.num_admissions;
        self.num_admissions += 1;
        let place = self.running.partition_point(|other| other.rank() < seq.rank());
        self.running.insert(place, seq);
    }

    /// Asks for the number of guesses of each sequence that computes a single token in the next step.
    pub fn guess(&mut self, mut num_guesses: impl FnMut(SeqId) -> usize) {
        for seq in self.running.iter_mut().filter(|seq| seq.decodes()) {
            seq.num_guesses = num_guesses(seq.id);
        }
    }

    /// Notes that the first `num_right` guesses of a sequence's last piece were right: the tokens were told to
    /// [`append`](Self::append), and are computed already.
    pub fn accept(&mut self, id: SeqId, num_right: usize) {
        if let Some(index) = self.position(id) {
            self.running[index].num_computed += num_right;
        }
    }

    /// Notes that the plan's pieces were computed, and caches the blocks that they filled.
    pub fn advance(&mut self, plan: &StepPlan, tokens: &dyn TokenSource) {
        for piece in &plan.pieces {
            let Some(index) = self.position(piece.id) else { continue };
            let seq = &mut self.running[index];
            seq.num_computed = piece.start + piece.len;
            if let (Some(space), Some(tokens)) = (seq.space, tokens.tokens(seq.id).get(..seq.num_computed)) {
                seq.table.cache(space, tokens, &mut self.pool);
            }
        }
    }

    /// Adds a token to a sequence: the one that was sampled after its last.
    pub fn append(&mut self, id: SeqId) {
        if let Some(index) = self.position(id) {
            self.running[index].num_tokens += 1;
        } else if let Some(seq) = self.waiting.get_mut(id) {
            seq.num_tokens += 1;
        }
    }

    /// A second sequence that goes on from the tokens of a running one, all of which are computed. They share the full
    /// blocks, and the begun one is copied. Where there is no room, the new one waits like one that was preempted. `None` for
    /// a sequence that doesn't run.
    pub fn fork(&mut self, of: SeqId) -> Option<Fork> {
        let parent = &self.running[self.position(of)?];
        let id = SeqId(self.next_id);
        self.next_id += 1;
        let mut seq = Sequence::new(id, parent.num_tokens, parent.class, parent.space);
        let num_running = self.running.len();
        // As for an admission: a block to spare for each running sequence.
        if num_running >= self.capacity.max_running || 1 + num_running > self.pool.num_spare() {
            self.waiting.resume(seq);
            return Some(Fork { id, copies: [None; 2] });
        }
        let num_computed = parent.num_computed;
        // The last block of each pool, if it's only begun.
        let begun = |table: &BlockTable| {
            let tables = [(KvPool::Full, table.blocks()), (KvPool::Window, table.window_blocks())];
            tables.map(|(pool, blocks)| (pool, blocks.get(num_computed / BLOCK_TOKENS).copied()))
        };
        let of_parent = begun(&parent.table);
        seq.table = parent.table.share_prefix(num_computed, &mut self.pool);
        if seq.table.reserve(num_computed, &mut self.pool).is_ok() {
            seq.num_computed = num_computed;
        }
        let own = begun(&seq.table);
        self.run(seq);
        let copy = |index: usize| {
            let (pool, from) = of_parent[index];
            Some(BlockCopy { pool, from: from?, to: own[index].1? })
        };
        Some(Fork { id, copies: [copy(0), copy(1)] })
    }

    /// Ends a sequence, wherever it is, and frees its blocks at once. Unknown ids are ignored.
    pub fn remove(&mut self, id: SeqId) {
        match self.position(id) {
            Some(index) => self.running.remove(index).table.clear(&mut self.pool),
            None => drop(self.waiting.remove(id)),
        }
    }

    /// Where a running sequence is. They are few, and sorted by another thing than the id.
    fn position(&self, id: SeqId) -> Option<usize> {
        self.running.iter().position(|seq| seq.id == id)
    }

    /// The table of a running sequence that leaves its blocks in this space of the prefix cache.
    pub fn cached_table(&self, id: SeqId) -> Option<(PrefixSpace, &BlockTable)> {
        let seq = &self.running[self.position(id)?];
        Some((seq.space?, &seq.table))
    }

    /// Every block of the prefix cache; see [`BlockPool::cached`].
    pub fn cached(&self) -> Vec<CachedBlock<'_>> {
        self.pool.cached()
    }

    /// Block table of a running sequence; empty for others.
    pub fn blocks(&self, id: SeqId) -> &[u32] {
        self.position(id).map_or(&[], |index| self.running[index].table.blocks())
    }

    /// The same of the pool for layers with a window, with a [`NO_BLOCK`](crate::kv::NO_BLOCK) where the sequence needs none
    /// any more; empty where there is no such pool.
    pub fn window_blocks(&self, id: SeqId) -> &[u32] {
        self.position(id).map_or(&[], |index| self.running[index].table.window_blocks())
    }

    /// No sequence is left.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences with blocks, in the order of their rank.
    pub fn running(&self) -> impl Iterator<Item = SeqId> {
        self.running.iter().map(|seq| seq.id)
    }

    /// Sequences with blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences without blocks.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Blocks that nobody owns, cached ones included.
    pub fn num_free_blocks(&self) -> usize {
        self.pool.num_free()
    }

    /// Blocks that nobody owns and that hold a cached prefix.
    pub fn num_cached_blocks(&self) -> usize {
        self.pool.num_idle()
    }

    /// As [`num_free_blocks`](Self::num_free_blocks) of the window's pool; 0 where there is none.
    pub fn num_free_window_blocks(&self) -> usize {
        self.pool.num_free_window()
    }

    /// As [`num_cached_blocks`](Self::num_cached_blocks) of the window's pool.
    pub fn num_cached_window_blocks(&self) -> usize {
        self.pool.num_idle_window()
    }

    /// What it hands out.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Checks what must hold between any two calls.
    ///
    /// # Errors
    /// Says which invariant is broken, for which sequence or block.
    pub fn check(&self) -> Result<(), String> {
        self.pool.check(self.running.iter().chain(self.waiting.iter()).map(|seq| &seq.table))?;
        if !self.running.is_sorted_by(|a, b| a.rank() < b.rank()) {
            return Err("running sequences are out of order".into());
        }
        if self.running.len() > self.capacity.max_running {
            return Err(format!("{} sequences run", self.running.len()));
        }
        for seq in &self.running {
            if seq.table.room() < seq.num_computed {
                return Err(format!("sequence {:?} has more computed tokens than room", seq.id));
            }
        }
        for seq in self.waiting.iter() {
            if seq.num_computed != 0 || !seq.table.blocks().is_empty() {
                return Err(format!("sequence {:?} waits with blocks or computed tokens", seq.id));
            }
        }
        if self.waiting.iter().count() != self.waiting.len() {
            return Err(format!("{} sequences wait, counted as {}", self.waiting.iter().count(), self.waiting.len()));
        }
        Ok(())
    }
}
