//! Paths that lead to something else than a sound model.

use std::path::Path;

use shimmy_runtime::loader::ModelFile;
use tempfile::TempDir;

use super::exercise;
use super::gguf_writer::{GgufWriter, value_type};
use super::{alloc, allowed_bytes};

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        std::fs::write(folder.path().join(name), bytes).unwrap();
    }
    folder
}

fn claims(path: &Path, expected: &str) {
    let (result, peak) = alloc::peak(|| exercise::check(ModelFile::open(path)));
    let message = result.expect_err(expected);
    assert!(message.contains(expected), "expected {expected:?} in {message:?}");
    assert!(peak <= allowed_bytes(1 << 14), "{peak} bytes allocated: {message}");
}

const INDEX: &str = "model.safetensors.index.json";

#[test]
fn indexes_that_lie() {
    let open = |index: &[u8], expected: &str| {
        let folder = folder(&[("config.json", b"{}"), (INDEX, index)]);
        claims(folder.path(), expected);
    };
    open(b"", "it is not JSON");
    open(b"\xff", "it is not UTF-8");
    open(b"[]", "it is not a JSON object");
    open(b"{}", "it has no `weight_map` object");
    open(br#"{"weight_map":[]}"#, "it has no `weight_map` object");
    open(br#"{"weight_map":{"a":1}}"#, "it must be a file name");
    open(br#"{"weight_map":{"a":"../../etc/passwd"}}"#, "it must be a file name");
    open(br#"{"weight_map":{"a":"/etc/passwd"}}"#, "it must be a file name");
    open(br#"{"weight_map":{"a":"gone.safetensors"}}"#, "gone.safetensors, which is missing");
    open(br#"{"weight_map":{"a":"config.json"}}"#, "truncated or damaged");
    open(&br#"{"a":"#.repeat(10_000), "it is not JSON");
}

#[test]
fn side_files_that_lie() {
    let sound = br#"{"t":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    let weights = [&(sound.len() as u64).to_le_bytes()[..], sound, &[0; 4]].concat();
    for (name, bytes, expected) in [
        ("config.json", &b"{"[..], "it is not JSON"),
        ("config.json", b"7", "it is not a JSON object"),
        ("config.json", b"\xff\xfe", "it is not UTF-8"),
        ("generation_config.json", b"null", "it is not a JSON object"),
        ("tokenizer_config.json", b"{\"a\":", "it is not JSON"),
        ("chat_template.jinja", b"\xc3\x28", "it is not UTF-8"),
    ] {
        let folder = folder(&[("config.json", b"{}"), ("model.safetensors", &weights), (name, bytes)]);
        claims(folder.path(), expected);
        claims(folder.path(), name);
    }
}

#[test]
fn a_side_file_of_gigabytes_is_not_read() {
    let folder = folder(&[("config.json", b"{}"), ("model.safetensors", b"")]);
    let config = std::fs::OpenOptions::new().write(true).open(folder.path().join("config.json")).unwrap();
    config.set_len(8 << 30).unwrap();
    claims(folder.path(), "it has 8589934592 bytes");
}

#[test]
fn splits_that_lie() {
    let part = |key: &str, value: &[u8], kind| GgufWriter::new().pair(key, kind, value).build();
    let count = |count: u16| part("split.count", &count.to_le_bytes(), value_type::U16);
    let open = |name: &str, bytes: &[u8], expected: &str| {
        let folder = folder(&[(name, bytes)]);
        claims(&folder.path().join(name), expected);
    };
    open("m.gguf", &count(3), "its name does not end in -00001-of-00003.gguf");
    open("m-00001-of-00002.gguf", &count(3), "its name says 2 parts, but its `split.count` is 3");
    open("m-00001-of-00003.gguf", &count(3), "its `split.no` is missing; its name asks for 0");
    open("m-00004-of-00003.gguf", &count(3), "part 1 of 3 is missing");
    open("m-00001-of-60000.gguf", &count(60_000), "`split.count` is 60000");
    let negative = part("split.count", &(-1_i32).to_le_bytes(), value_type::I32);
    open("m.gguf", &negative, "metadata key `split.count`: expected an integer from 0, got the i32 -1");
    let huge = part("split.count", &u64::MAX.to_le_bytes(), value_type::U64);
    open("m-00001-of-00002.gguf", &huge, "`split.count` is 18446744073709551615");
}

#[test]
fn things_that_are_no_files() {
    let folder = tempfile::tempdir().unwrap();
    claims(folder.path(), "it holds no model");
    claims(&folder.path().join("absent.gguf"), "No such file");
    let pipe = folder.path().join("pipe.gguf");
    let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
    assert!(made.success());
    claims(&pipe, "neither a regular file nor a folder");
    let dangling = folder.path().join("dangling.gguf");
    std::os::unix::fs::symlink("nowhere", &dangling).unwrap();
    claims(&dangling, "No such file");
}
