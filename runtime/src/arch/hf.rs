//! What every decoder reads alike out of a Hugging Face `config.json`. `null` means absent. Where the file says nothing,
//! the defaults are those of the family's configuration class in transformers; what has no default there is required.

use serde_json::{Map, Value};

use crate::arch::hf_rope::RopeDefaults;
use crate::config::{
    Bias, LayerConfig, ModelConfig, NormConfig, NormPlacement, OutputMatrix, QkNorm, RopeConfig, SamplingDefaults,
};
use crate::error::{Error, Result};
use crate::loader::{HfMetadata, ModelFile};
use crate::plan::{Act, Mask, NormKind, RopeSpec, RopeStyle};

/// One object of a configuration, read key by key.
#[derive(Clone, Copy)]
pub(crate) struct Object<'a> {
    pub(crate) map: &'a Map<String, Value>,
    /// What precedes a key in messages: empty, or `rope_scaling.` and the like.
    pub(crate) path: &'a str,
}

impl<'a> Object<'a> {
    pub(crate) fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub(crate) fn bad<T>(&self, key: &str, expected: &str, got: impl ToString) -> Result<T> {
        let key = format!("{}{key}", self.path);
        Err(Error::BadMetadata { key, expected: expected.into(), got: got.to_string() })
    }

    pub(crate) fn missing(&self, key: &str) -> Error {
        Error::MissingMetadata { key: format!("{}{key}", self.path) }
    }

    fn typed<T>(&self, key: &str, expected: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.get(key) {
            None => Ok(None),
            Some(value) => match read(value) {
                Some(value) => Ok(Some(value)),
                None => self.bad(key, expected, value),
            },
        }
    }

    /// A whole number; writers that print `4096.0` are understood.
    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.typed(key, "a whole number", |value| {
            let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..1e15).contains(x)).map(|x| x as u64);
            value.as_u64().or_else(float).and_then(|n| usize::try_from(n).ok())
        })
    }

    pub(crate) fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |value| value.as_f64().map(|x| x as f32))
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.typed(key, "a string", Value::as_str)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.typed(key, "an object", Value::as_object)
    }

    pub(crate) fn require_usize(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.missing(key))
    }
}

/// Keys that change what a decoder computes in one family or another. A family that doesn't read one of them refuses a file
/// that sets it to anything but "off": null, false, 0, empty, and for factors 1.
const MATHS: &[&str] = &[
    "alibi",
    "attention_bias",
    "attention_chunk_size",
    "attention_multiplier",
    "attention_out_bias",
    "attn_logit_softcapping",
    "clip_qkv",
    "embedding_multiplier",
    "final_logit_softcapping",
    "kv_lora_rank",
    "logit_scale",
    "logits_scaling",
    "mlp_bias",
    "moe_intermediate_size",
    "mup_enabled",
    "n_routed_experts",
    "no_rope_layers",
    "num_experts",
    "num_local_experts",
    "q_lora_rank",
    "qk_layernorm",
    "qk_norm",
    "quantization_config",
    "query_pre_attn_scalar",
    "residual_multiplier",
    "rope_local_base_freq",
    "scale_depth",
    "scale_emb",
    "use_bias",
    "use_bidirectional_attention",
    "use_parallel_residual",
    "use_qk_norm",
    "use_qkv_bias",
];

/// Defaults of a family's configuration class where they are relied on by published files.
#[derive(Clone, Copy)]
pub(crate) struct HfDefaults {
    pub(crate) vocab_size: Option<usize>,
    pub(crate) num_heads: Option<usize>,
    /// `None`: as many as query heads.
    pub(crate) num_kv_heads: Option<usize>,
    /// `None`: hidden size / heads.
    pub(crate) head_dim: Option<usize>,
    pub(crate) max_context: usize,
    pub(crate) rms_norm_eps: f32,
    /// Key and default of the activation.
    pub(crate) act: (&'static str, Act),
    pub(crate) tied: bool,
    /// Base of the rotary embedding.
    pub(crate) theta: f32,
}

/// Those of llama, which most families copied.
pub(crate) const LLAMA_DEFAULTS: HfDefaults = HfDefaults {
    vocab_size: None,
    num_heads: None,
    num_kv_heads: None,
    head_dim: None,
    max_context: 2048,
    rms_norm_eps: 1e-6,
    act: ("hidden_act", Act::Silu),
    tied: false,
    theta: 10000.0,
};

/// Metadata of one folder.
pub(crate) struct HfKeys<'a> {
    pub(crate) file: &'a ModelFile,
    /// The decoder's own object: the root, or `text_config` of a multimodal model.
    pub(crate) config: Object<'a>,
    pub(crate) generation: Option<&'a Map<String, Value>>,
}

