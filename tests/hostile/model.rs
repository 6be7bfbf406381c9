//! Files whose structure is sound and whose numbers lie: the architecture, the tokenizer and the template have to
//! refuse them as politely as the loader does.

use std::path::{Path, PathBuf};

use serde_json::Value;
use shimmy_runtime::arch;
use shimmy_runtime::loader::{HfMetadata, ModelFile};
use shimmy_runtime::plan::OutputKind;
use shimmy_runtime::text::{AddSpecial, ChatTemplate, ParseSpecial, Tokenizer};

use super::support::goldens;
use super::{Random, survives};

/// From bytes to a plan, a tokenizer and a template, as loading a model does before any tensor is read.
fn load(opened: Result<ModelFile, shimmy_runtime::Error>) -> Result<(), String> {
    let text = |error: shimmy_runtime::Error| error.to_string();
    let file = opened.map_err(text)?;
    let planned = arch::load(&file, OutputKind::Logits).map(|_| ());
    let spoken = Tokenizer::for_model(&file).and_then(|tokenizer| ChatTemplate::for_model(&file, &tokenizer));
    planned.and(spoken.map(|_| ())).map_err(text)
}

fn model(goldens: &Path, family: &str) -> PathBuf {
    let mut folders: Vec<_> = std::fs::read_dir(goldens.join("models")).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with(family);
    folders.into_iter().find(name).unwrap()
}

#[test]
fn gguf_headers_with_flipped_bits() {
    let Some(goldens) = goldens() else { return };
    for (seed, family) in [(3, "llama-gqa"), (4, "gemma3")] {
        let folder = model(&goldens, family);
        let path = ["model-f32.gguf", "model-f16.gguf"].map(|name| folder.join(name)).into_iter().find(|p| p.is_file());
        let whole = std::fs::read(path.unwrap()).unwrap();
        let load = |bytes: &[u8]| load(ModelFile::from_gguf_bytes(bytes.to_vec()));
        assert_eq!(survives(&whole, load), Ok(()), "{family} as it is");

        // The keys that architectures read lie before the vocabulary, the directory of tensors ends the header.
        let find = |needle: &[u8]| whole.windows(needle.len()).position(|window| window == needle).unwrap();
        let keys = 24..find(b"tokenizer.ggml.tokens");
        let directory = find(b"blk.0.")..find(b"blk.0.") + 2000;
        let mut random = Random(seed);
        for round in 0..3000 {
            let range = if round % 4 == 0 { directory.clone() } else { keys.clone() };
            let mut damaged = whole.clone();
            for _ in 0..=random.below(3) {
                damaged[range.start + random.below(range.len())] ^= 1 << random.below(8);
            }
            let _ = survives(&damaged, load);
        }
    }
}

#[test]
fn tokenizers_with_flipped_bits() {
    let Some(goldens) = goldens() else { return };
    let folder = model(&goldens, "llama-gqa");
    let whole = std::fs::read(folder.join("model-f32.gguf")).unwrap();
    let find = |needle: &[u8]| whole.windows(needle.len()).position(|window| window == needle).unwrap();
    // Tokens, types, merges, special ids and the template; the directory of tensors comes after them.
    let range = find(b"tokenizer.ggml.model")..find(b"token_embd.weight");
    let tokenizer = |bytes: &[u8]| -> Result<(), String> {
        let file = ModelFile::from_gguf_bytes(bytes.to_vec()).map_err(|error| error.to_string())?;
        let tokenizer = Tokenizer::for_model(&file).map_err(|error| error.to_string())?;
        let ids = tokenizer.encode("Hello wörld, 1234!\n", AddSpecial::Yes, ParseSpecial::Yes);
        ids.map(|ids| drop(tokenizer.decode(&ids))).map_err(|error| error.to_string())
    };
    assert_eq!(survives(&whole, tokenizer), Ok(()));
    let mut random = Random(5);
    for _ in 0..2000 {
        let mut damaged = whole.clone();
        for _ in 0..=random.below(3) {
            damaged[range.start + random.below(range.len())] ^= 1 << random.below(8);
        }
        let _ = survives(&damaged, tokenizer);
    }
}

/// Every number, bool and text of a JSON tree, as a path of keys and indices.
fn leaves(value: &Value, path: &mut Vec<String>, found: &mut Vec<Vec<String>>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                path.push(key.clone());
                leaves(value, path, found);
                path.pop();
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                path.push(index.to_string());
                leaves(value, path, found);
                path.pop();
            }
        }
        _ => found.push(path.clone()),
    }
}

#[test]
fn configs_with_absurd_values() {
    let Some(goldens) = goldens() else { return };
    let extremes: Vec<Value> = serde_json::from_str(
        r#"[null, true, 0, 1, -1, 3, 1e-30, 1e30, 2147483648, 4294967296, 9223372036854775807, 18446744073709551615, "", "x",
           [], {}, [0]]"#,
    )
    .unwrap();
    for family in ["llama-gqa", "llama-yarn", "mistral", "qwen2-tied", "qwen3-tied", "gemma3"] {
        let folder = model(&goldens, family);
        let metadata = HfMetadata::read(&folder).unwrap();
        assert!(ModelFile::open(&folder).and_then(|file| arch::load(&file, OutputKind::Logits)).is_ok(), "{family}");
        let weights = folder.join("model.safetensors");
        // A sharded model is one tensor set as well, but its numbers are what is tested here: its first shard will do.
        let weights = if weights.is_file() { weights } else { folder.join("model-00001-of-00003.safetensors") };
        let weights = std::fs::read(weights).unwrap();
        let mut paths = Vec::new();
        leaves(&metadata.config, &mut Vec::new(), &mut paths);
        for path in paths {
            for extreme in &extremes {
                let mut metadata = metadata.clone();
                let pointer = format!("/{}", path.join("/"));
                *metadata.config.pointer_mut(&pointer).unwrap() = extreme.clone();
                let result = survives(&weights, |bytes| {
                    let file = ModelFile::from_safetensors_bytes(bytes.to_vec(), metadata.clone());
                    let file = file.map_err(|error| error.to_string())?;
                    arch::load(&file, OutputKind::Logits).map(|_| ()).map_err(|error| error.to_string())
                });
                if let Err(message) = result {
                    assert!(!message.is_empty(), "{family}: {pointer} = {extreme}");
                }
            }
        }
    }
}
