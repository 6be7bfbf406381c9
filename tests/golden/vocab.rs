//! Tokenizers against the ids that llama.cpp and Hugging Face give for the same texts.

use std::path::{Path, PathBuf};

use shimmy_runtime::Error;
use shimmy_runtime::loader::{Metadata, ModelFile};
use shimmy_runtime::text::{AddSpecial, ChatTemplate, GenerationPrompt, ParseSpecial, Tokenizer};

use crate::support::goldens;

/// The files of `folder` whose names end in `suffix`, sorted.
fn files(folder: &Path, suffix: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.to_string_lossy().ends_with(suffix))
        .collect();
    files.sort();
    files
}

/// The tokenizer, or `None` after a `SKIP` line when this build doesn't support its kind.
fn supported(name: &str, tokenizer: Result<Tokenizer, Error>) -> Option<Tokenizer> {
    match tokenizer {
        Err(Error::Unsupported(why)) => {
            println!("SKIP {name}: {why}");
            None
        }
        tokenizer => Some(tokenizer.unwrap_or_else(|error| panic!("{name}: {error}"))),
    }
}

#[test]
fn vocabularies() {
    let Some(goldens) = goldens() else { return };
    let mut num_cases = 0;
    let mut mismatches = Vec::new();
    for path in files(&goldens.join("vocab"), ".gguf") {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let read = |suffix: &str| std::fs::read_to_string(format!("{}{suffix}", path.display())).unwrap();
        let (texts, ids) = (read(".inp"), read(".out"));
        let file = ModelFile::open(&path).unwrap_or_else(|error| panic!("{name}: {error}"));
        let Some(tokenizer) = supported(&name, Tokenizer::for_model(&file)) else { continue };
        // Each text is followed by the separator, the last one too.
        let separator = "\n__ggml_vocab_test__\n";
        let texts: Vec<&str> = texts.strip_suffix(separator).unwrap().split(separator).collect();
        let ids: Vec<&str> = ids.lines().collect();
        assert_eq!(texts.len(), ids.len(), "{name}: the two files have different numbers of cases");
        for (text, ids) in texts.iter().zip(ids) {
            let expected: Vec<u32> = ids.split_whitespace().map(|id| id.parse().unwrap()).collect();
            let got = tokenizer.encode(text, AddSpecial::No, ParseSpecial::No).unwrap();
            num_cases += 1;
            if got != expected {
                mismatches.push(format!("{name}: {text:?}\n  expected {expected:?}\n  got      {got:?}"));
            }
            let decoded = tokenizer.decode(&got);
            if decoded != *text {
                mismatches.push(format!("{name}: {text:?} decodes to {decoded:?}"));
            }
        }
    }
    assert!(mismatches.is_empty(), "{} of {num_cases} cases:\n{}", mismatches.len(), mismatches.join("\n"));
    assert!(num_cases > 0, "no vocabularies in the goldens");
}

#[test]
fn texts_of_the_tiny_models() {
    let Some(goldens) = goldens() else { return };
    let models = goldens.join("models");
    let cases: serde_json::Value =
        serde_json::from_slice(&std::fs::read(models.join("tokenizer_cases.json")).unwrap()).unwrap();
    let mut num_tokenizers = 0;
    for folder in files(&models, "").into_iter().filter(|path| path.is_dir()) {
        let sources = files(&folder, ".gguf").into_iter().chain([folder.clone()]);
        for path in sources {
            let name = path.strip_prefix(&models).unwrap().display().to_string();
            let file = match ModelFile::open(&path) {
                Err(Error::Unsupported(why)) => {
                    println!("SKIP {name}: {why}");
                    continue;
                }
                file => file.unwrap_or_else(|error| panic!("{name}: {error}")),
            };
            let Some(tokenizer) = supported(&name, Tokenizer::for_model(&file)) else { continue };
            check_tiny(&name, &tokenizer, &file, &cases);
            num_tokenizers += 1;
        }
    }
    assert!(num_tokenizers > 0, "no tokenizers in the goldens");
}

fn check_tiny(name: &str, tokenizer: &Tokenizer, file: &ModelFile, cases: &serde_json::Value) {
    let ids = |value: &serde_json::Value| -> Vec<u32> {
        value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
    };
    for case in cases["cases"].as_array().unwrap() {
        let text = case["text"].as_str().unwrap();
        let got = tokenizer.encode(text, AddSpecial::Yes, ParseSpecial::Yes).unwrap();
        assert_eq!(got, ids(&case["ids"]), "{name}: {text:?}");
        assert_eq!(tokenizer.decode(&got), case["decoded_skip_special"].as_str().unwrap(), "{name}: {text:?}");
    }
    assert_eq!(tokenizer.vocab_size(), 512, "{name}");
    assert_eq!(tokenizer.token_id("<|im_end|>"), Some(2), "{name}");
    assert_eq!(tokenizer.token_text(2).as_deref(), Some("<|im_end|>"), "{name}");
    assert!(tokenizer.is_control(2) && tokenizer.token_bytes(2).is_empty(), "{name}");
    assert!(tokenizer.end_of_generation().contains(&2), "{name}: {:?}", tokenizer.end_of_generation());

    let template = ChatTemplate::for_model(file, tokenizer).unwrap();
    if let Metadata::Hf(_) = &file.metadata {
        assert!(template.is_some(), "{name}: tokenizer_config.json has a chat template");
    }
    if let Some(template) = template {
        let chat = &cases["chat"];
        let text = template.render(&chat["messages"], None, GenerationPrompt::Yes, &serde_json::Map::new()).unwrap();
        assert_eq!(text, chat["text"].as_str().unwrap(), "{name}");
        let got = tokenizer.encode(&text, AddSpecial::No, ParseSpecial::Yes).unwrap();
        assert_eq!(got, ids(&chat["ids"]), "{name}");
    }
}
