//! The engine's side of a [`BlockStore`]: which computed blocks go there, and how they come back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Result;
use crate::exec::Executor;
use crate::kv::store::{Digest, KeepWhen};
use crate::kv::{BLOCK_TOKENS, BlockPool, BlockStore, BlockTable, CachedBlock, KvPool, NO_BLOCK, Parent, PrefixSpace};

/// How much of a sequence the store has.
#[derive(Debug, Default)]
pub(super) struct Kept {
    num_blocks: usize,
    /// Of the last of them.
    digest: Option<Digest>,
}

/// A store that outlives the engines that use it, one at a time.
#[derive(Debug, Clone)]
pub struct SharedStore(Arc<Mutex<BlockStore>>);

impl SharedStore {
    /// For others to use.
    pub fn new(store: BlockStore) -> Self {
        Self(Arc::new(Mutex::new(store)))
    }

    /// The store itself.
    pub fn lock(&self) -> MutexGuard<'_, BlockStore> {
        // What a panic leaves behind is checked when it is read.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings those blocks of `tokens` back into the pool that the store has after the ones that the pool has. Returns how many
    /// tokens they hold.
    ///
    /// # Errors
    /// Those of the executor, which refuses bytes of another length than its blocks have.
    pub(super) fn recall(
        &self,
        executor: &mut dyn Executor,
        space: PrefixSpace,
        tokens: &[u32],
        pool: &mut BlockPool,
    ) -> Result<usize> {
        let prefix = pool.find(space, tokens);
        let found = prefix.num_tokens();
        // Owned meanwhile, so that none of them makes room for another.
        let mut table = BlockTable::with_prefix(&prefix, pool);
        let recalled = self.recall_after(executor, space, tokens, &mut table, pool);
        table.clear(pool);
        // What came back without its window may be of no use.
        let num_tokens = pool.find(space, tokens).num_tokens().saturating_sub(found);
        recalled.map(|()| num_tokens)
    }

    fn recall_after(
        &self,
        executor: &mut dyn Executor,
        space: PrefixSpace,
        tokens: &[u32],
        table: &mut BlockTable,
        pool: &mut BlockPool,
    ) -> Result<()> {
        let found = table.blocks().len() * BLOCK_TOKENS;
        let (full_bytes, window_bytes) = (executor.block_bytes(KvPool::Full), executor.block_bytes(KvPool::Window));
        let mut digest = Digest::of(space, &tokens[..found]);
        let mut store = self.lock();
        for (index, chunk) in tokens[found..].as_chunks().0.iter().enumerate() {
            digest = digest.next(chunk);
            let (start, end) = (found + index * BLOCK_TOKENS, found + (index + 1) * BLOCK_TOKENS);
            let Some((full, window)) = store.get(&digest, chunk).and_then(|bytes| bytes.split_at_checked(full_bytes))
            else {
                break;
            };
            table.release(start, pool);
            if table.reserve(end, pool).is_err() {
                break;
            }
            if let Some(&block) = table.blocks().last() {
                executor.write_block(KvPool::Full, block, full)?;
            }
            if let Some(&block) = table.window_blocks().last() {
                if window.len() == window_bytes {
                    executor.write_block(KvPool::Window, block, window)?;
                } else {
                    // It had fallen out of the window when it was kept: a hole here too.
                    table.release(end + pool.window_tokens().unwrap_or(0), pool);
                }
            }
            table.cache(space, &tokens[..end], pool);
        }
        Ok(())
    }

    /// Gives the store those of a sequence's cached blocks that it doesn't have yet, if it wants them now. They hold its first
    /// `tokens`; what the disk is too busy for waits for the next call.
    ///
    /// # Errors
    /// Those of the executor.
    pub(super) fn keep(
        &self,
        executor: &mut dyn Executor,
        space: PrefixSpace,
        tokens: &[u32],
        table: &BlockTable,
        kept: &mut Kept,
    ) -> Result<()> {
        let blocks = table.cached_blocks();
        if blocks.len() <= kept.num_blocks {
            return Ok(());
        }
        let mut store = self.lock();
        if store.keep_when() != KeepWhen::Computed {
            return Ok(());
        }
        let new = tokens.as_chunks().0.iter().zip(blocks).enumerate().skip(kept.num_blocks);
        for (index, (chunk, &block)) in new {
            let digest = kept.digest.unwrap_or_else(|| Digest::root(space)).next(chunk);
            let window = table.window_blocks().get(index).copied().unwrap_or(NO_BLOCK);
            if !store.put(&digest, chunk, |bytes| read_both(executor, block, window, bytes))? {
                break;
            }
            *kept = Kept { num_blocks: kept.num_blocks + 1, digest: Some(digest) };
        }
        Ok(())
    }

    /// Gives the store what the pool has cached, those used last first, if it wants it at the end; then waits for the disk.
    ///
    /// # Errors
    /// Those of the executor.
    pub(super) fn keep_all(&self, executor: &mut dyn Executor, cached: &[CachedBlock<'_>]) -> Result<()> {
        let mut store = self.lock();
        if store.keep_when() == KeepWhen::Unloaded {
            let mut digests = HashMap::new();
            let most = store.max_blocks();
            for &CachedBlock { block, window, parent, tokens } in cached.iter().take(most) {
                let before = match parent {
                    Parent::Root(space) => Digest::root(space),
                    Parent::Block(parent) => match digests.get(&parent) {
                        Some(&digest) => digest,
                        None => continue,
                    },
                };
                let digest = before.next(tokens);
                if store.put(&digest, tokens, |bytes| read_both(executor, block, window, bytes))? {
                    digests.insert(block, digest);
                }
            }
        }
        store.flush();
        Ok(())
    }
}

/// Bytes of what the store keeps of a block.
pub fn kept_bytes(executor: &dyn Executor) -> usize {
    executor.block_bytes(KvPool::Full) + executor.block_bytes(KvPool::Window)
}

/// Appends a block, and the one of the window's pool with the same tokens if it is there.
fn read_both(executor: &mut dyn Executor, block: u32, window: u32, bytes: &mut Vec<u8>) -> Result<()> {
    executor.read_block(KvPool::Full, block, bytes)?;
    if window == NO_BLOCK {
        return Ok(());
    }
    executor.read_block(KvPool::Window, window, bytes)
}
