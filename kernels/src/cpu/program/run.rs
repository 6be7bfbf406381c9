//! Runs a step.

use std::ops::Range;

use super::ops::Run;
use super::*;
use crate::cpu::Numerics;
use crate::cpu::attention::{KV_BLOCK, NO_BLOCK};
use crate::cpu::team::Worker;

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
}

impl StepInput<'_> {
    pub(super) fn position(&self, row: usize) -> usize {
        let seq = &self.seqs[self.seq_of_row[row] as usize];
        seq.start + row - seq.rows.start
    }

    /// The block tables of a pool.
    pub(super) fn blocks_in(&self, pool: KvPool) -> &[u32] {
        match pool {
            KvPool::Full => self.blocks,
            KvPool::Window => self.window_blocks,
        }
    }
}

impl Program {
    /// Runs one step and returns `[outputs, width]`.
    ///
    /// # Errors
    /// [`ProgramError::Step`] when the input is outside the program's sizes; nothing was written then.
    /// [`ProgramError::Worker`] when a worker panicked: the program can't be used any more.
    pub fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError> {
        self.check_input(input).map_err(ProgramError::Step)?;
        let (code, memory) = (&self.code, &self.memory);
        self.team.run(&|worker: &Worker<'_>| {
            // SAFETY: each worker has its own scratch and never touches another's.
            let scratch = unsafe { memory.scratch[worker.index].get() };
            let mut run = Run { code, memory, input, worker, scratch };
            for step in &code.instrs {
                if step.barrier && !worker.barrier() {
                    return;
                }
                // SAFETY: `build` has checked the shapes and placed the barriers, `check_input` the step: the three
                // points of the module's documentation hold.
                unsafe { run.execute(&step.instr) };
            }
        })?;
        Ok(self.outputs(input.outputs.len()))
    }

    /// The outputs of the last step, `[num_rows, width]`: as many as it was asked for.
    pub fn outputs(&self, num_rows: usize) -> &[f32] {
        let slot = &self.code.buffers[self.code.output.buf.0];
        let num_rows = num_rows.min(self.code.max_outputs);
        // SAFETY: the team is done, and the next step needs the program exclusively.
        unsafe { self.memory.arena.slice(slot.offset..slot.offset + num_rows * slot.width) }
    }

    /// The hidden states of the last step, `[num_rows, width]`: as many as it was asked for. Empty for a program without that
    /// output.
    pub fn hidden(&self, num_rows: usize) -> &[f32] {
        let Some(span) = &self.code.hidden else { return &[] };
        let slot = &self.code.buffers[span.buf.0];
        let num_rows = num_rows.min(self.code.max_tokens);
        // SAFETY: the team is done, and the next step needs the program exclusively.
        unsafe { self.memory.arena.slice(slot.offset..slot.offset + num_rows * slot.width) }
    }

    /// Everything that an instruction will rely on about this step.
    fn check_input(&mut self, input: &StepInput<'_>) -> Result<(), String> {
        let code = &self.code;
        let num_rows = input.tokens.len();
        if num_rows == 0 || num_rows > code.max_tokens || input.outputs.len() > code.max_outputs {
            return Err(format!(
                "{num_rows} tokens and {} outputs; at most {} and {}",
                input.outputs.len(),
                code.max_tokens,
                code.max_outputs
            ));
        }
        if let Some(token) = input.tokens.iter().find(|&&token| token as usize >= code.vocab_size) {
            return Err(format!("token {token} is outside the vocabulary of {}", code.vocab_size));
        }
        if input.hidden.len() > code.max_tokens || (code.hidden.is_none() && !input.hidden.is_empty()) {
            return Err(format!("{} hidden states; at most {}", input.hidden.len(), code.max_tokens));
        }
        if input.outputs.iter().chain(input.hidden).any(|&row| row as usize >= num_rows) {
            return Err("an output row is outside the step".into());
        }
        if input.ropes.len() != code.rope_halves.len()
            || input
                .ropes
                .iter()
                .zip(&code.rope_halves)
                .any(|((cos, sin), half)| cos.len() < half * num_rows || sin.len() < half * num_rows)
        {
            return Err("cos/sin tables don't fit the step".into());
        }
        if input.seq_of_row.len() != num_rows {
            return Err("one sequence index a row".into());
        }
        if input.seqs.len() > code.max_tokens {
            return Err(format!("{} sequences; at most {}", input.seqs.len(), code.max_tokens));
        }
        let mut next_row = 0;
        self.memory.epoch += 1;
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
            if table.iter().any(|&block| block as usize >= code.num_blocks) {
                return Err(format!("a block id is outside the pool of {}", code.num_blocks));
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
                let epoch = self.memory.epoch;
                let before = std::mem::replace(&mut self.memory.writers[block], epoch);
                if before == epoch { Err(format!("block {block} is written twice in one step")) } else { Ok(()) }
            };
            table[written.clone()].iter().try_for_each(|&block| write(block as usize))?;
            if code.num_window_blocks == 0 {
                continue;
            }
            let Some(table) = input.window_blocks.get(seq.table.clone()) else {
                return Err("window's block table out of range".into());
            };
            if table.iter().any(|&block| block != NO_BLOCK && block as usize >= code.num_window_blocks) {
                return Err(format!("a block id is outside the window's pool of {}", code.num_window_blocks));
            }
            // What the first row sees, those after it and the writes need.
            let first = (seq.start + 1).saturating_sub(code.window) / KV_BLOCK;
            if table[first.min(written.start)..written.end].contains(&NO_BLOCK) {
                return Err(format!("positions {}..{end} need a block that has left the window", seq.start));
            }
            table[written].iter().try_for_each(|&block| write(code.num_blocks + block as usize))?;
        }
        if next_row != num_rows {
            return Err("the sequences don't cover the rows".into());
        }
        Ok(())
    }
}
