//! Reference-counted blocks and the tables that own them.

use super::BLOCK_TOKENS;

/// The pool has fewer free blocks than were asked for; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBlocks;

/// All KV blocks of one executor: which are free, and how many tables own each of the others.
#[derive(Debug)]
pub struct BlockPool {
    /// Ids of free blocks, taken from the end: a block that was just freed is still warm in the cache.
    free: Vec<u32>,
    /// Owners of each block; 0 is free. `[num_blocks]`
    owners: Vec<u32>,
}

impl BlockPool {
    /// A pool of blocks `0..num_blocks`, all free. Block ids are 32 bits wide: more blocks than that are left unused.
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self { free: (0..num_blocks).rev().collect(), owners: vec![0; num_blocks as usize] }
    }

    /// Blocks, free or not.
    pub fn num_blocks(&self) -> usize {
        self.owners.len()
    }

    /// Blocks that nobody owns.
    pub fn num_free(&self) -> usize {
        self.free.len()
    }

    /// Blocks that `num_tokens` tokens fill or begin.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    /// Checks that the owners it counted are exactly these tables.
    ///
    /// # Errors
    /// Names the first block that is leaked, owned too often, or both free and owned.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut owners = vec![0_u32; self.owners.len()];
        for table in tables {
            for &block in &table.blocks {
                owners[block as usize] += 1;
            }
        }
        let mut free = vec![0_u32; self.owners.len()];
        for &block in &self.free {
            free[block as usize] += 1;
        }
        for (block, ((&expected, &counted), &free)) in owners.iter().zip(&self.owners).zip(&free).enumerate() {
            if expected != counted {
                return Err(format!("block {block} has {expected} owners, but the pool counts {counted}"));
            }
            if free != u32::from(counted == 0) {
                return Err(format!("block {block} has {counted} owners and is {free} times in the free list"));
            }
        }
        Ok(())
    }

    fn take(&mut self) -> Option<u32> {
        let block = self.free.pop()?;
        self.owners[block as usize] = 1;
        Some(block)
    }

    fn share(&mut self, block: u32) -> u32 {
        self.owners[block as usize] += 1;
        block
    }

    fn give_back(&mut self, block: u32) {
        let owners = &mut self.owners[block as usize];
        *owners -= 1;
        if *owners == 0 {
            self.free.push(block);
        }
    }
}

/// The blocks of one sequence: token `p` is in block `blocks()[p / BLOCK_TOKENS]`. All calls must name the same pool.
/// A table that is dropped without [`clear`](Self::clear) leaks its blocks, which [`BlockPool::check`] finds.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
}

impl BlockTable {
    /// Block ids in the order of the tokens.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Makes room for `num_tokens` tokens in all. Room that is there already stays.
    ///
    /// # Errors
    /// [`OutOfBlocks`], with nothing taken.
    pub fn reserve(&mut self, num_tokens: usize, pool: &mut BlockPool) -> Result<(), OutOfBlocks> {
        let missing = BlockPool::blocks_for(num_tokens).saturating_sub(self.blocks.len());
        if missing > pool.num_free() {
            return Err(OutOfBlocks);
        }
        self.blocks.extend(std::iter::from_fn(|| pool.take()).take(missing));
        Ok(())
    }

    /// A second owner of the blocks that the first `num_tokens` tokens fill completely. A block that is only begun isn't
    /// shared: both sequences would go on writing to it.
    pub fn share_prefix(&self, num_tokens: usize, pool: &mut BlockPool) -> Self {
        let full = (num_tokens / BLOCK_TOKENS).min(self.blocks.len());
        Self { blocks: self.blocks[..full].iter().map(|&block| pool.share(block)).collect() }
    }

