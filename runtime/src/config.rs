//! Every architectural variation of a decoder as data: what `crate::arch` reads out of a file's metadata and what the
//! plan builder turns into operations. A family is a point in this space, not a type.

use crate::error::{Error, Result};
use crate::plan::{Act, Mask, NormKind, RopeSpec};

/// The norms of a model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NormConfig {
    /// Statistic.
    pub kind: NormKind,
    /// Under the root.
    pub eps: f32,
    /// Added to every norm weight: 1 where the checkpoint stores `w − 1`.
    pub offset: f32,
}

/// Where a layer's norms sit around its attention and its MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormPlacement {
    /// On the input of each half: `x + f(norm(x))`.
    Pre,
    /// On the output of each half: `x + norm(f(x))`.
    Post,
    /// On both: `x + norm(f(norm(x)))`.
    Sandwich,
}

/// Norms of queries and keys, before the rotary embedding unless they say otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Each head by itself, one weight of `head_dim` elements.
    Head,
    /// All heads as one row.
    Row,
    /// Each head by itself, after the rotary embedding.
    HeadAfterRope,
}

/// Whether a projection has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// No.
    None,
    /// Yes, and the file must have it.
    Required,
    /// The metadata doesn't say (GGUF): yes if the file has the tensor.
    IfPresent,
}

/// Which matrix turns hidden states into logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputMatrix {
    /// The embedding table.
    Tied,
    /// One of its own.
    Own,
    /// The metadata doesn't say (GGUF): its own if the file has it, else the embedding table.
    OwnIfPresent,
}

/// A rotary table as the metadata describes it.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base, pairing, scaling.
    pub spec: RopeSpec,
    /// Name of a tensor of divisors, one a frequency, that takes the place of the scaling if the file has it.
    pub factors: Option<&'static str>,
}

/// What differs from layer to layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// A token sees itself and `window - 1` tokens before it; `None`: all.
    pub window: Option<usize>,
    /// Index into [`ModelConfig::ropes`]; `None`: no position embedding.
    pub rope: Option<usize>,
}

/// Sampling settings that the model's author recommends. `None` where the file says nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct SamplingDefaults {
    /// Divides the logits.
    pub temperature: Option<f32>,
    /// Most candidates.
    pub top_k: Option<usize>,
    /// Smallest set with this probability.
    pub top_p: Option<f32>,
    /// Least probability relative to the best.
    pub min_p: Option<f32>,
    /// Divides (positive) or multiplies (negative) the logits of seen tokens.
    pub repeat_penalty: Option<f32>,
}

/// A decoder in numbers.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// As the registry names it.
    pub architecture: String,
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Heads of keys and values; divides `num_heads`.
    pub num_kv_heads: usize,
    /// Elements of a query or key head.
    pub head_dim: usize,
    /// Elements of a value head.
    pub v_head_dim: usize,
    /// Positions the model was made for.
    pub max_context: usize,
    /// One entry a layer.
    pub layers: Vec<LayerConfig>,
    /// Rotary tables that the layers point to.
    pub ropes: Vec<RopeConfig>,
    /// Norms.
    pub norm: NormConfig,
    /// Where they are.
    pub norm_placement: NormPlacement,
    /// Query and key norms.
    pub qk_norm: QkNorm,
    /// Biases of the q, k and v projections.
    pub qkv_bias: Bias,
    /// Bias of the attention's output projection.
    pub attention_output_bias: Bias,
    /// Biases of the MLP.
    pub mlp_bias: Bias,
    /// Activation of the MLP's gate.
    pub act: Act,
    /// Output matrix.
    pub output: OutputMatrix,
    /// Factor on embedding rows.
    pub embedding_scale: f32,
    /// Factor on attention scores.
    pub attention_scale: f32,
    /// Factor on what each half of a layer adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// Soft cap of attention scores.
    pub attention_softcap: Option<f32>,
    /// Soft cap of logits.
    pub logit_softcap: Option<f32>,
    /// Who sees whom.
    pub mask: Mask,
    /// First token of a text.
    pub bos: Option<u32>,
    /// Tokens that end a generation, as far as the model's own metadata says; the tokenizer may know more.
    pub eos: Vec<u32>,
    /// Recommended sampling.
    pub defaults: SamplingDefaults,
}

/// Sizes beyond this are damage, not models: the largest vocabulary, width and head in the field are far below, and
/// products of two stay inside `usize`.
const MAX_SIZE: usize = 1 << 28;

impl ModelConfig {
    /// Number of layers.
    pub fn num_layers(&self) -> usize {
        self.layers.len()
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key heads together.
    pub fn k_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }

    /// Width of all value heads together.
    pub fn v_width(&self) -> usize {
        self.num_kv_heads * self.v_head_dim
    }

    /// Refuses numbers that can't be a model, whatever file they come from.
    ///
    /// # Errors
    /// [`Error::BadMetadata`] that names the quantity.
    pub fn validate(&self) -> Result<()> {
        let bad = |what: &str, expected: &str, got: String| {
            Err(Error::BadMetadata { key: what.into(), expected: expected.into(), got })
        };
        for (what, value) in [
            ("vocabulary size", self.vocab_size),
            ("hidden size", self.hidden_size),
            ("MLP width", self.intermediate_size),
            ("number of layers", self.layers.len()),
            ("number of heads", self.num_heads),
            ("number of key-value heads", self.num_kv_heads),
            ("head dimension", self.head_dim),
            ("value head dimension", self.v_head_dim),
            ("context length", self.max_context),
        ] {
            if value == 0 || value > MAX_SIZE {
                return bad(what, &format!("1 to {MAX_SIZE}"), value.to_string());
            }
        }
        if !self.num_heads.is_multiple_of(self.num_kv_heads) {
            return bad(
                "number of heads",
                &format!("a multiple of the {} key-value heads", self.num_kv_heads),
                self.num_heads.to_string(),
            );
        }
        for (what, heads, dim) in
            [("query width", self.num_heads, self.head_dim), ("value width", self.num_heads, self.v_head_dim)]
        {
            if heads * dim > MAX_SIZE {
                return bad(what, &format!("at most {MAX_SIZE}"), format!("{heads} heads of {dim}"));
            }
        }
        if !(self.norm.eps >= 0.0 && self.norm.eps.is_finite()) {
            return bad("norm epsilon", "a small positive number", self.norm.eps.to_string());
        }
        for (what, value) in [
            ("embedding scale", self.embedding_scale),
            ("attention scale", self.attention_scale),
            ("residual scale", self.residual_scale),
            ("logit scale", self.logit_scale),
        ] {
            if !value.is_finite() {
                return bad(what, "a finite number", value.to_string());
            }
        }
        for (what, value) in [("attention softcap", self.attention_softcap), ("logit softcap", self.logit_softcap)] {
            if let Some(value) = value
                && !(value > 0.0 && value.is_finite())
            {
                return bad(what, "a positive number", value.to_string());
            }
        }
        for rope in &self.ropes {
            rope.spec.validate(self.head_dim)?;
        }
        for layer in &self.layers {
            if layer.window == Some(0) {
                return bad("sliding window", "at least 1", "0".into());
            }
        }
        Ok(())
    }
}
