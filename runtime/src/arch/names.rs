//! Tensor names: what a decoder's tensors are called in the two formats. Stems without `.weight` and `.bias`.

/// Names of one family in one format. A layer's stem is `<prefix><layer><index>.<name>`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TensorNames {
    /// Candidates for what precedes every name but the output matrix's; the first whose embedding table is there counts.
    pub(crate) prefixes: &'static [&'static str],
    pub(crate) embed: &'static str,
    pub(crate) final_norm: &'static str,
    /// Candidates, without prefix.
    pub(crate) output: &'static [&'static str],
    pub(crate) layer: &'static str,
    pub(crate) attn_norm: &'static str,
    pub(crate) q: &'static str,
    pub(crate) k: &'static str,
    pub(crate) v: &'static str,
    pub(crate) q_norm: &'static str,
    pub(crate) k_norm: &'static str,
    pub(crate) attn_output: &'static str,
    pub(crate) post_attn_norm: &'static str,
    pub(crate) ffn_norm: &'static str,
    pub(crate) gate: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    pub(crate) post_ffn_norm: &'static str,
    /// Beginnings or ends of names that carry no numbers of the decoder (other towers, recomputable tables).
    pub(crate) ignored: &'static [&'static str],
}

/// Hugging Face's llama and whatever follows it.
pub(crate) const HF: TensorNames = TensorNames {
    prefixes: &["model.", "", "language_model.model.", "model.language_model."],
    embed: "embed_tokens",
    final_norm: "norm",
    output: &["lm_head", "language_model.lm_head"],
    layer: "layers.",
    attn_norm: "input_layernorm",
    q: "self_attn.q_proj",
    k: "self_attn.k_proj",
    v: "self_attn.v_proj",
    q_norm: "self_attn.q_norm",
    k_norm: "self_attn.k_norm",
    attn_output: "self_attn.o_proj",
    post_attn_norm: "post_attention_layernorm",
    ffn_norm: "post_attention_layernorm",
    gate: "mlp.gate_proj",
    up: "mlp.up_proj",
    down: "mlp.down_proj",
    post_ffn_norm: "post_feedforward_layernorm",
    ignored: &[".rotary_emb.inv_freq"],
};

/// Hugging Face's names where norms surround both halves of a layer: `post_attention_layernorm` means what it says.
pub(crate) const HF_SANDWICH: TensorNames = TensorNames {
    ffn_norm: "pre_feedforward_layernorm",
    ignored: &[
        ".rotary_emb.inv_freq",
        "vision_tower.",
        "multi_modal_projector.",
        "model.vision_tower.",
        "model.multi_modal_projector.",
    ],
    ..HF
};

/// Hunyuan's names of the q and k norms.
pub(crate) const HF_HUNYUAN: TensorNames =
    TensorNames { q_norm: "self_attn.query_layernorm", k_norm: "self_attn.key_layernorm", ..HF };

/// GGUF.
pub(crate) const GGUF: TensorNames = TensorNames {
    prefixes: &[""],
    embed: "token_embd",
    final_norm: "output_norm",
    output: &["output"],
    layer: "blk.",
    attn_norm: "attn_norm",
    q: "attn_q",
    k: "attn_k",
    v: "attn_v",
    q_norm: "attn_q_norm",
    k_norm: "attn_k_norm",
    attn_output: "attn_output",
    post_attn_norm: "post_attention_norm",
    ffn_norm: "ffn_norm",
    gate: "ffn_gate",
    up: "ffn_up",
    down: "ffn_down",
    post_ffn_norm: "post_ffw_norm",
    ignored: &[".attn_rot_embd.weight", "v.", "mm."],
};

/// Seed-OSS keeps the name of Hugging Face's second norm in GGUF.
pub(crate) const GGUF_SEED_OSS: TensorNames = TensorNames { ffn_norm: "post_attention_norm", ..GGUF };

impl TensorNames {
    /// Whether a tensor is one of those that carry nothing for the decoder.
    pub(crate) fn ignores(&self, name: &str) -> bool {
        self.ignored
            .iter()
            .any(|part| if part.starts_with('.') { name.ends_with(part) } else { name.starts_with(part) })
    }
}
