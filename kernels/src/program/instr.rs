//! The instructions, and what each reads and writes.

use std::sync::Arc;

use crate::cpu::vector::{Activation, RopePairs};

/// Bytes that stay alive as long as the program: a range of a mapped file, or a buffer.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A buffer of f32 rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BufId(pub usize);
/// A buffer of quantised rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ActId(pub usize);
/// A KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheId(pub usize);
/// A matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightId(pub usize);
/// A vector of f32: norm weights, biases.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VecId(pub usize);

/// Which rows a buffer has in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One a token.
    Tokens,
    /// One a wanted output.
    Outputs,
    /// One a wanted hidden state.
    Hidden,
}

/// Columns of a buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Which buffer.
    pub buf: BufId,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub width: usize,
}

impl Span {
    /// All columns of its rows: a kernel that takes several rows as one slice reads what lies between, too.
    fn whole_rows(&self) -> Self {
        Self { start: 0, width: isize::MAX as usize, ..*self }
    }

    /// Same buffer and at least one common column.
    pub(crate) fn overlaps(&self, other: &Self) -> bool {
        self.buf == other.buf && self.start < other.start + other.width && other.start < self.start + self.width
    }
}

/// The left side of a matmul.
#[derive(Debug, Clone, Copy)]
pub enum MatMulX {
    /// Quantised rows: integer arithmetic.
    Act(ActId),
    /// f32 rows.
    Float(Span),
}

/// One matrix of a matmul group.
#[derive(Debug, Clone, Copy)]
pub struct MatMulPart {
    /// `[out.width, k]`.
    pub weight: WeightId,
    /// Receives `x · weightᵀ + bias`.
    pub out: Span,
    /// `[out.width]`.
    pub bias: Option<VecId>,
}

/// What a worker does with the columns that it has just computed.
#[derive(Debug, Clone, Copy)]
pub enum MatMulThen {
    /// Nothing.
    Done,
    /// `dst += out` of the only part.
    AddTo(Span),
    /// `out₀ = act(out₀) ⊙ out₁` of the two parts, equally wide.
    Glu(Activation),
}

/// One instruction. Widths and dimensions are checked by the builder.
#[derive(Debug, Clone)]
pub enum Instr {
    /// `out = scale · table[token]`.
    Embed {
        /// `[vocab, width]`.
        table: WeightId,
        /// Factor.
        scale: f32,
        /// Rows of tokens.
        out: Span,
    },
    /// Norm of each of `groups` equal parts of a row.
    Norm {
        /// Subtract the mean.
        centre: bool,
        /// Under the root.
        eps: f32,
        /// Parts of a row.
        groups: usize,
        /// Input.
        x: Span,
        /// Output: `x` itself or disjoint from it.
        out: Span,
        /// `[width / groups]`.
        weight: Option<VecId>,
        /// `[width / groups]`.
        bias: Option<VecId>,
    },
    /// Quantises rows to int8 in blocks of 32.
    Quantize {
        /// Input.
        x: Span,
        /// Output of the same width.
        act: ActId,
    },
    /// One or more matmuls on the same rows, as one piece of work.
    MatMul {
        /// Left side.
        x: MatMulX,
        /// Rows.
        rows: Rows,
        /// Matrices.
        parts: Vec<MatMulPart>,
        /// Epilogue.
        then: MatMulThen,
    },
    /// Rotary embedding in place.
    Rope {
        /// `[num_heads · head_dim]`.
        x: Span,
        /// Elements of a head.
        head_dim: usize,
        /// Pairing.
        pairs: RopePairs,
        /// Index of the step's cos/sin table.
        table: usize,
    },
    /// Writes keys and values of the step's tokens to the cache.
    StoreKv {
        /// `[num_kv_heads · k_dim]`.
        k: Span,
        /// `[num_kv_heads · v_dim]`.
        v: Span,
        /// Where to.
        cache: CacheId,
    },
    /// Attention over the cache.
    Attend {
        /// `[num_heads · k_dim]`.
        q: Span,
        /// `[num_heads · v_dim]`.
        out: Span,
        /// Keys and values.
        cache: CacheId,
        /// Query heads.
        num_heads: usize,
        /// Factor on the scores.
        scale: f32,
        /// Bound on the scores.
        softcap: Option<f32>,
        /// Positions seen, the own one included.
        window: Option<usize>,
        /// Whether later tokens are hidden.
        causal: bool,
        /// `[num_heads]`: a score without a value that takes part in the softmax.
        sinks: Option<VecId>,
    },
    /// `out = act(gate) ⊙ up`.
    Glu {
        /// Activation.
        act: Activation,
        /// Its input.
        gate: Span,
        /// Factor.
        up: Span,
        /// Output: one of the inputs or disjoint from both.
        out: Span,
    },
    /// `out = act(x)`.
    Activate {
        /// Function.
        act: Activation,
        /// Input.
        x: Span,
        /// Output: `x` or disjoint.
        out: Span,
    },
    /// `out = a + b`.
    Add {
        /// Term.
        a: Span,
        /// Term.
        b: Span,
        /// Output: one of the inputs or disjoint from both.
        out: Span,
    },
    /// `out = factor · x`.
    Scale {
        /// Factor.
        factor: f32,
        /// Input.
        x: Span,
        /// Output: `x` or disjoint.
        out: Span,
    },
    /// `out = cap · tanh(x / cap)`.
    Softcap {
        /// Bound.
        cap: f32,
        /// Input.
        x: Span,
        /// Output: `x` or disjoint.
        out: Span,
    },
    /// Copies the rows whose output or hidden state is wanted.
    Gather {
        /// Rows of tokens.
        x: Span,
        /// Rows of outputs or of hidden states.
        out: Span,
    },
}

