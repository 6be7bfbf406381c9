//! Reference-counted blocks, those of them that are cached, and the tables that own them.

use super::blocks::{Blocks, Taken};
use super::prefix::{CachedBlock, Inserted, Prefix, PrefixIndex, PrefixSpace};
use super::window::{KvWindow, WindowBlocks};
use super::{BLOCK_TOKENS, NO_BLOCK};

/// The pool has fewer free blocks than were asked for; nothing was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfBlocks;

/// All KV blocks of one executor: which are free, how many tables own each of the others, and which of them are cached
/// for later sequences.
///
/// A cached block that nobody owns is idle: it counts as free and is taken, the one that has been idle longest first,
/// when no block is really free. A table that owns a cached block owns its parent too and gives it back later, so leaves
/// go before their parents.
///
/// A second pool may hold what layers with a window need: there only the blocks inside the windows are owned. The others
/// are free or idle, so a chain may be cached without all of them.
#[derive(Debug)]
pub struct BlockPool {
    blocks: Blocks,
    index: PrefixIndex,
    window: Option<WindowBlocks>,
}

impl BlockPool {
    /// A pool of blocks `0..num_blocks`, all free. Block ids are 32 bits wide: more blocks than that are left unused.
    pub fn new(num_blocks: usize) -> Self {
        let blocks = Blocks::new(num_blocks);
        Self { index: PrefixIndex::new(blocks.len()), blocks, window: None }
    }

    /// With a second pool for the layers that see a window, for sequences with at most so many tokens in a step.
    pub fn with_window(num_blocks: usize, window: KvWindow, max_step_tokens: usize) -> Self {
        let pool = Self::new(num_blocks);
        let window = WindowBlocks::new(window, max_step_tokens, pool.num_blocks());
        Self { window: Some(window), ..pool }
    }

    /// Blocks, free or not.
    pub fn num_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that nobody owns, idle ones included.
    pub fn num_free(&self) -> usize {
        self.blocks.num_free()
    }

    /// Blocks that nobody owns and that a later sequence may still find.
    pub fn num_idle(&self) -> usize {
        self.blocks.num_idle()
    }

    /// The same as [`num_free`](Self::num_free) of the window's pool; 0 where there is none.
    pub fn num_free_window(&self) -> usize {
        self.window.as_ref().map_or(0, WindowBlocks::num_free)
    }

    /// The same as [`num_idle`](Self::num_idle) of the window's pool.
    pub fn num_idle_window(&self) -> usize {
        self.window.as_ref().map_or(0, WindowBlocks::num_idle)
    }

    /// Free blocks of the pool that has fewer.
    pub fn num_spare(&self) -> usize {
        self.window.as_ref().map_or(usize::MAX, WindowBlocks::num_free).min(self.num_free())
    }

    /// Blocks that `num_tokens` tokens fill or begin.
    pub fn blocks_for(num_tokens: usize) -> usize {
        num_tokens.div_ceil(BLOCK_TOKENS)
    }

    /// The longest cached chain of whole blocks of these tokens that a sequence can go on from.
    pub fn find(&self, space: PrefixSpace, tokens: &[u32]) -> Prefix {
        let mut prefix = self.index.find(space, tokens);
        if let Some(window) = &self.window {
            window.cut(&mut prefix);
        }
        prefix
    }

    /// How many free blocks a sequence of `num_tokens` takes that begins with `prefix`.
    pub fn needed(&self, num_tokens: usize, prefix: &Prefix) -> usize {
        let owned = prefix.blocks.iter().filter(|&&block| self.blocks.is_owned(block)).count();
        Self::blocks_for(num_tokens) - owned
    }

