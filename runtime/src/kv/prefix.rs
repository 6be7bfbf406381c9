//! The prefix cache: which blocks hold the keys and values of which tokens, and after which blocks.
//!
//! A block whose tokens are all computed becomes a node of a forest: its parent is the block before it in the sequence.
//! It is found by a hash chained over its parent's hash and its own tokens. On a hit the parent and the tokens themselves
//! are compared, so a collision is a miss and never another text's cache.

use std::collections::{HashMap, HashSet, VecDeque};

use super::{BLOCK_TOKENS, NO_BLOCK};

/// The tokens of a full block.
pub type Tokens = [u32; BLOCK_TOKENS];

/// Chains that never meet: the same tokens in two spaces are two blocks. Sequences whose cache must be exactly
/// reproducible don't share with those whose cache depends on who was in the batch.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct PrefixSpace(pub u32);

/// Why no more of a prompt was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PrefixMiss {
    /// The cache is off for this server, this request or this model.
    Disabled,
    /// The prompt fills no block before its last token.
    TooShort,
    /// The next block was never computed, or too long ago to be remembered.
    NoMatch,
    /// The next block was cached and had to make room.
    Evicted,
}

/// The longest cached chain of a prompt. Holds only until the pool changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prefix {
    /// Blocks in the order of the tokens; each is full.
    pub(super) blocks: Vec<u32>,
    /// The same of the window's pool, as far as the next token needs them; holes before. Empty where there is no such pool.
    pub(super) window: Vec<u32>,
    /// Why the chain ends before the prompt does; `None`: everything that can be reused was found.
    pub miss: Option<PrefixMiss>,
}

impl Prefix {
    /// Nothing, and why.
    pub fn none(miss: PrefixMiss) -> Self {
        Self::of(Vec::new(), Some(miss))
    }

    fn of(blocks: Vec<u32>, miss: Option<PrefixMiss>) -> Self {
        Self { blocks, window: Vec::new(), miss }
    }

    /// Tokens found.
    pub fn num_tokens(&self) -> usize {
        self.blocks.len() * BLOCK_TOKENS
    }
}

/// What a chain hangs on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parent {
    /// It is the first block of a sequence.
    Root(PrefixSpace),
    /// This block is before it.
    Block(u32),
}

/// A block of the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CachedBlock<'a> {
    /// Its id.
    pub block: u32,
    /// The same in the window's pool, or [`NO_BLOCK`].
    pub window: u32,
    /// What is before it.
    pub parent: Parent,
    /// What it holds.
    pub tokens: &'a Tokens,
}

#[derive(Debug)]
struct Node {
    key: u64,
    parent: Parent,
    tokens: Tokens,
}

/// What happened to a block that was to be cached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inserted {
    /// It can be found from now on.
    New,
    /// This block holds the same already.
    Same(u32),
    /// Its parent isn't cached, or another chain has its hash.
    Refused,
}

/// The forest. It knows nothing of owners; the pool says when a block goes.
#[derive(Debug)]
pub(super) struct PrefixIndex {
    /// Chained hash to block.
    blocks: HashMap<u64, u32>,
    /// What each cached block holds. `[num_blocks]`
    nodes: Vec<Option<Box<Node>>>,
    /// Hashes of the last evicted blocks, oldest first: as many as the pool has blocks.
    evicted: VecDeque<u64>,
    /// The same, for look-ups.
    was_evicted: HashSet<u64>,
    chain: fn(u64, &Tokens) -> u64,
}

impl PrefixIndex {
    pub(super) fn new(num_blocks: usize) -> Self {
        Self::with_hash(num_blocks, chain)
    }

    fn with_hash(num_blocks: usize, chain: fn(u64, &Tokens) -> u64) -> Self {
        Self {
            blocks: HashMap::new(),
            nodes: (0..num_blocks).map(|_| None).collect(),
            evicted: VecDeque::new(),
            was_evicted: HashSet::new(),
            chain,
        }
    }

