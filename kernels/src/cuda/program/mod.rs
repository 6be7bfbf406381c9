//! A [program](crate::program) on a GPU: its instructions as launches in one queue.
//!
//! | file | what lives there |
//! |---|---|
//! | here | [`CudaProgram`]: what is built once; graphs; the [`Machine`] |
//! | `memory` | matrices, buffers and the KV cache on the device |
//! | `needs` | how much of its memory a program takes |
//! | `input` | a step's input as one upload |
//! | `launch`, `matmul`, `attend` | what each instruction launches |
//! | [`reduce`] | rows of logits that stay on the device |
//!
//! A step is one upload, the launches, and one download of what was asked for: of outputs that are reduced, that alone. Steps of few tokens are recorded as graphs when
//! they come a second time: then the launches cost the host one call. Whatever differs from step to step (tokens, positions,
//! block tables) lies in the uploaded input; what decides the launches themselves is the graph's key.

mod attend;
mod input;
mod launch;
mod matmul;
mod memory;
mod needs;
pub mod reduce;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use super::{CudaError, DeviceBuffer, Gpu, Graph};
use crate::cpu::Numerics;
use crate::cpu::kv::KvPool;
use crate::program::input::InputCheck;
use crate::program::{BufId, Instr, Machine, ProgramBuilder, ProgramError, ProgramSize, ReducedRow, Span, StepInput};
use input::InputLayout;
use launch::{Functions, StepShape};
use memory::{Arena, KvMemory, Matrix, bytes_of_vectors};
pub use needs::Needs;
use reduce::{ReducedRows, Reducer};

/// Steps of more tokens are launched one by one: their kernels take longer than the launches.
const GRAPH_TOKENS: usize = 64;
/// Graphs that are kept; beyond it all are dropped, which happens when the shapes of steps never come back.
const MAX_GRAPHS: usize = 512;
/// Largest head: what a warp's lanes hold in octets.
const MAX_HEAD_DIM: usize = 256;

/// A checked program with its memory on a device.
pub struct CudaProgram {
    gpu: Gpu,
    code: Code,
    check: InputCheck,
    input: input::DeviceInput,
    /// `None`: the shape was seen once.
    graphs: HashMap<StepShape, Option<Graph>>,
    /// Empty after a step whose outputs were reduced.
    outputs: Vec<f32>,
    reduced: ReducedRows,
    hidden: Vec<f32>,
}

/// What doesn't change between steps.
struct Code {
    size: ProgramSize,
    /// Rows are never rounded to 16 bits.
    is_exact: bool,
    functions: Functions,
    matrices: Vec<Matrix>,
    /// Addresses of the vectors.
    vectors: Vec<u64>,
    _vectors: DeviceBuffer,
    arena: Arena,
    kv: KvMemory,
    /// Attention over splits: see [`attend::MAX_SPLITS`].
    parts: DeviceBuffer,
    /// Rows of the tiles of attention on the tensor cores: one number for each size of group, few in all.
    tile_rows: Vec<usize>,
    instrs: Vec<Instr>,
    /// `None` for a stage that isn't the last of its program.
    output: Option<Span>,
    /// `None`: no outputs, or longer ones than it takes.
    reducer: Option<Reducer>,
    hidden: Option<Span>,
    rope_halves: Vec<usize>,
}

