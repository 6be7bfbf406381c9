//! What a model may take of a GPU's memory, and which layers it gets for that, on a model of four layers made up here.

use std::collections::BTreeMap;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::json;

use super::*;
use crate::exec::{GpuOptions, KvSize, OutputRows, StepBatch};
use crate::loader::{HfMetadata, ModelFile};
use crate::plan::OutputKind;

const LAYERS: usize = 4;
const HIDDEN: usize = 64;
const FFN: usize = 128;
const VOCAB: usize = 256;

/// A llama whose embeddings and output matrix are tensors of their own.
fn plan() -> Plan {
    let mut shapes = BTreeMap::from([
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ]);
    for layer in 0..LAYERS {
        for (stem, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN / 2, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![FFN, HIDDEN]),
            ("mlp.up_proj", vec![FFN, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, FFN]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            shapes.insert(format!("model.layers.{layer}.{stem}.weight"), shape);
        }
    }
    let numbers: Vec<u8> = (0..VOCAB * HIDDEN)
        .map(|i| ((i * i * 31 + i * 7) % 199) as f32 / 995.0 - 0.1)
        .flat_map(f32::to_le_bytes)
        .collect();
    let views: BTreeMap<_, _> = shapes
        .into_iter()
        .enumerate()
        .map(|(index, (name, shape))| {
            let bytes = 4 * shape.iter().product::<usize>();
            // Not the same numbers in every tensor.
            let start = (numbers.len() - bytes).min(index * 4);
            (name, TensorView::new(Dtype::F32, shape, &numbers[start..start + bytes]).unwrap())
        })
        .collect();
    let config = json!({
        "model_type": "llama", "vocab_size": VOCAB, "hidden_size": HIDDEN, "intermediate_size": FFN,
        "num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "max_position_embeddings": 512, "tie_word_embeddings": false,
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    let file = ModelFile::from_safetensors_bytes(bytes, HfMetadata { config, ..HfMetadata::default() }).unwrap();
    crate::arch::load(&file, OutputKind::Logits).unwrap().1
}

fn options(layers: GpuLayers, memory: GpuMemory) -> ExecOptions {
    ExecOptions {
        gpu: GpuOptions { devices: vec![Device::Emulated], layers, memory },
        threads: Some(1),
        max_context: Some(64),
        kv_size: KvSize::Tokens(96),
        max_step_tokens: 16,
        ..ExecOptions::default()
    }
}

fn gpu(memory_bytes: usize) -> Gpu {
    Gpu::emulated(&Emulation { checks: Checks::FAST, memory_bytes, ..Emulation::default() }).unwrap()
}

/// Logits of a prompt, computed in two steps.
fn logits(executor: &mut dyn Executor) -> Vec<f32> {
    let prompt: Vec<u32> = (0..11).map(|i| i * 23 % VOCAB as u32).collect();
    let mut rows = Vec::new();
    for (start, piece) in [(0, &prompt[..10]), (10, &prompt[10..])] {
        let mut batch = StepBatch::default();
        batch.push(piece, start, prompt.len(), &[2], OutputRows::All);
        rows.extend_from_slice(executor.step(&batch).unwrap().data);
    }
    rows
}

fn assert_close(got: &[f32], expected: &[f32], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let apart = got.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-2 && got.iter().all(|x| x.is_finite()), "{what}: {apart}");
}

/// How many layers a placement leaves to the CPU.
fn on_cpu(placement: &str) -> usize {
    match placement.split_once(" on the CPU, ") {
        None => 0,
        Some(("the embeddings", _)) => 0,
        Some(("layer 1", _)) => 1,
        Some((layers, _)) => layers.strip_prefix("layers 1-").unwrap().parse().unwrap(),
    }
}

#[test]
fn a_limit_is_held_and_auto_gives_the_gpu_what_fits() {
    let plan = plan();
    let expected = logits(&mut CpuExecutor::new(&plan, &options(GpuLayers::Auto, GpuMemory::Free)).unwrap());
    let first = gpu(1 << 30);
    let with = |limit| options(GpuLayers::Auto, GpuMemory::Bytes(limit));
    let mut whole = CudaExecutor::on(std::slice::from_ref(&first), &plan, &with(1 << 29)).unwrap();
    assert_eq!(whole.placement(), Some("layers 1-4 and the output on emulated GPU 0"));
    assert_close(&logits(&mut whole), &expected, "all layers on the GPU");
    assert_eq!(whole.kv_layout(), "cuda");
    let full = first.taken();
    drop(whole);
    assert_eq!(first.taken(), 0);
    // A bit of slack is counted for the alignment of caches.
    let whole = CudaExecutor::on(&[first], &plan, &with(full + (16 << 10))).unwrap();
    assert_eq!(whole.placement(), Some("layers 1-4 and the output on emulated GPU 0"));
    let (mut seen, mut limit, mut layers) = (Vec::new(), full - 1, 0);
    let error = loop {
        let gpu = gpu(1 << 30);
        let mut executor = match CudaExecutor::on(std::slice::from_ref(&gpu), &plan, &with(limit)) {
            Ok(executor) => executor,
            Err(error) => break error,
        };
        let placement = executor.placement().unwrap().to_owned();
        assert!(on_cpu(&placement) >= layers, "{placement}: more layers in less memory");
        if seen.is_empty() || on_cpu(&placement) > layers {
            assert_close(&logits(&mut executor), &expected, &placement);
        }
        layers = on_cpu(&placement);
        assert!(gpu.taken() <= limit, "{} bytes of {limit}: {placement}", gpu.taken());
        if layers > 0 {
            assert_eq!(executor.kv_layout(), format!("{layers} cpu {} cuda", LAYERS - layers));
        }
        seen.push(placement);
        limit -= full / 24;
    };
    for placement in [
        "the embeddings on the CPU, layers 1-4 and the output on emulated GPU 0",
        "layer 1 on the CPU, layers 2-4 and the output on emulated GPU 0",
        "layers 1-3 on the CPU, layer 4 and the output on emulated GPU 0",
    ] {
        assert!(seen.iter().any(|seen| seen == placement), "{placement} is not among {seen:#?}");
    }
    assert!(matches!(error, Error::OutOfMemory(_)), "{error}");
    let message = error.to_string();
    let allowed = format!("{} KiB can be used (--gpu-memory allows {} KiB)", limit >> 10, limit >> 10);
    for part in ["the weights of layer 4 take", &allowed, "--gpu-layers", "--batch-tokens", "--backend cpu"] {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

#[test]
fn the_number_of_layers_is_the_users_where_it_fits() {
    let plan = plan();
    for (layers, placement) in [
        (GpuLayers::All, "layers 1-4 and the output on emulated GPU 0"),
        (GpuLayers::Last(99), "layers 1-4 and the output on emulated GPU 0"),
        (GpuLayers::Last(4), "layers 1-4 and the output on emulated GPU 0"),
        (GpuLayers::Last(3), "layer 1 on the CPU, layers 2-4 and the output on emulated GPU 0"),
        (GpuLayers::Last(1), "layers 1-3 on the CPU, layer 4 and the output on emulated GPU 0"),
    ] {
        let executor = build(&plan, &options(layers, GpuMemory::Free)).unwrap();
        assert_eq!((executor.name(), executor.placement()), ("cuda", Some(placement)), "{layers}");
    }
    let cpu = build(&plan, &options(GpuLayers::Last(0), GpuMemory::Free)).unwrap();
    assert_eq!((cpu.name(), cpu.placement()), ("cpu", None));
    // What doesn't fit is refused, and not made smaller.
    let small = options(GpuLayers::Last(3), GpuMemory::Bytes(300 << 10));
    let error = build(&plan, &small).err().unwrap().to_string();
    assert!(error.contains("layers 2-4") && error.contains("allows 300 KiB"), "{error}");
    let twice = GpuOptions { devices: vec![Device::Index(1); 2], ..GpuOptions::default() };
    let error = build(&plan, &ExecOptions { gpu: twice, ..ExecOptions::default() }).err().unwrap();
    assert!(matches!(error, Error::InvalidRequest { param: "device", .. }), "{error}");
}

#[test]
fn gpus_share_the_layers_by_their_free_memory_and_several_models_a_limit() {
    let plan = plan();
    let expected = logits(&mut CpuExecutor::new(&plan, &options(GpuLayers::Auto, GpuMemory::Free)).unwrap());
    let options = |layers, memory| {
        let options = options(layers, memory);
        ExecOptions { gpu: GpuOptions { devices: vec![Device::Emulated; 2], ..options.gpu }, ..options }
    };
    // Three quarters and one, beside the spare. The output matrix weighs as much as half a layer.
    let gpus = [gpu(SPARE_BYTES + (12 << 20)), gpu(SPARE_BYTES + (4 << 20))];
    let mut executor = CudaExecutor::on(&gpus, &plan, &options(GpuLayers::Auto, GpuMemory::Free)).unwrap();
    let thirds = "layers 1-3 on emulated GPU 0, layer 4 and the output on emulated GPU 1";
    assert_eq!(executor.placement(), Some(thirds));
    assert_close(&logits(&mut executor), &expected, thirds);
    assert_eq!(executor.kv_layout(), "cuda");
    let all_three = options(GpuLayers::Last(3), GpuMemory::Percent(100));
    let mut mixed = CudaExecutor::on(&gpus, &plan, &all_three).unwrap();
    let placement = "layer 1 on the CPU, layers 2-3 on emulated GPU 0, layer 4 and the output on emulated GPU 1";
    assert_eq!(mixed.placement(), Some(placement));
    assert_close(&logits(&mut mixed), &expected, placement);
    // What one model took is no longer there for the next.
    let taken = gpus[1].taken();
    let limited = options(GpuLayers::All, GpuMemory::Bytes(taken + 1));
    let error = CudaExecutor::on(&gpus, &plan, &limited).err().unwrap().to_string();
    assert!(error.contains("of which") && error.contains("are taken"), "{error}");
}
