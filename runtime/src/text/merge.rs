//! Merging neighbours until none can be merged: the one algorithm behind byte-pair encoding (the order is a merge's
//! rank) and SentencePiece's (the order is the merged token's score). Short pieces are scanned, which is quickest for
//! words; long ones go through a heap over a linked list, so that the time grows with n log n.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// A run of bytes on its way to becoming a token.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Symbol {
    /// First byte in the piece.
    pub(crate) start: u32,
    /// Length in bytes.
    pub(crate) len: u32,
    /// The token that stands for it, [`super::vocab::NO_TOKEN`] if none does.
    pub(crate) id: u32,
}

/// Which neighbours may merge.
pub(crate) trait Merges {
    /// The order of merging `left` with `right`, smaller first, and the token that results.
    fn merge(&self, piece: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)>;
}

/// Buffers that are reused from piece to piece.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    /// The symbols of the piece: put in before [`Scratch::merge`], taken out afterwards.
    pub(crate) symbols: Vec<Symbol>,
    /// Order and result of merging symbol `i` with the next.
    pairs: Vec<(u32, u32)>,
    /// Index of the symbol before and after, for the heap; [`END`] at the ends.
    links: Vec<(u32, u32)>,
    heap: BinaryHeap<Reverse<Candidate>>,
}

/// (order, left symbol, right symbol, length of both, result): equal orders merge from the left.
type Candidate = (u32, u32, u32, u32, u32);

const END: u32 = u32::MAX;
/// The order of a pair that can't merge.
const NEVER: u32 = u32::MAX;
/// Up to this many symbols scanning beats the heap.
const SCAN_LIMIT: usize = 48;

impl Scratch {
    /// Merges the symbols of `piece` until nothing can be merged.
    pub(crate) fn merge(&mut self, piece: &[u8], merges: &impl Merges) {
        if self.symbols.len() <= SCAN_LIMIT { self.scan(piece, merges) } else { self.queue(piece, merges) }
    }

    fn scan(&mut self, piece: &[u8], merges: &impl Merges) {
        let symbols = &mut self.symbols;
        let order = |left, right| merges.merge(piece, left, right).unwrap_or((NEVER, 0));
        self.pairs.clear();
        self.pairs.extend(symbols.windows(2).map(|pair| order(pair[0], pair[1])));
        loop {
            let mut best = (NEVER, 0);
            for (at, pair) in self.pairs.iter().enumerate() {
                if pair.0 < best.0 {
                    best = (pair.0, at);
                }
            }
            if best.0 == NEVER {
                return;
            }
            let at = best.1;
            symbols[at].id = self.pairs[at].1;
            symbols[at].len += symbols[at + 1].len;
            symbols.remove(at + 1);
            self.pairs.remove(at);
            if at < self.pairs.len() {
                self.pairs[at] = order(symbols[at], symbols[at + 1]);
            }
            if at > 0 {
                self.pairs[at - 1] = order(symbols[at - 1], symbols[at]);
            }
        }
    }

    fn queue(&mut self, piece: &[u8], merges: &impl Merges) {
        let (symbols, links, heap) = (&mut self.symbols, &mut self.links, &mut self.heap);
        let count = symbols.len() as u32;
        links.clear();
        links
            .extend((0..count).map(|at| (at.checked_sub(1).unwrap_or(END), if at + 1 < count { at + 1 } else { END })));
        heap.clear();
        let candidate = |symbols: &[Symbol], left: u32, right: u32| {
            let (a, b) = (symbols[left as usize], symbols[right as usize]);
            let (order, id) = merges.merge(piece, a, b)?;
            Some(Reverse((order, left, right, a.len + b.len, id)))
        };
        heap.extend((1..count).filter_map(|right| candidate(symbols, right - 1, right)));
        while let Some(Reverse((_, left, right, len, id))) = heap.pop() {
            let (a, b) = (symbols[left as usize], symbols[right as usize]);
            // Symbols only grow: the pair is the one that was queued if both live, still meet, and are as long.
            if a.len == 0 || b.len == 0 || links[left as usize].1 != right || a.len + b.len != len {
                continue;
            }
            let (before, after) = (links[left as usize].0, links[right as usize].1);
            symbols[left as usize] = Symbol { start: a.start, len, id };
            symbols[right as usize].len = 0;
            links[left as usize].1 = after;
            if after != END {
                links[after as usize].0 = left;
                heap.extend(candidate(symbols, left, after));
            }
            if before != END {
                heap.extend(candidate(symbols, before, left));
            }
        }
        symbols.retain(|symbol| symbol.len > 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    struct Ranks(HashMap<Vec<u8>, u32>);

    impl Merges for Ranks {
        fn merge(&self, piece: &[u8], left: Symbol, right: Symbol) -> Option<(u32, u32)> {
            let text = &piece[left.start as usize..(right.start + right.len) as usize];
            self.0.get(text).map(|&rank| (rank, rank))
        }
    }

    fn merged(piece: &[u8], run: impl Fn(&mut Scratch)) -> Vec<(u32, u32)> {
        let mut scratch = Scratch::default();
        scratch.symbols.extend((0..piece.len() as u32).map(|start| Symbol { start, len: 1, id: 0 }));
        run(&mut scratch);
        scratch.symbols.iter().map(|symbol| (symbol.start, symbol.len)).collect()
    }

    proptest! {
        #[test]
        fn heap_equals_scan(
            piece in "[ab]{0,60}",
            words in prop::collection::vec("[ab]{2,5}", 0..12),
        ) {
            let ranks = Ranks(words.iter().enumerate().map(|(rank, word)| (word.clone().into_bytes(), rank as u32)).collect());
            let piece = piece.as_bytes();
            let scanned = merged(piece, |scratch| scratch.scan(piece, &ranks));
            let queued = merged(piece, |scratch| scratch.queue(piece, &ranks));
            prop_assert_eq!(scanned, queued);
        }
    }
}
