//! Collects the parts of a program and checks that they fit together, before an executor takes it.

use std::sync::Arc;

use super::instr::{
    ActId, BufId, CacheId, Instr, MatMulPart, MatMulThen, MatMulX, Rows, SharedBytes, Span, VecId, WeightId,
};
use super::{ProgramError, ProgramSize};
use crate::cpu::kv::KvPool;
use crate::cpu::{ACT_GROUP, CpuKernels, MatrixRef};
use crate::quant::QuantType;

/// Collects buffers, weights and instructions.
#[derive(Default)]
pub struct ProgramBuilder {
    /// Width and rows of each.
    pub(crate) buffers: Vec<(usize, Rows)>,
    /// Width of each buffer of quantised rows.
    pub(crate) acts: Vec<usize>,
    pub(crate) caches: Vec<CacheShape>,
    pub(crate) weights: Vec<WeightSlot>,
    pub(crate) vectors: Vec<Arc<[f32]>>,
    pub(crate) rope_halves: Vec<usize>,
    pub(crate) instrs: Vec<Instr>,
    pub(crate) hidden: Option<Span>,
    /// Buffers whose rows come from other stages or go there: they are in memory before a step and after it.
    pub(crate) crossing: Vec<BufId>,
}

/// A KV cache that was asked for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheShape {
    pub(crate) pool: KvPool,
    pub(crate) num_kv_heads: usize,
    pub(crate) k_dim: usize,
    pub(crate) v_dim: usize,
}

/// A matrix in the bytes of a file.
#[derive(Clone)]
pub(crate) struct WeightSlot {
    pub(crate) bytes: SharedBytes,
    pub(crate) dtype: QuantType,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
}

impl ProgramBuilder {
    /// An empty program.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `width` columns.
    pub fn buffer(&mut self, width: usize, rows: Rows) -> BufId {
        self.buffers.push((width, rows));
        BufId(self.buffers.len() - 1)
    }

    /// All columns of a buffer.
    pub fn span(&self, buf: BufId) -> Span {
        Span { buf, start: 0, width: self.buffers[buf.0].0 }
    }

    /// A buffer for quantised rows of `k` elements.
    pub fn act(&mut self, k: usize) -> ActId {
        self.acts.push(k);
        ActId(self.acts.len() - 1)
    }

    /// A KV cache.
    pub fn cache(&mut self, pool: KvPool, num_kv_heads: usize, k_dim: usize, v_dim: usize) -> CacheId {
        self.caches.push(CacheShape { pool, num_kv_heads, k_dim, v_dim });
        CacheId(self.caches.len() - 1)
    }

    /// A matrix `[rows, cols]` in the bytes of a file.
    ///
    /// # Errors
    /// When the bytes don't hold exactly that, or no kernel computes on the type.
    pub fn weight(
        &mut self,
        bytes: SharedBytes,
        dtype: QuantType,
        rows: usize,
        cols: usize,
    ) -> Result<WeightId, ProgramError> {
        MatrixRef::new(dtype, rows, cols, (*bytes).as_ref())?;
        self.weights.push(WeightSlot { bytes, dtype, rows, cols });
        Ok(WeightId(self.weights.len() - 1))
    }

    /// A vector.
    pub fn vector(&mut self, data: Vec<f32>) -> VecId {
        self.vectors.push(data.into());
        VecId(self.vectors.len() - 1)
    }

    /// A cos/sin table of `half` values a token, given at each step.
    pub fn rope_table(&mut self, half: usize) -> usize {
        self.rope_halves.push(half);
        self.rope_halves.len() - 1
    }

    /// Appends an instruction.
    pub fn push(&mut self, instr: Instr) {
        self.instrs.push(instr);
    }

    /// Instructions so far.
    pub fn instrs(&self) -> &[Instr] {
        &self.instrs
    }

    /// The last instruction, to extend it.
    pub fn last_mut(&mut self) -> Option<&mut Instr> {
        self.instrs.last_mut()
    }

    /// Bytes of all matrices as they are in the file.
    pub fn weight_bytes(&self) -> usize {
        self.weights.iter().map(|slot| (*slot.bytes).as_ref().len()).sum()
    }

    /// What a step returns as hidden states: a whole buffer with a row for each.
    pub fn hidden(&mut self, hidden: Span) {
        self.hidden = Some(hidden);
    }

