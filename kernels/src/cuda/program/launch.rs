//! What each instruction launches.

use super::attend::AttendFunctions;
use super::input::InputLayout;
use super::memory::{ActSlot, Arena, Matrix, RowsSlot};
use super::reduce::ReduceShape;
use super::{Code, Numerics};
use crate::cpu::vector::{Activation, RopePairs};
use crate::cuda::args::{Acts, EmbedArgs, GatherArgs, MapArgs, NormArgs, QuantizeArgs, RopeArgs};
use crate::cuda::{CudaError, Function, Gpu, LaunchShape};
use crate::program::{BufId, Instr, Rows, Span, StepInput, VecId};

/// Threads of kernels that take columns one by one.
const MAP_THREADS: u32 = 256;

/// Kernels that don't depend on a matrix.
pub(super) struct Functions {
    norm: Function,
    quantize: Function,
    rope: Function,
    pub(super) glu: Function,
    activation: Function,
    add: Function,
    scale: Function,
    softcap: Function,
    gather: Function,
    pub(super) attention: AttendFunctions,
}

impl Functions {
    pub(super) fn resolve(gpu: &Gpu) -> Result<Self, CudaError> {
        Ok(Self {
            norm: gpu.function("norm_rows")?,
            quantize: gpu.function("quantize_rows")?,
            rope: gpu.function("rope_rows")?,
            glu: gpu.function("glu_rows")?,
            activation: gpu.function("activation_rows")?,
            add: gpu.function("add_rows")?,
            scale: gpu.function("scale_rows")?,
            softcap: gpu.function("softcap_rows")?,
            gather: gpu.function("gather_rows")?,
            attention: AttendFunctions::resolve(gpu)?,
        })
    }
}

/// What decides a step's launches: the key of its graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct StepShape {
    pub(super) tokens: usize,
    outputs: usize,
    hidden: usize,
    /// The positions of the longest sequence, rounded up to a power of two of splits.
    pub(super) positions: usize,
    pub(super) is_invariant: bool,
    /// What outputs are reduced to.
    pub(super) reduce: Option<ReduceShape>,
}

impl StepShape {
    pub(super) fn of(code: &Code, input: &StepInput<'_>) -> Self {
        let is_invariant = input.numerics == Numerics::Invariant;
        let longest = input.seqs.iter().map(|seq| seq.start + seq.rows.len()).max().unwrap_or(0);
        let split = code.split(is_invariant, longest);
        Self {
            tokens: input.tokens.len(),
            outputs: input.outputs.len(),
            hidden: input.hidden.len(),
            positions: longest.div_ceil(split).next_power_of_two() * split,
            is_invariant,
            reduce: input.reduce.as_ref().filter(|_| code.reducer.is_some()).map(ReduceShape::of),
        }
    }

    pub(super) fn num_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.tokens,
            Rows::Outputs => self.outputs,
            Rows::Hidden => self.hidden,
        }
    }
}

/// Numbers that a kernel takes have 32 bits; the builder's sizes are far below.
pub(super) fn u(x: usize) -> u32 {
    u32::try_from(x).unwrap_or(u32::MAX)
}

pub(super) fn act_number(act: Activation) -> u32 {
    match act {
        Activation::Silu => 0,
        Activation::Gelu => 1,
        Activation::GeluTanh => 2,
        Activation::Relu => 3,
    }
}

pub(super) fn shape(grid: [usize; 3], threads: u32) -> LaunchShape {
    LaunchShape { grid: grid.map(u), block: [threads, 1, 1], dynamic_shared: 0, overlap: true }
}

/// A thread for each column of each row.
pub(super) fn map_shape(columns: usize, num_rows: usize) -> LaunchShape {
    shape([columns.div_ceil(MAP_THREADS as usize), num_rows, 1], MAP_THREADS)
}

impl Arena {
    pub(super) fn slot(&self, buf: BufId) -> &RowsSlot {
        &self.rows[buf.0]
    }

