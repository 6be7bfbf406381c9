//! The input of a step, and everything that must be true of it before any instruction runs.

use std::ops::Range;

use super::{ProgramBuilder, ProgramSize, Reduce};
use crate::cpu::Numerics;
use crate::cpu::attention::{KV_BLOCK, NO_BLOCK};
use crate::cpu::kv::KvPool;

/// A piece of one sequence in a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeqInput {
    /// Its rows among the step's tokens.
    pub rows: Range<usize>,
    /// Position of its first row.
    pub start: usize,
    /// Its block table in [`StepInput::blocks`] and, in the same place, in [`StepInput::window_blocks`].
    pub table: Range<usize>,
}

/// One step's input. `tokens`, `positions` and `seq_of_row` have one entry a row.
#[derive(Debug, Clone, Copy)]
pub struct StepInput<'a> {
    /// Token ids.
    pub tokens: &'a [u32],
    /// The pieces, in the order of their rows, which they cover without gaps.
    pub seqs: &'a [SeqInput],
    /// Index into `seqs` of each row.
    pub seq_of_row: &'a [u32],
    /// Block tables.
    pub blocks: &'a [u32],
    /// The same for the window's pool: [`NO_BLOCK`] where nothing is kept. Empty for a program without one.
    pub window_blocks: &'a [u32],
    /// Rows whose output is wanted.
    pub outputs: &'a [u32],
    /// Rows whose hidden state is wanted. Empty for a program without such an output.
    pub hidden: &'a [u32],
    /// For each rope table: cos and sin, `[rows, half]`.
    pub ropes: &'a [(Vec<f32>, Vec<f32>)],
    /// What a row's result may depend on, beside the tokens of its own sequence up to it.
    pub numerics: Numerics,
    /// What outputs are reduced to, on machines that do; `None`: they are wanted whole.
    pub reduce: Option<Reduce<'a>>,
}

impl StepInput<'_> {
    pub(crate) fn position(&self, row: usize) -> usize {
        let seq = &self.seqs[self.seq_of_row[row] as usize];
        seq.start + row - seq.rows.start
    }

    /// The block tables of a pool.
    pub(crate) fn blocks_in(&self, pool: KvPool) -> &[u32] {
        match pool {
            KvPool::Full => self.blocks,
            KvPool::Window => self.window_blocks,
        }
    }
}

/// Checks the input of steps: what was checked here nobody needs to look at again.
pub(crate) struct InputCheck {
    size: ProgramSize,
    has_hidden: bool,
    /// Values of cos (and of sin) a token, for each rope table.
    rope_halves: Vec<usize>,
    /// Positions that an attention over the window's pool sees at most, the own one included.
    window: usize,
    /// Per block, those of the window's pool last: the step that wrote it last, to refuse a block that is written twice in one.
    writers: Vec<u64>,
    /// Counts steps.
    epoch: u64,
}

impl InputCheck {
    pub(crate) fn new(builder: &ProgramBuilder, size: &ProgramSize) -> Self {
        Self {
            size: *size,
            has_hidden: builder.hidden.is_some(),
            rope_halves: builder.rope_halves.clone(),
            window: builder.largest_window(),
            writers: vec![0; size.num_blocks + size.num_window_blocks],
            epoch: 0,
        }
    }

    /// Everything that an instruction will rely on about this step.
    pub(crate) fn check(&mut self, input: &StepInput<'_>) -> Result<(), String> {
        let num_rows = input.tokens.len();
        if num_rows == 0 || num_rows > self.size.max_tokens || input.outputs.len() > self.size.max_outputs {
            return Err(format!(
                "{num_rows} tokens and {} outputs; at most {} and {}",
                input.outputs.len(),
                self.size.max_tokens,
                self.size.max_outputs
            ));
        }
        if let Some(token) = input.tokens.iter().find(|&&token| token as usize >= self.size.vocab_size) {
            return Err(format!("token {token} is outside the vocabulary of {}", self.size.vocab_size));
        }
        if input.hidden.len() > self.size.max_tokens || (!self.has_hidden && !input.hidden.is_empty()) {
            return Err(format!("{} hidden states; at most {}", input.hidden.len(), self.size.max_tokens));
        }
        if input.outputs.iter().chain(input.hidden).any(|&row| row as usize >= num_rows) {
            return Err("an output row is outside the step".into());
        }
        if input.ropes.len() != self.rope_halves.len()
            || input
                .ropes
                .iter()
                .zip(&self.rope_halves)
                .any(|((cos, sin), half)| cos.len() < half * num_rows || sin.len() < half * num_rows)
        {
            return Err("cos/sin tables don't fit the step".into());
        }
        if input.seq_of_row.len() != num_rows {
            return Err("one sequence index a row".into());
        }
        if input.seqs.len() > self.size.max_tokens {
            return Err(format!("{} sequences; at most {}", input.seqs.len(), self.size.max_tokens));
        }
        let mut next_row = 0;
        self.epoch += 1;
        for (index, seq) in input.seqs.iter().enumerate() {
            if seq.rows.start != next_row || seq.rows.end < next_row || seq.rows.end > num_rows {
                return Err("the sequences don't cover the rows".into());
            }
            next_row = seq.rows.end;
            if seq.rows.clone().any(|row| input.seq_of_row[row] as usize != index) {
                return Err("a row names another sequence than the one it lies in".into());
            }
            let Some(table) = input.blocks.get(seq.table.clone()) else {
                return Err("block table out of range".into());
            };
            if table.iter().any(|&block| block as usize >= self.size.num_blocks) {
                return Err(format!("a block id is outside the pool of {}", self.size.num_blocks));
            }
            if seq.rows.is_empty() {
                continue;
            }
            let end = seq.start + seq.rows.len();
            if end > table.len() * KV_BLOCK {
                return Err(format!("{end} positions in {} blocks", table.len()));
            }
            // A written block belongs to one sequence and appears once in it.
            let written = seq.start / KV_BLOCK..end.div_ceil(KV_BLOCK);
            let mut write = |block: usize| {
                let epoch = self.epoch;
                let before = std::mem::replace(&mut self.writers[block], epoch);
                if before == epoch { Err(format!("block {block} is written twice in one step")) } else { Ok(()) }
            };
            table[written.clone()].iter().try_for_each(|&block| write(block as usize))?;
            if self.size.num_window_blocks == 0 {
                continue;
            }
            let Some(table) = input.window_blocks.get(seq.table.clone()) else {
                return Err("window's block table out of range".into());
            };
            if table.iter().any(|&block| block != NO_BLOCK && block as usize >= self.size.num_window_blocks) {
                return Err(format!("a block id is outside the window's pool of {}", self.size.num_window_blocks));
            }
            // What the first row sees, those after it and the writes need.
            let first = (seq.start + 1).saturating_sub(self.window) / KV_BLOCK;
            if table[first.min(written.start)..written.end].contains(&NO_BLOCK) {
                return Err(format!("positions {}..{end} need a block that has left the window", seq.start));
            }
            table[written].iter().try_for_each(|&block| write(self.size.num_blocks + block as usize))?;
        }
        if next_row != num_rows {
            return Err("the sequences don't cover the rows".into());
        }
        Ok(())
    }
}
