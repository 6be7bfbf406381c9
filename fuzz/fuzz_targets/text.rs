//! Any bytes as a GGUF file whose tokenizer and chat template are used: an error or an answer, in bounded time.

#![no_main]

#[path = "../../tests/support/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::text(bytes);
});