    pub(super) fn holds(&self, block: u32) -> bool {
        self.node(block).is_some()
    }

    fn node(&self, block: u32) -> Option<&Node> {
        self.nodes.get(block as usize)?.as_deref()
    }

    fn key(&self, parent: Parent, tokens: &Tokens) -> Option<u64> {
        let before = match parent {
            Parent::Root(space) => u64::from(space.0),
            Parent::Block(block) => self.node(block)?.key,
        };
        Some((self.chain)(before, tokens))
    }

    fn get(&self, key: u64, parent: Parent, tokens: &Tokens) -> Option<u32> {
        let &block = self.blocks.get(&key)?;
        let node = self.node(block)?;
        (node.parent == parent && node.tokens == *tokens).then_some(block)
    }

    /// The longest cached chain of whole blocks.
    pub(super) fn find(&self, space: PrefixSpace, tokens: &[u32]) -> Prefix {
        let mut blocks = Vec::new();
        let mut parent = Parent::Root(space);
        let (chunks, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        if chunks.is_empty() {
            return Prefix::none(PrefixMiss::TooShort);
        }
        for tokens in chunks {
            // A parent that was just found is a node.
            let Some(key) = self.key(parent, tokens) else { break };
            let Some(block) = self.get(key, parent, tokens) else {
                let was_here = self.was_evicted.contains(&key);
                let miss = if was_here { PrefixMiss::Evicted } else { PrefixMiss::NoMatch };
                return Prefix::of(blocks, Some(miss));
            };
            blocks.push(block);
            parent = Parent::Block(block);
        }
        Prefix::of(blocks, None)
    }

    /// Makes a block known that holds `tokens` after `parent`; without a parent they are the sequence's first.
    pub(super) fn insert(&mut self, space: PrefixSpace, block: u32, parent: Option<u32>, tokens: &Tokens) -> Inserted {
        let parent = parent.map_or(Parent::Root(space), Parent::Block);
        let Some(key) = self.key(parent, tokens) else { return Inserted::Refused };
        if self.blocks.contains_key(&key) {
            return self.get(key, parent, tokens).map_or(Inserted::Refused, Inserted::Same);
        }
        let Some(slot @ None) = self.nodes.get_mut(block as usize) else { return Inserted::Refused };
        *slot = Some(Box::new(Node { key, parent, tokens: *tokens }));
        self.blocks.insert(key, block);
        Inserted::New
    }

    /// Forgets a block. Nothing may hang on it: the pool evicts leaves before their parents.
    pub(super) fn evict(&mut self, block: u32) {
        let Some(node) = self.nodes.get_mut(block as usize).and_then(Option::take) else { return };
        self.blocks.remove(&node.key);
        if self.was_evicted.insert(node.key) {
            self.evicted.push_back(node.key);
        }
        if self.evicted.len() > self.nodes.len()
            && let Some(oldest) = self.evicted.pop_front()
        {
            self.was_evicted.remove(&oldest);
        }
    }

    /// Checks that hashes and nodes name each other and that every parent is a node.
    pub(super) fn check(&self) -> Result<(), String> {
        let num_nodes = self.nodes.iter().flatten().count();
        if num_nodes != self.blocks.len() {
            return Err(format!("{num_nodes} cached blocks, but {} hashes", self.blocks.len()));
        }
        for (&key, &block) in &self.blocks {
            let Some(node) = self.node(block) else { return Err(format!("block {block} is found but holds nothing")) };
            if node.key != key {
                return Err(format!("block {block} is found under another hash than its own"));
            }
            if let Parent::Block(parent) = node.parent
                && !self.holds(parent)
            {
                return Err(format!("block {block} hangs on block {parent}, which isn't cached"));
            }
        }
        Ok(())
    }

    pub(super) fn cached(&self, block: u32) -> Option<CachedBlock<'_>> {
        let Node { parent, tokens, .. } = self.node(block)?;
        Some(CachedBlock { block, window: NO_BLOCK, parent: *parent, tokens })
    }