impl<'a> HfKeys<'a> {
    pub(crate) fn new(file: &'a ModelFile, meta: &'a HfMetadata) -> Result<Self> {
        let Some(root) = meta.config.as_object() else {
            return Err(Error::Format { path: file.path.join("config.json"), what: "is not a JSON object".into() });
        };
        let root = Object { map: root, path: "" };
        let config = match root.object("text_config")? {
            Some(map) => Object { map, path: "text_config." },
            None => root,
        };
        // A quantised checkpoint says so at the root, whatever the decoder's own object is.
        if let Some(value) = root.get("quantization_config") {
            let method = value.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
            return Err(Error::Unsupported(format!(
                "`quantization_config` with quant_method `{method}`: use an unquantised checkpoint or a GGUF file"
            )));
        }
        Ok(Self { file, config, generation: meta.generation.as_ref().and_then(Value::as_object) })
    }

    /// Refuses keys that change the maths and that the family doesn't name in `required` or `optional`.
    pub(crate) fn refuse_unread(&self, required: &[&str], optional: &[&str]) -> Result<()> {
        for &key in MATHS {
            if required.contains(&key) || optional.contains(&key) {
                continue;
            }
            let Some(value) = self.config.get(key) else { continue };
            let factor = key.ends_with("_multiplier") || key.ends_with("scaling") || key.ends_with("scale");
            let off = match value {
                Value::Bool(set) => !set,
                Value::Number(number) => number.as_f64() == Some(0.0) || (factor && number.as_f64() == Some(1.0)),
                Value::String(text) => text.is_empty(),
                Value::Array(items) => items.is_empty(),
                Value::Object(map) => map.is_empty(),
                Value::Null => true,
            };
            if !off {
                return Err(Error::Unsupported(format!(
                    "`{}{key}` = {value}: it changes the results, and this architecture doesn't read it",
                    self.config.path
                )));
            }
        }
        for key in required {
            if self.config.get(key).is_none() {
                return Err(self.config.missing(key));
            }
        }
        Ok(())
    }

    pub(crate) fn num_layers(&self) -> Result<usize> {
        let layers = self.config.require_usize("num_hidden_layers")?;
        let most = self.file.tensors().len();
        if layers == 0 || layers > most {
            return self.config.bad("num_hidden_layers", &format!("1 to {most}, the number of tensors"), layers);
        }
        Ok(layers)
    }

    /// Elements of a head, which the rotary table needs before the rest.
    pub(crate) fn head_dim(&self, defaults: &HfDefaults) -> Result<usize> {
        let heads = self.num_heads(defaults)?;
        let derived = self.config.require_usize("hidden_size")? / heads;
        Ok(self.config.usize("head_dim")?.or(defaults.head_dim).unwrap_or(derived))
    }

    fn num_heads(&self, defaults: &HfDefaults) -> Result<usize> {
        let key = "num_attention_heads";
        let heads = self.config.usize(key)?.or(defaults.num_heads).ok_or_else(|| self.config.missing(key))?;
        if heads == 0 { self.config.bad(key, "at least 1", 0) } else { Ok(heads) }
    }

    pub(crate) fn bias(&self, key: &str) -> Result<Bias> {
        Ok(if self.config.bool(key)?.unwrap_or(false) { Bias::Required } else { Bias::None })
    }

    /// An activation by its name in transformers.
    pub(crate) fn act(&self, key: &str, default: Act) -> Result<Act> {
        Ok(match self.config.str(key)? {
            None => default,
            Some("silu" | "swish") => Act::Silu,
            Some("gelu") => Act::Gelu,
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Act::GeluTanh,
            Some("relu") => Act::Relu,
            Some(other) => {
                return Err(Error::Unsupported(format!("activation `{key}` = `{other}`")));
            }
        })
    }

    /// `sliding_window`: `null` means none, and a file without the key has the class's default.
    pub(crate) fn window(&self, default: Option<usize>) -> Result<Option<usize>> {
        if self.config.map.contains_key("sliding_window") { self.config.usize("sliding_window") } else { Ok(default) }
    }

