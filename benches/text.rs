//! Tokenizers and chat templates: time to construct, bytes a second to encode, time to render.
//!
//! Vocabularies come from the goldens folder and from the models that `scripts/fetch-model` has put into the cache;
//! what isn't there is left out. Every encoding is checked before it is timed: its bytes are the text again.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench stops at the first fault and reports on stdout")]

use std::hint::black_box;
use std::path::PathBuf;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use shimmy_runtime::loader::ModelFile;
use shimmy_runtime::text::{AddSpecial, ChatTemplate, GenerationPrompt, ParseSpecial, Tokenizer};

#[path = "../tests/support/mod.rs"]
mod support;

/// Prose and code: what prompts are made of.
const SOURCES: &[&str] = &[
    include_str!("../runtime/src/text/tokenizer.rs"),
    include_str!("../runtime/src/text/bpe.rs"),
    include_str!("../runtime/src/text/template.rs"),
    include_str!("../runtime/src/error.rs"),
];

fn vocabularies() -> Vec<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")))
        .map(|cache| cache.join("shimmy/models"));
    let folders = [support::goldens().map(|goldens| goldens.join("vocab")), cache];
    let entries = folders.into_iter().flatten().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    let mut files: Vec<PathBuf> = entries
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"))
        .collect();
    files.sort();
    files
}

fn tokenizers(criterion: &mut Criterion) {
    // SentencePiece reads ▁ as a space: without it every vocabulary gives the text back.
    let text = SOURCES.concat().replace('\u{2581}', "_");
    for path in vocabularies() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let file = ModelFile::open(&path).unwrap();
        let Ok(tokenizer) = Tokenizer::for_model(&file) else {
            println!("SKIP {name}: not supported");
            continue;
        };
        criterion.bench_function(&format!("construct/{name}"), |bencher| {
            bencher.iter(|| Tokenizer::for_model(black_box(&file)).unwrap());
        });
        let encode = |text: &str| tokenizer.encode(text, AddSpecial::No, ParseSpecial::No).unwrap();
        assert!(tokenizer.decode(&encode(&text)) == text, "{name} doesn't give the text back");
        let mut group = criterion.benchmark_group("encode");
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(&name, |bencher| bencher.iter(|| encode(black_box(&text))));
        group.finish();
    }
}

fn templates(criterion: &mut Criterion) {
    let Some(goldens) = support::goldens() else { return };
    let turn = |at: usize| {
        let role = if at % 2 == 0 { "user" } else { "assistant" };
        serde_json::json!({"role": role, "content": SOURCES[3][at * 7 % 100..].get(..400).unwrap_or_default()})
    };
    let messages: serde_json::Value = (0..41).map(turn).collect();
    for name in ["Qwen-Qwen2.5-7B-Instruct", "meta-llama-Llama-3.3-70B-Instruct", "openai-gpt-oss-120b"] {
        let path = goldens.join(format!("templates/{name}.jinja"));
        let Ok(source) = std::fs::read_to_string(&path) else {
            println!("SKIP {name}: not in the goldens");
            continue;
        };
        let template = ChatTemplate::from_source(source, "<s>", "</s>").unwrap();
        let render = || template.render(&messages, None, GenerationPrompt::Yes, &serde_json::Map::new()).unwrap();
        assert!(render().len() > 41 * 400, "{name}");
        criterion.bench_function(&format!("render/{name}"), |bencher| bencher.iter(render));
    }
}

criterion_group!(text, tokenizers, templates);
criterion_main!(text);
