//! What the worker asks of a step's rows of logits.

use super::Worker;

impl Worker {
    /// Says what is asked of the step's rows, for an executor that keeps them.
    pub(super) fn fill_tasks(&mut self) {
        if !self.executor.keeps_rows() {
            return;
        }
        let tasks = &mut self.batch.tasks;
        tasks.width = self.vocabulary.vocab_size();
        for (piece, seq) in self.plan.pieces.iter().zip(&self.batch.seqs) {
            let num_rows = seq.output.logits(seq.tokens.clone()).len();
            let sequence = self.sequences.0.get(&piece.id);
            tasks.rows.extend((0..num_rows).map(|row| sequence?.task(tasks.width, row)));
        }
        // Where all are needed whole, they come together.
        if tasks.rows.iter().all(Option::is_none) {
            tasks.clear();
        }
    }
}
