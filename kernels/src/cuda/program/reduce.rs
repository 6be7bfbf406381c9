//! Rows of logits that stay on the device: `logits.cu` finds their best tokens, sums and draws; that alone is downloaded.

#[cfg(test)]
mod tests;

use bytemuck::{Pod, Zeroable};

use super::launch::{Step, shape, u};
use crate::cuda::args::LogitsArgs;
use crate::cuda::{CudaError, DeviceBuffer, Function, Gpu};
use crate::program::reduce::{Candidate, Draw, MAX_BEST, Reduce, ReducedRow, RowTask};

/// Groups of a row that `best_of_rows` takes.
const MAX_GROUPS: usize = 4096;
/// Columns of a group that `best_of_groups` takes.
const MAX_GROUP: usize = 256;
/// Columns of a chunk, and chunks of a row, whose weights are summed.
const CHUNK: usize = 1024;
const MAX_CHUNKS: usize = 1024;
/// Numbers of best tokens that rows are asked for: few, so that graphs come back.
const NUM_BEST: [usize; 4] = [1, 64, 256, MAX_BEST];
/// Threads of a block of `best_of_rows`, and of the other kernels.
const ROW_THREADS: u32 = 1024;
const THREADS: u32 = 256;

/// A task as the kernels read it.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct TaskWords {
    uniform: f64,
    temperature: f32,
    /// 1: the sum; 2: the draw.
    tasks: u32,
}

/// What becomes of it.
#[derive(Debug, Clone, Copy, Default, Pod, Zeroable)]
#[repr(C)]
struct ResultWords {
    sum: f64,
    token: u32,
    logit: f32,
}

/// Words of 4 bytes of a row's task in the input of a step.
pub(super) const TASK_WORDS: usize = size_of::<TaskWords>() / 4;

/// A task in words.
pub(super) fn words(task: Option<&RowTask>) -> [u32; TASK_WORDS] {
    let draw = task.and_then(|task| task.draw);
    let words = TaskWords {
        uniform: draw.map_or(0.0, |draw| draw.uniform),
        temperature: draw.map_or(1.0, |draw| draw.temperature),
        tasks: u32::from(task.is_some_and(|task| task.sum)) | u32::from(draw.is_some()) << 1,
    };
    bytemuck::cast(words)
}

/// What decides the launches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct ReduceShape {
    width: usize,
    num_best: usize,
    /// Whether any row wants more than its best tokens.
    has_sums: bool,
}

impl ReduceShape {
    pub(super) fn of(reduce: &Reduce<'_>) -> Self {
        let tasks = || reduce.tasks.iter().flatten();
        let wanted = tasks().map(|task| task.num_best).max().unwrap_or(1);
        Self {
            width: reduce.width,
            num_best: NUM_BEST.into_iter().find(|&num_best| num_best >= wanted).unwrap_or(MAX_BEST),
            has_sums: tasks().any(|task| task.sum || task.draw.is_some()),
        }
    }

    fn group_len(&self) -> usize {
        self.width.div_ceil(MAX_GROUPS).next_power_of_two()
    }

    fn num_groups(&self) -> usize {
        self.width.div_ceil(self.group_len())
    }

    /// Where the best tokens begin in what is downloaded: after the results.
    fn best_at(num_rows: usize) -> usize {
        num_rows * size_of::<ResultWords>()
    }

    fn bytes(&self, num_rows: usize) -> usize {
        Self::best_at(num_rows) + num_rows * self.num_best * size_of::<u64>()
    }
}

/// The kernels and their memory.
pub(super) struct Reducer {
    groups_kernel: Function,
    rows_kernel: Function,
    sums_kernel: Function,
    finish_kernel: Function,
    groups: DeviceBuffer,
    sums: DeviceBuffer,
    /// Results, then ranks of the best tokens.
    results: DeviceBuffer,
}

impl Reducer {
    /// For up to `max_rows` rows of `width` columns; `None` where rows are longer than the kernels take.
    pub(super) fn new(gpu: &Gpu, width: usize, max_rows: usize) -> Result<Option<Self>, CudaError> {
        let Some([groups, sums, results]) = Self::bytes(width, max_rows) else { return Ok(None) };
        Ok(Some(Self {
            groups_kernel: gpu.function("best_of_groups")?,
            rows_kernel: gpu.function("best_of_rows")?,
            sums_kernel: gpu.function("sum_weights")?,
            finish_kernel: gpu.function("finish_rows")?,
            groups: gpu.alloc(groups)?,
            sums: gpu.alloc(sums)?,
            results: gpu.alloc(results)?,
        }))
    }

    /// What it allocates.
    pub(super) fn bytes(width: usize, max_rows: usize) -> Option<[usize; 3]> {
        if width > MAX_GROUPS * MAX_GROUP || width > MAX_CHUNKS * CHUNK {
            return None;
        }
        let groups = width.min(MAX_GROUPS) * size_of::<u64>();
        let sums = 2 * width.div_ceil(CHUNK) * size_of::<f64>();
        let results = size_of::<ResultWords>() + MAX_BEST * size_of::<u64>();
        Some([groups, sums, results].map(|bytes| max_rows * bytes))
    }
}

