//! One sequence as the scheduler sees it: counters, blocks, and what its place in the queue depends on.

use crate::exec::OutputRows;
use crate::kv::{BlockTable, PrefixSpace};

use super::Piece;

/// A sequence. Ids grow with the time of submission and are never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// What a sequence's turn depends on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Class {
    /// Lower numbers go first, always.
    pub priority: i32,
    /// Whose it is: clients of the same priority take turns.
    pub client: u64,
}

/// A sequence that runs or waits.
#[derive(Debug)]
pub(super) struct Sequence {
    pub(super) id: SeqId,
    pub(super) class: Class,
    /// Where it looks for cached blocks and leaves its own; `None`: nowhere.
    pub(super) space: Option<PrefixSpace>,
    /// Counts admissions: of two with the same priority, the one that was admitted later gives way.
    pub(super) admission: u64,
    /// Tokens whose keys and values are in the cache.
    pub(super) num_computed: usize,
    /// Tokens known: the prompt and what was generated.
    pub(super) num_tokens: usize,
    /// Tokens after those that the engine has guessed for the next step.
    pub(super) num_guesses: usize,
    pub(super) table: BlockTable,
}

impl Sequence {
    pub(super) fn new(id: SeqId, num_tokens: usize, class: Class, space: Option<PrefixSpace>) -> Self {
        Self {
            id,
            class,
            space,
            admission: 0,
            num_computed: 0,
            num_tokens,
            num_guesses: 0,
            table: BlockTable::default(),
        }
    }

    /// Running sequences are sorted by it: the last one gives way first.
    pub(super) fn rank(&self) -> (i32, u64) {
        (self.class.priority, self.admission)
    }

    /// The next `len` tokens as work of a step, and so many guesses, which only a single token may have.
    pub(super) fn piece(&self, len: usize, num_guesses: usize) -> Piece {
        let output = match self.num_computed + len == self.num_tokens {
            true if num_guesses > 0 => OutputRows::All,
            true => OutputRows::Last,
            false => OutputRows::None,
        };
        Piece { id: self.id, start: self.num_computed, len, num_tokens: self.num_tokens, num_guesses, output }
    }

    /// Only its last token isn't computed.
    pub(super) fn decodes(&self) -> bool {
        self.num_computed + 1 == self.num_tokens
    }
}