    /// Checks every instruction against its buffers and weights, the output, and the element types of the cache.
    ///
    /// # Errors
    /// [`ProgramError::Instr`] with what doesn't fit, [`ProgramError::Step`] for the rest.
    pub(crate) fn check_all(&self, output: Option<&Span>, size: &ProgramSize) -> Result<(), ProgramError> {
        for (index, instr) in self.instrs.iter().enumerate() {
            self.check(instr).map_err(|what| ProgramError::Instr { index, name: instr.name(), what })?;
        }
        if let Some(output) = output {
            self.check_span(output).map_err(ProgramError::Step)?;
            if self.rows_of(output) != Rows::Outputs || output.width != self.buffers[output.buf.0].0 {
                return Err(ProgramError::Step("the output must be a whole buffer with a row an output".into()));
            }
        }
        if let Some(hidden) = &self.hidden {
            self.check_span(hidden).map_err(ProgramError::Step)?;
            if self.rows_of(hidden) != Rows::Hidden || hidden.width != self.buffers[hidden.buf.0].0 {
                let what = "hidden states must be a whole buffer with a row for each";
                return Err(ProgramError::Step(what.into()));
            }
        }
        if let Some(CacheShape { k_dim, v_dim, .. }) = self.caches.iter().find(|c| !size.kv.fits(c.k_dim, c.v_dim)) {
            let what = format!("takes heads of whole groups of 32 elements, not {k_dim} and {v_dim}");
            return Err(ProgramError::Step(format!("a {} KV cache {what}", size.kv)));
        }
        Ok(())
    }

    /// Positions that an attention over the window's pool sees at most, the own one included. A cache in that pool without
    /// any attention over it is read by nobody.
    pub(crate) fn largest_window(&self) -> usize {
        let window = |instr: &Instr| match instr {
            Instr::Attend { cache, window, .. } if self.caches[cache.0].pool == KvPool::Window => *window,
            _ => None,
        };
        self.instrs.iter().filter_map(window).max().unwrap_or(0)
    }

    fn check_span(&self, span: &Span) -> Result<(), String> {
        let Some(&(width, _)) = self.buffers.get(span.buf.0) else { return Err("unknown buffer".into()) };
        let end = span.start.checked_add(span.width);
        if span.width == 0 || end.is_none_or(|end| end > width) {
            return Err(format!("columns {}+{} of a buffer of {width}", span.start, span.width));
        }
        Ok(())
    }

    pub(crate) fn rows_of(&self, span: &Span) -> Rows {
        self.buffers[span.buf.0].1
    }

    /// Spans of a row-wise instruction: equally wide, the same rows, equal or disjoint columns.
    fn check_row_wise(&self, spans: &[&Span]) -> Result<(), String> {
        for span in spans {
            self.check_span(span)?;
            if span.width != spans[0].width || self.rows_of(span) != self.rows_of(spans[0]) {
                return Err("operands differ in width or rows".into());
            }
            if spans.iter().any(|other| other != span && other.overlaps(span)) {
                return Err("operands overlap without being equal".into());
            }
        }
        Ok(())
    }

    fn check_vector(&self, vector: Option<VecId>, len: usize) -> Result<(), String> {
        match vector.map(|id| self.vectors.get(id.0).map(|vector| vector.len())) {
            None => Ok(()),
            Some(Some(got)) if got == len => Ok(()),
            Some(got) => Err(format!("vector of {got:?} elements, expected {len}")),
        }
    }

