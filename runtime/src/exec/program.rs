//! An executor around a machine of the kernels crate: feeds its program with steps.
//!
//! The step's input arrays are sized at load and reused, so that a step allocates nothing.

use shimmy_kernels::program::{Machine, ProgramError, Reduce, SeqInput, StepInput};

use crate::error::{Error, Result};
use crate::exec::batch::StepBatch;
use crate::exec::options::ExecOptions;
use crate::exec::{Executor, HiddenRows, KeptRows, KvTypes, Limits, PrefixReuse, ReducedRow, RowTasks, StepOutput};
use crate::kv::{BLOCK_TOKENS, KvPool};
use crate::plan::rope::fill_cos_sin;
use crate::plan::{Plan, RopeScaling, RopeSpec, Weight};

const _: () = assert!(BLOCK_TOKENS == shimmy_kernels::cpu::attention::KV_BLOCK);

/// One rotary table and its frequencies.
struct Rope {
    spec: RopeSpec,
    /// `[rotary_dim / 2]`; for dynamic scaling those of the trained context.
    inv_freq: Vec<f32>,
    factor: f32,
}

/// Runs a plan as a program of the kernels crate on one of its machines.
pub struct ProgramExecutor<M> {
    program: M,
    /// Which layers run where.
    placement: Option<String>,
    limits: Limits,
    kv_types: KvTypes,
    prefix_reuse: PrefixReuse,
    vocab_size: usize,
    width: usize,
    /// Of hidden states; 0 for a plan that has none beside its output.
    hidden_width: usize,
    ropes: Vec<Rope>,
    weights: Vec<Weight>,
    // The step's input, reused.
    seqs: Vec<SeqInput>,
    seq_of_row: Vec<u32>,
    outputs: Vec<u32>,
    hidden: Vec<u32>,
    tables: Vec<(Vec<f32>, Vec<f32>)>,
}

impl<M: Machine> ProgramExecutor<M> {
    /// An executor for a plan whose program `program` is.
    pub(super) fn around(program: M, plan: &Plan, options: &ExecOptions, limits: Limits) -> Result<Self> {
        let ropes = plan
            .ropes
            .iter()
            .map(|spec| {
                let inv_freq = spec.inv_freq(0, &plan.weights)?;
                Ok(Rope { spec: spec.clone(), inv_freq, factor: spec.attention_factor() })
            })
            .collect::<Result<Vec<_>>>()?;
        let tables = ropes
            .iter()
            .map(|rope| {
                let len = rope.inv_freq.len() * limits.max_step_tokens;
                (vec![0.0; len], vec![0.0; len])
            })
            .collect();
        Ok(Self {
            program,
            placement: None,
            limits,
            kv_types: options.kv_types,
            prefix_reuse: PrefixReuse::of(plan),
            vocab_size: plan.vocab_size,
            width: plan.buffers[plan.output.0].width,
            hidden_width: plan.hidden.map_or(0, |hidden| plan.buffers[hidden.0].width),
            ropes,
            weights: plan.weights.clone(),
            seqs: Vec::with_capacity(limits.max_step_tokens),
            seq_of_row: Vec::with_capacity(limits.max_step_tokens),
            outputs: Vec::with_capacity(limits.max_step_outputs),
            hidden: Vec::with_capacity(limits.max_step_tokens),
            tables,
        })
    }

    /// The same, saying which layers run where.
    #[cfg(feature = "cuda")]
    pub(super) fn placed(self, placement: String) -> Self {
        Self { placement: Some(placement), ..self }
    }

    /// Fills cos and sin for every row of every table.
    fn fill_ropes(&mut self, batch: &StepBatch) -> Result<()> {
        for (rope, (cos, sin)) in self.ropes.iter().zip(&mut self.tables) {
            let half = rope.inv_freq.len();
            for seq in &batch.seqs {
                let is_dynamic = matches!(rope.spec.scaling, RopeScaling::Dynamic { .. });
                let mut scaled = (0, Vec::new());
                for (position, row) in (seq.start..).zip(seq.tokens.clone()) {
                    let length = seq.length_at(position);
                    if is_dynamic && scaled.0 != length {
                        // The one scaling whose frequencies depend on the sequence; it allocates a few hundred bytes a length.
                        scaled = (length, rope.spec.inv_freq(length, &self.weights)?);
                    }
                    let inv_freq = if is_dynamic { &scaled.1 } else { &rope.inv_freq };
                    let cells = row * half..(row + 1) * half;
                    let (cos, sin) = (&mut cos[cells.clone()], &mut sin[cells]);
                    fill_cos_sin(inv_freq, rope.factor, position, cos, sin);
                }
            }
        }
        Ok(())
    }
}

