//! How much of a device's memory a program takes, told before anything is allocated.

use super::attend;
use super::memory::{ArenaLayout, KvMemory, bytes_of_vectors, planes_of};
use super::reduce::{Reducer, TASK_WORDS};
use crate::cuda::gpu::granules as rounded;
use crate::cuda::planes;
use crate::program::builder::WeightSlot;
use crate::program::{ProgramBuilder, ProgramSize, Span};

/// Bytes of a device's memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Needs {
    /// Matrices and vectors.
    pub weights: usize,
    /// What depends on the size of a step, its input included.
    pub buffers: usize,
    /// The KV cache.
    pub kv: usize,
}

impl Needs {
    /// Of a program of this size. The input is counted with every KV block in one block table: prefixes that many sequences
    /// share are a few bytes more.
    pub fn of(builder: &ProgramBuilder, output: Option<&Span>, size: &ProgramSize) -> Self {
        let matrix = |slot: &WeightSlot| {
            rounded(planes_of(slot).1) + planes::points(slot.dtype).map_or(0, |points| rounded(points.len()))
        };
        let matrices: usize = builder.weights.iter().map(matrix).sum();
        let reducer = output.and_then(|output| Reducer::bytes(output.width, size.max_outputs));
        let arena = ArenaLayout::of(&builder.buffers, &builder.acts, size).bytes;
        let buffers = [arena, attend::parts_bytes(builder, size), input_bytes(builder, size)];
        Self {
            weights: matrices + rounded(bytes_of_vectors(&builder.vectors).1),
            buffers: buffers.into_iter().chain(reducer.into_iter().flatten()).map(rounded).sum(),
            kv: rounded(KvMemory::layout(&builder.caches, size).1),
        }
    }

    /// All of it.
    pub fn total(&self) -> usize {
        self.weights + self.buffers + self.kv
    }
}

/// The input of the largest step, with the room that its buffer leaves for larger ones.
fn input_bytes(builder: &ProgramBuilder, size: &ProgramSize) -> usize {
    // Token, position, end, two tables, output, hidden state, task, and two words of a tile at most.
    let of_row = 7 + TASK_WORDS + 2 + builder.rope_halves.iter().map(|half| 2 * half).sum::<usize>();
    let blocks = size.num_blocks + size.num_window_blocks;
    (of_row * size.max_tokens.max(size.max_outputs) + blocks) * 4 * 3 / 2 + 4096
}
