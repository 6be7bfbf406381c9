//! The vocabulary of a plan: buffers, weights and operations.

use crate::loader::TensorView;
use crate::plan::rope::RopeSpec;

/// Index into [`Plan::buffers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BufferId(pub usize);

/// Index into [`Plan::weights`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WeightId(pub usize);

/// Index into [`Plan::kv`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KvId(pub usize);

/// Index into [`Plan::ropes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RopeId(pub usize);

/// How many rows a buffer has in a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// One row a token of the step.
    Tokens,
    /// One row a token whose output was asked for ([`Op::Gather`] makes these).
    Outputs,
    /// One row a token whose hidden state was asked for ([`Op::Gather`] makes these, too).
    Hidden,
}

/// A named matrix of f32, `[rows, width]`, row-major.
#[derive(Debug, Clone)]
pub struct Buffer {
    /// Name in the field's words: `hidden`, `q`, `gate`…
    pub name: String,
    /// Columns.
    pub width: usize,
    /// What a row stands for.
    pub rows: Rows,
}

/// Columns `start..start + width` of a buffer: how fused projections are read and written without a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Columns {
    /// The buffer.
    pub buffer: BufferId,
    /// First column.
    pub start: usize,
    /// Number of columns.
    pub width: usize,
}

/// A tensor of the file as an op sees it.
#[derive(Debug, Clone)]
pub struct Weight {
    /// Name in the file.
    pub name: String,
    /// The bytes, shape (`[rows, cols]` for a matrix, `[n]` for a vector; row-major, outermost first) and dtype.
    pub view: TensorView,
}

/// Which statistic a norm divides by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root mean square (Zhang & Sennrich 2019): `x / sqrt(mean(x²) + eps)`.
    Rms,
    /// Layer norm (Ba et al. 2016): `(x − mean) / sqrt(var + eps)`.
    Layer,
}

/// Activation functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)` with the error function.
    Gelu,
    /// GELU with the tanh approximation (Hendrycks & Gimpel 2016).
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
}

/// Which earlier positions a token attends to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mask {
    /// Itself and everything before it.
    Causal,
    /// Every token of its sequence (encoders).
    Bidirectional,
}

/// The key and value cache of one layer. Blocks of [`crate::kv::BLOCK_TOKENS`] tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KvSpec {
    /// Heads of keys and values.
    pub num_kv_heads: usize,
    /// Elements of a key head.
    pub k_dim: usize,
    /// Elements of a value head.
    pub v_dim: usize,
    /// A token sees itself and `window - 1` tokens before it; `None`: all.
    pub window: Option<usize>,
}

