//! [`State`]: the sequences, their blocks, and the choice of each step's work.

use std::collections::VecDeque;

use crate::error::{Error, Result};
use crate::exec::OutputRows;
use crate::kv::{BLOCK_TOKENS, BlockPool, BlockTable};

/// A sequence. Ids grow with the time of submission and are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// What the scheduler may hand out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Most tokens in a step; at least 1.
    pub max_step_tokens: usize,
    /// Most sequences that run at once; at least 1. Never more than rows of output in a step or tokens in a step: then
    /// each running sequence can have its next token in every step.
    pub max_running: usize,
    /// Blocks in the pool.
    pub num_blocks: usize,
    /// Most tokens of one sequence.
    pub max_context: usize,
}

impl Capacity {
    /// Most tokens that one sequence can ever have: its context, as far as the pool holds it.
    pub fn max_sequence_tokens(&self) -> usize {
        self.max_context.min(self.num_blocks.saturating_mul(BLOCK_TOKENS))
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
    /// `Last` when the piece reaches the last known token, else `None`.
    pub output: OutputRows,
}

/// One step's work. Reused from step to step.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepPlan {
    /// What to compute; each sequence at most once.
    pub pieces: Vec<Piece>,
    /// Sequences that lost their blocks in favour of older ones and wait again.
    pub preempted: Vec<SeqId>,
}

impl StepPlan {
    /// Tokens over all pieces.
    pub fn num_tokens(&self) -> usize {
        self.pieces.iter().map(|piece| piece.len).sum()
    }
}

#[derive(Debug)]
struct Sequence {
    id: SeqId,
    /// Tokens whose keys and values are in the cache.
    num_computed: usize,
    /// Tokens known: the prompt and what was generated.
    num_tokens: usize,
    table: BlockTable,
}