impl CudaProgram {
    /// Checks a program, uploads its matrices and allocates everything that its steps need. `is_exact` keeps many f32 rows on
    /// 16-bit weights from being rounded to the weights' type. `progress` is told the bytes of matrices that are on their way,
    /// again and again, and how many there will be. `output` is `None` for a stage of a program that isn't its last.
    ///
    /// # Errors
    /// [`ProgramError::Instr`] with what doesn't fit; [`ProgramError::Cuda`] when the device refuses, most of all for want of memory.
    pub fn new(
        gpu: &Gpu,
        builder: ProgramBuilder,
        output: impl Into<Option<Span>>,
        size: ProgramSize,
        is_exact: bool,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, ProgramError> {
        let output = output.into();
        builder.check_all(output.as_ref(), &size)?;
        let check = InputCheck::new(&builder, &size);
        if let Some(cache) = builder.caches.iter().find(|cache| cache.k_dim.max(cache.v_dim) > MAX_HEAD_DIM) {
            let what = format!("heads of {} elements; at most {MAX_HEAD_DIM} on a GPU", cache.k_dim.max(cache.v_dim));
            return Err(ProgramError::Step(what));
        }
        let bytes_of = |slot: &crate::program::builder::WeightSlot| (*slot.bytes).as_ref().len();
        let total = builder.weights.iter().map(bytes_of).sum();
        let mut done = 0;
        let mut matrices = Vec::with_capacity(builder.weights.len());
        for slot in &builder.weights {
            matrices.push(Matrix::upload(gpu, slot)?);
            done += bytes_of(slot);
            progress(done, total);
        }
        let (offsets, vectors_bytes) = bytes_of_vectors(&builder.vectors);
        let vectors = gpu.alloc(vectors_bytes)?;
        for (vector, &offset) in builder.vectors.iter().zip(&offsets) {
            gpu.upload(&vectors, offset, bytemuck::cast_slice(vector))?;
        }
        let tile_rows = |instr: &Instr| match instr {
            Instr::Attend { cache, num_heads, .. } => {
                attend::tile_rows(*num_heads, builder.caches[cache.0].num_kv_heads)
            }
            _ => None,
        };
        let mut tile_rows: Vec<usize> = builder.instrs.iter().filter_map(tile_rows).collect();
        tile_rows.sort_unstable();
        tile_rows.dedup();
        let parts = gpu.alloc(attend::parts_bytes(&builder, &size))?;
        let code = Code {
            functions: Functions::resolve(gpu)?,
            matrices,
            vectors: offsets.iter().map(|&offset| vectors.address() + offset as u64).collect(),
            _vectors: vectors,
            arena: Arena::new(gpu, &builder.buffers, &builder.acts, &size)?,
            kv: KvMemory::new(gpu, &builder.caches, &size)?,
            parts,
            tile_rows,
            instrs: builder.instrs,
            reducer: match &output {
                Some(output) => Reducer::new(gpu, output.width, size.max_outputs)?,
                None => None,
            },
            output,
            hidden: builder.hidden,
            rope_halves: builder.rope_halves,
            is_exact,
            size,
        };
        Ok(Self {
            gpu: gpu.clone(),
            check,
            input: input::DeviceInput::default(),
            graphs: HashMap::new(),
            outputs: Vec::new(),
            reduced: ReducedRows::default(),
            hidden: Vec::new(),
            code,
        })
    }

    /// The device.
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// A buffer, or that there is none.
    fn slot(&self, buf: BufId) -> Result<&memory::RowsSlot, ProgramError> {
        self.code.arena.rows.get(buf.0).ok_or_else(|| ProgramError::Step("unknown buffer".into()))
    }

    /// Runs the launches of a step whose input is on the device.
    fn launch(&mut self, shape: StepShape, layout: &InputLayout) -> Result<(), CudaError> {
        let (gpu, code) = (&self.gpu, &self.code);
        let input = self.input.address();
        let run = || code.launch_all(gpu, &shape, layout, input);
        if shape.tokens > GRAPH_TOKENS {
            return run();
        }
        match self.graphs.get(&shape) {
            Some(Some(graph)) => gpu.replay(graph),
            Some(None) => {
                let graph = gpu.capture(run)?;
                gpu.replay(&graph)?;
                self.graphs.insert(shape, Some(graph));
                Ok(())
            }
            None => {
                if self.graphs.len() >= MAX_GRAPHS {
                    self.graphs.clear();
                }
                self.graphs.insert(shape, None);
                run()
            }
        }
    }

    /// Downloads the first rows of a whole buffer.
    fn download(gpu: &Gpu, code: &Code, span: &Span, num_rows: usize, into: &mut Vec<f32>) -> Result<(), CudaError> {
        into.resize(num_rows * span.width, 0.0);
        code.arena.download(gpu, span.buf, 0, into)
    }
}

impl Machine for CudaProgram {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn run(&mut self, input: &StepInput<'_>) -> Result<&[f32], ProgramError> {
        self.check.check(input).map_err(ProgramError::Step)?;
        let output = self.code.output;
        if let (Some(reduce), Some(output)) = (&input.reduce, &output) {
            reduce.check(input.outputs.len(), output.width).map_err(ProgramError::Step)?;
        }
        let shape = StepShape::of(&self.code, input);
        let layout = InputLayout::of(&self.code, input);
        if self.input.upload(&self.gpu, &layout, &self.code, input)? {
            // The input has moved: graphs have its old address.
            self.graphs.clear();
        }
        self.launch(shape, &layout)?;
        self.outputs.clear();
        self.reduced.clear();
        match (&self.code.reducer, &shape.reduce, &input.reduce) {
            (Some(reducer), Some(shape), Some(reduce)) => self.reduced.download(&self.gpu, reducer, shape, reduce)?,
            _ => {
                if let Some(output) = &output {
                    Self::download(&self.gpu, &self.code, output, input.outputs.len(), &mut self.outputs)?;
                }
            }
        }
        if let Some(hidden) = &self.code.hidden {
            Self::download(&self.gpu, &self.code, hidden, input.hidden.len(), &mut self.hidden)?;
        }
        Ok(&self.outputs)
    }