    /// Every idle block of the cache with the blocks before it, those first that were used last: a parent is always before its
    /// children.
    pub fn cached(&self) -> Vec<CachedBlock<'_>> {
        let window = |block| self.window.as_ref().map_or(NO_BLOCK, |window| window.of(block));
        let cached = |block| Some(CachedBlock { window: window(block), ..self.index.cached(block)? });
        self.blocks.idle().filter_map(cached).collect()
    }

    /// Tokens that layers with a window see; `None` where there is no pool for them.
    pub fn window_tokens(&self) -> Option<usize> {
        self.window.as_ref().map(|window| window.size.num_tokens)
    }

    /// Whether such a sequence finds its blocks, with `num_spare` to be left in each pool.
    pub fn has_room(&self, num_tokens: usize, prefix: &Prefix, num_spare: usize) -> bool {
        let fits = |needed: usize, free: usize| needed + num_spare <= free;
        fits(self.needed(num_tokens, prefix), self.num_free())
            && self.window.as_ref().is_none_or(|window| fits(window.needed(num_tokens, prefix), window.num_free()))
    }

    /// Checks that the owners it counted are exactly these tables, and that every block is in one place.
    ///
    /// # Errors
    /// Names the first block that is leaked, owned too often, in two places, or cached without its parent.
    pub fn check<'a>(&self, tables: impl IntoIterator<Item = &'a BlockTable>) -> Result<(), String> {
        let tables: Vec<&BlockTable> = tables.into_iter().collect();
        let owned = tables.iter().flat_map(|table| table.blocks.iter().copied());
        self.blocks.check(owned, |block| self.index.holds(block))?;
        for block in (0..self.num_blocks() as u32).filter(|&block| !self.blocks.is_owned(block)) {
            if let Some(parent) = self.index.parent(block)
                && self.blocks.leaves_before(parent, block)
            {
                return Err(format!("block {block} would be evicted after its parent {parent}"));
            }
        }
        self.index.check()?;
        let owned = tables.iter().flat_map(|table| table.window.iter().copied()).filter(|&block| block != NO_BLOCK);
        match &self.window {
            Some(window) => window.check(owned, |block| self.index.holds(block))?,
            None if owned.count() > 0 => return Err("a table has blocks of a window that isn't there".into()),
            None => {}
        }
        let holed = |table: &&&BlockTable| {
            let (before, held) = table.window.split_at(table.window_start.min(table.window.len()));
            before.iter().any(|&block| block != NO_BLOCK) || held.contains(&NO_BLOCK)
        };
        match tables.iter().find(holed) {
            Some(table) => {
                Err(format!("holes after block {}, or none before it: {:?}", table.window_start, table.window))
            }
            None => Ok(()),
        }
    }

    fn take(&mut self) -> Option<u32> {
        match self.blocks.take()? {
            Taken::Empty(block) => Some(block),
            Taken::Cached(block) => {
                self.index.evict(block);
                if let Some(window) = &mut self.window {
                    window.forget(block);
                }
                Some(block)
            }
        }
    }

    fn share(&mut self, block: u32) -> u32 {
        self.blocks.share(block)
    }

    fn share_window(&mut self, blocks: &[u32]) -> Vec<u32> {
        let Some(window) = &mut self.window else { return Vec::new() };
        blocks.iter().map(|&block| window.share(block)).collect()
    }

    fn give_back(&mut self, block: u32) {
        self.blocks.give_back(block, || self.index.holds(block));
    }
}

/// The blocks of one sequence: token `p` is in block `blocks()[p / BLOCK_TOKENS]`. All calls must name the same pool.
/// A table that is dropped without [`clear`](Self::clear) leaks its blocks, which [`BlockPool::check`] finds.
#[derive(Debug, Default)]
pub struct BlockTable {
    blocks: Vec<u32>,
    /// The same of the window's pool, never more of them: holes up to `window_start`, none from there on. Empty where there is
    /// no such pool.
    window: Vec<u32>,
    window_start: usize,
    /// How many blocks, from the first, are cached.
    num_cached: usize,
}

impl BlockTable {
    /// A table that begins with cached blocks.
    pub fn with_prefix(prefix: &Prefix, pool: &mut BlockPool) -> Self {
        let blocks: Vec<u32> = prefix.blocks.iter().map(|&block| pool.share(block)).collect();
        let window_start = prefix.window.iter().take_while(|&&block| block == NO_BLOCK).count();
        let window = pool.share_window(&prefix.window);
        Self { num_cached: blocks.len(), blocks, window, window_start }
    }

    /// Block ids in the order of the tokens.
    pub fn blocks(&self) -> &[u32] {
        &self.blocks
    }

    /// Those of them, from the first, that are cached.
    pub fn cached_blocks(&self) -> &[u32] {
        &self.blocks[..self.num_cached]
    }

    /// The same of the window's pool: [`NO_BLOCK`] for blocks that fell out of the window, and none for the last ones as long
    /// as there is no room for their tokens. Empty where there is no such pool.
    pub fn window_blocks(&self) -> &[u32] {
        &self.window
    }

    /// Tokens that there is room for, those that fell out of a window included.
    pub fn room(&self) -> usize {
        let blocks = if self.window.is_empty() { self.blocks.len() } else { self.blocks.len().min(self.window.len()) };
        blocks * BLOCK_TOKENS
    }

