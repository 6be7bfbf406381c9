//! The plan builder of llama-like decoders. Every difference between the families comes in as data: the configuration says
//! which ops, the names say which tensors; each tensor's shape is checked against the configuration as it is taken.
//!
//! All layers share one set of buffers. The buffers after [`Op::Gather`] have one row a wanted output, so that the final
//! norm and the output matrix run only where somebody reads their result.

use std::collections::HashMap;

use crate::arch::names::TensorNames;
use crate::config::{Bias, ModelConfig, NormPlacement, OutputMatrix, QkNorm};
use crate::error::{Error, Result};
use crate::loader::ModelFile;
use crate::plan::{
    Buffer, BufferId, Columns, KvId, KvSpec, Op, OutputKind, Plan, RopeId, RopeScaling, Rows, Weight, WeightId,
};

/// The plan of `config` over the tensors of `file`.
pub(crate) fn build(file: &ModelFile, config: &ModelConfig, names: &TensorNames, kind: OutputKind) -> Result<Plan> {
    let prefix = names
        .prefixes
        .iter()
        .find(|prefix| file.tensor(&format!("{prefix}{}.weight", names.embed)).is_some())
        .ok_or_else(|| Error::MissingTensor { name: format!("{}{}.weight", names.prefixes[0], names.embed) })?;
    let plan = Plan {
        architecture: config.architecture.clone(),
        buffers: Vec::new(),
        weights: Vec::new(),
        ropes: Vec::new(),
        kv: Vec::new(),
        ops: Vec::new(),
        output: BufferId(0),
        output_kind: kind,
        hidden: None,
        vocab_size: config.vocab_size,
        max_context: config.max_context,
    };
    let mut builder = Builder { file, config, names, prefix, plan, ids: HashMap::new() };
    builder.ropes()?;
    builder.decoder(kind)?;
    Ok(builder.plan)
}

/// Buffers that all layers share, `[tokens, width]`.
struct LayerBuffers {
    hidden: Columns,
    normed: Columns,
    q: Columns,
    k: Columns,
    v: Columns,
    attn: Columns,
    proj: Columns,
    gate: Columns,
    up: Columns,
}

struct Builder<'a> {
    file: &'a ModelFile,
    config: &'a ModelConfig,
    names: &'a TensorNames,
    prefix: &'a str,
    plan: Plan,
    /// Tensors taken so far: tied and shared ones get one id.
    ids: HashMap<String, WeightId>,
}

