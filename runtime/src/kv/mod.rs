//! The paged KV cache's bookkeeping: counters and indices only; the storage belongs to the executor.
//!
//! [`BlockPool`] counts the owners of each block and keeps those that nobody owns as a cache of prefixes, a [`BlockTable`]
//! is one sequence's list of blocks. Tables can't be cloned and give their blocks back through the pool only, so a block
//! can't be freed twice. A [`BlockStore`] keeps computed blocks when the pool is gone.
//!
//! Layers that see a window only have blocks of their own ([`KvWindow`]): a sequence gives them back when they fall out of
//! the window, and its table has a hole there, which nobody reads.
#![forbid(unsafe_code)]

mod blocks;
mod pool;
mod prefix;
pub mod store;
mod window;

pub use pool::{BlockPool, BlockTable, OutOfBlocks};
pub use prefix::{CachedBlock, Parent, Prefix, PrefixMiss, PrefixSpace, Tokens};
pub use shimmy_kernels::cpu::attention::NO_BLOCK;
pub use shimmy_kernels::cpu::kv::KvPool;
pub use store::BlockStore;
pub use window::KvWindow;

/// Tokens in a KV block.
pub const BLOCK_TOKENS: usize = 32;
