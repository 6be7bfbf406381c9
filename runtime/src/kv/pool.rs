//! Reference-counted blocks, those of them that are cached, and the tables that own them.

use std::collections::BTreeMap;

use super::BLOCK_TOKENS;
use super::prefix::{Inserted, Prefix, PrefixIndex, PrefixSpace};

/// The pool has fewer free blocks than were asked for; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBlocks;

/// All KV blocks of one executor: which are free, how many tables own each of the others, and which of them are cached
/// for later sequences.
///
/// A cached block that nobody owns is idle: it counts as free and is taken, the one that has been idle longest first,
/// when no block is really free. A table that owns a cached block owns its parent too and gives it back later, so leaves
/// go before their parents.
#[derive(Debug)]
pub struct BlockPool {
    /// Ids of blocks without content, taken from the end: a block that was just freed is still warm in the cache.
    free: Vec<u32>,
    /// Cached blocks without an owner, by the time since which they have had none.
    idle: BTreeMap<u64, u32>,
    /// That time, for idle blocks. `[num_blocks]`
    idle_since: Vec<u64>,
    /// Counts the times at which blocks became idle.
    now: u64,
    /// Owners of each block; 0 is free or idle. `[num_blocks]`
    owners: Vec<u32>,
    index: PrefixIndex,
}

impl BlockPool {
    /// A pool of blocks `0..num_blocks`, all free. Block ids are 32 bits wide: more blocks than that are left unused.
    pub fn new(num_blocks: usize) -> Self {
        let num_blocks = u32::try_from(num_blocks).unwrap_or(u32::MAX);
        Self {
            free: (0..num_blocks).rev().collect(),
            idle: BTreeMap::new(),
            idle_since: vec![0; num_blocks as usize],
            now: 0,
            owners: vec![0; num_blocks as usize],
            index: PrefixIndex::new(num_blocks as usize),
        }
    }

    /// Blocks, free or not.
    pub fn num_blocks(&self) -> usize {
        self.owners.len()
    }

    /// Blocks that nobody owns, idle ones included.
    pub fn num_free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    /// Blocks that nobody owns and that a later sequence may still find.
    pub fn num_idle(&self) -> usize {
        self.idle.len()
    }

    /// Blocks that `num_tokens` tokens fill or begin.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    /// The longest cached chain of whole blocks of these tokens.
    pub fn find(&self, space: PrefixSpace, tokens: &[u32]) -> Prefix {
        self.index.find(space, tokens)
    }

    /// How many free blocks a sequence of `num_tokens` takes that begins with `prefix`.
    pub fn needed(&self, num_tokens: usize, prefix: &Prefix) -> usize {
        let owned = prefix.blocks.iter().filter(|&&block| self.owners[block as usize] > 0).count();
        Self::blocks_for(num_tokens) - owned
    }

    /// Checks that the owners it counted are exactly these tables, and that every block is in one place.
    ///
    /// # Errors
    /// Names the first block that is leaked, owned too often, in two places, or cached without its parent.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), String> {
        let mut owners = vec![0_u32; self.owners.len()];
        for table in tables {
            for &block in &table.blocks {
                owners[block as usize] += 1;
            }
        }
        let mut free = vec![0_u32; self.owners.len()];
        for &block in self.free.iter().chain(self.idle.values()) {
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
        if let Some(block) = self.free.iter().find(|&&block| self.index.holds(block)) {
            return Err(format!("block {block} is cached and in the list of blocks without content"));
        }
        for (&since, &block) in &self.idle {
            if !self.index.holds(block) || self.idle_since[block as usize] != since {
                return Err(format!("block {block} is idle since {since}, but isn't cached or knows another time"));
            }
            if let Some(parent) = self.index.parent(block)
                && self.owners[parent as usize] == 0
                && self.idle_since[parent as usize] < since
            {
                return Err(format!("block {block} would be evicted after its parent {parent}"));
            }
        }
        self.index.check()
    }

    fn take(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => {
                let (_, block) = self.idle.pop_first()?;
                self.index.evict(block);
                block
            }
        };
        self.owners[block as usize] = 1;
        Some(block)
    }

    fn share(&mut self, block: u32) -> u32 {
        let owners = &mut self.owners[block as usize];
        if *owners == 0 {
            self.idle.remove(&self.idle_since[block as usize]);
        }
        *owners += 1;
        block
    }

    fn give_back(&mut self, block: u32) {
        let owners = &mut self.owners[block as usize];
        *owners -= 1;
        if *owners > 0 {
            return;
        }
        if self.index.holds(block) {
            self.now += 1;
            self.idle_since[block as usize] = self.now;
            self.idle.insert(self.now, block);
        } else {
            self.free.push(block);
        }
    }
}

