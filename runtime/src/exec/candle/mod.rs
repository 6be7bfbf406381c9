//! The candle executor: a plan run op by op on candle tensors in f32. It is the readable definition of what every op
//! means, the oracle that other executors are compared with, and the path that runs whatever the others refuse.
//!
//! | file | what it does |
//! |---|---|
//! | `mod.rs` | the executor: limits, buffers, one arm an op |
//! | `weights.rs` | tensors of the file as candle tensors; quantised matrices as our matmul op |
//! | `kv.rs` | the paged cache and attention |

mod kv;
mod weights;

use std::collections::HashMap;

use candle_core::{D, Device, Tensor};
use candle_nn::ops;
use candle_nn::rotary_emb::{rope, rope_i};

use crate::error::{Error, Result};
use crate::exec::batch::{Numerics, SeqStep, StepBatch};
use crate::exec::options::ExecOptions;
use crate::exec::{Executor, HiddenRows, KvType, KvTypes, Limits, PrefixReuse, StepOutput};
use crate::kv::KvPool;
use crate::plan::rope::fill_cos_sin;
use crate::plan::{Act, BufferId, Columns, Mask, NormKind, Op, Plan, RopeId, RopeScaling, RopeStyle, Rows};
use kv::{AttentionArgs, PagedKv};
use weights::Weights;

/// What the cache takes, whatever type its numbers are rounded to.
const STORED: KvTypes = KvTypes { k: KvType::F32, v: KvType::F32 };

/// Runs a plan on candle tensors.
pub struct CandleExecutor {
    plan: Plan,
    limits: Limits,
    weights: Weights,
    /// One a cache of the plan.
    kv: Vec<PagedKv>,
    /// Angular frequencies a rotary table; of dynamic ones those for up to the trained context.
    inv_freq: Vec<Vec<f32>>,
    /// `[rows, width]` of the last step.
    output: Vec<f32>,
    /// `[rows, hidden size]` of the last step.
    hidden: Vec<f32>,
}

impl std::fmt::Debug for CandleExecutor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "CandleExecutor({}, {:?})", self.plan.architecture, self.limits)
    }
}

/// What a step's ops share: the batch, and the buffers written so far.
struct Step<'a> {
    batch: &'a StepBatch,
    /// Position of each token.
    positions: Vec<usize>,
    /// Indices of the tokens whose output was asked for.
    outputs: Vec<u32>,
    /// Indices of the tokens whose hidden state was asked for.
    hidden: Vec<u32>,
    buffers: Vec<Option<Tensor>>,
    /// cos and sin of the step's tokens, `[tokens, rotary_dim / 2]`, once a rotary table.
    tables: HashMap<RopeId, (Tensor, Tensor)>,
}

impl CandleExecutor {
    /// Loads a plan's weights and an empty cache. Every op is supported, and every weight type that the kernels crate knows how to read.
    ///
    /// # Errors
    /// When a weight's shape and type don't fit together or an option is impossible.
    pub fn new(plan: &Plan, options: &ExecOptions) -> Result<Self> {
        let limits = super::limits(plan, options, STORED)?;
        let inv_freq = plan.ropes.iter().map(|rope| rope.inv_freq(1, &plan.weights)).collect::<Result<_>>()?;
        Ok(Self {
            weights: Weights::load(plan)?,
            kv: plan
                .kv
                .iter()
                .map(|spec| {
                    let pool = limits.pool_of(spec);
                    PagedKv::new(spec.clone(), options.kv_types, pool, limits.num_blocks(pool))
                })
                .collect(),
            inv_freq,
            limits,
            plan: plan.clone(),
            output: Vec::new(),
            hidden: Vec::new(),
        })
    }

    /// An encoder's token sees its whole sequence, so the whole sequence must be in the step.
    fn refuse_pieces(&self, batch: &StepBatch) -> Result<()> {
        let whole = |seq: &SeqStep| seq.start == 0 && seq.tokens.len() == seq.num_tokens;
        let bidirectional = |op: &Op| matches!(op, Op::Attention { mask: Mask::Bidirectional, .. });
        if self.plan.ops.iter().any(bidirectional) && !batch.seqs.iter().all(whole) {
            let message = "a bidirectional model needs each sequence whole in one step".into();
            return Err(Error::InvalidRequest { param: "batch", message });
        }
        Ok(())
    }

