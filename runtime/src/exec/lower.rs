//! From ops to instructions.
//!
//! Fusions made here, none of which changes a result beyond rounding:
//! - rows that several matmuls read are quantised once, and matmuls on the same rows become one piece of work;
//! - `Linear` then `Add` of its output: the sum is made by the worker that has just computed the columns;
//! - gate `Linear`, up `Linear`, `Glu`: one piece of work, the activation as its epilogue.
//!
//! Every intermediate buffer is still written, so no liveness analysis is needed for them to be right.

use std::sync::Arc;

use shimmy_kernels::cpu::CpuKernels;
use shimmy_kernels::cpu::vector::{Activation, RopePairs};
use shimmy_kernels::program::{
    ActId, BufId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, ProgramBuilder, ProgramSize, Rows, Span, VecId,
    WeightId as MatrixId,
};

use crate::error::{Error, Result};
use crate::exec::Limits;
use crate::exec::options::{Activations, ExecOptions};
use crate::kv::KvPool;
use crate::plan::{Act, Columns, Mask, NormKind, Op, Plan, RopeStyle, WeightId};

/// Quantised rows that are valid now: what they were made from.
struct Quantised {
    from: Span,
    act: ActId,
}

struct Lowering<'a> {
    plan: &'a Plan,
    activations: Activations,
    program: ProgramBuilder,
    /// One buffer of quantised rows for each width.
    acts: Vec<(usize, ActId)>,
    quantised: Vec<Quantised>,
    matrices: Vec<Option<MatrixId>>,
}

/// The instructions of a plan, and the columns that a step returns.
pub(super) fn lower(plan: &Plan, options: &ExecOptions, limits: &Limits) -> Result<(ProgramBuilder, Span)> {
    let mut program = ProgramBuilder::new();
    for buffer in &plan.buffers {
        program.buffer(buffer.width, rows(buffer.rows));
    }
    for cache in &plan.kv {
        program.cache(limits.pool_of(cache), cache.num_kv_heads, cache.k_dim, cache.v_dim);
    }
    for rope in &plan.ropes {
        program.rope_table(rope.rotary_dim / 2);
    }
    let mut lowering = Lowering {
        plan,
        activations: options.activations,
        program,
        acts: Vec::new(),
        quantised: Vec::new(),
        matrices: vec![None; plan.weights.len()],
    };
    for op in &plan.ops {
        lowering.op(op)?;
    }
    let output = lowering.program.span(BufId(plan.output.0));
    if let Some(hidden) = plan.hidden {
        let hidden = lowering.program.span(BufId(hidden.0));
        lowering.program.hidden(hidden);
    }
    Ok((lowering.program, output))
}

/// What a program of this plan is sized for.
pub(super) fn program_size(plan: &Plan, options: &ExecOptions, limits: &Limits) -> ProgramSize {
    ProgramSize {
        vocab_size: plan.vocab_size,
        max_tokens: limits.max_step_tokens,
        max_outputs: limits.max_step_outputs,
        num_blocks: limits.num_kv_blocks,
        num_window_blocks: limits.num_blocks(KvPool::Window),
        kv: options.kv_types,
    }
}

fn rows(rows: crate::plan::Rows) -> Rows {
    match rows {
        crate::plan::Rows::Tokens => Rows::Tokens,
        crate::plan::Rows::Outputs => Rows::Outputs,
        crate::plan::Rows::Hidden => Rows::Hidden,
    }
}

fn span(columns: &Columns) -> Span {
    Span { buf: BufId(columns.buffer.0), start: columns.start, width: columns.width }
}

fn activation(act: Act) -> Activation {
    match act {
        Act::Silu => Activation::Silu,
        Act::Gelu => Activation::Gelu,
        Act::GeluTanh => Activation::GeluTanh,
        Act::Relu => Activation::Relu,
    }
}