/// The blocks of one sequence: token `p` is in block `blocks()[p / BLOCK_TOKENS]`. All calls must name the same pool.
/// A table that is dropped without [`clear`](Self::clear) leaks its blocks, which [`BlockPool::check`] finds.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// How many of them, from the first, are cached.
    num_cached: usize,
}

impl BlockTable {
    /// A table that begins with cached blocks.
    pub fn with_prefix(prefix: &Prefix, pool: &mut BlockPool) -> Self {
        let blocks: Vec<u32> = prefix.blocks.iter().map(|&block| pool.share(block)).collect();
        Self { num_cached: blocks.len(), blocks }
    }

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

    /// Caches the blocks that `tokens`, which are all computed, fill. Where the cache has a block of the same content
    /// already, the table takes that one and gives its own back: then whoever owns a cached block owns its parent.
    pub fn cache(&mut self, space: PrefixSpace, tokens: &[u32], pool: &mut BlockPool) {
        let (chunks, _) = tokens.as_chunks::<BLOCK_TOKENS>();
        for (index, tokens) in chunks.iter().enumerate().take(self.blocks.len()).skip(self.num_cached) {
            let parent = index.checked_sub(1).map(|before| self.blocks[before]);
            match pool.index.insert(space, self.blocks[index], parent, tokens) {
                Inserted::New => {}
                Inserted::Same(block) => {
                    let own = std::mem::replace(&mut self.blocks[index], pool.share(block));
                    pool.give_back(own);
                }
                // What comes after it could never be found.
                Inserted::Refused => return,
            }
            self.num_cached = index + 1;
        }
    }

    /// A second owner of the blocks that the first `num_tokens` tokens fill completely. A block that is only begun isn't
    /// shared: both sequences would go on writing to it.
    pub fn share_prefix(&self, num_tokens: usize, pool: &mut BlockPool) -> Self {
        let full = (num_tokens / BLOCK_TOKENS).min(self.blocks.len());
        let blocks = self.blocks[..full].iter().map(|&block| pool.share(block)).collect();
        Self { blocks, num_cached: self.num_cached.min(full) }
    }

