//! The real program on damaged files: exit code 2, the reason on stderr, nothing on stdout.

use std::path::Path;
use std::process::{Command, Output};

use super::gguf_writer::{GgufWriter, value_type};

fn run(arguments: &[&str], path: &Path) -> Output {
    // Its own cache and no colours, so that nothing of this machine shows.
    let home = tempfile::tempdir().unwrap();
    Command::new(env!("CARGO_BIN_EXE_shimmy"))
        .args(arguments)
        .arg(path)
        .env("HOME", home.path())
        .env("SHIMMY_CACHE", home.path().join("cache"))
        .env("NO_COLOR", "1")
        .output()
        .unwrap()
}

fn refuses(arguments: &[&str], name: &str, bytes: &[u8], expected: &str) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    let output = run(arguments, &path);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?} {expected}: {stderr}");
    assert!(stderr.contains(expected), "expected {expected:?} in {stderr:?}");
    assert!(stderr.contains(name), "the file is not named: {stderr:?}");
    assert!(!stderr.contains("panicked"), "{stderr}");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
}

fn sound() -> GgufWriter {
    GgufWriter::new().str("general.architecture", "llama").tensor_f32("token_embd.weight", &[2, 32], &[0.0; 64])
}

#[test]
fn inspect_names_what_is_wrong() {
    let mut overlapping = sound().tensor_f32("b", &[8], &[0.0; 8]);
    overlapping.tensors[1].offset = Some(0);
    let mut outside = sound();
    outside.tensors[0].offset = Some(1 << 40);
    let whole = sound().build();
    let cases: [(&[u8], &str); 11] = [
        (&GgufWriter { num_tensors: Some(1 << 60), ..sound() }.build(), "number of tensors is 1152921504606846976"),
        (&overlapping.build(), "overlap"),
        (&outside.build(), "ends beyond the file"),
        (
            &sound().array("k", value_type::F32, 1_000_000_000, &[0; 64]).build(),
            "elements of metadata key `k` is 1000000000",
        ),
        (&sound().pair(b"\xff\xfe", value_type::U8, [0]).build(), "is not UTF-8"),
        (&sound().tensor("n", &[u64::MAX], 0, vec![]).build(), "tensor `n`"),
        (&whole[..whole.len() - 1], "truncated"),
        (&whole[..40], "truncated"),
        (b"", "the file is empty"),
        (b"<!doctype html><title>Sign in</title>", "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
    ];
    for (bytes, expected) in cases {
        refuses(&["inspect"], "model.gguf", bytes, expected);
    }
}

#[test]
fn every_command_that_opens_a_model_refuses_it_the_same_way() {
    let bytes = GgufWriter { num_tensors: Some(1 << 60), ..sound() }.build();
    refuses(&["inspect", "--json"], "model.gguf", &bytes, "number of tensors is");
    refuses(&["inspect", "--plan"], "model.gguf", &bytes, "number of tensors is");
    refuses(&["generate", "--prompt", "x"], "model.gguf", &bytes, "number of tensors is");
}
