//! Rows of logits as the engine gets them: whole, or kept by the executor and reduced to what sampling mostly needs.

use super::sequence::Sequence;
use crate::error::Result;
use crate::exec::{KeptRows, MAX_BEST, ReducedRow, RowTask, StepOutput};
use crate::sample::{Logprobs, Scratch, logprobs, logprobs_reduced};

/// Where a kept row goes when it's needed whole.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    row: Vec<f32>,
    /// Rows so far.
    pub(super) count: u64,
}

/// A row of logits to draw a token from.
pub(super) enum Logits<'a> {
    Whole(&'a [f32]),
    Kept { rows: &'a dyn KeptRows, row: usize, width: usize, fetched: &'a mut Fetched },
}

impl<'a> Logits<'a> {
    /// Row `row` of a step, of which the first `width` columns are tokens.
    pub(super) fn of(output: &StepOutput<'a>, row: usize, width: usize, fetched: &'a mut Fetched) -> Self {
        match output.kept {
            None => Self::Whole(&output.row(row)[..width]),
            Some(rows) => Self::Kept { rows, row, width, fetched },
        }
    }

    /// What it was reduced to, and how many tokens it has.
    fn reduced(&self) -> Option<(ReducedRow<'a>, usize)> {
        match *self {
            Self::Whole(_) => None,
            Self::Kept { rows, row, width, .. } => Some((rows.reduced(row)?, width)),
        }
    }

    /// The most likely token, if that is known without the row.
    pub(super) fn best(&self) -> Option<u32> {
        self.reduced()?.0.best.first().map(|candidate| candidate.id)
    }

    /// All of it.
    ///
    /// # Errors
    /// Those of the executor that keeps it.
    pub(super) fn whole(self) -> Result<&'a [f32]> {
        match self {
            Self::Whole(row) => Ok(row),
            Self::Kept { rows, row, width, fetched } => {
                rows.read(row, &mut fetched.row)?;
                fetched.count += 1;
                Ok(&fetched.row[..width])
            }
        }
    }
}

impl Sequence {
    /// What to ask of the row of `width` logits that it samples after `num_before` others. `None`: it needs the row whole.
    pub(super) fn task(&self, width: usize, num_before: usize) -> Option<RowTask> {
        let mut task = self.sampler.task(width, num_before)?;
        if let Some(num_top) = self.num_logprobs {
            task.num_best = task.num_best.max(num_top);
            task.sum = true;
        }
        Some(task).filter(|task| task.num_best <= MAX_BEST)
    }

    /// Draws the next token, with its log-probabilities if the client wants them.
    pub(super) fn draw(&mut self, logits: Logits<'_>, scratch: &mut Scratch) -> Result<(u32, Option<Logprobs>)> {
        let (mut token, num_top) = (None, self.num_logprobs);
        if let Some((row, width)) = logits.reduced() {
            token = self.sampler.sample_reduced(&row, width, scratch);
            if let Some(token) = token {
                match num_top {
                    None => return Ok((token, None)),
                    Some(num_top) => {
                        if let Some(logprobs) = logprobs_reduced(&row, token, num_top) {
                            return Ok((token, Some(logprobs)));
                        }
                    }
                }
            }
        }
        let row = logits.whole()?;
        let token = match token {
            Some(token) => token,
            None => self.sampler.sample(row, &self.tokens, scratch)?,
        };
        Ok((token, num_top.map(|num_top| logprobs(row, token, num_top, scratch)).transpose()?))
    }
}