    /// Address of the first row's columns, and the stride.
    pub(super) fn at(&self, span: &Span) -> (u64, u32) {
        let slot = self.slot(span.buf);
        (slot.address + (span.start * size_of::<f32>()) as u64, u(slot.width))
    }

    /// The same from row `row` on.
    pub(super) fn at_row(&self, span: &Span, row: usize) -> (u64, u32) {
        let (address, stride) = self.at(span);
        (address + u64::from(stride) * (row * size_of::<f32>()) as u64, stride)
    }
}

/// A step under way.
pub(super) struct Step<'a> {
    pub(super) gpu: &'a Gpu,
    pub(super) code: &'a Code,
    pub(super) shape: &'a StepShape,
    pub(super) layout: &'a InputLayout,
    /// Address of the step's input.
    pub(super) input: u64,
}

impl Code {
    /// All launches of a step.
    pub(super) fn launch_all(
        &self,
        gpu: &Gpu,
        shape: &StepShape,
        layout: &InputLayout,
        input: u64,
    ) -> Result<(), CudaError> {
        let step = Step { gpu, code: self, shape, layout, input };
        let mut instrs = self.instrs.iter().peekable();
        while let Some(instr) = instrs.next() {
            // A norm quantises its result on the way, where that comes next.
            if let Instr::Norm { groups: 1, out, .. } = instr
                && let Some(Instr::Quantize { x, act }) = instrs.peek()
                && x == out
            {
                step.norm(instr, self.arena.acts[act.0].acts)?;
                instrs.next();
                continue;
            }
            step.launch(instr)?;
        }
        match (&self.reducer, &shape.reduce) {
            (Some(reducer), Some(wanted)) => step.reduce(reducer, wanted),
            _ => Ok(()),
        }
    }
}