/// What an access touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resource {
    Columns(Span),
    Act(ActId),
    Cache(CacheId),
    /// The memory of attention over parts of a context.
    Parts,
    /// The memory of packed f32 rows.
    PackedFloats,
}

impl Resource {
    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Columns(a), Self::Columns(b)) => a.overlaps(b),
            (a, b) => a == b,
        }
    }
}

/// How an instruction divides what it touches among the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Division {
    /// Worker `w` touches only its share of these rows.
    ByRow(Rows),
    /// In any other way.
    Otherwise,
}

/// One read or write of an instruction.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Access {
    resource: Resource,
    writes: bool,
    division: Division,
}

impl Access {
    /// Packing rows of `x` for a matmul: row by row, as they were written.
    pub(crate) fn of_packing(x: &Span, rows: Rows) -> Vec<Self> {
        let division = Division::ByRow(rows);
        vec![Self::of_rows(x, rows), Self { resource: Resource::PackedFloats, writes: true, division }]
    }

    /// Reading rows of `x` as one slice, with the columns between them: row by row, as they were written.
    pub(crate) fn of_rows(x: &Span, rows: Rows) -> Self {
        let division = Division::ByRow(rows);
        Self { resource: Resource::Columns(x.whole_rows()), writes: false, division }
    }

    /// A matmul's reading of packed rows.
    pub(crate) fn of_packed() -> Self {
        Self { resource: Resource::PackedFloats, writes: false, division: Division::Otherwise }
    }

    /// A matmul's writing of its result, quantised, by whoever computed the columns.
    pub(crate) fn of_quantizing(act: ActId) -> Self {
        Self { resource: Resource::Act(act), writes: true, division: Division::Otherwise }
    }

    /// Whether a barrier must stand between this access and a later one.
    pub(crate) fn conflicts(&self, later: &Self) -> bool {
        let same_owner = self.division == later.division && self.division != Division::Otherwise;
        (self.writes || later.writes) && !same_owner && self.resource.overlaps(&later.resource)
    }
}