    /// Appends the rows of a batch to those of the step.
    fn run(&mut self, batch: &StepBatch) -> Result<()> {
        let positions = batch.seqs.iter().flat_map(|seq| seq.start..seq.start + seq.tokens.len()).collect();
        let outputs = batch.seqs.iter().flat_map(|seq| seq.output.logits(seq.tokens.clone()));
        let hidden = batch.seqs.iter().flat_map(|seq| seq.output.hidden(seq.tokens.clone()));
        let mut step = Step {
            batch,
            positions,
            outputs: outputs.map(|token| token as u32).collect(),
            hidden: hidden.map(|token| token as u32).collect(),
            buffers: vec![None; self.plan.buffers.len()],
            tables: HashMap::new(),
        };
        for index in 0..self.plan.ops.len() {
            let op = self.plan.ops[index].clone();
            // Nothing is needed of rows that nobody asked for, and candle has no empty matmuls.
            if step.num_rows(self.plan.buffers[op.out().0].rows) > 0 {
                self.op(&op, &mut step)?;
            }
        }
        if !step.outputs.is_empty() {
            self.output.extend(step.buffer(self.plan.output)?.flatten_all()?.to_vec1::<f32>()?);
        }
        if let Some(hidden) = self.plan.hidden.filter(|_| !step.hidden.is_empty()) {
            self.hidden.extend(step.buffer(hidden)?.flatten_all()?.to_vec1::<f32>()?);
        }
        Ok(())
    }

    fn width(&self) -> usize {
        self.plan.buffers[self.plan.output.0].width
    }

    fn op(&mut self, op: &Op, step: &mut Step<'_>) -> Result<()> {
        match *op {
            Op::Embed { weight, scale, out } => {
                let rows = self.weights.rows(weight, &step.batch.tokens)?;
                step.buffers[out.0] = Some((rows * f64::from(scale))?);
                Ok(())
            }
            Op::Norm { kind, x, out, weight, bias, offset, eps, groups } => {
                let rows = step.read(x)?;
                let (num_rows, width) = rows.dims2()?;
                let part = width / groups;
                let rows = rows.reshape((num_rows, groups, part))?.contiguous()?;
                let alpha = match weight {
                    Some(weight) => (self.weights.vector(weight)? + f64::from(offset))?,
                    None => Tensor::ones(part, candle_core::DType::F32, &Device::Cpu)?,
                };
                let normed = match kind {
                    NormKind::Rms => ops::rms_norm(&rows, &alpha, eps)?,
                    NormKind::Layer => layer_norm(&rows, &alpha, eps)?,
                };
                let normed = match bias {
                    Some(bias) => normed.broadcast_add(&self.weights.vector(bias)?)?,
                    None => normed,
                };
                self.write(step, out, normed.reshape((num_rows, width))?)
            }
            Op::Linear { x, weight, bias, out } => {
                let product = self.weights.matmul(weight, &step.read(x)?.contiguous()?)?;
                let product = match bias {
                    Some(bias) => product.broadcast_add(&self.weights.vector(bias)?)?,
                    None => product,
                };
                self.write(step, out, product)
            }
            Op::Rope { x, num_heads, head_dim, rope } => {
                let rotated = self.rotate(step, x, num_heads, head_dim, rope)?;
                self.write(step, x, rotated)
            }
            Op::Attention { q, k, v, out, num_heads, scale, softcap, mask, sinks, kv } => {
                let (q, k, v) = (step.read(q)?, step.read(k)?, step.read(v)?);
                let sinks = sinks.map(|sinks| self.weights.vector(sinks)).transpose()?;
                let args = AttentionArgs { num_heads, scale, softcap, mask, sinks };
                let attended = self.kv[kv.0].attend(step.batch, &q, &k, &v, &args)?;
                self.write(step, out, attended)
            }
            Op::Glu { act, gate, up, out } => {
                let product = (activate(act, &step.read(gate)?)? * step.read(up)?)?;
                self.write(step, out, product)
            }
            Op::Activation { act, x, out } => {
                let activated = activate(act, &step.read(x)?)?;
                self.write(step, out, activated)
            }
            Op::Add { a, b, out } => {
                let sum = (step.read(a)? + step.read(b)?)?;
                self.write(step, out, sum)
            }
            Op::Scale { x, factor, out } => {
                let scaled = (step.read(x)? * f64::from(factor))?;
                self.write(step, out, scaled)
            }
            Op::Softcap { x, cap, out } => {
                let capped = softcapped(&step.read(x)?, cap)?;
                self.write(step, out, capped)
            }
            Op::Gather { x, out } => {
                let wanted = match self.plan.buffers[out.0].rows {
                    Rows::Hidden => &step.hidden,
                    Rows::Outputs | Rows::Tokens => &step.outputs,
                };
                let indices = Tensor::new(wanted.as_slice(), &Device::Cpu)?;
                let rows = step.buffer(x)?.index_select(&indices, 0)?;
                step.buffers[out.0] = Some(rows);
                Ok(())
            }
        }
    }

