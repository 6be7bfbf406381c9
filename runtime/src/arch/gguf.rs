//! What every decoder reads alike out of GGUF metadata. Keys are `<architecture>.<name>`; the meanings are those that
//! llama.cpp, which defines the format, gives them, its defaults included.

use crate::config::{
    Bias, LayerConfig, ModelConfig, NormConfig, NormPlacement, OutputMatrix, QkNorm, RopeConfig, SamplingDefaults,
};
use crate::error::{Error, Result};
use crate::loader::{GgufMetadata, ModelFile};
use crate::plan::rope::yarn_mscale;
use crate::plan::{Act, Mask, NormKind, RopeScaling, RopeSpec, RopeStyle};

/// Metadata of one file, read by names without the architecture in front.
pub(crate) struct GgufKeys<'a> {
    pub(crate) file: &'a ModelFile,
    pub(crate) meta: &'a GgufMetadata,
    pub(crate) arch: &'a str,
}

/// Names (after `<architecture>.`) that every decoder needs.
pub(crate) const REQUIRED: &[&str] = &[
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
];

/// Names that every decoder reads if they are there.
pub(crate) const OPTIONAL: &[&str] = &[
    "attention.causal",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.scale",
    "attention.value_length",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scaling.yarn_ext_factor",
];

/// Names that don't change what a decoder computes (`vocab_size` is the embedding table's number of rows). An entry that
/// ends in a dot is a group.
const NEUTRAL: &[&str] =
    &["classifier.", "mm.", "pooling_type", "rope.scaling.finetuned", "tensor_data_layout", "vision.", "vocab_size"];

