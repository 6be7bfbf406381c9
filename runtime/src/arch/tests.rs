//! What the architectures accept and refuse, on models of two layers in memory whose weights are zero.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Value, json};

use crate::arch::load;
use crate::config::ModelConfig;
use crate::error::Error;
use crate::loader::{HfMetadata, ModelFile};
use crate::plan::{Op, OutputKind, Plan, RopeScaling, RopeStyle, Rows};

const HIDDEN: usize = 8;
const LAYERS: usize = 2;
const VOCAB: usize = 12;

/// Tensors of a decoder of 2 query heads and 1 key head of 4: (name, shape), in Hugging Face's names.
fn hf_tensors(extra: &[(&str, usize)]) -> BTreeMap<String, Vec<usize>> {
    let mut tensors = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        let name = |name: &str| format!("model.layers.{layer}.{name}");
        for (stem, shape) in [
            ("self_attn.q_proj", vec![8, HIDDEN]),
            ("self_attn.k_proj", vec![4, HIDDEN]),
            ("self_attn.v_proj", vec![4, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, 8]),
            ("mlp.gate_proj", vec![16, HIDDEN]),
            ("mlp.up_proj", vec![16, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, 16]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.insert(name(&format!("{stem}.weight")), shape);
        }
        for &(extra, width) in extra {
            tensors.insert(name(extra), vec![width]);
        }
    }
    tensors
}

fn hf_config(model_type: &str) -> Value {
    json!({
        "model_type": model_type, "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": 16,
        "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4,
        "max_position_embeddings": 64, "tie_word_embeddings": true, "sliding_window": null,
    })
}

fn hf_file(config: Value, tensors: &BTreeMap<String, Vec<usize>>) -> ModelFile {
    let zeros = vec![0; 4 * VOCAB * 16];
    let views: BTreeMap<_, _> = tensors
        .iter()
        .map(|(name, shape)| {
            let bytes = &zeros[..4 * shape.iter().product::<usize>()];
            (name.clone(), TensorView::new(Dtype::F32, shape.clone(), bytes).unwrap())
        })
        .collect();
    let bytes = safetensors::serialize(views, None).unwrap();
    ModelFile::from_safetensors_bytes(bytes, HfMetadata { config, ..HfMetadata::default() }).unwrap()
}

fn with(mut config: Value, changes: Value) -> Value {
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn hf(config: Value, extra: &[(&str, usize)]) -> crate::Result<(ModelConfig, Plan)> {
    load(&hf_file(config, &hf_tensors(extra)), OutputKind::Logits)
}

const QKV_BIAS: &[(&str, usize)] =
    &[("self_attn.q_proj.bias", 8), ("self_attn.k_proj.bias", 4), ("self_attn.v_proj.bias", 4)];
const GEMMA_NORMS: &[(&str, usize)] = &[
    ("self_attn.q_norm.weight", 4),
    ("self_attn.k_norm.weight", 4),
    ("pre_feedforward_layernorm.weight", 8),
    ("post_feedforward_layernorm.weight", 8),
];

/// The message of a refusal, which must name `what`.
fn refused<T>(result: crate::Result<T>, what: &str) {
    match result {
        Ok(_) => panic!("accepted; should have named {what}"),
        Err(error) => assert!(error.to_string().contains(what), "{error} doesn't name {what}"),
    }
}

#[test]
fn a_plan_reads_every_tensor_and_stops_where_asked() {
    let file = hf_file(hf_config("llama"), &hf_tensors(&[]));
    let (config, logits) = load(&file, OutputKind::Logits).unwrap();
    assert_eq!((config.num_layers(), config.num_heads, config.num_kv_heads), (LAYERS, 2, 1));
    assert_eq!(logits.weights.len(), file.tensors().len());
    assert_eq!(logits.kv.len(), LAYERS);
    assert_eq!(logits.buffers[logits.output.0].width, VOCAB);
    assert_eq!(logits.ropes[0].style, RopeStyle::Neox);
    let (_, hidden) = load(&file, OutputKind::Hidden).unwrap();
    assert_eq!(hidden.buffers[hidden.output.0].width, HIDDEN);
    // The output matrix; hidden states beside its output.
    assert_eq!(hidden.ops.len() + 3, logits.ops.len());
    let states = logits.hidden.unwrap();
    assert_eq!((logits.buffers[states.0].width, logits.buffers[states.0].rows), (HIDDEN, Rows::Hidden));
}

#[test]
fn tensors_without_the_models_prefix_are_found() {
    let tensors = hf_tensors(&[]).into_iter().map(|(name, shape)| (name.replace("model.", ""), shape)).collect();
    load(&hf_file(hf_config("llama"), &tensors), OutputKind::Hidden).unwrap();
}

#[test]
fn an_unknown_architecture_is_named_with_the_known_ones() {
    let error = hf(hf_config("transformer9000"), &[]).unwrap_err().to_string();
    assert!(error.contains("`transformer9000`") && error.contains("llama") && error.contains("gemma3"), "{error}");
}

#[test]
fn both_key_styles_of_rope_mean_the_same() {
    let scaled = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16});
    let published = with(hf_config("llama"), json!({"rope_theta": 5e5, "rope_scaling": scaled}));
    let current = with(hf_config("llama"), json!({"rope_parameters": with(scaled, json!({"rope_theta": 5e5}))}));
    let (published, current) = (hf(published, &[]).unwrap().0, hf(current, &[]).unwrap().0);
    assert_eq!(published, current);
    assert_eq!(published.ropes[0].spec.base, 5e5);
    assert!(matches!(published.ropes[0].spec.scaling, RopeScaling::Llama3 { original_context: 16, .. }));
}