/// All sequences of one executor.
#[derive(Debug)]
pub struct State {
    capacity: Capacity,
    pool: BlockPool,
    /// Oldest first; each owns blocks for at least its `num_computed` tokens.
    running: Vec<Sequence>,
    /// Oldest first, all younger than the running ones; they own no blocks.
    waiting: VecDeque<Sequence>,
    next_id: u64,
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
            pool: BlockPool::new(capacity.num_blocks),
            running: Vec::new(),
            waiting: VecDeque::new(),
            next_id: 0,
        }
    }

    /// Lets a sequence wait for its first step: `num_tokens` prompt tokens that may grow to `max_total`.
    ///
    /// # Errors
    /// [`Error::ContextLength`] when `max_total` tokens could never be held, even by a sequence that runs alone.
    pub fn submit(&mut self, num_tokens: usize, max_total: usize) -> Result<SeqId> {
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
        self.waiting.push_back(Sequence { id, num_computed: 0, num_tokens, table: BlockTable::default() });
        Ok(id)
    }

    /// Chooses the next step's work and takes the blocks for it. After the step, call [`advance`](Self::advance), then
    /// for each piece with an output either [`append`](Self::append) or [`remove`](Self::remove).
    ///
    /// The plan is empty only if no sequence is left. The oldest sequence always makes progress: it takes blocks from
    /// the youngest ones, and alone it fits, as [`submit`](Self::submit) made sure.
    pub fn schedule(&mut self, plan: &mut StepPlan) {
        plan.pieces.clear();
        plan.preempted.clear();
        let mut budget = self.capacity.max_step_tokens;

        let mut index = 0;
        while index < self.running.len() && budget > 0 {
            let seq = &self.running[index];
            let len = (seq.num_tokens - seq.num_computed).min(budget);
            // Without blocks, the youngest keeps what it has and sits this step out: recomputing it would cost more
            // than waiting for an older one to end, and an older one that needs its blocks takes them.
            if len > 0 && self.secure(index, len, plan) {
                plan.pieces.push(piece(&self.running[index], len));
                budget -= len;
            }
            index += 1;
        }

        // Blocks that were just taken from a sequence would go straight back to it.
        if plan.preempted.is_empty() {
            self.admit(budget, plan);
        }
    }

    /// Makes room for the next `len` tokens of a running sequence, at the cost of younger ones.
    fn secure(&mut self, index: usize, len: usize, plan: &mut StepPlan) -> bool {
        loop {
            let seq = &mut self.running[index];
            if seq.table.reserve(seq.num_computed + len, &mut self.pool).is_ok() {
                return true;
            }
            if index + 1 == self.running.len() {
                return false;
            }
            // Younger ones come later in this step, so the victim has no piece in the plan yet.
            if let Some(mut victim) = self.running.pop() {
                victim.table.clear(&mut self.pool);
                victim.num_computed = 0;
                plan.preempted.push(victim.id);
                self.waiting.push_front(victim);
            }
        }
    }

    fn admit(&mut self, mut budget: usize, plan: &mut StepPlan) {
        while budget > 0 && self.running.len() < self.capacity.max_running {
            let Some(seq) = self.waiting.front_mut() else { return };
            // Room for all known tokens at once: two half-computed prompts can't starve each other of blocks. One more
            // block for each running sequence keeps it from being preempted again by the next few tokens of the others.
            let wanted = BlockPool::blocks_for(seq.num_tokens) + self.running.len();
            if wanted > self.pool.num_free() || seq.table.reserve(seq.num_tokens, &mut self.pool).is_err() {
                return;
            }
            let len = seq.num_tokens.min(budget);
            plan.pieces.push(piece(seq, len));
            budget -= len;
            self.running.extend(self.waiting.pop_front());
        }
    }

    /// Notes that the plan's pieces were computed.
    pub fn advance(&mut self, plan: &StepPlan) {
        for piece in &plan.pieces {
            if let Ok(index) = self.running.binary_search_by_key(&piece.id, |seq| seq.id) {
                self.running[index].num_computed = piece.start + piece.len;
            }
        }
    }

    /// Adds a token to a running sequence: the one that was sampled after its last.
    pub fn append(&mut self, id: SeqId) {
        if let Ok(index) = self.running.binary_search_by_key(&id, |seq| seq.id) {
            self.running[index].num_tokens += 1;
        }
    }

    /// Ends a sequence, wherever it is, and frees its blocks at once. Unknown ids are ignored.
    pub fn remove(&mut self, id: SeqId) {
        if let Ok(index) = self.running.binary_search_by_key(&id, |seq| seq.id) {
            self.running.remove(index).table.clear(&mut self.pool);
        } else if let Ok(index) = self.waiting.binary_search_by_key(&id, |seq| seq.id) {
            self.waiting.remove(index);
        }
    }

    /// Block table of a running sequence; empty for others.
    pub fn blocks(&self, id: SeqId) -> &[u32] {
        match self.running.binary_search_by_key(&id, |seq| seq.id) {
            Ok(index) => self.running[index].table.blocks(),
            Err(_) => &[],
        }
    }

    /// No sequence is left.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Sequences with blocks.
    pub fn num_running(&self) -> usize {
        self.running.len()
    }

    /// Sequences without blocks.
    pub fn num_waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Free blocks.
    pub fn num_free_blocks(&self) -> usize {
        self.pool.num_free()
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
        self.pool.check(self.running.iter().chain(&self.waiting).map(|seq| &seq.table))?;
        let ids: Vec<SeqId> = self.running.iter().chain(&self.waiting).map(|seq| seq.id).collect();
        if !ids.is_sorted_by(|a, b| a < b) {
            return Err(format!("sequences are out of order: {ids:?}"));
        }
        for seq in &self.running {
            if seq.table.blocks().len() * BLOCK_TOKENS < seq.num_computed {
                return Err(format!("sequence {:?} has more computed tokens than room", seq.id));
            }
        }
        for seq in &self.waiting {
            if seq.num_computed != 0 || !seq.table.blocks().is_empty() {
                return Err(format!("sequence {:?} waits with blocks or computed tokens", seq.id));
            }
        }
        Ok(())
    }
}

fn piece(seq: &Sequence, len: usize) -> Piece {
    let end = seq.num_computed + len;
    let output = if end == seq.num_tokens { OutputRows::Last } else { OutputRows::None };
    Piece { id: seq.id, start: seq.num_computed, len, num_tokens: seq.num_tokens, output }
}