impl Builder<'_> {
    fn buffer(&mut self, name: &str, width: usize, rows: Rows) -> Columns {
        let id = BufferId(self.plan.buffers.len());
        self.plan.buffers.push(Buffer { name: name.into(), width, rows });
        self.plan.columns(id)
    }

    /// Takes tensor `name` with this shape.
    fn weight(&mut self, name: String, shape: &[usize]) -> Result<WeightId> {
        let view = self.file.require(&name, shape)?;
        if let Some(&id) = self.ids.get(&name) {
            return Ok(id);
        }
        let id = WeightId(self.plan.weights.len());
        self.plan.weights.push(Weight { name: name.clone(), view: view.clone() });
        self.ids.insert(name, id);
        Ok(id)
    }

    fn bias(&mut self, stem: &str, width: usize, bias: Bias) -> Result<Option<WeightId>> {
        let name = format!("{stem}.bias");
        match bias {
            Bias::None => Ok(None),
            Bias::IfPresent if self.file.tensor(&name).is_none() => Ok(None),
            Bias::IfPresent | Bias::Required => self.weight(name, &[width]).map(Some),
        }
    }

    fn linear(&mut self, stem: &str, x: Columns, out: Columns, bias: Bias) -> Result<()> {
        let weight = self.weight(format!("{stem}.weight"), &[out.width, x.width])?;
        let bias = self.bias(stem, out.width, bias)?;
        self.plan.ops.push(Op::Linear { x, weight, bias, out });
        Ok(())
    }

    /// A norm over `groups` equal parts of the columns.
    fn norm(&mut self, stem: &str, x: Columns, out: Columns, groups: usize) -> Result<()> {
        let weight = self.weight(format!("{stem}.weight"), &[x.width / groups])?;
        let norm = self.config.norm;
        self.plan.ops.push(Op::Norm {
            kind: norm.kind,
            x,
            out,
            weight: Some(weight),
            bias: None,
            offset: norm.offset,
            eps: norm.eps,
            groups,
        });
        Ok(())
    }

    /// `hidden += residual_scale · proj`.
    fn add_residual(&mut self, hidden: Columns, proj: Columns) {
        if self.config.residual_scale != 1.0 {
            self.plan.ops.push(Op::Scale { x: proj, factor: self.config.residual_scale, out: proj });
        }
        self.plan.ops.push(Op::Add { a: hidden, b: proj, out: hidden });
    }

    fn ropes(&mut self) -> Result<()> {
        for rope in &self.config.ropes {
            let mut spec = rope.spec.clone();
            if let Some(name) = rope.factors
                && self.file.tensor(name).is_some()
            {
                if spec.scaling != RopeScaling::None {
                    return Err(Error::Unsupported(format!(
                        "tensor `{name}` beside the rope scaling {:?}: it isn't known which one counts",
                        spec.scaling
                    )));
                }
                let weight = self.weight(name.into(), &[spec.rotary_dim / 2])?;
                spec.scaling = RopeScaling::Factors { weight };
                spec.inv_freq(1, &self.plan.weights)?;
            }
            self.plan.ropes.push(spec);
        }
        Ok(())
    }

    fn decoder(&mut self, kind: OutputKind) -> Result<()> {
        let config = self.config;
        let hidden_size = config.hidden_size;
        let tokens = Rows::Tokens;
        let buffers = LayerBuffers {
            hidden: self.buffer("hidden", hidden_size, tokens),
            normed: self.buffer("normed", hidden_size, tokens),
            q: self.buffer("q", config.q_width(), tokens),
            k: self.buffer("k", config.k_width(), tokens),
            v: self.buffer("v", config.v_width(), tokens),
            attn: self.buffer("attn", config.num_heads * config.v_head_dim, tokens),
            proj: self.buffer("proj", hidden_size, tokens),
            gate: self.buffer("gate", config.intermediate_size, tokens),
            up: self.buffer("up", config.intermediate_size, tokens),
        };
        let table = format!("{}{}.weight", self.prefix, self.names.embed);
        let embed = self.weight(table, &[config.vocab_size, hidden_size])?;
        let hidden = buffers.hidden;
        self.plan.ops.push(Op::Embed { weight: embed, scale: config.embedding_scale, out: hidden.buffer });
        for layer in 0..config.num_layers() {
            self.attention(layer, &buffers)?;
            self.mlp(layer, &buffers)?;
        }
        let last = self.buffer("last_hidden", hidden_size, Rows::Outputs);
        self.plan.ops.push(Op::Gather { x: hidden.buffer, out: last.buffer });
        self.norm(&format!("{}{}", self.prefix, self.names.final_norm), last, last, 1)?;
        self.plan.output = last.buffer;
        if kind == OutputKind::Logits {
            self.logits(embed, last)?;
            // The same for rows whose embedding is wanted, which need no logits. They are last, where no barrier is needed.
            let pooled = self.buffer("pooled_hidden", hidden_size, Rows::Hidden);
            self.plan.ops.push(Op::Gather { x: hidden.buffer, out: pooled.buffer });
            self.norm(&format!("{}{}", self.prefix, self.names.final_norm), pooled, pooled, 1)?;
            self.plan.hidden = Some(pooled.buffer);
        }
        Ok(())
    }

    fn logits(&mut self, embed: WeightId, last: Columns) -> Result<()> {
        let config = self.config;
        let shape = [config.vocab_size, config.hidden_size];
        let own = self.names.output.iter().map(|stem| format!("{stem}.weight"));
        let own = own.into_iter().find(|name| self.file.tensor(name).is_some());
        let weight = match (config.output, own) {
            (OutputMatrix::Tied, _) | (OutputMatrix::OwnIfPresent, None) => embed,
            (OutputMatrix::Own | OutputMatrix::OwnIfPresent, Some(name)) => self.weight(name, &shape)?,
            (OutputMatrix::Own, None) => {
                return Err(Error::MissingTensor { name: format!("{}.weight", self.names.output[0]) });
            }
        };
        let logits = self.buffer("logits", config.vocab_size, Rows::Outputs);
        self.plan.ops.push(Op::Linear { x: last, weight, bias: None, out: logits });
        if config.logit_scale != 1.0 {
            self.plan.ops.push(Op::Scale { x: logits, factor: config.logit_scale, out: logits });
        }
        if let Some(cap) = config.logit_softcap {
            self.plan.ops.push(Op::Softcap { x: logits, cap, out: logits });
        }
        self.plan.output = logits.buffer;
        Ok(())
    }

    fn attention(&mut self, layer: usize, buffers: &LayerBuffers) -> Result<()> {
        let (config, names) = (self.config, self.names);
        let stem = |name: &str| format!("{}{}{layer}.{name}", self.prefix, names.layer);
        let [q, k, v, attn_output] = [names.q, names.k, names.v, names.attn_output].map(stem);
        let [attn_norm, post_norm, q_norm, k_norm] =
            [names.attn_norm, names.post_attn_norm, names.q_norm, names.k_norm].map(stem);

        let input = if config.norm_placement == NormPlacement::Post { buffers.hidden } else { buffers.normed };
        if config.norm_placement != NormPlacement::Post {
            self.norm(&attn_norm, buffers.hidden, buffers.normed, 1)?;
        }
        self.linear(&q, input, buffers.q, config.qkv_bias)?;
        self.linear(&k, input, buffers.k, config.qkv_bias)?;
        self.linear(&v, input, buffers.v, config.qkv_bias)?;
        let heads = (config.num_heads, config.num_kv_heads);
        let (before_rope, after_rope) = match config.qk_norm {
            QkNorm::None => (None, None),
            QkNorm::Head => (Some(heads), None),
            QkNorm::Row => (Some((1, 1)), None),
            QkNorm::HeadAfterRope => (None, Some(heads)),
        };
        if let Some((q_groups, k_groups)) = before_rope {
            self.norm(&q_norm, buffers.q, buffers.q, q_groups)?;
            self.norm(&k_norm, buffers.k, buffers.k, k_groups)?;
        }
        if let Some(rope) = config.layers[layer].rope {
            for (x, num_heads) in [(buffers.q, config.num_heads), (buffers.k, config.num_kv_heads)] {
                self.plan.ops.push(Op::Rope { x, num_heads, head_dim: config.head_dim, rope: RopeId(rope) });
            }
        }
        if let Some((q_groups, k_groups)) = after_rope {
            self.norm(&q_norm, buffers.q, buffers.q, q_groups)?;
            self.norm(&k_norm, buffers.k, buffers.k, k_groups)?;
        }
        let kv = KvId(self.plan.kv.len());
        self.plan.kv.push(KvSpec {
            num_kv_heads: config.num_kv_heads,
            k_dim: config.head_dim,
            v_dim: config.v_head_dim,
            window: config.layers[layer].window,
        });
        self.plan.ops.push(Op::Attention {
            q: buffers.q,
            k: buffers.k,
            v: buffers.v,
            out: buffers.attn,
            num_heads: config.num_heads,
            scale: config.attention_scale,
            softcap: config.attention_softcap,
            mask: config.mask,
            sinks: None,
            kv,
        });
        self.linear(&attn_output, buffers.attn, buffers.proj, config.attention_output_bias)?;
        if config.norm_placement != NormPlacement::Pre {
            self.norm(&post_norm, buffers.proj, buffers.proj, 1)?;
        }
        self.add_residual(buffers.hidden, buffers.proj);
        Ok(())
    }

    fn mlp(&mut self, layer: usize, buffers: &LayerBuffers) -> Result<()> {
        let (config, names) = (self.config, self.names);
        let stem = |name: &str| format!("{}{}{layer}.{name}", self.prefix, names.layer);
        let [gate, up, down] = [names.gate, names.up, names.down].map(stem);
        let [ffn_norm, post_norm] = [names.ffn_norm, names.post_ffn_norm].map(stem);

        let input = if config.norm_placement == NormPlacement::Post { buffers.hidden } else { buffers.normed };
        if config.norm_placement != NormPlacement::Post {
            self.norm(&ffn_norm, buffers.hidden, buffers.normed, 1)?;
        }
        self.linear(&gate, input, buffers.gate, config.mlp_bias)?;
        self.linear(&up, input, buffers.up, config.mlp_bias)?;
        self.plan.ops.push(Op::Glu { act: config.act, gate: buffers.gate, up: buffers.up, out: buffers.gate });
        self.linear(&down, buffers.gate, buffers.proj, config.mlp_bias)?;
        if config.norm_placement != NormPlacement::Pre {
            self.norm(&post_norm, buffers.proj, buffers.proj, 1)?;
        }
        self.add_residual(buffers.hidden, buffers.proj);
        Ok(())
    }
}