    /// Gives all blocks back.
    pub fn clear(&mut self, pool: &mut BlockPool) {
        self.num_cached = 0;
        // The last block goes first: the next table gets them in the same order, and leaves are idle before their parents.
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

    const SPACE: PrefixSpace = PrefixSpace(0);

    /// Text `id` begins like all others and goes its own way after `3 · id` blocks.
    fn text(id: u32) -> Vec<u32> {
        let common = 3 * id * BLOCK_TOKENS as u32;
        (0..13 * BLOCK_TOKENS as u32).map(|i| if i < common { i } else { i + 10_000 * (id + 1) }).collect()
    }

    #[test]
    fn idle_blocks_are_found_until_they_are_needed_and_leaves_go_first() {
        let mut pool = BlockPool::new(4);
        let tokens = text(0);
        let mut table = BlockTable::default();
        table.reserve(3 * BLOCK_TOKENS, &mut pool).unwrap();
        let blocks = table.blocks().to_vec();
        table.cache(SPACE, &tokens[..3 * BLOCK_TOKENS - 1], &mut pool);
        table.clear(&mut pool);
        assert_eq!((pool.num_free(), pool.num_idle()), (4, 2), "the third block isn't full");
        let prefix = pool.find(SPACE, &tokens);
        assert_eq!(prefix.blocks, blocks[..2]);
        assert_eq!(pool.needed(5 * BLOCK_TOKENS, &prefix), 5, "idle blocks are taken from the free ones");
        let mut other = BlockTable::default();
        other.reserve(3 * BLOCK_TOKENS, &mut pool).unwrap();
        assert_eq!(pool.find(SPACE, &tokens).blocks, blocks[..1], "the leaf went");
        let mut again = BlockTable::with_prefix(&pool.find(SPACE, &tokens), &mut pool);
        assert_eq!(pool.num_free(), 0);
        assert_eq!(again.reserve(2 * BLOCK_TOKENS, &mut pool), Err(OutOfBlocks), "what is owned isn't evicted");
        pool.check([&other, &again]).unwrap();
        again.clear(&mut pool);
        other.clear(&mut pool);
        pool.check([]).unwrap();
    }

    #[test]
    fn two_that_computed_the_same_end_up_with_one_copy() {
        let mut pool = BlockPool::new(6);
        let tokens = text(0);
        let mut tables = [(); 2].map(|()| BlockTable::default());
        for table in &mut tables {
            table.reserve(3 * BLOCK_TOKENS, &mut pool).unwrap();
        }
        for table in &mut tables {
            table.cache(SPACE, &tokens[..2 * BLOCK_TOKENS], &mut pool);
        }
        assert_eq!(tables[0].blocks()[..2], tables[1].blocks()[..2]);
        assert_eq!(pool.num_free(), 2);
        pool.check(&tables).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Call {
        Begin { table: usize, text: u32, num_tokens: usize },
        Reserve { table: usize, num_tokens: usize },
        Compute { table: usize },
        Share { from: usize, to: usize, num_tokens: usize },
        Clear { table: usize },
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            3 => (0..6_usize, 0..4_u32, 0..400_usize)
                .prop_map(|(table, text, num_tokens)| Call::Begin { table, text, num_tokens }),
            3 => (0..6_usize, 0..400_usize).prop_map(|(table, num_tokens)| Call::Reserve { table, num_tokens }),
            4 => (0..6_usize).prop_map(|table| Call::Compute { table }),
            2 => (0..6_usize, 0..6_usize, 0..400_usize)
                .prop_map(|(from, to, num_tokens)| Call::Share { from, to, num_tokens }),
            1 => (0..6_usize).prop_map(|table| Call::Clear { table }),
        ]
    }

    proptest! {
        #[test]
        fn random_traces_keep_the_count_and_find_only_what_was_computed(
            num_blocks in 0..40_usize,
            calls in prop::collection::vec(call(), 0..120),
        ) {
            let mut pool = BlockPool::new(num_blocks);
            let mut tables: Vec<BlockTable> = (0..6).map(|_| BlockTable::default()).collect();
            let mut texts = [0; 6];
            // What each block was last filled with: all tokens up to its end.
            let mut contents = vec![Vec::new(); num_blocks];
            for call in calls {
                match call {
                    Call::Begin { table, text: id, num_tokens } => {
                        tables[table].clear(&mut pool);
                        let tokens = text(id);
                        let prefix = pool.find(SPACE, &tokens[..num_tokens]);
                        for (index, &block) in prefix.blocks.iter().enumerate() {
                            prop_assert_eq!(&contents[block as usize], &tokens[..(index + 1) * BLOCK_TOKENS]);
                        }
                        texts[table] = id;
                        let fits = pool.needed(num_tokens, &prefix) <= pool.num_free();
                        tables[table] = BlockTable::with_prefix(&prefix, &mut pool);
                        prop_assert_eq!(tables[table].reserve(num_tokens, &mut pool).is_ok(), fits);
                    }
                    Call::Reserve { table, num_tokens } => {
                        let (before, free) = (tables[table].blocks().to_vec(), pool.num_free());
                        let need = BlockPool::blocks_for(num_tokens).saturating_sub(before.len());
                        let result = tables[table].reserve(num_tokens, &mut pool);
                        prop_assert_eq!(result.is_ok(), need <= free);
                        prop_assert_eq!(&tables[table].blocks()[..before.len()], &before[..]);
                        let taken = tables[table].blocks().len() - before.len();
                        prop_assert_eq!(taken, if result.is_ok() { need } else { 0 });
                    }
                    Call::Compute { table: index } => {
                        let (table, tokens) = (&mut tables[index], text(texts[index]));
                        for index in table.num_cached..table.blocks.len() {
                            contents[table.blocks[index] as usize] = tokens[..(index + 1) * BLOCK_TOKENS].to_vec();
                        }
                        table.cache(SPACE, &tokens[..table.blocks.len() * BLOCK_TOKENS], &mut pool);
                    }
                    Call::Share { from, to, num_tokens } => {
                        // Only what was computed is shared.
                        let num_tokens = num_tokens.min(tables[from].num_cached * BLOCK_TOKENS);
                        let shared = tables[from].share_prefix(num_tokens, &mut pool);
                        let mut old = std::mem::replace(&mut tables[to], shared);
                        old.clear(&mut pool);
                        texts[to] = texts[from];
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