#[test]
fn yarn_reads_every_key() {
    let rope = |scaling: Value| {
        let config = with(hf_config("llama"), json!({"rope_scaling": with(json!({"type": "yarn"}), scaling)}));
        hf(config, &[]).map(|(config, _)| config.ropes[0].spec.scaling.clone())
    };
    let yarn = |factor, original_context, beta_fast, beta_slow, attention_factor, truncate| RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast,
        beta_slow,
        attention_factor,
        truncate,
    };
    assert_eq!(rope(json!({"factor": 4.0})).unwrap(), yarn(4.0, 64, 32.0, 1.0, None, true));
    let all = json!({"factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 16, "beta_slow": 2,
        "attention_factor": 1.5, "truncate": false});
    assert_eq!(rope(all).unwrap(), yarn(4.0, 16, 16.0, 2.0, Some(1.5), false));
    // The factor defaults to the ratio of the contexts.
    let ratio = json!({"factor": null, "original_max_position_embeddings": 32});
    assert_eq!(rope(ratio).unwrap(), yarn(2.0, 32, 32.0, 1.0, None, true));
    let RopeScaling::Yarn { attention_factor: Some(factor), .. } =
        rope(json!({"factor": 4.0, "mscale": 2.0, "mscale_all_dim": 1.0})).unwrap()
    else {
        panic!("mscale is not read")
    };
    let ln = 4.0_f32.ln();
    assert!((factor - (0.2 * ln + 1.0) / (0.1 * ln + 1.0)).abs() < 1e-6);
}