    /// Makes room for `num_tokens` tokens in all; in the window's pool for no more than one step can have after those that
    /// [`release`](Self::release) was told of. Room that is there already stays.
    ///
    /// # Errors
    /// [`OutOfBlocks`], with nothing taken.
    pub fn reserve(&mut self, num_tokens: usize, pool: &mut BlockPool) -> Result<(), OutOfBlocks> {
        let wanted = BlockPool::blocks_for(num_tokens);
        let missing = wanted.saturating_sub(self.blocks.len());
        let missing_window = match &pool.window {
            Some(window) => wanted.min(self.window_start + window.blocks_each).saturating_sub(self.window.len()),
            None => 0,
        };
        if missing > pool.num_free() || missing_window > pool.num_free_window() {
            return Err(OutOfBlocks);
        }
        self.blocks.extend(std::iter::from_fn(|| pool.take()).take(missing));
        if let Some(window) = &mut pool.window {
            self.window.extend(std::iter::from_fn(|| window.take()).take(missing_window));
        }
        Ok(())
    }

    /// Gives back the blocks that are out of the windows of all tokens from `num_computed` on.
    pub fn release(&mut self, num_computed: usize, pool: &mut BlockPool) {
        let Some(window) = &mut pool.window else { return };
        let first = window.size.first_block(num_computed).min(self.window.len());
        for block in self.window.iter_mut().take(first).skip(self.window_start) {
            window.give_back(std::mem::replace(block, NO_BLOCK));
        }
        self.window_start = self.window_start.max(first);
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
            if let (Some(window), Some(own)) = (&mut pool.window, self.window.get_mut(index)) {
                window.cache(self.blocks[index], own);
            }
            self.num_cached = index + 1;
        }
    }

    /// A second owner of the blocks that the first `num_tokens` tokens fill completely. A block that is only begun isn't
    /// shared: both sequences would go on writing to it.
    pub fn share_prefix(&self, num_tokens: usize, pool: &mut BlockPool) -> Self {
        let full = (num_tokens / BLOCK_TOKENS).min(self.blocks.len());
        let blocks = self.blocks[..full].iter().map(|&block| pool.share(block)).collect();
        let window = pool.share_window(&self.window[..full.min(self.window.len())]);
        let window_start = self.window_start.min(window.len());
        Self { blocks, window, window_start, num_cached: self.num_cached.min(full) }
    }

    /// Gives all blocks back.
    pub fn clear(&mut self, pool: &mut BlockPool) {
        self.num_cached = 0;
        self.window_start = 0;
        // The last block goes first: the next table gets them in the same order, and leaves are idle before their parents.
        for block in self.blocks.drain(..).rev() {
            pool.give_back(block);
        }
        if let Some(window) = &mut pool.window {
            self.window.drain(..).rev().for_each(|block| window.give_back(block));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::kv::PrefixMiss;

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

    /// A window of 40 tokens in a pool of so many blocks, and steps of at most 64.
    fn windowed(num_blocks: usize, num_window_blocks: usize) -> BlockPool {
        BlockPool::with_window(num_blocks, KvWindow { num_tokens: 40, num_blocks: num_window_blocks }, STEP)
    }

    const STEP: usize = 64;

    /// Computes a text step by step, and caches it.
    fn compute(table: &mut BlockTable, tokens: &[u32], pool: &mut BlockPool) {
        let mut computed = 0;
        while computed < tokens.len() {
            table.release(computed, pool);
            computed = tokens.len().min(computed + STEP);
            table.reserve(computed, pool).unwrap();
            table.cache(SPACE, &tokens[..computed], pool);
        }
    }

    #[test]
    fn a_window_moves_on_and_leaves_holes() {
        let mut pool = windowed(20, 5);
        let mut table = BlockTable::default();
        assert_eq!(table.reserve(10 * BLOCK_TOKENS, &mut pool), Ok(()));
        assert_eq!((table.blocks().len(), table.window_blocks().len()), (10, 5), "39 and a step of 64 tokens");
        assert_eq!((table.room(), pool.num_free_window(), pool.num_spare()), (5 * BLOCK_TOKENS, 0, 0));
        let before = table.window_blocks().to_vec();
        // Token 103 is the first that doesn't see the second block any more.
        table.release(102, &mut pool);
        assert_eq!(table.window_blocks(), [&[NO_BLOCK], &before[1..]].concat());
        table.release(103, &mut pool);
        assert_eq!(table.window_blocks()[..3], [NO_BLOCK, NO_BLOCK, before[2]]);
        assert_eq!(table.reserve(10 * BLOCK_TOKENS, &mut pool), Ok(()));
        assert_eq!((table.room(), pool.num_free_window()), (7 * BLOCK_TOKENS, 0));
        pool.check([&table]).unwrap();
        let mut other = BlockTable::default();
        assert_eq!(other.reserve(1, &mut pool), Err(OutOfBlocks), "the other pool has ten free blocks");
        assert_eq!(pool.num_free(), 10);
        table.clear(&mut pool);
        assert_eq!((pool.num_free(), pool.num_free_window()), (20, 5));
        pool.check([]).unwrap();
    }

    #[test]
    fn a_chain_is_cut_where_a_window_isnt_there() {
        let mut pool = windowed(30, 6);
        let tokens = &text(0)[..6 * BLOCK_TOKENS];
        let mut table = BlockTable::default();
        compute(&mut table, tokens, &mut pool);
        table.clear(&mut pool);
        assert_eq!((pool.num_idle(), pool.num_idle_window()), (6, 6));
        let prefix = pool.find(SPACE, tokens);
        assert_eq!((prefix.num_tokens(), prefix.miss), (6 * BLOCK_TOKENS, None));
        assert_eq!(prefix.window.iter().filter(|&&block| block != NO_BLOCK).count(), 2, "39 tokens");
        // One more block is needed: the first is idle longest. Then the beginning can't be gone on from, the rest can.
        let mut other = BlockTable::default();
        other.reserve(1, &mut pool).unwrap();
        let found = |pool: &BlockPool, len: usize| {
            let prefix = pool.find(SPACE, &tokens[..len * BLOCK_TOKENS]);
            (prefix.num_tokens() / BLOCK_TOKENS, prefix.miss)
        };
        let evicted = Some(PrefixMiss::Evicted);
        assert_eq!([1, 2, 3, 6].map(|len| found(&pool, len)), [(0, evicted), (0, evicted), (3, None), (6, None)]);
        // Who computes it again brings the windows back, on the chain that is there.
        let mut again = BlockTable::default();
        compute(&mut again, &tokens[..2 * BLOCK_TOKENS], &mut pool);
        assert_eq!(pool.num_free(), 30 - 1 - 2);
        pool.check([&other, &again]).unwrap();
        assert_eq!(found(&pool, 2), (2, None));
        // A block of the chain itself takes its window along.
        let mut all = BlockTable::default();
        again.clear(&mut pool);
        other.clear(&mut pool);
        let mut full_only = BlockPool::with_window(30, KvWindow { num_tokens: 40, num_blocks: 60 }, STEP);
        compute(&mut all, tokens, &mut full_only);
        all.clear(&mut full_only);
        let [mut a, mut b] = [0, 1].map(|_| BlockTable::default());
        a.reserve(13 * BLOCK_TOKENS, &mut full_only).unwrap();
        b.reserve(13 * BLOCK_TOKENS, &mut full_only).unwrap();
        assert_eq!((full_only.num_idle(), full_only.num_idle_window()), (4, 4));
        full_only.check([&a, &b]).unwrap();
        for table in [&mut a, &mut b] {
            table.clear(&mut full_only);
        }
        full_only.check([]).unwrap();
        pool.check([]).unwrap();
    }

    #[derive(Debug, Clone)]
    enum Call {
        Begin { table: usize, text: u32, num_tokens: usize },
        Reserve { table: usize, num_tokens: usize },
        Compute { table: usize, num_tokens: usize },
        Share { from: usize, to: usize, num_tokens: usize },
        Clear { table: usize },
    }

    fn call() -> impl Strategy<Value = Call> {
        prop_oneof![
            3 => (0..6_usize, 0..4_u32, 0..400_usize)
                .prop_map(|(table, text, num_tokens)| Call::Begin { table, text, num_tokens }),
            3 => (0..6_usize, 0..400_usize).prop_map(|(table, num_tokens)| Call::Reserve { table, num_tokens }),
            6 => (0..6_usize, 1..=STEP).prop_map(|(table, num_tokens)| Call::Compute { table, num_tokens }),
            2 => (0..6_usize, 0..6_usize, 0..400_usize)
                .prop_map(|(from, to, num_tokens)| Call::Share { from, to, num_tokens }),
            1 => (0..6_usize).prop_map(|table| Call::Clear { table }),
        ]
    }

    proptest! {
        #[test]
        fn random_traces_keep_the_count_and_find_only_what_was_computed(
            num_blocks in 0..40_usize,
            num_window_blocks in prop::option::of(0..20_usize),
            calls in prop::collection::vec(call(), 0..160),
        ) {
            let mut pool = num_window_blocks.map_or_else(|| BlockPool::new(num_blocks), |n| windowed(num_blocks, n));
            let mut tables: Vec<BlockTable> = (0..6).map(|_| BlockTable::default()).collect();
            let (mut texts, mut computed) = ([0; 6], [0; 6]);
            // What each block was last filled with: all tokens up to its end.
            let mut contents = vec![Vec::new(); num_blocks];
            let mut window_contents = vec![Vec::new(); num_window_blocks.unwrap_or(0)];
            for call in calls {
                match call {
                    Call::Begin { table, text: id, num_tokens } => {
                        tables[table].clear(&mut pool);
                        let tokens = text(id);
                        let prefix = pool.find(SPACE, &tokens[..num_tokens]);
                        for (index, &block) in prefix.blocks.iter().enumerate() {
                            prop_assert_eq!(&contents[block as usize], &tokens[..(index + 1) * BLOCK_TOKENS]);
                        }
                        (texts[table], computed[table]) = (id, prefix.num_tokens());
                        let fits = pool.has_room(num_tokens, &prefix, 0);
                        prop_assert!(!fits || pool.needed(num_tokens, &prefix) <= pool.num_free());
                        tables[table] = BlockTable::with_prefix(&prefix, &mut pool);
                        prop_assert_eq!(tables[table].reserve(num_tokens, &mut pool).is_ok(), fits);
                    }
                    Call::Reserve { table, num_tokens } => {
                        let (before, free) = (tables[table].blocks().to_vec(), pool.num_free());
                        let need = BlockPool::blocks_for(num_tokens).saturating_sub(before.len());
                        let result = tables[table].reserve(num_tokens, &mut pool);
                        prop_assert!(result.is_err() || need <= free);
                        prop_assert!(result.is_ok() || need > free || num_window_blocks.is_some());
                        prop_assert_eq!(&tables[table].blocks()[..before.len()], &before[..]);
                        let taken = tables[table].blocks().len() - before.len();
                        prop_assert_eq!(taken, if result.is_ok() { need } else { 0 });
                    }
                    Call::Compute { table: index, num_tokens } => {
                        let (table, tokens) = (&mut tables[index], text(texts[index]));
                        let done = computed[index];
                        table.release(done, &mut pool);
                        if table.reserve(tokens.len().min(done + num_tokens), &mut pool).is_err() {
                            continue;
                        }
                        let end = tokens.len().min(done + num_tokens);
                        prop_assert!(table.room() >= end);
                        // The last 39 tokens are where the next one looks for them.
                        if num_window_blocks.is_some() {
                            let seen = (done + 1).saturating_sub(40) / BLOCK_TOKENS..done / BLOCK_TOKENS;
                            for block in seen {
                                let content = &window_contents[table.window[block] as usize];
                                prop_assert_eq!(content, &tokens[..(block + 1) * BLOCK_TOKENS]);
                            }
                        }
                        for block in done / BLOCK_TOKENS..end / BLOCK_TOKENS {
                            let content = tokens[..(block + 1) * BLOCK_TOKENS].to_vec();
                            if num_window_blocks.is_some() {
                                window_contents[table.window[block] as usize] = content.clone();
                            }
                            contents[table.blocks[block] as usize] = content;
                        }
                        computed[index] = end;
                        table.cache(SPACE, &tokens[..end], &mut pool);
                    }
                    Call::Share { from, to, num_tokens } => {
                        // Only what was computed is shared, and with a window all of it, the begun block as a copy.
                        let mut shared;
                        if num_window_blocks.is_some() {
                            shared = tables[from].share_prefix(computed[from], &mut pool);
                            computed[to] = computed[from];
                            if shared.reserve(computed[from], &mut pool).is_err() {
                                shared.clear(&mut pool);
                                computed[to] = 0;
                            }
                        } else {
                            shared = tables[from].share_prefix(num_tokens.min(computed[from]), &mut pool);
                            computed[to] = shared.blocks.len() * BLOCK_TOKENS;
                        }
                        let mut old = std::mem::replace(&mut tables[to], shared);
                        old.clear(&mut pool);
                        texts[to] = texts[from];
                    }
                    Call::Clear { table } => {
                        tables[table].clear(&mut pool);
                        computed[table] = 0;
                    }
                }
                prop_assert_eq!(pool.check(&tables), Ok(()));
            }
            for table in &mut tables {
                table.clear(&mut pool);
            }
            prop_assert_eq!(pool.num_free(), num_blocks);
            prop_assert_eq!(pool.num_free_window(), num_window_blocks.unwrap_or(0));
        }
    }
}