    /// Writes columns of a buffer; the others stay.
    fn write(&self, step: &mut Step<'_>, out: Columns, rows: Tensor) -> Result<()> {
        let width = self.plan.buffers[out.buffer.0].width;
        let slot = &mut step.buffers[out.buffer.0];
        if out.width == width {
            *slot = Some(rows);
            return Ok(());
        }
        let num_rows = rows.dim(0)?;
        let old = match slot.take() {
            Some(old) => old,
            None => Tensor::zeros((num_rows, width), candle_core::DType::F32, &Device::Cpu)?,
        };
        let end = out.start + out.width;
        let parts = [old.narrow(1, 0, out.start)?, rows, old.narrow(1, end, width - end)?];
        let parts: Vec<_> = parts.iter().filter(|part| part.elem_count() > 0).collect();
        *slot = Some(Tensor::cat(&parts, 1)?);
        Ok(())
    }

    /// The first `rotary_dim` elements of every head rotated, the rest as they were.
    fn rotate(&self, step: &mut Step<'_>, x: Columns, num_heads: usize, head_dim: usize, id: RopeId) -> Result<Tensor> {
        let spec = &self.plan.ropes[id.0];
        let (cos, sin) = match step.tables.get(&id) {
            Some(table) => table.clone(),
            None => {
                let table = self.cos_sin(step, id)?;
                step.tables.insert(id, table.clone());
                table
            }
        };
        let rows = step.read(x)?;
        let num_rows = rows.dim(0)?;
        // [1, heads, tokens, head_dim], as candle's rotary ops want it.
        let heads = rows.reshape((1, num_rows, num_heads, head_dim))?.transpose(1, 2)?;
        let turning = heads.narrow(D::Minus1, 0, spec.rotary_dim)?.contiguous()?;
        let turned = match spec.style {
            RopeStyle::Neox => rope(&turning, &cos, &sin)?,
            RopeStyle::Interleaved => rope_i(&turning, &cos, &sin)?,
        };
        let heads = if spec.rotary_dim == head_dim {
            turned
        } else {
            let rest = heads.narrow(D::Minus1, spec.rotary_dim, head_dim - spec.rotary_dim)?;
            Tensor::cat(&[&turned, &rest.contiguous()?], D::Minus1)?
        };
        Ok(heads.transpose(1, 2)?.reshape((num_rows, x.width))?)
    }

    fn cos_sin(&self, step: &Step<'_>, id: RopeId) -> Result<(Tensor, Tensor)> {
        let spec = &self.plan.ropes[id.0];
        let (half, factor) = (spec.rotary_dim / 2, spec.attention_factor());
        let num_tokens = step.positions.len();
        let (mut cos, mut sin) = (vec![0.0; num_tokens * half], vec![0.0; num_tokens * half]);
        for seq in &step.batch.seqs {
            for token in seq.tokens.clone() {
                let own = match spec.scaling {
                    RopeScaling::Dynamic { .. } => {
                        Some(spec.inv_freq(seq.length_at(step.positions[token]), &self.plan.weights)?)
                    }
                    _ => None,
                };
                let inv_freq = own.as_ref().unwrap_or(&self.inv_freq[id.0]);
                let row = token * half..(token + 1) * half;
                fill_cos_sin(inv_freq, factor, step.positions[token], &mut cos[row.clone()], &mut sin[row]);
            }
        }
        let shape = (num_tokens, half);
        Ok((Tensor::from_vec(cos, shape, &Device::Cpu)?, Tensor::from_vec(sin, shape, &Device::Cpu)?))
    }
}