impl Step<'_> {
    /// Launches what the step's outputs are reduced by.
    pub(super) fn reduce(&self, reducer: &Reducer, wanted: &ReduceShape) -> Result<(), CudaError> {
        let Some(output) = &self.code.output else { return Ok(()) };
        let num_rows = self.num_rows(output);
        if num_rows == 0 {
            return Ok(());
        }
        let (logits, stride) = self.code.arena.at(output);
        let (group_len, num_groups) = (wanted.group_len(), wanted.num_groups());
        let num_chunks = wanted.width.div_ceil(CHUNK);
        let args = LogitsArgs {
            logits,
            groups: reducer.groups.address(),
            sums: reducer.sums.address(),
            tasks: self.input + self.layout.tasks as u64,
            results: reducer.results.address(),
            best: reducer.results.address() + ReduceShape::best_at(num_rows) as u64,
            stride,
            width: u(wanted.width),
            num_groups: u(num_groups),
            group_shift: group_len.trailing_zeros(),
            num_best: u(wanted.num_best),
            num_chunks: u(num_chunks),
        };
        // Lanes of a group: one for 8 columns.
        let lanes = num_groups * (group_len / 8).max(1);
        let groups_shape = shape([lanes.div_ceil(THREADS as usize), num_rows, 1], THREADS);
        self.gpu.launch(reducer.groups_kernel, &groups_shape, &args)?;
        self.gpu.launch(reducer.rows_kernel, &shape([num_rows, 1, 1], ROW_THREADS), &args)?;
        if wanted.has_sums {
            // 16 threads a chunk.
            let blocks = num_chunks.div_ceil(THREADS as usize / 16);
            self.gpu.launch(reducer.sums_kernel, &shape([blocks, num_rows, 2], THREADS), &args)?;
            self.gpu.launch(reducer.finish_kernel, &shape([num_rows, 1, 1], THREADS), &args)?;
        }
        Ok(())
    }
}

/// What is known of a row.
#[derive(Debug, Clone, Copy)]
struct Summary {
    /// Of its best tokens, those that are finite.
    num_best: usize,
    is_complete: bool,
    sum: Option<f64>,
    drawn: Option<(Draw, Candidate)>,
}

/// What a step's rows were reduced to, on the host.
#[derive(Debug, Default)]
pub(super) struct ReducedRows {
    bytes: Vec<u8>,
    /// `[rows, stride]`
    best: Vec<Candidate>,
    stride: usize,
    /// `None`: it wasn't asked for, or is no row that a token can be drawn from.
    rows: Vec<Option<Summary>>,
}

impl ReducedRows {
    /// Nothing was reduced.
    pub(super) fn clear(&mut self) {
        self.rows.clear();
    }

    /// Waits for a step's results.
    pub(super) fn download(
        &mut self,
        gpu: &Gpu,
        reducer: &Reducer,
        shape: &ReduceShape,
        reduce: &Reduce<'_>,
    ) -> Result<(), CudaError> {
        let num_rows = reduce.tasks.len();
        let best_at = ReduceShape::best_at(num_rows);
        // Where nobody asked for more than the best tokens, nothing else was written.
        let start = if shape.has_sums { 0 } else { best_at };
        self.bytes.resize(shape.bytes(num_rows), 0);
        gpu.download(&reducer.results, start, &mut self.bytes[start..])?;
        self.rows.clear();
        self.best.clear();
        self.stride = shape.num_best;
        for (row, task) in reduce.tasks.iter().enumerate() {
            let ranks = &self.bytes[best_at + row * shape.num_best * 8..][..shape.num_best * 8];
            self.best.extend(ranks.as_chunks::<8>().0.iter().map(|rank| candidate(u64::from_le_bytes(*rank))));
            let best = &self.best[row * shape.num_best..];
            let is_good = best[0].logit.is_finite();
            let num_best = best.partition_point(|candidate| candidate.logit > f32::NEG_INFINITY);
            let words: ResultWords = bytemuck::pod_read_unaligned(&self.bytes[row * size_of::<ResultWords>()..][..16]);
            self.rows.push(task.filter(|_| is_good).map(|task| Summary {
                num_best,
                is_complete: num_best < shape.num_best || num_best == shape.width,
                sum: task.sum.then_some(words.sum),
                drawn: task.draw.map(|draw| (draw, Candidate { logit: words.logit, id: words.token })),
            }));
        }
        Ok(())
    }

    /// What row `row` was reduced to.
    pub(super) fn row(&self, row: usize) -> Option<ReducedRow<'_>> {
        let Summary { num_best, is_complete, sum, drawn } = (*self.rows.get(row)?)?;
        Some(ReducedRow { best: &self.best[row * self.stride..][..num_best], is_complete, sum, drawn })
    }
}

/// The token of a rank, as `logits.cu` makes it; 0, which is none, becomes −∞.
fn candidate(rank: u64) -> Candidate {
    if rank == 0 {
        return Candidate { logit: f32::NEG_INFINITY, id: u32::MAX };
    }
    let ordered = (rank >> 32) as u32;
    let bits = if ordered >> 31 == 1 { ordered & 0x7fff_ffff } else { !ordered };
    Candidate { logit: f32::from_bits(bits), id: !(rank as u32) }
}