#[test]
fn settings_that_nobody_reads_are_refused_by_name() {
    for (changes, what) in [
        (json!({"rope_scaling": {"rope_type": "fancy", "factor": 2.0}}), "fancy"),
        (json!({"rope_scaling": {"rope_type": "linear"}}), "rope_scaling.factor"),
        (json!({"rope_scaling": {"rope_type": "linear", "factor": 2.0, "mrope_section": [1, 2]}}), "mrope_section"),
        (json!({"rope_parameters": {"full_attention": {}}}), "full_attention"),
        (json!({"quantization_config": {"quant_method": "gptq"}}), "gptq"),
        (json!({"num_local_experts": 8}), "num_local_experts"),
        (json!({"final_logit_softcapping": 30.0}), "final_logit_softcapping"),
        (json!({"residual_multiplier": 0.5}), "residual_multiplier"),
        (json!({"hidden_act": "gelu_fancy"}), "gelu_fancy"),
        (json!({"num_hidden_layers": null}), "num_hidden_layers"),
        (json!({"num_hidden_layers": 1_000_000_000_000_u64}), "num_hidden_layers"),
        (json!({"num_attention_heads": 0}), "num_attention_heads"),
        (json!({"num_key_value_heads": 3}), "number of heads"),
        (json!({"num_key_value_heads": 0}), "key-value heads"),
        (json!({"hidden_size": "big"}), "hidden_size"),
        (json!({"rms_norm_eps": -1.0}), "epsilon"),
        (json!({"vocab_size": VOCAB + 1}), "model.embed_tokens.weight"),
        (json!({"num_hidden_layers": 3}), "model.layers.2."),
        (json!({"num_hidden_layers": 1}), "model.layers.1."),
        (json!({"attention_bias": true}), "q_proj.bias"),
        (json!({"tie_word_embeddings": false}), "lm_head.weight"),
    ] {
        refused(hf(with(hf_config("llama"), changes), &[]), what);
    }
    // "Off" is no reason to refuse.
    let off = json!({"num_local_experts": 0, "residual_multiplier": 1.0, "logits_scaling": 1, "use_qk_norm": false,
        "quantization_config": null, "no_rope_layers": []});
    hf(with(hf_config("llama"), off), &[]).unwrap();
    refused(hf(with(hf_config("mistral"), json!({"attention_bias": true})), QKV_BIAS), "attention_bias");
    refused(hf(hf_config("llama"), QKV_BIAS), "bias");
}

#[test]
fn windows_come_from_layer_types_or_from_the_first_window_layer() {
    let windows = |model_type: &str, changes: Value, extra: &[(&str, usize)]| {
        let (config, plan) = hf(with(hf_config(model_type), changes), extra).unwrap();
        let windows: Vec<_> = config.layers.iter().map(|layer| layer.window).collect();
        assert_eq!(plan.kv.iter().map(|kv| kv.window).collect::<Vec<_>>(), windows);
        windows
    };
    let on = json!({"use_sliding_window": true, "sliding_window": 5, "max_window_layers": 1});
    assert_eq!(windows("qwen2", on.clone(), QKV_BIAS), [None, Some(5)]);
    let types = json!({"layer_types": ["sliding_attention", "full_attention"]});
    assert_eq!(windows("qwen2", with(on.clone(), types), QKV_BIAS), [Some(5), None]);
    assert_eq!(windows("qwen2", with(on, json!({"use_sliding_window": false})), QKV_BIAS), [None, None]);
    assert_eq!(windows("mistral", json!({"sliding_window": 7}), &[]), [Some(7), Some(7)]);
    assert_eq!(windows("mistral", json!({}), &[]), [None, None]);
    let qk_norms = &GEMMA_NORMS[..2];
    let strange = json!({"layer_types": ["full_attention", "linear_attention"]});
    refused(hf(with(hf_config("qwen3"), strange), qk_norms), "linear_attention");
    let short = json!({"layer_types": ["full_attention"]});
    refused(hf(with(hf_config("qwen3"), short), qk_norms), "layer_types");
}

