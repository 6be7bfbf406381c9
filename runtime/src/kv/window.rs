//! Blocks of the layers that see a window only: a sequence gives back those that fell out of it.

use super::blocks::{Blocks, Taken};
use super::{BLOCK_TOKENS, NO_BLOCK, Prefix, PrefixMiss};

/// The pool of the layers with a window. The other layers' pool holds sequences whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvWindow {
    /// Tokens that such a layer sees at most, the own one included; where layers differ, the largest number.
    pub num_tokens: usize,
    /// Blocks in the pool. Ids are `0..num_blocks`, whatever the other pool's are.
    pub num_blocks: usize,
}

impl KvWindow {
    /// The first block of a sequence that its token at `position` and those after it need.
    pub fn first_block(&self, position: usize) -> usize {
        (position + 1).saturating_sub(self.num_tokens) / BLOCK_TOKENS
    }

    /// Most blocks that a sequence holds: of a step's tokens, and of those before them that the first of them sees.
    pub fn blocks_each(num_tokens: usize, max_step_tokens: usize) -> usize {
        // They may begin and end inside a block.
        num_tokens.saturating_sub(1).saturating_add(max_step_tokens).div_ceil(BLOCK_TOKENS).saturating_add(1)
    }
}

/// Who owns the pool's blocks, and which of them a cached block of the other pool stands for. The tokens of a block are
/// known there only: a cached chain has all blocks of the other pool, and here those that had room since.
#[derive(Debug)]
pub(super) struct WindowBlocks {
    pub(super) size: KvWindow,
    /// Most blocks of one sequence.
    pub(super) blocks_each: usize,
    blocks: Blocks,
    /// For each cached block of the other pool, the one here with the same tokens, or [`NO_BLOCK`].
    of_node: Vec<u32>,
    /// And back: whose it is, or [`NO_BLOCK`] for a block that isn't cached. `[num_blocks]`
    node_of: Vec<u32>,
}

impl WindowBlocks {
    pub(super) fn new(size: KvWindow, max_step_tokens: usize, num_full_blocks: usize) -> Self {
        let blocks = Blocks::new(size.num_blocks);
        Self {
            size,
            blocks_each: KvWindow::blocks_each(size.num_tokens, max_step_tokens),
            node_of: vec![NO_BLOCK; blocks.len()],
            of_node: vec![NO_BLOCK; num_full_blocks],
            blocks,
        }
    }

    pub(super) fn num_free(&self) -> usize {
        self.blocks.num_free()
    }

    pub(super) fn num_idle(&self) -> usize {
        self.blocks.num_idle()
    }

    /// The block with the tokens of a cached block of the other pool, or [`NO_BLOCK`].
    pub(super) fn of(&self, node: u32) -> u32 {
        self.of_node[node as usize]
    }

    /// Which blocks of a sequence it holds once `num_computed` tokens are computed and it has room for `num_tokens`.
    pub(super) fn held(&self, num_computed: usize, num_tokens: usize) -> std::ops::Range<usize> {
        let first = self.size.first_block(num_computed);
        first..num_tokens.div_ceil(BLOCK_TOKENS).min(first + self.blocks_each).max(first)
    }

    /// Cuts a chain at the last place that a sequence can go on from: what the next token sees must be there. The
    /// prefix gets the blocks for that.
    pub(super) fn cut(&self, prefix: &mut Prefix) {
        let chain = prefix.blocks.iter().map(|&node| self.of_node[node as usize]);
        prefix.window = chain.collect();
        // All blocks from here on are there.
        let mut intact = 0;
        let mut longest = 0;
        for (index, &block) in prefix.window.iter().enumerate() {
            if block == NO_BLOCK {
                intact = index + 1;
            }
            if self.size.first_block((index + 1) * BLOCK_TOKENS) >= intact {
                longest = index + 1;
            }
        }
        if longest < prefix.blocks.len() {
            prefix.blocks.truncate(longest);
            prefix.window.truncate(longest);
            prefix.miss = Some(PrefixMiss::Evicted);
        }
        let first = self.size.first_block(longest * BLOCK_TOKENS).min(longest);
        prefix.window[..first].fill(NO_BLOCK);
    }

    /// How many free blocks a sequence of `num_tokens` takes that begins with `prefix`.
    pub(super) fn needed(&self, num_tokens: usize, prefix: &Prefix) -> usize {
        let owned = |block: &&u32| **block != NO_BLOCK && self.blocks.is_owned(**block);
        self.held(prefix.num_tokens(), num_tokens).len() - prefix.window.iter().filter(owned).count()
    }

    pub(super) fn take(&mut self) -> Option<u32> {
        match self.blocks.take()? {
            Taken::Empty(block) => Some(block),
            Taken::Cached(block) => {
                let node = std::mem::replace(&mut self.node_of[block as usize], NO_BLOCK);
                if let Some(of_node) = self.of_node.get_mut(node as usize) {
                    *of_node = NO_BLOCK;
                }
                Some(block)
            }
        }
    }

    /// A second owner; of a hole another hole.
    pub(super) fn share(&mut self, block: u32) -> u32 {
        if block == NO_BLOCK { NO_BLOCK } else { self.blocks.share(block) }
    }

    /// Nothing happens to a hole.
    pub(super) fn give_back(&mut self, block: u32) {
        if block != NO_BLOCK {
            let node = self.node_of[block as usize];
            self.blocks.give_back(block, || node != NO_BLOCK);
        }
    }

    /// Makes a sequence's block known as that of a cached block of the other pool, or gives the sequence the one that is
    /// known already.
    pub(super) fn cache(&mut self, node: u32, own: &mut u32) {
        let known = self.of_node[node as usize];
        if *own == NO_BLOCK || *own == known {
            return;
        }
        if known == NO_BLOCK {
            self.of_node[node as usize] = *own;
            self.node_of[*own as usize] = node;
        } else {
            let own = std::mem::replace(own, self.share(known));
            self.give_back(own);
        }
    }

    /// A block of the other pool isn't cached any more. Whoever owns a block here owns that one too, so this one is idle.
    pub(super) fn forget(&mut self, node: u32) {
        let block = std::mem::replace(&mut self.of_node[node as usize], NO_BLOCK);
        if block != NO_BLOCK {
            self.node_of[block as usize] = NO_BLOCK;
            self.blocks.forget(block);
        }
    }

    /// [`Blocks::check`], and that both directions between the pools agree. `holds` tells the other pool's cached blocks.
    ///
    /// # Errors
    /// Names the block.
    pub(super) fn check(&self, owned: impl Iterator<Item = u32>, holds: impl Fn(u32) -> bool) -> Result<(), String> {
        let is_cached = |block: u32| self.node_of[block as usize] != NO_BLOCK;
        self.blocks.check(owned, is_cached).map_err(|what| format!("window: {what}"))?;
        for (block, &node) in self.node_of.iter().enumerate() {
            if node != NO_BLOCK && (self.of_node[node as usize] as usize != block || !holds(node)) {
                return Err(format!("window: block {block} is cached for block {node}, which doesn't know or isn't"));
            }
        }
        for (node, &block) in self.of_node.iter().enumerate() {
            if block != NO_BLOCK && self.node_of[block as usize] as usize != node {
                return Err(format!("window: block {node} names block {block}, which is another's"));
            }
        }
        Ok(())
    }
}
