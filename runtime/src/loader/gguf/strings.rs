//! An array of strings served from the mapping.

use std::sync::Arc;

use crate::loader::mmap::Bytes;

use super::scan::MARK_EVERY;

/// A GGUF array of strings, such as a vocabulary: a view over the mapping, nothing is copied. Elements need not be
/// UTF-8: tokens may be single bytes of a character.
#[derive(Debug, Clone)]
pub struct StringArray {
    /// The elements, each an 8-byte little-endian length and that many bytes; walked and checked by the scan.
    bytes: Bytes,
    len: usize,
    /// Where elements 0, 64, 128, … begin.
    marks: Arc<[usize]>,
}

impl StringArray {
    /// `bytes` and `marks` as the scan found them.
    pub(super) fn new(bytes: Bytes, len: usize, marks: Arc<[usize]>) -> Self {
        Self { bytes, len, marks }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Element `index`; `None` beyond the end. Walks at most 63 elements; use [`Self::iter`] for all of them.
    pub fn get(&self, index: usize) -> Option<&[u8]> {
        if index >= self.len {
            return None;
        }
        let mark = *self.marks.get(index / MARK_EVERY)?;
        Strings { bytes: self.bytes.get(mark..)?, left: self.len }.nth(index % MARK_EVERY)
    }

    /// All elements in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        Strings { bytes: &self.bytes, left: self.len }
    }
}

struct Strings<'a> {
    bytes: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Strings<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        if self.left == 0 {
            return None;
        }
        let (len, rest) = self.bytes.split_first_chunk::<8>()?;
        let len = usize::try_from(u64::from_le_bytes(*len)).ok()?;
        let (text, rest) = rest.split_at_checked(len)?;
        self.bytes = rest;
        self.left -= 1;
        Some(text)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Strings<'_> {}
