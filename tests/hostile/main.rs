//! Damaged and hostile model files: an error that names what is wrong, never a panic, never a large allocation.
//!
//! `gguf` and `safetensors` drive the loader, `files` the ways to open a path, `model` what comes after the loader, `binary` the
//! real program. The fuzz
//! targets in `fuzz/` call the same entry points (`tests/support/exercise.rs`).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout, reason = "tests")]

mod alloc;
mod binary;
mod files;
mod gguf;
mod model;
mod safetensors;
mod text;

#[path = "../support/exercise.rs"]
mod exercise;
#[path = "../support/gguf_writer.rs"]
mod gguf_writer;
#[path = "../support/mod.rs"]
mod support;

/// What parsing `len` bytes of input may allocate at the same time. The metadata tree takes some tens of bytes for
/// each byte of the smallest records; the rest is for the test itself.
fn allowed_bytes(len: usize) -> usize {
    (1 << 20) + 64 * len
}

/// Runs a parser on bytes that may be anything; checks what it allocated.
fn survives(bytes: &[u8], parse: impl Fn(&[u8]) -> Result<(), String>) -> Result<(), String> {
    let (result, peak) = alloc::peak(|| parse(bytes));
    let allowed = allowed_bytes(bytes.len());
    assert!(peak <= allowed, "{peak} bytes allocated for an input of {} ({result:?})", bytes.len());
    result
}

/// Runs a parser on bytes that must be refused with a message that contains `expected`.
fn refused(what: &str, bytes: &[u8], expected: &str, parse: impl Fn(&[u8]) -> Result<(), String>) {
    match survives(bytes, parse) {
        Err(message) => assert!(message.contains(expected), "{what}: expected {expected:?} in {message:?}"),
        Ok(()) => panic!("{what}: accepted"),
    }
}

/// A splitmix64: enough for choosing bits, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: usize) -> usize {
        (self.next() % limit as u64) as usize
    }
}
