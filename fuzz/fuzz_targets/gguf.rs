//! Any bytes as a whole GGUF file: an error or a file whose every part can be touched.

#![no_main]

#[path = "../../tests/support/exercise.rs"]
mod exercise;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = exercise::gguf(bytes);
});
