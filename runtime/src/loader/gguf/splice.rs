//! Feeds a scanned header to the `gguf-rs` crate.
//!
//! `gguf-rs` 0.1.8 turns each array element into a JSON value with its number as text, which takes hundreds of
//! milliseconds for a vocabulary of 262 144 tokens, and it knows tensor types up to 39 only (it panics on 40). So it is
//! shown every array as empty (arrays are served from the mapping instead) and every tensor as F32 (sizes and types
//! come from our own table).

use std::io::Read;

use crate::loader::mmap::Bytes;

use super::scan::{Patch, Scan};

/// The header after the magic, with the scan's patches applied.
pub(super) struct SplicedHeader {
    file: Bytes,
    at: usize,
    end: usize,
    patches: std::vec::IntoIter<Patch>,
    next: Option<Patch>,
    /// Zeros still to be given out before going on at `at`.
    zeros: usize,
}

impl SplicedHeader {
    pub(super) fn new(file: &Bytes, scan: &Scan) -> Self {
        let mut patches = scan.patches.clone().into_iter();
        let next = patches.next();
        // 4: `gguf-rs` expects its reader after the magic.
        Self { file: file.clone(), at: 4, end: scan.header_end, patches, next, zeros: 0 }
    }
}

impl Read for SplicedHeader {
    fn read(&mut self, target: &mut [u8]) -> std::io::Result<usize> {
        if self.zeros == 0
            && let Some(patch) = self.next.take_if(|patch| patch.replaced.start == self.at)
        {
            self.zeros = patch.zeros;
            self.at = patch.replaced.end;
            self.next = self.patches.next();
        }
        if self.zeros > 0 {
            let count = self.zeros.min(target.len());
            target[..count].fill(0);
            self.zeros -= count;
            return Ok(count);
        }
        let end = self.next.as_ref().map_or(self.end, |patch| patch.replaced.start);
        let count = (end - self.at).min(target.len());
        target[..count].copy_from_slice(&self.file[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
