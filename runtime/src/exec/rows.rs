//! Rows of logits that stay where a step computed them: a device far away sends what sampling needs of them instead.

use std::fmt;

pub use shimmy_kernels::program::reduce::{Candidate, Draw, MAX_BEST, ReducedRow, RowTask};

use crate::error::Result;

/// What is asked of a batch's rows of logits, for executors that [keep them](crate::exec::Executor::keeps_rows).
#[derive(Debug, Clone, Default, PartialEq)]
pub struct RowTasks {
    /// Columns that are tokens, if rows have so many.
    pub width: usize,
    /// One for each row, `None`: it will be read whole. Empty: all rows are wanted whole.
    pub rows: Vec<Option<RowTask>>,
}

impl RowTasks {
    /// Asks for nothing but whole rows.
    pub fn clear(&mut self) {
        self.rows.clear();
    }
}

/// The rows of the last step, which stay where they are.
pub trait KeptRows {
    /// What a row was reduced to. `None`: nothing was asked of it, or no token can be drawn from it: it has NaN or +∞, or nothing
    /// but −∞.
    fn reduced(&self, row: usize) -> Option<ReducedRow<'_>>;

    /// Reads a whole row into `into`, replacing what is there.
    ///
    /// # Errors
    /// [`EngineStopped`](crate::Error::EngineStopped) when the device doesn't give it.
    fn read(&self, row: usize, into: &mut Vec<f32>) -> Result<()>;
}

impl fmt::Debug for dyn KeptRows + '_ {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeptRows")
    }
}
