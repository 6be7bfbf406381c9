//! `--backend cuda`: a whole model through the GPU's code on the emulated device, and what a machine without a GPU says.

use serde_json::Value;
use shimmy_kernels::cuda::{Driver, probe};

use crate::binary::run;
use crate::support;

const QUESTION: &str = "Complete the sentence: The capital of France is";

/// The same tokens as on the CPU: both multiply the same integers, and the sums differ in their order only.
#[test]
fn a_real_model_answers_on_the_emulated_device_as_on_the_cpu() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let answer = |backend: &[&str]| {
        let args = ["generate", model, "-p", QUESTION, "-t", "0", "-n", "6", "--json", "--kv-tokens", "256"];
        let ended = run([&args[..], backend].concat());
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["text"].clone()
    };
    let expected = answer(&["--backend", "cpu"]);
    assert_eq!(answer(&["--backend", "cuda", "--device", "emulated"]), expected);
}

/// The devices are opened and the memory is taken, but no step is computed.
#[test]
fn layers_go_where_they_fit_and_what_cannot_is_said_with_numbers() {
    let Some(model) = support::fetch_model("smollm2") else { return };
    let model = model.to_str().unwrap();
    let probe = |args: &[&str]| {
        let ended = run([&["probe", model, "--json", "--backend", "cuda"], args].concat());
        assert_eq!(ended.code, Some(0), "{args:?}: {}", ended.stderr);
        let probe: Value = serde_json::from_str(&ended.stdout).unwrap();
        let [executor, placement] = ["executor", "placement"].map(|key| probe["model"][key].clone());
        (executor.as_str().unwrap().to_owned(), placement.as_str().map(str::to_owned))
    };
    let (executor, placement) = probe(&["--device", "emulated", "-ngl", "2"]);
    let placement = placement.unwrap();
    assert_eq!(executor, "cuda (forced)");
    assert!(placement.starts_with("layers 1-") && placement.contains("on the CPU, layers"), "{placement}");
    assert_eq!(probe(&["--gpu-layers", "0"]), ("cpu (forced)".to_owned(), None), "no GPU is opened");
    let ended = run(["probe", model, "--backend", "cuda", "--device", "emulated", "--gpu-memory", "1MiB"]);
    assert_ne!(ended.code, Some(0));
    for part in ["--gpu-memory allows 1024 KiB", "--gpu-layers", "--batch-tokens", "--backend cpu"] {
        assert!(ended.stderr.contains(part), "{:?} lacks {part:?}", ended.stderr);
    }
    let ended = run(["probe", model, "--backend", "cuda", "--gpu-layers", "most"]);
    assert!(ended.code == Some(2) && ended.stderr.contains("`most` is neither"), "{}", ended.stderr);
}

#[test]
fn without_a_gpu_the_backend_is_refused_with_the_reason() {
    if matches!(probe(), Driver::Present { devices, .. } if !devices.is_empty()) {
        println!("SKIP there is a GPU");
        return;
    }
    let Some(model) = support::fetch_model("smollm2") else { return };
    let ended = run(["generate", model.to_str().unwrap(), "-p", "x", "--backend", "cuda"]);
    assert_ne!(ended.code, Some(0));
    assert!(ended.stderr.contains("NVIDIA driver"), "{}", ended.stderr);
    let ended = run(["generate", model.to_str().unwrap(), "-p", "x", "--backend", "cuda", "--device", "first"]);
    assert_eq!(ended.code, Some(2));
    assert!(ended.stderr.contains("`first` is neither"), "{}", ended.stderr);
}
