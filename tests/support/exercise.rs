//! What a parser has to survive: bytes in, either an error that a person can read or a file whose every part can be
//! touched. The fuzz targets and the hostile tests share it.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its own part, as a private module")]

use std::hint::black_box;

use shimmy_runtime::Error;
use shimmy_runtime::loader::{GgufMetadata, HfMetadata, Metadata, ModelFile};
use shimmy_runtime::text::{AddSpecial, ChatTemplate, GenerationPrompt, ParseSpecial, Tokenizer};

/// Parses a whole GGUF file and touches what came out; the error's message.
pub fn gguf(bytes: &[u8]) -> Result<(), String> {
    check(ModelFile::from_gguf_bytes(bytes.to_vec()))
}

/// Parses a whole safetensors file and touches what came out; the error's message.
pub fn safetensors(bytes: &[u8]) -> Result<(), String> {
    check(ModelFile::from_safetensors_bytes(bytes.to_vec(), HfMetadata::default()))
}

/// Touches what came out of any way to open a model; the error's message.
pub fn check(opened: Result<ModelFile, Error>) -> Result<(), String> {
    let file = match opened {
        Ok(file) => file,
        Err(error) => {
            let message = error.to_string();
            assert!(!message.is_empty() && message.chars().count() < 2000, "{message}");
            assert!(!message.chars().any(|c| c.is_control()), "raw control characters: {message:?}");
            return Err(message);
        }
    };
    for (name, view) in file.tensors() {
        // An oracle of its own: elements over block length, times block size.
        let elements: u128 = view.shape.iter().map(|&axis| axis as u128).product();
        let blocks = elements / view.dtype.block_len() as u128;
        assert_eq!(elements % view.dtype.block_len() as u128, 0, "{name}");
        assert_eq!(blocks * view.dtype.block_bytes() as u128, view.data.len() as u128, "{name}");
        black_box((view.data.first(), view.data.last()));
    }
    if let Metadata::Gguf(metadata) = &file.metadata {
        touch(metadata);
    }
    Ok(())
}

/// Builds the tokenizer and the chat template of a GGUF file and uses them; the error's message.
pub fn text(bytes: &[u8]) -> Result<(), String> {
    let message = |error: Error| error.to_string();
    let file = ModelFile::from_gguf_bytes(bytes.to_vec()).map_err(message)?;
    let tokenizer = Tokenizer::for_model(&file).map_err(message)?;
    for id in 0..tokenizer.vocab_size() as u32 + 2 {
        black_box((tokenizer.token_bytes(id), tokenizer.is_control(id)));
        if let Some(text) = tokenizer.token_text(id) {
            black_box(tokenizer.token_id(&text));
        }
    }
    for id in tokenizer.end_of_generation().iter().copied().chain(tokenizer.bos()).chain(tokenizer.eos()) {
        assert!((id as usize) < tokenizer.vocab_size(), "{id}");
    }
    let said = "Hi  there,\n\tI'll be 1234\u{e9}\u{1f642}<|im_end|></s>\u{2581}";
    for (add, parse) in [(AddSpecial::Yes, ParseSpecial::Yes), (AddSpecial::No, ParseSpecial::No)] {
        if let Ok(ids) = tokenizer.encode(said, add, parse) {
            assert!(ids.iter().all(|&id| (id as usize) < tokenizer.vocab_size()), "{ids:?}");
            black_box(tokenizer.decode(&ids));
        }
    }
    if let Some(template) = ChatTemplate::for_model(&file, &tokenizer).map_err(message)? {
        let messages = serde_json::json!([{"role": "user", "content": said}]);
        let extra = serde_json::Map::new();
        black_box(template.render(&messages, None, GenerationPrompt::Yes, &extra)).map_err(message)?;
    }
    Ok(())
}

fn touch(metadata: &GgufMetadata) {
    for key in metadata.keys() {
        black_box((metadata.str(key).ok(), metadata.usize(key).ok(), metadata.i64(key).ok(), metadata.f32(key).ok()));
        black_box((metadata.bool(key).ok(), metadata.usizes(key).ok(), metadata.i64s(key).ok()));
        black_box((metadata.f32s(key).ok(), metadata.bools(key).ok()));
        if let Ok(Some(strings)) = metadata.strings(key) {
            let bytes: usize = strings.iter().map(<[u8]>::len).sum();
            let last = strings.len().checked_sub(1).and_then(|last| strings.get(last));
            assert_eq!(strings.iter().last(), last, "{key}");
            assert_eq!(strings.get(strings.len()), None, "{key}");
            black_box(bytes);
        }
    }
    black_box(serde_json::Value::from(metadata.to_json(4)).to_string());
}