    fn outputs(&self, num_rows: usize) -> &[f32] {
        let width = self.code.output.as_ref().map_or(0, |output| output.width);
        let len = (num_rows * width).min(self.outputs.len());
        &self.outputs[..len]
    }

    fn reduces(&self) -> bool {
        self.code.reducer.is_some()
    }

    fn reduced(&self, row: usize) -> Option<ReducedRow<'_>> {
        self.reduced.row(row)
    }

    fn read_output(&self, row: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        self.code.size.check_output(row)?;
        let Some(output) = &self.code.output else {
            return Err(ProgramError::Step("the program has no output".into()));
        };
        into.resize(output.width, 0.0);
        Ok(self.code.arena.download(&self.gpu, output.buf, row, into)?)
    }

    fn read_rows(&mut self, buf: BufId, num_rows: usize, into: &mut Vec<f32>) -> Result<(), ProgramError> {
        let &memory::RowsSlot { rows, width, .. } = self.slot(buf)?;
        self.code.size.check_rows(rows, width, num_rows * width)?;
        into.resize(num_rows * width, 0.0);
        Ok(self.code.arena.download(&self.gpu, buf, 0, into)?)
    }

    fn write_rows(&mut self, buf: BufId, rows: &[f32]) -> Result<(), ProgramError> {
        let slot = self.slot(buf)?;
        self.code.size.check_rows(slot.rows, slot.width, rows.len())?;
        Ok(self.code.arena.upload(&self.gpu, buf, rows)?)
    }

    fn hidden(&self, num_rows: usize) -> &[f32] {
        let Some(span) = &self.code.hidden else { return &[] };
        &self.hidden[..(num_rows * span.width).min(self.hidden.len())]
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<(), ProgramError> {
        self.code.size.check_block(pool, from.max(to))?;
        if from == to {
            return Ok(());
        }
        let kv = &self.code.kv;
        for ((from, bytes), (to, _)) in kv.ranges(pool, from).zip(kv.ranges(pool, to)) {
            self.gpu.copy(&kv.buffer, from, &kv.buffer, to, bytes)?;
        }
        Ok(())
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.code.kv.ranges(pool, 0).map(|(_, bytes)| bytes).sum()
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<(), ProgramError> {
        self.code.size.check_block(pool, block)?;
        for (offset, bytes) in self.code.kv.ranges(pool, block) {
            let start = into.len();
            into.resize(start + bytes, 0);
            self.gpu.download(&self.code.kv.buffer, offset, &mut into[start..])?;
        }
        Ok(())
    }

    fn write_block(&mut self, pool: KvPool, block: u32, mut bytes: &[u8]) -> Result<(), ProgramError> {
        self.code.size.check_write(pool, block, bytes, self.block_bytes(pool))?;
        for (offset, len) in self.code.kv.ranges(pool, block) {
            let (part, rest) = bytes.split_at(len);
            self.gpu.upload(&self.code.kv.buffer, offset, part)?;
            bytes = rest;
        }
        Ok(())
    }
}