/// A number in an instruction, which another program may have another one for.
pub(crate) enum Number<'a> {
    Buffer(&'a mut BufId),
    Act(&'a mut ActId),
    Cache(&'a mut CacheId),
    Weight(&'a mut WeightId),
    Vector(&'a mut VecId),
}

impl Instr {
    /// Shows all numbers of an instruction.
    pub(crate) fn for_each_number(&mut self, mut visit: impl FnMut(Number<'_>)) {
        let span = |span: &mut Span, visit: &mut dyn FnMut(Number<'_>)| visit(Number::Buffer(&mut span.buf));
        let visit = &mut visit;
        match self {
            Self::Embed { table, out, .. } => {
                visit(Number::Weight(table));
                span(out, visit);
            }
            Self::Norm { x, out, weight, bias, .. } => {
                span(x, visit);
                span(out, visit);
                weight.iter_mut().chain(bias).for_each(|vector| visit(Number::Vector(vector)));
            }
            Self::Quantize { x, act } => {
                span(x, visit);
                visit(Number::Act(act));
            }
            Self::MatMul { x, parts, then, .. } => {
                match x {
                    MatMulX::Act(act) => visit(Number::Act(act)),
                    MatMulX::Float(x) => span(x, visit),
                }
                for part in parts {
                    visit(Number::Weight(&mut part.weight));
                    span(&mut part.out, visit);
                    part.bias.iter_mut().for_each(|bias| visit(Number::Vector(bias)));
                }
                if let MatMulThen::AddTo(dst) = then {
                    span(dst, visit);
                }
            }
            Self::Rope { x, .. } => span(x, visit),
            Self::StoreKv { k, v, cache } => {
                span(k, visit);
                span(v, visit);
                visit(Number::Cache(cache));
            }
            Self::Attend { q, out, cache, sinks, .. } => {
                span(q, visit);
                span(out, visit);
                visit(Number::Cache(cache));
                sinks.iter_mut().for_each(|sinks| visit(Number::Vector(sinks)));
            }
            Self::Glu { gate: a, up: b, out, .. } | Self::Add { a, b, out } => {
                span(a, visit);
                span(b, visit);
                span(out, visit);
            }
            Self::Activate { x, out, .. }
            | Self::Scale { x, out, .. }
            | Self::Softcap { x, out, .. }
            | Self::Gather { x, out } => {
                span(x, visit);
                span(out, visit);
            }
        }
    }

    /// Columns that it reads as they were before it.
    pub(crate) fn reads(&self) -> Vec<Span> {
        match self {
            Self::Embed { .. } => vec![],
            Self::MatMul { x, then, .. } => {
                let x = if let MatMulX::Float(x) = x { Some(*x) } else { None };
                x.into_iter().chain(if let MatMulThen::AddTo(dst) = then { Some(*dst) } else { None }).collect()
            }
            Self::StoreKv { k, v, .. } => vec![*k, *v],
            Self::Attend { q, .. } => vec![*q],
            Self::Glu { gate: a, up: b, .. } | Self::Add { a, b, .. } => vec![*a, *b],
            Self::Norm { x, .. }
            | Self::Quantize { x, .. }
            | Self::Rope { x, .. }
            | Self::Activate { x, .. }
            | Self::Scale { x, .. }
            | Self::Softcap { x, .. }
            | Self::Gather { x, .. } => vec![*x],
        }
    }

    /// Columns that it writes, all rows of them.
    pub(crate) fn writes(&self) -> Vec<Span> {
        // Whose rows they are makes no difference.
        let accesses = self.accesses(|_| Rows::Tokens).into_iter();
        let written = |access: Access| match access.resource {
            Resource::Columns(span) if access.writes => Some(span),
            _ => None,
        };
        accesses.filter_map(written).collect()
    }

    /// Kind, for messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Embed { .. } => "embed",
            Self::Norm { .. } => "norm",
            Self::Quantize { .. } => "quantize",
            Self::MatMul { .. } => "matmul",
            Self::Rope { .. } => "rope",
            Self::StoreKv { .. } => "store_kv",
            Self::Attend { .. } => "attend",
            Self::Glu { .. } => "glu",
            Self::Activate { .. } => "activate",
            Self::Add { .. } => "add",
            Self::Scale { .. } => "scale",
            Self::Softcap { .. } => "softcap",
            Self::Gather { .. } => "gather",
        }
    }

    /// Everything that it reads and writes. `rows_of` tells a buffer's rows.
    pub(crate) fn accesses(&self, rows_of: impl Fn(BufId) -> Rows) -> Vec<Access> {
        let by_row = |span: &Span| Division::ByRow(rows_of(span.buf));
        let access = |resource, writes, division| Access { resource, writes, division };
        let read = |span: &Span| access(Resource::Columns(*span), false, by_row(span));
        let write = |span: &Span| access(Resource::Columns(*span), true, by_row(span));
        let read_across = |span: &Span| access(Resource::Columns(*span), false, Division::Otherwise);
        let write_across = |span: &Span| access(Resource::Columns(*span), true, Division::Otherwise);
        match self {
            Self::Embed { out, .. } => vec![write(out)],
            Self::Norm { x, out, .. }
            | Self::Activate { x, out, .. }
            | Self::Scale { x, out, .. }
            | Self::Softcap { x, out, .. } => vec![read(x), write(out)],
            Self::Quantize { x, act } => vec![read(x), access(Resource::Act(*act), true, by_row(x))],
            Self::MatMul { x, parts, then, .. } => {
                let mut all = vec![match x {
                    MatMulX::Act(act) => access(Resource::Act(*act), false, Division::Otherwise),
                    MatMulX::Float(span) => read_across(&span.whole_rows()),
                }];
                all.extend(parts.iter().map(|part| write_across(&part.out)));
                if let MatMulThen::AddTo(dst) = then {
                    all.push(write_across(dst));
                }
                all
            }
            Self::Rope { x, .. } => vec![write(x)],
            Self::StoreKv { k, v, cache } => {
                vec![read(k), read(v), access(Resource::Cache(*cache), true, Division::Otherwise)]
            }
            Self::Attend { q, out, cache, .. } => {
                let cache = access(Resource::Cache(*cache), false, Division::Otherwise);
                vec![read_across(q), cache, write_across(out), access(Resource::Parts, true, Division::Otherwise)]
            }
            Self::Glu { gate: a, up: b, out, .. } | Self::Add { a, b, out } => vec![read(a), read(b), write(out)],
            Self::Gather { x, out } => vec![read_across(x), write(out)],
        }
    }
}
