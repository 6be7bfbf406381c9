//! Reductions on the host by their definitions, for tests of what takes them.

use crate::exec::{Candidate, Draw, ReducedRow, RowTask};
use crate::sample::math::{CHUNK, exp_nonpositive, partition_sum, sum_of};

/// What a row was reduced to.
#[derive(Debug)]
pub(crate) struct HostRow {
    best: Vec<Candidate>,
    is_complete: bool,
    sum: Option<f64>,
    drawn: Option<(Draw, Candidate)>,
}

impl HostRow {
    /// `None` where a logit is NaN or +∞, or all are −∞.
    pub(crate) fn of(row: &[f32], task: &RowTask) -> Option<Self> {
        let mut best: Vec<Candidate> =
            row.iter().zip(0..).map(|(&logit, id)| Candidate { logit: logit + 0.0, id }).collect();
        if row.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
            return None;
        }
        best.retain(|candidate| candidate.logit > f32::NEG_INFINITY);
        best.sort_by(|a, b| b.logit.total_cmp(&a.logit).then(a.id.cmp(&b.id)));
        let max = best.first()?.logit;
        // As many as were asked for and no more: then the device doesn't know that there are none beyond.
        let is_complete = best.len() < task.num_best || best.len() == row.len() && task.num_best >= row.len();
        best.truncate(task.num_best);
        Some(Self {
            best,
            is_complete,
            sum: task.sum.then(|| partition_sum(row, max)),
            drawn: task.draw.map(|draw| (draw, drawn(row, max, draw))),
        })
    }

    pub(crate) fn as_row(&self) -> ReducedRow<'_> {
        ReducedRow { best: &self.best, is_complete: self.is_complete, sum: self.sum, drawn: self.drawn }
    }
}

/// The token at its share of all weights, in the order of ids, by chunks.
fn drawn(row: &[f32], max: f32, draw: Draw) -> Candidate {
    let weight = |logit: f32| exp_nonpositive((logit - max) / draw.temperature);
    let sums: Vec<f64> = row.chunks(CHUNK).map(|chunk| sum_of(chunk, weight)).collect();
    let mut target = draw.uniform * sums.iter().sum::<f64>();
    let mut chunk = sums.iter().rposition(|&sum| sum > 0.0).unwrap_or(0);
    for (index, &sum) in sums[..chunk].iter().enumerate() {
        if target < sum {
            chunk = index;
            break;
        }
        target -= sum;
    }
    let ids = (chunk * CHUNK..row.len().min((chunk + 1) * CHUNK)).filter(|&id| weight(row[id]) > 0.0);
    let mut id = 0;
    for next in ids {
        id = next;
        target -= f64::from(weight(row[id]));
        if target < 0.0 {
            break;
        }
    }
    Candidate { logit: row[id], id: id as u32 }
}
