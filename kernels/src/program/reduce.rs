//! What sampling needs of rows of logits, so that a machine whose memory is far away can keep the rows to itself.
//!
//! A [`RowTask`] says what is asked of a row, a [`ReducedRow`] is the answer. Orders, sums and draws are those of the runtime's
//! sampler, bit by bit: a token doesn't depend on where it was drawn.

/// Most tokens that [`RowTask::num_best`] can ask for.
pub const MAX_BEST: usize = 1024;

/// A token and its logit; −0 has become 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    /// Finite.
    pub logit: f32,
    /// Token.
    pub id: u32,
}

/// A draw from all tokens of a row, in the order of their ids.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Above 0. A token's weight is e^((logit − max) / temperature).
    pub temperature: f32,
    /// In [0, 1): the share of the weights before the token's.
    pub uniform: f64,
}

/// What is asked of a row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowTask {
    /// So many of the tokens with the highest logits: 1 to [`MAX_BEST`].
    pub num_best: usize,
    /// Whether [`ReducedRow::sum`] is wanted.
    pub sum: bool,
    /// A token drawn from all.
    pub draw: Option<Draw>,
}

/// What is asked of a step's outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reduce<'a> {
    /// Columns that are tokens; those after them are never looked at.
    pub width: usize,
    /// One for each output; `None`: it will be read whole.
    pub tasks: &'a [Option<RowTask>],
}

impl Reduce<'_> {
    /// Refuses what doesn't fit a step of `num_outputs` rows of `width` columns.
    pub(crate) fn check(&self, num_outputs: usize, width: usize) -> Result<(), String> {
        if self.tasks.len() != num_outputs {
            return Err(format!("{} tasks for {num_outputs} outputs", self.tasks.len()));
        }
        if self.width == 0 || self.width > width {
            return Err(format!("{} tokens in rows of {width}", self.width));
        }
        for task in self.tasks.iter().flatten() {
            if task.num_best == 0 || task.num_best > MAX_BEST {
                return Err(format!("the {} best tokens; 1 to {MAX_BEST}", task.num_best));
            }
            if let Some(Draw { temperature, uniform }) = task.draw
                && !(temperature > 0.0 && (0.0..1.0).contains(&uniform))
            {
                return Err(format!("a draw at temperature {temperature} of {uniform}"));
            }
        }
        Ok(())
    }
}

/// What is known of a row of logits that stays where it is. All of them are numbers or −∞.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ReducedRow<'a> {
    /// The best tokens, highest logit first, of equal ones the lowest id. At least one, and as many as were asked for or all
    /// that aren't −∞.
    pub best: &'a [Candidate],
    /// Whether `best` has every token that isn't −∞.
    pub is_complete: bool,
    /// Σ e^(logit − max), if it was asked for.
    pub sum: Option<f64>,
    /// What was drawn, if it was asked for.
    pub drawn: Option<(Draw, Candidate)>,
}