impl<M: Machine> ProgramExecutor<M> {
    /// Runs a checked batch.
    fn run(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        self.seqs.clear();
        self.seq_of_row.clear();
        self.outputs.clear();
        self.hidden.clear();
        for (index, seq) in batch.seqs.iter().enumerate() {
            self.seqs.push(SeqInput { rows: seq.tokens.clone(), start: seq.start, table: seq.blocks.clone() });
            self.seq_of_row.extend(seq.tokens.clone().map(|_| index as u32));
            self.outputs.extend(seq.output.logits(seq.tokens.clone()).map(|row| row as u32));
            self.hidden.extend(seq.output.hidden(seq.tokens.clone()).map(|row| row as u32));
        }
        self.fill_ropes(batch)?;
        let RowTasks { width, rows } = &batch.tasks;
        let is_kept = self.program.reduces() && !rows.is_empty();
        let reduce = is_kept.then(|| Reduce { width: self.width.min(*width), tasks: rows });
        let input = StepInput {
            tokens: &batch.tokens,
            seqs: &self.seqs,
            seq_of_row: &self.seq_of_row,
            blocks: &batch.blocks,
            window_blocks: &batch.window_blocks,
            outputs: &self.outputs,
            hidden: &self.hidden,
            ropes: &self.tables,
            numerics: batch.numerics,
            reduce,
        };
        self.program.run(&input).map_err(|error| Error::EngineStopped(error.to_string()))?;
        let hidden = HiddenRows { width: self.hidden_width, data: self.program.hidden(self.hidden.len()) };
        let (num_rows, width) = (self.outputs.len(), self.width);
        let (data, kept): (&[f32], Option<&dyn KeptRows>) =
            if is_kept { (&[], Some(&*self)) } else { (self.program.outputs(num_rows), None) };
        Ok(StepOutput { num_rows, width, data, kept, hidden })
    }
}

impl<M: Machine> KeptRows for ProgramExecutor<M> {
    fn reduced(&self, row: usize) -> Option<ReducedRow<'_>> {
        self.program.reduced(row)
    }

    fn read(&self, row: usize, into: &mut Vec<f32>) -> Result<()> {
        self.program.read_output(row, into).map_err(|error| Error::EngineStopped(error.to_string()))
    }
}

fn bad_block(error: ProgramError) -> Error {
    Error::InvalidRequest { param: "block", message: error.to_string() }
}

impl<M: Machine> Executor for ProgramExecutor<M> {
    fn name(&self) -> &'static str {
        self.program.name()
    }

    fn placement(&self) -> Option<&str> {
        self.placement.as_deref()
    }

    fn limits(&self) -> Limits {
        self.limits
    }

    fn kv_types(&self) -> KvTypes {
        self.kv_types
    }

    fn prefix_reuse(&self) -> PrefixReuse {
        self.prefix_reuse
    }

    fn copy_block(&mut self, pool: KvPool, from: u32, to: u32) -> Result<()> {
        self.limits.check_block(pool, from.max(to))?;
        self.program.copy_block(pool, from, to).map_err(|error| Error::EngineStopped(error.to_string()))
    }

    fn kv_layout(&self) -> String {
        self.program.kv_layout()
    }

    fn block_bytes(&self, pool: KvPool) -> usize {
        self.program.block_bytes(pool)
    }

    fn read_block(&mut self, pool: KvPool, block: u32, into: &mut Vec<u8>) -> Result<()> {
        self.program.read_block(pool, block, into).map_err(bad_block)
    }

    fn write_block(&mut self, pool: KvPool, block: u32, bytes: &[u8]) -> Result<()> {
        self.program.write_block(pool, block, bytes).map_err(bad_block)
    }

    fn keeps_rows(&self) -> bool {
        self.program.reduces()
    }

    fn rest(&mut self) {
        self.program.rest();
    }

    fn step(&mut self, batch: &StepBatch) -> Result<StepOutput<'_>> {
        batch.validate(&self.limits, self.vocab_size)?;
        self.run(batch)
    }
}
