//! The paged KV cache's bookkeeping: counters and indices only; the storage belongs to the executor.

/// Tokens in a KV block.
pub const BLOCK_TOKENS: usize = 32;