    /// Gives all blocks back.
    pub fn clear(&mut self, pool: &mut BlockPool) {
        // The last block goes first, so that the next table gets them in the same order.
        for block in self.blocks.drain(..).rev() {
            pool.give_back(block);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn reserve_takes_whole_blocks_or_nothing() {
        let mut pool = BlockPool::new(3);
        let mut table = BlockTable::default();
        assert_eq!(table.reserve(1, &mut pool), Ok(()));
        assert_eq!((table.blocks().len(), pool.num_free()), (1, 2));
        assert_eq!(table.reserve(BLOCK_TOKENS, &mut pool), Ok(()));
        assert_eq!(table.blocks().len(), 1, "a full block has no room for more, but needs none");
        assert_eq!(table.reserve(3 * BLOCK_TOKENS + 1, &mut pool), Err(OutOfBlocks));
        assert_eq!((table.blocks().len(), pool.num_free()), (1, 2));
        assert_eq!(table.reserve(3 * BLOCK_TOKENS, &mut pool), Ok(()));
        assert_eq!(pool.num_free(), 0);
        table.clear(&mut pool);
        assert_eq!(pool.num_free(), 3);
        assert_eq!(pool.check([]), Ok(()));
    }

    #[test]
    fn shared_blocks_are_free_when_the_last_owner_is_gone() {
        let mut pool = BlockPool::new(4);
        let mut first = BlockTable::default();
        first.reserve(2 * BLOCK_TOKENS + 5, &mut pool).unwrap();
        let mut second = first.share_prefix(2 * BLOCK_TOKENS + 5, &mut pool);
        assert_eq!(second.blocks(), &first.blocks()[..2], "the begun third block is not shared");
        first.clear(&mut pool);
        assert_eq!(pool.num_free(), 2);
        second.clear(&mut pool);
        assert_eq!(pool.num_free(), 4);
    }

    #[test]
    fn check_finds_a_leak() {
        let mut pool = BlockPool::new(2);
        let mut table = BlockTable::default();
        table.reserve(1, &mut pool).unwrap();
        drop(table);
        assert!(pool.check([]).unwrap_err().contains("0 owners, but the pool counts 1"));
    }

    #[derive(Debug, Clone)]
    enum Call {
        Reserve { table: usize, num_tokens: usize },
        Share { from: usize, to: usize, num_tokens: usize },
        Clear { table: usize },
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            4 => (0..6_usize, 0..400_usize).prop_map(|(table, num_tokens)| Call::Reserve { table, num_tokens }),
            2 => (0..6_usize, 0..6_usize, 0..400_usize)
                .prop_map(|(from, to, num_tokens)| Call::Share { from, to, num_tokens }),
            1 => (0..6_usize).prop_map(|table| Call::Clear { table }),
        ]
    }

    proptest! {
        #[test]
        fn random_traces_keep_the_count(num_blocks in 0..40_usize, calls in prop::collection::vec(call(), 0..120)) {
            let mut pool = BlockPool::new(num_blocks);
            let mut tables: Vec<BlockTable> = (0..6).map(|_| BlockTable::default()).collect();
            for call in calls {
                match call {
                    Call::Reserve { table, num_tokens } => {
                        let (before, free) = (tables[table].blocks().to_vec(), pool.num_free());
                        let need = BlockPool::blocks_for(num_tokens).saturating_sub(before.len());
                        let result = tables[table].reserve(num_tokens, &mut pool);
                        prop_assert_eq!(result.is_ok(), need <= free);
                        prop_assert_eq!(&tables[table].blocks()[..before.len()], &before[..]);
                        let taken = tables[table].blocks().len() - before.len();
                        prop_assert_eq!(taken, if result.is_ok() { need } else { 0 });
                    }
                    Call::Share { from, to, num_tokens } => {
                        let shared = tables[from].share_prefix(num_tokens, &mut pool);
                        let mut old = std::mem::replace(&mut tables[to], shared);
                        old.clear(&mut pool);
                    }
                    Call::Clear { table } => tables[table].clear(&mut pool),
                }
                prop_assert_eq!(pool.check(&tables), Ok(()));
            }
            for table in &mut tables {
                table.clear(&mut pool);
            }
            prop_assert_eq!(pool.num_free(), num_blocks);
        }
    }
}
