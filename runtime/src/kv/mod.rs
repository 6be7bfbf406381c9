//! The paged KV cache's bookkeeping: counters and indices only; the storage belongs to the executor.
//!
//! [`BlockPool`] counts the owners of each block and keeps those that nobody owns as a cache of prefixes, a [`BlockTable`]
//! is one sequence's list of blocks. Tables can't be cloned and give their blocks back through the pool only, so a block
//! can't be freed twice.
#![forbid(unsafe_code)]

mod pool;
mod prefix;

pub use pool::{BlockPool, BlockTable, OutOfBlocks};
pub use prefix::{Prefix, PrefixMiss, PrefixSpace};

/// Tokens in a KV block.
pub const BLOCK_TOKENS: usize = 32;