    /// The block before a cached one.
    pub(super) fn parent(&self, block: u32) -> Option<u32> {
        match self.node(block)?.parent {
            Parent::Root(_) => None,
            Parent::Block(parent) => Some(parent),
        }
    }
}

/// A hash of all tokens up to the end of a block, from the hash up to its start. It needs to spread, not to resist: whoever
/// makes two texts collide gets a miss.
fn chain(before: u64, tokens: &Tokens) -> u64 {
    tokens.iter().fold(spread(before), |hash, &token| spread(hash ^ u64::from(token)))
}

/// SplitMix64: a bijection that spreads every bit.
fn spread(state: u64) -> u64 {
    let z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPACE: PrefixSpace = PrefixSpace(0);

    fn tokens(first: u32, num_blocks: u32) -> Vec<u32> {
        (first..first + num_blocks * BLOCK_TOKENS as u32).collect()
    }

    fn insert(index: &mut PrefixIndex, blocks: &[u32], tokens: &[u32]) -> Vec<Inserted> {
        let mut parent = None;
        let insert = |(&block, tokens)| {
            let inserted = index.insert(SPACE, block, parent, tokens);
            parent = Some(block);
            inserted
        };
        blocks.iter().zip(tokens.as_chunks().0).map(insert).collect()
    }

    #[test]
    fn the_longest_chain_of_whole_blocks_is_found() {
        let mut index = PrefixIndex::new(8);
        let text = tokens(0, 3);
        assert_eq!(insert(&mut index, &[4, 2, 6], &text), [Inserted::New; 3]);
        assert_eq!(index.find(SPACE, &text), Prefix::of(vec![4, 2, 6], None));
        assert_eq!(index.find(SPACE, &text[..95]), Prefix::of(vec![4, 2], None));
        assert_eq!(index.find(SPACE, &text[..31]).miss, Some(PrefixMiss::TooShort));
        let mut other = text.clone();
        other[40] = 9999;
        assert_eq!(index.find(SPACE, &other), Prefix::of(vec![4], Some(PrefixMiss::NoMatch)));
        assert_eq!(index.find(PrefixSpace(1), &text).miss, Some(PrefixMiss::NoMatch), "spaces don't meet");
        assert_eq!(index.find(SPACE, &text[32..]).blocks, [0; 0], "the same tokens at another place are another block");
        index.check().unwrap();
    }

    #[test]
    fn the_same_content_is_kept_once() {
        let mut index = PrefixIndex::new(8);
        insert(&mut index, &[0, 1], &tokens(0, 2));
        assert_eq!(insert(&mut index, &[5], &tokens(0, 1)), [Inserted::Same(0)]);
        assert!(!index.holds(5));
    }

    #[test]
    fn a_collision_is_a_miss() {
        let mut index = PrefixIndex::with_hash(8, |_, _| 7);
        assert_eq!(insert(&mut index, &[0], &tokens(0, 1)), [Inserted::New]);
        assert_eq!(insert(&mut index, &[1], &tokens(500, 1)), [Inserted::Refused]);
        assert_eq!(index.find(SPACE, &tokens(500, 1)).miss, Some(PrefixMiss::NoMatch));
        assert_eq!(index.find(SPACE, &tokens(0, 1)).blocks, [0]);
        assert_eq!(index.find(PrefixSpace(3), &tokens(0, 1)).blocks, [0; 0]);
        index.check().unwrap();
    }

    #[test]
    fn what_was_evicted_is_remembered_for_a_while() {
        let mut index = PrefixIndex::new(2);
        insert(&mut index, &[0, 1], &tokens(0, 2));
        index.evict(1);
        assert_eq!(index.find(SPACE, &tokens(0, 2)), Prefix::of(vec![0], Some(PrefixMiss::Evicted)));
        for first in [1000, 2000] {
            insert(&mut index, &[1], &tokens(first, 1));
            index.evict(1);
        }
        assert_eq!(index.find(SPACE, &tokens(0, 2)).miss, Some(PrefixMiss::NoMatch));
        index.check().unwrap();
    }
}