    fn check(&self, instr: &Instr) -> Result<(), String> {
        match instr {
            Instr::Embed { table, out, .. } => {
                self.check_span(out)?;
                let table = self.weights.get(table.0).ok_or("unknown table")?;
                if table.cols != out.width || self.rows_of(out) != Rows::Tokens {
                    return Err(format!("table of width {} into {}", table.cols, out.width));
                }
                Ok(())
            }
            Instr::Norm { groups, x, out, weight, bias, .. } => {
                self.check_row_wise(&[x, out])?;
                if *groups == 0 || !x.width.is_multiple_of(*groups) {
                    return Err(format!("{} columns in {groups} groups", x.width));
                }
                self.check_vector(*weight, x.width / groups)?;
                self.check_vector(*bias, x.width / groups)
            }
            Instr::Quantize { x, act } => {
                self.check_span(x)?;
                let k = *self.acts.get(act.0).ok_or("unknown activation buffer")?;
                if k != x.width || !k.is_multiple_of(ACT_GROUP) {
                    return Err(format!("{} columns into rows of {k} (a multiple of {ACT_GROUP})", x.width));
                }
                Ok(())
            }
            Instr::MatMul { x, rows, parts, then } => self.check_matmul(x, *rows, parts, then),
            Instr::Rope { x, head_dim, table, .. } => {
                self.check_span(x)?;
                let half = *self.rope_halves.get(*table).ok_or("unknown rope table")?;
                if *head_dim == 0 || !x.width.is_multiple_of(*head_dim) || 2 * half > *head_dim {
                    return Err(format!("{} columns, heads of {head_dim}, {half} pairs", x.width));
                }
                self.tokens(&[x])
            }
            Instr::StoreKv { k, v, cache } => {
                self.check_span(k)?;
                self.check_span(v)?;
                let &CacheShape { num_kv_heads: heads, k_dim, v_dim, .. } =
                    self.caches.get(cache.0).ok_or("unknown cache")?;
                if k.width != heads * k_dim || v.width != heads * v_dim {
                    return Err(format!("{} and {} columns into {heads} heads", k.width, v.width));
                }
                self.tokens(&[k, v])
            }
            Instr::Attend { q, out, cache, num_heads, window, sinks, .. } => {
                self.check_vector(*sinks, *num_heads)?;
                self.check_span(q)?;
                self.check_span(out)?;
                let &CacheShape { pool, num_kv_heads: heads, k_dim, v_dim } =
                    self.caches.get(cache.0).ok_or("unknown cache")?;
                if heads == 0 || !num_heads.is_multiple_of(heads) || *window == Some(0) {
                    return Err(format!("{num_heads} heads on {heads}, window {window:?}"));
                }
                if pool == KvPool::Window && window.is_none() {
                    return Err("attends to all of a cache that keeps a window only".into());
                }
                if q.width != num_heads * k_dim || out.width != num_heads * v_dim || q.overlaps(out) {
                    return Err(format!("{} columns to {}", q.width, out.width));
                }
                self.tokens(&[q, out])
            }
            Instr::Glu { gate: a, up: b, out, .. } | Instr::Add { a, b, out } => self.check_row_wise(&[a, b, out]),
            Instr::Activate { x, out, .. } | Instr::Scale { x, out, .. } | Instr::Softcap { x, out, .. } => {
                self.check_row_wise(&[x, out])
            }
            Instr::Gather { x, out } => {
                self.check_span(x)?;
                self.check_span(out)?;
                if x.width != out.width || self.rows_of(x) != Rows::Tokens || self.rows_of(out) == Rows::Tokens {
                    return Err("gathers rows of tokens into rows of outputs or hidden states of the same width".into());
                }
                Ok(())
            }
        }
    }

    fn tokens(&self, spans: &[&Span]) -> Result<(), String> {
        if spans.iter().any(|span| self.rows_of(span) != Rows::Tokens) {
            return Err("needs a row a token".into());
        }
        Ok(())
    }

    fn check_matmul(&self, x: &MatMulX, rows: Rows, parts: &[MatMulPart], then: &MatMulThen) -> Result<(), String> {
        let k = match x {
            MatMulX::Act(act) => *self.acts.get(act.0).ok_or("unknown activation buffer")?,
            MatMulX::Float(span) => {
                self.check_span(span)?;
                if self.rows_of(span) != rows {
                    return Err("operands differ in rows".into());
                }
                span.width
            }
        };
        let mut written: Vec<&Span> = parts.iter().map(|part| &part.out).collect();
        if let MatMulThen::AddTo(dst) = then {
            written.push(dst);
        }
        for (i, span) in written.iter().enumerate() {
            self.check_span(span)?;
            if self.rows_of(span) != rows || written[..i].iter().any(|other| other.overlaps(span)) {
                return Err("outputs overlap or differ in rows".into());
            }
            // The kernel reads the input as one slice of whole rows: nobody may write anywhere in it.
            if matches!(x, MatMulX::Float(x) if x.buf == span.buf) {
                return Err("an output lies in the input's buffer".into());
            }
        }
        for part in parts {
            let weight = self.weights.get(part.weight.0).ok_or("unknown weight")?;
            if weight.cols != k || weight.rows != part.out.width {
                return Err(format!("[{}, {}] on {k} columns into {}", weight.rows, weight.cols, part.out.width));
            }
            if matches!(x, MatMulX::Act(_)) && !CpuKernels::matmul_q8_supported(weight.dtype) {
                return Err(format!("{} has no integer matmul", weight.dtype.name()));
            }
            self.check_vector(part.bias, part.out.width)?;
        }
        let widths_fit = match then {
            MatMulThen::Done => !parts.is_empty(),
            MatMulThen::AddTo(dst) => matches!(parts, [part] if part.out.width == dst.width),
            MatMulThen::Glu(_) => matches!(parts, [a, b] if a.out.width == b.out.width),
        };
        if widths_fit { Ok(()) } else { Err("the epilogue doesn't fit the parts".into()) }
    }
}