impl Step<'_> {
    pub(super) fn vector(&self, id: Option<VecId>) -> u64 {
        id.map_or(0, |id| self.code.vectors[id.0])
    }

    pub(super) fn num_rows(&self, span: &Span) -> usize {
        self.shape.num_rows(self.code.arena.slot(span.buf).rows)
    }

    fn launch(&self, instr: &Instr) -> Result<(), CudaError> {
        let functions = &self.code.functions;
        match instr {
            Instr::Embed { table, scale, out } => self.embed(&self.code.matrices[table.0], *scale, out),
            Instr::Norm { .. } => self.norm(instr, Acts::default()),
            Instr::Quantize { x, act } => self.quantize(x, &self.code.arena.acts[act.0]),
            Instr::MatMul { x, rows, parts, then } => self.matmul(x, self.shape.num_rows(*rows), parts, then),
            Instr::Rope { x, head_dim, pairs, table } => self.rope(x, *head_dim, *pairs, *table),
            Instr::StoreKv { k, v, cache } => self.store(k, v, &self.code.kv.caches[cache.0]),
            Instr::Attend { .. } => self.attend(instr),
            Instr::Glu { act, gate, up, out } => {
                self.map(functions.glu, gate, Some(up), out, MapArgs { act: act_number(*act), ..MapArgs::default() })
            }
            Instr::Activate { act, x, out } => {
                let args = MapArgs { act: act_number(*act), ..MapArgs::default() };
                self.map(functions.activation, x, None, out, args)
            }
            Instr::Add { a, b, out } => self.map(functions.add, a, Some(b), out, MapArgs::default()),
            Instr::Scale { factor, x, out } => {
                self.map(functions.scale, x, None, out, MapArgs { factor: *factor, ..MapArgs::default() })
            }
            Instr::Softcap { cap, x, out } => {
                self.map(functions.softcap, x, None, out, MapArgs { factor: *cap, ..MapArgs::default() })
            }
            Instr::Gather { x, out } => self.gather(x, out),
        }
    }

    fn embed(&self, table: &Matrix, factor: f32, out: &Span) -> Result<(), CudaError> {
        let (address, out_stride) = self.code.arena.at(out);
        let args = EmbedArgs {
            table: table.planes,
            out: address,
            tokens: self.input + self.layout.tokens as u64,
            out_stride,
            width: u(out.width),
            factor,
            unused: 0,
        };
        let threads = if table.dtype.is_float() { out.width } else { out.width / 32 };
        self.gpu.launch(table.embed, &map_shape(threads, self.shape.tokens), &args)
    }

    fn norm(&self, instr: &Instr, acts: Acts) -> Result<(), CudaError> {
        let Instr::Norm { centre, eps, groups, x, out, weight, bias } = instr else { return Ok(()) };
        let num_rows = self.num_rows(x);
        if num_rows == 0 {
            return Ok(());
        }
        let ((from, x_stride), (to, out_stride)) = (self.code.arena.at(x), self.code.arena.at(out));
        let width = x.width / groups;
        let args = NormArgs {
            x: from,
            out: to,
            weight: self.vector(*weight),
            bias: self.vector(*bias),
            acts,
            x_stride,
            out_stride,
            width: u(width),
            groups: u(*groups),
            eps: *eps,
            centre: u32::from(*centre),
        };
        let threads = u(width.next_multiple_of(32).min(1024));
        self.gpu.launch(self.code.functions.norm, &shape([num_rows * groups, 1, 1], threads), &args)
    }

    fn quantize(&self, x: &Span, act: &ActSlot) -> Result<(), CudaError> {
        let num_rows = self.num_rows(x);
        if num_rows == 0 {
            return Ok(());
        }
        let (address, x_stride) = self.code.arena.at(x);
        let args =
            QuantizeArgs { x: address, acts: act.acts, x_stride, width: u(x.width), num_rows: u(num_rows), unused: 0 };
        let blocks = (num_rows * x.width).div_ceil(MAP_THREADS as usize);
        self.gpu.launch(self.code.functions.quantize, &shape([blocks, 1, 1], MAP_THREADS), &args)
    }

    fn rope(&self, x: &Span, head_dim: usize, pairs: RopePairs, table: usize) -> Result<(), CudaError> {
        let (address, stride) = self.code.arena.at(x);
        let (half, num_heads) = (self.code.rope_halves[table], x.width / head_dim);
        if half == 0 {
            return Ok(());
        }
        let [cos, sin] = self.layout.ropes[table].map(|offset| self.input + offset as u64);
        let args = RopeArgs {
            x: address,
            cos,
            sin,
            stride,
            num_heads: u(num_heads),
            head_dim: u(head_dim),
            half: u(half),
            halves: u32::from(matches!(pairs, RopePairs::Halves)),
            unused: 0,
        };
        self.gpu.launch(self.code.functions.rope, &map_shape(num_heads * half, self.shape.tokens), &args)
    }

    /// Any of the kernels that take columns one by one.
    pub(super) fn map(
        &self,
        function: Function,
        a: &Span,
        b: Option<&Span>,
        out: &Span,
        args: MapArgs,
    ) -> Result<(), CudaError> {
        let num_rows = self.num_rows(out);
        if num_rows == 0 {
            return Ok(());
        }
        let ((first, a_stride), (to, out_stride)) = (self.code.arena.at(a), self.code.arena.at(out));
        let (second, b_stride) = b.map_or((0, 0), |b| self.code.arena.at(b));
        let width = u(out.width);
        let args = MapArgs { a: first, b: second, out: to, a_stride, b_stride, out_stride, width, ..args };
        self.gpu.launch(function, &map_shape(out.width, num_rows), &args)
    }

    fn gather(&self, x: &Span, out: &Span) -> Result<(), CudaError> {
        let rows = self.code.arena.slot(out.buf).rows;
        let num_rows = self.shape.num_rows(rows);
        if num_rows == 0 {
            return Ok(());
        }
        let wanted = if rows == Rows::Hidden { self.layout.hidden } else { self.layout.outputs };
        let ((from, x_stride), (to, out_stride)) = (self.code.arena.at(x), self.code.arena.at(out));
        let args = GatherArgs {
            x: from,
            out: to,
            rows: self.input + wanted as u64,
            x_stride,
            out_stride,
            width: u(out.width),
            unused: 0,
        };
        self.gpu.launch(self.code.functions.gather, &map_shape(out.width, num_rows), &args)
    }
}