/// One operation. All buffers hold f32; weights have the dtype of the file.
#[derive(Debug, Clone)]
pub enum Op {
    /// `out[t] = scale · weight[token[t]]`. Weight `[vocab, width]`.
    Embed {
        /// Table.
        weight: WeightId,
        /// Factor on the row.
        scale: f32,
        /// `[tokens, width]`.
        out: BufferId,
    },
    /// Normalises each of `groups` equal parts of a row by itself: `1` for the usual norm, the number of heads for q/k norms.
    /// `out = normalised · (weight + offset) + bias`. `x` and `out` may be the same columns.
    Norm {
        /// Statistic.
        kind: NormKind,
        /// Input.
        x: Columns,
        /// Output, as wide as the input.
        out: Columns,
        /// `[width / groups]`; `None` means 1.
        weight: Option<WeightId>,
        /// `[width / groups]`.
        bias: Option<WeightId>,
        /// Added to the weight: 1 for checkpoints that store `w − 1` (gemma from safetensors).
        offset: f32,
        /// Under the root.
        eps: f32,
        /// Parts of a row.
        groups: usize,
    },
    /// `out = x · weightᵀ + bias`. Weight `[out.width, x.width]`, bias `[out.width]`.
    Linear {
        /// Input.
        x: Columns,
        /// Matrix.
        weight: WeightId,
        /// Added to each row.
        bias: Option<WeightId>,
        /// Output.
        out: Columns,
    },
    /// Rotary position embedding in place (Su et al. 2021), on the first `rotary_dim` elements of every head.
    Rope {
        /// `[tokens, num_heads · head_dim]`.
        x: Columns,
        /// Heads in the columns.
        num_heads: usize,
        /// Elements of a head.
        head_dim: usize,
        /// Frequencies, pairing and scaling.
        rope: RopeId,
    },
    /// Appends `k` and `v` of the step's tokens to cache `kv` and attends: `softmax(scale · q·kᵀ) · v`, softcapped as
    /// `cap · tanh(x / cap)` before the mask.
    Attention {
        /// `[tokens, num_heads · k_dim]`.
        q: Columns,
        /// `[tokens, num_kv_heads · k_dim]`.
        k: Columns,
        /// `[tokens, num_kv_heads · v_dim]`.
        v: Columns,
        /// `[tokens, num_heads · v_dim]`.
        out: Columns,
        /// Query heads; a multiple of the cache's `num_kv_heads`.
        num_heads: usize,
        /// Factor on the scores.
        scale: f32,
        /// Soft cap of the scores.
        softcap: Option<f32>,
        /// Who sees whom.
        mask: Mask,
        /// `[num_heads]`: one more score of each query, without a value, that takes part in the softmax.
        sinks: Option<WeightId>,
        /// Which cache.
        kv: KvId,
    },
    /// `out = act(gate) ⊙ up`.
    Glu {
        /// Activation.
        act: Act,
        /// Input of the activation.
        gate: Columns,
        /// Factor.
        up: Columns,
        /// Output; may be `gate`.
        out: Columns,
    },
    /// `out = act(x)`.
    Activation {
        /// Function.
        act: Act,
        /// Input.
        x: Columns,
        /// Output; may be `x`.
        out: Columns,
    },
    /// `out = a + b`; `out` may be `a` or `b`.
    Add {
        /// First term.
        a: Columns,
        /// Second term.
        b: Columns,
        /// Sum.
        out: Columns,
    },
    /// `out = factor · x`.
    Scale {
        /// Input.
        x: Columns,
        /// Factor.
        factor: f32,
        /// Output; may be `x`.
        out: Columns,
    },
    /// `out = cap · tanh(x / cap)`.
    Softcap {
        /// Input.
        x: Columns,
        /// Bound.
        cap: f32,
        /// Output; may be `x`.
        out: Columns,
    },
    /// Copies the rows that were asked for: `Rows::Tokens` to `Rows::Outputs` or `Rows::Hidden`, equal widths.
    Gather {
        /// All rows.
        x: BufferId,
        /// The asked ones.
        out: BufferId,
    },
}

impl Op {
    /// The weight that the op is about: its table, matrix or scale.
    pub fn weight(&self) -> Option<WeightId> {
        match self {
            Self::Embed { weight, .. } | Self::Linear { weight, .. } => Some(*weight),
            Self::Norm { weight, .. } => *weight,
            _ => None,
        }
    }

    /// The buffer that the op writes.
    pub fn out(&self) -> BufferId {
        match self {
            Self::Embed { out, .. } | Self::Gather { out, .. } => *out,
            Self::Rope { x, .. } => x.buffer,
            Self::Norm { out, .. }
            | Self::Linear { out, .. }
            | Self::Attention { out, .. }
            | Self::Glu { out, .. }
            | Self::Activation { out, .. }
            | Self::Add { out, .. }
            | Self::Scale { out, .. }
            | Self::Softcap { out, .. } => out.buffer,
        }
    }
}

/// What a plan's last buffer holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// Unnormalised log-probabilities over the vocabulary.
    Logits,
    /// Hidden states after the final norm (embedding models).
    Hidden,
}

/// A model as an ordered list of operations.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Architecture, as the registry names it.
    pub architecture: String,
    /// All buffers.
    pub buffers: Vec<Buffer>,
    /// All weights.
    pub weights: Vec<Weight>,
    /// Rotary tables; layers share them.
    pub ropes: Vec<RopeSpec>,
    /// One cache an attention layer.
    pub kv: Vec<KvSpec>,
    /// In order of execution.
    pub ops: Vec<Op>,
    /// The buffer that a step returns (`Rows::Outputs`).
    pub output: BufferId,
    /// What it holds.
    pub output_kind: OutputKind,
    /// The buffer with the hidden states after the final norm (`Rows::Hidden`), for a plan that has logits as its output.
    pub hidden: Option<BufferId>,
    /// Tokens in the vocabulary (rows of the embedding table).
    pub vocab_size: usize,
    /// Positions the model was made for.
    pub max_context: usize,
}

impl Plan {
    /// All columns of a buffer.
    pub fn columns(&self, buffer: BufferId) -> Columns {
        Columns { buffer, start: 0, width: self.buffers[buffer.0].width }
    }
}
