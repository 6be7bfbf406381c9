//! A step's input on the device: all arrays in one upload.

use super::reduce::{TASK_WORDS, words as task_words};
use super::{Code, GRAPH_TOKENS};
use crate::cuda::args::RowsInKv;
use crate::cuda::{CudaError, DeviceBuffer, Gpu, HostBuffer};
use crate::program::StepInput;

/// Where each array lies in the upload, in bytes. Of a step's numbers of rows alone, but for what comes last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct InputLayout {
    pub(super) tokens: usize,
    positions: usize,
    ends: usize,
    tables: usize,
    window_tables: usize,
    pub(super) outputs: usize,
    pub(super) hidden: usize,
    /// Of outputs that are reduced: 4 words each.
    pub(super) tasks: usize,
    /// cos and sin of each rope table.
    pub(super) ropes: Vec<[usize; 2]>,
    /// Tiles of attention on the tensor cores, by [`Code::tile_rows`]: where their list is and how many they are. Empty in
    /// steps that don't use them.
    tiles: Vec<(usize, usize)>,
    /// Block tables, those of the window's pool behind the others.
    blocks: usize,
    len: usize,
}

/// Bytes of `n` numbers of 4 bytes, rounded up so that every array is aligned.
fn words(n: usize) -> usize {
    (n * 4).next_multiple_of(16)
}

impl InputLayout {
    pub(super) fn of(code: &Code, input: &StepInput<'_>) -> Self {
        let num_rows = input.tokens.len();
        let mut end = 0;
        let mut take = |n: usize| {
            let start = end;
            end += words(n);
            start
        };
        let [tokens, positions, ends, tables, window_tables] = [num_rows; 5].map(&mut take);
        let (outputs, hidden) = (take(input.outputs.len()), take(input.hidden.len()));
        let tasks = take(input.reduce.map_or(0, |reduce| reduce.tasks.len() * TASK_WORDS));
        let ropes = code.rope_halves.iter().map(|half| [num_rows * half; 2].map(&mut take)).collect();
        let tiled: &[usize] = if num_rows > GRAPH_TOKENS { &code.tile_rows } else { &[] };
        let tiles = tiled
            .iter()
            .map(|&rows| {
                let count = input.seqs.iter().map(|seq| seq.rows.len().div_ceil(rows)).sum();
                (take(2 * count), count)
            })
            .collect();
        let blocks = take(input.blocks.len() + input.window_blocks.len());
        Self { tokens, positions, ends, tables, window_tables, outputs, hidden, tasks, ropes, tiles, blocks, len: end }
    }

    /// Where the list of tiles of so many rows is, and its length.
    pub(super) fn tiles_of(&self, code: &Code, rows: usize) -> Option<(usize, usize)> {
        self.tiles.get(code.tile_rows.iter().position(|&known| known == rows)?).copied()
    }

    /// The arguments of attention, for blocks of either pool.
    pub(super) fn rows_in_kv(&self, input: u64, is_window: bool) -> RowsInKv {
        let at = |offset: usize| input + offset as u64;
        RowsInKv {
            positions: at(self.positions),
            ends: at(self.ends),
            tables: at(if is_window { self.window_tables } else { self.tables }),
            blocks: at(self.blocks),
        }
    }
}

/// The upload's two ends.
#[derive(Debug, Default)]
pub(super) struct DeviceInput {
    memory: Option<(HostBuffer, DeviceBuffer)>,
}

impl DeviceInput {
    /// Where it lies on the device.
    pub(super) fn address(&self) -> u64 {
        self.memory.as_ref().map_or(0, |(_, device)| device.address())
    }

    /// Uploads a step's input. Returns whether it has moved on the device.
    pub(super) fn upload(
        &mut self,
        gpu: &Gpu,
        layout: &InputLayout,
        code: &Code,
        input: &StepInput<'_>,
    ) -> Result<bool, CudaError> {
        let has_room = self.memory.as_ref().is_some_and(|(_, device)| device.len() >= layout.len);
        if !has_room {
            // Half as much again, so that growing contexts don't move it at every block.
            let bytes = (layout.len + layout.len / 2).next_multiple_of(4096);
            self.memory = None;
            self.memory = Some((gpu.staging(bytes)?, gpu.alloc(bytes)?));
        }
        let Some((host, device)) = &mut self.memory else { return Ok(true) };
        let bytes = host.as_mut_slice()?;
        let mut put = |at: usize, words: &mut dyn Iterator<Item = u32>| {
            for (to, word) in bytes[at..].as_chunks_mut::<4>().0.iter_mut().zip(words) {
                *to = word.to_le_bytes();
            }
        };
        let seq = |row: usize| &input.seqs[input.seq_of_row[row] as usize];
        let rows = || 0..input.tokens.len();
        put(layout.tokens, &mut input.tokens.iter().copied());
        put(layout.positions, &mut rows().map(|row| input.position(row) as u32));
        put(layout.ends, &mut rows().map(|row| (seq(row).start + seq(row).rows.len()) as u32));
        put(layout.tables, &mut rows().map(|row| seq(row).table.start as u32));
        put(layout.window_tables, &mut rows().map(|row| (input.blocks.len() + seq(row).table.start) as u32));
        put(layout.outputs, &mut input.outputs.iter().copied());
        put(layout.hidden, &mut input.hidden.iter().copied());
        let tasks = input.reduce.iter().flat_map(|reduce| reduce.tasks);
        put(layout.tasks, &mut tasks.flat_map(|task| task_words(task.as_ref())));
        for ((half, offsets), (cos, sin)) in code.rope_halves.iter().zip(&layout.ropes).zip(input.ropes) {
            let len = half * input.tokens.len();
            put(offsets[0], &mut cos[..len].iter().map(|x| x.to_bits()));
            put(offsets[1], &mut sin[..len].iter().map(|x| x.to_bits()));
        }
        for (&rows, (offset, _)) in code.tile_rows.iter().zip(&layout.tiles) {
            let tiles = input.seqs.iter().flat_map(|seq| {
                let starts = seq.rows.clone().step_by(rows);
                starts.flat_map(move |start| [start as u32, rows.min(seq.rows.end - start) as u32])
            });
            put(*offset, &mut tiles.into_iter());
        }
        put(layout.blocks, &mut input.blocks.iter().chain(input.window_blocks).copied());
        gpu.upload_from(host, 0, device, 0, layout.len)?;
        Ok(!has_room)
    }
}