impl GgufKeys<'_> {
    pub(crate) fn key(&self, name: &str) -> String {
        format!("{}.{name}", self.arch)
    }

    pub(crate) fn usize(&self, name: &str) -> Result<Option<usize>> {
        self.meta.usize(&self.key(name))
    }

    pub(crate) fn require_usize(&self, name: &str) -> Result<usize> {
        self.usize(name)?.ok_or_else(|| Error::MissingMetadata { key: self.key(name) })
    }

    pub(crate) fn f32(&self, name: &str) -> Result<Option<f32>> {
        self.meta.f32(&self.key(name))
    }

    pub(crate) fn require_f32(&self, name: &str) -> Result<f32> {
        self.f32(name)?.ok_or_else(|| Error::MissingMetadata { key: self.key(name) })
    }

    pub(crate) fn bad<T>(&self, name: &str, expected: &str, got: impl ToString) -> Result<T> {
        Err(Error::BadMetadata { key: self.key(name), expected: expected.into(), got: got.to_string() })
    }

    /// A number that the format also allows as one number a layer: they must all be the same.
    pub(crate) fn uniform_usize(&self, name: &str) -> Result<Option<usize>> {
        let key = self.key(name);
        let values = match self.meta.usize(&key) {
            Ok(value) => return Ok(value),
            Err(scalar) => match self.meta.usizes(&key) {
                Ok(Some(values)) => values,
                Ok(None) | Err(_) => return Err(scalar),
            },
        };
        match values.first() {
            Some(&first) if values.iter().all(|&value| value == first) => Ok(Some(first)),
            _ => Err(Error::Unsupported(format!("`{key}` differs from layer to layer: {values:?}"))),
        }
    }

    fn require_uniform_usize(&self, name: &str) -> Result<usize> {
        self.uniform_usize(name)?.ok_or_else(|| Error::MissingMetadata { key: self.key(name) })
    }

    /// The number of layers; a layer has tensors, so a file can't claim more than it has of those.
    pub(crate) fn num_layers(&self) -> Result<usize> {
        let layers = self.require_usize("block_count")?;
        let most = self.file.tensors().len();
        if layers == 0 || layers > most {
            return self.bad("block_count", &format!("1 to {most}, the number of tensors"), layers);
        }
        Ok(layers)
    }

    /// Whether a key that nobody reads is set to what "off" looks like.
    fn is_off(&self, key: &str) -> bool {
        matches!(self.meta.bool(key), Ok(Some(false)))
            || matches!(self.meta.i64(key), Ok(Some(0)))
            || matches!(self.meta.f32(key), Ok(Some(x)) if x == 0.0)
    }

    /// Refuses keys of this architecture that neither `required` nor `optional` names: what nobody reads may change the maths.
    pub(crate) fn refuse_unread(&self, required: &[&str], optional: &[&str]) -> Result<()> {
        for key in self.meta.keys() {
            let Some(name) = key.strip_prefix(self.arch).and_then(|rest| rest.strip_prefix('.')) else { continue };
            let read = [REQUIRED, OPTIONAL, required, optional].iter().any(|names| names.contains(&name));
            let neutral = NEUTRAL.iter().any(|&n| n == name || (n.ends_with('.') && name.starts_with(n)));
            if read || neutral || self.is_off(key) {
                continue;
            }
            if name.starts_with("expert") {
                return Err(Error::Unsupported(format!("architecture `{}` with experts (`{key}` is set)", self.arch)));
            }
            return Err(Error::Unsupported(format!(
                "metadata key `{key}`, which may change the results and which this build doesn't read for `{}`",
                self.arch
            )));
        }
        for name in required {
            if !self.meta.contains(&self.key(name)) {
                return Err(Error::MissingMetadata { key: self.key(name) });
            }
        }
        Ok(())
    }

    /// The rotary table of the whole model.
    pub(crate) fn rope(&self, head_dim: usize, style: RopeStyle) -> Result<RopeSpec> {
        let rotary_dim = self.usize("rope.dimension_count")?.unwrap_or(head_dim);
        let base = self.f32("rope.freq_base")?.unwrap_or(10000.0);
        let factor = self.f32("rope.scaling.factor")?.or(self.f32("rope.scale_linear")?).filter(|&f| f != 0.0);
        let kind = self.meta.str(&self.key("rope.scaling.type"))?;
        let attn_factor = self.f32("rope.scaling.attn_factor")?.unwrap_or(1.0);
        let scaling = match kind {
            Some("none") => RopeScaling::None,
            // A file with a factor and no type means linear scaling.
            Some("linear") | None => match factor {
                None | Some(1.0) => RopeScaling::None,
                Some(factor) => RopeScaling::Linear { factor },
            },
            Some("yarn") => {
                let ext_factor = self.f32("rope.scaling.yarn_ext_factor")?.unwrap_or(1.0);
                if ext_factor != 1.0 {
                    return self.bad("rope.scaling.yarn_ext_factor", "1", ext_factor);
                }
                let name = "rope.scaling.factor";
                let factor = factor.ok_or_else(|| Error::MissingMetadata { key: self.key(name) })?;
                // Converters write the model's own attention factor here, which takes the place of the formula's.
                let attention_factor =
                    self.f32("rope.scaling.yarn_attn_factor")?.unwrap_or_else(|| yarn_mscale(factor, 1.0));
                RopeScaling::Yarn {
                    factor,
                    original_context: self
                        .usize("rope.scaling.original_context_length")?
                        .map_or_else(|| self.require_usize("context_length"), Ok)?,
                    beta_fast: self.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    attention_factor: Some(attention_factor * attn_factor),
                    truncate: true,
                }
            }
            Some(other) => {
                return Err(Error::Unsupported(format!(
                    "`{}` = `{other}` (known: none, linear, yarn)",
                    self.key("rope.scaling.type")
                )));
            }
        };
        if attn_factor != 1.0 && !matches!(scaling, RopeScaling::Yarn { .. }) {
            return self.bad("rope.scaling.attn_factor", "1 without yarn", attn_factor);
        }
        Ok(RopeSpec { rotary_dim, style, base, scaling })
    }

    /// The configuration of a plain llama-like decoder; families change what differs.
    pub(crate) fn decoder(&self, architecture: &str, style: RopeStyle) -> Result<ModelConfig> {
        let hidden_size = self.require_usize("embedding_length")?;
        let num_heads = self.require_uniform_usize("attention.head_count")?;
        if num_heads == 0 {
            return self.bad("attention.head_count", "at least 1", 0);
        }
        let num_kv_heads = self.uniform_usize("attention.head_count_kv")?.unwrap_or(num_heads);
        let head_dim = self.usize("attention.key_length")?.unwrap_or(hidden_size / num_heads);
        let v_head_dim = self.usize("attention.value_length")?.unwrap_or(hidden_size / num_heads);
        let embed = self
            .file
            .tensor("token_embd.weight")
            .ok_or_else(|| Error::MissingTensor { name: "token_embd.weight".into() })?;
        let scale = self.f32("attention.scale")?.filter(|&scale| scale != 0.0);
        let rope = RopeConfig { spec: self.rope(head_dim, style)?, factors: None };
        let causal = self.meta.bool(&self.key("attention.causal"))?.unwrap_or(true);
        Ok(ModelConfig {
            architecture: architecture.into(),
            vocab_size: embed.shape.first().copied().unwrap_or(0),
            hidden_size,
            intermediate_size: self.require_uniform_usize("feed_forward_length")?,
            num_heads,
            num_kv_heads,
            head_dim,
            v_head_dim,
            max_context: self.require_usize("context_length")?,
            layers: vec![LayerConfig { window: None, rope: Some(0) }; self.num_layers()?],
            ropes: vec![rope],
            norm: NormConfig {
                kind: NormKind::Rms,
                eps: self.require_f32("attention.layer_norm_rms_epsilon")?,
                offset: 0.0,
            },
            norm_placement: NormPlacement::Pre,
            qk_norm: QkNorm::None,
            qkv_bias: Bias::IfPresent,
            attention_output_bias: Bias::IfPresent,
            mlp_bias: Bias::IfPresent,
            act: Act::Silu,
            output: OutputMatrix::OwnIfPresent,
            embedding_scale: 1.0,
            attention_scale: scale.unwrap_or_else(|| 1.0 / (head_dim as f32).sqrt()),
            residual_scale: 1.0,
            logit_scale: 1.0,
            attention_softcap: None,
            logit_softcap: None,
            mask: if causal { Mask::Causal } else { Mask::Bidirectional },
            bos: self.token("tokenizer.ggml.bos_token_id")?,
            eos: ["eos", "eot", "eom"]
                .iter()
                .filter_map(|kind| self.token(&format!("tokenizer.ggml.{kind}_token_id")).transpose())
                .collect::<Result<_>>()?,
            defaults: self.sampling()?,
        })
    }

    /// Which layers are local: the pattern is absent in most files, else a period or one flag a layer. The last layer of
    /// each period is global.
    pub(crate) fn local_layers(&self, num_layers: usize, default_period: usize) -> Result<Vec<bool>> {
        let name = "attention.sliding_window_pattern";
        let key = self.key(name);
        if let Ok(Some(flags)) = self.meta.bools(&key) {
            return if flags.len() == num_layers {
                Ok(flags)
            } else {
                self.bad(name, &format!("{num_layers} flags"), format!("{} flags", flags.len()))
            };
        }
        let period = self.meta.usize(&key)?.unwrap_or(default_period);
        if period == 0 {
            return self.bad(name, "at least 1", 0);
        }
        Ok((1..=num_layers).map(|layer| !layer.is_multiple_of(period)).collect())
    }

    /// The window of the local layers; 0 means none.
    pub(crate) fn window(&self) -> Result<Option<usize>> {
        Ok(self.usize("attention.sliding_window")?.filter(|&window| window != 0))
    }

    fn token(&self, key: &str) -> Result<Option<u32>> {
        let Some(id) = self.meta.usize(key)? else { return Ok(None) };
        let bad = |_| Error::BadMetadata { key: key.into(), expected: "a token id".into(), got: id.to_string() };
        u32::try_from(id).map(Some).map_err(bad)
    }

    fn sampling(&self) -> Result<SamplingDefaults> {
        let meta = self.meta;
        Ok(SamplingDefaults {
            temperature: meta.f32("general.sampling.temp")?,
            top_k: meta.i64("general.sampling.top_k")?.and_then(|k| usize::try_from(k).ok()),
            top_p: meta.f32("general.sampling.top_p")?,
            min_p: meta.f32("general.sampling.min_p")?,
            repeat_penalty: meta.f32("general.sampling.penalty_repeat")?,
        })
    }
}