impl Step<'_> {
    fn num_rows(&self, rows: Rows) -> usize {
        match rows {
            Rows::Tokens => self.batch.tokens.len(),
            Rows::Outputs => self.outputs.len(),
            Rows::Hidden => self.hidden.len(),
        }
    }

    fn buffer(&self, id: BufferId) -> Result<Tensor> {
        // A plan that reads what no op wrote is a builder's bug; say so instead of computing on zeros.
        self.buffers[id.0].clone().ok_or_else(|| Error::Unsupported(format!("a plan that reads buffer {} early", id.0)))
    }

    fn read(&self, x: Columns) -> Result<Tensor> {
        let buffer = self.buffer(x.buffer)?;
        Ok(if buffer.dim(1)? == x.width { buffer } else { buffer.narrow(1, x.start, x.width)?.contiguous()? })
    }
}

/// `(x − mean) / sqrt(var + eps) · alpha` over the last axis.
fn layer_norm(x: &Tensor, alpha: &Tensor, eps: f32) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
    let variance = centred.sqr()?.mean_keepdim(D::Minus1)?;
    Ok(centred.broadcast_div(&(variance + f64::from(eps))?.sqrt()?)?.broadcast_mul(alpha)?)
}

fn activate(act: Act, x: &Tensor) -> Result<Tensor> {
    Ok(match act {
        Act::Silu => ops::silu(x)?,
        Act::Gelu => x.gelu_erf()?,
        Act::GeluTanh => x.gelu()?,
        Act::Relu => x.relu()?,
    })
}

/// `cap · tanh(x / cap)`.
fn softcapped(x: &Tensor, cap: f32) -> Result<Tensor> {
    Ok(((x / f64::from(cap))?.tanh()? * f64::from(cap))?)
}

impl Executor for CandleExecutor {
    fn name(&self) -> &'static str {
        "candle"
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn kv_types(&self) -> KvTypes {
        STORED
    }

    fn prefix_reuse(&self) -> PrefixReuse {
        PrefixReuse::of(&self.plan)
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<()> {
        self.limits.check_block(pool, from.max(to))?;
        self.kv.iter_mut().filter(|cache| cache.pool() == pool).for_each(|cache| cache.copy_block(from, to));
        Ok(())
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.kv.iter().filter(|cache| cache.pool() == pool).map(PagedKv::block_bytes).sum()
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<()> {
        self.limits.check_block(pool, block)?;
        self.kv.iter().filter(|cache| cache.pool() == pool).for_each(|cache| cache.read_block(block, into));
        Ok(())
    }

    fn write_block(&mut self, pool: KvPool, block: u32, mut bytes: &[u8]) -> Result<()> {
        self.limits.check_block(pool, block)?;
        if bytes.len() != self.block_bytes(pool) {
            let message = format!("{} bytes for {block}, which has {}", bytes.len(), self.block_bytes(pool));
            return Err(Error::InvalidRequest { param: "block", message });
        }
        for cache in self.kv.iter_mut().filter(|cache| cache.pool() == pool) {
            let (own, rest) = bytes.split_at(cache.block_bytes());
            cache.write_block(block, own);
            bytes = rest;
        }
        Ok(())
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        batch.validate(&self.limits, self.plan.vocab_size)?;
        self.refuse_pieces(batch)?;
        let (num_rows, width) = (batch.num_outputs(), self.width());
        self.output.clear();
        self.hidden.clear();
        match batch.numerics {
            _ if batch.tokens.is_empty() => {}
            Numerics::Fast => self.run(batch)?,
            // candle's matmuls choose their kernels by the number of rows.
            Numerics::Invariant => batch.for_each_row(&mut StepBatch::default(), |row| self.run(row))?,
        }
        let hidden_width = self.plan.hidden.map_or(0, |hidden| self.plan.buffers[hidden.0].width);
        let hidden = HiddenRows { width: hidden_width, data: &self.hidden };
        Ok(StepOutput { num_rows, width, data: &self.output, kept: None, hidden })
    }
}
