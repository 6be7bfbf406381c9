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