    /// The window of each layer: `layer_types` if the file has them, else `sliding(layer)`.
    pub(crate) fn windows(
        &self,
        num_layers: usize,
        window: Option<usize>,
        sliding: impl Fn(usize) -> bool,
    ) -> Result<Vec<Option<usize>>> {
        let required = || window.ok_or_else(|| self.config.missing("sliding_window")).map(Some);
        let Some(types) = self.config.get("layer_types") else {
            return (0..num_layers).map(|layer| if sliding(layer) { required() } else { Ok(None) }).collect();
        };
        let types = match types.as_array() {
            Some(types) if types.len() == num_layers => types,
            Some(types) => {
                return self.config.bad("layer_types", &format!("{num_layers} entries"), types.len());
            }
            None => return self.config.bad("layer_types", "a list", types),
        };
        let one = |value: &Value| match value.as_str() {
            Some("full_attention") => Ok(None),
            Some("sliding_attention") => required(),
            _ => Err(Error::Unsupported(format!("`{}layer_types` with {value}", self.config.path))),
        };
        types.iter().map(one).collect()
    }

    /// The configuration of a plain llama-like decoder with one rotary table; families change what differs.
    pub(crate) fn decoder(&self, architecture: &str, defaults: &HfDefaults) -> Result<ModelConfig> {
        let rope = RopeDefaults { theta: defaults.theta, head_dim: self.head_dim(defaults)?, style: RopeStyle::Neox };
        self.decoder_with_rope(architecture, defaults, self.rope(rope)?)
    }

    /// As [`Self::decoder`], with the rotary table that the family has read.
    pub(crate) fn decoder_with_rope(
        &self,
        architecture: &str,
        defaults: &HfDefaults,
        rope: RopeSpec,
    ) -> Result<ModelConfig> {
        let config = &self.config;
        let num_heads = self.num_heads(defaults)?;
        let head_dim = self.head_dim(defaults)?;
        let key = "vocab_size";
        let vocab_size = config.usize(key)?.or(defaults.vocab_size).ok_or_else(|| config.missing(key))?;
        let tied = config.bool("tie_word_embeddings")?.unwrap_or(defaults.tied);
        Ok(ModelConfig {
            architecture: architecture.into(),
            vocab_size,
            hidden_size: config.require_usize("hidden_size")?,
            intermediate_size: config.require_usize("intermediate_size")?,
            num_heads,
            num_kv_heads: config.usize("num_key_value_heads")?.or(defaults.num_kv_heads).unwrap_or(num_heads),
            head_dim,
            v_head_dim: head_dim,
            max_context: config.usize("max_position_embeddings")?.unwrap_or(defaults.max_context),
            layers: vec![LayerConfig { window: None, rope: Some(0) }; self.num_layers()?],
            ropes: vec![RopeConfig { spec: rope, factors: None }],
            norm: NormConfig {
                kind: NormKind::Rms,
                eps: config.f32("rms_norm_eps")?.unwrap_or(defaults.rms_norm_eps),
                offset: 0.0,
            },
            norm_placement: NormPlacement::Pre,
            qk_norm: QkNorm::None,
            qkv_bias: Bias::None,
            attention_output_bias: Bias::None,
            mlp_bias: Bias::None,
            act: self.act(defaults.act.0, defaults.act.1)?,
            output: if tied { OutputMatrix::Tied } else { OutputMatrix::Own },
            embedding_scale: 1.0,
            attention_scale: 1.0 / (head_dim as f32).sqrt(),
            residual_scale: 1.0,
            logit_scale: 1.0,
            attention_softcap: None,
            logit_softcap: None,
            mask: Mask::Causal,
            bos: self.tokens("bos_token_id")?.first().copied(),
            eos: self.tokens("eos_token_id")?,
            defaults: self.sampling()?,
        })
    }

    /// A token id or a list of them; `generation_config.json` overrules `config.json`.
    fn tokens(&self, key: &str) -> Result<Vec<u32>> {
        let generation = self.generation.map(|map| Object { map, path: "generation_config." });
        let (object, value) = match generation.and_then(|object| Some((object, object.get(key)?))) {
            Some(found) => found,
            None => match self.config.get(key) {
                Some(value) => (self.config, value),
                None => return Ok(Vec::new()),
            },
        };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value {
            Value::Array(items) => items.iter().map(id).collect::<Option<Vec<_>>>(),
            // Some files write -1 for "none".
            Value::Number(number) if number.as_i64() == Some(-1) => Some(Vec::new()),
            one => id(one).map(|id| vec![id]),
        };
        ids.map_or_else(|| object.bad(key, "a token id or a list of them", value), Ok)
    }

    fn sampling(&self) -> Result<SamplingDefaults> {
        let Some(map) = self.generation else { return Ok(SamplingDefaults::default()) };
        let object = Object { map, path: "generation_config." };
        Ok(SamplingDefaults {
            temperature: object.f32("temperature")?,
            top_k: object.usize("top_k")?,
            top_p: object.f32("top_p")?,
            min_p: object.f32("min_p")?,
            repeat_penalty: object.f32("repetition_penalty")?,
        })
    }
}