#[test]
fn gemma3_reads_its_two_rotary_tables_in_both_styles() {
    let published = json!({"rope_theta": 1e6, "rope_local_base_freq": 2e4, "sliding_window": 6,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}, "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0});
    let current = json!({"rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 2e4}},
        "layer_types": ["sliding_attention", "full_attention"], "sliding_window": 6,
        "query_pre_attn_scalar": 16, "final_logit_softcapping": 30.0});
    let published = hf(with(hf_config("gemma3_text"), published), GEMMA_NORMS).unwrap().0;
    let current = hf(with(hf_config("gemma3_text"), current), GEMMA_NORMS).unwrap().0;
    assert_eq!(published, current);
    let [global, local] = &published.ropes[..] else { panic!("{:?}", published.ropes) };
    assert_eq!((global.spec.base, local.spec.base), (1e6, 2e4));
    assert_eq!(global.spec.scaling, RopeScaling::Linear { factor: 8.0 });
    assert_eq!(local.spec.scaling, RopeScaling::None);
    assert_eq!(
        published.layers.iter().map(|l| (l.window, l.rope)).collect::<Vec<_>>(),
        [(Some(6), Some(1)), (None, Some(0))]
    );
    assert_eq!((published.norm.offset, published.attention_scale), (1.0, 0.25));
    assert_eq!(published.embedding_scale, (HIDDEN as f32).sqrt());
    // The text part of a multimodal model.
    let mut text = hf_config("gemma3_text");
    text.as_object_mut().unwrap().remove("model_type");
    let whole = json!({"model_type": "gemma3", "text_config": text});
    hf(whole, GEMMA_NORMS).unwrap();
    let flat = json!({"rope_parameters": {"rope_theta": 1e6}});
    refused(hf(with(hf_config("gemma3_text"), flat), GEMMA_NORMS), "full_attention");
    let both_ways = json!({"use_bidirectional_attention": true});
    refused(hf(with(hf_config("gemma3_text"), both_ways), GEMMA_NORMS), "use_bidirectional_attention");
}

/// A value of GGUF metadata.
enum Meta {
    U32(u32),
    F32(f32),
    Bool(bool),
    Str(&'static str),
    U32s(&'static [u32]),
    Bools(&'static [bool]),
}

fn gguf_file(metadata: &[(String, Meta)], tensors: &BTreeMap<String, Vec<usize>>) -> ModelFile {
    fn text(bytes: &mut Vec<u8>, text: &str) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text.as_bytes());
    }
    fn array(bytes: &mut Vec<u8>, kind: u32, len: usize) {
        bytes.extend(9_u32.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend((len as u64).to_le_bytes());
    }
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend((tensors.len() as u64).to_le_bytes());
    bytes.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        text(&mut bytes, key);
        match value {
            Meta::U32(x) => bytes.extend([4_u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::F32(x) => bytes.extend([6_u32.to_le_bytes(), x.to_le_bytes()].concat()),
            Meta::Bool(x) => {
                bytes.extend(7_u32.to_le_bytes());
                bytes.push(u8::from(*x));
            }
            Meta::Str(x) => {
                bytes.extend(8_u32.to_le_bytes());
                text(&mut bytes, x);
            }
            Meta::U32s(values) => {
                array(&mut bytes, 4, values.len());
                bytes.extend(values.iter().flat_map(|x| x.to_le_bytes()));
            }
            Meta::Bools(values) => {
                array(&mut bytes, 7, values.len());
                bytes.extend(values.iter().map(|&x| u8::from(x)));
            }
        }
    }
    let mut offset = 0_u64;
    for (name, shape) in tensors {
        text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        bytes.extend(shape.iter().rev().flat_map(|&n| (n as u64).to_le_bytes()));
        bytes.extend(0_u32.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
        offset += (4 * shape.iter().product::<usize>() as u64).next_multiple_of(32);
    }
    bytes.resize(bytes.len().next_multiple_of(32) + offset as usize, 0);
    ModelFile::from_gguf_bytes(bytes).unwrap()
}

fn gguf_tensors(extra: &[(&str, usize)]) -> BTreeMap<String, Vec<usize>> {
    let renamed = |name: &str| {
        [
            ("model.layers.", "blk."),
            ("model.embed_tokens", "token_embd"),
            ("model.norm", "output_norm"),
            ("self_attn.q_proj", "attn_q"),
            ("self_attn.k_proj", "attn_k"),
            ("self_attn.v_proj", "attn_v"),
            ("self_attn.o_proj", "attn_output"),
            ("mlp.gate_proj", "ffn_gate"),
            ("mlp.up_proj", "ffn_up"),
            ("mlp.down_proj", "ffn_down"),
            ("input_layernorm", "attn_norm"),
            ("post_attention_layernorm", "ffn_norm"),
        ]
        .iter()
        .fold(name.to_owned(), |name, (from, to)| name.replace(from, to))
    };
    hf_tensors(extra).into_iter().map(|(name, shape)| (renamed(&name), shape)).collect()
}

fn gguf(arch: &'static str, changes: Vec<(&str, Option<Meta>)>, extra: &[(&str, usize)]) -> crate::Result<ModelConfig> {
    let mut metadata = BTreeMap::from([
        ("block_count", Meta::U32(LAYERS as u32)),
        ("context_length", Meta::U32(64)),
        ("embedding_length", Meta::U32(HIDDEN as u32)),
        ("feed_forward_length", Meta::U32(16)),
        ("attention.head_count", Meta::U32(2)),
        ("attention.head_count_kv", Meta::U32(1)),
        ("attention.layer_norm_rms_epsilon", Meta::F32(1e-5)),
        ("rope.freq_base", Meta::F32(1e4)),
    ]);
    for (key, change) in changes {
        match change {
            Some(value) => metadata.insert(key, value),
            None => metadata.remove(key),
        };
    }
    let mut pairs = vec![("general.architecture".to_owned(), Meta::Str(arch))];
    pairs.extend(metadata.into_iter().map(|(key, value)| (format!("{arch}.{key}"), value)));
    load(&gguf_file(&pairs, &gguf_tensors(extra)), OutputKind::Logits).map(|(config, _)| config)
}

#[test]
fn gguf_llama_is_read() {
    let config = gguf("llama", vec![], &[]).unwrap();
    assert_eq!((config.vocab_size, config.head_dim, config.max_context), (VOCAB, 4, 64));
    assert_eq!(config.ropes[0].spec.style, RopeStyle::Interleaved);
    let yarn = |attn_factor: Option<f32>| {
        let changes = vec![
            ("rope.scaling.type", Some(Meta::Str("yarn"))),
            ("rope.scaling.factor", Some(Meta::F32(4.0))),
            ("rope.scaling.original_context_length", Some(Meta::U32(16))),
            ("rope.scaling.yarn_beta_fast", Some(Meta::F32(16.0))),
            ("rope.scaling.yarn_attn_factor", attn_factor.map(Meta::F32)),
        ];
        gguf("llama", changes, &[]).unwrap().ropes[0].spec.clone()
    };
    assert_eq!(yarn(Some(1.5)).attention_factor(), 1.5);
    let spec = yarn(None);
    let RopeScaling::Yarn { original_context: 16, beta_fast: 16.0, .. } = spec.scaling else { panic!("{spec:?}") };
    assert!((spec.attention_factor() - (0.1 * 4.0_f32.ln() + 1.0)).abs() < 1e-6);
    let linear = vec![("rope.scale_linear", Some(Meta::F32(2.0)))];
    assert_eq!(gguf("llama", linear, &[]).unwrap().ropes[0].spec.scaling, RopeScaling::Linear { factor: 2.0 });
    // The same number for each layer is one number.
    let uniform = vec![("attention.head_count_kv", Some(Meta::U32s(&[1, 1])))];
    assert_eq!(gguf("llama", uniform, &[]).unwrap().num_kv_heads, 1);
}

#[test]
fn gguf_rope_factors_reach_the_plan() {
    let mut tensors = gguf_tensors(&[]);
    tensors.insert("rope_freqs.weight".into(), vec![2]);
    let keys = [("block_count", 2), ("context_length", 64), ("embedding_length", 8), ("feed_forward_length", 16)];
    let mut pairs = vec![("general.architecture".to_owned(), Meta::Str("llama"))];
    pairs.extend(keys.map(|(key, value)| (format!("llama.{key}"), Meta::U32(value))));
    pairs.push(("llama.attention.head_count".into(), Meta::U32(2)));
    pairs.push(("llama.attention.head_count_kv".into(), Meta::U32(1)));
    pairs.push(("llama.attention.layer_norm_rms_epsilon".into(), Meta::F32(1e-5)));
    let (_, plan) = load(&gguf_file(&pairs, &tensors), OutputKind::Logits).unwrap();
    assert!(matches!(plan.ropes[0].scaling, RopeScaling::Factors { .. }));
    pairs.push(("llama.rope.scaling.type".into(), Meta::Str("linear")));
    pairs.push(("llama.rope.scaling.factor".into(), Meta::F32(2.0)));
    refused(load(&gguf_file(&pairs, &tensors), OutputKind::Logits), "rope_freqs.weight");
}

#[test]
fn gguf_settings_that_nobody_reads_are_refused_by_name() {
    for (key, value, what) in [
        ("block_count", None, "llama.block_count"),
        ("block_count", Some(Meta::U32(u32::MAX)), "llama.block_count"),
        ("block_count", Some(Meta::U32(1)), "blk.1."),
        ("embedding_length", Some(Meta::U32(16)), "token_embd.weight"),
        ("attention.layer_norm_rms_epsilon", None, "layer_norm_rms_epsilon"),
        ("attention.head_count", Some(Meta::U32(0)), "attention.head_count"),
        ("attention.head_count_kv", Some(Meta::U32s(&[1, 2])), "attention.head_count_kv"),
        ("expert_count", Some(Meta::U32(8)), "experts"),
        ("logit_scale", Some(Meta::F32(0.5)), "llama.logit_scale"),
        ("some.new.thing", Some(Meta::Str("on")), "llama.some.new.thing"),
        ("rope.scaling.type", Some(Meta::Str("longrope")), "longrope"),
        ("rope.dimension_count", Some(Meta::U32(6)), "rotary dimension"),
        ("rope.freq_base", Some(Meta::F32(f32::NAN)), "rope base"),
        ("attention.key_length", Some(Meta::U32(5)), "rotary dimension"),
    ] {
        refused(gguf("llama", vec![(key, value)], &[]), what);
    }
    let off = vec![
        ("expert_count", Some(Meta::U32(0))),
        ("use_parallel_residual", Some(Meta::Bool(false))),
        ("vocab_size", Some(Meta::U32(99))),
        ("attention.causal", Some(Meta::Bool(true))),
    ];
    gguf("llama", off, &[]).unwrap();
    assert!(matches!(gguf("mamba9", vec![], &[]), Err(Error::Unsupported(why)) if why.starts_with("architecture ")));
    refused(gguf("qwen2", vec![], &[]), "attn_q.bias");
}

#[test]
fn gguf_gemma3_has_five_local_layers_to_one_unless_the_file_says_otherwise() {
    let norms: &[(&str, usize)] = &[
        ("attn_q_norm.weight", 4),
        ("attn_k_norm.weight", 4),
        ("post_attention_norm.weight", 8),
        ("post_ffw_norm.weight", 8),
    ];
    let windows = |pattern: Option<Meta>| {
        let changes = vec![
            ("attention.sliding_window", Some(Meta::U32(6))),
            ("attention.sliding_window_pattern", pattern),
            ("rope.freq_base_swa", Some(Meta::F32(2e4))),
        ];
        let config = gguf("gemma3", changes, norms).unwrap();
        assert_eq!(config.norm.offset, 0.0);
        assert_eq!(config.ropes[1].spec.base, 2e4);
        config.layers.iter().map(|layer| layer.window).collect::<Vec<_>>()
    };
    assert_eq!(windows(None), [Some(6), Some(6)]);
    assert_eq!(windows(Some(Meta::U32(2))), [Some(6), None]);
    assert_eq!(windows(Some(Meta::Bools(&[false, true]))), [None, Some(6)]);
    refused(gguf("gemma3", vec![("rope.freq_base", None)], norms), "gemma3.rope.freq_base");
    let plan_has_gelu = |op: &Op| matches!(op, Op::Glu { act: crate::plan::Act::GeluTanh, .. });
    assert_eq!(gguf("gemma3", vec![], norms).unwrap().act, crate::plan::Act::GeluTanh);
    let file = hf_file(hf_config("gemma3_text"), &hf_tensors(GEMMA_NORMS));
    assert!(load(&file, OutputKind::Logits).unwrap().1.ops.iter().any(plan_has_gelu));
}