impl Lowering<'_> {
    /// A vector of the file as f32, with `offset` added.
    fn vector(&mut self, id: WeightId, offset: f32) -> Result<VecId> {
        let weight = &self.plan.weights[id.0];
        let mut data = vec![0.0; weight.view.num_elements()];
        weight.view.dtype.dequantize_row(&weight.view.data, &mut data)?;
        data.iter_mut().for_each(|x| *x += offset);
        Ok(self.program.vector(data))
    }

    fn optional_vector(&mut self, id: Option<WeightId>, offset: f32) -> Result<Option<VecId>> {
        id.map(|id| self.vector(id, offset)).transpose()
    }

    fn matrix(&mut self, id: WeightId) -> Result<MatrixId> {
        if let Some(known) = self.matrices[id.0] {
            return Ok(known);
        }
        let weight = &self.plan.weights[id.0];
        let &[rows, cols] = weight.view.shape.as_slice() else {
            return Err(Error::TensorShape {
                name: weight.name.clone(),
                expected: vec![0, 0],
                got: weight.view.shape.clone(),
            });
        };
        let bytes = Arc::new(weight.view.data.clone());
        let matrix = self
            .program
            .weight(bytes, weight.view.dtype, rows, cols)
            .map_err(|error| Error::Unsupported(format!("tensor `{}`: {error}", weight.name)))?;
        self.matrices[id.0] = Some(matrix);
        Ok(matrix)
    }

    /// Appends an instruction that writes `written`: quantised rows made from there are stale afterwards.
    fn push(&mut self, instr: Instr, written: &[Span]) {
        self.quantised.retain(|q| !written.iter().any(|span| span.buf == q.from.buf));
        self.program.push(instr);
    }

    fn quantise(&mut self, x: Span) -> ActId {
        if let Some(known) = self.quantised.iter().find(|q| q.from == x) {
            return known.act;
        }
        let act = match self.acts.iter().find(|(k, _)| *k == x.width) {
            Some((_, act)) => *act,
            None => {
                let act = self.program.act(x.width);
                self.acts.push((x.width, act));
                act
            }
        };
        self.program.push(Instr::Quantize { x, act });
        self.quantised.retain(|q| q.act != act);
        self.quantised.push(Quantised { from: x, act });
        act
    }

    fn linear(&mut self, x: &Columns, weight: WeightId, bias: Option<WeightId>, out: &Columns) -> Result<()> {
        let (x, out) = (span(x), span(out));
        let dtype = self.plan.weights[weight.0].view.dtype;
        let part = MatMulPart { weight: self.matrix(weight)?, out, bias: self.optional_vector(bias, 0.0)? };
        let integer = self.activations == Activations::Q8 && CpuKernels::matmul_q8_supported(dtype);
        let x = if integer { MatMulX::Act(self.quantise(x)) } else { MatMulX::Float(x) };
        let rows = rows(self.plan.buffers[out.buf.0].rows);
        // Joins the group before it, if that is still open and on the same rows.
        if let Some(Instr::MatMul { x: group_x, parts, then: MatMulThen::Done, .. }) = self.program.last_mut() {
            let same = match (&x, &*group_x) {
                (MatMulX::Act(a), MatMulX::Act(b)) => a == b,
                (MatMulX::Float(a), MatMulX::Float(b)) => a == b,
                _ => false,
            };
            let apart = parts.iter().all(|other| other.out.buf != out.buf);
            if same && apart {
                parts.push(part);
                self.quantised.retain(|q| q.from.buf != out.buf);
                return Ok(());
            }
        }
        self.push(Instr::MatMul { x, rows, parts: vec![part], then: MatMulThen::Done }, &[out]);
        Ok(())
    }

    /// `out = a + b` as the epilogue of the matmul that has just computed `a` or `b`.
    fn fuse_add(&mut self, a: Span, b: Span, out: Span) -> bool {
        let Some(Instr::MatMul { x, parts, then: then @ MatMulThen::Done, .. }) = self.program.last_mut() else {
            return false;
        };
        let [part] = parts.as_slice() else { return false };
        let other = if part.out == a { b } else { a };
        let reads_out = matches!(x, MatMulX::Float(x) if x.buf == out.buf);
        if (part.out != a && part.out != b) || other != out || out.buf == part.out.buf || reads_out {
            return false;
        }
        *then = MatMulThen::AddTo(out);
        self.quantised.retain(|q| q.from.buf != out.buf);
        true
    }

    /// `gate = act(gate) · up` as the epilogue of the two matmuls that have just computed them.
    fn fuse_glu(&mut self, act: Act, gate: Span, up: Span, out: Span) -> bool {
        let Some(Instr::MatMul { parts, then: then @ MatMulThen::Done, .. }) = self.program.last_mut() else {
            return false;
        };
        let [first, second] = parts.as_mut_slice() else { return false };
        if out != gate || gate.width != up.width {
            return false;
        }
        if first.out == up && second.out == gate {
            std::mem::swap(first, second);
        }
        if first.out != gate || second.out != up {
            return false;
        }
        *then = MatMulThen::Glu(activation(act));
        self.quantised.retain(|q| q.from.buf != out.buf);
        true
    }

    fn op(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::Embed { weight, scale, out } => {
                let out = self.program.span(BufId(out.0));
                let table = self.matrix(*weight)?;
                self.push(Instr::Embed { table, scale: *scale, out }, &[out]);
            }
            Op::Norm { kind, x, out, weight, bias, offset, eps, groups } => {
                let (x, out) = (span(x), span(out));
                let weight = match weight {
                    Some(weight) => Some(self.vector(*weight, *offset)?),
                    None => None,
                };
                let bias = self.optional_vector(*bias, 0.0)?;
                let centre = *kind == NormKind::Layer;
                self.push(Instr::Norm { centre, eps: *eps, groups: *groups, x, out, weight, bias }, &[out]);
            }
            Op::Linear { x, weight, bias, out } => self.linear(x, *weight, *bias, out)?,
            Op::Rope { x, num_heads, head_dim, rope } => {
                let x = span(x);
                if x.width != num_heads * head_dim {
                    return Err(Error::Unsupported(format!("rope on {} columns of {num_heads} heads", x.width)));
                }
                let pairs = match self.plan.ropes[rope.0].style {
                    RopeStyle::Neox => RopePairs::Halves,
                    RopeStyle::Interleaved => RopePairs::Adjacent,
                };
                self.push(Instr::Rope { x, head_dim: *head_dim, pairs, table: rope.0 }, &[x]);
            }
            Op::Attention { q, k, v, out, num_heads, scale, softcap, mask, sinks, kv } => {
                let cache = CacheId(kv.0);
                let out = span(out);
                self.push(Instr::StoreKv { k: span(k), v: span(v), cache }, &[]);
                let attend = Instr::Attend {
                    q: span(q),
                    out,
                    cache,
                    num_heads: *num_heads,
                    scale: *scale,
                    softcap: *softcap,
                    window: self.plan.kv[kv.0].window,
                    causal: *mask == Mask::Causal,
                    sinks: self.optional_vector(*sinks, 0.0)?,
                };
                self.push(attend, &[out]);
            }
            Op::Glu { act, gate, up, out } => {
                let (gate, up, out) = (span(gate), span(up), span(out));
                if !self.fuse_glu(*act, gate, up, out) {
                    self.push(Instr::Glu { act: activation(*act), gate, up, out }, &[out]);
                }
            }
            Op::Activation { act, x, out } => {
                let (x, out) = (span(x), span(out));
                self.push(Instr::Activate { act: activation(*act), x, out }, &[out]);
            }
            Op::Add { a, b, out } => {
                let (a, b, out) = (span(a), span(b), span(out));
                if !self.fuse_add(a, b, out) {
                    self.push(Instr::Add { a, b, out }, &[out]);
                }
            }
            Op::Scale { x, factor, out } => {
                let (x, out) = (span(x), span(out));
                self.push(Instr::Scale { factor: *factor, x, out }, &[out]);
            }
            Op::Softcap { x, cap, out } => {
                let (x, out) = (span(x), span(out));
                self.push(Instr::Softcap { cap: *cap, x, out }, &[out]);
            }
            Op::Gather { x, out } => {
                let (x, out) = (self.program.span(BufId(x.0)), self.program.span(BufId(out.0)));
                self.push(Instr::Gather { x, out }, &[out]);
            }
        }
        Ok(())
    }
}
